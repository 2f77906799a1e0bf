"""Write the tables in docs/ that come from the code (`make docs`), or say what differs (`--check`).

A document marks each such table with `<!-- begin NAME -->` and `<!-- end NAME -->`; everything between
belongs to this program. A test runs the check, so a reason or a setting cannot be added in silence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from pathlib import Path

from inferplane.cli.exits import ExitCode
from inferplane.domain.access import PERMISSIONS, Role
from inferplane.domain.reasons import REASONS
from inferplane.domain.runtime import FORMATS
from inferplane.settings import ENVIRONMENT_PREFIX, PLAIN_SETTINGS

DOCS = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Return 0 when everything is (now) as it should be, 1 when `--check` found a difference."""
    differing = []
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        wanted = filled(text)
        if wanted == text:
            continue
        differing.append(path)
        if "--check" not in arguments:
            path.write_text(wanted, encoding="utf-8")
    word = "differs from the code; run make docs" if "--check" in arguments else "written"
    for path in differing:
        sys.stdout.write(f"{path.name}: {word}\n")
    return 1 if differing and "--check" in arguments else 0


def filled(text: str) -> str:
    """`text` with every marked table made anew. Raises ValueError for a begin without its end."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin not in text:
            continue
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{begin.strip()} has no {end}")
        text = f"{before}{begin}{table()}{end}{after}"
    return text


def reasons_table() -> str:
    """Every reason code, in the order of the code."""
    return _table(
        ("Code", "Meaning", "Evidence shown", "Next action", "Tried again"),
        (
            (
                f"`{code}`",
                each.meaning,
                each.evidence,
                each.next_action,
                "quickly" if each.retry_helps else "slowly",
            )
            for code, each in REASONS.items()
        ),
    )


def access_table() -> str:
    """Every verb, and the roles that may."""
    return _table(
        ("", *(role.value for role in Role)),
        (
            (verb.value, *("yes" if role in roles else "no" for role in Role))
            for verb, roles in PERMISSIONS.items()
        ),
    )


def settings_table() -> str:
    """Every setting with its flag, its environment variable and its default."""
    return _table(
        ("Setting", "Flag", "Environment", "Default"),
        (
            (
                f"`{field.name}`",
                f"`--{field.name.replace('_', '-')}`",
                f"`{ENVIRONMENT_PREFIX}{field.name.upper()}`",
                _default(field.name, field.default),
            )
            for field in PLAIN_SETTINGS
        ),
    )


def formats_table() -> str:
    """Every format that the local engine serves."""
    return _table(
        ("Format", "File endings", "Extra to install", "Protocols"),
        (
            (
                f"`{each.name}`",
                " ".join(f"`{suffix}`" for suffix in each.file_suffixes) or "a folder",
                f"`inferplane[{each.extra}]`" if each.extra else "see below",
                ", ".join(each.protocols),
            )
            for each in FORMATS.values()
        ),
    )


def exit_codes_table() -> str:
    """How a command can end."""
    return _table(("Exit code", "Meaning"), ((f"`{code.value}`", code.meaning) for code in ExitCode))


TABLES: dict[str, Callable[[], str]] = {
    "access": access_table,
    "reasons": reasons_table,
    "settings": settings_table,
    "formats": formats_table,
    "exit-codes": exit_codes_table,
}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def _default(name: str, default: object) -> str:
    if name == "home":
        return "`~/.inferplane`"
    if default is MISSING:
        return "none"
    if default == "":
        return "empty"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
