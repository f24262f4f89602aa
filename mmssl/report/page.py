"""The HTML of the report: one file without scripts or requests; untrusted text is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

from mmssl import __version__
from mmssl.report.analysis import Analysis
from mmssl.report.charts import bar_chart, color_name, percent, scatter, stylesheet
from mmssl.report.curves import best_epoch, curve_charts
from mmssl.report.embedding_map import EmbeddingMap
from mmssl.report.entries import Entry
from mmssl.report.examples import Example, Shown
from mmssl.report.run_details import run_details

_SHOWN_AT = "20"  # cut-off of the comparison table, as in the paper
_PROTOCOL = (
    "All items are ranked except the user's train items; metrics are means over the users who "
    "have held-out items. The epoch was chosen on validation; test was evaluated once, at the end."
)
# The browser enforces it: the page can neither fetch nor run anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Report(NamedTuple):
    """The content of the page."""

    entries: Sequence[Entry]
    data: str
    """Name and size of the data set, or why it is missing."""
    analysis: Analysis | None = None
    items: EmbeddingMap | None = None
    """Map of the items of the first entry."""
    examples: Sequence[Example] = ()


def render(report: Report) -> str:
    """Return the page."""
    entries = report.entries
    charts = curve_charts(entries)
    several = len(entries) > 1
    curves = _charts(charts) if charts else "<p class=muted>No epoch was logged.</p>"
    note = "Lines are means over the seeds, bands their range. " if _any_seeds(entries) else ""
    ring = "A ring marks the epoch that was kept. " if charts else ""
    sections = [
        _header(report),
        _section("Compared on test", _PROTOCOL, _comparison(entries)),
        _section("Learning curves", note + ring, (_legend(entries) if several else "") + curves),
    ]
    if report.analysis is not None:
        sections.append(_exposure(report.analysis, entries))
    if report.items is not None:
        sections.append(_map(report.items, entries[0]))
    if report.examples:
        sections.append(_section("Examples", _EXAMPLES, _examples(report.examples, entries)))
    sections.append(_section("All metrics", "", _all_metrics(entries)))
    sections.append(_section("Runs", "", "".join(map(run_details, entries))))
    title = " · ".join(entry.name for entry in entries)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}: MMSSL report</title>"
        # Browsers request an icon from the server unless the page has one.
        '<link rel="icon" href="data:,">'
        f"<style>{stylesheet()}</style></head>\n"
        f"<body><main>\n{''.join(sections)}"
        f"<footer>mmssl {escape(__version__)}. Self-contained: no scripts, no requests."
        "</footer></main></body></html>\n"
    )


_EXAMPLES = (
    "Some users, from the least to the most active, and the first ten items that each run "
    "recommends to them. Held-out test items are marked."
)


def _section(title: str, note: str, body: str) -> str:
    text = f"<p class=note>{note.strip()}</p>" if note else ""
    return f"<section><h2>{title}</h2>{text}{body}</section>\n"


def number(value: float | None) -> str:
    """Format a metric: four decimals, a dash if it is missing."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _any_seeds(entries: Iterable[Entry]) -> bool:
    return any(len(entry.records) > 1 for entry in entries)


def _key(position: int | None) -> str:
    return f'<span class=key style="background:var(--{color_name(position)})"></span>'


def _legend(entries: Sequence[Entry]) -> str:
    """Return the legend of the runs that have curves."""
    items = [
        f"<li>{_key(position)}{escape(entry.name)}</li>"
        for position, entry in enumerate(entries)
        if any(record.epochs for record in entry.records)
    ]
    return f"<ul class=legend>{''.join(items)}</ul>"


def _described(entry: Entry) -> str:
    """Return the name of an entry, with its model and number of seeds if the name differs."""
    words = [entry.kind] if entry.kind and entry.kind != entry.name else []
    words += [f"{len(entry.records)} seeds"] if len(entry.records) > 1 else []
    return escape(entry.name) + (f" <small>{escape(', '.join(words))}</small>" if words else "")


def _header(report: Report) -> str:
    first, *others = report.entries
    facts = [f"model {first.kind}"] if first.kind else []
    facts.append(f"{'seeds' if len(first.seeds) > 1 else 'seed'} {', '.join(first.seeds)}")
    epochs = first.records[0].epochs
    if epochs and len(first.records) == 1:
        facts.append(f"{epochs[-1].number} epochs, best {best_epoch(first.records[0])}")
    facts.append(report.data)
    tiles = [
        _tile(f"test {key}", number(value), _margin(report.entries, key))
        for name in ("recall", "ndcg", "precision")
        if (value := first.mean("test", key := f"{name}@{_SHOWN_AT}")) is not None
    ]
    if report.analysis is not None:
        own = report.analysis.entries[0]
        tiles.append(_tile("catalog coverage", f"{own.coverage:.0%}", "items in any list of 20"))
    title = escape(first.name)
    if others:
        title += " <span class=muted>against " + ", ".join(escape(e.name) for e in others)
        title += "</span>"
    return (
        f"<header><h1>{title}</h1><p class=muted>{' · '.join(map(escape, facts))}</p>"
        f"<div class=tiles>{''.join(tiles)}</div></header>\n"
    )


def _tile(name: str, value: str, below: str) -> str:
    return f"<div class=tile><span class=muted>{name}</span><b>{value}</b>{_below(below)}</div>"


def _below(text: str) -> str:
    return f"<span class={'up' if text.startswith('+') else 'muted'}>{escape(text)}</span>"


def _margin(entries: Sequence[Entry], key: str) -> str:
    own = entries[0].mean("test", key)
    rivals = [(value, e.name) for e in entries[1:] if (value := e.mean("test", key))]
    if not rivals or own is None:
        return ""
    value, name = max(rivals)
    return f"{own / value - 1:+.1%} vs {name}"


def _comparison(entries: Sequence[Entry]) -> str:
    keys = list(dict.fromkeys(key for entry in entries for key in entry.keys("test")))
    columns = [key for key in keys if key.endswith(f"@{_SHOWN_AT}")] or keys[:6]
    order = sorted(
        range(len(entries)),
        key=lambda n: -(entries[n].mean("test", columns[0]) or 0.0) if columns else 0.0,
    )
    best = {key: max(_known(e.mean("test", key) for e in entries), default=None) for key in columns}
    rows = [
        f"<tr><td>{_key(position)}{_described(entry)}</td>"
        + "".join(_cell(entry, "test", key, best[key]) for key in columns)
        + "</tr>"
        for position in order
        for entry in [entries[position]]
    ]
    return _table(["run", *columns], rows)


def _known(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None)


def _cell(entry: Entry, split: str, key: str, best: float | None = None) -> str:
    mean, deviation = entry.mean(split, key), entry.deviation(split, key)
    mark = " class=best" if mean is not None and mean == best else ""
    spread = "" if deviation is None else f" <small>± {deviation:.4f}</small>"
    return f"<td{mark}>{number(mean)}{spread}</td>"


def _all_metrics(entries: Sequence[Entry]) -> str:
    keys = dict.fromkeys(k for e in entries for split in ("test", "val") for k in e.keys(split))
    header = ["metric"]
    for entry in entries:
        prefix = f"{entry.name}, " if len(entries) > 1 else ""
        header += [f"{prefix}validation", f"{prefix}test"]
    rows = [
        f"<tr><td>{escape(key)}</td>"
        + "".join(_cell(entry, split, key) for entry in entries for split in ("val", "test"))
        + "</tr>"
        for key in keys
    ]
    return f"<details><summary>{len(rows)} metrics</summary>{_table(header, rows)}</details>"


def _table(header: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in header)
    head = f"<thead><tr>{cells}</tr></thead>"
    return f"<div class=scroll><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def _charts(charts: Iterable[tuple[str, str]], kind: str = "charts") -> str:
    figures = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in charts
    )
    return f'<div class="{kind}">{figures}</div>'


def _exposure(analysis: Analysis, entries: Sequence[Entry]) -> str:
    columns: list[tuple[str, Callable[[float], str]]] = [
        ("coverage", lambda v: f"{v:.1%}"),
        ("Gini", lambda v: f"{v:.3f}"),
        ("mean popularity", lambda v: f"{v:.1f}"),
        ("tail share", lambda v: f"{v:.1%}"),
    ]
    named = [
        (_key(n) + escape(e.name), x)
        for n, (e, x) in enumerate(zip(entries, analysis.entries, strict=True))
    ]
    named.append(
        (f"{_key(None)}<span class=muted>what users chose (test)</span>", analysis.held_out)
    )
    rows = [
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{form(v)}</td>" for (_, form), v in zip(columns, one[:4], strict=True))
        + "</tr>"
        for name, one in named
    ]
    chosen = "what users chose (test)"
    own = [
        (entry.name, one, n)
        for n, (entry, one) in enumerate(zip(entries, analysis.entries, strict=True))
    ]
    shares = bar_chart(
        [f"{count:,}" for count in analysis.item_groups],
        [
            *((name, one.by_popularity, n) for name, one, n in own),
            (chosen, analysis.held_out.by_popularity, None),
        ],
        label="Share of the lists by item popularity",
        x_label="items of a group, the most popular first",
        y_format=percent,
    )
    recall = bar_chart(
        analysis.user_groups,
        [(name, one.by_activity, n) for name, one, n in own],
        label="Recall@20 by the user's train interactions",
        x_label="train interactions of the user",
    )
    charts = [
        ("Share of the lists, by fifths of the train interactions", shares),
        ("Recall@20, by the user's activity", recall),
    ]
    return _section(
        "Coverage and popularity bias",
        "Lists of 20 items for every user. Coverage: share of the items that are in any list. "
        "Gini: 0 if all items are listed equally often, 1 if one item takes all. Mean popularity: "
        "train interactions of a listed item. Tail share: share of the lists outside the most "
        "popular fifth of the items.",
        _table(["run", *(name for name, _ in columns)], rows) + _charts(charts, "charts two"),
    )


def _map(items: EmbeddingMap, entry: Entry) -> str:
    method = "t-SNE" if items.method == "tsne" else "PCA"
    legend = "<li>train interactions</li>" + "".join(
        f'<li><span class=key style="background:var(--p{n})"></span>{escape(text)}</li>'
        for n, text in enumerate(items.legend)
        if text != "0"
    )
    label = f"{method} of the item vectors of {entry.name}"
    return _section(
        "Map of the items",
        f"{method} of the item vectors of {escape(entry.name)}, {len(items.points)} items, at unit "
        "length. Items near each other have similar vectors.",
        f"<figure class=map><ul class=legend>{legend}</ul>"
        f"{scatter(items.points, items.classes, items.tips, label)}</figure>",
    )


def _examples(examples: Sequence[Example], entries: Sequence[Entry]) -> str:
    cards = []
    for one in examples:
        lists = "".join(
            f"<div><h4>{_key(n)}{escape(entry.name)}</h4><ol>{''.join(map(_item, row))}</ol></div>"
            for n, (entry, row) in enumerate(zip(entries, one.lists, strict=True))
        )
        pictures = "".join(
            f'<img src="{escape(item.picture)}" alt="{escape(item.label)}" '
            f'title="{escape(item.label)}">'
            for item in one.history
            if item.picture is not None
        )
        strip = f"<div class=strip>{pictures}</div>" if pictures else ""
        history = ", ".join(escape(item.label) for item in one.history) or "none"
        more = one.num_train - len(one.history)
        cards.append(
            f"<div class=user><h3>User {escape(one.user)} <span class=muted>{one.num_train} in "
            f"train, {one.num_test} held out</span></h3>{strip}<p class=muted>Train items: "
            f"{history}{f' and {more} more' if more > 0 else ''}.</p>"
            f"<div class=lists>{lists}</div></div>"
        )
    return "".join(cards)


def _item(item: Shown) -> str:
    picture = (
        "" if item.picture is None else f'<img src="{escape(item.picture)}" alt="" loading=lazy>'
    )
    mark = " class=hit" if item.is_hit else ""
    return f"<li{mark}>{picture}<span>{escape(item.label)}</span></li>"
