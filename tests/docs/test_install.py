"""The way in: what make offers, and lock files that anybody's pip can use."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

LOCKS = ("requirements.lock", "requirements-dev.lock")


def _pins(path: Path) -> dict[str, tuple[str, int]]:
    """Name → (version, number of hashes) of every requirement."""
    pins = {}
    for entry in re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip()):
        match = re.match(r"([a-z0-9-]+)==(\S+)", entry)
        assert match is not None, entry[:80]
        pins[match[1]] = (match[2], entry.count("--hash=sha256:"))
    return pins


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_by_hash_and_names_no_place(lock: str, root: Path) -> None:
    assert all(hashes for _, hashes in _pins(root / lock).values())
    text = (root / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert " @ " not in text
    assert not re.search(
        r"^\s*-", re.sub(r"^ +--hash=sha256:[0-9a-f]{64}( \\)?$", "", text, flags=re.MULTILINE), re.MULTILINE
    )


def test_the_development_lock_adds_and_changes_nothing(root: Path) -> None:
    small, large = (_pins(root / lock) for lock in LOCKS)
    assert small.items() <= large.items()


def test_the_locks_hold_what_the_project_asks_for(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    small, large = (_pins(root / lock) for lock in LOCKS)
    for requirement in (*asked, *extras["sklearn"]):
        assert _name(requirement) in small
    in_all = re.findall(r"\w+", extras["all"][0].partition("[")[2])
    everything = [
        *project["dependency-groups"]["dev"],
        *(each for extra in in_all for each in extras[extra]),
    ]
    for requirement in everything:
        assert _name(requirement) in {*large, "inferplane"}


def test_what_is_larger_than_all_the_rest_is_installed_only_when_asked_for(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert set(extras) - set(re.findall(r"\w+", extras["all"][0])) == {"all", "huggingface"}
    assert not {"torch", "transformers"} & {name for lock in LOCKS for name in _pins(root / lock)}


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_make_alone_lists_what_it_can_do(root: Path) -> None:
    listed = subprocess.run(
        ["make", "-C", str(root), "--no-print-directory"], capture_output=True, text=True, check=True
    )
    targets = set(re.findall(r"^  ([a-z-]+) {2,}\S", listed.stdout, re.MULTILINE))
    assert targets >= {
        "install",
        "quickstart",
        "dev",
        "format",
        "lint",
        "types",
        "imports",
        "test",
        "check",
        "lock",
        "clean",
    }
    defined = set(
        re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert targets == defined, "a target lacks its ## sentence"


def test_the_check_that_lands_changes_is_the_developers_own(root: Path) -> None:
    script = root / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in text
    assert re.search(r"^exec make .*check$", text, re.MULTILINE)
