"""The tab-separated tables beside a data set: ``users.tsv`` and ``items.tsv``.

UTF-8, one header line, no quoting, cells without tabs or line ends. The first column is the id in
the data set, 0 .. N-1, every id once, in any order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mmssl.errors import InputError
from mmssl.files import read_text


class Table(NamedTuple):
    """Rows of a table in the order of their ids."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> tuple[str, ...] | None:
        """One cell per row, None when there is no such column."""
        if name not in self.names:
            return None
        index = self.names.index(name)
        return tuple(row[index] for row in self.rows)


def read_table(path: Path, key: str, count: int) -> Table | None:
    """Table with ``count`` rows whose first column is called ``key``; None without a file.

    Raises:
        InputError: Another header, a row of another width, an id missing, repeated or no number.
    """
    if not os.path.lexists(path):
        return None
    text = read_text(path)
    # Not splitlines(): titles may hold the other characters it takes for line ends.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    names = tuple(lines[0].split("\t"))
    if names[0] != key:
        raise InputError(f"{path}: expected first column {key!r}, got {names[0]!r:.60}")
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
                f"{path}: line {number}: expected each {key} of 0 .. {count - 1} once, "
                f"got {row[0]!r:.60}"
            )
        rows[int(row[0])] = row
    return Table(names, tuple(rows[index] for index in range(count)))


def table_text(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Header and rows, numbered from 0 in the first column, as the text of a file."""
    lines = ["\t".join(names)]
    lines += ["\t".join((str(index), *row)) for index, row in enumerate(rows)]
    return "\n".join(lines) + "\n"
