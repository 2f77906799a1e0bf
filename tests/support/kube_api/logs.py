"""What containers wrote: `pods/log`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from kube_api import refusals
from kube_api.store import Store

Raw = dict[str, Any]
FOLLOW_SECONDS = 0.02
"""How often a follower looks for more."""


class PodLogs:
    """The output of containers, now and before their last restart."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str, str, bool], str] = {}

    def set(self, namespace: str, pod: str, container: str, text: str, *, previous: bool = False) -> None:
        """What a container has written."""
        self._texts[namespace, pod, container, previous] = text

    def append(self, namespace: str, pod: str, container: str, text: str) -> None:
        """What it writes now: followers see it."""
        key = (namespace, pod, container, False)
        self._texts[key] = self._texts.get(key, "") + text

    def restart(self, namespace: str, pod: str, container: str) -> None:
        """The container begins anew: what it wrote is the previous one's."""
        text = self._texts.pop((namespace, pod, container, False), "")
        self._texts[namespace, pod, container, True] = text

    def answer(self, pod: Raw, query: Mapping[str, str]) -> str:
        """The text that is asked for. Raises Refused in the kubelet's words."""
        container, previous = self._container(pod, query), query.get("previous", "") in ("1", "true")
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        status = pod.get("status") or {}
        seen = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        found: Raw = next((each for each in seen if each["name"] == container), {})
        if previous:
            if not (found.get("lastState") or {}).get("terminated"):
                raise refusals.bad_request(
                    f'previous terminated container "{container}" in pod "{name}" not found'
                )
        else:
            waiting = (found.get("state") or {}).get("waiting")
            text = self._texts.get((namespace, name, container, False), "")
            if not found or (waiting and not (found.get("lastState") or {}).get("terminated")):
                reason = (waiting or {}).get("reason", "ContainerCreating")
                raise refusals.bad_request(
                    f'container "{container}" in pod "{name}" is waiting to start: {reason}'
                )
            if waiting and not text:
                # Between two runs the kubelet answers with the one that ended.
                previous = True
        text = self._texts.get((namespace, name, container, previous), "")
        return _cut(text, query)

    def _container(self, pod: Raw, query: Mapping[str, str]) -> str:
        spec = pod.get("spec") or {}
        containers = [each["name"] for each in spec.get("containers") or ()]
        initial = [each["name"] for each in spec.get("initContainers") or ()]
        name = pod["metadata"]["name"]
        wanted = query.get("container", "")
        if not wanted:
            if len(containers) == 1:
                return str(containers[0])
            said = " ".join(containers)
            text = f"a container name must be specified for pod {name}, choose one of: [{said}]"
            if initial:
                text += f" or one of the init containers: [{' '.join(initial)}]"
            raise refusals.bad_request(text)
        if wanted not in (*containers, *initial):
            raise refusals.bad_request(f"container {wanted} is not valid for pod {name}")
        return wanted

    async def follow(self, pod: Raw, query: Mapping[str, str], store: Store) -> AsyncIterator[str]:
        """What is there and what comes, until the container ends or the pod is gone."""
        container = self._container(pod, query)
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        key = (namespace, name, container, False)
        yield self.answer(pod, query)
        at = len(self._texts.get(key, ""))
        while True:
            text = self._texts.get(key, "")
            # An empty piece lets the reader see whether anybody still listens.
            yield text[at:]
            at = len(text)
            now = store.peek(store.kind("Pod"), namespace, name)
            if now is None:
                return
            statuses = (now.get("status") or {}).get("containerStatuses") or ()
            ended = [
                each
                for each in statuses
                if each["name"] == container and "running" not in (each.get("state") or {})
            ]
            if ended:
                return
            await asyncio.sleep(FOLLOW_SECONDS)


def _cut(text: str, query: Mapping[str, str]) -> str:
    lines = text.splitlines(keepends=True)
    tail = query.get("tailLines", "")
    if tail:
        if not tail.isdigit():
            raise refusals.bad_request(f"tailLines: Invalid value: {tail}")
        count = int(tail)
        lines = lines[-count:] if count else []
    if query.get("timestamps", "") in ("1", "true"):
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        lines = [f"{now} {line}" for line in lines]
    result = "".join(lines)
    limit = query.get("limitBytes", "")
    return result.encode()[: int(limit)].decode("utf-8", "ignore") if limit else result
