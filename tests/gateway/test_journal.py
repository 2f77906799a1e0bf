"""What a control plane leaves to the next about what Envoy was told."""

from __future__ import annotations

from pathlib import Path

from inferplane.gateway.journal import LINES_SPARE, Journal, Told
from inferplane.gateway.route_table import Access, EndpointRoutes, Upstream

ROUTES = EndpointRoutes(
    "u",
    "default",
    "iris",
    (Upstream("r1-0", "unix:/a.sock"),),
    ("iris",),
    shares=((1, 90), (2, 10)),
    mirror=(2, 5),
    access=Access.KEY,
    revoked_keys=("k",),
    requests_per_second=0.5,
)


def test_the_last_word_on_each_endpoint_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "told")
    journal.read()
    journal.note(Told("u", ROUTES, ROUTES.upstreams))
    journal.note(Told("gone", ROUTES))
    journal.note(Told("gone", None, ROUTES.upstreams))
    journal.note(Told("gone"))
    journal.note(Told("leaving", None, ROUTES.upstreams))
    journal.close()
    assert Journal(tmp_path / "told").read() == {
        "u": Told("u", ROUTES, ROUTES.upstreams),
        "leaving": Told("leaving", None, ROUTES.upstreams),
    }


def test_half_a_line_is_skipped_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "told"
    journal = Journal(path)
    journal.note(Told("u", ROUTES))
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"uid":"v","rou')
    again = Journal(path)
    assert set(again.read()) == {"u"}
    again.note(Told("w", ROUTES))
    again.close()
    assert set(Journal(path).read()) == {"u", "w"}


def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "told"
    journal = Journal(path)
    for number in range(3 * LINES_SPARE):
        journal.note(Told("u", ROUTES, (Upstream("r1-0", f"unix:/{number}"),)))
    assert len(path.read_bytes().splitlines()) < LINES_SPARE + 10
    journal.close()
    (told,) = Journal(path).read().values()
    assert told.usable == (Upstream("r1-0", f"unix:/{3 * LINES_SPARE - 1}"),)
