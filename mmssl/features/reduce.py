"""Principal components and normalisation of a matrix on disk, in passes over blocks of rows.

Sums are float64 and in one order, so a file is the same for the same input on one machine. Exact:
the covariance (d, d) is formed and decomposed, nothing is sampled, and no copy of the matrix is
made, as scikit-learn's PCA would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError

NORMALIZATIONS = ("none", "l2", "zscore")
BLOCK = 8192  # rows: 8192 x 2048 float64 are 128 MB

Rows = Callable[[IntArray], FloatArray]
"""Rows of a matrix by their numbers."""


class Projection(NamedTuple):
    """``(x - mean) @ basis``."""

    mean: npt.NDArray[np.float64]  # (d,)
    basis: npt.NDArray[np.float64]  # (d, k)
    explained: float
    """Share of the variance that is kept."""

    def apply(self, rows: FloatArray) -> FloatArray:
        """(N, d) to (N, k)."""
        projected: FloatArray = ((rows - self.mean) @ self.basis).astype(np.float32)
        return projected


def check_dim(dim: int, width: int, count: int) -> None:
    """Raises InputError when ``count`` rows of ``width`` don't have ``dim`` components."""
    if not 1 <= dim <= min(width, count):
        raise InputError(
            f"--pca must be in 1 .. {min(width, count)} for {count} rows of {width} dimensions, "
            f"got {dim}"
        )


def principal_components(read: Rows, present: IntArray, dim: int) -> Projection:
    """The ``dim`` directions of largest variance of the present rows, largest first.

    Equals scikit-learn's ``PCA(dim, svd_solver="full")`` up to signs: here the largest element of
    a direction is positive.

    Args:
        read: gives rows of the matrix.
        present: (N,) numbers of the rows to look at.
        dim: at most N and the rows' width.
    """
    mean = _mean(read, present)
    check_dim(dim, len(mean), len(present))
    scatter = np.zeros((len(mean), len(mean)))
    for block in _blocks(present):
        centered = read(block) - mean
        scatter += centered.T @ centered
    values, vectors = np.linalg.eigh(scatter)  # ascending
    basis = vectors[:, ::-1][:, :dim]
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(dim)]
    kept, total = float(values[::-1][:dim].sum()), float(np.trace(scatter))
    return Projection(mean, basis * np.where(largest < 0, -1, 1), kept / total if total else 1.0)


def standardization(read: Rows, present: IntArray) -> Callable[[FloatArray], FloatArray]:
    """Maps rows so that each column of the present ones has mean 0 and variance 1.

    A column without variance becomes 0.
    """
    mean = _mean(read, present)
    square = np.zeros_like(mean)
    for block in _blocks(present):
        square += np.square(read(block) - mean).sum(axis=0)
    deviation = np.sqrt(square / len(present))
    # Rounding leaves a constant column a deviation of about its size times 1e-8 (float32).
    constant = deviation <= 1e-6 * np.abs(mean)
    scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))

    def apply(rows: FloatArray) -> FloatArray:
        scaled: FloatArray = ((rows - mean) * scale).astype(np.float32)
        return scaled

    return apply


def unit_rows(rows: FloatArray) -> FloatArray:
    """Rows of length 1; zero rows stay zero."""
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    unit: FloatArray = (rows / np.where(length > 0, length, 1)).astype(np.float32)
    return unit


def _mean(read: Rows, present: IntArray) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] | float = 0.0
    for block in _blocks(present):
        total = total + read(block).sum(axis=0, dtype=np.float64)
    return np.asarray(total) / len(present)


def _blocks(present: IntArray) -> list[IntArray]:
    return [present[start : start + BLOCK] for start in range(0, len(present), BLOCK)]
