"""`python -m inferplane`: the command line.

The platform's own parts are imported only by the one command that needs them, so that every other
command starts fast.
"""

from __future__ import annotations

from inferplane.cli.main import build_cli
from inferplane.settings import LoadedSettings


def main() -> None:
    """The `inferplane` command."""
    build_cli(_up)()


def _up(loaded: LoadedSettings) -> int:
    from inferplane.bootstrap import up

    return up(loaded)


if __name__ == "__main__":
    main()
