"""The command line: a thin user of the SDK, put together.

Results go to stdout, everything else to stderr; `-o json` prints what the REST API calls `data`, one
object (streams: one object a line). No command ends in a traceback: errors are a sentence with reason,
field and next action, and an exit code of `exits.ExitCode` that `--help` lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inferplane.cli import access, clusters, endpoint_keys, endpoints, gpu_rules, gpus, platform, revisions
from inferplane.cli.exits import ExitCode, exit_code_of
from inferplane.cli.options import Target
from inferplane.cli.output import note, print_error, print_result
from inferplane.client import ClientError
from inferplane.domain.errors import InferplaneError
from inferplane.settings import LoadedSettings
from inferplane.version import VERSION

ABOUT = "Hosted inference endpoints: from a storage URI to an answered prediction."
ENVIRONMENT = """
INFERPLANE_API_URL and INFERPLANE_API_KEY name the platform and the key; without them, the platform of this
machine and its Owner key. INFERPLANE_WORKSPACE is the workspace where none is named,
INFERPLANE_ENDPOINT_KEY the key for endpoints that want one.
"""


def build_cli(up: Callable[[LoadedSettings], int]) -> typer.Typer:
    """The whole command line. `up` runs the platform and returns the exit code."""
    app = typer.Typer(
        name="inferplane",
        cls=_Commands,
        help=ABOUT,
        epilog=_epilog(),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        context: typer.Context,
        api_url: Annotated[
            str, typer.Option("--api-url", metavar="URL", help="Where the platform is.", show_default=False)
        ] = "",
        debug: Annotated[  # noqa: ARG001 - read by _Commands
            bool, typer.Option("--debug", help="Show where a mistake of the program itself is.")
        ] = False,
        version: Annotated[  # noqa: ARG001 - acts by its callback
            bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
        ] = False,
    ) -> None:
        context.obj = Target(api_url)

    platform.register(app, up)
    endpoints.register(app)
    revisions.register(app)
    gpus.register(app)
    access.register(app)
    clusters.register(app)
    endpoint_keys.register(app)
    gpu_rules.register(app)
    return app


class _Commands(TyperGroup):
    """Turns whatever a command raises on purpose into a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except ClientError as error:
            print_error(error)
            raise typer.Exit(exit_code_of(error)) from error
        except InferplaneError as error:  # settings that cannot be meant
            print_error(error)
            raise typer.Exit(ExitCode.USAGE) from error
        except Exception as error:  # the last resort: a sentence instead of a traceback, unless asked for
            expected = hasattr(error, "exit_code") or isinstance(error, BrokenPipeError | typer.Abort)
            if expected or ctx.params.get("debug"):
                raise
            note(f"Error: this is a mistake of the program itself: {type(error).__name__}: {error}")
            note("  next: Report it; `inferplane --debug …` shows the place.")
            raise typer.Exit(ExitCode.FAILED) from error


def _version(wanted: bool) -> None:
    if wanted:
        print_result(f"inferplane {VERSION}")
        raise typer.Exit


def _epilog() -> str:
    codes = [f"{code.value}  {code.meaning}" for code in ExitCode]
    return "\n\n".join([" ".join(ENVIRONMENT.split()), "Exit codes:", *codes])
