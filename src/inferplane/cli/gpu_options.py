"""Options that say which GPUs: shared by `deploy`, `apply`, `gpr` and `template`."""

from __future__ import annotations

from typing import Annotated

import typer

from inferplane.client import GpuWish

PANEL = "GPUs"

Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus", min=1, help="GPUs on each node.", show_default=False, metavar="N", rich_help_panel=PANEL
    ),
]
GpuNodes = Annotated[
    int | None,
    typer.Option(
        "--gpu-nodes", min=1, help="How many nodes.", show_default=False, metavar="N", rich_help_panel=PANEL
    ),
]
GpuShape = Annotated[
    str,
    typer.Option(
        "--gpu-shape",
        help="The kind of GPU, as `gpus --kinds` lists it.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
InstanceType = Annotated[
    str,
    typer.Option(
        "--instance-type",
        help="The kind of node, as listed there.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
GpuMemory = Annotated[
    int | None,
    typer.Option(
        "--gpu-memory",
        min=1,
        metavar="GB",
        help="Memory of each GPU.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
AutoGpu = Annotated[
    bool,
    typer.Option(
        "--auto-gpu",
        help="Any kind of GPU with at least --gpu-memory.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
ExitDuration = Annotated[
    str,
    typer.Option(
        "--exit-duration",
        metavar="TIME",
        help="How long at most, such as 2h30m or 7d.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Priority = Annotated[
    int | None,
    typer.Option("--priority", help="1 to 299; more goes first.", show_default=False, rich_help_panel=PANEL),
]
IdleTimeout = Annotated[
    str,
    typer.Option(
        "--idle-timeout",
        metavar="TIME",
        help="Give them back when unused so long.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
EnforceIdle = Annotated[
    bool | None,
    typer.Option(
        "--enforce-idle/--no-enforce-idle",
        help="Act on the idle timeout.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Evictable = Annotated[
    bool | None,
    typer.Option(
        "--evictable/--not-evictable",
        help="May take GPUs from such GPRs of lower priority, and lose them to higher ones.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Requeue = Annotated[
    bool | None,
    typer.Option(
        "--requeue/--no-requeue",
        help="Wait for others when they are taken.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
AutoCluster = Annotated[
    bool,
    typer.Option(
        "--auto-cluster",
        help="On whatever cluster of the workspace.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
AutoRenew = Annotated[
    bool | None,
    typer.Option(
        "--auto-renew/--no-auto-renew",
        help="Go on when the exit duration is over, as long as nobody else waits for them.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Precedence = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-precedence",
        help="A cluster it may be on; may be repeated; the soonest wins.",
        rich_help_panel=PANEL,
    ),
]


def wish_of(
    gpus: int | None,
    nodes: int | None,
    shape: str,
    instance_type: str,
    memory_gb: int | None,
    exit_duration: str,
    priority: int | None,
    idle_timeout: str,
    enforce_idle: bool | None,
    evictable: bool | None,
    requeue: bool | None,
    *,
    auto: bool = False,
) -> GpuWish:
    """The options as one value."""
    return GpuWish(
        gpus=gpus,
        nodes=nodes,
        shape=shape,
        instance_type=instance_type,
        memory_gb=memory_gb,
        auto=auto,
        exit_duration=exit_duration,
        priority=priority,
        idle_timeout=idle_timeout,
        enforce_idle=enforce_idle,
        evictable=evictable,
        requeue=requeue,
    )


def wish_or_none(wish: GpuWish, *, others: tuple[bool, ...] = ()) -> GpuWish | None:
    """None when no option asked for GPUs at all: the endpoint runs on CPU. `others` are further such options."""
    return wish if any(others) or wish != GpuWish() else None
