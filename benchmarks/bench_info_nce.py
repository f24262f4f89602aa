"""info_nce against eager PyTorch, torch.compile of it, and chunks with checkpointing.

``python benchmarks/bench_info_nce.py [--smoke]`` prints a table: minimum and median of runs that
take turns, as a share of the limit (6 U FLOP, U = 2 N^2 D, at the rate of benchmarks/probes.py,
measured in turn with the rest), and the memory at the peak. ``pytest benchmarks --benchmark-only``
times the same functions one by one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.probes import fma_gflop_s  # noqa: E402
from mmssl import ops  # noqa: E402
from mmssl.ops.reference import info_nce_reference  # noqa: E402

D = 64
TEMPERATURE = 0.2
CHUNK = 1024
Loss = Callable[[Tensor, Tensor], Tensor]


def native(anchor: Tensor, positive: Tensor) -> Tensor:
    with ops.backend("native"):
        return ops.info_nce(anchor, positive, TEMPERATURE)


def eager(anchor: Tensor, positive: Tensor) -> Tensor:
    return info_nce_reference(anchor, positive, TEMPERATURE)


def chunked(anchor: Tensor, positive: Tensor) -> Tensor:
    """Rows in chunks, each recomputed in backward: what one writes without a kernel."""
    z1, z2 = F.normalize(anchor.float(), dim=-1), F.normalize(positive.float(), dim=-1)

    def rows(first: int) -> Tensor:
        a, last = z1[first : first + CHUNK], min(first + CHUNK, len(z1))
        own = torch.arange(first, last)
        s11 = (a @ z1.T / TEMPERATURE).index_put(
            (own - first, own), torch.tensor(-torch.inf), accumulate=False
        )
        logits = torch.cat([a @ z2.T / TEMPERATURE, s11], 1)
        return ((a * z2[first:last]).sum(1) / TEMPERATURE - logits.logsumexp(1)).sum()

    parts = [checkpoint(rows, n, use_reentrant=False) for n in range(0, len(z1), CHUNK)]
    return -torch.stack(parts).sum() / len(z1)


PEERS: dict[str, Loss] = {"native": native, "eager": eager, "chunked": chunked}


def problem(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(n, D, generator=generator)
    positive = anchor + torch.randn(n, D, generator=generator)
    return anchor.to(dtype).requires_grad_(), positive.to(dtype).requires_grad_()


def forward(loss: Loss, inputs: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return loss(*inputs)


def full(loss: Loss, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    value = loss(*inputs)
    return (value.detach(), *torch.autograd.grad(value, inputs))


def assert_agreement(loss: Loss, inputs: tuple[Tensor, Tensor]) -> None:
    rtol = 2e-4 if inputs[0].dtype == torch.float32 else 2e-2
    for mine, expected in zip(full(loss, inputs), full(eager, inputs), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(mine, expected, rtol=0, atol=rtol * scale)


def peak_mb(peer: str, n: int, dtype: str) -> float:
    """Growth of the resident set over one forward and backward, in a process of its own."""
    code = (
        "import resource, torch, benchmarks.bench_info_nce as b\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"b.full(b.PEERS[{peer!r}], b.problem(64, torch.{dtype}))\n"
        f"inputs = b.problem({n}, torch.{dtype}); before = used()\n"
        f"b.full(b.PEERS[{peer!r}], inputs); print(used() - before)"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def measure(n: int, dtype: torch.dtype, rounds: int, compiled: bool) -> None:
    inputs = problem(n, dtype)
    peers = dict(PEERS)
    if compiled:
        torch._dynamo.reset()  # or it gives up after a few shapes and dtypes
        peers["compile"] = torch.compile(eager, dynamic=False)
    for loss in peers.values():
        assert_agreement(loss, inputs)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in peers}
    limits = []
    for _ in range(rounds):
        limits.append(fma_gflop_s(torch.get_num_threads()))
        for name, loss in peers.items():
            for job, kept in zip((forward, full), times[name], strict=True):
                start = time.perf_counter()
                job(loss, inputs)
                kept.append(1e3 * (time.perf_counter() - start))
    flop = 6 * 2 * n * n * D
    for name, (only_forward, both) in times.items():
        gflop_s = flop / min(both) / 1e6
        share = 100 * gflop_s / max(limits)
        print(
            f"{n:6d} {str(dtype).removeprefix('torch.'):8s} {name:8s}"
            f" {min(only_forward):9.2f} {min(both):9.2f} {statistics.median(both):9.2f}"
            f" {gflop_s:8.0f} {share:6.0f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one small size, one round")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 9308])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory at the last size")
    options = parser.parse_args()
    rows, rounds = ([200], 1) if options.smoke else (options.rows, options.rounds)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D = {D}; times in ms")
    print(
        f"{'N':>6s} {'dtype':8s} {'peer':8s} {'forward':>9s} {'fwd+bwd':>9s} {'median':>9s}"
        f" {'GFLOP/s':>8s}    limit"
    )
    for n in rows:
        for dtype in (torch.float32, torch.bfloat16):
            measure(n, dtype, rounds, compiled=not options.smoke)
    if options.memory:
        for peer in PEERS:
            print(
                f"peak memory, {peer}, N = {rows[-1]}: {peak_mb(peer, rows[-1], 'float32'):.0f} MB"
            )


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("job", [forward, full], ids=["forward", "full"])
@pytest.mark.parametrize("peer", PEERS)
def test_speed(benchmark, peer, job, dtype, n):
    inputs = problem(n, dtype)
    assert_agreement(PEERS[peer], inputs)
    benchmark(job, PEERS[peer], inputs)


if __name__ == "__main__":
    main()
