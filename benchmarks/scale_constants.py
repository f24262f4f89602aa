"""Rates of this machine for the cost model (``scale_model.py``), and a training step to check it.

``python -m benchmarks.scale_constants`` measures them in fresh processes and writes
``benchmarks/results/scale/scale-constants.json``.

Legend: U users, I items, E edges, D embedding dim.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import workloads
from benchmarks.harness import environment, memory
from benchmarks.limits import Gathers, copying
from benchmarks.probes import fma_gflop_s
from mmssl import ops
from mmssl.config import load_config
from mmssl.data import InteractionDataset, Interactions
from mmssl.memory import keep_freed_memory
from mmssl.training.task import create_task

RESULT = Path(__file__).with_name("results") / "scale" / "scale-constants.json"
WIDTH = 64
GRAPH = (1_000_000, 200_000, 10_000_000)
"""Users, items and edges drawn; the tables of both sides are far larger than the caches."""
SMOKE = (2_000, 500, 20_000)


def rates(size: tuple[int, int, int], calls: int) -> dict[str, float]:
    """Measure copies, gathers of rows, sparse products, multiply-adds and Adam: the fastest calls.

    What else runs on the machine only takes from a rate. Gathers are medians of their probe.
    """
    keep_freed_memory()
    graph = workloads.power_law(*size)
    x, grad = torch.randn(graph.num_items, WIDTH), torch.randn(graph.num_users, WIDTH)
    gathers = Gathers(graph.ui, x, grad)
    copies = copying(min(512e6, 4.0 * WIDTH * sum(size[:2])), "cpu")
    for _ in range(calls):
        gathers.turn()
        copies.turn()
    probe = gathers.limit()
    x.requires_grad_()

    def product() -> None:
        ops.spmm(graph.ui, x).backward(grad)
        x.grad = None

    table = torch.nn.Parameter(torch.randn(graph.num_users, WIDTH))
    table.grad = torch.randn(graph.num_users, WIDTH)
    adam = torch.optim.Adam([table], lr=1e-3, fused=True)  # as the models have it
    return {
        "users": graph.num_users,
        "items": graph.num_items,
        "edges": graph.nnz,
        "copy_gb_s": copies.bytes / min(copies.seconds) / 1e9,
        "gather_gb_s": gathers.read / probe.parts_ms["gathers"] / 1e6,
        "spmm_gb_s": gathers.read / _seconds(product, calls)[0] / 1e9,
        "adam_gb_s": 7 * 4 * table.numel() / _seconds(lambda: adam.step(), calls)[0] / 1e9,
        "float32_gflop_s": fma_gflop_s(torch.get_num_threads()),
    }


def step(size: tuple[int, int, int], calls: int) -> dict[str, float]:
    """Measure training steps of LightGCN with three layers, and the peak memory."""
    keep_freed_memory()
    graph = workloads.power_law(*size)
    user, item = graph.ui.row_of_edge().numpy(), graph.index.col.long().numpy()
    splits = {
        name: Interactions(user[part], item[part])
        for name, part in (("val", slice(1)), ("test", slice(1, 2)), ("train", slice(2, None)))
    }
    users, items = graph.num_users, graph.num_items
    del graph
    dataset = InteractionDataset(name="random", num_users=users, num_items=items, **splits)
    edges = dataset.train.num_edges
    batch = min(1 << 16, edges // 4)
    config = load_config(settings=(f"lightgcn.batch_size={batch}",))
    task = create_task("lightgcn", dataset, config)
    task.start_epoch(0, 0)
    del dataset, splits, user, item
    task.step(0)
    memory.trim()
    memory.reset_peak()
    seconds = statistics.median(_seconds(lambda: task.step(1), calls))
    return {
        **{"users": users, "items": items, "edges": edges, "layers": config.lightgcn.num_layers},
        **{"batch": batch, "seconds": seconds, "peak_mb": memory.peak_mb()},
    }


def _seconds(job: Callable[[], object], calls: int) -> list[float]:
    """Return the seconds of calls after an untimed one, ascending."""
    spent = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        job()
        spent.append(time.perf_counter() - start)
    return sorted(spent[1:])


PARTS: dict[str, Callable[[tuple[int, int, int], int], dict[str, Any]]] = {
    "rates": rates,
    "step": step,
}


def main(argv: list[str] | None = None) -> None:
    """Measure all, or one part in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a small graph, to see that it runs")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args(argv)
    if arguments.part is not None:
        size, calls = (SMOKE, 1) if arguments.smoke else (GRAPH, 9)
        print(json.dumps(PARTS[arguments.part](size, calls)))
        return
    smoke = ["--smoke"] if arguments.smoke else []
    found = {
        part: memory.in_fresh_process("scale_constants", "--part", part, *smoke) for part in PARTS
    }
    content = {"suite": "scale-constants", "environment": environment.environment(), **found}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
