"""Hashes that identify a data set on any machine, of arrays that may come in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import IntArray, row_blocks
from mmssl.data.neighbors import Neighbors


class Digest(Protocol):
    """A hash that is being computed."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far, in hexadecimal digits."""


def of_interactions() -> Digest:
    """Start the hash of the interactions: the splits follow, in the order train, val, test."""
    return hashlib.sha256(b"mmssl-interactions-1\n")


def of_content(num_users: int, num_items: int) -> Digest:
    """Start the hash of a data set: splits follow, then features, then neighbors, by name."""
    return hashlib.sha256(f"mmssl-dataset-1 {num_users} {num_items}\n".encode())


def add_split(
    digests: Sequence[Digest],
    split: str,
    num_edges: int,
    column: Callable[[int], Iterable[IntArray]],
) -> None:
    """Add the interactions of a split.

    Args:
        digests: What they are added to.
        split: Its name.
        num_edges: Number of interactions.
        column: 0 -> the users, 1 -> the items of the sorted interactions, in one array or several.
    """
    for digest in digests:
        digest.update(f"{split} {num_edges}\n".encode())
    for which in (0, 1):
        for ids in column(which):
            data = ids.astype("<i8", copy=False).data
            for digest in digests:
                digest.update(data)


def features_title(modality: str, rows: npt.NDArray[np.generic]) -> bytes:
    """Return what stands before the features of a modality."""
    return f"{modality} {rows.shape[0]} {rows.shape[1]}\n".encode()


def add_rows(
    digests: Sequence[Digest],
    rows: npt.NDArray[np.generic],
    check: Callable[[slice, npt.NDArray[np.float32]], object] = lambda part, block: None,
) -> None:
    """Add (n, d) rows of features.

    Args:
        digests: What they are added to.
        rows: float16 or float32.
        check: Called with every block of rows, in float32, before it is added.
    """
    for part in row_blocks(rows):
        block = rows[part].astype("<f4", copy=False)
        check(part, block)
        for digest in digests:
            digest.update(block.data)


def add_neighbors(digest: Digest, modality: str, neighbors: Neighbors) -> None:
    """Add the item graph of a modality."""
    row, col, value = neighbors
    digest.update(f"{modality} neighbors {row.size} {value is not None}\n".encode())
    for array in (row, col, value):
        if array is not None:
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
