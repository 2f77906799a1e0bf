"""What can be imported: all of it there, none of it loaded by those who do not ask."""

from __future__ import annotations

import subprocess
import sys

import pytest

import inferplane
import inferplane.client
from inferplane.client import errors


@pytest.mark.parametrize("module", [inferplane, inferplane.client])
def test_every_name_in_all_is_there_sorted_and_once(module: object) -> None:
    names: list[str] = module.__all__  # type: ignore[attr-defined]
    assert names == sorted(set(names))
    for name in names:
        assert getattr(module, name) is not None


def test_every_error_is_exported() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ClientError)
    }
    assert tree <= set(inferplane.client.__all__)
    assert tree <= set(inferplane.__all__)


def test_the_tree_at_the_top_of_the_errors_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = {word for word in errors.__doc__.replace("─", " ").split() if word.endswith("Error")}
    real = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ClientError)
    }
    assert drawn == real


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        inferplane.nonsense  # noqa: B018 - the access is the test
    assert "Client" in dir(inferplane)


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import inferplane", ["httpx", "msgspec", "inferplane.client", "inferplane.settings"]),
        ("import inferplane.modelserver", ["httpx", "rich", "typer", "inferplane.client"]),
        (
            "from inferplane import Client",
            ["typer", "sqlalchemy", "litestar", "yaml", "sklearn"],
        ),
        ("import inferplane.__main__", ["sqlalchemy", "litestar", "uvicorn", "sklearn", "numpy", "yaml"]),
    ],
)
def test_what_is_not_asked_for_is_not_loaded(statement: str, unwanted: list[str]) -> None:
    program = f"{statement}\nimport sys\nprint(*[name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
