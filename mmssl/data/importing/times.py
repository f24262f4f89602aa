"""Parses times: numbers, ISO 8601 and the usual ways to write a date."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from datetime import date
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import blocks
from mmssl.data.dataset import IntArray
from mmssl.errors import InputError

MICROSECOND = 1_000_000
UNITS = ("mixed", "same")
DATES = ("dmy", "mdy")

_EPOCH = date(1970, 1, 1).toordinal()
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_CLOCK = re.compile(
    r"(\d\d?):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s*([ap]\.?m\.?)?\s*(z|utc|gmt|[+-]\d\d:?\d\d)?",
    re.ASCII | re.IGNORECASE,
)
_MONTH = r"([a-z]{3})[a-z]*\.?"
_DATES = {
    "ymd": (re.compile(r"(\d{4})[-/.](\d\d?)[-/.](\d\d?)", re.ASCII), "ymd"),
    "a/b/y": (re.compile(r"(\d\d?)[-/](\d\d?)[-/](\d{4})", re.ASCII), ""),
    "d.m.y": (re.compile(r"(\d\d?)\.(\d\d?)\.(\d{4})", re.ASCII), "dmy"),
    "m d, y": (re.compile(r"(\d\d?) (\d\d?), ?(\d{4})", re.ASCII), "mdy"),
    "mon d, y": (re.compile(_MONTH + r" (\d\d?),? (\d{4})", re.ASCII | re.IGNORECASE), "mdy"),
    "d mon y": (
        re.compile(r"(?:[a-z]{3}, )?(\d\d?)[ -]" + _MONTH + r"[ -](\d{4})", re.ASCII | re.I),
        "dmy",
    ),
}  # fmt: skip
_TWITTER = re.compile(
    r"[a-z]{3} ([a-z]{3} \d\d?) (\d\d:\d\d:\d\d)(?: ([+-]\d{4}|utc|gmt))? (\d{4})",
    re.ASCII | re.IGNORECASE,
)
# Seconds, milliseconds, microseconds and nanoseconds since 1970, from 1973 on.
_SCALES = (("seconds", 1e8), ("milliseconds", 1e11), ("microseconds", 1e14), ("nanoseconds", 1e17))


class Written(NamedTuple):
    """How the times of a column are written."""

    kind: str
    """Key of the table of dates, or ``mon d h y`` as Twitter writes it."""
    example: str
    """The first time, for messages."""
    order: str
    """Order of day, month and year."""


def how_written(texts: Sequence[str], first: str, dates: str | None) -> Written | None:
    """Return how dates are written, judged by the first one; None for anything but a date.

    Args:
        texts: All times of a column.
        first: The first one in the file.
        dates: ``dmy`` or ``mdy``, the order of dates like 07/04/2017; found when None.

    Raises:
        InputError: Whether day or month comes first follows from no date of the column.
    """
    if _TWITTER.fullmatch(first):
        return Written("mon d h y", first, "")
    for kind, (pattern, order) in _DATES.items():
        if not (found := pattern.match(first)) or not _ends(first, found.end()):
            continue
        if kind == "a/b/y":
            order = dates or _order(pattern, texts)
        return Written(kind, first, order)
    return None


def microseconds(text: str, how: Written) -> int | None:
    """Return the microseconds since 1970 of a date, UTC unless it has a zone; None for no date."""
    if how.kind == "mon d h y":
        parts = _TWITTER.fullmatch(text)
        if not parts:
            return None
        day, clock, zone, year = parts.groups()
        text, how = f"{day}, {year} {clock} {zone or ''}".strip(), Written("mon d, y", "", "mdy")
    found = _DATES[how.kind][0].match(text)
    if not found:
        return None
    fields = dict(zip(how.order, found.groups(), strict=True))
    try:
        day_ = _days(fields["y"], fields["m"].lower()[:3], fields["d"]) * 86_400 * MICROSECOND
        return day_ + _since_midnight(_clock_of(text[found.end() :]))
    except (ValueError, OverflowError):
        return None


def one_unit(
    times: npt.NDArray[np.generic], unit: str | None, line_of: Callable[[int], str]
) -> npt.NDArray[np.generic]:
    """Check that numbers since 1970 are all in one unit, or convert them to microseconds.

    Args:
        times: (N,) int64 or float64, finite.
        unit: ``mixed`` converts all by their sizes, ``same`` leaves all as they are; None refuses
            times of which some look like seconds and others like milliseconds.
        line_of: Position -> where it is, for the message.

    Raises:
        InputError: The units are mixed and ``unit`` is None.
    """
    if unit == "same" or not times.size:
        return times
    if unit == "mixed":
        converted = np.empty(times.size, dtype=np.int64)
        for part in blocks(times.size):
            factor = np.array([1e6, 1e3, 1.0, 1e-3])[np.maximum(_scale(times[part]), 0)]
            converted[part] = np.round(times[part] * factor)
        return converted
    first: dict[int, int] = {}  # scale -> position of the first time that has it
    for part in blocks(times.size):
        scale = _scale(times[part])
        for kind in np.unique(scale[scale >= 0]).tolist():
            first.setdefault(kind, part.start + int(np.argmax(scale == kind)))
    if len(first) < 2:
        return times
    found = [
        f"{_SCALES[kind][0]} ({line_of(at)}: {times[at]})" for kind, at in sorted(first.items())[:2]
    ]
    raise InputError(
        f"expected times in one unit, got {found[0]} and {found[1]}: --time-unit mixed reads each "
        "by its size, --time-unit same takes the numbers as they are"
    )


def _scale(times: npt.NDArray[np.generic]) -> IntArray:
    """Return the position in ``_SCALES`` of each time, -1 for one that is close to 1970."""
    size = np.abs(times.astype(np.float64))
    found: IntArray = np.searchsorted([start for _, start in _SCALES], size, side="right") - 1
    return found


def _clock_of(rest: str) -> str:
    """Return what follows a date, without what separates them."""
    rest = rest.strip()
    return (rest[1:] if rest[:1] in "Tt" and rest[1:] else rest).lstrip(", ")


def _ends(text: str, at: int) -> bool:
    """Return whether only a clock, or nothing, follows a date."""
    clock = _clock_of(text[at:])
    return not clock or clock.lower() in ("z", "utc") or bool(_CLOCK.fullmatch(clock))


@functools.lru_cache(1 << 16)  # the dates and clocks of a log repeat
def _days(year: str, month: str, day: str) -> int:
    """Return the days since 1970.

    Raises:
        ValueError: The day does not exist.
    """
    number = _MONTHS.index(month) + 1 if month in _MONTHS else int(month)
    return date(int(year), number, int(day)).toordinal() - _EPOCH


def _order(pattern: re.Pattern[str], texts: Sequence[str]) -> str:
    firsts, seconds = 0, 0
    example = ""
    for text in texts:
        if found := pattern.match(text):
            example = example or text
            firsts, seconds = max(firsts, int(found[1])), max(seconds, int(found[2]))
    if firsts > 12 or seconds > 12:
        return "dmy" if firsts > 12 else "mdy"  # a column that mixes them has bad dates in either
    raise InputError(
        f"expected dates that show whether day or month comes first, got such as {example!r:.40}: "
        "--dates dmy or --dates mdy"
    )


@functools.lru_cache(1 << 17)
def _since_midnight(clock: str) -> int:
    """Return the microseconds of a clock such as ``09:28:01.5 PM +0200``.

    Raises:
        ValueError: It is not a time of day.
    """
    if not clock or clock.lower() in ("z", "utc"):
        return 0
    found = _CLOCK.fullmatch(clock)
    if not found:
        raise ValueError(clock)
    hour, minute, second, fraction, half, zone = found.groups()
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    if half:
        if not 1 <= hours <= 12:
            raise ValueError(clock)
        hours = hours % 12 + (12 if half.lower().startswith("p") else 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError(clock)
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "")
        shift = int(digits[:2]) * 60 + int(digits[2:])
        minutes += -shift if zone[0] == "+" else shift
    seconds += (hours * 60 + minutes) * 60
    return seconds * MICROSECOND + int(f"{(fraction or '')[:6]:0<6}")
