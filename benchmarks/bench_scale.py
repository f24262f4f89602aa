"""What a training step costs against the size of the data: time and peak memory.

``python benchmarks/bench_scale.py [--smoke] [--json F] [--plot F.png]`` trains variant ``paper``
with a critic of fixed width on seeded power-law graphs, each size in a fresh process, in two
sweeps: items, users and edges growing together, and edges alone. It prints the slope between
successive sizes in log-log, 1 being linear; a slope below 1 is the batch's own cost, which does not
grow. A size that would not fit into the free memory, by the growth of the two before it, is left
out.

Legend: U users, I items, E edges.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure, workloads
from benchmarks.steps import make_step, named_functions
from mmssl.config import load_config
from mmssl.training.memory import keep_freed_memory

WIDTHS = {"image": 128, "text": 64}
SETTINGS = ("critic.hidden=512",)


class Size(NamedTuple):
    """A graph to be drawn."""

    users: int
    items: int
    edges: int


TOGETHER = tuple(Size(i, i, 40 * i) for i in (5_000, 20_000, 80_000, 250_000, 500_000))
EDGES = tuple(Size(50_000, 50_000, e) for e in (500_000, 2_000_000, 8_000_000, 20_000_000))
SWEEPS = {"items, users and edges": TOGETHER, "edges alone": EDGES}
SMOKE = {
    "items, users and edges": tuple(Size(2 * i, i, 20 * i) for i in (100, 200)),
    "edges alone": tuple(Size(200, 100, e) for e in (500, 1_000)),
}


def measure_size(size: Size, steps: int) -> dict[str, Any]:
    """Steps of one size in this process: seconds each, phases of one more, peak memory."""
    keep_freed_memory()  # as `mmssl train` does
    graph = workloads.power_law(*size)
    features = workloads.random_features(size.items, WIDTHS)
    config = load_config("paper", settings=SETTINGS)
    step = make_step(graph, features, config)
    start_mb = measure.peak_mb()
    measure.reset_peak()
    seconds = []
    for number in range(steps + 1):
        start = time.perf_counter()
        step(step.draw(), number)
        if number:  # the first one builds what later ones share
            seconds.append(time.perf_counter() - start)
    timing = measure.Timing.of(seconds)
    peak_mb = measure.peak_mb()
    with measure.annotated(named_functions(step)):
        phases = measure.phases(lambda: step(step.draw(), steps + 1))
    return {
        "users": graph.num_users,
        "items": graph.num_items,
        "edges": graph.nnz,
        **timing._asdict(),
        "build_peak_mb": start_mb,
        "peak_mb": peak_mb,
        "phases_ms": phases,
    }


def in_fresh_process(size: Size, steps: int) -> dict[str, Any]:
    """:func:`measure_size` in a process of its own, so that its peak memory is its own."""
    arguments = ["--one", *map(str, size), "--steps", str(steps)]
    return measure.in_fresh_process("bench_scale.py", *arguments)


def sweep(
    name: str, sizes: tuple[Size, ...], along: str, steps: int, one: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measures every size by ``one``; prints a row each and returns them."""
    print(f"\n{name}")
    print(
        f"{'users':>9s} {'items':>9s} {'edges':>11s} {'median, s':>10s} {'steps/s':>8s} "
        f"{'slope':>6s} {'peak, MB':>9s} {'slope':>6s}"
    )
    rows: list[dict[str, Any]] = []
    for size in sizes:
        expected, free = expected_mb(rows, size), available_mb()
        if expected > free:
            print(
                f"{size.items} items, {size.edges} edges: about {expected:.0f} MB, {free:.0f} free"
            )
            continue
        row = one(size, steps)
        for key in ("median", "peak_mb"):
            row[f"{key}_slope"] = slope(rows[-1], row, along, key) if rows else None
        rows.append(row)
        slopes = [
            "" if row[key] is None else f"{row[key]:.2f}"
            for key in ("median_slope", "peak_mb_slope")
        ]
        print(
            f"{row['users']:9d} {row['items']:9d} {row['edges']:11d} {row['median']:10.3f} "
            f"{1 / row['median']:8.2f} {slopes[0]:>6s} {row['peak_mb']:9.0f} {slopes[1]:>6s}",
            flush=True,
        )
    return rows


def expected_mb(rows: list[dict[str, Any]], size: Size) -> float:
    """Peak memory of a size, on the line through the two sizes before it; 0 without them."""
    if len(rows) < 2:
        return 0.0
    before, last = rows[-2:]
    per_edge = (last["peak_mb"] - before["peak_mb"]) / (last["edges"] - before["edges"])
    return float(last["peak_mb"] + per_edge * (size.edges - last["edges"]))


def available_mb() -> float:
    """What the system can still give; without /proc, anything."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) / 1024
    return math.inf


def slope(before: dict[str, Any], after: dict[str, Any], along: str, key: str) -> float:
    """Of log(key) over log(along)."""
    return math.log(after[key] / before[key]) / math.log(after[along] / before[along])


def plot(sweeps: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Seconds a step and peak memory over the edges, log-log, with a line of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (key, label) in zip(
        axes, (("median", "seconds a step"), ("peak_mb", "peak memory, MB")), strict=True
    ):
        for name, rows in sweeps.items():
            axis.loglog([r["edges"] for r in rows], [r[key] for r in rows], "o-", label=name)
        last = max((rows[-1] for rows in sweeps.values()), key=lambda row: row["edges"])
        ends = [last["edges"] / 30, last["edges"]]
        line = [last[key] * end / last["edges"] for end in ends]
        axis.loglog(ends, line, "k:", linewidth=1, label="linear")
        axis.set(xlabel="edges", ylabel=label)
        axis.grid(True, which="major", alpha=0.3)
    axes[0].legend(frameon=False)
    figure.suptitle("Training step, paper variant, batch 1024, critic of width 512, two cores")
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny graphs, in this process")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each size")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw them (needs matplotlib)")
    parser.add_argument("--one", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure_size(Size(*options.one), options.steps)))
        return
    print(measure.heading())
    along = {"items, users and edges": "items", "edges alone": "edges"}
    sizes, one = (SMOKE, measure_size) if options.smoke else (SWEEPS, in_fresh_process)
    sweeps = {name: sweep(name, of, along[name], options.steps, one) for name, of in sizes.items()}
    measure.write_json(options.json, settings=SETTINGS, sweeps=sweeps)
    if options.plot:
        plot(sweeps, options.plot)


if __name__ == "__main__":
    main()
