"""Exact PCA and normalization of a matrix on disk, in passes over blocks of rows.

Sums are accumulated in float64 in a fixed order, so that the result is reproducible on a machine.
The (d, d) covariance is computed and decomposed without sampling rows and, unlike scikit-learn's
PCA, without a copy of the matrix in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError

NORMALIZATIONS = ("none", "l2", "zscore")
BLOCK = 8192  # rows; 8192 x 2048 float64 values take 128 MB

Rows = Callable[[IntArray], FloatArray]
"""Function that returns the rows of a matrix with the given indices."""


class Projection(NamedTuple):
    """Projection to k principal components, ``(x - mean) @ basis``."""

    mean: npt.NDArray[np.float64]
    """(d,) mean of the rows."""
    basis: npt.NDArray[np.float64]
    """(d, k) orthonormal directions, by decreasing variance."""
    explained: float
    """Share of the total variance that the components retain, in 0 .. 1."""

    def apply(self, rows: FloatArray) -> FloatArray:
        """Project (N, d) rows to (N, k)."""
        projected: FloatArray = ((rows - self.mean) @ self.basis).astype(np.float32)
        return projected


def check_dim(dim: int, width: int, count: int) -> None:
    """Raise InputError if ``count`` rows of ``width`` values have fewer than ``dim`` components."""
    if not 1 <= dim <= min(width, count):
        raise InputError(
            f"--pca must be in 1 .. {min(width, count)} for {count} rows of {width} dimensions, "
            f"got {dim}"
        )


def principal_components(read: Rows, present: IntArray, dim: int) -> Projection:
    """Compute the first ``dim`` principal components of selected rows.

    Equals scikit-learn's ``PCA(dim, svd_solver="full")`` except for signs: the element of a
    direction with the largest magnitude is positive.

    Args:
        read: Returns rows of the matrix.
        present: (N,) indices of the rows to include.
        dim: Number of components, at most N and the width of the rows.

    Raises:
        InputError: ``dim`` is out of range.
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
    """Return a function that scales columns to mean 0 and variance 1 over the selected rows.

    Constant columns become 0.
    """
    mean = _mean(read, present)
    square = np.zeros_like(mean)
    for block in _blocks(present):
        square += np.square(read(block) - mean).sum(axis=0)
    deviation = np.sqrt(square / len(present))
    # The computed deviation of a constant float32 column is about 1e-8 times its value, not 0.
    constant = deviation <= 1e-6 * np.abs(mean)
    scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))

    def apply(rows: FloatArray) -> FloatArray:
        scaled: FloatArray = ((rows - mean) * scale).astype(np.float32)
        return scaled

    return apply


def unit_rows(rows: FloatArray) -> FloatArray:
    """Scale rows to length 1; zero rows stay zero."""
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
