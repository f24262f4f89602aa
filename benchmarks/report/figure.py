"""What the plots share: panels side by side as one SVG, log scales, colors, markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mmssl.plotting import BLUE, INK, MUTED, figure_to_svg, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NATIVE = BLUE
_OTHERS = (
    "#c2571a", "#3a8f5c", "#8a4fa3", "#b08a1e", "#c23b5e", "#2b8c96", "#7a6a58", "#3d3f8f",
)  # fmt: skip
_MARKERS = "osD^v"  # the next one each time the colors are used up
_FIXED = {"native": NATIVE, "mmssl": NATIVE, "reference": MUTED, "limit": INK}


class Panel(NamedTuple):
    """Axes to be drawn."""

    title: str
    x: str
    y: str
    draw: Callable[[Axes], None]


def draw(panels: Sequence[Panel], *, width: float = 4.4, height: float = 3.2) -> str:
    """Draw panels side by side, two in a row, as one SVG."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)

    def fill(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
            panel.draw(axes)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()

    return figure_to_svg(fill, width * columns, height * rows)


def log_scales(axes: Axes, *, x: bool = True, y: bool = True) -> None:
    """Give axes log scales whose labels are plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set(**({"xscale": "log"} if x else {}), **({"yscale": "log"} if y else {}))
    for axis, wanted in ((axes.xaxis, x), (axes.yaxis, y)):
        if wanted:
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            axis.set_minor_formatter(NullFormatter())


def color(name: str, names: Sequence[str]) -> str:
    """Return the color of a name, the same everywhere in a figure."""
    if name in _FIXED:
        return _FIXED[name]
    return _OTHERS[_index(name, names) % len(_OTHERS)]


def marker(name: str, names: Sequence[str]) -> str:
    """Return the marker of a name, which differs among names of the same color."""
    return "o" if name in _FIXED else _MARKERS[_index(name, names) // len(_OTHERS)]


def _index(name: str, names: Sequence[str]) -> int:
    return [n for n in names if n not in _FIXED].index(name)
