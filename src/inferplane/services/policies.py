"""What an Owner allows each workspace. Changes count for what is asked for from then on.

The scheduler holds what already waits against the newest policy too, and says so where it forbids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta

from inferplane.domain.access import Caller, Verb
from inferplane.domain.errors import Invalid
from inferplane.domain.gpu_request import EXIT_DURATION_MAX, PRIORITY_HIGHEST, PRIORITY_LOWEST
from inferplane.domain.quantity import parse_duration
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.services.context import Platform
from inferplane.services.findings import Findings, check_text
from inferplane.services.trail import difference, entry

NO_LIMIT = -1
"""What a caller sends to take a number's limit away."""

COUNT_MAX = 1_000_000
SHAPES_MAX = 100
MONTH = timedelta(days=30)
PRIORITY_BANDS = {"low": (1, 100), "medium": (101, 200), "high": (201, PRIORITY_HIGHEST)}

_MONTHS = re.compile(r"([0-9]{1,3})M")
_RANGE = re.compile(r"([0-9]{1,3})\s*-\s*([0-9]{1,3})")
_UNLIMITED = WorkspacePolicy("")


@dataclass(frozen=True, slots=True)
class PolicyDraft:
    """What is asked of a policy. None leaves a field alone; NO_LIMIT, "" and () take a limit away."""

    priority_range: str | None = None
    max_requests: int | None = None
    max_queued: int | None = None
    max_exit_duration: str | None = None
    gpu_shapes: tuple[str, ...] | None = None
    max_gpus_per_request: int | None = None
    max_memory_gb_per_request: int | None = None
    max_endpoints: int | None = None
    requeue_on_failure: bool | None = None
    auto_eviction: bool | None = None
    enforce_idle_timeout: bool | None = None


async def get(platform: Platform, caller: Caller, workspace: str) -> WorkspacePolicy:
    """The policy of a workspace; without limits where none was set. Raises NotFound."""
    caller.require(Verb.READ_WORKSPACE, workspace)
    async with platform.store.read() as tx:
        await tx.get_workspace(workspace)
        return await tx.get_policy(workspace)


async def list_policies(platform: Platform, caller: Caller) -> list[WorkspacePolicy]:
    """One for each workspace that the caller may see, by name."""
    caller.require(Verb.READ_WORKSPACE)
    async with platform.store.read() as tx:
        known = {each.workspace: each for each in await tx.list_policies()}
        names = [each.name for each in await tx.list_workspaces() if caller.may_see(each.name)]
    return [known.get(name, WorkspacePolicy(name)) for name in names]


async def change(platform: Platform, caller: Caller, workspace: str, draft: PolicyDraft) -> WorkspacePolicy:
    """Set what the draft gives; returns the whole policy. Raises NotFound, Invalid with all details."""
    caller.require(Verb.MANAGE_GPUS, workspace)
    async with platform.store.transaction() as tx:
        await tx.hold_workspace(workspace)  # of two who change different fields, both count
        present = await tx.get_policy(workspace)
        wanted = applied(present, draft)
        if wanted != present:
            await tx.put_policy(wanted)
            before, after = difference(present, wanted)
            await tx.append_event(
                entry(
                    platform.clock(),
                    caller,
                    "PolicyChanged",
                    f"the policy of workspace {workspace} was changed: {', '.join(sorted(after))}",
                    workspace=workspace,
                    before=before,
                    after=after,
                )
            )
    return wanted


def applied(policy: WorkspacePolicy, draft: PolicyDraft) -> WorkspacePolicy:
    """The policy with what the draft gives. Pure. Raises Invalid with every problem."""
    findings = Findings()
    if draft.priority_range is not None:
        band = findings.check(parse_priority_range, draft.priority_range, "priorityRange")
        if band is not None:
            policy = replace(policy, priority_lowest=band[0], priority_highest=band[1])
    if draft.max_exit_duration is not None:
        longest = findings.check(_exit_duration, draft.max_exit_duration, "maxExitDurationPerGPR")
        policy = replace(policy, max_exit_duration=longest)
    if draft.gpu_shapes is not None:
        shapes = findings.check(_shapes, draft.gpu_shapes, "gpuShapes")
        policy = replace(policy, gpu_shapes=shapes or ())
    policy = replace(
        policy,
        max_requests=_count(findings, draft.max_requests, policy.max_requests, "maxGPRs", 0),
        max_endpoints=_count(findings, draft.max_endpoints, policy.max_endpoints, "maxInferenceEndpoints", 0),
        max_gpus_per_request=_count(
            findings, draft.max_gpus_per_request, policy.max_gpus_per_request, "maxGpuPerGpr", 1
        ),
        max_memory_gb_per_request=_count(
            findings, draft.max_memory_gb_per_request, policy.max_memory_gb_per_request, "maxMemoryPerGpr", 1
        ),
    )
    queued = _count(findings, draft.max_queued, policy.max_queued, "maxQueuedGPRs", 0)
    policy = replace(policy, max_queued=_UNLIMITED.max_queued if queued is None else queued)
    if draft.requeue_on_failure is not None:
        policy = replace(policy, requeue_on_failure=draft.requeue_on_failure)
    if draft.auto_eviction is not None:
        policy = replace(policy, auto_eviction=draft.auto_eviction)
    if draft.enforce_idle_timeout is not None:
        policy = replace(policy, enforce_idle_timeout=draft.enforce_idle_timeout)
    findings.raise_any()
    return policy


def parse_priority_range(text: str, field: str) -> tuple[int, int]:
    """`low`, `medium`, `high`, or two numbers such as `1-200`; "" is every priority. Raises Invalid."""
    words = text.strip().lower()
    if not words:
        return PRIORITY_LOWEST, PRIORITY_HIGHEST
    if words in PRIORITY_BANDS:
        return PRIORITY_BANDS[words]
    match = _RANGE.fullmatch(words)
    if match is not None:
        lowest, highest = int(match[1]), int(match[2])
        if PRIORITY_LOWEST <= lowest <= highest <= PRIORITY_HIGHEST:
            return lowest, highest
    raise Invalid(
        f"“{text[:40]}” is no range of priorities",
        reason="InvalidPriorityRange",
        field=field,
        next_action=f"Write low, medium, high, or two numbers from {PRIORITY_LOWEST} to {PRIORITY_HIGHEST}"
        " such as 1-200.",
    )


def format_priority_range(policy: WorkspacePolicy) -> str:
    """The word for a band, else two numbers."""
    bounds = policy.priority_lowest, policy.priority_highest
    return next((word for word, band in PRIORITY_BANDS.items() if band == bounds), f"{bounds[0]}-{bounds[1]}")


def _exit_duration(text: str, field: str) -> timedelta | None:
    words = text.strip()
    if not words:
        return None
    months = _MONTHS.fullmatch(words)  # the capital letter means months, as in the original's policies
    duration = MONTH * int(months[1]) if months is not None else parse_duration(words, field)
    if not timedelta(0) < duration <= EXIT_DURATION_MAX:
        raise Invalid(
            f"{field} must be longer than 0 and at most {EXIT_DURATION_MAX.days} days",
            reason="OutOfRange",
            field=field,
        )
    return duration


def _shapes(shapes: tuple[str, ...], field: str) -> tuple[str, ...]:
    if len(shapes) > SHAPES_MAX:
        raise Invalid(f"at most {SHAPES_MAX} shapes", reason="TooMany", field=field)
    return tuple(
        dict.fromkeys(check_text(shape, f"{field}[{index}]", 128) for index, shape in enumerate(shapes))
    )


def _count(
    findings: Findings, wanted: int | None, present: int | None, field: str, lowest: int
) -> int | None:
    if wanted is None:
        return present
    if wanted == NO_LIMIT:
        return None
    if not lowest <= wanted <= COUNT_MAX:
        findings.add(
            f"{field} must be {lowest} to {COUNT_MAX}",
            field=field,
            reason="OutOfRange",
            next_action=f"Send {NO_LIMIT} for no limit.",
        )
        return present
    return wanted
