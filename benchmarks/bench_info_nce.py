"""info_nce against eager PyTorch, torch.compile of it, and chunks with checkpointing.

``python benchmarks/bench_info_nce.py [--smoke] [--json FILE]`` prints a table: medians of runs that
take turns, the share of the limit (6 U FLOP, U = 2 N^2 D, at the rate of benchmarks/probes.py,
measured in the same turns), and the memory at the peak, each peer in a process of its own. In a
turn each peer runs once untimed, so that what the others left in the caches does not count, then
for about 30 ms. ``pytest benchmarks --benchmark-only`` times the same functions one by one.
"""

from __future__ import annotations

import argparse
import json
import platform
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
from mmssl.training.memory import keep_freed_memory  # noqa: E402

D = 64
TEMPERATURE = 0.2
CHUNK = 1024
TURN_S = 0.03  # of timed runs
SLOW_S = 0.3  # above this a run needs no other before it
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


PEERS: dict[str, Loss] = {
    "native": native,
    "eager": eager,
    "compile": torch.compile(eager, dynamic=False),
    "chunked": chunked,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


def assert_agreement(
    loss: Loss, inputs: tuple[Tensor, Tensor], expected: tuple[Tensor, ...]
) -> None:
    rtol = 2e-4 if inputs[0].dtype == torch.float32 else 2e-2
    for mine, right in zip(full(loss, inputs), expected, strict=True):
        scale = right.abs().max().item()
        torch.testing.assert_close(mine, right, rtol=0, atol=rtol * scale)


def timed_full(loss: Loss, inputs: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Seconds of the forward (with what backward needs) and of the backward."""
    start = time.perf_counter()
    value = loss(*inputs)
    middle = time.perf_counter()
    torch.autograd.grad(value, inputs)
    return middle - start, time.perf_counter() - middle


_PEAK = """
import ctypes, gc, sys
import torch
import benchmarks.bench_info_nce as bench

def kilobytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))

peer, n, dtype = bench.PEERS[sys.argv[1]], int(sys.argv[2]), bench.DTYPES[sys.argv[3]]
inputs = bench.problem(n, dtype)
bench.full(peer, inputs)  # compiles, loads, starts threads
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = kilobytes("VmRSS")
bench.full(peer, inputs)
print((kilobytes("VmHWM") - before) / 1024)
"""


def peak_mb(peer: str, n: int, dtype: str) -> float | None:
    """Growth of the resident set in a second forward and backward, in a process of its own."""
    if not sys.platform.startswith("linux"):
        return None
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, peer, str(n), dtype],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def summary(seconds: list[float]) -> dict[str, float]:
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {"median_ms": 1e3 * middle, "q1_ms": 1e3 * low, "q3_ms": 1e3 * high}


def measure(n: int, dtype: str, turns: int, peers: dict[str, Loss]) -> dict[str, object]:
    inputs = problem(n, DTYPES[dtype])
    torch._dynamo.reset()  # or it gives up after a few shapes and dtypes
    usual = {}  # seconds of a run
    expected = full(eager, inputs)
    for name, loss in peers.items():
        if name != "eager":
            assert_agreement(loss, inputs, expected)
        usual[name] = sum(timed_full(loss, inputs))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    rates = []
    for _ in range(turns):
        rates.append(fma_gflop_s(torch.get_num_threads()))
        for name, loss in peers.items():
            if usual[name] < SLOW_S:
                timed_full(loss, inputs)
            until = time.perf_counter() + TURN_S
            while True:
                times[name].append(timed_full(loss, inputs))
                if time.perf_counter() > until:
                    break
    rate = statistics.median(rates)
    limit_ms = 6 * 2 * n * n * D / rate / 1e6
    rows: dict[str, dict] = {}
    for name, runs in times.items():
        both = summary([sum(run) for run in runs])
        rows[name] = {
            "forward": summary([run[0] for run in runs]),
            "backward": summary([run[1] for run in runs]),
            "full": both,
            "runs": len(runs),
            "share_of_limit": limit_ms / both["median_ms"],
            "peak_mb": peak_mb(name, n, dtype),
        }
        peak = rows[name]["peak_mb"]
        parts = [rows[name][part]["median_ms"] for part in ("forward", "backward", "full")]
        print(
            f"{n:6d} {dtype:8s} {name:8s} {parts[0]:9.2f} {parts[1]:9.2f} {parts[2]:9.2f}"
            f" ({both['q1_ms']:.2f}-{both['q3_ms']:.2f}) {100 * limit_ms / parts[2]:4.0f} %"
            f" {'?' if peak is None else format(peak, '.1f'):>9s}"
        )
    own = rows["native"]["full"]["median_ms"]
    others = [row["full"]["median_ms"] for name, row in rows.items() if name != "native"]
    if others:
        print(f"{n:6d} {dtype:8s} limit {limit_ms:.2f} ms; best peer {min(others) / own:.1f}x")
    return {"n": n, "dtype": dtype, "gflop_s": rate, "limit_ms": limit_ms, "peers": rows}


def environment() -> dict[str, object]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "d": D,
        "temperature": TEMPERATURE,
    }


def write(path: Path, results: list[dict[str, object]]) -> None:
    """Adds to what the same machine and versions have measured at other sizes, if that is there."""
    kept = json.loads(path.read_text()) if path.exists() else {"environment": None}
    here = environment()
    new = {(r["n"], r["dtype"]) for r in results}
    old = kept["results"] if kept["environment"] == here else []
    results = [r for r in old if (r["n"], r["dtype"]) not in new] + results
    results.sort(key=lambda r: (r["n"], r["dtype"] == "bfloat16"))
    path.write_text(json.dumps({"environment": here, "results": results}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one small size, one turn")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 9308])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--turns", type=int, default=0, help="default: by size")
    parser.add_argument("--json", type=Path, help="write the numbers here, beside other sizes'")
    options = parser.parse_args()
    keep_freed_memory()  # for every peer, as `mmssl train` does and the other benchmarks
    if options.smoke:
        options.rows, options.peers, options.turns = [200], ["native", "eager", "chunked"], 1
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D = {D}; times in ms")
    print(
        f"{'N':>6s} {'dtype':8s} {'peer':8s} {'forward':>9s} {'backward':>9s} {'full':>9s}"
        f" (quartiles)  limit   peak, MB"
    )
    names = list(dict.fromkeys(["native", *options.peers]))
    results = []
    for n in options.rows:
        turns = options.turns or (15 if n <= 2048 else 7 if n <= 8192 else 3)
        for dtype in options.dtypes:
            results.append(measure(n, dtype, turns, {name: PEERS[name] for name in names}))
    if options.json:
        write(options.json, results)


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("job", [forward, full], ids=["forward", "full"])
@pytest.mark.parametrize("peer", ["native", "eager", "chunked"])
def test_speed(benchmark, peer, job, dtype, n):
    inputs = problem(n, dtype)
    assert_agreement(PEERS[peer], inputs, full(eager, inputs))
    benchmark(job, PEERS[peer], inputs)


if __name__ == "__main__":
    main()
