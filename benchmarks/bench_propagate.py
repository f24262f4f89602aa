"""Sparse propagation compared with torch.sparse, torch-sparse, torch-geometric and scipy.

The limit is measured in the same rounds: the fastest way to gather the rows and read the index in
both directions, plus writing both results (benchmarks/limits.py). ``mmssl bench ops`` runs these
cases; ``benchmarks/test_speed.py`` times the same functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.harness.clock import Work
from benchmarks.harness.problem import Budget, Problem
from benchmarks.limits import Gathers
from benchmarks.peers.ops import SPARSE
from benchmarks.peers.registry import Missing, need_bytes
from mmssl.graph import GraphView

D = 64
SLOW_EDGES = 5_000_000  # above this, peers that form (E, D) arrays take seconds per call
FORMS_EDGES = ("reference", "torch.compile", "torch-geometric")


def problem(
    graph: str = "tiktok",
    d: int = D,
    dtype: str = "float32",
    device: str = "cpu",
    value_gradient: bool = False,
) -> Problem:
    """``graph.ui @ x``, the gradient of x, and on request that of the edge values."""
    workload = workloads.load(graph)
    view = workload.graph.to(device).ui
    x, grad = inputs(view, d, dtype)
    trained: tuple[Tensor, ...] = (x,)
    op = "propagate"
    if value_gradient:
        value = torch.ones(view.nnz, device=device, requires_grad=True)
        view = dataclasses.replace(view, value=value, t_edge=_transposed_positions(view))
        trained, op = (x, value), "propagate, gradient of values"
    names = SPARSE if dtype == "float32" and not value_gradient else ("native", "reference")

    def make(name: str) -> Work:
        if name in FORMS_EDGES and device == "cpu" and view.nnz > SLOW_EDGES:
            raise Missing("forms (E, D) arrays: seconds per call at this size, left out on the CPU")
        if name in FORMS_EDGES:
            need_bytes(4 * 4 * view.nnz * d, device, "its (E, D) arrays")
        product = SPARSE[name](view)
        return Work(lambda: product(x), trained, (grad,))

    def expected() -> tuple[Tensor, ...]:
        """By kept transposes, summed by torch; always in float32."""
        if value_gradient:
            product = SPARSE["reference"](view)
            return Work(lambda: product(x), trained, (grad,)).full()
        wide = x.detach().float().requires_grad_()
        product = SPARSE["kept transpose"](view)
        return Work(lambda: product(wide), (wide,), (grad.float(),)).full()

    limited = dtype == "float32" and not value_gradient and (d == D or device == "cuda")
    arguments = {
        "graph": graph, "d": d, "dtype": dtype, "device": device, "value_gradient": value_gradient
    }  # fmt: skip
    return Problem(
        op=op,
        workload=workload.name,
        dtype=dtype,
        device=device,
        sizes={"users": view.num_rows, "items": view.num_cols, "edges": view.nnz, "d": d},
        peers={name: functools.partial(make, name) for name in names},
        expected=expected,
        tolerance=2e-2
        if dtype == "bfloat16"
        else 1e-4,  # the reference sums long rows sequentially
        probe=Gathers(view, x, grad) if limited else None,
        again=("bench_propagate", arguments),
    )


def inputs(view: GraphView, d: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Seeded x (C, D) and gradient (R, D), drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    x = torch.randn(view.num_cols, d, generator=generator).to(view.device, kind)
    return x.requires_grad_(), torch.randn(view.num_rows, d, generator=generator).to(
        view.device, kind
    )


def _transposed_positions(view: GraphView) -> Tensor:
    """(E,) int64: position in the transposed index -> position in the view."""
    return torch.argsort(view.col.long() * view.num_rows + view.row_of_edge())


def cases(size: str, device: str) -> Iterator[tuple[functools.partial[Problem], Budget]]:
    """What ``mmssl bench ops`` measures, by size."""
    make = functools.partial(problem, device=device)
    if size == "smoke":
        peers = [name for name in SPARSE if name != "torch.compile"]
        yield functools.partial(make, "smoke"), Budget(0, 2, peers=peers)
        return
    for graph in ("tiktok", "sports", "gowalla"):
        yield functools.partial(make, graph), Budget(5, memory=graph == "sports")
    yield functools.partial(make, "power-law-10m"), Budget(0, 3, memory=False)
    for d in (16, 32, 128, 256):
        peers = ["kept transpose", "torch CSR", "torch-sparse"]
        yield functools.partial(make, "sports", d), Budget(1.5, peers=peers, memory=False)
    for graph in ("tiktok", "sports"):
        yield functools.partial(make, graph, dtype="bfloat16"), Budget(1.5, memory=False)
        yield functools.partial(make, graph, value_gradient=True), Budget(1.5, memory=False)
    if device == "cuda":  # takes half a minute to generate
        yield functools.partial(make, "power-law-100m"), Budget(0, 3, memory=False)
