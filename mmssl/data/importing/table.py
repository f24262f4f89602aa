"""A few columns of a file, each as its distinct values and the rows that hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import IdArray
from mmssl.errors import InputError


class Numbers(Sequence[str]):
    """Values that a file holds as numbers; as a sequence they are texts.

    Attributes:
        array: (N,) int64 or float64.
    """

    def __init__(self, array: npt.NDArray[np.generic]) -> None:
        self.array = array

    def __len__(self) -> int:
        return int(self.array.size)

    def __iter__(self) -> Iterator[str]:
        return map(repr, self.array.tolist())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Numbers(self.array[index])
        return repr(self.array[index].item())


class Column(NamedTuple):
    """Cell n is ``values[at[n]]``; the cells of a log repeat, so the values are few."""

    at: IdArray | None  # (N,)
    """None for a column of numbers, of which cell n is ``values[n]``."""
    values: Sequence[str]

    @property
    def codes(self) -> IdArray:
        """(N,) position of each cell among the values."""
        return np.arange(len(self.values)) if self.at is None else self.at

    @property
    def size(self) -> int:
        """Number of rows N."""
        return len(self.values) if self.at is None else int(self.at.size)

    def cells(
        self, of_values: npt.NDArray[Any], rows: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[Any]:
        """Return what belongs to the value of each row, or of the rows that are True."""
        if rows is None:
            return of_values if self.at is None else of_values[self.at]
        return of_values[rows] if self.at is None else of_values[self.at[rows]]


class Fault(NamedTuple):
    """A row that can't be used."""

    location: int
    """Line of a text file, row of a Parquet file, from 1."""
    reason: str
    """What such rows are counted under."""
    message: str
    """What was expected and what was found."""


@dataclass(frozen=True)
class RawTable:
    """Columns of N rows as they stand in a file, nothing interpreted."""

    columns: tuple[Column, ...]
    locations: IdArray  # (N,)
    """Line or row of each, as in :class:`Fault`."""
    faults: list[Fault] = field(default_factory=list)
    """Rows that have another number of cells and are in none of the columns."""


class TableFile(Protocol):
    """A file of rows: text, JSON lines or Parquet."""

    path: Path
    sha256: str
    """SHA-256 (hex) of the file as stored; known after :meth:`read`."""
    unit: str
    """What a location is called: ``line`` or ``row``."""
    is_text: bool
    """Whether the columns are those of text, which may lack a header."""
    names: tuple[str, ...] | None
    """The header, None without one."""
    first: tuple[str, ...]
    """The first row of a text without a header, else empty."""
    width: int

    def read(self, positions: Sequence[int]) -> RawTable:
        """Read the columns at ``positions``, counted from 0; once."""
        ...

    def unfit_for_ids(self, position: int) -> str | None:
        """Return the type of a column that can't hold ids, None when it can."""
        ...


def read_bytes(path: Path) -> tuple[bytes, str]:
    """Return the content of a file and its SHA-256 (hex).

    Raises:
        InputError: It can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    return content, hashlib.sha256(content).hexdigest()
