"""Safe reading of untrusted ``.npy`` files, without pickle and with verified headers; writing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import blocks
from mmssl.data.dataset import USABLE, BoolArray, FeatureArray, first_unusable
from mmssl.errors import InputError
from mmssl.files import open_regular

MAPPED_FROM = 1 << 28
"""Bytes of a file of features from which it is mapped into memory instead of read."""

_MAGIC = b"\x93NUMPY"
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyHeader(NamedTuple):
    """Header of a matrix, consistent with the size of its file."""

    shape: tuple[int, int]
    """Number of rows and columns."""
    fortran_order: bool
    """Whether the data is stored column by column."""
    dtype: np.dtype[np.generic]
    """Type of the elements."""
    offset: int
    """Position of the data in the file, in bytes."""


def read_header(path: Path) -> NpyHeader:
    """Read the header of a numeric matrix without reading or allocating its data.

    Raises:
        InputError: The file is not a ``.npy`` file, not a 2-D matrix of real numbers, or its length
            contradicts the header.
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


def map_features(path: Path) -> FeatureArray | None:
    """Map a matrix of float16 or float32 in C order into memory; None for any other.

    The mapping is private: what is written to it stays in this process. A file that is cut while
    it is mapped ends the process; one that is replaced, as ``mmssl features`` does, stays mapped.

    Raises:
        InputError: :func:`read_header` fails, or the process may not map so much.
    """
    header = read_header(path)
    if header.fortran_order or header.dtype.str not in ("<f2", "<f4"):
        return None
    with open_regular(path) as file:
        try:
            return np.memmap(file, header.dtype, "c", header.offset, header.shape)
        except OSError as error:
            raise InputError(
                f"{path}: expected a matrix that fits in memory, got {os.path.getsize(path)} "
                f"bytes, which can't be mapped: {error.strerror}"
            ) from error


def open_features(path: Path) -> FeatureArray:
    """Map a matrix into memory where :func:`map_features` can, else read it.

    Raises:
        InputError: As :func:`map_features` and :func:`read_features`; what is mapped is not
            checked.
    """
    mapped = map_features(path)
    return read_features(path) if mapped is None else mapped


def read_features(path: Path) -> FeatureArray:
    """Read a matrix as (rows, columns) float32, C-contiguous and finite.

    A file of :data:`MAPPED_FROM` bytes or more that holds float16 or float32 is mapped into memory
    as it is (:func:`map_features`).

    Raises:
        InputError: :func:`read_header` fails, the matrix does not fit in memory, or a value is NaN,
            infinite or above :data:`~mmssl.data.dataset.MAX_FEATURE`.
    """
    header = read_header(path)
    if os.path.getsize(path) >= MAPPED_FROM and (mapped := map_features(path)) is not None:
        check_usable(path, mapped)
        return mapped
    try:
        raw = _read_data(path, header)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported below
            rows = np.ascontiguousarray(raw, dtype=np.float32)
    except MemoryError:
        raise InputError(
            f"{path}: expected an array that fits in memory, got shape {header.shape}"
        ) from None
    check_usable(path, rows, raw)
    return rows


def check_usable(
    path: Path, rows: FeatureArray, raw: npt.NDArray[np.generic] | None = None, first: int = 0
) -> None:
    """Check the values of a matrix, or of some rows of it.

    Args:
        path: Its file.
        rows: (N, d) values.
        raw: The values in the file, if these are others.
        first: Number of the first row.

    Raises:
        InputError: One is not :data:`mmssl.data.dataset.USABLE`.
    """
    where = first_unusable(rows)
    if where is not None:
        got = (rows if raw is None else raw)[where]
        place = f"row {first + where[0]}, column {where[1]}"
        raise InputError(f"{path}: expected values that are {USABLE}, got {got} at {place}")


def _read_data(path: Path, header: NpyHeader) -> npt.NDArray[np.generic]:
    """Read the data into memory; if a mapped file shrank, SIGBUS would kill the process."""
    count = header.shape[0] * header.shape[1]
    with open_regular(path) as file:
        file.seek(header.offset)
        flat = np.fromfile(file, dtype=header.dtype, count=count)
    if flat.size != count:
        raise InputError(
            f"{path}: expected {count} numbers, got {flat.size}: the file changed while it was read"
        )
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")


def read_mask(path: Path, num_items: int) -> BoolArray:
    """Read a vector of (num_items,) booleans.

    Raises:
        InputError: The file is not a ``.npy`` file of ``num_items`` booleans.
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
    # A stored boolean may be any byte; comparing normalizes it to 0 or 1.
    return np.fromfile(path, dtype=np.uint8, offset=offset) != 0


class RecordFile(NamedTuple):
    """A vector of records in a ``.npy`` file whose header was checked."""

    path: Path
    dtype: np.dtype[Any]
    size: int
    """Number of records."""
    offset: int
    """Position of the first record in the file, in bytes."""

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.void]]]:
        """Yield the places and the records of one block after the other.

        Raises:
            InputError: The file was cut while it was read.
        """
        yield from zip(blocks(self.size), self.read(0, self.size), strict=True)

    def read(self, first: int, last: int) -> Iterator[npt.NDArray[np.void]]:
        """Yield the records of [first, last) in blocks.

        Raises:
            InputError: As :meth:`blocks`.
        """
        with open_regular(self.path) as file:
            file.seek(self.offset + first * self.dtype.itemsize)
            for part in blocks(last - first):
                records = np.fromfile(file, dtype=self.dtype, count=part.stop - part.start)
                if records.size != part.stop - part.start:
                    raise InputError(
                        f"{self.path}: expected {self.size} records, got fewer: the file changed "
                        "while it was read"
                    )
                yield records

    def map(self) -> npt.NDArray[np.void]:
        """Map all records into memory, read-only.

        Raises:
            InputError: The file can't be mapped.
        """
        with open_regular(self.path) as file:
            try:
                return np.memmap(file, self.dtype, "r", self.offset, (self.size,))
            except OSError as error:
                raise InputError(
                    f"{self.path}: can't be mapped into memory: {error.strerror}"
                ) from error


def open_records(
    path: Path, kinds: Mapping[str, Sequence[str]], required: Sequence[str]
) -> RecordFile:
    """Check the header of a vector of records.

    Args:
        path: File to read.
        kinds: Field name -> allowed dtypes, such as ``<i4``.
        required: Names of the fields that must be present.

    Raises:
        InputError: The file is not a ``.npy`` file, has other fields, or its length contradicts the
            header.
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
        raise InputError(
            f"{path}: expected {shape[0]} records of {dtype.itemsize} bytes, got "
            f"{size - offset} bytes"
        )
    return RecordFile(path, dtype, int(shape[0]), offset)


def save_records(
    path: Path,
    columns: Mapping[str, npt.NDArray[Any]],
    kinds: Sequence[tuple[str, str]],
    written: Callable[[Any], object] = lambda data: None,
) -> None:
    """Write columns as a vector of records, in blocks; the same bytes as :func:`save_array`.

    Args:
        path: The file.
        columns: Field name -> (N,) values.
        kinds: Field names and dtypes, in order.
        written: Called with the bytes of every block, without the header.

    Raises:
        OSError: The file can't be written.
    """
    dtype = np.dtype(list(kinds))
    size = next(iter(columns.values())).size
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (size,),
    }
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in blocks(size):
            records: npt.NDArray[np.void] = np.empty(part.stop - part.start, dtype=dtype)
            for name, _ in kinds:
                records[name] = columns[name][part]
            data = records.view(np.uint8).data
            written(data)
            file.write(data)


def _read_start(path: Path) -> tuple[Any, bool, np.dtype[np.generic], int, int]:
    """Return (shape, fortran_order, dtype, offset of the data, size of the file)."""
    try:
        with open_regular(path) as file:
            start = file.read(len(_MAGIC))
            if start != _MAGIC:
                raise InputError(f"{path}: expected a .npy array, got {_guess(start)}")
            file.seek(0)
            shape, fortran_order, dtype = parse_header(path, file)
            offset = file.tell()
            size = file.seek(0, 2)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    if dtype.hasobject:
        raise InputError(
            f"{path}: expected plain numbers, got Python objects, which are never unpickled"
        )
    return shape, fortran_order, dtype, offset, size


def parse_header(path: Path, file: BinaryIO | IO[bytes]) -> tuple[Any, bool, np.dtype[np.generic]]:
    """Return (shape, fortran_order, dtype) as the file states them; read up to the data.

    Raises:
        InputError: Not a header that NumPy can read.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version in _HEADER_READERS:
            with warnings.catch_warnings():
                # NumPy warns about unusual headers; they are either valid or rejected below.
                warnings.simplefilter("ignore")
                return _HEADER_READERS[version](file)
    except OSError:
        raise
    except Exception:
        # NumPy passes the header to literal_eval, tokenize and dtype(), which raise many exception
        # types for malformed text: TokenError, RecursionError, ...
        raise InputError(f"{path}: expected a valid .npy header, got a malformed one") from None
    # Version 3.0 is only needed for records with non-Latin field names.
    shown = ".".join(map(str, version))
    raise InputError(f"{path}: expected .npy format 1.0 or 2.0, got {shown}")


def _shown(number: int) -> str:
    return str(number) if number < 10**30 else "far too many"


def _guess(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start[:1] == b"\x80":
        return "a pickle, which is never unpickled"
    if start[:2] == b"PK":
        return "a zip archive (.npz?)"
    return "something else"


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a ``.npy`` file.

    ``np.save`` writes through a C stream and ignores the error if the disk is full when the last
    4 KB are flushed, which leaves a file that is cut short.

    Raises:
        OSError: The file can't be written.
    """
    with open(path, "wb") as file:
        np.lib.format.write_array(_Writer(file.write), array, allow_pickle=False)


class _Writer(NamedTuple):
    """A file that NumPy does not recognize as one, so that Python writes it."""

    write: Callable[[bytes], int]
