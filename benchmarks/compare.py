"""Check whether a result file is slower than another: `mmssl bench compare A.json B.json`.

A row counts as a regression where its median is longer by the threshold *and* the quartiles do not
overlap, so that noise alone does not fail a build. Only the package's own rows count; what the
peers did between the two files says how much of a change is the machine.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.record import IDENTITY, Case, Results, Timing, read
from mmssl.errors import InputError


class Comparison(NamedTuple):
    """The lines to print and the number of regressions."""

    lines: list[str]
    regressions: int


def compare(before: Path, after: Path, threshold: float) -> Comparison:
    """Compare every row that both files hold.

    Raises:
        InputError: a file is not a result, the threshold is no ratio above 1, or the files have no
            case in common.
    """
    if not (threshold > 1 and math.isfinite(threshold)):
        raise InputError(f"--threshold: expected a ratio above 1, got {threshold}")
    old, new = read(before), read(after)
    known = {case.key: case for case in old.cases}
    pairs = [(known[case.key], case) for case in new.cases if case.key in known]
    if not pairs:
        raise InputError(f"{after}: expected a case that {before} holds too, got none")
    lines = _difference_of_machines(old, new)
    peers: list[float] = []
    counts = {"slower": 0, "faster": 0, "same": 0}
    for first, second in pairs:
        for name in first.rows.keys() & second.rows.keys():
            a, b = first.rows[name].full, second.rows[name].full
            if not is_ours(second, name):
                peers.append(b.median_ms / a.median_ms)
                continue
            verdict = judge(a, b, threshold)
            counts[verdict] += 1
            if verdict != "same":
                label = f"{second.op}, {second.workload}, {second.dtype}, {name}"
                lines.append(f"{verdict}: {label}: {_text(a)} -> {_text(b)}, {_ratio(a, b)}")
    if peers:
        lines.append(f"peers: {statistics.median(peers):.2f}x in the median over {len(peers)} rows")
    slower = counts["slower"]
    lines.append(
        f"{len(pairs)} cases in both files: {counts['same']} rows the same, {counts['faster']} "
        f"faster, {slower} slower by {threshold:g}x or more with quartiles apart"
    )
    return Comparison(lines, slower)


def judge(before: Timing, after: Timing, threshold: float) -> str:
    """Return "slower", "faster" or "same"."""
    if after.median_ms >= threshold * before.median_ms and after.q1_ms > before.q3_ms:
        return "slower"
    if before.median_ms >= threshold * after.median_ms and before.q1_ms > after.q3_ms:
        return "faster"
    return "same"


def is_ours(case: Case, name: str) -> bool:
    """Return whether a row is the package's and not a peer's."""
    kind = name.split(",")[0]
    if case.op == "evaluation":
        return kind == "mmssl"
    return kind in ("native", "reference", "released", "paper")


def _difference_of_machines(old: Results, new: Results) -> list[str]:
    apart = [
        f"{key} {old.environment.get(key)} / {new.environment.get(key)}"
        for key in IDENTITY
        if old.environment.get(key) != new.environment.get(key)
    ]
    lines = [f"warning: not the same machine or set-up: {', '.join(apart)}"] if apart else []
    busy = [r.environment.get("load_at_start") for r in (old, new) if r.environment.get("busy")]
    return lines + [f"warning: measured on a busy machine (load {load:.1f})" for load in busy]


def _text(t: Timing) -> str:
    return f"{t.median_ms:.3f} ms ({t.q1_ms:.3f}-{t.q3_ms:.3f})"


def _ratio(before: Timing, after: Timing) -> str:
    return f"{after.median_ms / before.median_ms:.2f}x"
