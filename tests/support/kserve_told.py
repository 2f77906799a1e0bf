"""Plays a recording of a real cluster through `observe` and the real plan, and writes down what a user is told.

Every line of a recording is one change; after each, and whenever the reading asks to be looked at again by time
alone, the endpoint is planned anew as the controller would. What was done at the time (`steps`) is done to the
endpoint here: a stop, another number of replicas, a change of the model, a delete. Pods get the label that the
platform's manifests would have given them; `labelled=False` leaves them as they were recorded.

As a program it writes the expectations anew, to be reviewed: `python tests/support/kserve_told.py FOLDER [SCENARIO …]`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from inferplane.controllers.endpoint_plan import plan
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    InferenceEndpoint,
    ModelSpec,
    Revision,
    Scaling,
    public_state,
)
from inferplane.engines.kserve.observe import observe
from inferplane.engines.kserve.picture import Picture, log_key
from kube_api.recordings import Recording, recording, recordings

UID = "0123456789ab"
REVISION_LABEL = "inferplane.io/revision"
DEPLOYMENT_REVISION = "deployment.kubernetes.io/revision"
KINDS = {
    "InferenceService": "inference_service",
    "Deployment": "deployments",
    "ReplicaSet": "replica_sets",
    "Pod": "pods",
    "Event": "events",
    "Ingress": "ingresses",
}
LOOKS_BETWEEN_LINES_MAX = 20


def told(played: Recording, *, labelled: bool = True) -> str:
    """What a user is told, one line for each change of it, with the seconds at which it was said."""
    lines: list[str] = []
    for t, endpoint in play(played, labelled=labelled):
        state = public_state(endpoint)
        reason = f" {state.reason.value}" if state.reason is not None else ""
        code = state.exit.exit_code if state.exit is not None else None
        evidence = f" [exit code {code}]" if code is not None else ""
        said = f"{state.status.value}{reason}: {state.message}{evidence}".rstrip(": ")
        if not lines or lines[-1].partition(" s  ")[2] != said:
            lines.append(f"{t:6.1f} s  {said}")
    return "\n".join(lines) + "\n"


def play(played: Recording, *, labelled: bool = True) -> Iterator[tuple[float, InferenceEndpoint]]:
    """The endpoint after each step of the controller."""
    started = _created_at(played)
    world: dict[str, dict[tuple[str, str], dict[str, Any]]] = {kind: {} for kind in KINDS}
    sets: dict[str, tuple[str, int]] = {}
    endpoint = _endpoint(played, started)
    steps = [step for step in played.steps if "of namespace" not in step["do"]]
    lines = list(played.lines)
    for number, line in enumerate(lines):
        while steps and steps[0]["t"] <= line.t:
            endpoint = _done(endpoint, steps.pop(0), started)
        if line.kind in world:
            raw = dict(line.object)
            if labelled:
                raw = _labelled(raw, line.kind, endpoint.spec.revision, sets)
            key = (raw["metadata"].get("namespace", ""), raw["metadata"]["name"])
            if line.kind == "Deployment":
                _reuse(raw, world["ReplicaSet"], endpoint.spec.revision, sets)
            if line.type == "DELETED":
                world[line.kind].pop(key, None)
            else:
                world[line.kind][key] = raw
        t = line.t
        following = lines[number + 1].t if number + 1 < len(lines) else t
        for _ in range(LOOKS_BETWEEN_LINES_MAX):
            if t < 0:
                break
            now = started + timedelta(seconds=t)
            picture = _picture(world, played.logs, sets if labelled else {})
            seen = observe(UID, picture, now)
            present = {endpoint.spec.revision: ArtifactState(phase=ArtifactPhase.PRESENT)}
            step = plan(endpoint, replace(seen, artifacts=present), None, now)
            endpoint = replace(endpoint, status=step.status)
            yield t, endpoint
            again = seen.look_again_seconds
            if again is None or t + again >= following:
                break
            t += again


def _created_at(played: Recording) -> datetime:
    first = next(played.by_kind("InferenceService"))
    return datetime.fromisoformat(first.object["metadata"]["creationTimestamp"]).astimezone(UTC)


def _endpoint(played: Recording, started: datetime) -> InferenceEndpoint:
    first = next(played.by_kind("InferenceService"))
    predictor = first.object["spec"]["predictor"]
    model = ModelSpec(format="demofmt", storage_uri="s3://models.example.com/demo/1")
    return InferenceEndpoint(
        uid=UID,
        workspace="team",
        cluster="worker-1",
        name=first.object["metadata"]["name"],
        namespace=first.object["metadata"]["namespace"],
        spec=EndpointSpec(model=model, scaling=_scaling(predictor, Scaling())),
        generation=1,
        created_at=started,
        created_by="ada",
    )


def _scaling(predictor: Mapping[str, Any], before: Scaling) -> Scaling:
    least = max(int(predictor.get("minReplicas", before.min_replicas)), 1)
    return Scaling(least, max(int(predictor.get("maxReplicas", before.max_replicas)), least))


def _done(endpoint: InferenceEndpoint, step: Mapping[str, Any], started: datetime) -> InferenceEndpoint:
    at = started + timedelta(seconds=step["t"])
    if step["do"] == "delete InferenceService":
        return replace(endpoint, deletion_requested_at=at, deletion_requested_by="ada")
    patch = step.get("patch")
    if step["do"] != "patch InferenceService" or not isinstance(patch, Mapping):
        return endpoint
    spec = endpoint.spec
    stop = patch.get("metadata", {}).get("annotations", {}).get("serving.kserve.io/stop")
    if stop is not None:
        spec = replace(spec, stopped=stop == "true", stopped_by="ada", stopped_at=at)
    predictor = patch.get("spec", {}).get("predictor", {})
    if predictor:
        spec = replace(spec, scaling=_scaling(predictor, spec.scaling))
    if set(predictor) - {"minReplicas", "maxReplicas"}:
        number = spec.next_revision
        model = replace(spec.model, args=(str(number),))
        earlier = spec.revisions or (Revision(spec.revision, spec.model, started),)
        spec = replace(spec, model=model, revision=number, revisions=(*earlier, Revision(number, model, at)))
    return replace(endpoint, spec=spec, generation=endpoint.generation + 1)


def _labelled(
    raw: dict[str, Any], kind: str, revision: int, sets: dict[str, tuple[str, int]]
) -> dict[str, Any]:
    """With the revision's label, as the platform's manifests hand it down to all that is made of them."""
    if kind == "ReplicaSet":
        called, made = raw["metadata"]["name"], raw["metadata"]["annotations"][DEPLOYMENT_REVISION]
        known = sets.get(called)
        if known is None or int(known[0] or 0) < int(
            made
        ):  # one that is used again is of the revision that uses it again
            sets[called] = (made, revision)
        revision = sets[called][1]
    elif kind == "Pod":
        owner = raw["metadata"].get("ownerReferences", [{}])[0].get("name", "")
        revision = sets.setdefault(owner, ("", revision))[1]
    elif kind != "InferenceService":
        return raw
    labels = {**raw["metadata"].get("labels", {}), REVISION_LABEL: str(revision)}
    return {**raw, "metadata": {**raw["metadata"], "labels": labels}}


def _reuse(
    deployment: Mapping[str, Any],
    replica_sets: Mapping[tuple[str, str], Mapping[str, Any]],
    revision: int,
    sets: dict[str, tuple[str, int]],
) -> None:
    """A ReplicaSet that a Deployment goes back to: the recordings leave out the change of its number."""
    made = deployment["metadata"].get("annotations", {}).get(DEPLOYMENT_REVISION, "")
    known = {number for number, _ in sets.values()}
    wanted = deployment["spec"]["template"]["spec"]
    for (_, called), replica_set in replica_sets.items():
        if made and made not in known and replica_set["spec"]["template"]["spec"] == wanted:
            sets[called] = (made, revision)


def _as_of_its_set(pod: dict[str, Any], sets: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    owner = pod["metadata"].get("ownerReferences", [{}])[0].get("name", "")
    labels = {**pod["metadata"].get("labels", {}), REVISION_LABEL: str(sets[owner][1])}
    return {**pod, "metadata": {**pod["metadata"], "labels": labels}}


def _picture(
    world: Mapping[str, Mapping[tuple[str, str], dict[str, Any]]],
    logs: Mapping[str, str],
    sets: Mapping[str, tuple[str, int]],
) -> Picture:
    found = {field: tuple(world[kind].values()) for kind, field in KINDS.items()}
    if sets:
        found["pods"] = tuple(_as_of_its_set(pod, sets) for pod in found["pods"])
    services = found.pop("inference_service")
    tails: dict[str, tuple[str, ...]] = {}
    for pod in found["pods"]:
        for status in pod.get("status", {}).get("containerStatuses", []):
            lines = tuple(logs.get(status["name"], "").splitlines())
            for run in range(status["restartCount"] + 1) if lines else ():
                tails[log_key(pod["metadata"]["name"], status["name"], run)] = lines
    return Picture(
        namespace=None,
        inference_service=services[0] if services else None,
        deployments=found["deployments"],
        replica_sets=found["replica_sets"],
        pods=found["pods"],
        events=found["events"],
        ingresses=found["ingresses"],
        log_tails=tails,
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for scenario in sys.argv[2:] or recordings():
        (folder / f"{scenario}.txt").write_text(told(recording(scenario)))
