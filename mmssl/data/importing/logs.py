"""Logs that are tables: text, JSON lines, Parquet; one file, part files or files of splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmssl.data.importing.arrow import ParquetFile
from mmssl.data.importing.assemble import Joining, describe_source, number_rows
from mmssl.data.importing.given import checked_splits, with_splits
from mmssl.data.importing.jsonl import JsonLinesFile
from mmssl.data.importing.lists import ListsFile
from mmssl.data.importing.options import Imported, ImportOptions, with_item_table
from mmssl.data.importing.roles import (
    NONE,
    Roles,
    column_name,
    find_roles,
    is_numbered,
    refuse_hidden_header,
    unused_columns,
    without_times,
)
from mmssl.data.importing.rows import Rows, usable_rows
from mmssl.data.importing.table import Column, RawTable, TableFile
from mmssl.data.importing.text import TextFile
from mmssl.data.importing.times import one_unit
from mmssl.errors import InputError

KINDS = ("csv", "tsv", "jsonl", "lists", "parquet")


@dataclass(frozen=True)
class Part:
    """A file of a log."""

    path: Path
    kind: str
    """One of :data:`KINDS`."""
    label: int | None = None
    """Split of all its rows: 0 train, 1 validation, 2 test."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Columns that the names of its directories hold: ``rating=3``."""


class _Read(NamedTuple):
    file: TableFile
    roles: Roles


def import_tables(
    parts: Sequence[Part],
    options: ImportOptions,
    *,
    name: str,
    layout: str,
    notes: Sequence[str] = (),
) -> Imported:
    """Import the files of a log.

    Args:
        parts: The files, in order.
        options: Options of the import.
        name: Name of the log unless the options have one.
        layout: Recorded as the format of the source.
        notes: What to tell about the source.

    Raises:
        InputError: A file can't be read, a row can't be used, or the files differ in columns.
    """
    read: list[_Read] = []
    whole = Joining()
    for part in parts:
        found, of_part = _read_part(part, options)
        if read:
            _check_same(read[0], found)
        read.append(found)
        whole.add(of_part)
    file, roles = read[0]
    told = [*notes, *unused_columns(file, roles)]
    try:
        rows = whole.rows()
        if len(read) > 1 and rows.dated is False and rows.time is not None:
            one_unit(rows.time, options.time_unit or None, lambda at: f"row {at + 1}")
    except InputError as error:
        raise InputError(f"{file.path.parent}: {error}") from None
    del whole, of_part  # the arrays of the rows are freed as soon as they are numbered
    if options.ordered:
        rows = rows._replace(time=np.arange(rows.user.size))
        told.append("times are the positions of the rows (--ordered)")
    names = [next((p.path.name for p in parts if p.label == n), "") for n in range(3)]
    rows = checked_splits(rows, names, options)
    if rows.label is None and not options.ordered:
        told += without_times(roles, options.columns)
    numbered = number_rows(
        options.name or name, rows, keep=options.keep, min_rating=options.min_rating
    )
    log, items, hashes = with_item_table(options, numbered.log, column_name(file, roles.item))
    data, more = with_splits(log, numbered.label, options)
    top = file.path.parent
    others = {_unique_name(one.file.path, top): one.file.sha256 for one in read[1:]}
    positions = roles._asdict()
    source = describe_source(layout, file, positions, rows, numbered, {**others, **hashes})
    table_notes = items.notes if items is not None else ()
    return Imported(data, source, {}, items, (*told, *rows.notes, *table_notes, *more))


def open_part(part: Part, options: ImportOptions) -> TableFile:
    """Open a file as its kind says."""
    dialect = options.dialect
    _refuse_options(part.kind, options)
    if part.kind == "parquet":
        options.refuse("parquet", "header")
        file: TableFile = ParquetFile(part.path)
    elif part.kind == "jsonl":
        options.refuse("jsonl", "header")
        file = JsonLinesFile(part.path, dialect.encoding)
    elif part.kind == "lists":
        file = ListsFile(part.path, dialect.encoding, header=bool(options.header))
    else:
        if part.kind == "tsv":
            dialect = replace(dialect, separator=dialect.separator or "\t")
        header = not is_numbered(options.columns) if options.header is None else options.header
        file = TextFile(part.path, dialect, header=header)
    return _WithConstants(file, part.constants) if part.constants else file


def _refuse_options(kind: str, options: ImportOptions) -> None:
    """Raise InputError for options that would have no effect on a kind of file."""
    given = [role for role in Roles._fields if options.columns.get(role) not in (None, NONE)]
    if kind == "lists" and given:
        raise InputError(f"{given[0]}-col has no effect for the format lists")
    written = options.dialect.separator is not None or options.dialect.quoted is not None
    if kind in ("lists", "jsonl", "parquet") and written and options.items is None:
        raise InputError(f"sep and quotes have no effect for the format {kind}")


def _read_part(part: Part, options: ImportOptions) -> tuple[_Read, Rows]:
    file = open_part(part, options)
    roles = Roles(0, 1, None, None) if part.kind == "lists" else find_roles(file, options.columns)
    if options.ordered:
        if options.columns.get("time") is not None:
            raise InputError("--ordered makes times of positions: expected no --time-col, got one")
        roles = roles._replace(time=None)
    if options.header is None:
        refuse_hidden_header(file, roles)
    rows = usable_rows(file, roles._asdict(), options.rules)
    if isinstance(file, ListsFile) and file.without:
        dropped = {**rows.dropped, "user without items": file.without}
        rows = rows._replace(dropped=dropped, rows_read=rows.rows_read + file.without)
    if part.label is not None:
        rows = rows._replace(label=np.full(rows.user.size, part.label, dtype=np.int64))
    return _Read(file, roles), rows


def _check_same(one: _Read, other: _Read) -> None:
    """Check that two files have the same columns, so that none is lost by joining them."""

    def columns(read: _Read) -> dict[str, str]:
        return {
            role: column_name(read.file, at)
            for role, at in read.roles._asdict().items()
            if at is not None
        }

    if columns(one) != columns(other):
        shown = [", ".join(f"{r} = {n}" for r, n in columns(read).items()) for read in (one, other)]
        raise InputError(
            f"{other.file.path}: expected the columns of {one.file.path.name} ({shown[0]}), got "
            f"{shown[1]}"
        )


def _unique_name(path: Path, top: Path) -> str:
    """Return a name for the record: parts in different directories may share theirs."""
    return path.name if path.parent == top else f"{path.parent.name}/{path.name}"


class _WithConstants:
    """A table with further columns, each of one value, from the names of its directories."""

    def __init__(self, file: TableFile, constants: Mapping[str, str]) -> None:
        self._file, self._values = file, list(constants.values())
        if file.names is None:
            raise InputError(
                f"{file.path}: expected a header, as directories name columns, got none"
            )
        self.path, self.unit, self.is_text, self.first = file.path, file.unit, False, file.first
        self.names: tuple[str, ...] | None = (*file.names, *constants)
        self.width = file.width + len(constants)

    @property
    def sha256(self) -> str:
        return self._file.sha256

    @sha256.setter
    def sha256(self, value: str) -> None:
        self._file.sha256 = value

    def read(self, positions: Sequence[int]) -> RawTable:
        inner = [at for at in positions if at < self._file.width]
        table = self._file.read(inner)
        columns = []
        for at in positions:
            if at < self._file.width:
                columns.append(table.columns[inner.index(at)])
            else:
                value = self._values[at - self._file.width]
                codes = np.zeros(table.locations.size, dtype=np.int64)
                columns.append(Column(codes, [value]))
        return RawTable(tuple(columns), table.locations, table.faults)

    def unfit_for_ids(self, position: int) -> str | None:
        return self._file.unfit_for_ids(position) if position < self._file.width else None
