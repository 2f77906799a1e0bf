"""How results look where a person reads them."""

from __future__ import annotations

from inferplane.cli.output import folded


def test_long_values_are_folded_under_themselves() -> None:
    text = "Name:     iris\nMessage:  " + "word " * 20 + "end"
    lines = folded(text, 60).split("\n")
    assert lines[0] == "Name:     iris"
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith("          word") for line in lines[2:-1])
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())


def test_tables_commands_and_short_lines_stay() -> None:
    text = "\n".join(
        ["NAME    " + "COLUMN  " * 20, "a       " + "cell    " * 20, 'curl -H "Host:  x" ' + "y " * 80]
    )
    assert folded(text, 60) == text
    assert folded("Path URL:  " + "x" * 200, 60) == "Path URL:  " + "x" * 200
    assert folded("Message:  " + "word " * 20, 35) == "Message:  " + "word " * 20
