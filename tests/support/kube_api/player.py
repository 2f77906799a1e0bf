"""What a real KServe did to one InferenceService, done again to one of ours."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kube_api.recordings import Line, Recording

if TYPE_CHECKING:
    from kube_api.server import KubeApi

Raw = dict[str, Any]

_UID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_MANAGER = "kserve-controller-manager"
NOT_PROPAGATED = frozenset({"modelFormat", "kubectl.kubernetes.io/last-applied-configuration"})
"""Annotations of an InferenceService that KServe keeps from the pods."""


class Player:
    """Plays a recording into the cluster, as what happens to the InferenceService `namespace/name` of ours.

    Names, namespace, uids, labels and annotations are those of ours. Where ours exists, its spec is left alone and
    it gets the recorded status, finalizer and deletion; where it does not, the recorded one is made. What was done
    to the recorded one (`recording.steps`: patches, deletes) is the test's to do to ours, at the same `t`; a
    deletion that the test has not made by then is played as somebody else's.

    Times stay as recorded unless `start` says when the recording's zero shall have been (aware UTC).
    """

    def __init__(
        self,
        api: KubeApi,
        recording: Recording,
        *,
        namespace: str,
        name: str,
        start: datetime | None = None,
    ) -> None:
        self.recording = recording
        self._api = api
        self._store = api.store
        self._namespace, self._name = namespace, name
        self._at = 0
        first = next(line for line in recording.lines if line.kind == "InferenceService")
        metadata = first.object["metadata"]
        self._was_namespace, self._was_name = metadata["namespace"], metadata["name"]
        made = datetime.strptime(metadata["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        self.start = made - timedelta(seconds=int(first.t))
        """When the recording's zero was, to the second."""
        self._shift = timedelta(0) if start is None else start - self.start
        self._uids: dict[str, str] = {}
        self._ours: bool | None = None
        self._labels: dict[str, tuple[Raw, Raw]] = {}
        self._replacements = self._texts()

    @property
    def next_t(self) -> float | None:
        """When the next line was recorded; None at the end."""
        return self.recording.lines[self._at].t if self._at < len(self.recording.lines) else None

    def step(self) -> Line | None:
        """Plays one line; None at the end."""
        if self._at >= len(self.recording.lines):
            return None
        line = self.recording.lines[self._at]
        self._at += 1
        if line.kind == "InferenceService":
            self._play_service(line)
        else:
            self._play(line)
        return line

    def until(self, t: float) -> int:
        """Plays the lines up to that time of the recording; how many."""
        count = 0
        while self.next_t is not None and self.next_t <= t:
            self.step()
            count += 1
        return count

    async def run(self, speed: float = 100.0) -> None:
        """Plays the rest at so many times the recorded speed."""
        loop = asyncio.get_running_loop()
        begin, t0 = loop.time(), self.next_t or 0.0
        while self.next_t is not None:
            due = begin + (self.next_t - t0) / speed
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.step()

    # -- the InferenceService -------------------------------------------------------------------------

    def _play_service(self, line: Line) -> None:
        recorded = line.object
        ours = self._store.get("InferenceService", self._name, self._namespace)
        if self._ours is None:
            # Whether it is the test's or ours to make is settled by the first line.
            self._ours = ours is not None
        if ours is None:
            if line.type == "DELETED" or self._ours:
                return
            ours = self._make(recorded)
        self._uids[recorded["metadata"]["uid"]] = ours["metadata"]["uid"]
        if line.type == "DELETED":
            self._store.vanish("InferenceService", self._name, self._namespace)
            return
        behind = recorded["metadata"]["generation"] - (recorded.get("status") or {}).get(
            "observedGeneration", 0
        )
        new = deepcopy(ours)
        if not self._ours:
            new["spec"] = deepcopy(dict(recorded["spec"]))
        if "status" in recorded:
            status = self._rewritten(recorded["status"])
            if "observedGeneration" in status:
                status["observedGeneration"] = max(0, new["metadata"]["generation"] - behind)
            new["status"] = status
        finalizers = recorded["metadata"].get("finalizers") or []
        mine = [
            each for each in new["metadata"].get("finalizers") or [] if each != "inferenceservice.finalizers"
        ]
        new["metadata"]["finalizers"] = [*mine, *finalizers]
        self._store.put(new, manager=_MANAGER)
        if "deletionTimestamp" in recorded["metadata"] and "deletionTimestamp" not in ours["metadata"]:
            self._store.delete("InferenceService", self._name, self._namespace)

    def _make(self, recorded: Mapping[str, Any]) -> Raw:
        if self._store.get("Namespace", self._namespace) is None:
            self._store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self._namespace}})
        new = self._rewritten(recorded)
        new["metadata"].pop("resourceVersion", None)
        new["metadata"]["name"], new["metadata"]["namespace"] = self._name, self._namespace
        return self._store.put(new, manager=_MANAGER)

    # -- the rest -------------------------------------------------------------------------------------

    def _play(self, line: Line) -> None:
        new = self._rewritten(line.object)
        metadata = new["metadata"]
        new.setdefault("kind", line.kind)
        name, namespace = metadata["name"], self._namespace
        if "namespace" in metadata:
            metadata["namespace"] = namespace
        else:
            namespace = ""
        if line.type == "DELETED":
            self._store.vanish(line.kind, name, namespace)
            return
        if namespace and self._store.get("Namespace", namespace) is None:
            self._store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        self._propagate(line, new)
        self._store.put(new, manager=_MANAGER, exact=True)
        if line.kind == "Pod":
            for container, text in self.recording.logs.items():
                self._api.set_log(namespace, name, container, text)
                self._api.set_log(namespace, name, container, text, previous=True)

    def _propagate(self, line: Line, new: Raw) -> None:
        """Our labels and annotations, where KServe puts those of an InferenceService."""
        if line.kind not in ("Deployment", "ReplicaSet", "Pod", "Service", "HorizontalPodAutoscaler"):
            return
        owners = new["metadata"].get("ownerReferences") or ()
        uid = new["metadata"]["uid"]
        if line.kind == "Pod" and owners and owners[0]["uid"] in self._labels:
            # A pod is made from its ReplicaSet's template, whatever the InferenceService says by then.
            self._labels.setdefault(uid, self._labels[owners[0]["uid"]])
        if uid not in self._labels or line.kind == "Deployment":
            ours = self._store.get("InferenceService", self._name, self._namespace) or {"metadata": {}}
            annotations = ours["metadata"].get("annotations") or {}
            self._labels[uid] = (
                dict(ours["metadata"].get("labels") or {}),
                {key: each for key, each in annotations.items() if key not in NOT_PROPAGATED},
            )
        labels, annotations = self._labels[uid]
        places = [new["metadata"]]
        template = (new.get("spec") or {}).get("template")
        if template:
            places.append(template["metadata"])
        for place in places:
            place["labels"] = {**labels, **(place.get("labels") or {})}
            place["annotations"] = {**annotations, **(place.get("annotations") or {})}

    # -- rewriting ------------------------------------------------------------------------------------

    def _texts(self) -> list[tuple[re.Pattern[str], str]]:
        name, space = re.escape(self._was_name), re.escape(self._was_namespace)
        ours, here = self._name, self._namespace
        return [
            (re.compile(rf"\b{name}-predictor-{space}\."), f"{ours}-predictor-{here}."),
            (re.compile(rf"\b{name}-predictor\.{space}\."), f"{ours}-predictor.{here}."),
            (re.compile(rf"\b{name}-{space}\."), f"{ours}-{here}."),
            (re.compile(rf"\b{space}/{name}\b"), f"{here}/{ours}"),
            (re.compile(rf"\b{name}-predictor"), f"{ours}-predictor"),
            (re.compile(rf"_{space}\("), f"_{here}("),
            (re.compile(rf'(\[|"){name}(\]|")'), rf"\g<1>{ours}\g<2>"),
            (re.compile(rf'namespace "{space}"'), f'namespace "{here}"'),
            (re.compile(rf"^{name}\.(?=[0-9a-f]{{16}}$)"), f"{ours}."),
        ]

    def _text(self, text: str) -> str:
        for pattern, ours in self._replacements:
            text = pattern.sub(ours, text)
        text = _UID.sub(lambda found: self._uids.setdefault(found[0], str(uuid.uuid4())), text)
        return _TIME.sub(self._time, text) if self._shift else text

    def _time(self, found: re.Match[str]) -> str:
        text = found[0]
        with_fraction = "." in text
        pattern = "%Y-%m-%dT%H:%M:%S.%fZ" if with_fraction else "%Y-%m-%dT%H:%M:%SZ"
        moved = datetime.strptime(text, pattern).replace(tzinfo=UTC) + self._shift
        return moved.strftime(pattern)

    def _rewritten(self, value: Mapping[str, Any]) -> Raw:
        result: Raw = self._walk(value, "")
        return result

    def _walk(self, value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: self._walk(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [self._walk(each, key) for each in value]
        if not isinstance(value, str):
            return value
        if key == "namespace" and value == self._was_namespace:
            return self._namespace
        if value == self._was_name and key in ("name", "value", "serving.kserve.io/inferenceservice"):
            return self._name
        return self._text(value)
