"""Values → text for people. Pure: what is printed is decided here, and nothing is printed.

Tables are plain columns with two spaces between them, never cut to a terminal's width: what a person
sees is what `grep` and `awk` see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from inferplane.domain.endpoint import human_bytes, human_seconds
from inferplane.settings import Sourced
from inferplane.wire.access import ApiKeyItem
from inferplane.wire.endpoint_keys import EndpointKeyItem
from inferplane.wire.endpoints import (
    AutoscalingItem,
    CheckItem,
    DownloadItem,
    EndpointDescription,
    EndpointGpus,
    EndpointItem,
    EventItem,
    EvidenceItem,
    Explanation,
    LimitsItem,
    MilestoneItem,
)
from inferplane.wire.usage import UsageItem, UsageList, UsageTotal
from inferplane.wire.workspaces import ClusterItem, ClusterReportItem, WorkspaceItem

INDENT = "  "


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest entry; an empty entry is shown as a dash."""
    lines = [list(header), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def pairs(facts: Iterable[tuple[str, str]]) -> str:
    """`Name:  value` lines, without those that have no value."""
    known = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in known), default=0) + 1
    return "\n".join(f"{name + ':':<{width}}  {value}" for name, value in known)


def moment(at: datetime | None) -> str:
    """`2026-01-31 12:00:00 UTC`, or "" when it has not come."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def milliseconds(duration_ms: int) -> str:
    """`340 ms`, `2.1 s`, `3 min 5 s`."""
    if duration_ms < 1000:
        return f"{duration_ms} ms"
    seconds = duration_ms / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def endpoint_list(items: Sequence[EndpointItem], *, with_workspace: bool) -> str:
    """One line an endpoint."""
    if not items:
        return "no endpoints"
    header = ["NAME", "FORMAT", "STATUS", "REASON", "REPLICAS", "CLUSTER", "URL"]
    rows = [
        [
            item.endpoint_name,
            item.model_name,
            item.status,
            item.reason,
            f"{item.replica_count.ready}/{item.replica_count.desired}",
            item.cluster_name,
            item.endpoint,
        ]
        for item in items
    ]
    if with_workspace:
        header.insert(0, "WORKSPACE")
        for item, row in zip(items, rows, strict=True):
            row.insert(0, item.workspace)
    return table(header, rows)


def endpoint_step(endpoint: EndpointDescription) -> str:
    """One line on where an endpoint is on its way; of one in line, its place."""
    said = endpoint.message or endpoint.reason
    if endpoint.gpu is not None and endpoint.gpu.queue_position:
        said = place_in_line(endpoint.gpu.queue_position, endpoint.gpu.estimated_start_time)
    if endpoint.status == "Failed" and endpoint.reason:
        said = f"{endpoint.reason}: {endpoint.message}"
    return f"{endpoint.endpoint_name}: {endpoint.status}" + (f" — {said}" if said else "")


def _scaling(scaling: AutoscalingItem) -> str:
    """The bounds and the last decision; "" where the number is fixed."""
    if scaling.min_replicas == scaling.max_replicas:
        return ""
    decided = f"{scaling.replicas}: {scaling.message}, since {moment(scaling.since)}"
    last = f"; {decided}" if scaling.message else ""
    woke = f"; woke in {scaling.wake_seconds:.2f} s" if scaling.wake_seconds is not None else ""
    rest = f", at rest after {scaling.scale_to_zero_after}" if scaling.scale_to_zero_after else ""
    return f"{scaling.min_replicas} to {scaling.max_replicas}{rest}{last}{woke}"


def place_in_line(position: int, expected: datetime | None) -> str:
    """`position 2, expected to start at 2026-01-31 12:00:00 UTC`."""
    start = f", expected to start at {moment(expected)}" if expected is not None else ""
    return f"position {position}{start}"


def description(endpoint: EndpointDescription) -> str:
    """One endpoint in full."""
    model, limits = endpoint.model, endpoint.limits
    source = f"{endpoint.model_name} from {model.storage_uri or 'the manifest'}"
    parts = [
        pairs(
            [
                ("Name", endpoint.endpoint_name),
                ("Workspace", endpoint.workspace),
                ("Cluster", endpoint.cluster_name),
                ("Namespace", endpoint.namespace),
                ("Status", endpoint.status),
                ("Reason", endpoint.reason),
                ("Message", endpoint.message),
                ("Next action", endpoint.next_action),
                ("Next retry", moment(endpoint.next_retry_at)),
                ("Since", moment(endpoint.since)),
                ("URL", endpoint.endpoint),
                ("Path URL", endpoint.path_endpoint),
                ("DNS", ", ".join(f"{r.dns} {r.type} {r.value}" for r in endpoint.dns_records)),
                ("Model", source),
                ("Digest", model.digest),
                ("Runtime", model.runtime),
                ("Secret", ", ".join(model.secret_keys)),
                ("Protocols", ", ".join(endpoint.protocols)),
                ("Resources", _resources(model.cpu_millis, model.memory_bytes)),
                (
                    "Limits",
                    f"{human_bytes(limits.max_request_bytes)} a request, {limits.timeout_seconds:g} s to answer,"
                    f" {limits.start_timeout_seconds:g} s to start{_rates(limits)}",
                ),
                ("Access", endpoint.access),
                *_gpus(endpoint.gpu, endpoint.message),
                ("Replicas", f"{endpoint.replica_count.ready} of {endpoint.replica_count.desired} ready"),
                ("Scaling", _scaling(endpoint.autoscaling)),
                ("Download", download(endpoint.download)),
                ("Created", f"{moment(endpoint.created_at)} by {endpoint.created_by or 'unknown'}"),
            ]
        )
    ]
    if endpoint.conditions:
        # What is said above is not said again for each condition that it keeps from coming true.
        rows = [
            (c.type, c.status, c.reason, "" if c.message == endpoint.message else c.message)
            for c in endpoint.conditions
        ]
        parts.append(table(("CONDITION", "STATUS", "REASON", "MESSAGE"), rows))
    if endpoint.replicas:
        replicas = [
            (
                r.name,
                f"{r.state} ({r.reason})" if r.reason else r.state,
                str(r.pid or ""),
                str(r.restarts),
                moment(r.ready_at),
            )
            for r in endpoint.replicas
        ]
        parts.append(table(("REPLICA", "STATE", "PID", "RESTARTS", "READY"), replicas))
    if endpoint.gpu_requests:
        asked = [
            (
                each.gpr_id,
                each.gpr_name,
                each.status,
                f"{each.number_of_gpu_nodes} x {each.number_of_gpus}",
                each.gpu_shape,
                each.instance_type,
            )
            for each in endpoint.gpu_requests
        ]
        parts.append(table(("GPU REQUEST", "NAME", "STATUS", "NODES x GPUS", "SHAPE", "TYPE"), asked))
    if endpoint.timeline:
        parts.append(timeline(endpoint.timeline))
    if endpoint.evidence is not None and endpoint.status == "Failed":
        parts.append(evidence(endpoint.evidence))
    if endpoint.try_command:
        heading = "Try it:" if not endpoint.try_note else f"Try it: ({endpoint.try_note})"
        parts.append("\n".join([heading, *endpoint.try_command]))
    return "\n\n".join(part for part in parts if part)


def explanation(found: Explanation) -> str:
    """What an endpoint waits for, or why it failed, and what to do."""
    parts = [
        pairs(
            [
                ("Name", found.endpoint_name),
                ("Status", found.status),
                ("Reason", found.reason),
                ("Meaning", found.meaning),
                ("Message", found.message),
                ("Waiting for", "" if found.waiting_for == found.message else found.waiting_for),
                ("Next action", found.next_action),
                ("Next retry", moment(found.next_retry_at)),
                ("Scaling", _scaling(found.autoscaling)),
            ]
        ),
        evidence(found.evidence),
        timeline(found.timeline) if found.timeline else "",
        _decisions(found.scaling_decisions),
    ]
    return "\n\n".join(part for part in parts if part)


def _decisions(decided: Sequence[EventItem]) -> str:
    """How the number of replicas has changed, and why."""
    if not decided:
        return ""
    return table(("SCALED", "AT", "WHY"), [(each.kind, moment(each.at), each.message) for each in decided])


def evidence(found: EvidenceItem) -> str:
    """The proof for a reason; "" when there is none."""
    text = pairs(
        [
            ("Exit code", "" if found.exit_code is None else str(found.exit_code)),
            ("Signal", found.signal),
            ("At", moment(found.at)),
            ("Restarts", str(found.restarts or "")),
            ("Storage URI", found.storage_uri),
            ("Download", download(found.download)),
            ("Stopped by", found.stopped_by),
            ("Left", ", ".join(found.left)),
        ]
    )
    if found.log_tail:
        text += "\n" * bool(text) + "\n".join(
            ["Last log lines:", *(INDENT + line for line in found.log_tail)]
        )
    return text and f"EVIDENCE\n{text}"


def timeline(steps: Sequence[MilestoneItem]) -> str:
    """Milestones with the time between them."""
    rows = [
        (
            step.name,
            moment(step.at),
            "" if first else f"+{milliseconds(step.duration_ms)}",
            milliseconds(step.elapsed_ms),
        )
        for step, first in zip(steps, [True] + [False] * len(steps), strict=False)
    ]
    return table(("TIMELINE", "AT", "TOOK", "ELAPSED"), rows)


def download(item: DownloadItem | None) -> str:
    """One line on where the model's bytes are."""
    if item is None or item.phase == "Absent":
        return ""
    parts = [human_bytes(item.received_bytes)]
    if item.total_bytes is not None and item.total_bytes != item.received_bytes:
        parts[0] += f" of {human_bytes(item.total_bytes)}"
    if item.rate_bytes_per_second and item.finished_at is None:
        parts.append(f"{human_bytes(int(item.rate_bytes_per_second))}/s")
    if item.eta_seconds is not None and item.finished_at is None:
        parts.append(f"about {human_seconds(item.eta_seconds)} left")
    if item.resumed_from_bytes:
        parts.append(f"resumed from {human_bytes(item.resumed_from_bytes)}")
    if item.attempts > 1:
        parts.append(f"attempt {item.attempts}")
    return f"{item.phase}, " + ", ".join(parts)


def event_line(event: EventItem) -> str:
    """One event on one line."""
    about = f" [{event.reason}]" if event.reason else ""
    by = f" (by {event.actor})" if event.actor else ""
    name = f"{event.endpoint}: " if event.endpoint else ""
    return f"{moment(event.at)}  {event.kind:<20}  {name}{event.message}{about}{by}"


WARNINGS = frozenset({"warning", "manifest"})
"""Checks that bring what the answer to the real request would bring as a warning."""


def check_table(checks: Sequence[CheckItem]) -> str:
    """The findings of a dry run, and under each one that failed what to do.

    What is accepted and has no effect, or another than one might expect, is no failure, and not just ok.
    """
    lines = []
    for check in checks:
        word = "FAIL" if not check.ok else "warn" if check.check in WARNINGS and check.message else "ok  "
        reason = f" [{check.reason}]" if check.reason else ""
        lines.append(f"{word}  {check.check}: {check.message}{reason}")
        if not check.ok and check.next_action:
            lines.append(f"      {check.next_action}")
    return "\n".join(lines)


def key_list(keys: Sequence[ApiKeyItem]) -> str:
    """One line an API key; values are masked."""
    if not keys:
        return "no API keys"
    rows = [
        (k.id, k.name, k.role, k.workspace_name, k.api_key, moment(k.expires_at), moment(k.last_used_at))
        for k in keys
    ]
    return table(("ID", "NAME", "ROLE", "WORKSPACE", "KEY", "VALID UNTIL", "LAST USED"), rows)


def endpoint_key_list(keys: Sequence[EndpointKeyItem]) -> str:
    """One line an endpoint key; never a value."""
    if not keys:
        return "no endpoint keys"
    rows = [
        (
            k.key_id,
            k.name,
            ", ".join(k.endpoints) or "all",
            "" if k.requests_per_second is None else f"{k.requests_per_second:g}/s",
            f"{moment(k.expires_at)}{' (expired)' if k.expired else ''}",
            k.created_by,
        )
        for k in keys
    ]
    return table(("ID", "NAME", "ENDPOINTS", "RATE", "VALID UNTIL", "CREATED BY"), rows)


def usage(found: UsageList) -> str:
    """One line an hour (or day), endpoint and key, and the sum."""
    if not found.items:
        return f"nothing was used from {moment(found.since)} to {moment(found.until)}"
    rows = [
        (
            moment(item.start),
            item.endpoint,
            f"{item.key_name} ({item.key_id})" if item.key_name else item.key_id or "none",
            *_counts(item),
        )
        for item in found.items
    ]
    rows.append(("total", "", "", *_counts(found.total)))
    heads = (found.by.upper(), "ENDPOINT", "KEY", "REQUESTS", "ERRORS", "ROWS", "TOKENS", "SECONDS")
    return table(heads, rows)


def _counts(used: UsageItem | UsageTotal) -> tuple[str, ...]:
    return (str(used.requests), str(used.errors), str(used.rows), str(used.tokens), f"{used.seconds:.1f}")


def _rates(limits: LimitsItem) -> str:
    """What is limited besides, each part after a comma."""
    said = [
        (limits.requests_per_second, "requests a second"),
        (limits.requests_per_second_per_key, "a second for each key"),
        (limits.burst, "at once"),
        (limits.concurrency_max, "in flight"),
        (limits.concurrency_max_per_key, "in flight for each key"),
    ]
    return "".join(f", {value:g} {what}" for value, what in said if value is not None)


def workspace_list(items: Sequence[WorkspaceItem]) -> str:
    """One line a workspace."""
    if not items:
        return "no workspaces"
    rows = [
        (item.name, ", ".join(item.clusters), ", ".join(each.namespace for each in item.namespaces))
        for item in items
    ]
    return table(("NAME", "CLUSTERS", "NAMESPACES"), rows)


def cluster_list(items: Sequence[ClusterItem]) -> str:
    """One line a cluster."""
    if not items:
        return "no clusters"
    rows = [
        (
            item.name,
            item.engine,
            "yes" if item.reachable else "no",
            item.engine_version,
            str(item.capacity.nodes),
            f"{item.capacity.free} of {item.capacity.gpus}",
            item.domain,
            item.ingress_address,
            item.message,
        )
        for item in items
    ]
    heads = (
        "NAME",
        "ENGINE",
        "REACHABLE",
        "VERSION",
        "GPU NODES",
        "GPUS FREE",
        "DOMAIN",
        "INGRESS",
        "MESSAGE",
    )
    return table(heads, rows)


def cluster_report(report: ClusterReportItem) -> str:
    """What was found in a cluster: one line a check, and what to do below those that did not pass."""
    lines = []
    for each in report.checks:
        lines.append(f"{'ok ' if each.ok else 'NO '} {each.check}: {each.message}")
        if not each.ok:
            lines += [f"      {text}" for text in (each.reason, each.next_action) if text]
    return "\n".join(lines) or report.message


def settings_table(sources: Sequence[Sourced]) -> str:
    """What is in force, and from where."""
    return table(("SETTING", "VALUE", "FROM"), [(s.name, setting_text(s), s.source) for s in sources])


def setting_text(setting: Sourced) -> str:
    """A setting's value as text; a password in an address is not shown."""
    value = setting.value
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if setting.name == "database_url":
        scheme, found, rest = text.partition("://")
        who, at, where = rest.rpartition("@")
        user, colon, _ = who.partition(":")
        where, mark, _ = where.partition("?")  # the parameters may hold one as well
        return f"{scheme}{found}{user}{':***' if colon else ''}{at}{where}{'?***' if mark else ''}"
    return text


def _gpus(gpu: EndpointGpus | None, told: str) -> list[tuple[str, str]]:
    """Where an endpoint's GPUs are, or its place in line for them. `told` is what has been said already."""
    if gpu is None:
        return []
    held = ", ".join(f"{each.node} [{', '.join(map(str, each.indexes))}]" for each in gpu.nodes)
    return [
        ("GPUs", f"{gpu.status}{': ' if held else ''}{held}"),
        ("GPU request", gpu.gpr_id),
        ("Position", str(gpu.queue_position or "")),
        ("Expected start", moment(gpu.estimated_start_time)),
        ("About them", "" if gpu.message in told else gpu.message),
    ]


def _resources(cpu_millis: int | None, memory_bytes: int | None) -> str:
    parts = []
    if cpu_millis is not None:
        parts.append(f"{cpu_millis / 1000:g} CPU")
    if memory_bytes is not None:
        parts.append(f"{human_bytes(memory_bytes)} memory")
    return ", ".join(parts)
