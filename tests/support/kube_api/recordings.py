"""Where the recordings of a real KServe and its definitions lie, and how they are read.

They are not part of this repository. They are looked for where `INFERPLANE_SHARED` says, and else in a directory
`shared` beside the checkout or in it.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_CHECKOUT = Path(__file__).resolve().parents[3]


def _find() -> Path | None:
    said = os.environ.get("INFERPLANE_SHARED")
    places = [Path(said)] if said else [_CHECKOUT.parent / "shared", _CHECKOUT / "shared"]
    for place in places:
        if (place / "data" / "kserve" / "recordings").is_dir():
            return place
    return None


SHARED: Path | None = _find()
"""The directory with `data/kserve` in it, or None where there is none."""

needs_recordings = pytest.mark.skipif(
    SHARED is None,
    reason="the recordings are not here: lay shared/ beside the checkout or name it in INFERPLANE_SHARED",
)


def kserve_data() -> Path:
    """The directory with KServe's CRDs. Raises FileNotFoundError where there is none."""
    if SHARED is None:
        raise FileNotFoundError(
            "shared/data/kserve is not beside the checkout and INFERPLANE_SHARED is not set"
        )
    return SHARED / "data" / "kserve"


@dataclass(frozen=True, slots=True)
class Line:
    """One change as watched: `t` seconds after the InferenceService was made; `type` as a watch says it."""

    t: float
    kind: str
    type: str
    object: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """One scenario: the changes in order of arrival, and what was done to bring them about."""

    name: str
    lines: tuple[Line, ...]
    steps: tuple[Mapping[str, Any], ...]
    manifest: str
    logs: Mapping[str, str]
    """The last container's output by the container's name."""

    def by_kind(self, kind: str) -> Iterator[Line]:
        """The lines about one kind."""
        return (line for line in self.lines if line.kind == kind)


def recordings() -> tuple[str, ...]:
    """The names of all scenarios there are; none where the data is missing. To parametrize tests by."""
    if SHARED is None:
        return ()
    folder = kserve_data() / "recordings"
    plain = {path.name.removesuffix(".jsonl") for path in folder.glob("*.jsonl")}
    extra = {path.name.removesuffix(".jsonl.gz") for path in (folder / "extra").glob("*.jsonl.gz")}
    return tuple(sorted(plain | extra))


@cache
def recording(name: str) -> Recording:
    """One scenario by its name. Treat it as read-only: it is shared."""
    folder = kserve_data() / "recordings"
    path = folder / f"{name}.jsonl"
    if path.exists():
        text = path.read_text()
    else:
        folder = folder / "extra"
        text = gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).decode()
    lines = tuple(
        Line(float(each["t"]), each["kind"], each["type"], each["object"])
        for each in map(json.loads, text.splitlines())
    )
    steps = folder / f"{name}.steps.json"
    manifest = folder / f"{name}.yaml"
    logs = {
        log.name.removeprefix(f"{name}.").removesuffix(".log"): log.read_text()
        for log in folder.glob(f"{name}.*.log")
    }
    return Recording(
        name,
        lines,
        tuple(json.loads(steps.read_text())) if steps.exists() else (),
        manifest.read_text() if manifest.exists() else "",
        logs,
    )


def answer(name: str) -> Mapping[str, Any]:
    """A recorded answer of the API server: `reject-name-dot.rejected`, `warn-unknown-field.accepted`."""
    found: Mapping[str, Any] = json.loads((kserve_data() / "recordings" / f"{name}.json").read_text())
    return found


def recorded_nodes(name: str = "nodes-gpu") -> list[dict[str, Any]]:
    """The Nodes of one of the recorded lists: nodes-gpu, nodes-cordoned, nodes-notready, …"""
    text = (kserve_data() / "recordings" / f"{name}.json").read_text()
    items: list[dict[str, Any]] = json.loads(text)["items"]
    return items
