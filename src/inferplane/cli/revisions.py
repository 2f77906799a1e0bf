"""The verbs that change an endpoint while it serves: update, restart, promote, rollback, revisions, metrics."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inferplane.cli import render
from inferplane.cli.changes import finish, print_checks
from inferplane.cli.options import (
    Access,
    Burst,
    Cluster,
    DryRun,
    MaxConcurrency,
    MaxConcurrencyPerKey,
    Name,
    Output,
    Rate,
    RatePerKey,
    RequestBytes,
    RequestSeconds,
    RestAfter,
    Secret,
    SecretFile,
    TargetConcurrency,
    TargetRate,
    Timeout,
    Wait,
    Workspace,
    absolute,
    connected,
    named_values,
    read_text,
    secrets_of,
    workspace_or_default,
)
from inferplane.cli.output import Format, note, print_json, print_result
from inferplane.client import InvalidError
from inferplane.client.conversations import WAIT_SECONDS
from inferplane.wire.endpoints import GuardBody, LimitsBody, RevisionItem
from inferplane.wire.traffic import EndpointMetrics


def register(app: typer.Typer) -> None:
    """Add the commands to `app`, in the order in which `--help` lists them."""
    for command in (update, restart, promote, rollback, revisions, metrics):
        app.command()(command)


def update(
    context: typer.Context,
    name: Name,
    uri: Annotated[
        str | None, typer.Option("--uri", "-u", help="Where the new model is.", show_default=False)
    ] = None,
    model_format: Annotated[
        str | None, typer.Option("--format", "-f", help="Its format, if another.", show_default=False)
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(
            "--digest", metavar="sha256:HEX", help="Refuse the model if it has another.", show_default=False
        ),
    ] = None,
    manifest: Annotated[
        str,
        typer.Option(
            "--manifest", metavar="FILE", help="A KServe InferenceService instead.", show_default=False
        ),
    ] = "",
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="TEXT", help="Arguments for the model server, in place of all."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="Variables for the model server, in place of all."),
    ] = None,
    secret: Secret = None,
    secret_file: SecretFile = "",
    cpu: Annotated[str | None, typer.Option("--cpu", help="Limit of a replica.", show_default=False)] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Limit of a replica.", show_default=False)
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option("--min-replicas", min=0, help="As few as this.", show_default=False)
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option("--max-replicas", min=1, help="As many as this.", show_default=False)
    ] = None,
    target_concurrency: TargetConcurrency = None,
    target_rate: TargetRate = None,
    scale_to_zero_after: RestAfter = "",
    request_seconds: RequestSeconds = None,
    request_bytes: RequestBytes = None,
    rate: Rate = None,
    burst: Burst = None,
    rate_per_key: RatePerKey = None,
    max_concurrency: MaxConcurrency = None,
    max_concurrency_per_key: MaxConcurrencyPerKey = None,
    canary: Annotated[
        int | None,
        typer.Option(
            "--canary",
            metavar="PERCENT",
            min=0,
            max=100,
            help="Give the new revision only so much, until it is promoted; alone: another share.",
            show_default=False,
        ),
    ] = None,
    mirror: Annotated[
        int | None,
        typer.Option(
            "--mirror",
            metavar="PERCENT",
            min=0,
            max=100,
            help="Send it copies of so many requests, and drop its answers.",
            show_default=False,
        ),
    ] = None,
    sticky_header: Annotated[
        str | None,
        typer.Option(
            "--sticky-header",
            metavar="HEADER",
            help="Requests with equal values of this header go to the same revision.",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", help="startThenStop or stopThenStart.", show_default=False),
    ] = None,
    guard: Annotated[
        bool | None,
        typer.Option(
            "--guard/--no-guard",
            help="Whether requests go back by themselves if the new revision is worse.",
            show_default=False,
        ),
    ] = None,
    guard_error_points: Annotated[
        float | None,
        typer.Option(
            "--guard-error-points",
            metavar="SHARE",
            help="Worse: so much more of its answers are 5xx; 0.05 is five in a hundred.",
            show_default=False,
        ),
    ] = None,
    guard_latency_factor: Annotated[
        float | None,
        typer.Option(
            "--guard-latency-factor",
            metavar="TIMES",
            help="Worse: its 95th percentile is so many times the other's.",
            show_default=False,
        ),
    ] = None,
    guard_latency_least: Annotated[
        float | None,
        typer.Option(
            "--guard-latency-least",
            metavar="MS",
            help="A latency below this is never worse.",
            show_default=False,
        ),
    ] = None,
    guard_requests: Annotated[
        int | None,
        typer.Option(
            "--guard-requests", metavar="COUNT", help="Judge on no fewer requests.", show_default=False
        ),
    ] = None,
    guard_window: Annotated[
        float | None,
        typer.Option(
            "--guard-window",
            metavar="SECONDS",
            help="Of so many seconds in which there were requests.",
            show_default=False,
        ),
    ] = None,
    access: Access = "",
    workspace: Workspace = "",
    cluster: Cluster = "",
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Change an endpoint while it serves: its model, shares of requests, replicas, limits, access.

    A new revision takes over once it answers; the one before serves until then, and gets the requests
    back if the new one is worse. A target or a limit of 0 takes it away.
    """
    limits = LimitsBody(
        request_bytes,
        request_seconds,
        rate,
        burst,
        rate_per_key,
        max_concurrency,
        max_concurrency_per_key,
    )
    bounds = GuardBody(
        guard, guard_error_points, guard_latency_factor, guard_latency_least, guard_requests, guard_window
    )
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    change: dict[str, Any] = {
        **where,
        "uri": None if uri is None else absolute(uri),
        "model_format": model_format,
        "digest": digest,
        "args": arguments,
        "env": None if env is None else named_values(env, "--env"),
        "secret": secrets_of(secret, secret_file) or None,
        "cpu": cpu,
        "memory": memory,
        "manifest": read_text(manifest, "the manifest") if manifest else None,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "target_concurrency": target_concurrency,
        "target_rate": target_rate,
        "scale_to_zero_after": scale_to_zero_after or None,
        "limits": None if limits == LimitsBody() else limits,
        "guard": None if bounds == GuardBody() else bounds,
        "canary_percent": canary,
        "mirror_percent": mirror,
        "sticky_header": sticky_header,
        "strategy": strategy,
        "access": access or None,
    }
    if all(value is None for key, value in change.items() if key not in where):
        raise InvalidError(
            "nothing is given that could be changed",
            reason="Missing",
            next_action="Give --uri, --digest, --canary, --max-replicas, --rate or another option that"
            f" `inferplane update --help` lists; `inferplane restart {name}` fetches the model anew.",
        )
    with connected(context) as client:
        if dry_run:
            print_checks(name, client.try_update(name, **change), output)
            return
        made = client.update(name, **change)
        finish(client, made, where, "is being updated", wait=wait, timeout=timeout, output=output)


def restart(
    context: typer.Context,
    name: Name,
    workspace: Workspace = "",
    cluster: Cluster = "",
    wait: Wait = False,
    timeout: Timeout = WAIT_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Fetch the model anew and replace the servers, without a gap.

    For a model that was overwritten where it lies: that makes a revision like any other change.
    """
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        made = client.restart(name, **where)
        finish(client, made, where, "is being restarted", wait=wait, timeout=timeout, output=output)


def promote(
    context: typer.Context,
    name: Name,
    workspace: Workspace = "",
    cluster: Cluster = "",
    wait: Wait = False,
    timeout: Timeout = WAIT_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Give the revision on its way all requests."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        made = client.promote(name, **where)
        finish(client, made, where, "gets all requests", wait=wait, timeout=timeout, output=output)


def rollback(
    context: typer.Context,
    name: Name,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="REVISION", min=1, help="Not the one before.", show_default=False),
    ] = None,
    workspace: Workspace = "",
    cluster: Cluster = "",
    wait: Wait = False,
    timeout: Timeout = WAIT_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Have an earlier revision serve again."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        made = client.rollback(name, to=to, **where)
        finish(client, made, where, "serves again", wait=wait, timeout=timeout, output=output)


def revisions(
    context: typer.Context,
    name: Name,
    workspace: Workspace = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """List an endpoint's revisions: which serves, and what each gets."""
    with connected(context) as client:
        found = client.revisions(name, workspace=workspace_or_default(workspace), cluster=cluster)
    if output is Format.JSON:
        print_json({"revisions": found})
        return
    header = ("REVISION", "STATE", "TRAFFIC", "READY", "FORMAT", "MODEL", "CREATED BY", "NOTE")
    print_result(render.table(header, map(_row, found)))


def metrics(
    context: typer.Context,
    name: Name,
    minutes: Annotated[int, typer.Option("--minutes", min=1, max=60, help="How far to look back.")] = 10,
    workspace: Workspace = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """Show what the gateway saw of an endpoint: rate, errors, times, concurrency."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        found = client.metrics(name, minutes=minutes, **where)
    if output is Format.JSON:
        print_json(found)
        return
    rows = _metric_rows(found)
    if not rows:
        note(f"{name} had no requests in the last {minutes} minutes.")
        return
    header = (
        "TIME",
        "REVISION",
        "REQUESTS/S",
        "ERRORS/S",
        "P50 MS",
        "P95 MS",
        "P99 MS",
        "AT ONCE",
        "REPLICAS",
        "BATCH ROWS",
    )
    print_result(render.table(header, rows))


# Leaves


def _row(item: RevisionItem) -> tuple[str, ...]:
    return (
        str(item.revision),
        item.state,
        f"{item.traffic_percent} %",
        str(item.ready),
        item.model_name,
        item.storage_uri,
        item.created_by,
        item.note,
    )


def _metric_rows(found: EndpointMetrics) -> list[tuple[str, ...]]:
    return [
        (
            f"{point.at:%H:%M:%S}",
            str(series.revision),
            f"{point.requests_per_second:g}",
            f"{point.errors_per_second:g}",
            *("-" if each is None else f"{each:g}" for each in (point.p50_ms, point.p95_ms, point.p99_ms)),
            f"{point.concurrency:g}",
            str(point.replicas),
            "-" if point.batch_rows is None else f"{point.batch_rows:g}",
        )
        for series in found.series
        for point in series.points
    ]
