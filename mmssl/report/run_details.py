"""The timing, environment and configuration of a run as HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from mmssl.report.entries import Entry


def run_details(entry: Entry) -> str:
    """Return a collapsed block with the details of an entry's first run."""
    record = entry.records[0]
    rows: list[tuple[str, str]] = []
    timed = [epoch.seconds for epoch in record.epochs if epoch.seconds is not None]
    if timed:
        rows.append(("epoch, median", f"{sorted(timed)[len(timed) // 2]:.2f} s"))
        rows.append(("all epochs", f"{sum(timed):.1f} s"))
    for section in ("timing", "environment"):
        content = record.metrics.get(section)
        if isinstance(content, Mapping):
            rows += [(f"{section}: {name}", _plain(value)) for name, value in content.items()]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    config = "" if record.config is None else f"<pre>{escape(record.config)}</pre>"
    which = f", seed {escape(entry.seeds[0])}" if len(entry.seeds) > 1 else ""
    return (
        f"<details><summary>{escape(entry.name)}{which}: timing, environment, configuration"
        f"</summary><dl>{items}</dl>{config}</details>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
