"""The verbs on keys and workspaces: `inferplane key …`, `workspace …`."""

from __future__ import annotations

from typing import Annotated

import typer

from inferplane.cli import render
from inferplane.cli.options import Output, connected
from inferplane.cli.output import Format, note, print_json, print_result

DEFAULT = "default"
"""The workspace that a first start makes, and that is meant where none is named."""

keys = typer.Typer(no_args_is_help=True, help="API keys.")
workspaces = typer.Typer(no_args_is_help=True, help="Workspaces.")


def register(app: typer.Typer) -> None:
    """Add the groups to `app`."""
    app.add_typer(keys, name="key")
    app.add_typer(workspaces, name="workspace")


@keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.", show_default=False)],
    role: Annotated[
        str, typer.Option("--role", help="Owner, or of one workspace Editor or Viewer.", show_default=False)
    ],
    workspace: Annotated[
        str,
        typer.Option("--workspace", "-w", help="The workspace of an Editor or Viewer.", show_default=False),
    ] = "",
    validity: Annotated[
        str, typer.Option("--validity", help="Until a date (YYYY-MM-DD) or for a time (30d).")
    ] = "90d",
    user: Annotated[str, typer.Option("--user", help="Whom the key is for.", show_default=False)] = "",
    about: Annotated[str, typer.Option("--description", help="A note.", show_default=False)] = "",
    output: Output = Format.TABLE,
) -> None:
    """Make an API key; it is printed this once and stored as a digest."""
    with connected(context) as client:
        key = client.create_api_key(
            name, role=role, validity=validity, workspace=workspace, user_name=user, description=about
        )
    if output is Format.JSON:
        print_json({"apiKey": key})
    else:
        print_result(key)
        note("Keep it now: it is not shown again. Use it as INFERPLANE_API_KEY.")


@keys.command("list")
def list_keys(
    context: typer.Context,
    workspace: Annotated[
        str, typer.Option("--workspace", "-w", help="Only this workspace's.", show_default=False)
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """List API keys, their values masked."""
    with connected(context) as client:
        found = client.list_api_keys(workspace=workspace)
    if output is Format.JSON:
        print_json({"items": found})
    else:
        print_result(render.key_list(found))


@keys.command("delete")
def delete_key(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="The key's id (or the key itself).", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Delete an API key; its tokens end at once."""
    with connected(context) as client:
        client.delete_api_key(key)
    if output is Format.JSON:
        print_json({})
    else:
        print_result("the key is deleted")


@workspaces.command("create")
def create_workspace(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new workspace.", show_default=False)],
    cluster: Annotated[
        list[str] | None,
        typer.Option("--cluster", "-c", help="A cluster it may use; may be repeated.  [default: local]"),
    ] = None,
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", help="A namespace; may be repeated.")
    ] = None,
    username: Annotated[str, typer.Option("--username", help="Who answers for it.")] = "owner",
    email: Annotated[str, typer.Option("--email", help="How to reach them.")] = "owner@localhost",
    output: Output = Format.TABLE,
) -> None:
    """Make a workspace."""
    with connected(context) as client:
        made = client.create_workspace(
            name,
            clusters=cluster or ["local"],
            namespaces=namespace or [],
            username=username,
            email=email,
        )
    if output is Format.JSON:
        print_json({"workspaceName": made})
    else:
        print_result(f"workspace {made} is there")


@workspaces.command("update")
def update_workspace(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the workspace.", show_default=False)],
    cluster: Annotated[
        list[str] | None,
        typer.Option("--cluster", "-c", help="All clusters that it may use; may be repeated."),
    ] = None,
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", help="All its namespaces; may be repeated.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Replace a workspace's clusters or namespaces; what is not named stays."""
    if cluster is None and namespace is None:
        raise typer.BadParameter("give --cluster, --namespace or both", param_hint="--cluster")
    with connected(context) as client:
        client.update_workspace(name, clusters=cluster, namespaces=namespace)
    if output is Format.JSON:
        print_json({"workspaceName": name})
    else:
        print_result(f"workspace {name} is changed")


@workspaces.command("list")
def list_workspaces(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the workspaces that this key may see."""
    with connected(context) as client:
        found = client.list_workspaces()
    if output is Format.JSON:
        print_json({"workspaces": found})
    else:
        print_result(render.workspace_list(found))


@workspaces.command("delete")
def delete_workspace(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the workspace.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Delete what is in it first.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Delete a workspace."""
    with connected(context) as client:
        none_left = all(each.name == name for each in client.list_workspaces())
        client.delete_workspace(name, force=force)
    if output is Format.JSON:
        print_json({"workspaceName": name})
    else:
        print_result(f"workspace {name} is deleted")
    if none_left:
        note(f"warning: no workspace is left; the next start of the platform makes {DEFAULT} again, empty.")
    elif name == DEFAULT:
        note(f"warning: commands that name no workspace mean {DEFAULT}; INFERPLANE_WORKSPACE names another.")


@workspaces.command("kubeconfig")
def workspace_kubeconfig(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the workspace.", show_default=False)],
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster", "-c", help="The cluster; else its first of Kubernetes.", show_default=False
        ),
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Print a kubeconfig for the workspace's namespaces; it ends by itself after some hours."""
    with connected(context) as client:
        text = client.kube_config(workspace=name, cluster=cluster)
    if output is Format.JSON:
        print_json({"kubeConfig": text})
    else:
        print_result(text.rstrip("\n"))
        note("Keep it to yourself: whoever has it may do in those namespaces what you may.")
