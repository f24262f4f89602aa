"""The limits that results are compared with, measured in the same rounds.

On the CPU they are loops that do only the work in question (probes.py, gather.cpp); on a GPU they
are bytes and FLOP at the rates of probes_gpu.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import gather, probes_gpu
from benchmarks.harness.clock import Work, clock_of
from benchmarks.harness.record import Limit
from benchmarks.probes import fma_gflop_s
from mmssl.graph import GraphView


class Products:
    """FLOP at the machine's multiply-add rate; on a GPU at that of torch.mm in the same precision.

    Args:
        flop: FLOP of the work.
        device: "cpu" or "cuda".
        dtype: "float32", "TF32" or "bfloat16"; on the CPU all use the float32 rate.
        bytes: Minimum number of bytes moved, for the roofline.
    """

    def __init__(self, flop: float, device: str, dtype: str, bytes: float) -> None:
        self.flop, self.bytes = flop, bytes
        self.device, self.dtype = device, dtype
        self.rates: list[float] = []

    def turn(self) -> None:
        """Measure the rate."""
        if self.device == "cpu":
            self.rates.append(fma_gflop_s(torch.get_num_threads()))

    def limit(self) -> Limit:
        """Return the limit at the median rate."""
        if self.device == "cpu":
            rate, kind = statistics.median(self.rates), "multiply-adds in float32"
        else:
            rate, kind = probes_gpu.product_gflop_s(self.dtype), f"products in {self.dtype}"
        ms = self.flop / rate / 1e6
        return Limit(ms, kind, {"products": ms}, self.flop, self.bytes)


class Job:
    """The time of another job, e.g. of writing the result."""

    def __init__(self, kind: str, job: Callable[[], Any], device: str, bytes: float) -> None:
        self.kind, self.bytes = kind, bytes
        self.work, self.clock = Work(job), clock_of(device)
        self.seconds: list[float] = []

    def turn(self) -> None:
        """Run the job once untimed, then nine times."""
        for number in range(10):
            call = self.work.timed(self.clock)
            if number:
                self.seconds.append(call.full)

    def limit(self) -> Limit:
        """Return the median."""
        ms = 1e3 * statistics.median(self.seconds)
        return Limit(ms, self.kind, {self.kind: ms}, None, self.bytes)


def copying(count: float, device: str) -> Job:
    """Return a copy between two fixed buffers that reads and writes ``count`` bytes in total."""
    # Not zeros, which are one shared page until they are written and would be read from cache.
    source = torch.ones(max(1, int(count / 8)), device=device)
    target = torch.empty_like(source)
    return Job("a copy of the same bytes", lambda: torch.mul(source, 1, out=target), device, count)


class Gathers:
    """Rows and index of ``view @ x`` and of its backward, read; both results written.

    Args:
        view: (R, C).
        x: (C, D) float32; on the CPU D is 64.
        grad: (R, D).
        times: How often the work does that.
    """

    def __init__(self, view: GraphView, x: Tensor, grad: Tensor, times: int = 1) -> None:
        edges, (rows, columns), width = view.nnz, view_shape(view), x.shape[1]
        self.times = times
        self.read = 2.0 * edges * (4 * width + 4)
        self.written = 4.0 * width * (rows + columns)
        self.flop = 4.0 * edges * width
        self.rows = max(rows, columns)
        self.probe = gather.Probe(view, x.detach(), grad) if x.device.type == "cpu" else None
        # About 15 ms per round at 50 GB/s.
        self.calls = max(1, min(20, round(0.015 * 50e9 / self.read)))

    def turn(self) -> None:
        """Run every way to gather a few times."""
        if self.probe is not None:
            self.probe.turn(self.calls)

    def limit(self) -> Limit:
        """Return the limit of the fastest way."""
        if self.probe is not None:
            found = self.probe.limit()
            gathers, writes = 1e3 * found.gather, 1e3 * found.write
        else:
            gathers = self.read / probes_gpu.gather_gb_s(self.rows) / 1e6
            writes = self.written / probes_gpu.copy_gb_s() / 1e6
        times = self.times
        return Limit(
            times * (gathers + writes),
            "gathers + writes",
            {"gathers": times * gathers, "writes": times * writes},
            times * self.flop,
            times * (self.read + self.written),
        )


def view_shape(view: GraphView) -> tuple[int, int]:
    """Return (R, C)."""
    return view.num_rows, view.num_cols


def machine(device: str) -> dict[str, float]:
    """Return rates for the roofline: of products, and of bytes from memory and from cache."""
    if device == "cuda":
        return probes_gpu.all_probes()
    rate = statistics.median(fma_gflop_s(torch.get_num_threads()) for _ in range(3))
    far, near = copying(512e6, device), copying(2e6, device)
    for probe in (far, near):
        probe.turn()
    return {
        "float32_gflop_s": rate,
        "copy_gb_s": far.bytes / far.limit().ms / 1e6,
        "copy_cached_gb_s": near.bytes / near.limit().ms / 1e6,
    }
