"""Sparse propagation against torch.sparse, torch-sparse, scipy and hand-kept transposes.

``python benchmarks/bench_propagate.py [--smoke]`` prints a table. Peers take turns. In a turn each
makes one untimed call, so that it starts from its own tables and not from what the peer before left
in the caches, then calls for about 30 ms forward and backward and as many forward only; medians and
quartiles are over the calls of all turns. A peer that takes longer than half a second is not warmed
up. glibc is told to keep freed memory, as ``mmssl train`` does, so that no peer pays page faults
for its outputs on every call.

The share is that of the limit measured in turn with the rest (benchmarks/gather.py): the fastest
way to gather the rows and read the index, both directions, plus writing both results.

``MMSSL_DATA=folder`` takes the real graphs; ``--json`` adds the graphs measured to a file;
``--memory`` measures the growth of the resident set instead. ``pytest benchmarks
--benchmark-only`` times the same functions one by one.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import workloads  # noqa: E402
from benchmarks.gather import Probe  # noqa: E402
from mmssl import ops  # noqa: E402
from mmssl.graph import GraphView  # noqa: E402
from mmssl.training.memory import keep_freed_memory  # noqa: E402

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


def torch_sparse(view: GraphView) -> Product:
    from torch_sparse import SparseTensor, matmul

    matrix = _csr(view)
    size = (view.num_rows, view.num_cols)
    sparse = SparseTensor(
        rowptr=matrix.crow_indices(), col=matrix.col_indices(), value=matrix.values(),
        sparse_sizes=size, is_sorted=True,
    )  # fmt: skip
    return lambda x: matmul(sparse, x)


class _Scipy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, matrix, transposed) -> Tensor:
        ctx.transposed = transposed
        return torch.from_numpy(matrix @ x.detach().numpy())

    @staticmethod
    def backward(ctx, grad: Tensor):
        return torch.from_numpy(ctx.transposed @ grad.numpy()), None, None


def scipy_csr(view: GraphView) -> Product:
    """CSR forward, a kept CSR of the transpose backward; scipy uses one thread."""
    import scipy.sparse

    def made(view: GraphView):
        m = _csr(view)
        arrays = (m.values().numpy(), view.col.numpy(), m.crow_indices().numpy())
        return scipy.sparse.csr_matrix(arrays, shape=(view.num_rows, view.num_cols))

    matrix, transposed = made(view), made(view.transpose())
    return lambda x: _Scipy.apply(x, matrix, transposed)


def compiled_reference(view: GraphView) -> Product:
    """torch.compile of the plain PyTorch."""
    torch._dynamo.reset()
    return torch.compile(reference(view), dynamic=False)


PEERS: dict[str, Callable[[GraphView], Product]] = {
    "native": native,
    "kept transpose": kept_transpose,
    "torch CSR": torch_csr,
    "torch COO": torch_coo,
    "torch-sparse": torch_sparse,
    "scipy": scipy_csr,
    "reference": reference,
    "compile": compiled_reference,
}
AUTOGRAD = ("torch CSR", "torch COO", "torch-sparse")  # the peers one would pick
TURN_SECONDS = 0.03
WARM_UP_BELOW = 0.5


def forward(product: Product, x: Tensor, *_: object) -> Tensor:
    with torch.no_grad():
        return product(x)


def full(
    product: Product, x: Tensor, grad: Tensor, trained: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """The product and its gradients, for x and what else is trained."""
    y = product(x)
    return (y.detach(), *torch.autograd.grad(y, [x, *trained], grad))


def problem(view: GraphView, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(view.num_cols, D, generator=generator).to(dtype).requires_grad_()
    return x, torch.randn(view.num_rows, D, generator=generator).to(dtype)


class Case:
    """A peer on a problem: checked once against what is expected, then timed in turns."""

    def __init__(
        self, product: Product, x: Tensor, grad: Tensor, wanted: list[Tensor], *trained: Tensor
    ) -> None:
        self.arguments = (product, x, grad, trained)
        for got, want in zip(full(*self.arguments), wanted, strict=False):
            # bfloat16 rounds; the reference adds long rows one by one.
            share = 2e-2 if x.dtype == torch.bfloat16 else 1e-4
            atol = share * float(want.abs().max())
            torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=atol)
        self.seconds = self._timed(full)
        self.calls = max(1, min(100, round(TURN_SECONDS / self.seconds)))
        self.forward: list[float] = []
        self.full: list[float] = []

    def _timed(self, job: Callable[..., object]) -> float:
        start = time.perf_counter()
        job(*self.arguments)
        return time.perf_counter() - start

    def turn(self) -> None:
        """One untimed call, then some."""
        for job, kept in ((full, self.full), (forward, self.forward)):
            if self.seconds < WARM_UP_BELOW:
                self._timed(job)
            kept.extend(self._timed(job) for _ in range(self.calls))

    def row(self, own: float) -> dict[str, object]:
        """What the file keeps; ``own`` is the median of the native op."""
        middle = statistics.median(self.full)
        low, _, high = statistics.quantiles(self.full, n=4) if len(self.full) > 1 else [middle] * 3
        return {
            "forward_ms": 1e3 * statistics.median(self.forward),
            "full_ms": 1e3 * middle,
            "full_quartiles_ms": [1e3 * low, 1e3 * high],
            "calls": len(self.full),
            "times_native": middle / own,
        }


def _transposed_positions(view: GraphView) -> Tensor:
    """(E,) int64: position in the transposed index -> position in the view."""
    return torch.argsort(view.col.long() * view.num_rows + view.row_of_edge())


def cases(view: GraphView, wanted_peers: list[str], extras: bool) -> tuple[dict, dict[str, str]]:
    """Every peer that there is, and why the others are missing."""
    x, grad = problem(view)
    wanted = list(full(reference(view), x, grad))
    made: dict[str, Case] = {}
    missing: dict[str, str] = {}
    for peer in wanted_peers:
        try:
            product = PEERS[peer](view)
            made[peer] = Case(product, x, grad, wanted)
        except Exception as error:  # a peer that is missing or broken here is a row of its own
            missing[peer] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if extras:
        half = problem(view, torch.bfloat16)
        for peer in ("native", "reference"):
            made[f"{peer}, bfloat16"] = Case(PEERS[peer](view), *half, wanted)
        value = torch.ones(view.nnz, requires_grad=True)
        valued = dataclasses.replace(view, value=value, t_edge=_transposed_positions(view))
        for peer in ("native", "reference"):
            name, product = f"{peer}, value gradient", PEERS[peer](valued)
            made[name] = Case(product, x, grad, wanted, value)
    return made, missing


def measure(name: str, seconds: float, peers: list[str], extras: bool) -> dict[str, object]:
    workload = workloads.load(name)
    view = workload.graph.ui
    made, missing = cases(view, peers, extras)
    x, grad = problem(view)
    probe = Probe(view, x.detach(), grad)
    probe_calls = max(1, min(20, round(TURN_SECONDS / made["native"].seconds / 2)))
    start, turns = time.perf_counter(), 0
    while turns < 2 or time.perf_counter() - start < seconds:
        probe.turn(probe_calls)
        for case in made.values():
            case.turn()
        turns += 1
    limit = probe.limit()
    own = statistics.median(made["native"].full)
    rows = {}
    for peer, case in made.items():
        row = rows[peer] = case.row(own)
        low, high = row["full_quartiles_ms"]
        print(
            f"{workload.name:14s} {view.nnz:9d} {peer:26s} {row['forward_ms']:9.3f}"
            f" {row['full_ms']:9.3f} ({low:.3f}-{high:.3f}) {row['times_native']:6.1f}x"
        )
    for peer, reason in missing.items():
        print(f"{workload.name:14s} {view.nnz:9d} {peer:26s} not measured: {reason}")
    print(
        f"{workload.name:14s} limit: gathers and index {1e3 * limit.gather:.3f} ms, writes"
        f" {1e3 * limit.write:.3f} ms; native at {100 * limit.total / own:.0f} % of both,"
        f" {100 * limit.gather / own:.0f} % of the gathers; {turns} turns"
    )
    return {
        "name": workload.name,
        "nnz": view.nnz,
        "turns": turns,
        "gather_limit_ms": 1e3 * limit.gather,
        "write_limit_ms": 1e3 * limit.write,
        "share_of_limit": limit.total / own,
        "peers": rows,
        "missing": missing,
    }


def peak_mb(peer: str, name: str) -> float:
    """Growth of the resident set over one forward and backward, in a process of its own."""
    code = (
        "import resource, torch, benchmarks.bench_propagate as b\n"
        "from tests.ops.graphs import random_view\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"small = random_view(valued=False); b.full(b.PEERS[{peer!r}](small), *b.problem(small))\n"
        f"view = b.workloads.load({name!r}).graph.ui; inputs = b.problem(view)\n"
        f"product = b.PEERS[{peer!r}](view); before = used()\n"
        "b.full(product, *inputs); print(used() - before)"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return float(done.stdout)


def environment() -> dict[str, object]:
    versions = {}
    for package in ("torch", "scipy", "numpy", "torch-sparse", "torch-scatter"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "d": D,
    }


def add_to(path: Path, graphs: list[dict], memory: dict[str, dict[str, float]]) -> None:
    """Keeps what the file knows of other graphs."""
    old = json.loads(path.read_text()) if path.exists() else {}
    kept = {g["name"]: g for g in old.get("graphs", [])} | {g["name"]: g for g in graphs}
    content = {
        "environment": environment(),
        "graphs": list(kept.values()),
        "memory_mb": old.get("memory_mb", {}) | memory,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the smallest graph, two turns")
    parser.add_argument("--graphs", nargs="+", default=list(workloads.SHAPES), metavar="NAME")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20, help="of turns, per graph")
    parser.add_argument("--extras", action="store_true", help="bfloat16 and the values' gradient")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--json", type=Path, help="add the numbers to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")
    keep_freed_memory()
    names = ["tiktok"] if options.smoke else options.graphs
    print(json.dumps(environment()))
    results: list[dict] = []
    memory: dict[str, dict[str, float]] = {}
    if options.memory:
        for name in names:
            memory[name] = {peer: round(peak_mb(peer, name), 1) for peer in options.peers}
            print(f"{name}: peak memory, MB: {memory[name]}")
    else:
        print(f"{'graph':14s} {'edges':>9s} {'peer':26s} {'forward':>9s} {'fwd+bwd, ms':>9s}")
        seconds = 0 if options.smoke else options.seconds
        for name in names:
            results.append(measure(name, seconds, options.peers, options.extras or options.smoke))
    if options.json:
        add_to(options.json, results, memory)


@pytest.mark.parametrize("name", ["tiktok", "sports"])
@pytest.mark.parametrize("job", [forward, full], ids=["forward", "full"])
@pytest.mark.parametrize("peer", PEERS)
def test_speed(benchmark, peer, job, name):
    view = workloads.load(name).graph.ui
    try:
        product = PEERS[peer](view)
    except ImportError as error:
        pytest.skip(str(error))
    x, grad = problem(view)
    benchmark(job, product, x, grad)


if __name__ == "__main__":
    main()
