"""What the plots share: the look, panels side by side as one SVG, log scales, colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmssl.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1b1d21", "#676d76", "#dfe2e6"
NATIVE = "#2462b8"
_OTHERS = (
    "#c2571a", "#3a8f5c", "#8a4fa3", "#b08a1e", "#c23b5e", "#2b8c96", "#7a6a58", "#3d3f8f",
)  # fmt: skip
_MARKERS = "osD^v"  # another one each time the colours are used up
_FIXED = {"native": NATIVE, "mmssl": NATIVE, "reference": MUTED, "limit": INK}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mmssl",  # the same results give the same file
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
    "text.parse_math": False,
}


class Panel(NamedTuple):
    """Axes to be drawn: what against what."""

    title: str
    x: str
    y: str
    draw: Callable[[Axes], None]


def draw(panels: Sequence[Panel], *, width: float = 4.4, height: float = 3.2) -> str:
    """Panels side by side, two in a row."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "the pictures need matplotlib: expected it installed (pip install 'mmssl[report]'), "
            f"got {error}"
        ) from None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(_SETTINGS):
        size = (width * columns, height * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
            panel.draw(axes)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Two decimals of a point are enough in paths; numbers in texts stay.
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return re.sub(r"[ \t]+\n", "\n", svg)


def log_scales(axes: Axes, *, x: bool = True, y: bool = True) -> None:
    """Log scales with plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set(**({"xscale": "log"} if x else {}), **({"yscale": "log"} if y else {}))
    for axis, wanted in ((axes.xaxis, x), (axes.yaxis, y)):
        if wanted:
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            axis.set_minor_formatter(NullFormatter())


def color(name: str, names: Sequence[str]) -> str:
    """The same one for the same name everywhere in a figure."""
    if name in _FIXED:
        return _FIXED[name]
    return _OTHERS[_place(name, names) % len(_OTHERS)]


def marker(name: str, names: Sequence[str]) -> str:
    """Tells those apart that share a colour."""
    return "o" if name in _FIXED else _MARKERS[_place(name, names) // len(_OTHERS)]


def _place(name: str, names: Sequence[str]) -> int:
    return [n for n in names if n not in _FIXED].index(name)


def short(count: float) -> str:
    """10,200,000 as 10.2M."""
    for least, unit, name in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if count >= least:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"
