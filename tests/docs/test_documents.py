"""Documents that can drift are compared with what they speak of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from inferplane.cli.main import build_cli
from inferplane.domain.endpoint import Milestone, PublicStatus
from inferplane.domain.reasons import REASONS
from inferplane.domain.runtime import FORMATS
from inferplane.domain.storage_uri import LOCAL_SCHEMES
from inferplane.settings import ENVIRONMENT_PREFIX, PLAIN_SETTINGS, NodeSettings

GUIDE = "docs/user-guide.md"
EVERY_MACHINE_HAS = {
    Path(name) for name in ("/", "/home", "/tmp", "/opt", "/root", "/srv", "/usr", "/var", "/Users")
}
PACKAGE_INDEXES = (r"pypi\.org", r"pythonhosted", r"--(?:extra-)?index-url", r"--find-links")
TABLE_PLACES = {"reasons": "docs/reasons.md", "settings": GUIDE, "formats": GUIDE, "exit-codes": GUIDE}


@pytest.mark.parametrize(("table", "place"), list(TABLE_PLACES.items()))
def test_each_table_from_the_code_has_its_place(table: str, place: str, documents: dict[str, str]) -> None:
    assert documents[place].count(f"<!-- begin {table} -->") == 1
    assert documents[place].count(f"<!-- end {table} -->") == 1


def test_tables_from_the_code_are_up_to_date(documents: dict[str, str], filled: Callable[[str], str]) -> None:
    """When this fails, run `make docs`."""
    for name, text in documents.items():
        assert filled(text) == text, f"{name} differs from the code"


def test_the_reasons_page_shows_every_reason_in_full(documents: dict[str, str]) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \| (\w+) \|$", documents["docs/reasons.md"], re.MULTILINE
    )
    assert [row[0] for row in rows] == [code.value for code in REASONS]
    for code, meaning, evidence, next_action, _ in rows:
        reason = next(each for each in REASONS.values() if each.code.value == code)
        assert (meaning, evidence, next_action) == (reason.meaning, reason.evidence, reason.next_action)


def test_every_setting_is_documented(documents: dict[str, str]) -> None:
    for field in PLAIN_SETTINGS:
        assert f"`{field.name}`" in documents[GUIDE]
        assert f"`{ENVIRONMENT_PREFIX}{field.name.upper()}`" in documents[GUIDE]


def test_every_field_of_a_declared_node_is_documented(documents: dict[str, str]) -> None:
    for name in NodeSettings.__dataclass_fields__:
        assert f"`{name}`" in documents[GUIDE]


def test_every_format_and_scheme_is_documented(documents: dict[str, str]) -> None:
    for name in FORMATS:
        assert f"`{name}`" in documents[GUIDE]
    for scheme in LOCAL_SCHEMES:
        assert f"{scheme}:/" in documents[GUIDE]


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        if getattr(inner, "commands", None):
            yield from _commands(inner, (*words, name))
        else:
            yield (*words, name), inner


def test_every_command_is_shown_in_the_user_guide(documents: dict[str, str]) -> None:
    commands = dict(_commands(typer.main.get_command(build_cli(lambda _: 0))))
    assert len(commands) > 10
    for words in commands:
        shown = f"inferplane {' '.join(words)}"
        assert re.search(rf"{shown}\b", documents[GUIDE]), f"{shown} is not in {GUIDE}"


def test_commands_and_options_in_documents_exist(documents: dict[str, str]) -> None:
    commands = dict(_commands(typer.main.get_command(build_cli(lambda _: 0))))
    groups = {words[0] for words in commands if len(words) > 1}
    wrong = []
    for name, text in documents.items():
        for line in re.findall(r"(?:^|`|/)inferplane ([a-z][^`\n#|]*)", text, re.MULTILINE):
            if not re.match(r"[a-z]+( |$)", line) or line.startswith("is "):
                continue
            words = tuple(line.split()[: 2 if line.split()[0] in groups else 1])
            command = commands.get(words)
            known = (
                {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
                if command
                else set()
            )
            options = re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", line)
            if command is None or not set(options) <= {*known, "--help"}:
                wrong.append(f"{name}: inferplane {line}")
    assert not wrong


def test_every_setting_is_an_option_of_up() -> None:
    up = dict(_commands(typer.main.get_command(build_cli(lambda _: 0))))[("up",)]
    options = {option for each in up.params for option in each.opts}
    assert {f"--{field.name.replace('_', '-')}" for field in PLAIN_SETTINGS} <= options


def test_every_public_status_is_documented(documents: dict[str, str]) -> None:
    for status in PublicStatus:
        assert f"`{status}`" in documents["docs/states.md"]
    for milestone in Milestone:
        assert f"*{milestone}*" in documents["docs/states.md"]


def test_the_glossary_has_each_word_once_and_in_order(documents: dict[str, str]) -> None:
    words = re.findall(r"^\| ([^|]+?) \| [^|]+\|$", documents["docs/glossary.md"], re.MULTILINE)[1:]
    words = [word for word in words if word != "---"]
    assert len(words) > 20
    assert len({word.lower() for word in words}) == len(words)
    assert words == sorted(words, key=str.lower)


def test_the_decisions_are_all_listed(documents: dict[str, str]) -> None:
    there = {Path(name).name for name in documents if re.match(r"docs/decisions/\d{4}-", name)}
    assert there == set(re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", documents["docs/decisions/README.md"]))
    for name in there:
        text = documents[f"docs/decisions/{name}"]
        for heading in ("**Problem.**", "**Decision.**", "**Considered.**", "**Consequences.**"):
            assert heading in text, f"{name} lacks {heading}"


def test_each_mechanism_is_explained_with_a_checklist_and_pitfalls(documents: dict[str, str]) -> None:
    pages = [name for name in documents if name.startswith("docs/mechanisms/")]
    assert {Path(page).stem for page in pages} >= {
        "gateway",
        "local-engine",
        "model-server",
        "modelstore",
        "reconciler",
        "store",
    }
    for page in pages:
        for heading in ("## Mechanism", "## Checklist", "## Pitfalls"):
            assert heading in documents[page], f"{page} lacks {heading}"


# --- Links -------------------------------------------------------------------------------------

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_between_documents_resolve(documents: dict[str, str], root: Path) -> None:
    broken = []
    for name, text in documents.items():
        for target in _LINK.findall(_FENCE.sub("", text)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            there = (root / name).parent / path if path else root / name
            if not there.exists():
                broken.append(f"{name}: {target}")
            elif anchor and anchor not in _anchors(there.read_text(encoding="utf-8")):
                broken.append(f"{name}: {target} (no such heading)")
    assert not broken


def test_paths_named_in_documents_exist(documents: dict[str, str], root: Path) -> None:
    missing = [
        f"{name}: {path}"
        for name, text in documents.items()
        for path in re.findall(r"`((?:src|tests|docs|bench|examples)/[\w./-]+)`", text)
        if not (root / path).exists()
    ]
    assert not missing


# --- For everybody -----------------------------------------------------------------------------


def test_the_readme_begins_with_the_two_commands(documents: dict[str, str]) -> None:
    readme = documents["README.md"]
    for command in ("make quickstart", "make test"):
        assert command in readme[:2500]
    for page in (
        "docs/user-guide.md",
        "docs/architecture.md",
        "docs/reasons.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ):
        assert f"({page})" in readme


def test_the_changelog_is_kept(documents: dict[str, str]) -> None:
    changelog = documents["CHANGELOG.md"]
    assert "## [Unreleased]" in changelog
    assert set(re.findall(r"^### (\w+)$", changelog, re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_nothing_in_the_repository_names_a_machine_or_a_package_index(
    our_files: tuple[Path, ...], root: Path
) -> None:
    """The machine is the one that this runs on: wherever the checkout lies, no file of it says so."""
    parent = root.parent
    places = [root] if parent in EVERY_MACHINE_HAS else [root, parent]
    telling = re.compile(
        "|".join([*(rf"{re.escape(str(place))}(?![\w-])" for place in places), *PACKAGE_INDEXES])
    )
    found = []
    for path in our_files:
        if path == Path(__file__):  # it spells the patterns out
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.name}:{text.count(chr(10), 0, hit.start()) + 1}" for hit in telling.finditer(text)]
    assert not found


def test_no_document_leads_out_of_the_repository(documents: dict[str, str], root: Path) -> None:
    missing = [
        f"{name}: {path}"
        for name, text in documents.items()
        for path in re.findall(r"(?<![\w./])(?:\.\./)+[\w./-]*", text)
        if not (target := (root / name).parent / path).exists() or not target.resolve().is_relative_to(root)
    ]
    assert not missing
