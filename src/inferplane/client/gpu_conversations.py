"""What is said about GPUs, their requests, templates, policies, and the audit log. See `conversations`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from inferplane.client import errors, requests
from inferplane.client.conversations import QUEUED, Flow, Session, ask, look_until
from inferplane.client.gpu_wish import GpuWish
from inferplane.wire.audit import AuditItem
from inferplane.wire.gpus import (
    BindingBody,
    BindingItem,
    BindingWritten,
    BoundClusterBody,
    CreateGpr,
    GprItem,
    InventoryList,
    ShapeItem,
    TemplateBody,
    TemplateItem,
    UpdateGpr,
    WaitTimeItem,
)
from inferplane.wire.policies import PolicyBody, PolicyItem

REQUEUE_PATIENCE_SECONDS = 5.0
"""How long a request that was evicted or failed is watched: it may be put back into the queue."""

_HOLDING = frozenset({"Provisioning", "Successful"})
_ON_ITS_WAY = frozenset({QUEUED, "Draining"})
_MAY_QUEUE_AGAIN = frozenset({"Evicted", "Failed"})
_ID = re.compile(r"gpr-[0-9a-f]{8}-[0-9a-f]{4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class BoundCluster:
    """The templates that a workspace may use on one cluster. The default is one of them, named or not."""

    cluster: str
    default: str
    templates: tuple[str, ...] = ()


# --- the inventory --------------------------------------------------------------------------------


def inventory(session: Session) -> Flow[InventoryList]:
    """Every node with GPUs, each GPU, and who holds it until when."""
    return (yield from ask(session, requests.list_inventory()))


def gpu_shapes(session: Session, *, workspace: str = "default") -> Flow[tuple[ShapeItem, ...]]:
    """The kinds of nodes that a workspace can ask for."""
    answer = yield from ask(session, requests.list_shapes(workspace))
    return answer.items


# --- GPU requests ---------------------------------------------------------------------------------


def create_gpr(
    session: Session,
    name: str,
    wish: GpuWish,
    *,
    workspace: str = "default",
    cluster: str = "",
    preferred_clusters: Sequence[str] = (),
    auto_cluster: bool = False,
    idempotency_key: str = "",
) -> Flow[str]:
    """Ask for GPUs and return the request's id; it is queued at once, and `describe_gpr` explains its wait.

    Where: on `cluster`, or on the first of `preferred_clusters` that will do, or with `auto_cluster`
    wherever it would start soonest. Raises InvalidError, QuotaExceededError (the workspace's policy).
    """
    body = _gpr(name, wish, workspace, cluster, preferred_clusters, auto_cluster=auto_cluster)
    answer = yield from ask(session, requests.create_gpr(body, idempotency_key or session.new_key()))
    return answer.gpr_id


def wait_times(
    session: Session,
    wish: GpuWish,
    *,
    workspace: str = "default",
    cluster: str = "",
    preferred_clusters: Sequence[str] = (),
    auto_cluster: bool = False,
) -> Flow[tuple[WaitTimeItem, ...]]:
    """How long a request would wait on each kind of node that would do, soonest first. Nothing is stored."""
    body = _gpr("", wish, workspace, cluster, preferred_clusters, auto_cluster=auto_cluster)
    answer = yield from ask(session, requests.wait_times(body))
    return answer.items


def list_gprs(session: Session, *, workspace: str = "default") -> Flow[tuple[GprItem, ...]]:
    """A workspace's GPU requests, oldest first, ended ones too."""
    answer = yield from ask(session, requests.list_gprs(workspace))
    return answer.items


def describe_gpr(session: Session, gpr_id: str) -> Flow[GprItem]:
    """One GPU request: its place in line and why, what it holds, how it ended."""
    return (yield from ask(session, requests.describe_gpr(gpr_id)))


def find_gpr(session: Session, id_or_name: str, *, workspace: str = "default") -> Flow[str]:
    """The id of a request that is named by its id, or by its name in a workspace.

    Where a name was used more than once, it means the only request that has not ended. Raises NotFoundError,
    and InvalidError naming the ids when that does not tell either.
    """
    if _ID.fullmatch(id_or_name):
        return id_or_name
    named = [
        each for each in (yield from list_gprs(session, workspace=workspace)) if each.gpr_name == id_or_name
    ]
    if not named:
        raise errors.NotFoundError(
            f"workspace {workspace} has no GPU request named {id_or_name!r}",
            reason="GprNotFound",
            field="gprName",
            next_action="See `inferplane gpr list`; another workspace is named with --workspace.",
        )
    alive = [each for each in named if each.status.provisioning_status in _HOLDING | _ON_ITS_WAY]
    named = alive or named
    if len(named) > 1:
        ids = ", ".join(f"{each.gpr_id} ({each.status.provisioning_status})" for each in named)
        raise errors.InvalidError(
            f"workspace {workspace} has {len(named)} GPU requests named {id_or_name!r}: {ids}",
            reason="AmbiguousName",
            field="gprName",
            next_action="Name one by its id.",
        )
    return named[0].gpr_id


def wait_until_granted(
    session: Session,
    gpr_id: str,
    timeout: float | None = None,
    *,
    progress: Callable[[GprItem], None] | None = None,
) -> Flow[GprItem]:
    """Wait until a request holds GPUs; returns it. None waits for as long as it is in line.

    `progress` is called with each state seen on the way. Raises GprEndedError when it ended instead,
    WaitTimeoutError after `timeout` seconds, NotFoundError when it was deleted.
    """
    ended_since: float | None = None

    def look(item: GprItem, now: float, late: str) -> bool:
        nonlocal ended_since
        status = item.status.provisioning_status
        if status in _HOLDING:
            return True
        if status in _ON_ITS_WAY:
            ended_since = None
        else:
            ended_since = now if ended_since is None else ended_since
            patient = status in _MAY_QUEUE_AGAIN and now - ended_since < REQUEUE_PATIENCE_SECONDS
            if not patient:
                raise errors.GprEndedError(
                    f"{item.gpr_name} holds no GPUs; it is {item.explanation}", reason=status
                )
        if late:
            raise errors.WaitTimeoutError(
                f"{item.gpr_name} is still {status} {late}: {item.explanation}", reason=status
            )
        return False

    see = partial(describe_gpr, session, gpr_id)
    limit = float("inf") if timeout is None else timeout
    return (yield from look_until(see, look, limit, progress))


def change_gpr(
    session: Session,
    gpr_id: str,
    *,
    name: str | None = None,
    priority: int | None = None,
    exit_duration: str | None = None,
) -> Flow[None]:
    """Rename a request, move it in the queue by its priority, or give it longer. Raises ConflictError."""
    body = UpdateGpr(gpr_id, gpr_name=name, priority=priority, exit_duration=exit_duration)
    yield from ask(session, requests.change_gpr(body))


def release_gpr(session: Session, gpr_id: str) -> Flow[None]:
    """Give a request's GPUs back before its time. Raises ConflictError for one that holds none."""
    yield from ask(session, requests.change_gpr(UpdateGpr(gpr_id, early_release=True)))


def delete_gpr(session: Session, gpr_id: str) -> Flow[None]:
    """Delete a request that waits or has ended. Raises ConflictError for one that holds GPUs."""
    yield from ask(session, requests.delete_gpr(gpr_id))


def _gpr(
    name: str, wish: GpuWish, workspace: str, cluster: str, preferred: Sequence[str], *, auto_cluster: bool
) -> CreateGpr:
    return CreateGpr(
        slice_name=workspace,
        gpr_name=name or None,
        cluster_name=cluster or None,
        preferred_clusters=list(preferred) or None,
        enable_auto_cluster_selection=auto_cluster or None,
        enable_auto_gpu_selection=wish.auto or None,
        number_of_gpus=wish.gpus,
        number_of_gpu_nodes=wish.nodes,
        instance_type=wish.instance_type or None,
        gpu_shape=wish.shape or None,
        memory_per_gpu=wish.memory_gb,
        exit_duration=wish.exit_duration or None,
        priority=wish.priority,
        idle_time_out_duration=wish.idle_timeout or None,
        enforce_idle_time_out=wish.enforce_idle,
        enable_eviction=wish.evictable,
        requeue_on_failure=wish.requeue,
    )


# --- templates and bindings -----------------------------------------------------------------------


def create_template(
    session: Session, name: str, wish: GpuWish, *, cluster: str, idempotency_key: str = ""
) -> Flow[str]:
    """Prepare a GPU request under a name; returns the name."""
    body = _template(name, wish, cluster)
    answer = yield from ask(session, requests.create_template(body, idempotency_key or session.new_key()))
    return answer.gpr_template_name


def change_template(session: Session, name: str, wish: GpuWish, *, cluster: str = "") -> Flow[str]:
    """Change a template; what `wish` does not say stays."""
    answer = yield from ask(session, requests.change_template(_template(name, wish, cluster)))
    return answer.gpr_template_name


def describe_template(session: Session, name: str) -> Flow[TemplateItem]:
    """One template."""
    return (yield from ask(session, requests.get_template(name)))


def list_templates(session: Session) -> Flow[tuple[TemplateItem, ...]]:
    """The templates that this key may use."""
    answer = yield from ask(session, requests.list_templates())
    return answer.items


def delete_template(session: Session, name: str) -> Flow[None]:
    """Delete a template. Raises ConflictError while a binding names it."""
    yield from ask(session, requests.delete_template(name))


def _template(name: str, wish: GpuWish, cluster: str) -> TemplateBody:
    """Raises InvalidError: in a template every GPU is named."""
    if wish.auto:
        raise errors.InvalidError(
            "a template names its GPUs", reason="Invalid", next_action="Give shape and instance type."
        )
    return TemplateBody(
        name=name,
        cluster_name=cluster or None,
        number_of_gpus=wish.gpus,
        number_of_gpu_nodes=wish.nodes,
        memory_per_gpu=wish.memory_gb,
        gpu_shape=wish.shape or None,
        instance_type=wish.instance_type or None,
        exit_duration=wish.exit_duration or None,
        priority=wish.priority,
        enforce_idle_time_out=wish.enforce_idle,
        idle_time_out_duration=wish.idle_timeout or None,
        enable_eviction=wish.evictable,
        requeue_on_failure=wish.requeue,
    )


def create_binding(
    session: Session, workspace: str, clusters: Sequence[BoundCluster], *, auto_gpr: bool = False
) -> Flow[BindingWritten]:
    """Give a workspace templates by cluster.

    With `auto_gpr`, an endpoint whose manifest asks for GPUs gets them by the cluster's default template.
    """
    body = BindingBody(workspace, clusters=_bound(clusters), enable_auto_gpr=auto_gpr)
    return (yield from ask(session, requests.create_binding(body)))


def change_binding(
    session: Session,
    workspace: str,
    clusters: Sequence[BoundCluster] | None = None,
    *,
    auto_gpr: bool | None = None,
) -> Flow[BindingWritten]:
    """Replace a workspace's templates, or switch auto-GPR; None leaves alone."""
    bound = None if clusters is None else _bound(clusters)
    body = BindingBody(workspace, clusters=bound, enable_auto_gpr=auto_gpr)
    return (yield from ask(session, requests.change_binding(body)))


def describe_binding(session: Session, workspace: str) -> Flow[BindingItem]:
    """A workspace's templates, and whether each can be used."""
    return (yield from ask(session, requests.get_binding(workspace)))


def list_bindings(session: Session) -> Flow[tuple[BindingItem, ...]]:
    """The templates of every workspace that this key may see."""
    answer = yield from ask(session, requests.list_bindings())
    return answer.template_bindings


def delete_binding(session: Session, workspace: str) -> Flow[None]:
    """Take a workspace's templates away."""
    yield from ask(session, requests.delete_binding(workspace))


def _bound(clusters: Sequence[BoundCluster]) -> list[BoundClusterBody]:
    return [BoundClusterBody(each.cluster, each.default, list(each.templates)) for each in clusters]


# --- policies and the audit log -------------------------------------------------------------------


def list_policies(session: Session) -> Flow[tuple[PolicyItem, ...]]:
    """What each workspace is allowed, for the workspaces that this key may see."""
    answer = yield from ask(session, requests.list_policies())
    return answer.items


def describe_policy(session: Session, workspace: str) -> Flow[PolicyItem]:
    """What one workspace is allowed."""
    answer = yield from ask(session, requests.get_policy(workspace))
    return answer.item


def change_policy(
    session: Session, workspace: str, changes: PolicyBody | Mapping[str, object]
) -> Flow[PolicyItem]:
    """Change what a workspace is allowed; what `changes` leaves out stays.

    A mapping has the names of `wire.policies.PolicyBody`'s attributes (`{"max_gprs": 4}`). -1, "" and []
    take a limit away. Raises InvalidError.
    """
    if not isinstance(changes, PolicyBody):
        unknown = set(changes) - set(PolicyBody.__struct_fields__)
        if unknown:
            raise errors.InvalidError(f"a policy has no {', '.join(sorted(unknown))}", reason="Invalid")
        changes = PolicyBody(**changes)  # type: ignore[arg-type]  # the platform checks the values
    answer = yield from ask(session, requests.change_policy(workspace, changes))
    return answer.item


def audit(
    session: Session,
    *,
    actor: str = "",
    workspace: str = "",
    kind: str = "",
    since: str = "",
    until: str = "",
    after: int | None = None,
    limit: int | None = None,
) -> Flow[tuple[AuditItem, ...]]:
    """Who did what to what, when, with which key, before and after; oldest first.

    Without `after` the newest entries, with it the next ones behind that number. `since` and `until`
    are dates or RFC 3339 instants.
    """
    answer = yield from ask(
        session,
        requests.list_audit(
            actor=actor,
            workspace=workspace,
            kind=kind,
            since=since,
            until=until,
            after=after,
            limit=limit,
        ),
    )
    return answer.items
