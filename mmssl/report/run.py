"""Writes the report of a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmssl.report.curve import draw, panels
from mmssl.report.log import checked_baselines, read_run
from mmssl.report.page import best_epoch, render
from mmssl.serving import UserRecommendations
from mmssl.training.checkpoint import atomic_write


def write_run_report(
    run_dir: str | Path,
    *,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    recommendations: Sequence[UserRecommendations] = (),
) -> Path:
    """Writes ``report.html``, self-contained, and ``learning_curve.png`` into a run directory.

    Reads ``metrics.json`` and, if there, ``log.jsonl`` and ``config.toml``. Each file is replaced
    at once or not at all. Without a logged epoch there is no picture, and no PNG is written.

    Args:
        run_dir: The run directory.
        baselines: Name -> test metrics, e.g. ``{"LightGCN": {"recall@20": 0.09}}``, shown beside
            the run's. By default those under "baselines" in metrics.json, if any.
        recommendations: Sample lists, see `mmssl.serving.recommend_with_titles`.

    Returns:
        The path of the report.

    Raises:
        InputError: a file that is missing or malformed, matplotlib not installed, or a directory
            that can't be written.
    """
    directory = Path(run_dir)
    run = read_run(directory)
    if baselines is not None:
        run = dataclasses.replace(run, baselines=checked_baselines(baselines, "report"))
    drawn = panels(run.epochs)
    svg = None
    if drawn:
        svg, png = draw(drawn, best_epoch(run))
        atomic_write(directory / "learning_curve.png", png)
    report = directory / "report.html"
    # Lone surrogates pass through JSON escapes but fit no UTF-8 file.
    page = render(run, svg, recommendations).encode("utf-8", "replace")
    atomic_write(report, page)
    return report
