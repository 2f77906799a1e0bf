"""The verbs on GPUs: `inferplane gpus`, and on requests for them: `inferplane gpr …`."""

from __future__ import annotations

from typing import Annotated

import typer

from inferplane.cli import gpu_render
from inferplane.cli.gpu_options import (
    AutoCluster,
    AutoGpu,
    EnforceIdle,
    Evictable,
    GpuMemory,
    GpuNodes,
    Gpus,
    GpuShape,
    IdleTimeout,
    InstanceType,
    Priority,
    Requeue,
    wish_of,
)
from inferplane.cli.options import Cluster, Output, Workspace, connected, workspace_or_default
from inferplane.cli.output import Format, note, print_json, print_result, progress
from inferplane.client import Client, WaitTimeoutError
from inferplane.wire.gpus import GprItem

requests = typer.Typer(no_args_is_help=True, help="Requests for GPUs (GPRs).")

Gpr = Annotated[
    str,
    typer.Argument(metavar="GPR", help="The request's id, or its name in the workspace.", show_default=False),
]
WaitForGpus = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until it holds GPUs, showing its place in line.")
]
GrantTimeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0,
        metavar="SECONDS",
        help="How long --wait waits at most; without it, until it is its turn.",
        show_default=False,
    ),
]
Duration = Annotated[
    str,
    typer.Option(
        "--exit-duration", metavar="TIME", help="How long at most, such as 2h30m or 7d.", show_default=False
    ),
]
Preferred = Annotated[
    list[str] | None,
    typer.Option("--preferred-cluster", help="The clusters to try, in this order; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("gpus")(gpus_)
    app.add_typer(requests, name="gpr")


def gpus_(
    context: typer.Context,
    kinds: Annotated[
        bool, typer.Option("--kinds", help="The kinds of nodes that a workspace can ask for.")
    ] = False,
    workspace: Workspace = "",
    output: Output = Format.TABLE,
) -> None:
    """Show every GPU, and who holds it until when."""
    with connected(context) as client:
        if kinds:
            items = client.gpu_shapes(workspace=workspace_or_default(workspace))
            if output is Format.JSON:
                print_json({"items": items})
            else:
                print_result(gpu_render.shapes(items))
            return
        found = client.inventory()
    if output is Format.JSON:
        print_json(found)
    else:
        print_result(gpu_render.inventory(found))


@requests.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the request.", show_default=False)],
    exit_duration: Duration,
    gpus: Gpus = 1,
    nodes: GpuNodes = 1,
    shape: GpuShape = "",
    instance_type: InstanceType = "",
    memory: GpuMemory = None,
    auto_gpu: AutoGpu = False,
    priority: Priority = None,
    idle_timeout: IdleTimeout = "",
    enforce_idle: EnforceIdle = None,
    evictable: Evictable = None,
    requeue: Requeue = None,
    cluster: Cluster = "",
    preferred: Preferred = None,
    auto_cluster: AutoCluster = False,
    workspace: Workspace = "",
    wait: WaitForGpus = False,
    timeout: GrantTimeout = None,
    output: Output = Format.TABLE,
) -> None:
    """Ask for GPUs; prints the request's id."""
    wish = wish_of(
        *(gpus, nodes, shape, instance_type, memory, exit_duration, priority),
        *(idle_timeout, enforce_idle, evictable, requeue),
        auto=auto_gpu,
    )
    with connected(context) as client:
        gpr_id = client.create_gpr(
            name,
            wish,
            workspace=workspace_or_default(workspace),
            cluster=cluster,
            preferred_clusters=preferred or (),
            auto_cluster=auto_cluster,
        )
        if wait:
            found = _wait_until_granted(client, gpr_id, name, timeout)
            if output is Format.JSON:
                print_json(found)
            else:
                print_result(gpr_id)
                note(f"{name} holds its GPUs: {found.explanation}")
            return
    if output is Format.JSON:
        print_json({"gprId": gpr_id})
    else:
        print_result(gpr_id)
        note(f"Follow it with: inferplane gpr describe {gpr_id}")


@requests.command("waittime")
def waittime(
    context: typer.Context,
    exit_duration: Duration,
    gpus: Gpus = 1,
    nodes: GpuNodes = 1,
    shape: GpuShape = "",
    instance_type: InstanceType = "",
    memory: GpuMemory = None,
    auto_gpu: AutoGpu = False,
    priority: Priority = None,
    cluster: Cluster = "",
    preferred: Preferred = None,
    auto_cluster: AutoCluster = False,
    workspace: Workspace = "",
    output: Output = Format.TABLE,
) -> None:
    """Say how long such a request would wait, on each kind of node; nothing is stored."""
    wish = wish_of(
        *(gpus, nodes, shape, instance_type, memory, exit_duration, priority),
        *("", None, None, None),
        auto=auto_gpu,
    )
    with connected(context) as client:
        items = client.wait_times(
            wish,
            workspace=workspace_or_default(workspace),
            cluster=cluster,
            preferred_clusters=preferred or (),
            auto_cluster=auto_cluster,
        )
    if output is Format.JSON:
        print_json({"items": items})
    else:
        print_result(gpu_render.wait_times(items))


@requests.command("list")
def list_(context: typer.Context, workspace: Workspace = "", output: Output = Format.TABLE) -> None:
    """List a workspace's requests, oldest first."""
    with connected(context) as client:
        items = client.list_gprs(workspace=workspace_or_default(workspace))
    if output is Format.JSON:
        print_json({"items": items})
    else:
        print_result(gpu_render.gpr_list(items))


@requests.command("describe")
def describe(
    context: typer.Context, gpr: Gpr, workspace: Workspace = "", output: Output = Format.TABLE
) -> None:
    """Show everything about a request: its place in line and why, what it holds, how it ended."""
    with connected(context) as client:
        found = client.describe_gpr(_id(client, gpr, workspace))
    if output is Format.JSON:
        print_json(found)
    else:
        print_result(gpu_render.gpr(found))


@requests.command("move")
def move(
    context: typer.Context,
    gpr: Gpr,
    priority: Priority = None,
    name: Annotated[str, typer.Option("--name", help="Another name.", show_default=False)] = "",
    workspace: Workspace = "",
    output: Output = Format.TABLE,
) -> None:
    """Move a waiting request by its priority, or rename it."""
    if priority is None and not name:
        raise typer.BadParameter("give --priority, --name or both", param_hint="--priority")
    with connected(context) as client:
        client.change_gpr(_id(client, gpr, workspace), priority=priority, name=name or None)
    _done(gpr, "is changed", output)


@requests.command("extend")
def extend(
    context: typer.Context,
    gpr: Gpr,
    exit_duration: Duration,
    workspace: Workspace = "",
    output: Output = Format.TABLE,
) -> None:
    """Give a request longer: its whole duration, counted from its start."""
    with connected(context) as client:
        client.change_gpr(_id(client, gpr, workspace), exit_duration=exit_duration)
    _done(gpr, f"now has {exit_duration}", output)


@requests.command("release")
def release(
    context: typer.Context, gpr: Gpr, workspace: Workspace = "", output: Output = Format.TABLE
) -> None:
    """Give a request's GPUs back before its time."""
    with connected(context) as client:
        client.release_gpr(_id(client, gpr, workspace))
    _done(gpr, "is being released", output)


@requests.command("delete")
def delete(
    context: typer.Context, gpr: Gpr, workspace: Workspace = "", output: Output = Format.TABLE
) -> None:
    """Delete a request that waits or has ended."""
    with connected(context) as client:
        client.delete_gpr(_id(client, gpr, workspace))
    _done(gpr, "is deleted", output)


def _id(client: Client, gpr: str, workspace: str) -> str:
    return client.find_gpr(gpr, workspace=workspace_or_default(workspace))


def _wait_until_granted(client: Client, gpr_id: str, name: str, timeout: float | None) -> GprItem:
    try:
        with progress(f"{name}: asked for as {gpr_id}") as shown:

            def report(item: GprItem) -> None:
                status = item.status.provisioning_status
                shown.show(f"{status} {item.queue_position}", gpu_render.gpr_step(item))

            return client.wait_until_granted(gpr_id, timeout, progress=report)
    except (KeyboardInterrupt, WaitTimeoutError):
        note(f"{name} goes on waiting without being watched; see: inferplane gpr describe {gpr_id}")
        raise


def _done(gpr: str, said: str, output: Format) -> None:
    if output is Format.JSON:
        print_json({})
    else:
        print_result(f"{gpr} {said}")
