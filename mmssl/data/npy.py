"""Feature matrices from ``.npy`` files of strangers: nothing is unpickled, no header is trusted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import BoolArray, FloatArray, first_non_finite
from mmssl.errors import InputError
from mmssl.files import open_regular

_MAGIC = b"\x93NUMPY"
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyHeader(NamedTuple):
    """What a file says of its array, checked against the size of the file."""

    shape: tuple[int, int]
    fortran_order: bool
    dtype: np.dtype[np.generic]
    offset: int


def read_header(path: Path) -> NpyHeader:
    """Header of a matrix of numbers; reads no data and allocates nothing for it.

    Raises:
        InputError: Not a ``.npy`` file, not a 2-D matrix of real numbers, or not as long as its
            header says.
    """
    shape, fortran_order, dtype, offset, size = _read_start(path)
    if dtype.kind not in "fiub":
        raise InputError(f"{path}: expected a matrix of real numbers, got dtype {dtype}")
    if len(shape) != 2:
        raise InputError(f"{path}: expected shape (items, d), got {tuple(shape)!s:.60}")
    rows, columns = (int(n) for n in shape)
    if rows < 1 or columns < 1:
        raise InputError(f"{path}: expected at least one row and one column, got {(rows, columns)}")
    expected = rows * columns * dtype.itemsize  # Python ints: can't overflow
    if size - offset != expected:
        fault = "truncated: " if size - offset < expected else ""
        raise InputError(
            f"{path}: {fault}expected {_shown(expected)} bytes of data for shape "
            f"({_shown(rows)}, {_shown(columns)}), "
            f"got {size - offset}"
        )
    return NpyHeader((rows, columns), bool(fortran_order), dtype, offset)


def read_features(path: Path) -> FloatArray:
    """Matrix of a ``.npy`` file as (rows, columns) float32, C-contiguous and finite.

    Raises:
        InputError: As :func:`read_header`, and for a NaN, an infinity or a number beyond float32.
    """
    header = read_header(path)
    try:
        raw = _read_data(path, header)
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is told below
            rows = np.ascontiguousarray(raw, dtype=np.float32)
    except MemoryError:
        raise InputError(
            f"{path}: expected an array that fits memory, got shape {header.shape}"
        ) from None
    where = first_non_finite(rows)
    if where is not None:
        raise InputError(
            f"{path}: expected finite float32 values, got {raw[where]} at row {where[0]}, "
            f"column {where[1]}"
        )
    return rows


def _read_data(path: Path, header: NpyHeader) -> npt.NDArray[np.generic]:
    """The array behind a header, in memory: a mapped file that shrinks would end the process."""
    count = header.shape[0] * header.shape[1]
    with open_regular(path) as file:
        file.seek(header.offset)
        flat = np.fromfile(file, dtype=header.dtype, count=count)
    if flat.size != count:
        raise InputError(f"{path}: expected {count} numbers, got {flat.size}: the file has changed")
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")


def read_mask(path: Path, num_items: int) -> BoolArray:
    """Vector of a ``.npy`` file as (num_items,) booleans.

    Raises:
        InputError: Not a ``.npy`` file of ``num_items`` booleans.
    """
    shape, _, dtype, offset, size = _read_start(path)
    if dtype != np.bool_ or tuple(shape) != (num_items,):
        raise InputError(
            f"{path}: expected {num_items} booleans, got dtype {dtype}, shape {tuple(shape)}"
        )
    if size - offset != num_items:
        raise InputError(
            f"{path}: expected {num_items} bytes of data, got {size - offset} (truncated?)"
        )
    # Any byte but 0 is True: comparing leaves no other in memory.
    return np.fromfile(path, dtype=np.uint8, offset=offset) != 0


def read_records(
    path: Path, kinds: Mapping[str, Sequence[str]], required: Sequence[str]
) -> npt.NDArray[np.void]:
    """A vector of records from a ``.npy`` file.

    Args:
        path: The file.
        kinds: Field -> the dtypes it may have, e.g. ``<i4``.
        required: Fields that must be there.

    Raises:
        InputError: Not a ``.npy`` file, other fields, or not as long as its header says.
    """
    shape, _, dtype, offset, size = _read_start(path)
    fields = {name: str(kind[0].str) for name, kind in (dtype.fields or {}).items()}
    known = all(kind in kinds.get(name, ()) for name, kind in fields.items())
    packed = dtype.itemsize == sum(np.dtype(kind).itemsize for kind in fields.values())
    if not known or not packed or not set(required) <= set(fields) or len(shape) != 1:
        raise InputError(
            f"{path}: expected a vector of records with {', '.join(required)} among "
            f"{', '.join(kinds)}, got shape {tuple(shape)}, dtype {dtype}"
        )
    if size - offset != int(shape[0]) * dtype.itemsize:
        raise InputError(f"{path}: expected {shape[0]} records, got {size - offset} bytes of them")
    records: npt.NDArray[np.void] = np.fromfile(path, dtype=dtype, offset=offset)
    return records


def _read_start(path: Path) -> tuple[Any, bool, np.dtype[np.generic], int, int]:
    """(shape, fortran_order, dtype, offset of the data, size of the file), nothing unpickled."""
    try:
        with open_regular(path) as file:
            start = file.read(len(_MAGIC))
            if start != _MAGIC:
                raise InputError(f"{path}: expected a .npy array, got {_guess(start)}")
            file.seek(0)
            shape, fortran_order, dtype = _parse_header(path, file)
            offset = file.tell()
            size = file.seek(0, 2)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    if dtype.hasobject:
        raise InputError(f"{path}: holds Python objects; refused (never unpickled)")
    return shape, fortran_order, dtype, offset, size


def _parse_header(path: Path, file: BinaryIO) -> tuple[Any, bool, np.dtype[np.generic]]:
    """(shape, fortran_order, dtype) as the file has them; leaves ``file`` where the data starts."""
    try:
        version = np.lib.format.read_magic(file)
        if version in _HEADER_READERS:
            with warnings.catch_warnings():
                # Odd text makes NumPy and the parser warn; it is read or refused all the same.
                warnings.simplefilter("ignore")
                return _HEADER_READERS[version](file)
    except OSError:
        raise
    except Exception:
        # NumPy hands the header to literal_eval, tokenize and dtype(), each of which has
        # exceptions of its own for text it wasn't made for: TokenError, RecursionError, ...
        raise InputError(f"{path}: expected a .npy header, got one NumPy can't read") from None
    # Version 3 exists for records with non-Latin field names only.
    shown = ".".join(map(str, version))
    raise InputError(f"{path}: expected .npy format 1.0 or 2.0, got {shown}")


def _shown(number: int) -> str:
    return str(number) if number < 10**30 else "far too many"


def _guess(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start[:1] == b"\x80":
        return "a pickle; refused (never unpickled)"
    if start[:2] == b"PK":
        return "a zip archive (.npz?)"
    return "something else"
