"""The pre-flight's rule for which file is the model, held to the model server's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferplane.domain.model_files import COMPANIONS, check_names
from inferplane.domain.runtime import FORMATS
from inferplane.modelserver import files
from inferplane.modelserver.errors import LoadError
from inferplane.modelstore.store import ModelStore, Source

FOLDERS = [
    ["a.joblib"],
    ["a.JOBLIB", "README.md"],
    [f"{letter}.joblib" for letter in "abcde"],
    ["x.json"],
    ["model.json", "metadata.json"],
    ["sub/a.joblib"],
    ["sub/a.joblib", "b.pkl"],
    ["sub/a.joblib", "other/b.pkl"],
    ["one/two/a.joblib"],
    [".a.joblib"],
    [".hidden/a.joblib", "a.txt"],
    ["__MACOSX/a.joblib", "m/a.joblib"],
    ["model.bst", "model.ubj"],
]


@pytest.mark.parametrize("names", FOLDERS)
@pytest.mark.parametrize("model_format", [name for name, each in FORMATS.items() if each.file_suffixes])
def test_the_rule_is_the_model_servers(tmp_path: Path, names: list[str], model_format: str) -> None:
    suffixes = FORMATS[model_format].file_suffixes
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    try:
        files.find_model_file(tmp_path, suffixes)
        reason = None
    except LoadError as error:
        reason = str(error.reason)
    assert check_names(names, suffixes, single=False).reason == reason
    assert COMPANIONS == files.COMPANIONS


async def test_a_probe_knows_what_the_model_server_will_refuse(store: ModelStore, tmp_path: Path) -> None:
    async def files_check(path: Path) -> tuple[bool, str]:
        checks = await store.probe(Source(str(path)), FORMATS["sklearn"].file_suffixes)
        (found,) = [check for check in checks if check.check == "files"]
        return found.ok, found.message

    several = tmp_path / "several"
    several.mkdir()
    for letter in "abcde":
        (several / f"{letter}.joblib").write_bytes(b"x")
    ok, message = await files_check(several)
    assert not ok
    assert message.startswith("the folder holds 5 files that end in .joblib or .pkl or .pickle")
    (tmp_path / "x.json").write_bytes(b"{}")
    assert await files_check(tmp_path / "x.json") == (
        False,
        "x.json does not end in .joblib or .pkl or .pickle",
    )
    (tmp_path / "model.tar.gz").write_bytes(b"x")  # what it holds is known later
    assert await files_check(tmp_path / "model.tar.gz") == (True, "holds model.tar.gz")
    assert await files_check(several / "a.joblib") == (True, "holds a.joblib")
