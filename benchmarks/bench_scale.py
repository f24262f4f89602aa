"""Time and peak memory of a training step as a function of the size of the data.

Variant ``paper`` with a critic of fixed width on seeded power-law graphs, each size in a fresh
process, in two sweeps: items, users and edges growing together, and edges alone. A size that would
exceed the free memory, extrapolated from the two before it, is left out. ``mmssl bench scale``
runs these cases.

Legend: U users, I items, E edges.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks import workloads
from benchmarks.harness import environment, memory
from benchmarks.harness.clock import Work, clock_of, take_turns
from benchmarks.harness.phases import annotated, phases
from benchmarks.harness.record import Case, Row, Timing
from benchmarks.steps import make_step, named_functions
from mmssl.config import load_config
from mmssl.memory import keep_freed_memory

WIDTHS = {"image": 128, "text": 64}
SETTINGS = ("critic.hidden=512",)
NAME = "paper, critic 512"


class Size(NamedTuple):
    """Size of a random graph."""

    users: int
    items: int
    edges: int


TOGETHER, EDGES = "items, users and edges", "edges alone"
SWEEPS = {
    TOGETHER: tuple(Size(i, i, 40 * i) for i in (5_000, 20_000, 80_000, 250_000)),
    EDGES: tuple(Size(50_000, 50_000, e) for e in (500_000, 2_000_000, 8_000_000, 20_000_000)),
}
SMOKE = {
    TOGETHER: tuple(Size(2 * i, i, 20 * i) for i in (100, 200)),
    EDGES: (Size(200, 100, 500),),
}


def measure_size(size: Size, device: str, turns: int) -> tuple[dict[str, int], Row]:
    """Measure steps of one size in this process: seconds, phases of one more step, peak memory."""
    keep_freed_memory()  # as `mmssl train` does
    graph = workloads.power_law(*size).to(device)
    features = workloads.random_features(size.items, WIDTHS)
    features = {name: rows.to(device) for name, rows in features.items()}
    step = make_step(graph, features, load_config("paper", settings=SETTINGS))
    memory.reset_peak()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    number = 0

    def run() -> None:
        nonlocal number
        number += 1
        step(step.draw(), number)

    # The first step, which builds what later ones share, is the warm-up.
    found = take_turns({NAME: Work(run)}, clock_of(device), seconds=0, turns=turns, most_calls=1)
    row = Row(Timing.of([call.full for turn in found[NAME] for call in turn]))
    cuda = device == "cuda"
    row.peak_mb = torch.cuda.max_memory_allocated() / 2**20 if cuda else memory.peak_mb()
    with annotated(named_functions(step)):
        row.extra["phases_ms"] = phases(run)
    return {"users": graph.num_users, "items": graph.num_items, "edges": graph.nnz}, row


def in_fresh_process(size: Size, device: str, turns: int) -> tuple[dict[str, int], Row]:
    """Run `measure_size` in a fresh process, so that the peak memory is that of this size alone."""
    arguments = [*map(str, size), device, str(turns)]
    sizes, full, peak_mb, extra = memory.in_fresh_process("bench_scale", *arguments)
    return sizes, Row(Timing(*full), peak_mb=peak_mb, extra=extra)


def expected_mb(before: Sequence[Case], size: Size) -> float:
    """Extrapolate the peak memory of a size from the two sizes before it; 0 without them."""
    if len(before) < 2:
        return 0.0
    (edges0, mb0), (edges1, mb1) = ((c.sizes["edges"], c.rows[NAME].peak_mb) for c in before[-2:])
    assert mb0 is not None and mb1 is not None
    return mb1 + (mb1 - mb0) / (edges1 - edges0) * (size.edges - edges1)


def cases(size: str, device: str) -> Iterator[Case]:
    """What ``mmssl bench scale`` measures, by size."""
    smoke = size == "smoke"
    measure = measure_size if smoke or device == "cuda" else in_fresh_process
    for sweep, sizes in (SMOKE if smoke else SWEEPS).items():
        done: list[Case] = []
        for graph in sizes:
            expected, free = expected_mb(done, graph), memory.available_mb()
            if expected > free:
                print(f"{graph}: left out, about {expected:.0f} MB, {free:.0f} free")
                continue
            found, row = measure(graph, device, 1 if smoke else 2)
            row.extra["sweep"] = sweep
            name = f"{sweep}: {graph.items:,} items, {graph.edges:,} edges drawn"
            case = Case(
                "step against size", name, "float32", found, NAME, {NAME: row},
                commit=environment.commit(),
            )  # fmt: skip
            done.append(case)
            yield case


if __name__ == "__main__":  # one size, in a fresh process
    counts, measured = measure_size(Size(*map(int, sys.argv[1:4])), sys.argv[4], int(sys.argv[5]))
    print(json.dumps([counts, measured.full, measured.peak_mb, measured.extra]))
