"""Matplotlib figures as deterministic SVG text, in the one style that every plot here shares.

The HTML report (:mod:`mmssl.report`) and the reports of ``mmssl bench`` draw through this module.
Matplotlib is imported when a figure is drawn, never before.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mmssl.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, BLUE = "#1a1c20", "#656b75", "#e1e4e9", "#2563c9"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, in the font of the page
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so layouts agree everywhere
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a "$" in a name is a dollar sign
}


def require_matplotlib() -> None:
    """Check that matplotlib can be imported.

    Raises:
        InputError: It is not installed; the message names the command that installs it.
    """
    require("matplotlib.style", "report", "charts need matplotlib")


def figure_to_svg(
    draw: Callable[[Figure], None],
    width: float,
    height: float,
    *,
    salt: str = "mmssl",
    background: str = "white",
    style: Mapping[str, Any] | None = None,
    layout: Literal["constrained"] | None = "constrained",
) -> str:
    """Draw a figure and return it as an ``<svg>`` element; equal figures give equal text.

    Args:
        draw: Fills the empty figure.
        width: Width in inches (72 SVG units each).
        height: Height in inches.
        salt: Source of the ids of markers; figures in one HTML page need different ones.
        background: Color behind the figure, or ``"none"``.
        style: Matplotlib settings that differ from the shared style.
        layout: Layout engine of the figure; None when `draw` places the axes.

    Raises:
        InputError: Matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure

    # "default" first: a matplotlibrc of the user must not change what is drawn.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": salt, **(style or {})}]):
        figure = Figure(figsize=(width, height), layout=layout, frameon=background != "none")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", facecolor=background, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Two decimals of a point are enough for coordinates; numbers in texts stay as they are.
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return re.sub(r"\s*\n\s*", "\n", svg)


def short(value: float) -> str:
    """Format the label of a tick: 10,200,000 as 10.2M, 12,500 as 12.5k, 0.00005 as 5e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4:
        return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1e3:.3g}k"
    if abs(value) < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"
