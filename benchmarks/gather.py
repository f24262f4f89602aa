"""The limit of a sparse product on this machine: its gathers and index reads, and its writes.

Nothing is estimated: gather.cpp is compiled when it is first asked for (a C++ compiler is needed),
runs the same accesses over the same graph and adds the rows up in registers, several ways; the
fastest counts. Outputs are written to memory that is mapped already, so no page fault counts.
``python -m benchmarks.gather`` prints the limit of two graphs and what each variant took.
"""

from __future__ import annotations

import ctypes
import functools
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.graph import GraphView

WIDTH = 64


class _Direction(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("rowptr", ctypes.c_void_p),
        ("col", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("edges", ctypes.c_int64),
        ("y", ctypes.c_void_p),
    )


class Limit(NamedTuple):
    """Seconds per forward and backward."""

    gather: float  # 256 B a gathered row and 4 B of index an edge, both directions
    write: float  # 256 B a row of y and of the gradient of x

    @property
    def total(self) -> float:
        """Both."""
        return self.gather + self.write


@functools.cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("gather.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "gather.so")
        flags = ["-O3", "-std=c++17", "-Wno-psabi", "-shared", "-fPIC", "-pthread"]
        command = [os.environ.get("CXX", "g++"), *flags, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


class Probe:
    """Times the accesses of ``view @ x`` and of its backward.

    Args:
        view: an (R, C) view on the CPU.
        x: (C, 64) float32, contiguous.
        grad: (R, 64) float32, contiguous.
    """

    def __init__(self, view: GraphView, x: Tensor, grad: Tensor) -> None:
        for name, t in (("x", x), ("grad", grad)):
            if t.shape[1] != WIDTH or t.dtype != torch.float32 or not t.is_contiguous():
                raise ValueError(f"{name}: expected contiguous (N, 64) float32, got {t.shape}")
        self._kept = [view, x, grad, torch.zeros_like(grad), torch.zeros_like(x.detach())]
        y, grad_x = self._kept[3:]
        self._directions = (_Direction * 2)(
            _direction(x, view.rowptr, view.col, y),
            _direction(grad, view.t_rowptr, view.t_col, grad_x),
        )
        variants = _library().gather_variants()
        self.gathers: list[list[float]] = [[] for _ in range(variants)]
        self.writes: list[list[float]] = [[], []]

    def turn(self, repetitions: int) -> None:
        """Run every variant once untimed, then ``calls`` times."""
        for variant, kept in enumerate(self.gathers):
            streaming = variant % 2
            for repetition in range(repetitions + 1):
                gather, write = self._run(variant, streaming)
                if repetition:
                    kept.append(gather)
                    self.writes[streaming].append(write)

    def limit(self) -> Limit:
        """Return the fastest variant by its median."""
        return Limit(
            min(statistics.median(seconds) for seconds in self.gathers),
            min(statistics.median(seconds) for seconds in self.writes),
        )

    def _run(self, variant: int, streaming: int) -> tuple[float, float]:
        seconds, sink = (ctypes.c_double * 2)(), ctypes.c_float()
        _library().gather_pass(
            self._directions,
            variant,
            streaming,
            torch.get_num_threads(),
            seconds,
            ctypes.byref(sink),
        )
        return seconds[0], seconds[1]


def _direction(x: Tensor, rowptr: Tensor, col: Tensor, y: Tensor) -> _Direction:
    return _Direction(
        x.data_ptr(),
        rowptr.data_ptr(),
        col.data_ptr(),
        rowptr.numel() - 1,
        col.numel(),
        y.data_ptr(),
    )


if __name__ == "__main__":
    from benchmarks import workloads

    for name in ("tiktok", "sports"):
        view = workloads.load(name).graph.ui
        probe = Probe(view, torch.randn(view.num_cols, WIDTH), torch.randn(view.num_rows, WIDTH))
        probe.turn(20)
        found = probe.limit()
        per_second = 2 * 260 * view.nnz / found.gather / 1e9
        print(
            f"{name}: gathers {1e3 * found.gather:.3f} ms ({per_second:.0f} GB/s),"
            f" writes {1e3 * found.write:.3f} ms"
        )
        print("  variants, ms:", *(f"{1e3 * statistics.median(s):.3f}" for s in probe.gathers))
