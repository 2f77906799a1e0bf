"""Write the chart's RBAC rules from the one list of what the platform does in a cluster.

Run `python deploy/rules.py` when `engines/kserve/permissions.py` has changed; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from inferplane.engines.kserve.permissions import PLATFORM, Permission, rules_of

FILES = Path(__file__).parent / "helm" / "inferplane" / "files"
FOR_WORKSPACES = "kubeconfigs of workspaces"


def rules() -> Mapping[str, str]:
    """The text of each file by its name."""
    workspaces = [each for each in PLATFORM if each.needed_for == FOR_WORKSPACES]
    platform = [each for each in PLATFORM if each not in workspaces]
    return {"rules-platform.yaml": _text(platform), "rules-workspaces.yaml": _text(workspaces)}


def _text(permissions: Iterable[Permission]) -> str:
    lines = []
    for rule in rules_of(permissions):
        lines.append(f'- apiGroups: ["{rule["apiGroups"][0]}"]')
        lines += [f"  {key}: [{', '.join(rule[key])}]" for key in ("resources", "verbs")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, text in rules().items():
        (FILES / name).write_text(text, encoding="utf-8")
