"""Options that several commands share, and how a command reaches the platform."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from inferplane.cli.output import Format
from inferplane.client import Client, InvalidError
from inferplane.settings import load_client_settings

BODY_BYTES_MAX = 1024 * 1024 * 1024
"""More than this is not read from a file or a pipe into one request."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which platform the command line was told to use; "" means the one that the environment names."""

    api_url: str = ""


Output = Annotated[Format, typer.Option("--output", "-o", help="How the result is written.")]
Workspace = Annotated[
    str,
    typer.Option(
        "--workspace",
        "-w",
        help="The workspace; else INFERPLANE_WORKSPACE, else default.",
        show_default=False,
    ),
]
Cluster = Annotated[
    str, typer.Option("--cluster", "-c", help="The cluster, if there are several.", show_default=False)
]
Access = Annotated[
    str,
    typer.Option(
        "--access",
        help="Who may send requests: open (whoever reaches the gateway) or key (whoever has an endpoint key).",
        show_default=False,
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done, showing progress.")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long --wait waits at most.")
]
RunTimeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0,
        metavar="SECONDS",
        help="How long --wait waits at most; the time in the queue for GPUs does not count.",
    ),
]
QueueTimeout = Annotated[
    float | None,
    typer.Option(
        "--queue-timeout",
        min=0,
        metavar="SECONDS",
        help="How long --wait waits in the queue for GPUs at most; without it, until it is its turn.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check what would happen; nothing is stored.")]
Name = Annotated[str, typer.Argument(help="Name of the endpoint.", show_default=False)]


@contextmanager
def connected(context: typer.Context) -> Iterator[Client]:
    """A client of the platform that this command line is about."""
    target = context.find_object(Target) or Target()
    with Client(target.api_url or None) as client:
        yield client


def workspace_or_default(workspace: str) -> str:
    """The workspace that was named, else the environment's, else `default`."""
    return workspace or load_client_settings(os.environ, user_home=Path.home()).workspace


Secret = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="NAME=VALUE",
        help="A credential for the storage; may be repeated. Others on this machine can see it while the"
        " command runs: --secret-file is safer.",
    ),
]
SecretFile = Annotated[
    str,
    typer.Option(
        "--secret-file", metavar="FILE", help="The same from a file of NAME=VALUE lines.", show_default=False
    ),
]
TargetConcurrency = Annotated[
    float | None,
    typer.Option(
        "--target-concurrency", help="Requests at once that a replica should have.", show_default=False
    ),
]
TargetRate = Annotated[
    float | None,
    typer.Option("--target-rate", help="Requests a second that a replica should have.", show_default=False),
]
RestAfter = Annotated[
    str,
    typer.Option(
        "--scale-to-zero-after",
        metavar="DURATION",
        help="Sleep when no request came for so long, with --min-replicas 0.",
        show_default=False,
    ),
]
RequestSeconds = Annotated[
    float | None,
    typer.Option(
        "--request-timeout",
        metavar="SECONDS",
        help="Longest time a prediction may take.",
        show_default=False,
    ),
]
RequestBytes = Annotated[
    int | None,
    typer.Option(
        "--max-request-bytes", metavar="BYTES", help="Largest request that is let in.", show_default=False
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate", metavar="REQUESTS", help="Most requests a second; more get 429.", show_default=False
    ),
]
Burst = Annotated[
    int | None,
    typer.Option(
        "--burst",
        metavar="REQUESTS",
        help="How many may come at once where there is a rate.",
        show_default=False,
    ),
]
RatePerKey = Annotated[
    float | None,
    typer.Option(
        "--rate-per-key",
        metavar="REQUESTS",
        help="Most requests a second with one key.",
        show_default=False,
    ),
]
MaxConcurrency = Annotated[
    int | None,
    typer.Option(
        "--max-concurrency", metavar="REQUESTS", help="Most requests in flight.", show_default=False
    ),
]
MaxConcurrencyPerKey = Annotated[
    int | None,
    typer.Option(
        "--max-concurrency-per-key",
        metavar="REQUESTS",
        help="Most requests in flight of each key.",
        show_default=False,
    ),
]

REGISTERED = "models:/"
"""The one kind of storage URI with a single slash."""


def absolute(uri: str) -> str:
    """A path is meant from where the command is run; the platform runs elsewhere."""
    return (
        uri
        if not uri or "://" in uri or uri.startswith(REGISTERED)
        else str(Path(uri).expanduser().absolute())
    )


def read_text(path: str, what: str) -> str:
    """The text of a file, or of standard input for `-`. Raises InvalidError."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidError(f"{what} {path} is not text in UTF-8", reason="NotText") from error


def read_bytes(path: str, what: str) -> bytes:
    """A file's bytes, or standard input's for `-`. Raises typer.BadParameter, InvalidError."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read(BODY_BYTES_MAX + 1)
        else:
            with Path(path).expanduser().open("rb") as file:
                content = file.read(BODY_BYTES_MAX + 1)
    except OSError as error:
        raise typer.BadParameter(f"{what} {path} cannot be read: {error.strerror}") from error
    if len(content) > BODY_BYTES_MAX:
        raise InvalidError(f"{what} {path} is larger than {BODY_BYTES_MAX} bytes", reason="TooLarge")
    return content


def named_values(texts: list[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping. Raises typer.BadParameter."""
    values: dict[str, str] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found or not name.strip():
            # The text itself is not repeated: it may be a secret.
            raise typer.BadParameter(f"{option} takes NAME=VALUE")
        values[name.strip()] = value
    return values


def secrets_of(pairs: list[str] | None, path: str) -> dict[str, str]:
    """Credentials from options and from a file of lines; the options count. Raises typer.BadParameter,
    InvalidError."""
    lines = [line.strip() for line in read_text(path, "the secret file").splitlines()] if path else []
    kept = [line for line in lines if line and not line.startswith("#")]
    return named_values(kept, "--secret-file") | named_values(pairs or [], "--secret")
