"""Sparse propagation against torch.sparse, torch-sparse and hand-kept transposes.

``python benchmarks/bench_propagate.py [--smoke]`` prints a table: median and quartiles of runs that
take turns, and the share of the limit, which is the time to gather the same rows and only add them
up (benchmarks/probes.py, measured in turn with the rest). ``MMSSL_DATA=folder`` takes the real
graphs. ``pytest benchmarks --benchmark-only`` times the same functions one by one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import workloads  # noqa: E402
from benchmarks.probes import gather_seconds  # noqa: E402
from mmssl import ops  # noqa: E402
from mmssl.graph import GraphView  # noqa: E402

D = 64
Product = Callable[[Tensor], Tensor]


def native(view: GraphView) -> Product:
    def product(x: Tensor) -> Tensor:
        with ops.backend("native"):
            return ops.spmm(view, x)

    return product


def reference(view: GraphView) -> Product:
    def product(x: Tensor) -> Tensor:
        with ops.backend("reference"):
            return ops.spmm(view, x)

    return product


def _csr(view: GraphView) -> Tensor:
    """The view as a torch CSR tensor with its values written out."""
    value = torch.ones(view.nnz)
    if view.row_scale is not None:
        value = value * view.row_scale[view.row_of_edge()]
    if view.col_scale is not None:
        value = value * view.col_scale[view.col.long()]
    size = (view.num_rows, view.num_cols)
    return torch.sparse_csr_tensor(view.rowptr, view.col.long(), value, size)


def torch_csr(view: GraphView) -> Product:
    matrix = _csr(view)
    return lambda x: matrix @ x


def torch_coo(view: GraphView) -> Product:
    matrix = _csr(view).to_sparse_coo().coalesce()
    return lambda x: torch.sparse.mm(matrix, x)


class _KeptTranspose(torch.autograd.Function):
    """What one writes by hand: a CSR for each direction, so that backward needs no transpose."""

    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.transposed @ grad, None, None


def kept_transpose(view: GraphView) -> Product:
    matrix, transposed = _csr(view), _csr(view.transpose())
    return lambda x: _KeptTranspose.apply(x, matrix, transposed)


def torch_sparse(view: GraphView) -> Product | None:
    try:
        from torch_sparse import SparseTensor, matmul
    except ImportError:
        return None
    matrix = _csr(view)
    size = (view.num_rows, view.num_cols)
    sparse = SparseTensor(
        rowptr=matrix.crow_indices(), col=matrix.col_indices(), value=matrix.values(),
        sparse_sizes=size, is_sorted=True,
    )  # fmt: skip
    return lambda x: matmul(sparse, x)


PEERS: dict[str, Callable[[GraphView], Product | None]] = {
    "native": native,
    "kept transpose": kept_transpose,
    "torch CSR": torch_csr,
    "torch COO": torch_coo,
    "torch-sparse": torch_sparse,
    "reference": reference,
}
AUTOGRAD = ("torch CSR", "torch COO", "torch-sparse")  # the peers one would pick


def forward(product: Product, x: Tensor, _grad: Tensor) -> Tensor:
    with torch.no_grad():
        return product(x)


def full(product: Product, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    y = product(x)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def problem(view: GraphView) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(view.num_cols, D, generator=generator).requires_grad_()
    return x, torch.randn(view.num_rows, D, generator=generator)


def limit_seconds(view: GraphView, x: Tensor, grad: Tensor) -> float:
    """Time to gather every edge's row, forward and backward."""
    return gather_seconds(x.detach(), view.col) + gather_seconds(grad, view.t_col)


def measure(name: str, rounds: int) -> dict[str, object]:
    workload = workloads.load(name)
    view = workload.graph.ui
    x, grad = problem(view)
    made = {peer: make(view) for peer, make in PEERS.items()}
    peers = {peer: product for peer, product in made.items() if product is not None}
    expected = full(peers["reference"], x, grad)
    for product in peers.values():
        for got, want in zip(full(product, x, grad), expected, strict=True):
            atol = 1e-4 * float(want.abs().max())  # the reference adds long rows one by one
            torch.testing.assert_close(got, want, rtol=0, atol=atol)
    times: dict[str, tuple[list[float], list[float]]] = {p: ([], []) for p in peers}
    limits = []
    for _ in range(rounds):
        limits.append(limit_seconds(view, x, grad))
        for peer, product in peers.items():
            for job, kept in zip((forward, full), times[peer], strict=True):
                start = time.perf_counter()
                job(product, x, grad)
                kept.append(time.perf_counter() - start)
    limit = statistics.median(limits)
    own = statistics.median(times["native"][1])
    rows = {}
    for peer, (only, both) in times.items():
        middle = statistics.median(both)
        quartiles = statistics.quantiles(both, n=4) if len(both) > 1 else [middle] * 3
        rows[peer] = {
            "forward_ms": 1e3 * statistics.median(only),
            "full_ms": 1e3 * middle,
            "full_quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
            "times_native": middle / own,
            "share_of_limit": limit / middle,
        }
        print(
            f"{workload.name:14s} {view.nnz:9d} {peer:15s} {rows[peer]['forward_ms']:9.3f}"
            f" {1e3 * middle:9.3f} ({1e3 * quartiles[0]:.3f}-{1e3 * quartiles[2]:.3f})"
            f" {middle / own:6.1f}x {100 * limit / middle:5.0f} %"
        )
    best = min(rows[p]["full_ms"] for p in AUTOGRAD if p in rows)
    print(
        f"{workload.name:14s} limit {1e3 * limit:.3f} ms; "
        f"best autograd peer {best * 1e-3 / own:.1f}x"
    )
    return {"name": workload.name, "nnz": view.nnz, "limit_ms": 1e3 * limit, "peers": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the smallest graph, three rounds")
    parser.add_argument("--graphs", nargs="+", default=list(workloads.SHAPES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=0, help="default: by size")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")
    names = ["tiktok"] if options.smoke else options.graphs
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D = {D}, float32")
    print(f"{'graph':14s} {'edges':>9s} {'peer':15s} {'forward':>9s} {'fwd+bwd, ms':>9s}")
    results = []
    for name in names:
        large = workloads.SHAPES[name][2] > 1_000_000
        rounds = options.rounds or (3 if options.smoke else 5 if large else 31)
        results.append(measure(name, rounds))
    if options.json:
        environment = {"torch": torch.__version__, "threads": torch.get_num_threads(), "d": D}
        options.json.write_text(
            json.dumps({"environment": environment, "graphs": results}, indent=1)
        )


@pytest.mark.parametrize("name", ["tiktok", "sports"])
@pytest.mark.parametrize("job", [forward, full], ids=["forward", "full"])
@pytest.mark.parametrize("peer", PEERS)
def test_speed(benchmark, peer, job, name):
    view = workloads.load(name).graph.ui
    product = PEERS[peer](view)
    if product is None:
        pytest.skip(f"{peer} is not installed")
    x, grad = problem(view)
    benchmark(job, product, x, grad)


if __name__ == "__main__":
    main()
