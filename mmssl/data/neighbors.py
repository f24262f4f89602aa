"""A modality given as a graph: the similar items of every item.

Legend: E edges of the graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.columns import id_column, number_column
from mmssl.errors import InputError


class Neighbors(NamedTuple):
    """Edges of one modality's item graph, sorted by (row, col), each edge once, no loops."""

    row: npt.NDArray[np.int64]  # (E,) item
    col: npt.NDArray[np.int64]  # (E,) its neighbor
    value: npt.NDArray[np.float32] | None = None  # (E,) > 0; None means 1

    @classmethod
    def from_edges(cls, row: Any, col: Any, value: Any = None) -> Neighbors:
        """Sort edges that are in any order.

        Args:
            row: (E,) integers of any dtype and array type, see :func:`mmssl.columns.id_column`.
            col: (E,) integers, likewise.
            value: (E,) real numbers of any dtype and array type, or None.

        Raises:
            InputError: Not vectors of one length, or not of integers and real numbers.
        """
        rows, cols = id_column("row", row), id_column("col", col)
        values = None if value is None else number_column("value", value)
        for name, array in (("row", rows), ("col", cols), ("value", values)):
            if array is not None and (array.ndim != 1 or array.shape != rows.shape):
                raise InputError(
                    f"{name}: expected a vector of {rows.size} numbers, got shape {array.shape}"
                )
        order = np.lexsort((cols, rows))
        with np.errstate(over="ignore"):  # what becomes infinite is refused by the check
            values = None if values is None else values[order].astype(np.float32)
        return cls(rows[order].astype(np.int64), cols[order].astype(np.int64), values)

    def check(self, num_items: int) -> None:
        """Check ids, order and values.

        Raises:
            InputError: One line that names the array, what was expected and what was found.
        """
        for name, array, dtype in zip(
            self._fields, self, (np.int64, np.int64, np.float32), strict=True
        ):
            if array is None and name == "value":
                continue
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
                raise InputError(f"{name}: expected a vector of {np.dtype(dtype)}, see from_edges")
            if array.size != self.row.size:
                raise InputError(f"{name}: expected {self.row.size} numbers, got {array.size}")
        for name, ids in (("row", self.row), ("col", self.col)):
            outside = np.flatnonzero((ids < 0) | (ids >= num_items))
            if outside.size:
                raise InputError(
                    f"{name}: expected items in 0 .. {num_items - 1}, got {int(ids[outside[0]])}"
                )
        loops = np.flatnonzero(self.row == self.col)
        if loops.size:
            item = int(self.row[loops[0]])
            raise InputError(
                f"expected neighbors other than the item itself, got item {item} as its own "
                f"neighbor ({loops.size} such edges)"
            )
        steps = np.diff(self.row * num_items + self.col)
        if (steps < 0).any():
            raise InputError("row: expected edges sorted by (row, col), see from_edges")
        if (steps == 0).any():
            at = int(np.argmin(steps != 0))
            raise InputError(
                f"expected every edge once, got item {self.row[at]} with neighbor {self.col[at]} "
                "twice"
            )
        if self.value is not None:
            wrong = np.flatnonzero(~((self.value > 0) & np.isfinite(self.value)))
            if wrong.size:
                at = int(wrong[0])
                raise InputError(
                    f"value: expected positive finite numbers, got {self.value[at]} for item "
                    f"{self.row[at]} and neighbor {self.col[at]}"
                )

    def of_items(self, items: npt.NDArray[np.int64], num_items: int) -> Neighbors:
        """Keep the edges between some items and give these new ids, their positions in ``items``.

        Args:
            items: Distinct old ids; their positions are the new ids.
            num_items: Number of old ids.
        """
        position = np.full(num_items, -1, np.int64)
        position[items] = np.arange(items.size)
        row, col = position[self.row], position[self.col]
        keep = (row >= 0) & (col >= 0)
        value = None if self.value is None else self.value[keep]
        return Neighbors.from_edges(row[keep], col[keep], value)
