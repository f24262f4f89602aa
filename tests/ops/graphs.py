"""Graph views for the tests of the ops, and their product in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from mmssl import ops
from mmssl.graph import GraphView

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def make_view(
    row: np.ndarray,
    col: np.ndarray,
    num_rows: int,
    num_cols: int,
    *,
    scales: bool = True,
    value: torch.Tensor | None = None,
    seed: int = 0,
) -> GraphView:
    """Build a view of an edge list, with its repeated edges."""
    rng = np.random.default_rng(seed)
    edge = np.lexsort((col, row))  # position -> edge of the list
    t_edge = np.lexsort((row, col))

    def pointer(ids: np.ndarray, count: int) -> torch.Tensor:
        counts = np.bincount(ids, minlength=count)
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def scale(count: int) -> torch.Tensor | None:
        return torch.from_numpy(rng.uniform(0.5, 2, count).astype(np.float32)) if scales else None

    return GraphView(
        rowptr=pointer(row, num_rows),
        col=torch.from_numpy(col[edge].astype(np.int32)),
        t_rowptr=pointer(col, num_cols),
        t_col=torch.from_numpy(row[t_edge].astype(np.int32)),
        row_scale=scale(num_rows),
        col_scale=scale(num_cols),
        value=value,
        edge=None if value is None else torch.from_numpy(edge),
        t_edge=None if value is None else torch.from_numpy(t_edge),
    )


def random_view(
    num_rows: int = 50,
    num_cols: int = 40,
    nnz: int = 300,
    *,
    valued: bool = True,
    scales: bool = True,
    dtype: torch.dtype = torch.float32,
    hub: int = 0,
    seed: int = 0,
) -> GraphView:
    """Draw edges with repetition, ``hub`` additional ones in row 0."""
    rng = np.random.default_rng(seed)
    row = np.concatenate([rng.integers(0, num_rows, nnz), np.zeros(hub, np.int64)])
    col = rng.integers(0, num_cols, nnz + hub)
    value = torch.from_numpy(rng.normal(size=nnz + hub)).to(dtype) if valued else None
    return make_view(row, col, num_rows, num_cols, scales=scales, value=value, seed=seed)


@st.composite
def any_view(draw: Callable[..., Any]) -> GraphView:
    """Draw a view of any size, also with rows that are longer than a chunk of the kernels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_rows = draw(st.integers(0, 12))
    nnz = draw(st.sampled_from([0, 1, 5, 40, 1200])) if num_rows else 0
    # In a long sum of a few numbers that repeat, the roundings are alike and add up.
    num_cols = 2000 if nnz == 1200 else draw(st.integers(1, 12))
    row, col = rng.integers(0, max(num_rows, 1), nnz), rng.integers(0, num_cols, nnz)
    value = torch.from_numpy(rng.normal(size=nnz)) if draw(st.booleans()) else None
    return make_view(row, col, num_rows, num_cols, scales=draw(st.booleans()), value=value)


def random_x(view: GraphView, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(view.num_cols, d, generator=generator, dtype=torch.float64).to(dtype)


def truth(view: GraphView, x: torch.Tensor) -> torch.Tensor:
    """Compute the product in float64."""
    return view.to_dense(torch.float64) @ x.double()


def worst(result: torch.Tensor, exact: torch.Tensor, size: float) -> float:
    """Return the largest error, relative to ``size``."""
    return float((result.double() - exact).abs().max()) / size if exact.numel() else 0.0


def slack(dtype: torch.dtype) -> float:
    """Return how far a kernel's error may exceed the reference's: a few roundings of its sums.

    In float64 the truth is no better than the result, so the bound is wider.
    """
    if dtype == torch.float64:
        return 16 * torch.finfo(torch.float64).eps
    return 4 * torch.finfo(torch.float32).eps


def size_of(view: GraphView, x: torch.Tensor) -> float:
    """Return the largest sum of absolute terms, which rounding errors are proportional to."""
    terms = view.to_dense(torch.float64).abs() @ x.double().abs()
    return max(float(terms.max()), 1e-30) if terms.numel() else 1.0


def assert_accurate(view: GraphView, x: torch.Tensor, y: torch.Tensor) -> None:
    """Check that the error of ``spmm(view, x)`` is within that of plain PyTorch."""
    with ops.backend("reference"):
        plain = ops.spmm(view, x)
    exact, size = truth(view, x), size_of(view, x)
    assert y.dtype == x.dtype and y.shape == exact.shape
    assert worst(y, exact, size) <= worst(plain, exact, size) + slack(x.dtype)


def on(view: GraphView, device: str) -> GraphView:
    """Return the same view on another device."""
    moved = {
        field.name: getattr(view, field.name).to(device)
        for field in dataclasses.fields(view)
        if getattr(view, field.name) is not None
    }
    return dataclasses.replace(view, **moved)
