"""Where a step of a light model spends its time, and the least that each phase can take.

The phases are the package's operators, Adam and the sampling, by torch's profiler; ``rest`` is the
remainder of a step that runs without it: autograd, sums of gradients, gathers of a batch's rows,
Python. The limit of a phase is the time of its bytes, of its rows to gather or of its multiply-adds
on this machine, measured in the same rounds; that of ``rest`` is zero.

Legend: U users, I items, B batch, D embedding dim, P parameters.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import limits
from benchmarks.harness.problem import Probe
from benchmarks.harness.record import Limit
from mmssl import ops
from mmssl.graph import GraphView
from mmssl.training.pairwise import PairwiseTask
from mmssl.training.profile import quiet_kineto

REST, LIGHTGCN = "rest", "propagation, BPR, L2 and Adam"
# Operator or profiler range -> phase.
PHASE_OF = {
    "mmssl::sample": "sampling",
    "mmssl::propagate_layers": "propagation",
    "mmssl::propagated_bpr_step": LIGHTGCN,
    "mmssl::spmm": "item graph",
    "mmssl::info_nce": "softmax and contrast",
    "mmssl::info_nce_backward": "softmax and contrast",
    "mmssl::bpr_loss": "BPR and L2",
    "mmssl::bpr_loss_backward": "BPR and L2",
    "aten::_fused_adam_": "Adam",
}


class Part(NamedTuple):
    """One call of an op in a step: how often its probe's work is done."""

    phase: str
    probe: Probe
    times: float


class Measured(NamedTuple):
    """Times in milliseconds per step."""

    steps_s: list[float]  # seconds of single steps, without the profiler
    phases_ms: dict[str, float]
    limit: Limit


def measure(task: PairwiseTask[Any, Any], *, turns: int = 5, steps: int = 12) -> Measured:
    """Interleave steps of whole batches with the probes of their limits."""
    count = max(1, task.steps_per_epoch - 1)  # the last batch is smaller
    task.start_epoch(0, 0)

    def run(first: int, number: int) -> list[float]:
        found = []
        for n in range(first, first + number):
            start = time.perf_counter()
            task.step(n % count)
            found.append(time.perf_counter() - start)
        return found

    run(0, 3)
    parts = parts_of(task, lambda: task.step(0))
    seconds: list[float] = []
    for turn in range(turns):
        for part in parts:
            part.probe.turn()
        run(turn, 1)  # untimed: the probes have filled the caches
        seconds += run(turn * steps, steps)
    with quiet_kineto(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(0, steps)
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.key in PHASE_OF:
            phase = PHASE_OF[event.key]
            spent[phase] = spent.get(phase, 0.0) + event.cpu_time_total / steps / 1e3
    spent[REST] = 1e3 * statistics.median(seconds) - sum(spent.values())
    return Measured(seconds, spent, sum_of(parts))


def sum_of(parts: list[Part]) -> Limit:
    """Add up the limits of the parts by phase."""
    by_phase: dict[str, float] = {}
    found = [(part, part.probe.limit()) for part in parts]
    for part, limit in found:
        by_phase[part.phase] = by_phase.get(part.phase, 0.0) + part.times * limit.ms
    total = [
        sum(part.times * (getattr(limit, name) or 0.0) for part, limit in found)
        for name in ("flop", "bytes")
    ]
    return Limit(sum(by_phase.values()), "sum over the phases", by_phase, *total)


def parts_of(task: PairwiseTask[Any, Any], step: Callable[[], object]) -> list[Part]:
    """List what a step does, by the ops that it calls."""
    batch, parameters = task.batch_size, list(task.model.parameters())
    numbers = sum(p.numel() for p in parameters)
    width = parameters[0].shape[1]
    device = str(task.device)
    parts: list[Part] = []

    def once(phase: str, probe: Probe, times: float = 1.0) -> None:
        parts.append(Part(phase, probe, times))

    # Three ids are written, and a line of the graph is read for each.
    once("sampling", limits.copying(batch * 3 * (8.0 + 64.0), device))
    with recorded() as calls:
        step()
    # Parameter, gradient and both moments are read, all but the gradient written.
    joined = any(name == "propagated_bpr_step" for name, *_ in calls)
    once(LIGHTGCN if joined else "Adam", limits.copying(28.0 * numbers, device))
    views: dict[int, limits.Gathers] = {}
    for name, arguments, options in calls:
        if name == "propagate_layers":
            graph, layers = arguments[0], arguments[3]
            # A probe reads the rows of both directions, as a hop does forward and again backward.
            once("propagation", _gathers(views, graph.ui, width), 2.0 * layers)
        elif name == "propagated_bpr_step":
            # All rows of all hops and a gradient, as its definition has them; the op has neither.
            layers = task.model.num_layers
            once(LIGHTGCN, _gathers(views, arguments[0].ui, width), 2.0 * layers)
            once(LIGHTGCN, limits.copying(4.0 * width * 2 * 3 * batch, device))
        elif name == "spmm":
            once("item graph", _gathers(views, arguments[0], width))
        elif name == "info_nce":
            once("softmax and contrast", _softmax(arguments, options, device))
        elif name == "bpr_loss":
            # Rows are read forward and backward, and two dense gradients written.
            count = 4.0 * width * (2 * 3 * batch + task.graph.num_users + task.graph.num_items)
            once("BPR and L2", limits.copying(count, device))
    return parts


def _gathers(views: dict[int, limits.Gathers], view: GraphView, width: int) -> limits.Gathers:
    """Return one probe for all calls on the same index."""
    key = view.col.data_ptr()
    if key not in views:
        x, grad = torch.randn(view.num_cols, width), torch.randn(view.num_rows, width)
        views[key] = limits.Gathers(view, x, grad)
    return views[key]


def _softmax(arguments: tuple[Any, ...], options: dict[str, Any], device: str) -> limits.Products:
    """The multiply-adds of a call, as in bench_info_nce."""
    anchor, positive = arguments[0], arguments[1]
    passes = 6 if options.get("intra_view", True) else 4
    n, m, d = anchor.shape[0], positive.shape[0], anchor.shape[1]
    return limits.Products(passes * 2.0 * n * m * d, device, "float32", bytes=8.0 * (n + m) * d)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, tuple[Any, ...], dict[str, Any]]]]:
    """Record the calls of ops that a model makes, with tensors that keep their shapes only."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def recording(name: str) -> Callable[..., Any]:
        function = getattr(ops, name)

        def call(*arguments: Any, **options: Any) -> Any:
            shapes = tuple(a.detach().to("meta") if isinstance(a, Tensor) else a for a in arguments)
            calls.append((name, shapes, options))
            return function(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for name in ("propagate_layers", "propagated_bpr_step", "spmm", "info_nce", "bpr_loss"):
            stack.enter_context(mock.patch.object(ops, name, recording(name)))
        yield calls
