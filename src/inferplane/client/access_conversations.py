"""What is said about endpoint keys and usage. See `conversations`."""

from __future__ import annotations

from collections.abc import Sequence

from inferplane.client import requests
from inferplane.client.conversations import Flow, Session, ask
from inferplane.wire.endpoint_keys import CreateEndpointKey, EndpointKeyCreated, EndpointKeyItem
from inferplane.wire.usage import UsageList


def create_endpoint_key(
    session: Session,
    name: str,
    *,
    validity: str,
    workspace: str = "default",
    endpoints: Sequence[str] | None = None,
    requests_per_second: float | None = None,
    idempotency_key: str = "",
) -> Flow[EndpointKeyCreated]:
    """Make a key that opens endpoints; its value is in `endpoint_key`, shown this once.

    For the named `endpoints`, or without them for every endpoint of the workspace, later ones too.
    `validity` is a date `YYYY-MM-DD` or a duration such as `30d`.
    """
    body = CreateEndpointKey(
        workspace=workspace,
        name=name,
        validity=validity,
        endpoints=None if endpoints is None else list(endpoints),
        requests_per_second=requests_per_second,
    )
    return (yield from ask(session, requests.create_endpoint_key(body, idempotency_key or session.new_key())))


def list_endpoint_keys(session: Session, *, workspace: str = "default") -> Flow[tuple[EndpointKeyItem, ...]]:
    """A workspace's endpoint keys without their values, oldest first; revoked ones are not among them."""
    answer = yield from ask(session, requests.list_endpoint_keys(workspace))
    return answer.items


def delete_endpoint_key(session: Session, key_id: str) -> Flow[None]:
    """Have an endpoint key refused from now on. Raises NotFoundError."""
    return (yield from ask(session, requests.delete_endpoint_key(key_id)))


def usage(
    session: Session,
    *,
    workspace: str = "default",
    endpoint: str = "",
    key_id: str = "",
    by: str = "hour",
    since: str = "",
    until: str = "",
) -> Flow[UsageList]:
    """Requests, errors, rows, tokens and seconds by hour or day (UTC), endpoint and key, with their sum.

    `key_id` "none" means requests without a valid key. `since` and `until` are dates or RFC 3339 instants;
    without them it is the last day, by day the last thirty.
    """
    return (
        yield from ask(session, requests.read_usage(_usage(workspace, endpoint, key_id, by, since, until)))
    )


def usage_csv(
    session: Session,
    *,
    workspace: str = "default",
    endpoint: str = "",
    key_id: str = "",
    by: str = "hour",
    since: str = "",
    until: str = "",
) -> Flow[str]:
    """The same as `usage`, as CSV text with a line of headings, without the sum."""
    query = _usage(workspace, endpoint, key_id, by, since, until)
    return (yield from ask(session, requests.read_usage_csv(query)))


def _usage(workspace: str, endpoint: str, key_id: str, by: str, since: str, until: str) -> dict[str, str]:
    return {
        "workspace": workspace,
        "endpoint": endpoint,
        "keyId": key_id,
        "by": by,
        "since": since,
        "until": until,
    }
