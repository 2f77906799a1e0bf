"""GPU requests, what they are decided from, and templates of them: this part of a transaction.

A request is written with the version that was read (StaleVersion tells to read again); what is said about
its wait lies beside it, without a version.

What GPUs are granted from is more than one row: who holds what, nodes, policies, workspaces. All of it
together has one version, the generation: whoever changes any of it advances it in the same transaction.
Requests that only wait, or are let go, leave it alone: they take nothing from anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select, tuple_, update

from inferplane.domain.errors import AlreadyExists, Conflict, NotFound, StaleVersion
from inferplane.domain.gpr_template import GprTemplate, GprTemplateBinding
from inferplane.domain.gpu_request import GpuRequest, ProvisioningStatus
from inferplane.domain.inventory import Node
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.store import gpu_codec as codec
from inferplane.store.remembered import read_all
from inferplane.store.schema import (
    gpr_template_bindings,
    gpr_templates,
    gpu_requests,
    nodes,
    scheduler_state,
    workspace_policies,
)
from inferplane.store.statements import STATEMENT_KEYS_MAX, Change, Statements, batched, no_workspace
from inferplane.store.values import from_micros, to_json, to_micros

ENDED_GPU_REQUESTS_KEPT_MAX = 50_000

# The rows of `scheduler_state`.
_USAGE = "usage"
_GENERATION = "generation"  # its number is where others have their moment; it says nothing else


class GpuRows(Statements):
    """What can be done with GPU requests and their like within one transaction."""

    # GPU requests

    async def insert_gpu_request(self, request: GpuRequest) -> None:
        """Raises AlreadyExists for a known id, NotFound for an unknown workspace.

        An endpoint's requests keep the order in which they came, whatever the clock did: one that is not
        younger than the last gets the next microsecond as its time of creation. Whoever looks for the
        newest may so take the last of the list.
        """
        row = codec.gpu_request_to_row(request)
        if request.endpoint_uid:
            last = await self._first(
                select(func.max(gpu_requests.c.created_at).label("at")).where(
                    gpu_requests.c.endpoint_uid == request.endpoint_uid
                )
            )
            if last is not None and last.at is not None:
                row["created_at"] = max(row["created_at"], last.at + 1)
        statement = self._database.insert(gpu_requests).values(row)
        try:
            inserted = await self._count(statement.on_conflict_do_nothing(index_elements=["id"]))
        except Conflict as error:
            raise no_workspace(request.workspace) from error
        if not inserted:
            raise AlreadyExists(f"GPU request {request.id} exists already", reason="GprExists", field="gprId")
        self._touch_gpu_request(request)

    async def get_gpu_request(self, request_id: str) -> GpuRequest:
        """Raises NotFound."""
        row = await self._first(_GPU_REQUEST_BY_ID, {"id": request_id})
        if row is None:
            raise _no_gpu_request(request_id)
        return codec.gpu_request_from_row(row._mapping)

    async def list_gpu_requests(
        self,
        *,
        workspace: str | None = None,
        endpoint_uid: str | None = None,
        live_only: bool = False,
        limit: int | None = None,
        newest: int | None = None,
        after_id: str = "",
    ) -> list[GpuRequest]:
        """By (time of creation, id). `after_id` names a request: only those behind it.

        `limit` is of the first ones, `newest` of the last ones. `live_only` leaves out those that have ended.
        Raises NotFound when the request `after_id` is gone.
        """
        columns = gpu_requests.c
        order = (columns.created_at, columns.id)
        backwards = newest is not None
        statement = select(*_GPU_REQUEST).order_by(*(each.desc() if backwards else each for each in order))
        if workspace is not None:
            statement = statement.where(columns.workspace == workspace)
        if endpoint_uid is not None:
            statement = statement.where(columns.endpoint_uid == endpoint_uid)
        if live_only:
            statement = statement.where(columns.live == 1)
        if after_id:
            row = await self._first(select(columns.created_at).where(columns.id == after_id))
            if row is None:
                raise _no_gpu_request(after_id)
            key: tuple[int, str] = (row.created_at, after_id)
            statement = statement.where(tuple_(columns.created_at, columns.id) > key)
        assert limit is None or newest is None
        if (most := newest if backwards else limit) is not None:
            statement = statement.limit(most)
        rows = await self._all(statement)
        if backwards:
            rows.reverse()
        if live_only:
            remembered = self._memory.gpu_requests
            whole = workspace is None and endpoint_uid is None and not after_id and most is None
            return await (remembered.all(rows) if whole else remembered.some(rows))
        return await read_all(rows, codec.gpu_request_from_row)  # what has ended is seldom read again

    async def save_gpu_request(self, request: GpuRequest) -> int:
        """Write everything but id, workspace, endpoint and time of creation. Returns the new version.

        `request.version` must be the row's. Raises StaleVersion when it is not, or the row is gone.
        """
        row = codec.gpu_request_to_row(request)
        columns = gpu_requests.c
        statement = (
            update(gpu_requests)
            .where(columns.id == request.id, columns.version == request.version)
            .values({key: row[key] for key in ("status", "live", "body")})
            .values(version=request.version + 1)
        )
        if request.status is not ProvisioningStatus.QUEUED:
            statement = statement.values(wait=None)
        if not await self._count(statement):
            raise StaleVersion(f"GPU request {request.id} is no longer at version {request.version}")
        self._touch_gpu_request(request)
        return request.version + 1

    async def delete_gpu_request(self, request_id: str) -> None:
        """Deleting what is gone is harmless. Whether it may be deleted is for the caller to know."""
        columns = gpu_requests.c
        statement = (
            delete(gpu_requests)
            .where(columns.id == request_id)
            .returning(columns.workspace, columns.endpoint_name, columns.endpoint_uid)
        )
        row = (await self._run(statement)).first()
        if row is not None:
            self.touched[Change(row.workspace, row.endpoint_name, row.endpoint_uid, request_id)] = None

    async def save_wait_note(self, request_id: str, note: WaitNote | None) -> None:
        """Note what is said about a request's wait, or nothing. See `save_wait_notes`."""
        await self.save_wait_notes({request_id: note})

    async def save_wait_notes(self, notes: Mapping[str, WaitNote | None]) -> None:
        """Note what is said about these requests' waits.

        Leaves their versions alone, and requests that are gone or do not wait. Where something else is
        said than before, the request's endpoint is announced as changed; a request of its own is not:
        whoever writes notes wakes on changes of requests.
        """
        columns = gpu_requests.c
        told = select(
            columns.id, columns.workspace, columns.endpoint_name, columns.endpoint_uid, columns.wait
        ).where(columns.status == ProvisioningStatus.QUEUED.value)
        for ids in batched(notes, STATEMENT_KEYS_MAX):
            rows = await self._all(told.where(columns.id.in_(ids)).order_by(columns.id))
            for row in rows:
                if row.endpoint_uid and _says_else(row.wait, notes[row.id]):
                    self.touched[Change(row.workspace, row.endpoint_name, row.endpoint_uid)] = None
            await self._many(
                _SAVE_WAIT, [{"request": row.id, "note": _note_text(notes[row.id])} for row in rows]
            )

    async def wait_notes(self, request_ids: Iterable[str] | None = None) -> dict[str, WaitNote]:
        """What was last said about each request that waits; None asks for all of them."""
        columns = gpu_requests.c
        statement = select(columns.id, columns.wait).where(
            columns.live == 1, columns.status == ProvisioningStatus.QUEUED.value, columns.wait.is_not(None)
        )
        statement = statement.order_by(columns.id)
        if request_ids is None:
            rows = await self._all(statement)
        else:
            rows = []
            for ids in batched(request_ids, STATEMENT_KEYS_MAX):
                rows += await self._all(statement.where(columns.id.in_(ids)))
        found = await read_all(rows, lambda row: (row["id"], codec.wait_note_from_json(row["wait"])))
        return {request_id: note for request_id, note in found if note is not None}

    async def prune_gpu_requests(self, kept_max: int = ENDED_GPU_REQUESTS_KEPT_MAX) -> int:
        """Forget the requests that ended and were created first, but about `kept_max`; how many went."""
        columns = gpu_requests.c
        newest_doomed = (
            select(columns.created_at)
            .where(columns.live == 0)
            .order_by(columns.created_at.desc())
            .offset(max(0, kept_max))
            .limit(1)
        ).scalar_subquery()
        return await self._count(
            delete(gpu_requests).where(columns.live == 0, columns.created_at <= newest_doomed)
        )

    # What GPU requests are decided from

    async def put_policy(self, policy: WorkspacePolicy) -> None:
        """Set a workspace's policy. Raises NotFound for an unknown workspace."""
        await self.advance_generation()
        values = codec.policy_to_row(policy)
        statement = self._database.insert(workspace_policies).values(values)
        try:
            await self._run(
                statement.on_conflict_do_update(index_elements=["workspace"], set_={"body": values["body"]})
            )
        except Conflict as error:
            raise no_workspace(policy.workspace) from error
        self.touched[Change(policy.workspace, "", "")] = None

    async def get_policy(self, workspace: str) -> WorkspacePolicy:
        """The workspace's policy; one without limits where nobody has set any."""
        statement = select(workspace_policies).where(workspace_policies.c.workspace == workspace)
        row = await self._first(statement)
        return WorkspacePolicy(workspace) if row is None else codec.policy_from_row(row._mapping)

    async def list_policies(self) -> list[WorkspacePolicy]:
        """Those that were set, by workspace."""
        rows = await self._all(select(workspace_policies).order_by(workspace_policies.c.workspace))
        return [codec.policy_from_row(row._mapping) for row in rows]

    async def save_nodes(self, cluster: str, found: Iterable[Node]) -> bool:
        """Make these the cluster's nodes; whether that changed anything."""
        rows = {node.name: codec.node_to_row(node) | {"cluster": cluster} for node in found}
        known = {
            row.name: row.body
            for row in await self._all(select(nodes.c.name, nodes.c.body).where(nodes.c.cluster == cluster))
        }
        if {name: row["body"] for name, row in rows.items()} == known:
            return False
        await self.advance_generation()
        await self._run(delete(nodes).where(nodes.c.cluster == cluster))
        await self._many(insert(nodes), list(rows.values()))
        self.touched[Change("", "", "")] = None
        return True

    async def list_nodes(self, cluster: str | None = None) -> list[Node]:
        """Of one cluster, or all with None; by (cluster, name)."""
        statement = select(nodes).order_by(nodes.c.cluster, nodes.c.name)
        if cluster is not None:
            statement = statement.where(nodes.c.cluster == cluster)
        rows = await self._all(statement)
        return await (self._memory.nodes.all(rows) if cluster is None else self._memory.nodes.some(rows))

    async def load_usage(self) -> dict[str, float]:
        """Faded GPU-seconds by workspace, as of `usage_at`; empty before the first `save_usage`."""
        statement = select(scheduler_state.c.value).where(scheduler_state.c.name == _USAGE)
        row = await self._first(statement)
        return {} if row is None else codec.usage_from_json(row.value)

    async def usage_at(self) -> datetime | None:
        """The moment that the usage speaks of; None before the first `save_usage`."""
        row = await self._first(select(scheduler_state.c.at).where(scheduler_state.c.name == _USAGE))
        return None if row is None else from_micros(row.at)

    async def save_usage(self, usage: Mapping[str, float], at: datetime) -> None:
        """Replace the usage of all workspaces."""
        changes = {"value": to_json(dict(usage)), "at": to_micros(at)}
        statement = self._database.insert(scheduler_state).values(name=_USAGE, **changes)
        await self._run(statement.on_conflict_do_update(index_elements=["name"], set_=changes))

    async def generation(self) -> int:
        """The version of all that GPUs are granted from; 0 at first.

        Read it first: what is read after it is then at least as new, on every database.
        """
        row = await self._first(_GENERATION_NOW)
        return 0 if row is None else int(row.at)

    async def advance_generation(self, read: int | None = None) -> None:
        """Make those who decide from what was so far read again. Others who do the same wait until the end.

        `read` is the generation that the caller decided from: raises StaleVersion when it is no longer that.
        """
        number = scheduler_state.c.at
        statement = self._database.insert(scheduler_state).values(name=_GENERATION, value="", at=1)
        statement = statement.on_conflict_do_update(
            index_elements=["name"],
            set_={"at": number + 1},
            where=None if read is None else number == read,
        )
        if not await self._count(statement):
            raise StaleVersion(f"what GPUs are granted from is no longer of generation {read}")

    # Templates and bindings

    async def insert_template(self, template: GprTemplate) -> None:
        """Raises AlreadyExists."""
        statement = self._database.insert(gpr_templates).values(codec.template_to_row(template))
        if not await self._count(statement.on_conflict_do_nothing(index_elements=["name"])):
            raise AlreadyExists(
                f"GPR template {template.name} exists already", reason="GprTemplateExists", field="name"
            )

    async def update_template(self, template: GprTemplate) -> None:
        """Replace everything but the name. Raises NotFound."""
        body = codec.template_to_row(template)["body"]
        statement = update(gpr_templates).where(gpr_templates.c.name == template.name).values(body=body)
        if not await self._count(statement):
            raise _no_template(template.name)

    async def get_template(self, name: str) -> GprTemplate:
        """Raises NotFound."""
        row = await self._first(select(gpr_templates).where(gpr_templates.c.name == name))
        if row is None:
            raise _no_template(name)
        return codec.template_from_row(row._mapping)

    async def list_templates(self) -> list[GprTemplate]:
        """All, by name."""
        rows = await self._all(select(gpr_templates).order_by(gpr_templates.c.name))
        return [codec.template_from_row(row._mapping) for row in rows]

    async def delete_template(self, name: str) -> None:
        """Deleting what is gone is harmless; bindings that name it go on naming it."""
        await self._run(delete(gpr_templates).where(gpr_templates.c.name == name))

    async def insert_binding(self, binding: GprTemplateBinding) -> None:
        """Raises AlreadyExists when the workspace has one, NotFound for an unknown workspace."""
        statement = self._database.insert(gpr_template_bindings).values(codec.binding_to_row(binding))
        try:
            inserted = await self._count(statement.on_conflict_do_nothing(index_elements=["workspace"]))
        except Conflict as error:
            raise no_workspace(binding.workspace) from error
        if not inserted:
            raise AlreadyExists(
                f"workspace {binding.workspace} has a GPR template binding already",
                reason="GprTemplateBindingExists",
                field="workspaceName",
                next_action="Change it, or delete it first.",
            )

    async def update_binding(self, binding: GprTemplateBinding) -> None:
        """Replace everything but the workspace. Raises NotFound."""
        columns = gpr_template_bindings.c
        statement = update(gpr_template_bindings).where(columns.workspace == binding.workspace)
        if not await self._count(statement.values(body=codec.binding_to_row(binding)["body"])):
            raise _no_binding(binding.workspace)

    async def get_binding(self, workspace: str) -> GprTemplateBinding:
        """Raises NotFound."""
        statement = select(gpr_template_bindings).where(gpr_template_bindings.c.workspace == workspace)
        row = await self._first(statement)
        if row is None:
            raise _no_binding(workspace)
        return codec.binding_from_row(row._mapping)

    async def list_bindings(self) -> list[GprTemplateBinding]:
        """All, by workspace."""
        rows = await self._all(select(gpr_template_bindings).order_by(gpr_template_bindings.c.workspace))
        return [codec.binding_from_row(row._mapping) for row in rows]

    async def delete_binding(self, workspace: str) -> None:
        """Deleting what is gone is harmless."""
        columns = gpr_template_bindings.c
        await self._run(delete(gpr_template_bindings).where(columns.workspace == workspace))

    # Leaves

    def _touch_gpu_request(self, request: GpuRequest) -> None:
        change = Change(request.workspace, request.endpoint_name, request.endpoint_uid, request.id)
        self.touched[change] = None


def _note_text(note: WaitNote | None) -> str | None:
    return None if note is None else codec.wait_note_to_json(note)


def _says_else(stored: str | None, note: WaitNote | None) -> bool:
    """Whether anything but the moment of saying it is new."""
    before = None if stored is None else codec.wait_note_from_json(stored)
    if before is None or note is None:
        return before is not note
    return replace(before, at=note.at) != note


def _no_gpu_request(request_id: str) -> NotFound:
    return NotFound(f"there is no GPU request {request_id}", reason="GprNotFound", field="gprId")


def _no_template(name: str) -> NotFound:
    return NotFound(
        f"GPR template {name} does not exist", reason="GprTemplateNotFound", field="gprTemplateName"
    )


def _no_binding(workspace: str) -> NotFound:
    return NotFound(
        f"workspace {workspace} has no GPR template binding",
        reason="GprTemplateBindingNotFound",
        field="gprTemplateBindingName",
    )


# Asked on hot paths, so built once.
_GPU_REQUEST = tuple(column for column in gpu_requests.c if column.name != "wait")
_GPU_REQUEST_BY_ID = select(*_GPU_REQUEST).where(gpu_requests.c.id == bindparam("id"))
_GENERATION_NOW = select(scheduler_state.c.at).where(scheduler_state.c.name == _GENERATION)
_SAVE_WAIT = (
    update(gpu_requests)
    .where(
        gpu_requests.c.id == bindparam("request"), gpu_requests.c.status == ProvisioningStatus.QUEUED.value
    )
    .values(wait=bindparam("note"))
)
