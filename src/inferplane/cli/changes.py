"""What the commands that change an endpoint have in common: waiting, and saying how it went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from inferplane.cli import render
from inferplane.cli.exits import ExitCode
from inferplane.cli.output import Format, note, print_json, print_result, progress
from inferplane.client import Client
from inferplane.wire.endpoints import CheckItem, EndpointChanged, EndpointDescription


def reporter(show: Any) -> Any:
    """What tells of an endpoint's next step while it is waited for."""

    def report(endpoint: EndpointDescription) -> None:
        place = endpoint.gpu.queue_position if endpoint.gpu is not None else 0
        phase = endpoint.rollout.phase if endpoint.rollout is not None else ""
        show(f"{endpoint.status} {endpoint.reason} {place} {phase}", render.endpoint_step(endpoint))

    return report


def update_by_manifest(
    client: Client,
    name: str,
    change: dict[str, Any],
    where: dict[str, Any],
    *,
    dry_run: bool,
    wait: bool,
    timeout: float,
    output: Format,
) -> None:
    """Change an endpoint to what a manifest says. `change` is what the SDK's `update` takes."""
    if dry_run:
        print_checks(name, client.try_update(name, **change, **where), output)
        return
    made = client.update(name, **change, **where)
    finish(client, made, where, "is being updated", wait=wait, timeout=timeout, output=output)


def print_checks(name: str, checks: Sequence[CheckItem], output: Format) -> None:
    """The findings of a dry run. Ends the command where one of them is bad."""
    if output is Format.JSON:
        print_json({"endpointName": name, "preflight": checks})
    else:
        print_result(render.check_table(checks))
    if not all(each.ok for each in checks):
        raise typer.Exit(ExitCode.INVALID)


def finish(
    client: Client,
    made: EndpointChanged,
    where: dict[str, Any],
    what: str,
    *,
    wait: bool,
    timeout: float,
    output: Format,
) -> None:
    """Say what was accepted; with `wait`, what became of it, and end the command where that is bad."""
    for warning in made.warnings:
        note(f"warning: {warning}")
    if not wait:
        if output is Format.JSON:
            print_json(made)
        else:
            print_result(_accepted(made, what))
        return
    with progress(f"{made.endpoint}: updating") as shown:
        found = client.wait_until_updated(made.endpoint, timeout, progress=reporter(shown.show), **where)
    if output is Format.JSON:
        print_json(found)
    else:
        message = f": {found.message}" if found.message else ""
        print_result(f"{found.endpoint_name} is {found.status} with revision {made.revision}{message}")
    if found.status in {"Degraded", "Failed"}:
        raise typer.Exit(ExitCode.ENDPOINT_FAILED)


# Leaves


def _accepted(made: EndpointChanged, what: str) -> str:
    """What was accepted: a revision that is yet to serve, or what is in force at once."""
    if made.without_revision is None:
        return f"{made.endpoint} {what}: revision {made.revision}"
    if not made.without_revision:
        return f"{made.endpoint} stays as it is: revision {made.revision}"
    changed = made.without_revision
    return f"{made.endpoint} is changed, without a new revision: {changed}; revision {made.revision} stays"
