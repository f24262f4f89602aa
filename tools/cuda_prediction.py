"""Predicted times of kernels on an H100, from the bounds of tools.cuda_budget, before any run.

``python -m tools.cuda_budget --write`` puts the table into benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

OVERLAP = 0.8
"""What is reached of the tightest bound: units wait for each other's results."""
MMA_SYNC = 0.629
"""Of the rate of wgmma, what mma.sync reaches on this device (Luo et al., arXiv:2402.13499)."""
LAUNCHES_MS = {"sum": 0.015, "grad": 0.02}
"""Of the short kernels around the large one: norms, panels, losses or the way back."""
SLOTS, ROWS = 2 * 132, 128
"""Blocks that run at a time, and rows of a block."""
SIZES = (4096, 16384, 65536)
HEAD = ["kernel", "N", "bound by", "its bound, ms", "predicted, ms", "TFLOP/s", "of 950 TFLOP/s"]
PEAK_TFLOPS = 950.0


class Bounded(Protocol):
    """A kernel with bounds: tools.cuda_budget.Budget."""

    @property
    def name(self) -> str:
        """As in the tables."""

    def bounds(self, n: int) -> dict[str, float]:
        """Milliseconds at least, by what bounds it."""


def filled(n: int) -> float:
    """Return the part of the multiprocessors' time that a grid of N rows fills."""
    blocks = -(-n // ROWS)
    blocks *= max(1, SLOTS // blocks)
    return blocks / (-(-blocks // SLOTS) * SLOTS)


def rows(budgets: Sequence[Bounded]) -> list[list[str]]:
    """Return a line per kernel and size: what bounds it, and milliseconds."""
    lines = []
    for budget in budgets:
        way = "grad" if " grad" in budget.name else "sum"
        for n in SIZES:
            bounds = budget.bounds(n)
            if "wgmma" not in budget.name:
                bounds["tensor"] /= MMA_SYNC
            limit = max(bounds, key=lambda name: bounds[name])
            predicted = bounds[limit] / (OVERLAP * filled(n)) + LAUNCHES_MS[way]
            # D = 64: a product of N x 2 N rows, and of 3 N for the scores and for the gradients.
            flop = 2.0 * n * n * 64 * (2 if way == "sum" else 6)
            rate = flop / predicted / 1e9
            shown = f"{bounds[limit]:.3g}", f"{predicted:.3g}", f"{rate:.0f}"
            lines.append([budget.name, f"{n:,}", limit, *shown, f"{rate / PEAK_TFLOPS:.0%}"])
    return lines
