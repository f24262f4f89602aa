"""Matrices of users and items as ``scipy.sparse.save_npz`` writes them.

A cell of the matrix is an interaction: its row the user, its column the item, its value the rating
unless all are equal. The numbers of rows and columns are the ids.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import MAX_ID
from mmssl.data.importing.rows import Rows
from mmssl.data.importing.table import Column, Numbers, read_bytes
from mmssl.errors import InputError
from mmssl.files import MAX_TEXT_BYTES

_NAMES = {
    "csr": ("indptr", "indices"),
    "csc": ("indptr", "indices"),
    "coo": ("row", "col"),
}


class Matrix:
    """The cells of a matrix file.

    Attributes:
        shape: Number of users and items.
        rows: One row for each stored cell that is not zero.
    """

    unit = "cell"
    names: tuple[str, ...] | None = ("row", "column", "value")
    width = 3

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            InputError: It is no sparse matrix, is damaged, or is a pickle.
        """
        self.path = path
        self.sha256 = read_bytes(path)[1]
        arrays = _arrays(path)
        kind = _format(path, arrays)
        missing = [n for n in (*_NAMES[kind], "shape", "data") if n not in arrays]
        if missing:
            raise InputError(f"{path}: expected the array {missing[0]!r}, got {_listed(arrays)}")
        shape = arrays["shape"]
        if (
            shape.shape != (2,)
            or shape.dtype.kind not in "iu"
            or not (0 < int(shape[0]) <= MAX_ID and 0 < int(shape[1]) <= MAX_ID)
        ):
            raise InputError(
                f"{path}: expected a matrix of 1 .. {MAX_ID} rows and columns, got shape "
                f"{shape.tolist()!r:.40}"
            )
        self.shape = (int(shape[0]), int(shape[1]))
        row, col = _positions(path, kind, arrays, self.shape)
        values = arrays["data"]
        if values.dtype.kind not in "biuf" or values.shape != row.shape:
            raise InputError(
                f"{path}: expected {row.size} numbers in 'data', got {values.dtype} of shape "
                f"{values.shape}"
            )
        for name, ids, size in (("row", row, self.shape[0]), ("column", col, self.shape[1])):
            if ids.size and (ids.min() < 0 or ids.max() >= size):
                wrong = int(ids.min() if ids.min() < 0 else ids.max())
                raise InputError(f"{path}: expected {name}s in 0 .. {size - 1}, got {wrong}")
        self.rows = _rows(path, row, col, values)


def _rows(
    path: Path,
    row: npt.NDArray[np.int64],
    col: npt.NDArray[np.int64],
    values: npt.NDArray[np.generic],
) -> Rows:
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(f"{path}: expected finite values, got {numbers[~np.isfinite(numbers)][0]}")
    stored = numbers != 0
    kept = np.flatnonzero(stored)
    if not kept.size:
        raise InputError(f"{path}: expected at least one cell that is not zero, got none")
    rating = None if (numbers[kept] == numbers[kept[0]]).all() else numbers[kept]
    dropped = {} if kept.size == row.size else {"stored zero": int(row.size - kept.size)}
    return Rows(
        user=_numbers(row[kept]),
        item=_numbers(col[kept]),
        rating=rating,
        rows_read=int(row.size),
        dropped=dropped,
    )


def _numbers(ids: npt.NDArray[np.int64]) -> Column:
    distinct, codes = np.unique(ids, return_inverse=True)
    return Column(codes.astype(np.int64), list(Numbers(distinct)))


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_TEXT_BYTES:
            raise InputError(f"{path}: expected at most {MAX_TEXT_BYTES} bytes, got {size}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types for damaged content
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path}: expected arrays of numbers, got Python objects, which are never unpickled"
            ) from None
        raise InputError(
            f"{path}: expected a matrix of scipy.sparse.save_npz, got {type(error).__name__}"
        ) from None


def _format(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    stored = arrays.get("format")
    if stored is None or stored.shape != ():
        raise InputError(
            f"{path}: expected a matrix of scipy.sparse.save_npz, got arrays {_listed(arrays)}"
        )
    value = stored.item()
    kind = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    if kind not in _NAMES:
        raise InputError(
            f"{path}: expected the format csr, csc or coo, got {kind!r:.20}: convert it with "
            ".tocsr()"
        )
    return kind


def _positions(
    path: Path, kind: str, arrays: dict[str, npt.NDArray[Any]], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    first, second = (arrays[name] for name in _NAMES[kind])
    for name, array in zip(_NAMES[kind], (first, second), strict=True):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"{path}: expected integers in {name!r}, got {array.dtype} of shape {array.shape}"
            )
    one, other = first.astype(np.int64), second.astype(np.int64)
    if kind == "coo":
        if one.shape != other.shape:
            raise InputError(
                f"{path}: expected as many rows as columns, got {one.size}, {other.size}"
            )
        return one, other
    size = shape[0] if kind == "csr" else shape[1]
    lengths = np.diff(one)
    if one.size != size + 1 or one[0] != 0 or one[-1] != other.size or (lengths < 0).any():
        raise InputError(
            f"{path}: expected {size + 1} ascending pointers from 0 to {other.size} in 'indptr', "
            f"got {one.size}"
        )
    major = np.repeat(np.arange(size), lengths)
    return (major, other) if kind == "csr" else (other, major)


def _listed(arrays: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(arrays)[:8]))[:200] or "none"
