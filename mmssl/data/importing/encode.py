"""Columns of text that come in batches: each distinct value once, and its number in each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.data.importing.table import Column

_MERGE = 1 << 22  # values that batches may bring before they are merged


class Encoder:
    """Numbers the cells of a column by first appearance, in memory that grows with the values.

    A batch is encoded on its own. The values of several batches are merged at once, when there are
    more new ones than distinct ones so far, so that every value is merged a few times only.
    """

    def __init__(self) -> None:
        self._values: Any = None  # array of pyarrow
        self._new: list[Any] = []
        self._codes: list[npt.NDArray[np.int32]] = []

    def add(self, cells: Any) -> None:
        """Add the cells of a batch, an array of pyarrow: strings without null, encoded or not."""
        import pyarrow as pa

        for chunk in cells.chunks if isinstance(cells, pa.ChunkedArray) else [cells]:
            encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            self._new.append(encoded.dictionary.cast(pa.large_string()))
            self._codes.append(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32))
        known = 0 if self._values is None else len(self._values)
        if sum(map(len, self._new)) > max(known, _MERGE):
            self._merge()

    def column(self) -> Column:
        """Return the column.

        Raises:
            UnicodeDecodeError: A cell is not UTF-8.
        """
        if not self._codes:
            return Column(np.empty(0, dtype=np.int32), [])
        self._merge()
        values = self._values.to_pylist()
        return Column(np.concatenate(self._codes), values)

    def _merge(self) -> None:
        import pyarrow as pa

        if not self._new:
            return
        known = [] if self._values is None else [self._values]
        encoded = pa.concat_arrays([*known, *self._new]).dictionary_encode()
        number = encoded.indices.to_numpy(zero_copy_only=False)
        start = sum(map(len, known))
        first = len(self._codes) - len(self._new)
        for at, values in enumerate(self._new, start=first):
            self._codes[at] = number[start : start + len(values)][self._codes[at]]
            start += len(values)
        self._values, self._new = encoded.dictionary, []
