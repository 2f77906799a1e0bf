"""The verbs on endpoints: deploy, apply, list, describe, predict, logs, events, explain, stop, start, delete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from inferplane.cli import render
from inferplane.cli.changes import reporter, update_by_manifest
from inferplane.cli.exits import ExitCode, exit_code_of
from inferplane.cli.gpu_options import (
    AutoCluster,
    AutoGpu,
    AutoRenew,
    EnforceIdle,
    Evictable,
    ExitDuration,
    GpuMemory,
    GpuNodes,
    Gpus,
    GpuShape,
    IdleTimeout,
    InstanceType,
    Precedence,
    Priority,
    Requeue,
    wish_of,
    wish_or_none,
)
from inferplane.cli.options import (
    Access,
    Burst,
    Cluster,
    DryRun,
    MaxConcurrency,
    MaxConcurrencyPerKey,
    Name,
    Output,
    QueueTimeout,
    Rate,
    RatePerKey,
    RequestBytes,
    RequestSeconds,
    RestAfter,
    RunTimeout,
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
    read_bytes,
    read_text,
    secrets_of,
    workspace_or_default,
)
from inferplane.cli.output import (
    Format,
    note,
    print_error,
    print_json,
    print_json_line,
    print_result,
    progress,
)
from inferplane.client import (
    AlreadyExistsError,
    Client,
    ClientError,
    Deployment,
    InvalidError,
    UnreachableError,
)
from inferplane.client.conversations import WAIT_SECONDS, manifest_name
from inferplane.wire.endpoints import EndpointDescription, EventList, LogLineItem, LogList

ENDPOINT_EXISTS = "EndpointExists"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`, in the order in which `--help` lists them."""
    for command in (deploy, apply, list_, describe, predict, logs, events, explain, stop, start, delete):
        app.command(command.__name__.rstrip("_"))(command)


def deploy(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new endpoint.", show_default=False)],
    model_format: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="The model's format: sklearn, xgboost, lightgbm, onnx.", show_default=False
        ),
    ],
    uri: Annotated[
        str,
        typer.Option(
            "--uri",
            "-u",
            help="Where the model is: a path, file://, http(s)://, s3://, gs://, hf://.",
            show_default=False,
        ),
    ],
    workspace: Workspace = "",
    cluster: Cluster = "",
    secret: Secret = None,
    secret_file: SecretFile = "",
    digest: Annotated[
        str,
        typer.Option(
            "--digest",
            metavar="sha256:HEX",
            help="Refuse the model if it has another digest.",
            show_default=False,
        ),
    ] = "",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="A variable for the model server; may be repeated."),
    ] = None,
    cpu: Annotated[
        str, typer.Option("--cpu", help="Limit of a replica, such as 500m or 2.", show_default=False)
    ] = "",
    memory: Annotated[
        str, typer.Option("--memory", help="Limit of a replica, such as 2Gi.", show_default=False)
    ] = "",
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="How many model servers.", show_default=False)
    ] = None,
    min_replicas: Annotated[
        int | None,
        typer.Option(
            "--min-replicas",
            min=0,
            help="As few as this; 0 lets it sleep until a request.",
            show_default=False,
        ),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option("--max-replicas", min=1, help="As many as this under load.", show_default=False),
    ] = None,
    target_concurrency: TargetConcurrency = None,
    target_rate: TargetRate = None,
    scale_to_zero_after: RestAfter = "",
    request_seconds: RequestSeconds = None,
    request_bytes: RequestBytes = None,
    access: Access = "",
    rate: Rate = None,
    burst: Burst = None,
    rate_per_key: RatePerKey = None,
    max_concurrency: MaxConcurrency = None,
    max_concurrency_per_key: MaxConcurrencyPerKey = None,
    gpus: Gpus = None,
    gpu_nodes: GpuNodes = None,
    gpu_shape: GpuShape = "",
    instance_type: InstanceType = "",
    gpu_memory: GpuMemory = None,
    auto_gpu: AutoGpu = False,
    exit_duration: ExitDuration = "",
    priority: Priority = None,
    idle_timeout: IdleTimeout = "",
    enforce_idle: EnforceIdle = None,
    evictable: Evictable = None,
    requeue: Requeue = None,
    auto_renew: AutoRenew = None,
    auto_cluster: AutoCluster = False,
    precedence: Precedence = None,
    wait: Wait = False,
    timeout: RunTimeout = WAIT_SECONDS,
    queue_timeout: QueueTimeout = None,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Make an endpoint from a model's format and its storage URI."""
    wish = wish_of(
        *(gpus, gpu_nodes, gpu_shape, instance_type, gpu_memory, exit_duration, priority),
        *(idle_timeout, enforce_idle, evictable, requeue),
        auto=auto_gpu,
    )
    asks = wish_or_none(wish, others=(auto_renew is not None, auto_cluster))
    secrets = secrets_of(secret, secret_file)
    with connected(context) as client:
        made = client.deploy(
            name,
            format=model_format,
            uri=absolute(uri),
            workspace=workspace_or_default(workspace),
            cluster=cluster,
            secret=secrets,
            digest=digest,
            env=named_values(env or [], "--env"),
            cpu=cpu or None,
            memory=memory or None,
            replicas=replicas,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            target_concurrency=target_concurrency,
            target_rate=target_rate,
            scale_to_zero_after=scale_to_zero_after,
            request_seconds_max=request_seconds,
            request_bytes_max=request_bytes,
            access=access,
            requests_per_second=rate,
            burst=burst,
            requests_per_second_per_key=rate_per_key,
            concurrency_max=max_concurrency,
            concurrency_max_per_key=max_concurrency_per_key,
            gpu=asks,
            auto_cluster=auto_cluster,
            cluster_precedence=precedence or (),
            auto_renew=auto_renew,
            dry_run=dry_run,
        )
        limits = _Limits(timeout, queue_timeout)
        _accepted(client, made, cluster, wait=wait, limits=limits, output=output)


def apply(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Option(
            "--file",
            "-f",
            help="The manifest; - reads it from standard input.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    name: Annotated[
        str,
        typer.Option("--name", help="Name of the endpoint, if not the manifest's own.", show_default=False),
    ] = "",
    workspace: Workspace = "",
    cluster: Cluster = "",
    gpus: Gpus = None,
    gpu_nodes: GpuNodes = None,
    gpu_shape: GpuShape = "",
    instance_type: InstanceType = "",
    gpu_memory: GpuMemory = None,
    auto_gpu: AutoGpu = False,
    exit_duration: ExitDuration = "",
    priority: Priority = None,
    idle_timeout: IdleTimeout = "",
    enforce_idle: EnforceIdle = None,
    evictable: Evictable = None,
    requeue: Requeue = None,
    auto_renew: AutoRenew = None,
    auto_cluster: AutoCluster = False,
    precedence: Precedence = None,
    access: Access = "",
    wait: Wait = False,
    timeout: RunTimeout = WAIT_SECONDS,
    queue_timeout: QueueTimeout = None,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Make an endpoint from a KServe InferenceService, or change the one that there is: all of it, or its spec."""
    wish = wish_of(
        *(gpus, gpu_nodes, gpu_shape, instance_type, gpu_memory, exit_duration, priority),
        *(idle_timeout, enforce_idle, evictable, requeue),
        auto=auto_gpu,
    )
    asks = wish_or_none(wish, others=(auto_renew is not None, auto_cluster))
    manifest = read_text(file, "the manifest")
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        try:
            made = client.apply(
                manifest,
                **where,
                name=name,
                gpu=asks,
                auto_cluster=auto_cluster,
                cluster_precedence=precedence or (),
                auto_renew=auto_renew,
                access=access,
                dry_run=dry_run,
            )
        except AlreadyExistsError as error:
            if error.reason != ENDPOINT_EXISTS:
                raise
            made = None
        if made is None or any(check.reason == ENDPOINT_EXISTS for check in made.checks):
            if asks is not None:
                note("warning: the endpoint exists and keeps its GPUs; what was asked of them has no effect")
            known = name or manifest_name(manifest)
            change: dict[str, Any] = {"manifest": manifest, "access": access or None}
            update_by_manifest(
                client, known, change, where, dry_run=dry_run, wait=wait, timeout=timeout, output=output
            )
            return
        limits = _Limits(timeout, queue_timeout)
        _accepted(client, made, cluster, wait=wait, limits=limits, output=output)


def list_(
    context: typer.Context,
    workspace: Workspace = "",
    everywhere: Annotated[bool, typer.Option("--all", "-A", help="Of all workspaces.")] = False,
    status: Annotated[
        str, typer.Option("--status", help="Only those with this status.", show_default=False)
    ] = "",
    model_format: Annotated[
        str, typer.Option("--format", help="Only models of this format.", show_default=False)
    ] = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """List the endpoints of a workspace."""
    with connected(context) as client:
        items = client.list(
            workspace="" if everywhere else workspace_or_default(workspace),
            status=status,
            cluster=cluster,
            format=model_format,
        )
    if output is Format.JSON:
        print_json({"endpoints": items})
    else:
        print_result(render.endpoint_list(items, with_workspace=everywhere))


def describe(
    context: typer.Context,
    name: Name,
    workspace: Workspace = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """Show everything about an endpoint, and a command that calls it."""
    with connected(context) as client:
        found = client.describe(name, workspace=workspace_or_default(workspace), cluster=cluster)
    _print_endpoint(found, output)


def predict(
    context: typer.Context,
    name: Name,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="JSON|@FILE|-",
            help='The request: {"instances": …} (V1) or {"inputs": …} (V2); from a file with @, from standard'
            " input with -.",
            show_default=False,
        ),
    ] = "",
    example: Annotated[
        bool, typer.Option("--example", help="Send an example that this very model has answered.")
    ] = False,
    key: Annotated[
        str,
        typer.Option(
            "--key",
            metavar="KEY",
            help="An endpoint key, where one is wanted. Others on this machine can see it while the command"
            " runs: INFERPLANE_ENDPOINT_KEY is safer.",
            show_default=False,
        ),
    ] = "",
    workspace: Workspace = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """Ask an endpoint for a prediction; prints the model's answer as JSON."""
    if example == bool(data):
        raise typer.BadParameter("give a request with -d, or --example", param_hint="-d")
    where = workspace_or_default(workspace)
    body = b"" if example else _body(data)
    with connected(context) as client:
        if example:
            body = _example(client.describe(name, workspace=where, cluster=cluster))
        ask = client.infer if _is_v2(body) else client.predict
        answer = ask(name, body, workspace=where, cluster=cluster, key=key)
    if output is Format.JSON:
        print_json(answer)
    else:
        print_json_line(answer)


def logs(
    context: typer.Context,
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with new lines as they are printed.")
    ] = False,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the run before this one.")] = False,
    tail: Annotated[
        int | None,
        typer.Option(
            "--tail", min=0, metavar="LINES", help="How many lines from the end.", show_default=False
        ),
    ] = None,
    replica: Annotated[str, typer.Option("--replica", help="Of this replica only.", show_default=False)] = "",
    workspace: Workspace = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """Show what an endpoint's model servers print."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    which: dict[str, Any] = {"replica": replica, "previous": previous, "tail": tail}
    with connected(context) as client:
        if follow:
            for line in client.follow_logs(name, **where, **which):
                _print_log_line(line, output)
            return
        lines = client.logs(name, **where, **which)
    if output is Format.JSON:
        print_json(LogList(lines))
        return
    several = len({line.replica for line in lines}) > 1
    for line in lines:
        print_result(f"{line.replica}  {line.text}" if several else line.text)


def events(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="Name of the endpoint; without it, the workspace's events.", show_default=False),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new events as they happen.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="How many at most.", show_default=False)
    ] = None,
    workspace: Workspace = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """Show what happened, oldest first."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        if follow:
            for event in client.follow_events(name, **where):
                if output is Format.JSON:
                    print_json_line(event)
                else:
                    print_result(render.event_line(event))
            return
        found = client.events(name, limit=limit, **where)
    if output is Format.JSON:
        print_json(EventList(found))
    else:
        print_result("\n".join(render.event_line(event) for event in found) or "no events")


def explain(
    context: typer.Context,
    name: Name,
    workspace: Workspace = "",
    cluster: Cluster = "",
    output: Output = Format.TABLE,
) -> None:
    """Say what an endpoint waits for or why it failed, with evidence and what to do."""
    with connected(context) as client:
        found = client.explain(name, workspace=workspace_or_default(workspace), cluster=cluster)
    if output is Format.JSON:
        print_json(found)
    else:
        print_result(render.explanation(found))


def stop(
    context: typer.Context,
    name: Name,
    workspace: Workspace = "",
    cluster: Cluster = "",
    wait: Wait = False,
    timeout: Timeout = WAIT_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Stop an endpoint's model servers until it is started again."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        stopped = client.stop(name, **where)
        if not wait:
            _print_done(stopped, "is being stopped", output)
            return
        with progress(f"{name}: stopping") as shown:
            found = client.wait_until_stopped(name, timeout, progress=reporter(shown.show), **where)
    _print_endpoint_or_line(found, f"{name} is stopped", output)


def start(
    context: typer.Context,
    name: Name,
    workspace: Workspace = "",
    cluster: Cluster = "",
    wait: Wait = False,
    timeout: RunTimeout = WAIT_SECONDS,
    queue_timeout: QueueTimeout = None,
    output: Output = Format.TABLE,
) -> None:
    """Start a stopped endpoint again."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    with connected(context) as client:
        started = client.start(name, **where)
        if not wait:
            _print_done(started, "is being started", output)
            return
        found = _wait_until_running(client, name, _Limits(timeout, queue_timeout), first="starting", **where)
    _print_endpoint_or_line(found, _running_line(found), output)


def delete(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names of endpoints.", show_default=False)],
    workspace: Workspace = "",
    cluster: Cluster = "",
    wait: Wait = True,
    timeout: Timeout = WAIT_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Delete endpoints, and everything that was made for them."""
    where: dict[str, Any] = {"workspace": workspace_or_default(workspace), "cluster": cluster}
    failures: list[ClientError] = []
    with connected(context) as client:
        asked: list[str] = []
        for name in names:
            try:
                asked.append(client.delete(name, **where))
            except UnreachableError:
                raise
            except ClientError as error:
                failures.append(error)
        gone: list[str] = []
        for name in asked:
            try:
                if wait:
                    with progress(f"{name}: deleting") as shown:
                        client.wait_until_deleted(name, timeout, progress=reporter(shown.show), **where)
                gone.append(name)
            except ClientError as error:
                failures.append(error)
    said = "is deleted" if wait else "is being deleted"
    if output is Format.JSON:
        print_json({"endpoints": [{"endpoint": name} for name in gone]})
    elif gone:
        print_result("\n".join(f"{name} {said}" for name in gone))
    for failure in failures:
        print_error(failure)
    if failures:
        raise typer.Exit(exit_code_of(failures[0]))


# --- leaves -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Limits:
    """How many seconds --wait waits: outside the queue for GPUs, and in it (None: until it is its turn)."""

    timeout: float
    queue_timeout: float | None


def _accepted(
    client: Client, made: Deployment, cluster: str, *, wait: bool, limits: _Limits, output: Format
) -> None:
    if made.dry_run:
        if output is Format.JSON:
            print_json({"endpointName": made.name, "preflight": made.checks})
        else:
            print_result(render.check_table(made.checks))
        if not made.ok:
            raise typer.Exit(ExitCode.INVALID)
        return
    for warning in made.warnings:
        note(f"warning: {warning}")
    if not wait:
        if output is Format.JSON:
            print_json({"endpointName": made.name})
        else:
            print_result(f"{made.name} is accepted in workspace {made.workspace}")
            note(f"Follow it with: inferplane describe {made.name} -w {made.workspace}")
        return
    found = _wait_until_running(client, made.name, limits, workspace=made.workspace, cluster=cluster)
    _print_endpoint_or_line(found, _running_line(found), output)


def _wait_until_running(
    client: Client, name: str, limits: _Limits, *, workspace: str, cluster: str, first: str = "accepted"
) -> EndpointDescription:
    try:
        with progress(f"{name}: {first}") as shown:
            return client.wait_until_running(
                name,
                limits.timeout,
                workspace=workspace,
                cluster=cluster,
                queue_timeout=limits.queue_timeout,
                progress=reporter(shown.show),
            )
    except KeyboardInterrupt:
        note(f"{name} goes on without being watched; see: inferplane describe {name} -w {workspace}")
        raise


def _running_line(found: EndpointDescription) -> str:
    return f"{found.endpoint_name} is {found.status} at {found.endpoint or found.path_endpoint}"


def _print_endpoint(found: EndpointDescription, output: Format) -> None:
    if output is Format.JSON:
        print_json(found)
    else:
        print_result(render.description(found))


def _print_endpoint_or_line(found: EndpointDescription, line: str, output: Format) -> None:
    if output is Format.JSON:
        print_json(found)
    else:
        print_result(line)


def _print_done(name: str, said: str, output: Format) -> None:
    if output is Format.JSON:
        print_json({"endpoint": name})
    else:
        print_result(f"{name} {said}")


def _print_log_line(line: LogLineItem, output: Format) -> None:
    if output is Format.JSON:
        print_json_line(line)
    else:
        print_result(f"{line.replica}  {line.text}")


def _body(data: str) -> bytes:
    if data == "-":
        return read_bytes("-", "the request")
    if data.startswith("@"):
        return read_bytes(data[1:], "the request")
    return data.encode()


def _is_v2(body: bytes) -> bool:
    """Whether the request is for the Open Inference protocol. Raises InvalidError for what is not JSON."""
    import msgspec

    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidError(
            f"the request is not JSON: {error}",
            reason="MalformedJson",
            next_action="Quote it for the shell: -d '{\"instances\": [[1, 2]]}', or use -d @FILE.",
        ) from error
    return isinstance(value, dict) and "inputs" in value and "instances" not in value


def _example(found: EndpointDescription) -> bytes:
    if not found.model.example:
        raise InvalidError(
            f"no example is known for {found.endpoint_name}",
            reason="NoExample",
            next_action="Give a request with -d.",
        )
    return found.model.example.encode()
