"""Turns raw cells into interactions: checks ids, parses numbers and times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import IdArray, by_users, without_gaps
from mmssl.data.dataset import IntArray
from mmssl.data.importing.cells import (
    CHECKS,
    BoolArray,
    Checked,
    Rules,
    check_numbered,
    is_comma_number,
    is_list,
    parsed,
    used_values,
)
from mmssl.data.importing.table import Column, Fault, Numbers, RawTable, TableFile
from mmssl.data.importing.times import how_written, microseconds, one_unit
from mmssl.errors import InputError

_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)


class Rows(NamedTuple):
    """The usable rows of a log, in the order of the file."""

    user: Column  # (N,)
    item: Column  # (N,)
    rating: npt.NDArray[np.float64] | None = None  # (N,)
    time: npt.NDArray[np.generic] | None = None  # (N,) int64 or float64
    label: IntArray | None = None  # (N,) 0 train, 1 validation, 2 test
    rows_read: int = 0
    dropped: Mapping[str, int] = {}
    """Number of rows left out, by reason."""
    notes: tuple[str, ...] = ()
    """What was changed, or may be wrong."""
    dated: bool | None = None
    """Whether times were dates; None without times."""


def usable_rows(
    file: TableFile,
    positions: Mapping[str, int | None],
    rules: Rules,
    *,
    numbered: bool = False,
) -> Rows:
    """Read the columns of a log and check every cell.

    Args:
        file: The table of the log.
        positions: Field of :class:`Rows` -> position of its column; None for one that is missing.
        rules: How cells are read, and whether rows that can't be used are left out.
        numbered: Ids are numbers from 0, which a table or the rows of features refer to.

    Raises:
        InputError: A row can't be used (the first one is named) unless it is to be left out; or no
            row is left.
    """
    wanted = {role: position for role, position in positions.items() if position is not None}
    table = file.read(list(wanted.values()))
    checked = []
    for role, column in zip(wanted, table.columns, strict=True):
        ids = numbered and role in ("user", "item")
        check = check_numbered if ids else check_times if role == "time" else CHECKS[role]
        try:
            checked.append(check(column, role, rules))
        except InputError as error:
            raise InputError(f"{file.path}: column of {role}s: {error}") from None
    bad, dropped, faults = _collect(file, wanted, table, checked, rules)
    rows_read = table.locations.size + len(table.faults)
    if faults and not rules.skip_bad:
        stops = [fault for fault in faults if not fault.reason.endswith(_OPTIONAL)]
        if stops or rules.null_ids == "stop":
            first = (stops or faults)[0]
            count = sum(dropped.values())
            raise InputError(f"{file.path}: {describe(file.unit, first, count, rows_read)}")
    read: dict[str, Any] = {}
    for role, check in zip(wanted, checked, strict=True):
        column = check.column
        if check.values is None:
            read[role] = column if bad is None else _without(column, bad)
        else:
            read[role] = column.cells(check.values, None if bad is None else ~bad)
        if role == "time":
            read["dated"] = not check.numeric
    if read.get("dated") is False:
        read["time"] = _in_one_unit(file, table, bad, read["time"], rules)
    notes = tuple(note for check in checked for note in check.notes)
    if read.get("dated") is False:
        notes += _unset_times(read["time"])
    rows = Rows(**read, rows_read=rows_read, dropped=dropped, notes=notes)
    if not rows.user.size:
        raise InputError(
            f"{file.path}: expected at least one usable row, got none of {rows.rows_read}"
        )
    return rows


_OPTIONAL = " that stands for a missing one"


def describe(unit: str, fault: Fault, bad: int, rows: int) -> str:
    """Describe a bad row and what leaves it out; never an option that leaves out most rows."""
    where = f"{unit} {fault.location}: {fault.message}"
    if fault.reason.endswith(_OPTIONAL):
        return f"{where} ({bad:,} of {rows:,} rows)"
    if bad * 2 > rows:
        return f"{where} ({bad:,} of {rows:,} rows can't be used)"
    return f"{where} (--bad-rows skip leaves out {bad:,} of {rows:,} rows)"


def _without(column: Column, bad: BoolArray) -> Column:
    """Return the column without some rows, and without the values that only they have."""
    used, codes = without_gaps(column.codes[~bad], len(column.values))
    return Column(codes, [column.values[code] for code in used.tolist()])


def _collect(
    file: TableFile,
    wanted: Mapping[str, int],
    table: RawTable,
    checked: Sequence[Checked],
    rules: Rules,
) -> tuple[BoolArray | None, dict[str, int], list[Fault]]:
    """Return which rows are bad, their number by reason, and the faults in order."""
    bad = np.zeros(table.locations.size, dtype=np.bool_)
    faults = list(table.faults)
    dropped: dict[str, int] = {}
    for fault in faults:
        dropped[fault.reason] = dropped.get(fault.reason, 0) + 1

    def mark(rows: IntArray, reason: str) -> list[int]:
        rows = rows[~bad[rows]]
        bad[rows] = True
        if rows.size:
            dropped[reason] = dropped.get(reason, 0) + int(rows.size)
        return rows[:5].tolist()

    for row in mark(_repeated_header(file, wanted, checked), "header repeated"):
        message = "expected a row, got the header again"
        faults.append(Fault(int(table.locations[row]), "header repeated", message))
    for role, check in zip(wanted, checked, strict=True):
        if not check.bad.any():
            continue
        column = check.column
        null = np.zeros_like(check.bad) if check.optional is None else check.optional
        for which, reason in ((check.bad & ~null, check.reason), (null, f"{role} id{_OPTIONAL}")):
            if not which.any():
                continue
            for row in mark(np.flatnonzero(column.cells(which)), reason):
                got = column.values[row if column.at is None else int(column.at[row])]
                message = f"expected {check.expected}, got {f'{got!r:.60}' if got else 'nothing'}"
                message += _advice(role, got, optional=which is null, rules=rules)
                faults.append(Fault(int(table.locations[row]), reason, message))
    faults.sort(key=lambda fault: fault.location)
    return (bad if bad.any() else None), dropped, faults


def _advice(role: str, got: str, *, optional: bool, rules: Rules) -> str:
    """Return what mends a cell, if an option does."""
    if optional:
        return (
            ", which usually stands for a missing id: --null-ids skip leaves such rows out, "
            "--null-ids keep takes it as an id"
        )
    if role in ("user", "item") and not rules.lists_are_ids and is_list(got):
        return (
            ", which seems to hold several ids: --format lists reads lines of a user and its "
            "items, any other --format takes it as one id"
        )
    if role in ("user", "item") and got[:1] == '"':
        return ": a quote counts at the start of a cell only, remove the blanks before it"
    if role == "rating" and rules.decimal == "." and is_comma_number(got):
        return ": --decimal , reads decimal commas"
    return ""


def _repeated_header(
    file: TableFile, wanted: Mapping[str, int], checked: Sequence[Checked]
) -> IntArray:
    """Return the rows that hold the names of the columns, as joined files do."""
    found: IntArray | None = None
    if file.names is None:
        return np.empty(0, np.int64)
    for (role, position), check in zip(wanted.items(), checked, strict=True):
        if role not in ("user", "item"):
            continue
        name, values = file.names[position], check.column.values
        if isinstance(values, Numbers) or name not in values:
            return np.empty(0, np.int64)
        rows = np.flatnonzero(check.column.codes == list(values).index(name))
        found = rows if found is None else np.intersect1d(found, rows)
    return np.empty(0, np.int64) if found is None else found


def check_times(column: Column, role: str, rules: Rules) -> Checked:
    """Parse times: integers stay, other numbers become float64, dates microseconds since 1970.

    The kind follows from the first row, and dates without a zone are UTC.
    """
    reason = "time not a number or a date"
    if isinstance(column.values, Numbers):
        array = column.values.array
        bad = ~np.isfinite(array)
        return Checked(column, array, bad, reason, "a finite time", numeric=True)
    if any(text != text.strip() for text in column.values):
        column = Column(column.codes, [text.strip() for text in column.values])
    used = used_values(column)
    texts = [text for text, kept in zip(column.values, used, strict=True) if kept]
    first = column.values[int(column.codes[0])] if column.size else ""
    how = how_written(texts, first, rules.dates)
    if how is not None:
        moments = [microseconds(text, how) for text in column.values]
        bad = np.array([moment is None for moment in moments], dtype=np.bool_)
        values = np.array([moment or 0 for moment in moments], dtype=np.int64)
        return Checked(column, values, bad, reason, f"a time like {how.example!r:.40}")
    expected = "a time, a number as in the first row"
    if all(map(_INTEGER.fullmatch, column.values)):
        whole = np.array(list(map(int, column.values)), dtype=np.int64)
        none = np.zeros(whole.size, np.bool_)
        return Checked(column, whole, none, reason, expected, numeric=True)
    values_ = parsed(column.values, rules.decimal)
    if not np.isfinite(values_).any():
        expected = "a time: a number, or a date like 2024-03-01 12:30:00 or 1 Mar 2024"
    return Checked(column, values_, ~np.isfinite(values_), reason, expected, numeric=True)


def _in_one_unit(
    file: TableFile,
    table: RawTable,
    bad: BoolArray | None,
    times: npt.NDArray[np.generic],
    rules: Rules,
) -> npt.NDArray[np.generic]:
    locations = table.locations if bad is None else table.locations[~bad]
    try:
        return one_unit(times, rules.time_unit, lambda at: f"{file.unit} {locations[at]}")
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None


def _unset_times(times: npt.NDArray[Any]) -> tuple[str, ...]:
    """Report zeros and negative numbers among moments since 1970: probably missing times."""
    unset = int((times <= 0).sum())
    if not unset or not (times > 1e8).any():
        return ()
    return (f"{unset:,} times are 0 or less, such as {times[np.argmax(times <= 0)]}",)


def one_per_pair(
    user: IdArray, item: IdArray, time: npt.NDArray[np.generic] | None, keep: str
) -> IntArray:
    """Return the rows to keep, sorted by user and item: the first or last row of each pair.

    Args:
        user: (N,) numbers from 0.
        item: (N,) numbers from 0.
        time: (N,) times that order the rows of a pair, None for the order of the file.
        keep: ``first`` or ``last``.
    """
    width = int(item.max()) + 1 if item.size else 1
    kept = []
    for rows in by_users(user):
        key = user[rows].astype(np.int64) * width + item[rows]
        # lexsort is stable: rows with the same key and time stay in the order of the file.
        stable = np.argsort(key, kind="stable") if time is None else np.lexsort((time[rows], key))
        step = np.flatnonzero(np.diff(key[stable])) + 1
        if key.size:
            ends = (step - 1, [key.size - 1]) if keep == "last" else ([0], step)
            stable = stable[np.concatenate(ends)]
        kept.append(rows[stable])
    return np.concatenate(kept)
