"""Columns of text that come in batches: each distinct value once, and its number in each row."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmssl.data.importing.table import Column

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
            if part.stop > self._codes.size:  # one array that grows leaves no holes behind
                self._codes.resize(part.stop + part.stop // 2, refcheck=False)
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
