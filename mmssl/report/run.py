"""Writes the report of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmssl.data.dataset import InteractionDataset
from mmssl.errors import InputError
from mmssl.plotting import require_matplotlib
from mmssl.report.analysis import analyse
from mmssl.report.embedding_map import map_items
from mmssl.report.entries import Entry, read_entries
from mmssl.report.examples import example_users, make_examples
from mmssl.report.page import Report, render
from mmssl.report.pictures import Pictures
from mmssl.serving import resolve_user
from mmssl.training.checkpoint import atomic_write


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
    """Writes one self-contained HTML page that compares runs on one data set.

    Without the data set, where it has moved, the page has the metrics and the curves only.

    Args:
        runs: Run directories, or directories with a run per seed (``seed-*/``). The first is the
            one that the others are compared with.
        out: The page; ``report.html`` in the first directory by default. Replaced at once.
        data: The data set, if it has moved.
        users: Ids of users whose lists are shown.
        examples: How many users are shown without ``users``.
        images: A folder with pictures named by item id.
        map_method: How the items' vectors are drawn; "tsne" needs scikit-learn.

    Returns:
        The page's path, and what it compares.

    Raises:
        InputError: A run that is missing, unfinished, malformed or of other data; an unknown
            user; a library that is missing; a page that can't be written.
    """
    entries = read_entries([Path(run) for run in runs])
    require_matplotlib()  # before the work that takes time
    dataset, where = _read_data(entries[0], data, needed=bool(users) or images is not None)
    report = Report(entries, where)
    if dataset is not None:
        asked = [resolve_user(dataset, user) for user in users]
        pictures = None if images is None else Pictures(Path(images))
        item = entries[0].directories[0].load_embeddings()[1]
        report = Report(
            entries,
            f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items",
            analyse(entries, dataset),
            None if map_method == "none" else map_items(item, dataset, map_method),
            make_examples(entries, dataset, asked or example_users(dataset, examples), pictures),
        )
    page = Path(out) if out is not None else Path(runs[0]) / "report.html"
    # Lone surrogates pass through JSON escapes but fit no UTF-8 file.
    atomic_write(page, render(report).encode("utf-8", "replace"))
    return page, entries


def _read_data(
    entry: Entry, data: str | Path | None, *, needed: bool
) -> tuple[InteractionDataset | None, str]:
    """The data set, or None and a word on it where it isn't found and nobody asked for it."""
    run = entry.directories[0]
    if data is None and not needed and not Path(run.info.data).is_dir():
        return None, "data set not found, so no coverage, map or examples"
    try:
        return run.read_data(None if data is None else Path(data)), ""
    except InputError as error:
        if data is not None or needed:
            raise
        raise InputError(f"{error} (--data DIR names another place)") from None
