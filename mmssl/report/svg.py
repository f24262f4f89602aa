"""Charts as SVG text: lines, bars, points. Colours are the page's variables, text its font.

A chart is drawn for a width of about 360 pixels and scales from there, so its text stays readable
on a phone. No script: what a point is, its ``<title>`` says on hover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

NUM_COLORS = 6
_WIDTH, _HEIGHT = 360.0, 218.0
_RIGHT, _TOP, _BOTTOM = 10.0, 10.0, 34.0
_CHARACTER = 6.3  # width of a digit of the labels
_LAST_WITH_DOTS = 30  # points: beyond, dots run into each other


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int | None
    """Place in the palette; None: the muted colour, dashed, for what is only a reference."""
    low: Sequence[float] | None = None
    """Lower edge of a band around the line."""
    high: Sequence[float] | None = None
    mark: int | None = None
    """Position of a point to be ringed."""


def color(number: int | None) -> str:
    """A series' colour; they repeat after `NUM_COLORS`."""
    return "var(--muted)" if number is None else f"var(--s{number % NUM_COLORS})"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` or above to ``high`` or below, about ``count``."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """A tick's label."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4:
        return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1e3:.3g}k"
    if abs(value) < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    """A tick's label of a share."""
    return f"{100 * value:.3g}%"


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    log_x: bool = False,
    from_zero: bool = False,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    y_format: Callable[[float], str] = short,
) -> str:
    """Lines over a common axis.

    Args:
        lines: At least one, each with at least one finite point.
        label: What the chart shows, for screen readers.
        x_label: Under the axis.
        log_x: Logarithmic; every x above 0.
        from_zero: The y axis starts at 0.
        x_ticks: (x, text); round numbers by default.
        y_format: Labels of the y axis.
    """
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for part in (line.y, line.low, line.high) for y in part or ()]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    margin = (high - low or abs(high) or 1.0) * 0.06
    place_y = _scale(low if from_zero else low - margin, high + margin, _HEIGHT - _BOTTOM, _TOP)
    if x_ticks is None:
        x_ticks = [(t, short(t)) for t in (_log_ticks if log_x else _whole_ticks)(min(xs), max(xs))]
    axis, left = _y_axis(place_y, ticks(low, high + margin * 0.5), y_format)
    place_x = _scale(min(xs), max(xs), left + 6, _WIDTH - _RIGHT - 6, log=log_x)
    parts = [axis]
    parts += [_text(place_x(x), _HEIGHT - _BOTTOM + 14, text, "middle") for x, text in x_ticks]
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, x_label, "end"))
    for line in lines:
        if line.low is not None and line.high is not None:
            edge = [*zip(line.x, line.high, strict=True)]
            edge += reversed([*zip(line.x, line.low, strict=True)])
            corners = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in edge)
            parts.append(f'<polygon points="{corners}" fill="{color(line.color)}" opacity=".16"/>')
    for line in lines:
        points = [(place_x(x), place_y(y)) for x, y in zip(line.x, line.y, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 4"' if line.color is None else ""
        parts.append(
            f'<path class="line" d="{path}" fill="none" stroke="{color(line.color)}" '
            f'stroke-width="2" stroke-linejoin="round" stroke-linecap="round"{dash}/>'
        )
        dots = range(len(points)) if len(points) <= _LAST_WITH_DOTS else ()
        for position in {*dots, *(() if line.mark is None else (line.mark,))}:
            x, y = points[position]
            ring = ' stroke="var(--page)" stroke-width="2"' if position == line.mark else ""
            tip = f"{line.name}: {y_format(line.y[position])} at {short(line.x[position])}"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if ring else 2.4}" '
                f'fill="{color(line.color)}"{ring}><title>{escape(tip)}</title></circle>'
            )
    return _svg(parts, label)


def bar_chart(
    groups: Sequence[str],
    series: Sequence[tuple[str, Sequence[float], int | None]],
    *,
    label: str,
    x_label: str,
    y_format: Callable[[float], str] = short,
) -> str:
    """Groups of bars, one bar per series in each.

    Args:
        groups: Names under the groups.
        series: (name, one value per group, place in the palette); NaN draws nothing.
        label: What the chart shows, for screen readers.
        x_label: Under the axis.
        y_format: Labels of the y axis.
    """
    high = (
        max((v for _, values, _ in series for v in values if math.isfinite(v)), default=0.0) or 1.0
    )
    place_y = _scale(0.0, high * 1.06, _HEIGHT - _BOTTOM, _TOP)
    axis, left = _y_axis(place_y, ticks(0.0, high * 1.03), y_format)
    parts = [axis]
    room = (_WIDTH - _RIGHT - left) / len(groups)
    width = min(26.0, 0.76 * room / len(series))
    for position, name in enumerate(groups):
        middle = left + (position + 0.5) * room
        parts.append(_text(middle, _HEIGHT - _BOTTOM + 14, name, "middle"))
        for number, (owner, values, shade) in enumerate(series):
            value = values[position]
            if not math.isfinite(value):
                continue
            start = middle + (number - len(series) / 2) * width
            top = place_y(value)
            parts.append(
                f'<rect class="bar" x="{start + 0.75:.1f}" y="{top:.1f}" width="{width - 1.5:.1f}" '
                f'height="{max(0.0, _HEIGHT - _BOTTOM - top):.1f}" rx="1.5" fill="{color(shade)}">'
                f"<title>{escape(f'{owner}, {name}: {y_format(value)}')}</title></rect>"
            )
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, x_label, "end"))
    return _svg(parts, label)


def scatter(
    points: Sequence[tuple[float, float]], classes: Sequence[int], tips: Sequence[str], label: str
) -> str:
    """Points, one scale for both axes, coloured by class ``p0`` .. ``p4`` of the page's ramp."""
    width, edge = 640.0, 8.0
    axes = list(zip(*points, strict=True))
    low, span = [min(axis) for axis in axes], [max(axis) - min(axis) for axis in axes]
    scale = (width - 2 * edge) / (max(span) or 1.0)
    height = max(span[1] * scale + 2 * edge, width / 3)
    shift = (width - span[0] * scale) / 2, (height - span[1] * scale) / 2
    body = []
    for (x, y), number, tip in zip(points, classes, tips, strict=True):
        left = shift[0] + (x - low[0]) * scale
        top = height - shift[1] - (y - low[1]) * scale
        body.append(
            f'<circle class="p{number}" cx="{left:.1f}" cy="{top:.1f}" r="3.2">'
            f"<title>{escape(tip)}</title></circle>"
        )
    return (
        f'<svg viewBox="0 0 {width:g} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _scale(
    low: float, high: float, start: float, end: float, *, log: bool = False
) -> Callable[[float], float]:
    """From data to pixels; a single value lies in the middle."""
    change: Callable[[float], float] = math.log if log else float
    first, last = change(low), change(high)
    if last <= first:
        return lambda value: (start + end) / 2
    return lambda value: start + (change(value) - first) / (last - first) * (end - start)


def _y_axis(
    place: Callable[[float], float], at: Sequence[float], form: Callable[[float], str]
) -> tuple[str, float]:
    """Grid lines with labels, and where the plot begins beside them."""
    labels = [form(value) for value in at]
    left = 12.0 + _CHARACTER * max(map(len, labels))
    lines = [
        f'<line class="grid" x1="{left:.1f}" x2="{_WIDTH - _RIGHT}" y1="{place(value):.1f}" '
        f'y2="{place(value):.1f}"/>' + _text(left - 7, place(value) + 3.5, label, "end")
        for value, label in zip(at, labels, strict=True)
    ]
    return "".join(lines), left


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _whole_ticks(low: float, high: float) -> list[float]:
    """Epochs: whole numbers only."""
    return sorted({float(round(t)) for t in ticks(low, high) if low <= round(t) <= high})


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
