"""The learning-curve picture: small panels, one quantity each, as SVG for the page and as PNG."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from mmssl.errors import InputError
from mmssl.report.log import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The page's colour variables and what they are in the light theme. The figure is drawn in these
# exact values; in the SVG each is then replaced by its variable, so that it follows the theme.
COLORS = {"ink": "#1b1d21", "muted": "#676d76", "line": "#dfe2e6", "accent": "#2462b8"}
_VALIDATION = ("recall@20", "ndcg@20")
_MAX_LOSSES = 7  # more panels than this nobody compares
_COLUMNS = 3
_LAST_WITH_DOTS = 30  # epochs: beyond, dots run into each other


class Panel(NamedTuple):
    """One quantity over the epochs."""

    title: str
    epochs: list[int]
    values: list[float]
    is_validation: bool


def panels(history: list[Epoch]) -> list[Panel]:
    """What there is to draw: two validation metrics (or the first two logged), then the losses."""
    validated: dict[str, None] = {name: None for epoch in history for name in epoch.val}
    chosen = [name for name in _VALIDATION if name in validated] or list(validated)[:2]
    losses: dict[str, None] = {name: None for epoch in history for name in epoch.loss}
    ordered = sorted(losses, key=lambda name: name != "total")[:_MAX_LOSSES]
    result = []
    for name in chosen:
        points = [(e.number, e.val[name]) for e in history if name in e.val]
        result.append(_panel(f"validation {name}", points, True))
    for name in ordered:
        points = [(e.number, e.loss[name]) for e in history if name in e.loss]
        result.append(_panel(f"loss: {name}", points, False))
    return [panel for panel in result if panel.epochs]


def draw(drawn: list[Panel], best_epoch: int | None) -> tuple[str, bytes]:
    """Draws the panels.

    Args:
        drawn: At least one panel.
        best_epoch: Marked in the validation panels.

    Returns:
        ``<svg>...</svg>`` whose colours are ``var(--ink)`` and so on, and the bytes of a PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "the report needs matplotlib: expected it installed (pip install 'mmssl[report]'), "
            f"got {error}"
        ) from error
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
        "svg.hashsalt": "mmssl",  # the same run gives the same file
        "font.size": 9,
        "text.color": COLORS["ink"],
        "axes.edgecolor": COLORS["line"],
        "axes.labelcolor": COLORS["muted"],
        "xtick.color": COLORS["muted"],
        "ytick.color": COLORS["muted"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        rows = math.ceil(len(drawn) / _COLUMNS)
        figure = Figure(figsize=(10.5, 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes, panel in zip(grid.flat, drawn, strict=False):
            _draw_panel(axes, panel, best_epoch)
        for axes in grid.flat[len(drawn) :]:
            axes.set_axis_off()
        return _themed_svg(figure), _png(figure)


def _panel(title: str, points: list[tuple[int, float]], is_validation: bool) -> Panel:
    finite = [(number, value) for number, value in points if math.isfinite(value)]
    return Panel(title, [n for n, _ in finite], [v for _, v in finite], is_validation)


def _draw_panel(axes: Axes, panel: Panel, best_epoch: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    dots = "o" if len(panel.epochs) <= _LAST_WITH_DOTS else None
    axes.plot(panel.epochs, panel.values, color=COLORS["accent"], lw=1.6, marker=dots, ms=3)
    axes.set_title(panel.title, loc="left", fontsize=9.5, color=COLORS["ink"])
    axes.set_xlabel("epoch", loc="right", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(axis="y", color=COLORS["line"], lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if panel.is_validation and best_epoch in panel.epochs:
        value = panel.values[panel.epochs.index(best_epoch)]
        axes.axvline(best_epoch, color=COLORS["muted"], lw=0.9, ls=(0, (3, 3)))
        axes.annotate(
            f"{value:.4f} at epoch {best_epoch}",
            (best_epoch, 0),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if best_epoch > sum(axes.get_xlim()) / 2 else 5, 6),
            textcoords="offset points",
            ha="right" if best_epoch > sum(axes.get_xlim()) / 2 else "left",
            fontsize=8.5,
            color=COLORS["ink"],
        )


def _themed_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # no XML prologue inside HTML
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML parsers know the namespace
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
