"""A few columns of a file, each as its different values and where they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mmssl.data.dataset import IntArray
from mmssl.errors import InputError


class Column(NamedTuple):
    """Cell n of the column is ``values[codes[n]]``; a log repeats its ids, so values are few."""

    codes: IntArray  # (N,)
    values: list[str]


class Fault(NamedTuple):
    """A row that can't be used."""

    place: int
    """Line of a text file, row of another, from 1."""
    reason: str
    """To count by."""
    message: str
    """Expected and got."""


@dataclass(frozen=True)
class RawTable:
    """Columns of N rows as they stand in a file, nothing interpreted."""

    columns: tuple[Column, ...]
    num_rows: int
    places: IntArray | None
    """(N,) line or row of each; None when the reader was too quick to notice."""
    faults: list[Fault] = field(default_factory=list)
    """Rows that have another number of cells and are in none of the columns."""


class TableFile(Protocol):
    """A file of rows: text or Parquet."""

    path: Path
    sha256: str
    unit: str
    """What a place is called: ``line`` or ``row``."""
    names: tuple[str, ...] | None
    """The header, None without one."""
    first: tuple[str, ...]
    """The first row that isn't the header, to say what is there; empty without rows."""
    width: int

    def read(self, places: Sequence[int], *, exact: bool = False) -> RawTable:
        """The columns at ``places``; with ``exact`` the place of each row is known."""
        ...

    def unfit_for_ids(self, place: int) -> str | None:
        """The type of a column that can't hold ids, None when it can."""
        ...


class Encoder:
    """Builds a :class:`Column` from pieces."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._parts: list[IntArray] = []

    def add(self, cells: Sequence[str]) -> None:
        """Appends cells."""
        codes = self._codes
        for value in dict.fromkeys(cells):
            codes.setdefault(value, len(codes))
        self._parts.append(np.fromiter(map(codes.__getitem__, cells), np.int64, len(cells)))

    def column(self) -> Column:
        """All that was added."""
        parts = self._parts or [np.empty(0, dtype=np.int64)]
        return Column(np.concatenate(parts), list(self._codes))


def read_bytes(path: Path) -> tuple[bytes, str]:
    """Content of a file and its SHA-256 (hex).

    Raises:
        InputError: It can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    return content, hashlib.sha256(content).hexdigest()
