"""What the tests of documents share: the documents, and the program that fills their tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_OURS = {".git", ".venv", "build", "dist", "__pycache__", "node_modules"}


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        is_cache = path.name.startswith(".") and path.name.endswith("_cache")
        if path.name in NOT_OURS or is_cache or path.name in {".hypothesis", ".quickstart"}:
            continue
        if path.suffix == ".egg-info" or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def our_files() -> tuple[Path, ...]:
    """Every file that belongs to the repository, found without git."""
    return tuple(_files(ROOT))


@pytest.fixture(scope="session")
def documents() -> dict[str, str]:
    """Text of every Markdown file by its path within the repository."""
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in _files(ROOT)
        if path.suffix == ".md"
    }


@pytest.fixture(scope="session")
def filled() -> Callable[[str], str]:
    """The function that makes the tables in a document anew."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[str], str] = module.filled
    return function
