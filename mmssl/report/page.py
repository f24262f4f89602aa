"""The report's HTML: one file, no script, nothing fetched, every outside text escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mmssl.report.curve import COLORS
from mmssl.report.log import RunRecord
from mmssl.serving import UserRecommendations

_DARK = {"ink": "#e7e9ec", "muted": "#99a0aa", "line": "#32363d", "accent": "#77adf5"}
_SHOWN_AT = "20"  # the cut-off of the comparison table; the paper's
_PROTOCOL = (
    "Full ranking over all items with the user's train items left out; mean over the users who "
    "have held-out items. The epoch was picked on validation; test was read once, at the end."
)


def _variables(colors: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{color};" for name, color in colors.items())


_STYLE = (
    f":root{{color-scheme:light dark;{_variables(COLORS)}--page:#fff;--panel:#f6f7f9}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_variables(_DARK)}--page:#16181c;--panel:#1f2227}}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.75rem 0 .5rem}
h3{font-size:.95rem;margin:0 0 .25rem;overflow-wrap:anywhere}
p{margin:.25rem 0;max-width:48rem}
.muted,caption,th,dt{color:var(--muted)}
.tiles{display:flex;flex-wrap:wrap;gap:.75rem;margin:1.5rem 0 0}
.tile{background:var(--panel);border-radius:.5rem;padding:.75rem 1rem;flex:1 1 10rem}
.tile b{display:block;font-size:1.7rem;line-height:1.25;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .75rem .4rem 0;text-align:right;border-bottom:1px solid var(--line)}
th{font-weight:500;white-space:nowrap}
th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere}
tr.own td{background:var(--panel)}
tr.own td:first-child{font-weight:600;padding-left:.5rem}
.best{font-weight:700;color:var(--accent)}
.lists{display:grid;grid-template-columns:repeat(auto-fill,minmax(18rem,1fr));gap:.75rem}
.list{background:var(--panel);border-radius:.5rem;padding:.9rem 1rem}
ol{margin:.5rem 0 0;padding-left:1.6rem}
li span{float:right;margin-left:.75rem}
li{overflow-wrap:anywhere}
svg{width:100%;height:auto}
svg text{font-family:system-ui,sans-serif!important}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.15rem 1rem;margin:.5rem 0}
dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--panel);border-radius:.5rem;padding:1rem;overflow-x:auto;font-size:.85rem}
summary{cursor:pointer}
@media print{details{display:block}}
"""
)


def render(run: RunRecord, svg: str | None, recommendations: Sequence[UserRecommendations]) -> str:
    """The whole page.

    Args:
        run: What the run directory holds.
        svg: The learning curves, trusted markup; None if no epoch was logged.
        recommendations: Sample lists, may be empty.
    """
    curves = "<p class=muted>No epoch was logged.</p>" if svg is None else svg
    sections = [
        _header(run),
        _section("Compared on test", _comparison(run)),
        _section("Learning curves", curves),
        _section("Sample recommendations", _lists(recommendations)) if recommendations else "",
        _section("All metrics", _all_metrics(run)),
        _section("Run", _details(run)),
        "" if run.config is None else _config(run.config),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(run.name)}: MMSSL run</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>\n"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _header(run: RunRecord) -> str:
    facts = [
        f"{name} {escape(str(run.metrics[name]))}"
        for name in ("model", "variant", "seed")
        if name in run.metrics
    ]
    if run.epochs:
        facts.append(f"{run.epochs[-1].number} epochs, best {escape(str(best_epoch(run)))}")
    tiles = [
        f"<div class=tile><span class=muted>test {name}@{_SHOWN_AT}</span>"
        f"<b>{_number(run.test[key])}</b>{_margin(run, key)}</div>"
        for name in ("recall", "ndcg", "precision")
        if (key := f"{name}@{_SHOWN_AT}") in run.test
    ]
    return (
        f"<header><h1>{escape(run.name)}</h1><p class=muted>{' · '.join(facts)}</p>"
        f"<div class=tiles>{''.join(tiles)}</div></header>\n"
    )


def best_epoch(run: RunRecord) -> int | None:
    """The epoch that was kept, where metrics.json names one."""
    best = run.metrics.get("best_epoch")
    return best if isinstance(best, int) else None


def _margin(run: RunRecord, key: str) -> str:
    rivals = [(values[key], name) for name, values in run.baselines.items() if values.get(key, 0)]
    if not rivals or not math.isfinite(run.test[key]):
        return ""
    value, name = max(rivals)
    return f"<span class=muted>{run.test[key] / value - 1:+.1%} vs {escape(name)}</span>"


def _comparison(run: RunRecord) -> str:
    columns = [key for key in run.test if key.endswith(f"@{_SHOWN_AT}")] or list(run.test)[:6]
    words = [str(run.metrics[name]) for name in ("model", "variant") if name in run.metrics]
    own = f"this run ({', '.join(words)})" if words else "this run"
    rows = [(own, run.test, True), *((n, v, False) for n, v in run.baselines.items())]
    rows.sort(key=lambda row: -row[1].get(columns[0], 0.0) if columns else 0.0)
    best = {key: max(_comparable(values.get(key)) for _, values, _ in rows) for key in columns}
    body = "".join(
        f"<tr{' class=own' if is_own else ''}><td>{escape(name)}</td>"
        + "".join(_cell(values.get(key), best[key]) for key in columns)
        + "</tr>"
        for name, values, is_own in rows
    )
    return f"<p class=muted>{_PROTOCOL}</p>" + _table(["model", *columns], body)


def _comparable(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _cell(value: float | None, best: float) -> str:
    mark = " class=best" if value is not None and value == best else ""
    return f"<td{mark}>{_number(value)}</td>"


def _all_metrics(run: RunRecord) -> str:
    keys = dict.fromkeys([*run.test, *run.val])
    body = "".join(
        f"<tr><td>{escape(key)}</td><td>{_number(run.val.get(key))}</td>"
        f"<td>{_number(run.test.get(key))}</td></tr>"
        for key in keys
    )
    return _table(["metric", "validation", "test"], body)


def _table(header: Iterable[str], body: str) -> str:
    cells = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in header)
    head = f"<thead><tr>{cells}</tr></thead>"
    return f"<div class=scroll><table>{head}<tbody>{body}</tbody></table></div>"


def _lists(recommendations: Sequence[UserRecommendations]) -> str:
    cards = []
    for row in recommendations:
        items = "".join(
            f"<li><span class=muted>{score:.2f}</span>{escape(label)}</li>"
            for label, score in row.items
        )
        history = ", ".join(map(escape, row.history)) or "nothing"
        cards.append(
            f"<div class=list><h3>User {escape(row.user)}</h3>"
            f"<p class=muted>In train: {history}</p><ol>{items}</ol></div>"
        )
    return f"<div class=lists>{''.join(cards)}</div>"


def _details(run: RunRecord) -> str:
    rows: list[tuple[str, str]] = []
    timed = [epoch.seconds for epoch in run.epochs if epoch.seconds is not None]
    if timed:
        rows.append(("epoch, median", f"{sorted(timed)[len(timed) // 2]:.2f} s"))
        rows.append(("all epochs", f"{sum(timed):.1f} s"))
    for section in ("timing", "environment"):
        content = run.metrics.get(section)
        if isinstance(content, Mapping):
            rows += [(f"{section}: {name}", _plain(value)) for name, value in content.items()]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    return f"<dl>{items}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _config(text: str) -> str:
    return (
        "<section><details><summary>Complete configuration (config.toml)</summary>"
        f"<pre>{escape(text)}</pre></details></section>\n"
    )
