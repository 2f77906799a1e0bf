"""The verbs on what is allowed and prepared: `inferplane policy …`, `template …`, `binding …`; and `audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from inferplane.cli import gpu_render
from inferplane.cli.gpu_options import (
    EnforceIdle,
    Evictable,
    ExitDuration,
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
from inferplane.cli.options import Output, connected, named_values
from inferplane.cli.output import Format, print_json, print_result
from inferplane.client import BoundCluster
from inferplane.wire.policies import PolicyBody

ANY = "any"

policies = typer.Typer(no_args_is_help=True, help="What a workspace is allowed.")
templates = typer.Typer(no_args_is_help=True, help="Requests for GPUs, prepared under a name.")
bindings = typer.Typer(no_args_is_help=True, help="Which templates a workspace may use.")

Whose = Annotated[str, typer.Argument(help="The workspace.", show_default=False)]
TemplateName = Annotated[str, typer.Argument(help="The template.", show_default=False)]
Bound = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="CLUSTER=DEFAULT[,OTHER…]",
        help="The templates for a cluster, the default one first; may be repeated.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the groups to `app`."""
    app.add_typer(policies, name="policy")
    app.add_typer(templates, name="template")
    app.add_typer(bindings, name="binding")
    app.command("audit")(audit)


# --- policies ---------------------------------------------------------------------------------------


@policies.command("list")
def list_policies(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List what each workspace is allowed."""
    with connected(context) as client:
        items = client.list_policies()
    if output is Format.JSON:
        print_json({"items": items})
    else:
        print_result(gpu_render.policy_list(items))


@policies.command("describe")
def describe_policy(context: typer.Context, workspace: Whose, output: Output = Format.TABLE) -> None:
    """Show what one workspace is allowed."""
    with connected(context) as client:
        found = client.describe_policy(workspace)
    if output is Format.JSON:
        print_json({"item": found})
    else:
        print_result(gpu_render.policy(found))


@policies.command("set")
def set_policy(
    context: typer.Context,
    workspace: Whose,
    max_gprs: Annotated[
        int | None,
        typer.Option(
            "--max-gprs",
            help="GPU requests that have not ended, those that wait included.",
            show_default=False,
        ),
    ] = None,
    max_queued: Annotated[
        int | None,
        typer.Option("--max-queued-gprs", help="GPU requests that wait at once.", show_default=False),
    ] = None,
    max_endpoints: Annotated[
        int | None, typer.Option("--max-endpoints", help="Endpoints at once.", show_default=False)
    ] = None,
    max_gpus: Annotated[
        int | None, typer.Option("--max-gpus-per-gpr", help="GPUs of one request.", show_default=False)
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(
            "--max-memory-per-gpr",
            metavar="GB",
            help="Memory of all GPUs of one request together.",
            show_default=False,
        ),
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option("--max-exit-duration", metavar="TIME", help="Longest duration.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--gpu-shape", help=f"A shape it may ask for; may be repeated; {ANY} lifts the limit."),
    ] = None,
    priority_range: Annotated[
        str | None, typer.Option("--priority-range", help="low, medium, high or two numbers: 1-200.")
    ] = None,
    requeue: Annotated[
        bool | None,
        typer.Option(
            "--requeue/--no-requeue",
            help="Every GPR waits again when it fails or is evicted; else those that say --requeue.",
            show_default=False,
        ),
    ] = None,
    eviction: Annotated[
        bool | None,
        typer.Option(
            "--eviction/--no-eviction",
            help="Every GPR takes part in eviction, on both sides; else those that say --evictable.",
            show_default=False,
        ),
    ] = None,
    enforce_idle: EnforceIdle = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what a workspace is allowed; what is not named stays. -1, or '' for a text, lifts a limit."""
    changes = PolicyBody(
        priority_range=priority_range,
        max_gprs=max_gprs,
        max_queued_gprs=max_queued,
        max_exit_duration_per_gpr=max_duration,
        requeue_on_failure=requeue,
        enable_auto_eviction=eviction,
        enforce_idle_time_out=enforce_idle,
        gpu_shapes=[each for each in shapes if each != ANY] if shapes else None,
        max_gpu_per_gpr=max_gpus,
        max_memory_per_gpr=max_memory,
        max_inference_endpoints=max_endpoints,
    )
    if changes == PolicyBody():
        raise typer.BadParameter("name at least one thing to change")
    with connected(context) as client:
        found = client.change_policy(workspace, changes)
    if output is Format.JSON:
        print_json({"item": found})
    else:
        print_result(gpu_render.policy(found))


# --- templates --------------------------------------------------------------------------------------


@templates.command("create")
def create_template(
    context: typer.Context,
    name: TemplateName,
    cluster: Annotated[str, typer.Option("--cluster", "-c", help="Its cluster.", show_default=False)],
    shape: GpuShape,
    instance_type: InstanceType,
    memory: Annotated[
        int, typer.Option("--gpu-memory", min=1, metavar="GB", help="Memory of each GPU.", show_default=False)
    ],
    exit_duration: ExitDuration,
    gpus: Gpus = 1,
    nodes: GpuNodes = 1,
    priority: Priority = None,
    idle_timeout: IdleTimeout = "",
    enforce_idle: EnforceIdle = None,
    evictable: Evictable = None,
    requeue: Requeue = None,
    output: Output = Format.TABLE,
) -> None:
    """Prepare a request for GPUs under a name."""
    wish = wish_of(
        *(gpus, nodes, shape, instance_type, memory, exit_duration, priority),
        *(idle_timeout, enforce_idle, evictable, requeue),
    )
    with connected(context) as client:
        made = client.create_template(name, wish, cluster=cluster)
    _named({"gprTemplateName": made}, f"template {made} is there", output)


@templates.command("change")
def change_template(
    context: typer.Context,
    name: TemplateName,
    cluster: Annotated[str, typer.Option("--cluster", "-c", help="Its cluster.", show_default=False)] = "",
    gpus: Gpus = None,
    nodes: GpuNodes = None,
    shape: GpuShape = "",
    instance_type: InstanceType = "",
    memory: GpuMemory = None,
    exit_duration: ExitDuration = "",
    priority: Priority = None,
    idle_timeout: IdleTimeout = "",
    enforce_idle: EnforceIdle = None,
    evictable: Evictable = None,
    requeue: Requeue = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a template; what is not named stays."""
    wish = wish_of(
        *(gpus, nodes, shape, instance_type, memory, exit_duration, priority),
        *(idle_timeout, enforce_idle, evictable, requeue),
    )
    with connected(context) as client:
        made = client.change_template(name, wish, cluster=cluster)
    _named({"gprTemplateName": made}, f"template {made} is changed", output)


@templates.command("list")
def list_templates(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the templates that this key may use."""
    with connected(context) as client:
        items = client.list_templates()
    _named({"items": items}, gpu_render.template_list(items), output)


@templates.command("describe")
def describe_template(context: typer.Context, name: TemplateName, output: Output = Format.TABLE) -> None:
    """Show one template."""
    with connected(context) as client:
        found = client.describe_template(name)
    _named(found, gpu_render.template(found), output)


@templates.command("delete")
def delete_template(context: typer.Context, name: TemplateName, output: Output = Format.TABLE) -> None:
    """Delete a template that no binding names."""
    with connected(context) as client:
        client.delete_template(name)
    _named({}, f"template {name} is deleted", output)


# --- bindings ---------------------------------------------------------------------------------------


@bindings.command("create")
def create_binding(
    context: typer.Context,
    workspace: Whose,
    bound: Bound,
    auto: Annotated[
        bool,
        typer.Option("--auto-gpr/--no-auto-gpr", help="Manifests that want GPUs get them by the default."),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Give a workspace templates, cluster by cluster."""
    with connected(context) as client:
        written = client.create_binding(workspace, _bound(bound or []), auto_gpr=auto)
    _named(written, gpu_render.binding_list([written]), output)


@bindings.command("change")
def change_binding(
    context: typer.Context,
    workspace: Whose,
    bound: Bound = None,
    auto: Annotated[
        bool | None,
        typer.Option(
            "--auto-gpr/--no-auto-gpr",
            help="Manifests that want GPUs get them by the default.",
            show_default=False,
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Replace a workspace's templates, or switch auto-GPR."""
    if bound is None and auto is None:
        raise typer.BadParameter("give --template, --auto-gpr or --no-auto-gpr")
    with connected(context) as client:
        written = client.change_binding(workspace, _bound(bound) if bound else None, auto_gpr=auto)
    _named(written, gpu_render.binding_list([written]), output)


@bindings.command("list")
def list_bindings(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the templates of every workspace that this key may see."""
    with connected(context) as client:
        items = client.list_bindings()
    _named({"templateBindings": items}, gpu_render.binding_list(items), output)


@bindings.command("describe")
def describe_binding(context: typer.Context, workspace: Whose, output: Output = Format.TABLE) -> None:
    """Show a workspace's templates, and whether each can be used."""
    with connected(context) as client:
        found = client.describe_binding(workspace)
    _named(found, gpu_render.binding_list([found]), output)


@bindings.command("delete")
def delete_binding(context: typer.Context, workspace: Whose, output: Output = Format.TABLE) -> None:
    """Take a workspace's templates away."""
    with connected(context) as client:
        client.delete_binding(workspace)
    _named({}, f"workspace {workspace} has no templates any more", output)


def _bound(texts: list[str]) -> list[BoundCluster]:
    """`CLUSTER=DEFAULT,OTHER` options as values. Raises typer.BadParameter."""
    clusters = []
    for cluster, names in named_values(texts, "--template").items():
        default, *others = [name.strip() for name in names.split(",") if name.strip()] or [""]
        if not default:
            raise typer.BadParameter("--template takes CLUSTER=DEFAULT[,OTHER…]")
        clusters.append(BoundCluster(cluster, default, (default, *others)))
    return clusters


# --- the audit log ----------------------------------------------------------------------------------


def audit(
    context: typer.Context,
    actor: Annotated[str, typer.Option("--actor", help="Done by this key.", show_default=False)] = "",
    workspace: Annotated[
        str, typer.Option("--workspace", "-w", help="In this workspace.", show_default=False)
    ] = "",
    kind: Annotated[
        str, typer.Option("--kind", help="Of this kind, such as PolicyChanged.", show_default=False)
    ] = "",
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help="From a date or an instant on.", show_default=False)
    ] = "",
    until: Annotated[
        str, typer.Option("--until", metavar="WHEN", help="Before a date or an instant.", show_default=False)
    ] = "",
    after: Annotated[
        int | None,
        typer.Option("--after", metavar="NUMBER", help="Behind this entry.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="How many at most.", show_default=False)
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Say who did what to what, when, with which key, from what to what; the newest last."""
    with connected(context) as client:
        items = client.audit(
            actor=actor,
            workspace=workspace,
            kind=kind,
            since=since,
            until=until,
            after=after,
            limit=limit,
        )
    _named({"items": items}, "\n".join(map(gpu_render.audit_entry, items)) or "no entries", output)


def _named(data: object, text: str, output: Format) -> None:
    if output is Format.JSON:
        print_json(data)
    else:
        print_result(text)
