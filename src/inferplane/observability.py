"""Logs in one shape. Field names: `event` (what happened), `endpoint`, `workspace`, `uid`, `replica`.

The platform logs to standard error: one JSON object a line when that is not a terminal, readable
lines when it is. Standard output stays for what commands print.
"""

from __future__ import annotations

import logging
import sys

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str) -> None:
    """Set up structlog and quieten the libraries. Call once, from the composition root."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger bound to the part of the house it speaks for."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger
