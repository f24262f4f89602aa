"""Time of ops with glibc's defaults and with `mmssl.keep_freed_memory()`.

    python benchmarks/bench_page_faults.py --rounds 7

Each measurement is a process of its own, since the setting can't be undone, and the settings
alternate. The time is the process's CPU time on one thread, which other work on the machine
affects less than elapsed time. The table holds the medians over the rounds of the median time of a
call and of the page faults per call. Set ``MMSSL_DATA`` to use the interactions of the data sets
instead of graphs of the same size.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import bench_info_nce, workloads  # noqa: E402
from benchmarks.harness.environment import environment, heading, warning  # noqa: E402
from mmssl import ops  # noqa: E402
from mmssl.graph import InteractionGraph  # noqa: E402
from mmssl.memory import keep_freed_memory  # noqa: E402

D = 64
SETTINGS = ("default", "keep")
WARM_UP_CALLS = 5
MIN_CALLS = 10


def contrastive(n: int, backend: str = "auto") -> Callable[[], object]:
    """Return the loss and its gradients as in a training step, which frees the gradients."""
    anchor, positive = bench_info_nce.inputs(n, D, "float32", "cpu")

    def call() -> None:
        anchor.grad = positive.grad = None
        with ops.backend(backend):
            ops.info_nce(anchor, positive, 0.2).backward()

    return call


def product(graph: InteractionGraph, *, backward: bool) -> Callable[[], object]:
    """Return the product with a graph, with a loss and its gradient on request."""
    x = torch.randn(graph.num_items, D, requires_grad=backward)

    def call() -> None:
        x.grad = None
        y = ops.spmm(graph.ui, x)
        if backward:
            y.sum().backward()

    return call


CASES: dict[str, Callable[[], Callable[[], object]]] = {
    "`info_nce`, N = 1,024": lambda: contrastive(1024),
    "`info_nce`, N = 4,096": lambda: contrastive(4096),
    "the same in plain PyTorch": lambda: contrastive(4096, "reference"),
    "`spmm`, TikTok": lambda: product(workloads.load("tiktok").graph, backward=True),
    "`spmm`, Sports": lambda: product(workloads.load("sports").graph, backward=True),
    "`spmm`, 200,000 users, forward only": lambda: product(
        workloads.power_law(200_000, 50_000, 500_000), backward=False
    ),
}


def measure(case: str, seconds: float) -> tuple[float, float]:
    """Return the median milliseconds and the mean number of page faults of a call."""
    torch.set_num_threads(1)
    call = CASES[case]()
    for _ in range(WARM_UP_CALLS):
        call()
    times: list[float] = []
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    end = time.process_time() + seconds
    while len(times) < MIN_CALLS or time.process_time() < end:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return 1e3 * statistics.median(times), faults / len(times)


def compare(case: str, rounds: int, seconds: float) -> str:
    """Measure a case in alternating processes and return its row of the table."""
    found: dict[str, list[tuple[float, float]]] = {setting: [] for setting in SETTINGS}
    for number in range(rounds):
        for setting in SETTINGS[:: -1 if number % 2 else 1]:
            command = [sys.executable, __file__, "--one", case, setting, "--seconds", str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[setting].append(json.loads(done.stdout))
    ms, faults = (
        {setting: statistics.median(one[column] for one in found[setting]) for setting in SETTINGS}
        for column in (0, 1)
    )
    cells = [f"{ms[setting]:.2f} ms | {faults[setting]:,.0f}" for setting in SETTINGS]
    return f"| {case} | {' | '.join(cells)} | {ms['default'] / ms['keep']:.1f} |"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time per measurement")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SETTING"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, setting = arguments.one
        if setting == "keep":
            keep_freed_memory()
        print(json.dumps(measure(case, arguments.seconds)))
        return
    found = environment("cpu", smoke=False)
    print(heading(found))
    if line := warning(found):
        print(line)
    print("\n| one call | glibc's defaults | page faults | `keep_freed_memory()` | | ratio |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        print(compare(case, arguments.rounds, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
