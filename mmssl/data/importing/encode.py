"""Columns that come in batches: numbers, or each distinct text once and its number in each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import blocks
from mmssl.data.importing.table import Column, Numbers

_MERGE = 1 << 22  # values that batches may bring before they are merged


class Encoder:
    """Numbers the cells of a column by first appearance, in memory that grows with the values.

    A batch is encoded on its own. The values of several batches are merged at once, when there are
    more new ones than distinct ones so far, so that every value is merged a few times only.
    """

    def __init__(self, rows: int = 0) -> None:
        """Create an empty column.

        Args:
            rows: Number of rows, if it is known.
        """
        self._values: Any = None  # array of pyarrow
        self._new: list[tuple[slice, Any]] = []  # rows of a batch, and its values
        self._codes = np.empty(rows, dtype=np.int32)
        self._size = 0

    def add(self, cells: Any) -> None:
        """Add the cells of a batch, an array of pyarrow: strings without null, encoded or not."""
        import pyarrow as pa

        for chunk in cells.chunks if isinstance(cells, pa.ChunkedArray) else [cells]:
            encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            part = slice(self._size, self._size + len(encoded))
            _grow(self._codes, part.stop)
            self._codes[part] = encoded.indices.to_numpy(zero_copy_only=False)
            self._new.append((part, encoded.dictionary.cast(pa.large_string())))
            self._size = part.stop
        known = 0 if self._values is None else len(self._values)
        if sum(len(values) for _, values in self._new) > max(known, _MERGE):
            self._merge()

    def column(self) -> Column:
        """Return the column; once.

        Raises:
            UnicodeDecodeError: A cell is not UTF-8.
        """
        self._merge()
        self._codes.resize(self._size, refcheck=False)
        return Column(self._codes, [] if self._values is None else self._values.to_pylist())

    def _merge(self) -> None:
        import pyarrow as pa

        if not self._new:
            return
        known = [] if self._values is None else [self._values]
        encoded = pa.concat_arrays(known + [values for _, values in self._new]).dictionary_encode()
        number = encoded.indices.to_numpy(zero_copy_only=False)
        start = sum(map(len, known))
        for part, values in self._new:
            self._codes[part] = number[start : start + len(values)][self._codes[part]]
            start += len(values)
        self._values, self._new = encoded.dictionary, []


class CellColumn:
    """A column of numbers as long as all batches are, else of texts."""

    def __init__(self, rows: int = 0) -> None:
        """Create an empty column.

        Args:
            rows: Number of rows, if it is known.
        """
        self._rows = rows
        self._numbers: npt.NDArray[Any] | None = None
        self._size = 0  # of the numbers
        self._texts: Encoder | None = None

    @property
    def is_text(self) -> bool:
        """Whether a batch of texts has been added."""
        return self._texts is not None

    def add_numbers(self, array: npt.NDArray[Any]) -> None:
        """Add a batch of numbers; all batches of numbers have the same type."""
        if self._texts is not None:
            self._add_as_texts(array)
            return
        if self._numbers is None:
            self._numbers = np.empty(self._rows, array.dtype)
        stop = self._size + array.size
        _grow(self._numbers, stop)
        self._numbers[self._size : stop] = array
        self._size = stop

    def add_texts(self, cells: Any) -> None:
        """Add a batch of texts, see :meth:`Encoder.add`; the numbers so far become texts."""
        if self._texts is None:
            self._texts = Encoder(self._rows)
            if self._numbers is not None:
                for part in blocks(self._size):
                    self._add_as_texts(self._numbers[part])
                self._numbers = None
        self._texts.add(cells)

    def column(self) -> Column:
        """Return the column; once.

        Raises:
            UnicodeDecodeError: A text is not UTF-8.
        """
        if self._texts is not None:
            return self._texts.column()
        if self._numbers is None:
            return Encoder().column()
        self._numbers.resize(self._size, refcheck=False)
        kind = np.int64 if self._numbers.dtype.kind in "iu" else np.float64
        return Column(None, Numbers(self._numbers.astype(kind, copy=False)))

    def _add_as_texts(self, array: npt.NDArray[Any]) -> None:
        import pyarrow as pa

        assert self._texts is not None
        self._texts.add(pa.array(array).cast(pa.string()))


class TextColumn:
    """A column of a text file: numbers where each cell is an integer as Python writes it.

    These take 8 bytes each, whereas distinct texts, such as times, take a hundred.
    """

    def __init__(self) -> None:
        """Create an empty column."""
        self._cells = CellColumn()

    def add(self, cells: Any) -> None:
        """Add a batch, a chunked array of pyarrow: strings without null."""
        numbers = None if self._cells.is_text else _integers(cells)
        if numbers is None:
            self._cells.add_texts(cells)
        else:
            self._cells.add_numbers(numbers)

    def column(self) -> Column:
        """Return the column; once."""
        return self._cells.column()


def _integers(cells: Any) -> npt.NDArray[np.int64] | None:
    """Return the cells as numbers, None if their texts would not be the same again."""
    import pyarrow as pa

    try:
        numbers = cells.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    found: npt.NDArray[np.int64] = numbers.to_numpy()
    return found if numbers.cast(cells.type).equals(cells) else None


def _grow(array: npt.NDArray[Any], size: int) -> None:
    """Lengthen an array in place where needed: one array that grows leaves no holes behind."""
    if size > array.size:
        array.resize(size + size // 8, refcheck=False)
