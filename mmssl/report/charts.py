"""Charts of the report: lines, bars and points, drawn by matplotlib, colored by the page.

A chart is drawn in the colors of the light theme of ``style.css``; in its SVG each of them becomes
the CSS variable of that color, so that one chart serves both themes. Nothing in it is fetched or
runs: what a point is, its ``<title>`` says on hover. Charts are drawn for a width of about 360
pixels and scale from there, so their text stays readable on a phone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from mmssl.plotting import figure_to_svg, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLORS = 6
_SIZE = 5.0, 3.03  # inches of 72 pixels
_MAP_WIDTH, _POINT = 8.9, 6.4  # inches, pixels
_MAX_DOTS = 30  # points of a line: with more of them, the dots would run into each other
# The artists that have tooltips, by the name (`gid`) that becomes their class, and where.
_TIPPED = {"line": ".//use", "ring": ".//use", "bar": "./path", "point": "./use"}
_STYLE = {"font.size": 11, "grid.linewidth": 1, "lines.solid_capstyle": "round"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    """Index into the palette."""
    low: Sequence[float] | None = None
    """Lower edge of a band around the line."""
    high: Sequence[float] | None = None
    mark: int | None = None
    """Index of the point that gets a ring."""


@lru_cache(maxsize=1)
def stylesheet() -> str:
    """Return the style sheet of the page."""
    return (resources.files("mmssl.report") / "style.css").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def light_theme() -> dict[str, str]:
    """Return the colors of the light theme: name of the CSS variable -> ``#rrggbb``."""
    first_block = stylesheet().partition("}")[0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", first_block))


def color_name(series: int | None) -> str:
    """Return the CSS variable of a series; None stands for what is only a reference."""
    return "muted" if series is None else f"s{series % NUM_COLORS}"


def percent(value: float) -> str:
    """Format the label of a share."""
    return f"{100 * value:.3g}%"


def line_chart(lines: Sequence[Line], *, label: str, x_label: str, log_x: bool = False) -> str:
    """Draw lines over a common axis of whole numbers.

    Args:
        lines: At least one, each with at least one point; all values finite.
        label: What the chart shows, for screen readers.
        x_label: Label of the x axis.
        log_x: Whether the x axis is logarithmic; every x is then above 0.
    """
    tips: list[str] = []

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        whole = MaxNLocator(5, steps=[1, 2, 5, 10], integer=True)
        locator = LogLocator(subs=(1, 2, 5)) if log_x else whole
        axes.xaxis.set(major_locator=locator, major_formatter=lambda value, _: short(value))
        axes.margins(0.03, 0.06)
        for line in lines:
            shade = light_theme()[color_name(line.color)]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=shade, alpha=0.16, lw=0,
                                  gid="band", clip_on=False)  # fmt: skip
            said = [
                f"{line.name}: {short(y)} at {short(x)}"
                for x, y in zip(line.x, line.y, strict=True)
            ]
            few = len(said) <= _MAX_DOTS
            axes.plot(line.x, line.y, "o-" if few else "-", color=shade, lw=2, markersize=5,
                      markeredgewidth=0, gid="line", clip_on=False)  # fmt: skip
            tips.extend(said if few else ())
            if line.mark is not None:
                axes.plot(line.x[line.mark], line.y[line.mark], "o", color=light_theme()["panel"],
                          markersize=8, markeredgecolor=shade, markeredgewidth=2, gid="ring",
                          clip_on=False)  # fmt: skip
                tips.append(said[line.mark])

    return _chart(draw, label, tips, x_label=x_label)


def bar_chart(
    groups: Sequence[str],
    series: Sequence[tuple[str, Sequence[float], int | None]],
    *,
    label: str,
    x_label: str,
    y_format: Callable[[float], str] = short,
) -> str:
    """Draw groups of bars, one bar per series in each.

    Args:
        groups: Names below the groups.
        series: (name, one value per group, index into the palette); NaN draws nothing.
        label: What the chart shows, for screen readers.
        x_label: Label of the x axis.
        y_format: Formats the labels of the y axis.
    """
    tips: list[str] = []

    def draw(axes: Axes) -> None:
        width = 0.76 / len(series)
        for number, (owner, values, index) in enumerate(series):
            shade = light_theme()[color_name(index)]
            for at, value in enumerate(values):
                if math.isfinite(value):
                    left = at + (number - len(series) / 2) * width
                    axes.bar(left, value, 0.93 * width, align="edge", color=shade, gid="bar",
                             clip_on=False)  # fmt: skip
                    tips.append(f"{owner}, {groups[at]}: {y_format(value)}")
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(bottom=0)

    return _chart(draw, label, tips, x_label=x_label, y_format=y_format)


def scatter(
    points: Sequence[tuple[float, float]], classes: Sequence[int], tips: Sequence[str], label: str
) -> str:
    """Draw points, one scale for both axes, in the colors ``p0`` .. ``p4`` of their classes."""
    x, y = zip(*points, strict=True)
    spans = max(x) - min(x), max(y) - min(y)
    height = _MAP_WIDTH * max(spans[1] / (max(spans) or 1.0), 1 / 3)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.0125)
        shades = [light_theme()[f"p{number}"] for number in classes]
        axes.scatter(x, y, _POINT**2, shades, lw=0, gid="point", clip_on=False)

    return _inline(draw, label, tips, (_MAP_WIDTH, height), layout=None)


def _chart(
    draw: Callable[[Axes], None],
    label: str,
    tips: Sequence[str],
    *,
    x_label: str,
    y_format: Callable[[float], str] = short,
) -> str:
    """Draw axes that have horizontal grid lines only."""

    def fill(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot(frameon=False)
        locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        axes.yaxis.set(major_locator=locator, major_formatter=lambda value, _: y_format(value))
        axes.set_xlabel(x_label, loc="right")
        axes.tick_params(length=0)
        axes.grid(axis="x", visible=False)
        axes.grid(axis="y", clip_on=False)
        draw(axes)

    return _inline(fill, label, tips, _SIZE)


def _inline(
    draw: Callable[[Figure], None],
    label: str,
    tips: Sequence[str],
    size: tuple[float, float],
    layout: Literal["constrained"] | None = "constrained",
) -> str:
    """Draw a figure and fit its SVG into the page.

    Colors become variables of the themes; classes replace ids, which would repeat from chart to
    chart; each dot, bar and point gets its tooltip.
    """
    svg = figure_to_svg(draw, *size, salt=ascii(label), background="none", style=_STYLE,
                        layout=layout)  # fmt: skip
    variables = {value: f"var(--{name})" for name, value in light_theme().items()}
    svg = re.sub("#[0-9a-f]{6}", lambda color: variables.get(color[0], color[0]), svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, flags=re.DOTALL)  # style.css has its rule
    root = ElementTree.fromstring(svg)
    shapes: list[ElementTree.Element] = []
    for group in root.iter("g"):
        kind = group.attrib.pop("id", "")
        if kind in (*_TIPPED, "band"):
            group.set("class", kind)
        if kind in _TIPPED:
            shapes += group.findall(_TIPPED[kind])
    for shape, tip in zip(shapes, tips, strict=True):
        ElementTree.SubElement(shape, "title").text = tip
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")
