"""Lines of a user and its items: ``user item item ...``.

LightGCN, NGCF and Yelp2018 are distributed so, MicroLens with a tab after the user. Ids are
separated by blanks, tabs, commas or semicolons; brackets and quotes around a list don't count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmssl.data.importing.decode import whole_lines
from mmssl.data.importing.sources import open_stream
from mmssl.data.importing.table import Column, RawTable
from mmssl.errors import InputError

_BETWEEN = re.compile(r"[\s,;\[\](){}\"']+")
_SAMPLE = 1000  # lines whose shape is judged
_WIDE = 6  # cells of a line that is a list rather than a user, item, rating, time and one more


def seems_lists(start: bytes) -> bool | None:
    """Return whether a text seems to be lines of a user and its items, judged by its start.

    It does if its cells are integers between blanks or tabs, no user has two lines, and the lines
    differ in length, or a tab separates the user from integers with blanks between. Lines of one
    length may as well be rows of a log without a header; the answer is None then.
    """
    lines, rows = _integers(start)
    if not rows:
        return False
    widths = {len(row) for row in rows}
    if max(widths) < 3 or len({row[0] for row in rows}) < len(rows):
        return False
    tabbed = all(line.count("\t") == 1 and len(line.split("\t")[0].split()) == 1 for line in lines)
    return True if len(widths) > 1 or tabbed else None


def is_integers(start: bytes) -> bool:
    """Return whether all cells of a text are integers between blanks or tabs."""
    return bool(_integers(start)[1])


def narrow(start: bytes) -> bool:
    """Return whether the first line may be a user, item, rating, time and one more."""
    return len(start.lstrip().split(b"\n")[0].split()) < _WIDE


def _integers(start: bytes) -> tuple[list[str], list[list[str]]]:
    """Return the lines and cells of the start of a text; none if a cell is no integer."""
    text = start.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = [line for line in text.splitlines()[:_SAMPLE] if line.strip()]
    if len(start) >= 1 << 16 and len(lines) > 1:
        lines = lines[:-1]  # the last one may be cut
    rows = [line.split() for line in lines]
    whole = all(cell.isascii() and cell.isdecimal() for row in rows for cell in row)
    return (lines, rows) if whole else ([], [])


class ListsFile:
    """Lines of a user and its items as a table of two columns, one row for each item.

    Attributes:
        without: Number of lines that hold a user only.
    """

    unit = "line"
    is_text = False
    names: tuple[str, ...] | None = ("user", "items")
    first: tuple[str, ...] = ()
    width = 2

    def __init__(self, path: Path, encoding: str, *, header: bool = False) -> None:
        """Read the file.

        Args:
            path: A text, see :func:`~mmssl.data.importing.sources.open_stream`.
            encoding: Its encoding.
            header: Whether the first line holds names.

        Raises:
            InputError: It can't be read, or no line holds a user and an item.
        """
        self.path = path
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        owner: list[int] = []
        lengths: list[int] = []
        lines: list[int] = []
        codes: list[int] = []
        self.without = 0
        with open_stream(path) as stream:
            blocks = whole_lines(stream, encoding)
            text = (line for block in blocks for line in block.decode().split("\n")[:-1])
            for number, line in enumerate(text, start=1):
                cells = [cell for cell in _BETWEEN.split(line) if cell]
                if not cells or (header and number == 1):
                    continue
                if len(cells) == 1:
                    self.without += 1
                    continue
                owner.append(users.setdefault(cells[0], len(users)))
                lengths.append(len(cells) - 1)
                lines.append(number)
                codes += [items.setdefault(cell, len(items)) for cell in cells[1:]]
            self.sha256 = stream.sha256()
        if not codes:
            raise InputError(f"{path}: expected lines of a user and its items, got no such line")
        user = np.repeat(np.array(owner, dtype=np.int64), lengths)
        self._columns = (
            Column(user, list(users)),
            Column(np.array(codes, dtype=np.int64), list(items)),
        )
        self._locations = np.repeat(np.array(lines, dtype=np.int64), lengths)

    def read(self, positions: Sequence[int]) -> RawTable:
        """Return the columns at ``positions``."""
        return RawTable(tuple(self._columns[at] for at in positions), self._locations)

    def unfit_for_ids(self, position: int) -> str | None:
        """Return None: any text may be an id."""
        return None
