"""Neighbor lists in ``NAME_knn.npz`` files: nothing in them is trusted, nothing is unpickled.

Arrays ``row`` and ``col`` (E,) hold item ids, and the optional ``value`` (E,) positive
similarities: item ``col[e]`` is a neighbor of item ``row[e]``.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmssl.data.neighbors import Neighbors
from mmssl.data.npy import parse_header
from mmssl.errors import InputError
from mmssl.files import open_regular

# A small archive can hold a terabyte of zeros: 1 GiB per array, thousands of neighbors per item.
_MAX_EDGES = 2**27
_ARRAYS = Neighbors._fields


def read_neighbors(path: Path, num_items: int) -> Neighbors:
    """Read and check ``NAME_knn.npz``.

    Raises:
        InputError: One line that names the file, what was expected and what was found.
    """
    arrays = _read_arrays(path)
    try:
        neighbors = Neighbors.from_edges(arrays["row"], arrays["col"], arrays.get("value"))
        neighbors.check(num_items)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return neighbors


def write_neighbors(path: Path, neighbors: Neighbors) -> None:
    """Write what :func:`read_neighbors` reads, the same bytes for the same edges."""
    arrays = {name: a for name, a in zip(_ARRAYS, neighbors, strict=True) if a is not None}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            # A fixed date: np.savez would store the current time.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                expected = [f"{name}.npy" for name in _ARRAYS[: max(len(names), 2)]]
                if names and sorted(names) != sorted(expected):
                    shown = ", ".join(names[:4])
                    raise InputError(
                        f"{path}: expected the arrays row and col, optionally value, got "
                        f"{shown!r:.80}"
                    )
                return {name[:-4]: _read_member(path, archive, name) for name in expected}
        except InputError:
            raise
        except MemoryError:
            raise InputError(f"{path}: expected arrays that fit memory, got larger ones") from None
        except Exception as error:
            # zipfile and zlib raise a dozen types for bytes that they were not made for.
            raise InputError(
                f"{path}: expected a .npz archive, got {type(error).__name__}"
            ) from None


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[np.generic]:
    with archive.open(name) as file:
        if file.read(6) != b"\x93NUMPY":
            raise InputError(f"{path}: {name}: expected a .npy array, got something else")
    with archive.open(name) as file:
        shape, _, dtype = parse_header(path, file)
        if dtype.hasobject:
            raise InputError(f"{path}: {name} holds Python objects; refused (never unpickled)")
        if len(shape) != 1 or not 0 <= shape[0] <= _MAX_EDGES or dtype.kind not in "iuf":
            raise InputError(
                f"{path}: {name}: expected a vector of numbers, got shape {shape!s:.60}, {dtype}"
            )
        # Bounded by what the header says, not by what comes out of the archive.
        size = int(shape[0]) * dtype.itemsize
        content = file.read(size + 1)
    if len(content) != size:
        got = "more" if len(content) > size else len(content)
        raise InputError(f"{path}: {name}: expected {size} bytes of data, got {got}")
    return np.frombuffer(content, dtype=dtype)
