"""The tab-separated tables of a data set: ``users.tsv`` and ``items.tsv``.

The files are UTF-8 with one header line and no quoting; cells contain no tabs or line breaks. The
first column contains each id of the data set, 0 .. N-1, exactly once in any order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mmssl.errors import InputError
from mmssl.files import read_text


class Table(NamedTuple):
    """Table with rows in the order of their ids."""

    names: tuple[str, ...]
    """Column names."""
    rows: tuple[tuple[str, ...], ...]
    """One cell per column in each row."""

    def column(self, name: str) -> tuple[str, ...] | None:
        """Return one cell per row, or None if the column does not exist."""
        if name not in self.names:
            return None
        index = self.names.index(name)
        return tuple(row[index] for row in self.rows)


def read_table(path: Path, key: str, count: int | None = None) -> Table | None:
    """Read a table, or return None if the file does not exist.

    Args:
        path: File to read.
        key: Required name of the first column.
        count: Required number of rows; None takes what is there.

    Raises:
        InputError: The header or a row does not match, or an id is missing, repeated or malformed.
    """
    if not os.path.lexists(path):
        return None
    text = read_text(path)
    # Not splitlines(), which also splits at characters that titles may contain.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    names = tuple(lines[0].split("\t"))
    if names[0] != key:
        raise InputError(f"{path}: expected first column {key!r}, got {names[0]!r:.60}")
    if count is None:
        count = len(lines) - 1
    if len(lines) - 1 != count:
        raise InputError(f"{path}: expected {count} rows, got {len(lines) - 1}")
    rows: dict[int, tuple[str, ...]] = {}
    for number, line in enumerate(lines[1:], start=2):
        row = tuple(line.split("\t"))
        if len(row) != len(names):
            raise InputError(f"{path}: line {number}: expected {len(names)} cells, got {len(row)}")
        known = row[0].isascii() and row[0].isdigit() and len(row[0]) <= 10
        if not known or int(row[0]) >= count or int(row[0]) in rows:
            raise InputError(
                f"{path}: line {number}: expected a unique {key} in 0 .. {count - 1}, "
                f"got {row[0]!r:.60}"
            )
        rows[int(row[0])] = row
    return Table(names, tuple(rows[index] for index in range(count)))


def table_text(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table, with row numbers from 0 as the first column."""
    lines = ["\t".join(names)]
    lines += ["\t".join((str(index), *row)) for index, row in enumerate(rows)]
    return "\n".join(lines) + "\n"
