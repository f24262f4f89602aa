"""The pictures of a report, each an SVG of its own: time against sizes, roofline, memory, peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.harness.record import Case, Results, Row
from benchmarks.report.figure import NATIVE, Panel, color, draw, log_scales, marker
from benchmarks.report.tables import RELEASED, family, label, ratio
from mmssl.plotting import INK, MUTED, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Picture(NamedTuple):
    """One figure."""

    title: str
    text: str
    svg: str


def pictures(results: Iterable[Results]) -> list[Picture]:
    """All that the files have data for.

    Raises:
        InputError: matplotlib is not installed.
    """
    result: list[Picture] = []
    for file in results:
        if file.suite == "ops":
            result += _ops(file)
        elif file.suite == "step":
            result += _steps(file)
        elif file.suite == "scale":
            result += _scale(file)
    return result


def _ops(file: Results) -> list[Picture]:
    found = [
        ("Time against size", "Forward and backward. Dashed: the measured limit.", against_size),
        ("Time against width", "The same at other embedding widths d.", _against_width),
        ("Memory against size", "What one forward and backward adds to the process.", _memory),
    ]
    result = []
    for title, text, maker in found:
        if panels := list(maker(file.cases)):
            result.append(Picture(title, text, draw(panels)))
    if roofline := _roofline(file):
        text = "The package's ops; lines are the machine's measured rates."
        result.append(Picture("Roofline", text, draw([roofline], width=6.5, height=4)))
    if peers := _peers(file.cases):
        text = "Forward and backward as a multiple of native's time (1 is native), log scale."
        picture = draw([peers], width=9, height=0.9 + 0.22 * len(_compared(file.cases)))
        result.append(Picture("Native, reference, peers", text, picture))
    return result


def _series(
    title: str, x: str, cases: Sequence[Case], size: str, value: Callable[[Row], float | None],
    y: str, with_limit: bool = True,
) -> Panel:  # fmt: skip
    """Lines of every implementation over a size."""
    names = list(dict.fromkeys(name for case in cases for name in case.rows))

    def plot(axes: Axes) -> None:
        for name in names:
            points = [
                (case.sizes[size], found)
                for case in sorted(cases, key=lambda c: c.sizes[size])
                if name in case.rows and (found := value(case.rows[name])) is not None
            ]
            if points:
                style = {"lw": 2.2, "zorder": 3} if name == "native" else {"lw": 1.1}
                axes.plot(*zip(*points, strict=True), "o-", ms=3.5, label=name,
                          color=color(name, names), **style)  # fmt: skip
        limits = sorted((c.sizes[size], c.limit.ms) for c in cases if c.limit is not None)
        if with_limit and limits:
            axes.plot(*zip(*limits, strict=True), "--", color=INK, lw=1, label="limit")
        log_scales(axes)
        ticks = sorted({case.sizes[size] for case in cases})
        axes.set_xticks(ticks, [short(tick) for tick in ticks])
        axes.minorticks_off()
        few = len(axes.lines) <= 6
        axes.legend(**({} if few else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}))

    return Panel(title, x, y, plot)


def _full_ms(row: Row) -> float:
    return row.full.median_ms


def against_size(cases: Sequence[Case]) -> Iterator[Panel]:
    usual = [c for c in cases if c.sizes.get("d", 64) == 64]
    for dtype in ("float32", "TF32", "bfloat16"):
        group = [c for c in usual if c.op == "info_nce" and c.dtype == dtype]
        if len(group) > 1:
            yield _series(f"info_nce, {dtype}", "pairs N", group, "n", _full_ms, "ms")
    group = [c for c in usual if c.op == "propagate" and c.dtype == "float32"]
    if len(group) > 1:
        yield _series("propagate, float32", "edges E", group, "edges", _full_ms, "ms")


def _against_width(cases: Sequence[Case]) -> Iterator[Panel]:
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if case.dtype == "float32" and "d" in case.sizes:
            groups.setdefault((case.op, case.workload), []).append(case)
    for (op, workload), group in groups.items():
        if len({case.sizes["d"] for case in group}) > 2:
            yield _series(f"{op}, {workload}", "width d", group, "d", _full_ms, "ms")


def _memory(cases: Sequence[Case]) -> Iterator[Panel]:
    for dtype in ("float32", "bfloat16"):
        group = [
            c
            for c in cases
            if c.op == "info_nce" and c.dtype == dtype and c.sizes["d"] == 64
            if c.rows["native"].peak_mb is not None
        ]
        if len(group) > 1:
            yield _series(
                f"info_nce, {dtype}", "pairs N", group, "n", lambda row: row.peak_mb, "MB", False
            )


def _roofline(file: Results) -> Panel | None:
    rates = file.environment.get("rates") or {}
    points: dict[str, list[tuple[float, float]]] = {}
    for case in file.cases:
        limit = case.limit
        if limit is not None and limit.flop and limit.bytes:
            rate = limit.flop / case.rows["native"].full.median_ms / 1e6
            points.setdefault(family(case), []).append((limit.flop / limit.bytes, rate))
    if not points or not rates:
        return None

    def plot(axes: Axes) -> None:
        spread = [x for group in points.values() for x, _ in group]
        low, high = min(spread) / 3, max(spread) * 3
        flops = {k.removesuffix("_gflop_s"): v for k, v in rates.items() if k.endswith("_gflop_s")}
        top = max(flops.values())
        for name, rate in flops.items():
            axes.plot([low, high], [rate, rate], "-", color=INK, lw=1)
            axes.text(high, rate * 1.08, f"{name} {rate:,.0f} GFLOP/s", ha="right", fontsize=8)
        for name, rate in rates.items():
            if name.endswith("_gb_s"):
                end = min(high, top / rate)
                axes.plot([low, end], [low * rate, end * rate], "-", color=MUTED, lw=1)
                text = f"{name.removesuffix('_gb_s').replace('_', ' ')} {rate:,.0f} GB/s"
                axes.text(low, low * rate * 1.1, text, fontsize=8, color=MUTED)
        for name, group in points.items():
            axes.plot(*zip(*group, strict=True), "o", ms=5, label=name,
                      color=color(name, list(points)))  # fmt: skip
        log_scales(axes)
        axes.legend(loc="lower right")

    return Panel("", "FLOP per byte that must be moved", "GFLOP/s", plot)


def _compared(cases: Iterable[Case]) -> list[Case]:
    return [c for c in cases if len(c.rows) > 1 and c.sizes.get("d", 64) == 64]


def _peers(cases: Sequence[Case]) -> Panel | None:
    compared = _compared(cases)[::-1]
    names = list(dict.fromkeys(n for c in compared for n in c.rows if n != "native"))
    if not compared:
        return None

    def plot(axes: Axes) -> None:
        for name in names:
            points = [(ratio(c, name), y) for y, c in enumerate(compared) if name in c.rows]
            axes.plot(*zip(*points, strict=True), ls="", ms=4.5, label=name,
                      marker=marker(name, names), color=color(name, names))  # fmt: skip
        axes.axvline(1, color=NATIVE, lw=2)
        labels = [f"{family(c)}: {label(c)}" for c in compared]
        axes.set_yticks(range(len(compared)), labels, fontsize=8)
        log_scales(axes, y=False)
        axes.set_ylim(-0.7, len(compared) - 0.3)
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
        axes.minorticks_off()
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return Panel("", "times native", "", plot)


def step_panels(file: Results) -> list[Panel]:
    """Bars of every configuration, a panel for each data set."""
    panels = []
    for case in file.cases:
        names = list(case.rows)[::-1]

        def plot(axes: Axes, case: Case = case, names: list[str] = names) -> None:
            values = [case.rows[name].full.median_ms / 1e3 for name in names]
            shades = [MUTED if name.startswith(RELEASED) else NATIVE for name in names]
            axes.barh(range(len(names)), values, color=shades, height=0.65)
            for y, value in enumerate(values):
                faster = 1 / ratio(case, names[y])
                axes.text(value * 1.05, y, f"{value:.3g} s, {faster:.3g}x", va="center", fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            log_scales(axes, y=False)
            axes.set_xlim(min(values) / 2, max(values) * 8)
            axes.grid(axis="y", visible=False)

        panels.append(Panel(f"training step, {case.workload}", "seconds a step", "", plot))
    return panels


def _steps(file: Results) -> list[Picture]:
    panels = step_panels(file)
    text = f"Grey: the {RELEASED} in plain PyTorch; factors are against its first row."
    return [Picture("Training step", text, draw(panels, width=5.2))] if panels else []


def _scale(file: Results) -> list[Picture]:
    sweeps: dict[str, list[tuple[int, Row]]] = {}
    for case in file.cases:
        (row,) = case.rows.values()
        sweeps.setdefault(str(row.extra.get("sweep")), []).append((case.sizes["edges"], row))

    def panel(y: str, value: Callable[[Row], float | None]) -> Panel:
        def plot(axes: Axes) -> None:
            for name, rows in sweeps.items():
                points = [(edges, value(row)) for edges, row in rows]
                axes.plot(*zip(*points, strict=True), "o-", ms=3.5, label=name,
                          color=color(name, list(sweeps)))  # fmt: skip
            log_scales(axes)
            axes.legend()

        return Panel("", "edges", y, plot)

    panels = [
        panel("seconds a step", lambda row: row.full.median_ms / 1e3),
        panel("peak memory, MB", lambda row: row.peak_mb),
    ]
    text = "paper, batch 1,024, critic of width 512, on power-law graphs."
    return [Picture("A step against the size of the data", text, draw(panels))] if sweeps else []
