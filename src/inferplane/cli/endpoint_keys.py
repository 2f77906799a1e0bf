"""The verbs on endpoint keys and usage: `inferplane endpoint-key …`, `inferplane usage`."""

from __future__ import annotations

from typing import Annotated

import typer

from inferplane.cli import render
from inferplane.cli.options import Output, Workspace, connected, workspace_or_default
from inferplane.cli.output import Format, note, print_json, print_result
from inferplane.client import Client, ConflictError, NotFoundError

keys = typer.Typer(no_args_is_help=True, help="Keys that open endpoints.")


def register(app: typer.Typer) -> None:
    """Add the group and the command to `app`."""
    app.add_typer(keys, name="endpoint-key")
    app.command("usage")(usage)


@keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.", show_default=False)],
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--endpoint",
            "-e",
            help="An endpoint that it opens; may be repeated. Without: every endpoint of the workspace.",
        ),
    ] = None,
    validity: Annotated[
        str, typer.Option("--validity", help="Until a date (YYYY-MM-DD) or for a time (30d).")
    ] = "90d",
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", metavar="REQUESTS", help="Its own limit a second at each endpoint.", show_default=False
        ),
    ] = None,
    workspace: Workspace = "",
    output: Output = Format.TABLE,
) -> None:
    """Make an endpoint key; it is printed this once and stored nowhere."""
    with connected(context) as client:
        made = client.create_endpoint_key(
            name,
            validity=validity,
            workspace=workspace_or_default(workspace),
            endpoints=endpoint or None,
            requests_per_second=rate,
        )
    if output is Format.JSON:
        print_json(made)
    else:
        print_result(made.endpoint_key)
        note(
            f"Its id is {made.key_id}. Keep the key now: it is not shown again."
            " Use it as INFERPLANE_ENDPOINT_KEY."
        )


@keys.command("list")
def list_keys(context: typer.Context, workspace: Workspace = "", output: Output = Format.TABLE) -> None:
    """List a workspace's endpoint keys, without their values."""
    with connected(context) as client:
        found = client.list_endpoint_keys(workspace=workspace_or_default(workspace))
    if output is Format.JSON:
        print_json({"items": found})
    else:
        print_result(render.endpoint_key_list(found))


@keys.command("delete")
def delete_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="The key's id.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Revoke an endpoint key; the gateway refuses it from now on."""
    with connected(context) as client:
        client.delete_endpoint_key(key_id)
    if output is Format.JSON:
        print_json({})
    else:
        print_result("the endpoint key is revoked")


def usage(
    context: typer.Context,
    endpoint: Annotated[
        str, typer.Option("--endpoint", "-e", help="Only of this endpoint.", show_default=False)
    ] = "",
    key_id: Annotated[
        str,
        typer.Option("--key-id", help="Only with this key; none: only without a key.", show_default=False),
    ] = "",
    by: Annotated[str, typer.Option("--by", help="hour or day (UTC).")] = "hour",
    since: Annotated[
        str,
        typer.Option("--since", metavar="WHEN", help="A date or an RFC 3339 instant.", show_default=False),
    ] = "",
    until: Annotated[
        str,
        typer.Option("--until", metavar="WHEN", help="A date or an RFC 3339 instant.", show_default=False),
    ] = "",
    csv: Annotated[bool, typer.Option("--csv", help="As a table for spreadsheets.")] = False,
    workspace: Workspace = "",
    output: Output = Format.TABLE,
) -> None:
    """Show what was used of endpoints: requests, errors, rows, tokens, seconds."""
    what = {
        "workspace": workspace_or_default(workspace),
        "endpoint": endpoint,
        "key_id": key_id,
        "by": by,
        "since": since,
        "until": until,
    }
    with connected(context) as client:
        if csv:
            print_result(client.usage_csv(**what).rstrip())
            return
        found = client.usage(**what)
        if endpoint and not found.items:
            _warn_of_unknown(client, endpoint, what["workspace"])
    if output is Format.JSON:
        print_json(found)
    else:
        print_result(render.usage(found))


def _warn_of_unknown(client: Client, endpoint: str, workspace: str) -> None:
    """Nothing was used of a misspelt endpoint either; one that was deleted may have been used before."""
    try:
        client.describe(endpoint, workspace=workspace)
    except NotFoundError as error:
        note(f"warning: {error.message} (any more, if it was deleted)")
        if error.next_action:
            note(f"  next: {error.next_action}")
    except ConflictError:  # there are several, on several clusters
        return
