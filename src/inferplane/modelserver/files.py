"""Which file is the model: exactly one, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inferplane.modelserver.errors import LoadError, LoadReason

#: How many file names a message lists before it only counts.
NAMES_SHOWN_MAX = 8
#: Files that travel with models and share an ending with them, but are never the model.
COMPANIONS = frozenset({"model-settings.json", "settings.json", "package.json", "metadata.json"})


def find_model_file(path: str | Path, suffixes: Sequence[str]) -> Path:
    """Return the one model file at `path`: the file itself, or the only one in the folder.

    Files directly in the folder come first; only when it has none are its sub-folders searched, one
    level deep, because archives are often packed with their folder. Hidden files do not count.
    Raises LoadError(MODEL_NOT_FOUND | MODEL_FILE_MISSING | MODEL_FILE_AMBIGUOUS) naming what was found.
    """
    root = Path(path)
    endings = " or ".join(suffixes)
    if root.is_file():
        if root.name.lower().endswith(tuple(suffixes)):
            return _not_empty(root)
        raise LoadError(LoadReason.MODEL_FILE_MISSING, f"{root.name} does not end in {endings}")
    if not root.is_dir():
        raise LoadError(LoadReason.MODEL_NOT_FOUND, f"there is no file or folder {root}")
    files = _visible_files(root)
    found = _with_suffix(files, suffixes)
    if not found:
        nested = [file for folder in _visible_folders(root) for file in _visible_files(folder)]
        found = _with_suffix(nested, suffixes)
        files = files + nested
    if not found:
        seen = f"it holds {_names(root, files)}" if files else "it is empty"
        raise LoadError(
            LoadReason.MODEL_FILE_MISSING, f"the folder holds no file that ends in {endings}; {seen}"
        )
    if len(found) > 1:
        raise LoadError(
            LoadReason.MODEL_FILE_AMBIGUOUS,
            f"the folder holds {len(found)} files that end in {endings}, and exactly one is needed: {_names(root, found)}",
        )
    return _not_empty(found[0])


def _not_empty(file: Path) -> Path:
    if file.stat().st_size == 0:
        raise LoadError(LoadReason.MODEL_LOAD_FAILED, f"{file.name} is empty")
    return file


def _visible_files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )


def _with_suffix(files: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    return [f for f in files if f.name.lower().endswith(tuple(suffixes)) and f.name.lower() not in COMPANIONS]


def _names(root: Path, files: Sequence[Path]) -> str:
    names = [str(file.relative_to(root)) for file in files[:NAMES_SHOWN_MAX]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
