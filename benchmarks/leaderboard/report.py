"""The generated part of docs/leaderboard.md and its picture, from the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.leaderboard.board import SELECTED, Results, Row, Value, load
from benchmarks.leaderboard.records import RESULTS, ROOT, Record
from benchmarks.report.figure import Panel, draw
from benchmarks.report.readme import with_block
from benchmarks.report.tables import Table
from mmssl.config import read_toml
from mmssl.plotting import BLUE, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = ROOT / "docs" / "leaderboard.md"
PICTURE = ROOT / "docs" / "images" / "leaderboard.svg"
PUBLISHED = Path(__file__).with_name("published.toml")
BLOCK = "leaderboard"

_ACCURACY = ("recall@10", "recall@20", "ndcg@10", "ndcg@20", "precision@10", "precision@20")
_LEAVE_ONE_OUT = ("hit@10", "hit@20", "ndcg@10", "ndcg@20")
_SHOWN = {"recall": "Recall", "ndcg": "NDCG", "precision": "Precision", "hit": "HR"}
_GROUPS = {"tail": "long-tail items", "cold": "cold items", "sparse": "sparse users"}


def write_page(results: Path = RESULTS, page: Path = PAGE, picture: Path = PICTURE) -> list[Path]:
    """Rewrite the block of the page, and the picture if there are results.

    Raises:
        InputError: The page lacks the markers, or a record can't be read.
    """
    found = load(results)
    text = with_block(page.read_text(encoding="utf-8"), block(found), BLOCK)
    page.write_text(text, encoding="utf-8")
    if not any(part.models() for part in found):
        return [page]
    picture.write_text(overview(found), encoding="utf-8")
    return [page, picture]


def block(found: Sequence[Results]) -> str:
    """Return the tables of all data sets."""
    shown = [part for part in found if part.models()]
    if not shown:
        return "No results have been committed yet."
    labels = list(dict.fromkeys(row.label for part in shown for row in part.models()))
    parts = [
        f"![Recall@20 of every model on every data set](images/{PICTURE.name})",
        "",
        "Mean test Recall@20 (HR@20 where the split is leave-one-out), highest first on the data "
        "set on the left; an empty cell was not run:",
        "",
        _together(shown).markdown(),
    ]
    for part in shown:
        parts += ["", *_of_data(part, labels)]
    return "\n".join(parts)


def _together(found: Sequence[Results]) -> Table:
    """Return one number per model and data set; data sets with most models come first."""
    by_data = {part.data["name"]: {row.label: row for row in part.models()} for part in found}
    names = sorted(by_data, key=lambda name: (-len(by_data[name]), name))
    means = {
        name: {label: _mean(row, "test", SELECTED) for label, row in by_data[name].items()}
        for name in names
    }

    def order(label: str) -> list[float]:
        return [-means[name].get(label, -1.0) for name in names]

    cells = []
    for label in sorted({label for column in means.values() for label in column}, key=order):
        line = [label]
        for name in names:
            mean = means[name].get(label)
            text = "" if mean is None else _decimal(mean)
            best = mean is not None and mean == max(means[name].values())
            line.append(f"**{text}**" if best else text)
        cells.append(line)
    return Table("", "", ["", *names], cells)


def _of_data(part: Results, labels: Sequence[str]) -> list[str]:
    """Return the section of a data set."""
    rows = part.models()
    missing = [label for label in labels if label not in {row.label for row in rows}]
    lines = [
        f"### {part.data['name']}",
        "",
        _describe(part),
        "",
        _accuracy(part, rows).markdown(),
        "",
        *([f"Not run on this data set: {', '.join(missing)}.", ""] if missing else []),
        *_tested(rows),
        _groups(part, rows).markdown(),
        "",
        _cost(rows).markdown(),
    ]
    for base in rows:
        changed = part.ablations(base)
        if changed:
            lines += ["", *_ablations(base, changed)]
    return lines + _published(part, rows)


def _describe(part: Results) -> str:
    data = part.data
    content = [f"{name} {width}" for name, width in data["features"].items()]
    content += [f"item graph of {name}" for name in data["neighbors"]]
    machines: dict[str, set[str]] = {}
    for row in part.rows:
        for record in row.seeds:
            e = record["environment"]
            threads = f"{e['threads']} thread{'s' if e['threads'] > 1 else ''}"
            commits = machines.setdefault(f"{threads} of {e['name']}, torch {e['torch']}", set())
            commits.add(e["commit"])
    runs = [
        f"{machine}, {f'commit {min(commits)}' if len(commits) == 1 else f'{len(commits)} commits'}"
        for machine, commits in sorted(machines.items())
    ]
    return (
        f"{data['users']:,} users, {data['items']:,} items; {data['train']:,} train, "
        f"{data['val']:,} validation and {data['test']:,} test interactions, split "
        f"{data['split']['protocol']}; {', '.join(content) or 'no features'}; hash "
        f"`{data['hash'][:12]}`. Run on {'; '.join(runs)}."
    )


def _accuracy(part: Results, rows: Sequence[Row]) -> Table:
    keys = _LEAVE_ONE_OUT if part.is_leave_one_out else _ACCURACY
    best = {key: max(_mean(row, "test", key) for row in rows) for key in keys}
    cells = []
    for row in rows:
        line = [row.label]
        for key in keys:
            text = _number(row.value("test", key))
            line.append(f"**{text}**" if _mean(row, "test", key) == best[key] else text)
        trials = row.seeds[0]["tuning"]["trials"]
        lost = f", {row.diverged} diverged" if row.diverged else ""
        cells.append([*line, f"{len(row.seeds)}{lost}", str(trials)])
    header = ["", *map(_name, keys), "seeds", "trials"]
    return Table("", "", header, cells)


def _tested(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on the best row against the next."""
    if len(rows) < 2:
        return []
    found = rows[0].minus(rows[1])
    seeds = "" if found.p_seeds is None else f", over seeds p {_equals(found.p_seeds)}"
    return [
        f"Recall@20 of {rows[0].label} minus that of {rows[1].label}: {_signed(found.mean)}; over "
        f"users p {_equals(found.p_users)}{seeds}.",
        "",
    ]


def _groups(part: Results, rows: Sequence[Row]) -> Table:
    first = rows[0].seeds[0]["groups"]
    header = [
        "Recall@20",
        *(f"{shown} ({first[name]['users']:,} users)" for name, shown in _GROUPS.items()),
        "share of the catalog listed",
    ]
    cells = []
    for row in rows:
        values = [_number(row.value("groups", name, SELECTED)) for name in _GROUPS]
        coverage = row.value("coverage@20")
        cells.append([row.label, *values, "" if coverage is None else f"{coverage.mean:.0%}"])
    return Table("", "", header, cells)


def _cost(rows: Sequence[Row]) -> Table:
    header = [
        *("", "s per epoch", "epochs to best", "s to best", "peak memory, MB", "parameters"),
        "setting",
    ]
    cells = []
    for row in rows:
        trained = row.value("seconds_per_epoch") is not None
        busy = any(record["environment"]["busy"] for record in row.seeds)
        per_epoch = _short(row.value("seconds_per_epoch"))
        to_best = _short(row.value("seconds_to_best" if trained else "seconds"))
        star = " *" if busy else ""
        peak, size = row.value("peak_mb"), row.value("parameters")
        cells.append(
            [
                row.label,
                f"{per_epoch}{star}" if trained else "",
                _short(row.value("best_epoch")) if trained else "",
                f"{to_best}{star}",
                "" if peak is None else f"{peak.mean:,.0f}",
                "" if size is None else f"{size.mean:,.0f}",
                _setting(row.seeds[0]),
            ]
        )
    return Table("", "", header, cells)


def _ablations(base: Row, changed: Sequence[Row]) -> list[str]:
    difference = ["difference of Recall@20", "p, users", "p, seeds"]
    header = ["", "seeds", "Recall@20", "NDCG@20", *difference]
    shown = [_number(base.value("test", key)) for key in (SELECTED, "ndcg@20")]
    cells = [[base.label, str(len(base.seeds)), *shown, "", "", ""]]
    for row in changed:
        found = row.minus(base)
        shown = [_number(row.value("test", key)) for key in (SELECTED, "ndcg@20")]
        seeds = "" if found.p_seeds is None else _p(found.p_seeds)
        name, count = row.label.removeprefix(f"{base.label}, "), str(len(row.seeds))
        cells.append([name, count, *shown, _signed(found.mean), _p(found.p_users), seeds])
    text = f"Ablations of {base.label}, everything else as tuned:"
    return [text, "", Table("", "", header, cells).markdown()]


def _published(part: Results, rows: Sequence[Row]) -> list[str]:
    content = read_toml(PUBLISHED)
    figures = content["data"].get(part.data["name"])
    if figures is None:
        return []
    ours = {
        row.label: [_number(row.value("test", key)) for key in (SELECTED, "ndcg@20")]
        for row in rows
    }
    cells, notes = [], []
    for number, (name, published) in enumerate(figures.items(), 1):
        source: dict[str, Any] = content["source"][name]
        notes.append(f"[{number}] {source['text']}; {source['note']}.")
        for model, recall, ndcg in published:
            here = ours.get(content["label"].get(model), ["", ""])
            chosen = [source["epoch"], source["tuning"], f"[{number}]"]
            cells.append([model, _decimal(recall), here[0], _decimal(ndcg), here[1], *chosen])
    cells.sort(key=lambda line: -float(line[1]))
    best = rows[0].label
    cells.insert(0, [best, "", ours[best][0], "", ours[best][1], "", "", ""])
    header = [
        *("", "Recall@20, published", "here", "NDCG@20, published", "here", "epoch by"),
        *("setting by", "source"),
    ]
    text = "Figures that others have published on the same split, next to those of this page:"
    return ["", text, "", Table("", "", header, cells).markdown(), "", " ".join(notes)]


def overview(found: Sequence[Results]) -> str:
    """Return a picture with a panel per data set: Recall@20 with deviations over the seeds."""
    panels = []
    for part in found:
        rows = part.models()[::-1]
        if rows:
            panels.append(Panel(part.data["name"], "test Recall@20", "", _Bars(rows)))
    most = max(len(part.models()) for part in found)
    return draw(panels, width=4.6, height=1.0 + 0.24 * most)


class _Bars:
    """Draws rows as bars from the bottom up."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, axes: Axes) -> None:
        own = {"paper", "plus"}
        for place, row in enumerate(self.rows):
            mean, deviation = row.value("test", SELECTED) or Value(0.0, None)
            axes.barh(place, mean, color=BLUE if row.label in own else MUTED, height=0.7)
            if deviation is not None:
                axes.errorbar(mean, place, xerr=deviation, color=INK, capsize=2, linewidth=1)
        axes.set_yticks(range(len(self.rows)), [row.label for row in self.rows])
        axes.grid(False, axis="y")


def _mean(row: Row, *path: str) -> float:
    value = row.value(*path)
    assert value is not None
    return value.mean


def _name(key: str) -> str:
    metric, _, k = key.partition("@")
    return f"{_SHOWN[metric]}@{k}"


def _decimal(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _number(value: Value | None) -> str:
    if value is None:
        return ""
    mean = _decimal(value.mean)
    return mean if value.deviation is None else f"{mean} ± {_decimal(value.deviation)}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + _decimal(abs(value))


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _equals(value: float) -> str:
    text = _p(value)
    return text if text.startswith("<") else f"= {text}"


def _short(value: Value | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:,.0f}" if value.mean >= 100 else f"{value.mean:.3g}"


def _setting(record: Record) -> str:
    """Return the searched fields with their chosen values; empty for the defaults."""
    parameters = record["tuning"]["parameters"]
    names = [name.partition(".")[2] for name in parameters]
    shown = []
    for name, value in parameters.items():
        short = name.partition(".")[2]
        short = short if names.count(short) == 1 else name
        shown.append(f"{short} {value:.3g}" if isinstance(value, float) else f"{short} {value}")
    return ", ".join(shown)
