"""Checks the cells of a column: ids, ratings, split labels.

Each distinct value is checked once. Nothing is repaired in silence: what is changed or may be
wrong becomes a note, what can't be used becomes a fault.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import blocks, counts
from mmssl.data.dataset import MAX_ID, IntArray
from mmssl.data.importing.table import Column, Numbers

BoolArray = npt.NDArray[np.bool_]
NULL_IDS = ("stop", "skip", "keep")
NULLS = frozenset(
    ("null", "(null)", "none", "nan", "-nan", "\\n", "na", "n/a", "#n/a", "<na>", "nat", "nil")
    + ("undefined",)
)
"""What programs write for a missing value, in lower case; the empty cell is never an id."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA_NUMBER = re.compile(r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
_LIST = re.compile(
    r"""[\[({]\s*(?:['"\d][^\n]*)?[\])}] | \d+(?:(?:\ +|\ *[,|;]\ *)\d+)+""", re.VERBOSE | re.ASCII
)


_ROUNDED = re.compile(r"\d([.,]\d+)?[eE]\+\d+", re.ASCII)
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_LATE_QUOTE = re.compile(r"\s+\".*\"\s*$")  # where cells are 1, "a": a quote after a blank
_QUOTED = re.compile(r"([\"']).*\1")


class Rules(NamedTuple):
    """How cells are read, as the options of an import say."""

    skip_bad: bool = False
    """Leave out rows that can't be used, instead of stopping at the first."""
    null_ids: str = "stop"
    """What happens to ids such as ``NULL``, one of :data:`NULL_IDS`."""
    decimal: str = "."
    """Decimal mark of numbers: ``.`` or ``,``."""
    dates: str | None = None
    """Order of dates like 07/04/2017: ``dmy`` or ``mdy``."""
    time_unit: str | None = None
    """What happens to times in different units: ``mixed`` or ``same``."""
    lists_are_ids: bool = False
    """Take cells such as ``[1, 2]`` as ids; the format of the file was given."""


class Checked(NamedTuple):
    """What became of a column."""

    column: Column
    """The column, ids without surrounding blanks."""
    values: npt.NDArray[np.generic] | None
    """The parsed values; None for ids, which stay text."""
    bad: BoolArray
    """Which values can't be used."""
    reason: str
    """What rows with a bad value are counted under."""
    expected: str
    """For the message."""
    notes: tuple[str, ...] = ()
    """What was changed, or may be wrong."""
    optional: BoolArray | None = None
    """Which of the bad values ``--null-ids`` decides about."""
    numeric: bool = False
    """Whether times are numbers of the source, in a unit that it does not state."""


def check_ids(column: Column, role: str, rules: Rules) -> Checked:
    """Check text ids: one line, no tabs; blanks around them are removed and counted."""
    column = _as_text(column)
    quotes = {value.strip() for value in column.values if _LATE_QUOTE.match(value)}
    column, notes = _stripped(column, role)
    values = column.values
    bad = np.fromiter(map(_is_no_id, values), np.bool_, len(values))
    if quotes:
        bad |= np.fromiter((value in quotes for value in values), np.bool_, len(values))
    elif quoted := [value for value in values if _QUOTED.fullmatch(value)]:
        notes += (
            f"{len(quoted):,} {role} ids have quotes around them, as {quoted[0]!r:.40}: "
            "--quotes reads quotes as ends of cells",
        )
    null = np.zeros(len(values), np.bool_)
    if rules.null_ids != "keep":
        null = np.fromiter((value.lower() in NULLS for value in values), np.bool_, len(values))
    if not rules.lists_are_ids:
        bad |= _lists(values)
    if not all(map(is_plain_integer, values)):
        notes += _look_alikes(values, role) + _changed(values, role)
    article = "an" if role == "item" else "a"
    expected = f"{article} {role} id of one line without tabs"
    reason = f"{role} id empty, missing or not one line"
    return Checked(column, None, bad | null, reason, expected, notes, null & ~bad)


def is_list(text: str) -> bool:
    """Return whether a cell seems to hold several ids, such as ``[1, 2]`` or ``1 2 3``."""
    return _LIST.fullmatch(text) is not None


def check_numbered(column: Column, role: str, rules: Rules) -> Checked:
    """Check ids that are numbers from 0, which a table or the rows of features refer to."""
    column, notes = _stripped(_as_text(column), role)
    bad = [not is_plain_integer(text) or int(text) >= MAX_ID for text in column.values]
    expected = f"an id that is a number in 0 .. {MAX_ID - 1}"
    found = np.array(bad, dtype=np.bool_)
    return Checked(column, None, found, "id not a number", expected, notes)


def check_labels(column: Column, role: str, rules: Rules) -> Checked:
    """Check split labels: 0 train, 1 validation, 2 test."""
    values = parsed(column.values, rules.decimal)
    bad = ~np.isin(values, (0, 1, 2))
    whole = np.where(bad, 0, values).astype(np.int64)
    return Checked(column, whole, bad, "split label not 0, 1 or 2", "a split label 0, 1 or 2")


def check_ratings(column: Column, role: str, rules: Rules) -> Checked:
    """Check ratings: finite numbers."""
    values = parsed(column.values, rules.decimal)
    bad = ~np.isfinite(values)
    return Checked(column, values, bad, "rating not a finite number", "a finite rating")


def parsed(values: Sequence[str], decimal: str = ".") -> npt.NDArray[np.float64]:
    """Return the numbers of a column, NaN for all else."""
    if isinstance(values, Numbers):
        return values.array.astype(np.float64, copy=False)
    return numbers(values, decimal)


def numbers(texts: Iterable[str], decimal: str = ".") -> npt.NDArray[np.float64]:
    """Parse decimal numbers; NaN for all else, including what only Python's float() accepts.

    Args:
        texts: Numbers, which may have blanks around them.
        decimal: ``.`` or ``,``.
    """
    full = (_NUMBER if decimal == "." else _COMMA_NUMBER).fullmatch

    def number(text: str) -> float:
        if not full(text) and not full(text := text.strip()):
            return np.nan
        return float(text if decimal == "." else text.replace(",", "."))

    return np.array([number(text) for text in texts], dtype=np.float64)


def is_comma_number(text: str) -> bool:
    """Return whether a text is a number only with a decimal comma."""
    return "," in text and _COMMA_NUMBER.fullmatch(text.strip()) is not None


def is_plain_integer(text: str) -> bool:
    """Return whether a text is a non-negative integer without leading zeros or a sign."""
    return (
        text.isascii() and text.isdecimal() and len(text) <= 18 and (text[0] != "0" or text == "0")
    )


def natural_order(values: Sequence[str]) -> IntArray:
    """Return the order of distinct ids: by value if all are integers, else by code point.

    The numbering then depends on the set of ids, not on the order of the rows.
    """
    if all(map(is_plain_integer, values)):
        return np.argsort(np.array(list(map(int, values)), dtype=np.int64), kind="stable")
    return np.array(sorted(range(len(values)), key=values.__getitem__), dtype=np.int64)


def used_values(column: Column) -> BoolArray:
    """Return which values at least one row holds."""
    return counts(column.codes, len(column.values)) > 0


def _as_text(column: Column) -> Column:
    """Return a column of ids that are numbers in the file as texts, each once."""
    if not isinstance(column.values, Numbers):
        return column
    cells = column.cells(column.values.array)
    distinct = distinct_numbers(cells)
    number = np.empty(cells.size, dtype=np.int32)
    for part in blocks(cells.size):
        number[part] = np.searchsorted(distinct, cells[part])
    return Column(number, list(Numbers(distinct)))


def distinct_numbers(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return the distinct numbers, ascending; ``np.unique`` would sort a copy of all at once."""
    found = [np.unique(array[part]) for part in blocks(array.size)]
    while len(found) > 1:  # in pairs: what two blocks share is dropped early
        pairs = [found[at : at + 2] for at in range(0, len(found), 2)]
        found = [np.union1d(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return found[0] if found else np.unique(array)


def _is_no_id(text: str) -> bool:
    return not text or "\t" in text or "\n" in text or "\r" in text


def _lists(values: Sequence[str]) -> BoolArray:
    """Return which values seem to be lists; numbers with blanks between need company."""
    found = np.fromiter(map(is_list, values), np.bool_, len(values))
    bracketed = np.fromiter((value[:1] in "[({" for value in values), np.bool_, len(values))
    if found.sum() * 10 < len(values):
        found &= bracketed
    return found


def _stripped(column: Column, role: str) -> tuple[Column, tuple[str, ...]]:
    """Remove the blanks around ids, as ``recommend --users`` does."""
    clean = [value.strip() for value in column.values]
    padded = [at for at, value in enumerate(clean) if value != column.values[at]]
    if not padded:
        return column, ()
    count = int(np.isin(np.arange(len(clean)), padded)[column.codes].sum())
    number: dict[str, int] = {}
    merged = np.array([number.setdefault(value, len(number)) for value in clean], dtype=np.int32)
    example = column.values[padded[0]]
    note = f"{count:,} {role} ids had blanks around them, which were removed: {example!r:.40}"
    return Column(merged[column.codes], list(number)), (note,)


def _changed(values: Sequence[str], role: str) -> tuple[str, ...]:
    """Report ids that a spreadsheet or a column of floats has changed: 1.23E+12, all like 7.0."""
    rounded = [value for value in values if _ROUNDED.fullmatch(value)]
    if rounded:
        return (
            f"{len(rounded):,} {role} ids look like numbers that a spreadsheet has rounded, such "
            f"as {rounded[0]!r:.40}: different {role}s may have become one",
        )
    if all(value.endswith(".0") and value[:-2].isdecimal() for value in values):
        return (f"all {role} ids end in '.0', such as {values[0]!r:.40}, and are kept like that",)
    return ()


def _look_alikes(values: Sequence[str], role: str) -> tuple[str, ...]:
    """Report ids that look the same but for case, leading zeros or ``.0``: probably one."""
    first: dict[str, str] = {}
    alike, example = 0, ("", "")
    for value in values:
        plain = value.casefold()
        if not plain.isascii():  # accents in one character or two; characters without a width
            plain = unicodedata.normalize("NFKC", plain).translate(_INVISIBLE)
        if plain[:1].isdecimal():
            plain = plain.removesuffix(".0").lstrip("0")
        other = first.setdefault(plain, value)
        if other != value:
            alike, example = alike + 1, example if alike else (other, value)
    if not alike:
        return ()
    return (
        f"{alike:,} {role} ids differ from another one only by case, leading zeros, '.0' or how "
        f"they are encoded, such as {example[0]!a:.40} and {example[1]!a:.40}; they stay different "
        f"{role}s",
    )


CHECKS: dict[str, Any] = {
    "user": check_ids,
    "item": check_ids,
    "rating": check_ratings,
    "label": check_labels,
}
