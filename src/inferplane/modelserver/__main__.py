"""`python -m inferplane.modelserver CONFIG.json`: one model server in a fresh interpreter."""

from __future__ import annotations

import logging
import os
import sys

from inferplane.modelserver.config import ConfigError, read_config, thread_environment

EXIT_USAGE = 2


def main(arguments: list[str]) -> int:
    """Serve the model that the configuration file names. Returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m inferplane.modelserver CONFIG.json\n")
        return EXIT_USAGE
    try:
        config = read_config(arguments[0])
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_USAGE
    # Before numpy and its friends are imported: they size their thread pools when they are loaded.
    os.environ.update(thread_environment(config.threads))
    from inferplane.modelserver.main import serve

    return serve(config, pool_threads=config.threads)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a model that still computes in its thread must not delay the end.
    os._exit(code)
