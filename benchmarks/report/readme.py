"""Figures of the documents, generated from the results by ``mmssl bench report --readme``.

The summary in the README, the tables and the picture in docs/benchmarks.md, and the table of limits
in benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.harness.record import Case, Results, read
from benchmarks.report.figure import draw
from benchmarks.report.plots import against_size, step_panels
from benchmarks.report.tables import RELEASED, Table, family, label, ms, ratio, times
from mmssl.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "benchmarks-cpu.svg"
BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"
BLOCK = "bench"
PAGE = ROOT / "docs" / "benchmarks.md"
NOTES = ROOT / "benchmarks" / "NOTES.md"

SHOWN = {
    "tiktok": "TikTok", "baby": "Baby", "sports": "Sports", "gowalla": "Gowalla",
    "power-law-10m": "10M power-law edges",
}  # fmt: skip
STEP_ROWS = (
    RELEASED, "released", "paper", "paper, bfloat16", "paper, critic 512"
)  # fmt: skip
# Op, workload: one line each of the second table.
OP_ROWS = (
    ("info_nce", "N = 1,024"), ("info_nce", "N = 9,308"), ("propagate", "tiktok"),
    ("propagate", "sports"), ("propagate", "power-law-10m"), ("masked_topk, k = 20", "tiktok"),
    ("masked_topk, k = 50", "gowalla"), ("masked_topk, k = 20, vectors of LightGCN", "tiktok"),
)  # fmt: skip


# Data set and rows of the step's suite, and the op rows, of the summary.
SUMMARY_STEPS = (("paper", "`paper`"), ("paper, critic 512", "`paper`, `critic.hidden=512`"))
SUMMARY_OPS = (
    ("info_nce", "N = 9,308"), ("propagate", "power-law-10m"), ("masked_topk, k = 50", "gowalla"),
    ("masked_topk, k = 20, vectors of LightGCN", "tiktok"),
)  # fmt: skip


def write_documents(
    readme: Path = README, page: Path = PAGE, notes: Path = NOTES, picture: Path = PICTURE
) -> list[Path]:
    """Rewrite the blocks between the markers, and the picture.

    Raises:
        InputError: A document lacks the markers, or a result is missing.
    """
    for path, new in ((readme, summary_block()), (page, block()), (notes, limits_block())):
        text = with_block(path.read_text(encoding="utf-8"), new)
        path.write_text(text, encoding="utf-8")
    picture.write_text(overview(), encoding="utf-8")
    return [readme, page, notes, picture]


def with_block(text: str, new: str, name: str = BLOCK) -> str:
    """Return a document's text with the block between the markers of a name replaced."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"report: expected {begin} ... {end} once each, in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end)[1]}"


def _results() -> tuple[Results, Results, Results]:
    step, evaluate, ops = (
        read(RESULTS / f"{name}-cpu.json") for name in ("step", "evaluate", "ops")
    )
    return step, evaluate, ops


def summary_block() -> str:
    """Return the README's table: one line per result, each against its strongest competitor."""
    step, evaluate, ops = _results()
    training = next(case for case in step.cases if case.workload == "tiktok")
    ranking = next(case for case in evaluate.cases if case.workload == "tiktok")
    rows = []
    for name, shown in SUMMARY_STEPS:
        spent = f"{ms(training.rows[name].full.median_ms)} ms"
        factor = times(1 / ratio(training, name))
        rows.append(
            [f"training step, {shown}", "TikTok", spent, factor, "the released code's step"]
        )
    spent = f"{ms(ranking.rows['mmssl'].full.median_ms)} ms"
    factor = times(ratio(ranking, "released, 1 process"))
    rows.append(["full-ranking evaluation", "TikTok", spent, factor, "the released evaluation"])
    for case in _chosen(ops, SUMMARY_OPS):
        op, on, spent, _, fastest, _ = _op_row(case)
        factor, _, peer = fastest.partition(" ")
        rows.append([op, on, spent, factor, f"{peer.strip('()')}, the fastest peer"])
    header = ["forward + backward", "on", "time", "speedup", "compared with"]
    title = f"Medians of `mmssl bench`, {_machine(ops)}:"
    return f"{title}\n\n{Table('', '', header, rows).markdown()}"


def block() -> str:
    """Return the tables of docs/benchmarks.md: the training step, evaluation and the ops."""
    step, evaluate, ops = _results()
    return "\n".join(
        [
            "One training step (batch 1,024) against the released code's own arithmetic in plain",
            "PyTorch, in the same run, and the full ranking of the test split against the released",
            f"evaluation (one process); {_machine(step)}, medians:",
            "",
            _step_table(step, evaluate).markdown(),
            "",
            "Ops, forward + backward, float32, against the limit measured in the same rounds and",
            f"the fastest peer that computes the same; {_machine(ops)}:",
            "",
            _op_table(ops).markdown(),
            "",
            f"![time of the ops against size, and of a training step](images/{PICTURE.name})",
        ]
    )


def limits_block() -> str:
    """Every case of our ops with the two numbers of its limit, and what was reached."""
    ops = read(RESULTS / "ops-cpu.json")
    rows = []
    for case in ops.cases:
        if case.limit is None or case.sizes.get("d", 64) != 64:
            continue
        own = case.rows["native"]
        parts = " + ".join(f"{name} {ms(found)}" for name, found in case.limit.parts_ms.items())
        rows.append(
            [
                f"`{family(case)}`",
                label(case),
                _amount(case.limit.flop, "FLOP"),
                _amount(case.limit.bytes, "B"),
                f"{ms(case.limit.ms)}" + (f" ({parts})" if len(case.limit.parts_ms) > 1 else ""),
                ms(own.full.median_ms),
                f"{100 * case.limit.ms / own.full.median_ms:.0f} %",
            ]
        )
    header = ["op", "on", "FLOP", "bytes", "limit, ms", "native, ms", "of the limit"]
    return f"{_machine(ops)}; `results/ops-cpu.json`:\n\n" + Table("", "", header, rows).markdown()


def _amount(count: float | None, unit: str) -> str:
    if count is None:
        return "-"
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {name}{unit}"
    return f"{count / 1e3:.3g} k{unit}"


def overview() -> str:
    """Ops against size, and the step on the first data set."""
    ops = read(RESULTS / "ops-cpu.json")
    step = read(RESULTS / "step-cpu.json")
    return draw([*against_size(ops.cases), *step_panels(step)[:1]], width=5, height=3)


def _machine(file: Results) -> str:
    e = file.environment
    cores = {1: "one core", 2: "two cores"}.get(e["threads"], f"{e['threads']} cores")
    name = {"AMD EPYC": "an AMD EPYC (Zen 5)"}.get(e["name"], e["name"])
    return f"{cores} of {name}, torch {e['torch'].split('+')[0]} CPU"


def _step_table(step: Results, evaluate: Results) -> Table:
    ranked = {case.workload: case for case in evaluate.cases}
    rows = []
    for name in STEP_ROWS:
        cells = [name if name == RELEASED else f"`{name}`"]
        for case in step.cases:
            row = case.rows.get(name)
            if row is None:
                cells.append("-")
                continue
            factor = "" if name == RELEASED else f" ({times(1 / ratio(case, name))})"
            cells.append(f"{row.full.median_ms / 1e3:.3g} s{factor}")
        rows.append(cells)
    for name, shown in (("released, 1 process", "evaluation: released"), ("mmssl", "evaluation")):
        cells = [shown]
        for case in step.cases:
            found = ranked.get(case.workload)
            if found is None:
                cells.append("-")
                continue
            seconds = found.rows[name].full.median_ms / 1e3
            factor = f" ({times(ratio(found, 'released, 1 process'))})" if name == "mmssl" else ""
            cells.append(f"{seconds:.2g} s{factor}")
        rows.append(cells)
    header = ["", *(SHOWN.get(case.workload, case.workload) for case in step.cases)]
    return Table("step", "", header, rows)


def _op_table(ops: Results) -> Table:
    rows = [_op_row(case) for case in _chosen(ops, OP_ROWS)]
    header = ["op", "on", "native", "of the limit", "fastest peer", "plain PyTorch"]
    return Table("ops", "", header, rows)


def _chosen(ops: Results, names: Iterable[tuple[str, str]]) -> Iterator[Case]:
    """Yield the float32 cases with 64 columns of (op, workload) pairs, in their order."""
    for op, workload in names:
        for case in ops.cases:
            if (case.op, case.workload, case.dtype) == (op, workload, "float32"):
                if case.sizes["d"] == 64:
                    yield case


def _op_row(case: Case) -> list[str]:
    own = case.rows["native"]
    same = [n for n, row in case.rows.items() if n != "native" and row.note is None]
    plain = next((n for n in ("eager", "by hand", "reference") if n in case.rows), None)
    best = min(same, key=lambda name: ratio(case, name))
    return [
        f"`{family(case)}`",
        label(case).replace(case.workload, SHOWN.get(case.workload, case.workload)),
        f"{ms(own.full.median_ms)} ms",
        "-" if own.of_limit is None else f"{100 * own.of_limit:.0f} %",
        f"{times(ratio(case, best))} ({best})",
        "-" if plain is None else times(ratio(case, plain)),
    ]
