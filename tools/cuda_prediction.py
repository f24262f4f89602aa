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


L2_BYTES, L2_BYTES_S, DRAM_BYTES_S = 40e6, 5.5e12, 3.35e12
"""What of the L2 a table may fill (of 50 MB), and the rates of an H100 SXM."""
ISSUED_S, IN_FLIGHT, CHUNK, LATENCY_S, LAUNCH_S = 132 * 4 * 1.755e9, 8, 64, 0.7e-6, 4e-6
"""Instructions a second; of csrc/ops/propagate/kernels.cu; a turn to memory, and a launch."""
PRODUCTS = (
    # name, rows, columns, edges, width, lanes of 4 or (odd widths) 1 numbers
    ("TikTok", 9_308, 6_710, 59_541, 64, 16),
    ("Sports", 35_598, 18_357, 218_409, 64, 16),
    ("10M edges", 1_000_000, 500_000, 10_172_405, 64, 16),
    ("critic of TikTok, padded", 2_048, 6_710, 6_550, 1_680, 32),
    ("critic of TikTok", 2_048, 6_710, 6_550, 1_677, 32),
)
PRODUCT_HEAD = ["product", "D", "MB gathered and written", "their time, us", "predicted, us",
                "predicted / their time"]  # fmt: skip


def products(instructions: int) -> list[list[str]]:
    """Return a line per sparse product in float32: the time of its bytes, and what is predicted.

    Args:
        instructions: of a warp for 8 edges and as many columns as its lanes hold.
    """
    lines = []
    for name, num_rows, columns, edges, d, lanes in PRODUCTS:
        vec = 4 if d % 4 == 0 else 1
        table, gathered, written = (4.0 * n * d for n in (columns, edges, num_rows))
        missed = gathered * max(0.0, 1 - L2_BYTES / table) + min(table, gathered)
        dram = (missed + written + 4.0 * edges) / DRAM_BYTES_S
        least = max((gathered + written) / L2_BYTES_S, dram)
        sectors = 1 if vec == 4 else 5 / 4  # rows that begin anywhere
        issue = edges / 8 * -(-d // (vec * lanes)) * lanes / 32 * instructions / ISSUED_S
        turns = 2 * CHUNK / IN_FLIGHT if edges > num_rows * IN_FLIGHT else 4
        predicted = max(least * sectors, issue) / OVERLAP + turns * LATENCY_S / 2 + 2 * LAUNCH_S
        lines.append([name, f"{d:,}", f"{(gathered + written) / 1e6:.0f}", f"{least * 1e6:.1f}",
                      f"{predicted * 1e6:.1f}", f"{predicted / least:.1f}"])  # fmt: skip
    return lines
