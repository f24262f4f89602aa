"""Learning curves: one small chart per quantity, one line per run, a band for several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from mmssl.report.charts import Line, line_chart
from mmssl.report.entries import Entry
from mmssl.report.log import Epoch, RunRecord

_VALIDATION = ("recall@20", "ndcg@20")
_MAX_LOSSES = 7  # charts; more of them are hard to compare
_LOG_FROM = 4  # ratio of the lengths of runs from which the epoch axis is logarithmic


def curve_charts(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Draw two validation metrics, then the losses, as (title, SVG)."""
    logged = [epoch for entry in entries for record in entry.records for epoch in record.epochs]
    validated = list(dict.fromkeys(key for epoch in logged for key in epoch.val))
    chosen = [name for name in _VALIDATION if name in validated] or validated[:2]
    losses = list(dict.fromkeys(key for epoch in logged for key in epoch.loss))
    losses = sorted(losses, key=lambda name: name != "total")[:_MAX_LOSSES]
    charts = []
    for split, names in (("val", chosen), ("loss", losses)):
        for name in names:
            lines = [
                line
                for number, entry in enumerate(entries)
                if (line := _line(entry, split, name, number)) is not None
            ]
            if lines:
                title = f"Validation {name}" if split == "val" else f"Loss: {name}"
                charts.append((title, _chart(title, lines)))
    return charts


def best_epoch(record: RunRecord) -> int | None:
    """Return the epoch whose weights were kept, None if metrics.json names none."""
    best = record.metrics.get("best_epoch")
    return best if isinstance(best, int) and not isinstance(best, bool) else None


def _chart(title: str, lines: Sequence[Line]) -> str:
    longest = [max(line.x) for line in lines]
    return line_chart(
        lines,
        label=title,
        x_label="epoch",
        log_x=max(longest) >= _LOG_FROM * min(longest) and min(min(li.x) for li in lines) > 0,
    )


def _line(entry: Entry, split: str, name: str, number: int) -> Line | None:
    """Return the mean and the range over the seeds that reached each epoch."""
    values: dict[int, list[float]] = {}
    for record in entry.records:
        for epoch in record.epochs:
            value = _table(epoch, split).get(name)
            if value is not None and math.isfinite(value):
                values.setdefault(epoch.number, []).append(value)
    if not values:
        return None
    x = sorted(values)
    several = len(entry.records) > 1
    best = best_epoch(entry.records[0]) if not several and split == "val" else None
    return Line(
        name=entry.name,
        x=x,
        y=[statistics.fmean(values[epoch]) for epoch in x],
        low=[min(values[epoch]) for epoch in x] if several else None,
        high=[max(values[epoch]) for epoch in x] if several else None,
        color=number,
        mark=x.index(best) if best in values else None,
    )


def _table(epoch: Epoch, split: str) -> dict[str, float]:
    return epoch.val if split == "val" else epoch.loss
