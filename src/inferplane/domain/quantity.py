"""Durations and sizes as people write them, turned into exact numbers.

Durations in: `0d0h5m`, `5m`, `1h`, `1h15m0s`, `30d`; out: `1h15m0s`. Memory and CPU follow
Kubernetes' quantities (`2Gi`, `512Mi`, `1G`, `500m`, `2`), because manifests are written in them.
Arithmetic is exact (no floats on the way), and every text has a length limit, so that no number in
a manifest can take long to read.
"""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction
from typing import Any

from inferplane.domain.errors import Invalid

QUANTITY_CHARACTERS_MAX = 40
DURATION_MAX = timedelta(days=36_525)  # a hundred years: beyond every real wish, within every arithmetic
MEMORY_BYTES_MAX = 2**63 - 1
CPU_MILLIS_MAX = 10**9

_DURATION = re.compile(
    r"(?:(?P<weeks>[0-9]{1,6})w)?(?:(?P<days>[0-9]{1,6})d)?(?:(?P<hours>[0-9]{1,7})h)?"
    r"(?:(?P<minutes>[0-9]{1,9})m)?(?:(?P<seconds>[0-9]{1,9})s)?",
    re.IGNORECASE,
)
_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})"
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,2})|(?P<suffix>Ki|Mi|Gi|Ti|Pi|Ei|[munkKMGTPE]))?"
)
_FACTORS: dict[str | None, Fraction] = {
    None: Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "k": Fraction(1000),
    "K": Fraction(1000),
    "M": Fraction(1000**2),
    "G": Fraction(1000**3),
    "T": Fraction(1000**4),
    "P": Fraction(1000**5),
    "E": Fraction(1000**6),
    "Ki": Fraction(1024),
    "Mi": Fraction(1024**2),
    "Gi": Fraction(1024**3),
    "Ti": Fraction(1024**4),
    "Pi": Fraction(1024**5),
    "Ei": Fraction(1024**6),
}


def parse_duration(text: Any, field: str) -> timedelta:
    """Read `0d0h5m`, `5m`, `1h`, `1d`, `30d`, `1w`, `1h15m0s`. Zero is read as zero.

    Raises Invalid (InvalidDuration) naming `field`.
    """
    words = text.strip() if isinstance(text, str) else ""
    match = _DURATION.fullmatch(words) if len(words) <= QUANTITY_CHARACTERS_MAX else None
    if not words or match is None:
        raise Invalid(
            f"{_shown(text)} is not a duration",
            reason="InvalidDuration",
            field=field,
            next_action="Write for instance 5m, 1h30m, 0d0h5m or 30d.",
        )
    duration = timedelta(**{unit: int(number) for unit, number in match.groupdict().items() if number})
    if duration > DURATION_MAX:
        raise Invalid(
            f"{_shown(text)} is longer than {DURATION_MAX.days} days",
            reason="InvalidDuration",
            field=field,
            next_action="Write a shorter duration.",
        )
    return duration


def format_duration(duration: timedelta) -> str:
    """Hours, minutes and whole seconds: 75 minutes are `1h15m0s`. Less than nothing is `0h0m0s`."""
    seconds = max(0, duration // timedelta(seconds=1))
    return f"{seconds // 3600}h{seconds // 60 % 60}m{seconds % 60}s"


def parse_memory(value: Any, field: str) -> int:
    """Bytes, at least 1: `2Gi`, `512Mi`, `1G`, `1.5Gi`, a number of bytes. A fraction of a byte counts as one.

    Raises Invalid (InvalidQuantity) naming `field`.
    """
    amount = _quantity(value, field, "Write for instance 512Mi, 2Gi or a number of bytes.")
    return _whole(amount, MEMORY_BYTES_MAX, value, field)


def parse_cpu(value: Any, field: str) -> int:
    """Thousandths of a CPU, at least 1: `500m` and 0.5 are 500, `2` is 2000.

    Raises Invalid (InvalidQuantity) naming `field`.
    """
    amount = _quantity(value, field, "Write for instance 500m, 0.5 or 2.") * 1000
    return _whole(amount, CPU_MILLIS_MAX, value, field)


def _quantity(value: Any, field: str, next_action: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _not_a_quantity(value, field, next_action)
    if isinstance(value, int) and abs(value) > MEMORY_BYTES_MAX:  # str() of a huge int is slow, or refused
        raise Invalid(
            "the number is too large", reason="InvalidQuantity", field=field, next_action=next_action
        )
    words = str(value).strip()
    match = _QUANTITY.fullmatch(words) if len(words) <= QUANTITY_CHARACTERS_MAX else None
    if match is None:
        raise _not_a_quantity(value, field, next_action)
    number = Fraction(match["number"])
    if match["exponent"]:
        return number * Fraction(10) ** int(match["exponent"])
    return number * _FACTORS[match["suffix"]]


def _whole(amount: Fraction, largest: int, value: Any, field: str) -> int:
    whole = -(-amount.numerator // amount.denominator)  # rounded up: a limit is never less than was asked
    if not 1 <= whole <= largest:
        size = "too large" if whole > largest else "nothing"
        raise Invalid(
            f"{_shown(value)} is {size}",
            reason="InvalidQuantity",
            field=field,
            next_action="Write an amount of more than zero, or leave it out for no limit.",
        )
    return whole


def _not_a_quantity(value: Any, field: str, next_action: str) -> Invalid:
    return Invalid(
        f"{_shown(value)} is not a quantity", reason="InvalidQuantity", field=field, next_action=next_action
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"“{value[:QUANTITY_CHARACTERS_MAX]}”"
    if value is None or isinstance(value, bool | int | float):
        return f"“{value}”"
    return "a list or an object"
