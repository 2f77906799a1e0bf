"""Which of some files is the model, told from their names alone, before anything is fetched.

The model server decides for good, with the files before it (`modelserver.files`); this is the same rule
for a pre-flight, which knows only what the storage lists. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable

from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of

NAMES_SHOWN_MAX = 5
COMPANIONS = frozenset({"model-settings.json", "settings.json", "package.json", "metadata.json"})
"""Files that travel with models and share an ending with them, but are never the model."""


def check_names(names: Iterable[str], suffixes: tuple[str, ...], *, single: bool) -> Check:
    """Whether exactly one of `names` (relative, with forward slashes) ends as a model of the format does.

    `single` says that the URI names one file. Files in the folder itself come first; only when it has
    none are those one folder down looked at. Without suffixes, nothing is known of the format.
    """
    paths = sorted(names)
    if not suffixes:
        return _good(paths)
    endings = " or ".join(suffixes)
    if single:
        name = paths[0]
        if name.lower().endswith(suffixes):
            return _good(paths)
        return _bad(ReasonCode.MODEL_FILE_MISSING, f"{name} does not end in {endings}")
    found: list[str] = []
    for depth in (1, 2):
        found = found or [path for path in paths if _is_model(path, depth, suffixes)]
    if len(found) == 1:
        return _good(paths)
    if not found:
        return _bad(
            ReasonCode.MODEL_FILE_MISSING,
            f"the folder holds no file that ends in {endings}; it holds {_listed(paths)}",
        )
    return _bad(
        ReasonCode.MODEL_FILE_AMBIGUOUS,
        f"the folder holds {len(found)} files that end in {endings}, and exactly one is needed: {_listed(found)}",
    )


def _is_model(path: str, depth: int, suffixes: tuple[str, ...]) -> bool:
    *folders, name = path.split("/")
    hidden = name.startswith(".") or any(folder.startswith((".", "__MACOSX")) for folder in folders)
    lowered = name.lower()
    return (
        len(folders) == depth - 1 and not hidden and lowered.endswith(suffixes) and lowered not in COMPANIONS
    )


def _good(names: list[str]) -> Check:
    return Check("files", True, None, f"holds {_listed(names)}")


def _bad(reason: ReasonCode, message: str) -> Check:
    return Check("files", False, reason, message, reason_of(reason).next_action)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
