"""Writes a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmssl.data.dataset import InteractionDataset
from mmssl.errors import InputError
from mmssl.files import atomic_write
from mmssl.models.embeddings import Embeddings
from mmssl.plotting import require_matplotlib
from mmssl.report.analysis import analyze
from mmssl.report.embedding_map import map_items
from mmssl.report.entries import Entry, read_entries
from mmssl.report.examples import example_users, make_examples
from mmssl.report.page import Report, render
from mmssl.report.pictures import Pictures
from mmssl.serving import resolve_user


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    users: Sequence[str] = (),
    examples: int = 3,
    images: str | Path | None = None,
    map_method: Literal["tsne", "pca", "none"] = "tsne",
) -> tuple[Path, list[Entry]]:
    """Write one self-contained HTML page that compares runs on one data set.

    If the data set can't be found, the page has the metrics and the curves only.

    Args:
        runs: Run directories, or directories with a run per seed (``seed-*/``). The others are
            compared with the first.
        out: The page, replaced atomically; ``report.html`` in the first directory by default.
        data: The data set, if it has moved.
        users: Ids of users whose lists are shown.
        examples: Number of users that are shown if ``users`` is empty.
        images: A folder with pictures named by item id.
        map_method: Projection of the item vectors; "tsne" needs scikit-learn.

    Returns:
        The path of the page, and the entries that it compares.

    Raises:
        InputError: A run is missing, unfinished, malformed or of other data; a user is unknown; a
            library is not installed; or the page can't be written.
    """
    entries = read_entries([Path(run) for run in runs])
    require_matplotlib()  # before the work that takes time
    dataset, where = _read_data(entries[0], data, needed=bool(users) or images is not None)
    report = Report(entries, where)
    if dataset is not None:
        asked = [resolve_user(dataset, user) for user in users]
        pictures = None if images is None else Pictures(Path(images))
        first = entries[0].directories[0].load_scorer(dataset)
        item = first.item if isinstance(first, Embeddings) else None
        report = Report(
            entries,
            f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items",
            analyze(entries, dataset),
            None if map_method == "none" or item is None else map_items(item, dataset, map_method),
            make_examples(entries, dataset, asked or example_users(dataset, examples), pictures),
        )
    page = Path(out) if out is not None else Path(runs[0]) / "report.html"
    # JSON escapes may hold lone surrogates, which UTF-8 can't encode.
    atomic_write(page, render(report).encode("utf-8", "replace"))
    return page, entries


def _read_data(
    entry: Entry, data: str | Path | None, *, needed: bool
) -> tuple[InteractionDataset | None, str]:
    """Return the data set, or None and the reason if it is not found and not needed."""
    run = entry.directories[0]
    if data is None and not needed and not Path(run.info.data).is_dir():
        return None, "data set not found, so no coverage, map or examples"
    try:
        return run.read_data(None if data is None else Path(data)), ""
    except InputError as error:
        if data is not None or needed:
            raise
        raise InputError(f"{error} (--data DIR names another directory)") from None
