"""Result files as tables of strings, which Markdown and HTML share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.harness.record import NOT_INSTALLED, Case, Results, Row

RELEASED = "released arithmetic"


class Table(NamedTuple):
    """A title, a line on how to read it, a header and rows of cells."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As GitHub renders it, without the title."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(value: float) -> str:
    """Three significant digits, thousands apart."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def times(ratio: float) -> str:
    """A factor."""
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"


def quartiles(row: Row) -> str:
    """Median with quartiles, ms."""
    t = row.full
    return f"{ms(t.median_ms)} ({ms(t.q1_ms)}-{ms(t.q3_ms)})"


def ratio(case: Case, name: str) -> float:
    """A row's time over the baseline's: taken within turns where that was measured."""
    row = case.rows[name]
    if row.relative is not None:
        return row.relative.median
    return row.full.median_ms / case.rows[case.baseline].full.median_ms


def family(case: Case) -> str:
    """The op without its parameters: "masked_topk, k = 20" -> "masked_topk"."""
    return re.split(r", | with ", case.op)[0]


def label(case: Case) -> str:
    """What tells a case apart within its family."""
    parts = [case.workload, *re.split(r", | with ", case.op)[1:]]
    if case.dtype not in ("float32", "uint8"):
        parts.append(case.dtype)
    if case.sizes.get("d", 64) != 64:
        parts.append(f"d = {case.sizes['d']}")
    return ", ".join(parts)


def tables(results: Results) -> list[Table]:
    """Of a file."""
    makers = {
        "step": step_tables, "evaluate": evaluate_table, "scale": scale_table,
        "models": model_tables,
    }  # fmt: skip
    if results.suite == "ops":
        return op_tables(results.cases)
    return makers.get(results.suite, other_tables)(results.cases)


def op_tables(cases: Iterable[Case]) -> list[Table]:
    """One per op: a row per case, the peers as multiples of the package's time."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(family(case), []).append(case)
    result = []
    for name, group in groups.items():
        peers = _union(case.rows for case in group)
        peers = [peer for peer in peers if peer != "native"]
        header = ["", "limit, ms", "native, ms (quartiles)", "forward + backward", "of the limit"]
        header += ["MB", *peers]
        rows = [_op_row(case, peers) for case in group]
        text = (
            "Peers as multiples of native's time; MB is what one call adds to the process. On the "
            "CPU bfloat16 is held to the limit of float32."
        )
        result.append(Table(name, text, header, rows))
    return result


def _op_row(case: Case, peers: Sequence[str]) -> list[str]:
    own = case.rows["native"]
    both = "-"
    if own.forward is not None and own.backward is not None:
        both = f"{ms(own.forward.median_ms)} + {ms(own.backward.median_ms)}"
    return [
        label(case),
        "-" if case.limit is None else ms(case.limit.ms),
        quartiles(own),
        both,
        _share(own),
        "-" if own.peak_mb is None else f"{own.peak_mb:.0f}",
        *(times(ratio(case, peer)) if peer in case.rows else "-" for peer in peers),
    ]


def step_tables(cases: Sequence[Case]) -> list[Table]:
    """Seconds a step and memory by configuration and data set."""
    names = _union(case.rows for case in cases)
    header = [""]
    for case in cases:
        header += [f"{case.workload}, s (quartiles)", "faster", "peak, MB"]
    rows = []
    for name in names:
        cells = [name]
        for case in cases:
            cells += _step_cells(case, name)
        rows.append(cells)
    text = f"Faster: against the {RELEASED} in the same run."
    return [Table("training step", text, header, rows)]


def _step_cells(case: Case, name: str) -> list[str]:
    row = case.rows.get(name)
    if row is None:
        return ["-", "-", "-"]
    low, high = row.full.q1_ms / 1e3, row.full.q3_ms / 1e3
    seconds = f"{row.full.median_ms / 1e3:.3g} ({low:.3g}-{high:.3g})"
    memory = "-" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
    return [seconds, times(1 / ratio(case, name)), memory]


def evaluate_table(cases: Sequence[Case]) -> list[Table]:
    """Full ranking by data set."""
    names = _union(case.rows for case in cases)
    rows = []
    for case in cases:
        cells = [f"{case.workload} ({case.sizes['users']:,} users)"]
        for name in names:
            if name in case.rows:
                shown = f"{case.rows[name].full.median_ms / 1e3:.3g}"
                factor = f" ({times(ratio(case, name))})" if name != case.baseline else ""
                cells.append(shown + factor)
            else:
                cells.append("-")
        rows.append(cells)
    text = "Seconds; in brackets as multiples of ours."
    return [Table("evaluation", text, ["", *names], rows)]


def other_tables(cases: Sequence[Case]) -> list[Table]:
    """A table a case for results that have no form of their own."""
    return [
        Table(
            f"{case.op}, {label(case)}",
            "",
            ["", "ms (quartiles)", "calls", f"times {case.baseline}"],
            [
                [name, quartiles(row), f"{row.full.calls:,}", times(ratio(case, name))]
                for name, row in case.rows.items()
            ],
        )
        for case in cases
    ]


def model_tables(cases: Sequence[Case]) -> list[Table]:
    """A table of all steps by phase, and one for every epoch."""
    rows = []
    for case in cases:
        if case.limit is None:
            continue
        row = case.rows[case.baseline]
        least = case.limit.ms
        rows.append([f"{case.op}, {label(case)}", "all", quartiles(row), ms(least), _share(row)])
        for phase, spent in row.extra["phases_ms"].items():
            part = case.limit.parts_ms.get(phase)
            cells = ["-", "-"] if part is None else [ms(part), f"{100 * part / spent:.0f} %"]
            rows.append(["", phase, ms(spent), *cells])
    header = ["", "phase", "ms (quartiles)", "limit, ms", "of the limit"]
    text = "The limit of a step is the sum over its phases; nothing in `rest` is needed."
    steps = [Table("steps by phase", text, header, rows)] if rows else []
    return steps + other_tables([case for case in cases if case.limit is None])


def _share(row: Row) -> str:
    return "-" if row.of_limit is None else f"{100 * row.of_limit:.0f} %"


def scale_table(cases: Sequence[Case]) -> list[Table]:
    """A step against the size of the data."""
    rows = []
    for case in cases:
        (row,) = case.rows.values()
        rows.append(
            [
                str(row.extra.get("sweep", "")),
                f"{case.sizes['items']:,}",
                f"{case.sizes['edges']:,}",
                f"{row.full.median_ms / 1e3:.3g}",
                "-" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
            ]
        )
    header = ["growing", "items", "edges", "s a step", "peak, MB"]
    return [Table("step against size", "", header, rows)]


def missing(results: Results) -> list[str]:
    """Who was not measured, and why: a line for each reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in results.cases:
        for name, reason in case.missing.items():
            reasons.setdefault((name, reason), []).append(f"{family(case)} on {label(case)}")
    return [
        f"{name}: {reason} ({where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''})"
        for (name, reason), where in reasons.items()
    ]


def environment_lines(environment: dict[str, Any]) -> list[str]:
    """What it was measured with."""
    e = environment
    clock = e.get("clock_mhz")
    versions = {k: v for k, v in e.get("versions", {}).items() if v != NOT_INSTALLED}
    lines = [
        f"{e['name']}, {e.get('cores', '?')} cores, {e['threads']} threads, {e['simd']}",
        f"torch {e['torch']}, Python {e['python']}, commit {e['commit']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if clock:
        lines.append(f"clocks seen: {clock['lowest']:.0f}-{clock['highest']:.0f} MHz")
    if rates := e.get("rates"):
        shown = (f"{k.rsplit('_g', 1)[0].replace('_', ' ')} {v:,.0f}" for k, v in rates.items())
        lines.append(f"measured rates (GFLOP/s, GB/s): {', '.join(shown)}")
    if e.get("load_at_start") is not None:
        busy = ": the machine was busy" if e.get("busy") else ""
        lines.append(f"load at the start {e['load_at_start']:.2f}{busy}")
    if e.get("data") == "stand-ins":
        lines.append("data sets are stand-ins of the same shapes, not the real ones")
    if e.get("note"):
        lines.append(str(e["note"]))
    return [line for line in lines if line]


def _union(names: Iterable[Iterable[str]]) -> list[str]:
    """In the order of their first appearance."""
    return list(dict.fromkeys(name for group in names for name in group))
