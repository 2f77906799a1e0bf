"""What is remembered of keys, for how long, and what ends it at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from inferplane.domain.access import ApiKey, Role
from inferplane.services.key_memory import REMEMBERED_KEYS_MAX, REMEMBERED_SECONDS, KeyMemory

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def key(number: int = 1, last_used_at: datetime | None = None) -> ApiKey:
    return ApiKey(
        id=f"id{number}",
        name="k",
        digest=f"digest{number}",
        masked="m",
        role=Role.OWNER,
        workspace="",
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
        last_used_at=last_used_at,
    )


class Ticks:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_record_is_held_for_a_short_time_only() -> None:
    ticks = Ticks()
    memory = KeyMemory(ticks)
    memory.keep("id1", key(), memory.mark)
    ticks.now += REMEMBERED_SECONDS / 2
    assert memory.recall("id1") == key()
    memory.replace(key(last_used_at=NOW))
    assert memory.recall("id1") == key(last_used_at=NOW)
    ticks.now += REMEMBERED_SECONDS / 2
    assert memory.recall("id1") is None, "a newer state of it is not held longer"


def test_a_deletion_ends_everything_that_was_read_before_it() -> None:
    memory = KeyMemory(Ticks())
    memory.keep("id1", key(), memory.mark)
    began = memory.mark  # a reading that began before the deletion and ends after it
    memory.forget()
    assert memory.recall("id1") is None
    memory.keep("id1", key(), began)
    assert memory.recall("id1") is None
    memory.keep("id1", key(), memory.mark)
    assert memory.recall("id1") == key()


def test_it_holds_a_bounded_number_the_latest_ones() -> None:
    memory = KeyMemory(Ticks())
    for number in range(REMEMBERED_KEYS_MAX + 1):
        memory.keep(f"id{number}", key(number), memory.mark)
    assert memory.recall("id0") is None
    assert memory.recall("id1") is not None
    assert memory.recall(f"id{REMEMBERED_KEYS_MAX}") is not None


def test_a_record_that_is_not_held_is_not_taken_in_by_replacing() -> None:
    memory = KeyMemory(Ticks())
    memory.replace(key())
    assert memory.recall("id1") is None
