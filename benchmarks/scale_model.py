"""The tables of ``docs/scale.md``: what training on larger graphs takes than this machine can hold.

``python -m benchmarks.scale_model`` prints them; with a file as argument it rewrites the lines
between ``<!-- scale: NAME -->`` and ``<!-- /scale -->`` in it. Rates of this machine come from
``scale_constants.py``, the formulas from ``scale_costs.py``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale_costs import (
    EVERY,
    FLOAT,
    H100,
    H200,
    SHARES,
    Graph,
    halo,
    memory,
    step,
    traffic,
)

RESULTS = Path(__file__).with_name("results") / "scale"


def constants() -> dict[str, Any]:
    """Return what ``scale_constants.py`` measured."""
    found: dict[str, Any] = json.loads((RESULTS / "scale-constants.json").read_text())
    return found


def predicted_here() -> tuple[float, float]:
    """Return seconds and bytes of the step that was measured, from the rates of this machine."""
    found = constants()
    rates, case = found["rates"], found["step"]
    graph = Graph(int(case["users"]), int(case["items"]), int(case["edges"]))
    gathers, streams = traffic(graph, int(case["layers"]), int(case["batch"]))
    adam = 7 * graph.table
    seconds = (
        gathers / rates["spmm_gb_s"]
        + (streams - adam) / rates["copy_gb_s"]
        + adam / rates["adam_gb_s"]
    )
    return seconds / 1e9, memory(graph, 1)


def table_constants() -> str:
    """Rates that were measured, and those that vendors state."""
    found = constants()
    rates = found["rates"]
    rows = [
        (
            f"{found['environment']['cores']} cores, {found['environment']['cpu']} (measured)",
            *(f"{rates[name]:,.1f}" for name in ("copy_gb_s", "gather_gb_s", "spmm_gb_s")),
            f"{rates['float32_gflop_s'] / 1000:,.2f} (float32)",
            "",
            "",
        )
    ]
    rows += [
        (
            f"{device.name}, {device.memory_gb:g} GB (stated)",
            f"{device.memory_gb_s:,.0f}",
            f"{device.memory_gb_s * SHARES['gathers']:,.0f} (assumed)",
            "",
            f"{device.bfloat16_tflop_s:,.0f} (bfloat16)",
            f"{device.link_gb_s:g}",
            f"{device.network_gb_s:g}",
        )
        for device in (H100, H200)
    ]
    header = ("device", "memory, GB/s", "gathers of 256 B rows", "`spmm`", "TFLOP/s")
    return _table((*header, "link, GB/s", "network, GB/s"), rows)


def table_check() -> str:
    """The model against a step that was measured here."""
    case = constants()["step"]
    seconds, size = predicted_here()
    rows = [
        ("seconds", f"{seconds:.2f}", f"{case['seconds']:.2f}"),
        ("peak, GB", f"{size / 1e9:.2f}", f"{case['peak_mb'] * 2**20 / 1e9:.2f}"),
    ]
    return _table(("a step of LightGCN", "predicted", "measured"), rows)


def table_hop() -> str:
    """Rows and bytes that a process receives in one hop of both sides."""
    rows = []
    for processes in (2, 4, 8, 16, 32):
        cells = [str(processes)]
        for graph in EVERY:
            count = halo(graph, processes)
            size = FLOAT * graph.width * count / 1e9
            cells += [f"{count / 1e6:.2f} M", f"{size:.2f}", f"{size / 2:.2f}"]
        rows.append(tuple(cells))
    header = [f"{name}, {_edges(graph)}" for graph in EVERY for name in ("rows", "GB", "GB, bf16")]
    return _table(("P", *header), rows)


def table_memory() -> str:
    """GB per process."""
    rows = [
        (
            mode,
            _edges(graph),
            *(f"{memory(graph, p, sharded=mode == 'sharded') / 1e9:.1f}" for p in (1, 2, 4, 8, 16)),
        )
        for mode in ("data", "sharded")
        for graph in EVERY
    ]
    return _table(("mode", "edges", *(f"P = {p}" for p in (1, 2, 4, 8, 16))), rows)


def table_plan() -> str:
    """Seconds per step and epoch, and what binds."""
    rows = []
    for graph in EVERY:
        steps = -(-graph.edges // (1 << 20))
        for device, processes, sharded, wire in (
            *((device, p, True, 4) for device in (H100, H200) for p in (1, 2, 4, 8)),
            (H200, 8, False, 4),
            (H200, 16, True, 4),
            (H200, 16, True, 2),
            (H200, 32, True, 2),
        ):
            found = step(graph, device, processes, sharded=sharded, wire_bytes=wire)
            need = memory(graph, processes, sharded=sharded) / 1e9
            mode = "-" if processes == 1 else "sharded" if sharded else "data"
            rows.append(
                (
                    _edges(graph),
                    f"{processes} x {device.name.split()[0]}",
                    mode + (", bf16 wire" if wire == 2 else ""),
                    f"{need:.1f}" + ("" if need < device.memory_gb else " (too much)"),
                    *(f"{1e3 * part:.0f}" for part in found),
                    found.binds,
                    f"{steps * found.seconds:,.0f}",
                )
            )
    header = ("edges", "GPUs", "mode", "GB per GPU", "gathers, ms", "streams, ms", "wire, ms")
    return _table((*header, "binds", "s per epoch"), rows)


def table_losses() -> str:
    """What losses over the catalog, and evaluation, add to an epoch."""
    rows = []
    for graph in EVERY:
        rate = H200.bfloat16_tflop_s * SHARES["products"] * 1e12
        pair = 2 * graph.width
        batch = 1 << 20
        # Forward, then scores again and both gradients: seven halves of the forward's products.
        for what, flop in (
            (
                "softmax over the catalog, all edges as anchors",
                3.5 * pair * graph.edges * graph.items,
            ),
            (f"InfoNCE within batches of {batch:,}", 3.5 * pair * graph.edges * batch),
            ("evaluation of all users, forward only", pair * graph.users * graph.items),
        ):
            seconds = flop / rate
            cells = (f"{seconds / p:,.0f}" for p in (1, 8))
            rows.append((_edges(graph), what, f"{flop / 1e15:,.0f}", *cells))
    return _table(("edges", "work of an epoch", "PFLOP", "s, 1 x H200", "s, 8 x H200"), rows)


def table_paper() -> str:
    """Memory of `paper` in one process."""
    graph, modalities, listed, hidden, hops = EVERY[0], 2, 1, 512, 8
    pointers = 8 * graph.nodes
    parts = (
        ("index arrays of the interactions, both directions", "8 E + 8 (U + I)",
         8 * graph.edges + pointers),
        ("modality graphs, both directions", "M (8 k U + 8 (U + I))",
         modalities * (8 * listed * graph.users + pointers)),
        ("ID embeddings, gradient and the two moments of AdamW", "16 D (U + I)", 4 * graph.table),
        (f"{hops} outputs of hops, kept for backward", f"{4 * hops} D (U + I)", hops * graph.table),
        ("first layer of the critic (width h), gradient and moments", "16 I h",
         16 * graph.items * hidden),
    )  # fmt: skip
    rows = [(what, formula, f"{size / 1e9:.1f}") for what, formula, size in parts]
    total = sum(size for *_, size in parts)
    return _table(("array", "bytes", "GB"), [*rows, ("together", "", f"{total / 1e9:.1f}")])


def table_import() -> str:
    """Time and memory of imports, as measured."""
    found = json.loads((RESULTS / "import-scale.json").read_text())
    rows = [
        (
            f"{entry['rows']:,}",
            entry["step"],
            *(f"{entry['sizes'][name]:,}" for name in ("users", "items", "edges")),
            f"{entry['seconds']:,.1f}",
            f"{entry['peak_mb'] * 2**20 / 1e9:.2f}",
        )
        for entry in found["steps"]
    ]
    header = ("rows of the file", "step", "users", "items", "interactions", "seconds", "peak, GB")
    return _table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "import": table_import,
    "constants": table_constants,
    "check": table_check,
    "hop": table_hop,
    "memory": table_memory,
    "plan": table_plan,
    "losses": table_losses,
    "paper": table_paper,
}
_MARK = re.compile(r"(<!-- scale: (\w+) -->\n).*?(<!-- /scale -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """Return a page with its tables replaced."""
    return _MARK.sub(lambda mark: mark[1] + TABLES[mark[2]]() + mark[3], text)


def _edges(graph: Graph) -> str:
    return f"{graph.edges / 1e9:g} B" if graph.edges >= 1e9 else f"{graph.edges / 1e6:g} M"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |\n" for line in (header, *rows)]
    return "".join([lines[0], "|---" * len(header) + "|\n", *lines[1:]])


def main(argv: list[str] | None = None) -> None:
    """Print the tables, or rewrite those of files."""
    files = sys.argv[1:] if argv is None else argv
    for file in map(Path, files):
        file.write_text(rewritten(file.read_text()))
    if not files:
        print("\n".join(f"{name}\n\n{table()}" for name, table in TABLES.items()))


if __name__ == "__main__":
    main()
