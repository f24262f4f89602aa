"""Analyzes the lists of runs: catalog coverage, popularity bias, recall by user activity.

Legend: U users, I items, K length of the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmssl.data.dataset import InteractionDataset
from mmssl.evaluation import exposure
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.scorer import Scorer
from mmssl.report.entries import Entry

K = 20
_ITEM_GROUPS = 5
_GROUPS = 4


class Exposure(NamedTuple):
    """Metrics of the lists of one entry, averaged over its seeds."""

    coverage: float
    gini: float
    popularity: float
    """Mean number of train interactions of a listed item."""
    tail: float
    """Share of the lists outside the most popular items."""
    by_popularity: tuple[float, ...]
    """Share of the lists in each group of items, from the most popular group to the least."""
    by_activity: tuple[float, ...]
    """Recall of each group of users by train interactions; NaN for an empty group."""


class Analysis(NamedTuple):
    """Metrics of the lists of all entries and of the held-out interactions."""

    entries: tuple[Exposure, ...]
    held_out: Exposure
    """Metrics of the test interactions taken as lists; `by_activity` is empty."""
    item_groups: tuple[int, ...]
    """Number of items in each group; each group has the same share of the train interactions."""
    user_groups: tuple[str, ...]
    """Ranges of train interactions that name the groups of users."""


def analyze(entries: Sequence[Entry], dataset: InteractionDataset) -> Analysis:
    """Rank the list of every user for every run, without the user's train items."""
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    degree = graph.index.colptr.diff()
    evaluator = Evaluator(dataset, "test", graph, ks=(K,), metrics=("recall",))
    activity = graph.index.rowptr.diff()[evaluator.users]
    group = exposure.activity_groups(activity, _GROUPS)
    found = tuple(
        _mean([
            _of_run(run.load_scorer(dataset), evaluator, graph, degree, group)
            for run in entry.directories
        ])
        for entry in entries
    )  # fmt: skip
    sizes = torch.bincount(exposure.popularity_groups(degree, _ITEM_GROUPS), minlength=_ITEM_GROUPS)
    return Analysis(
        found,
        _exposure(_as_lists(dataset), degree, ()),
        tuple(sizes.tolist()),
        _names(activity, group),
    )


def _of_run(
    scorer: Scorer,
    evaluator: Evaluator,
    graph: InteractionGraph,
    degree: Tensor,
    group: Tensor,
) -> Exposure:
    recall = evaluator.per_user(scorer)[:, 0]
    by_activity = [recall[group == number] for number in range(_GROUPS)]
    with_train = (graph.index.rowptr.diff() > 0).nonzero().squeeze(1)
    _, lists = scorer.best(with_train, min(K, graph.num_items), graph.ui)
    means = tuple(float(part.mean()) if part.numel() else float("nan") for part in by_activity)
    return _exposure(lists, degree, means)


def _exposure(lists: Tensor, degree: Tensor, by_activity: tuple[float, ...]) -> Exposure:
    group = exposure.popularity_groups(degree, _ITEM_GROUPS)
    return Exposure(
        coverage=exposure.coverage(lists, degree.numel()),
        gini=exposure.gini(lists, degree.numel()),
        popularity=exposure.average_popularity(lists, degree),
        tail=exposure.tail_share(lists, degree),
        by_popularity=tuple(exposure.shares(lists, group, _ITEM_GROUPS).tolist()),
        by_activity=by_activity,
    )


def _mean(runs: Sequence[Exposure]) -> Exposure:
    columns = zip(*runs, strict=True)
    means = [
        tuple(np.mean(column, axis=0).tolist())
        if isinstance(column[0], tuple)
        else float(np.mean(column))
        for column in columns
    ]
    return Exposure(*means)  # type: ignore[arg-type]


def _as_lists(dataset: InteractionDataset) -> Tensor:
    """Return the test interactions as lists (T, longest), padded with -1."""
    _, counts = np.unique(dataset.test.user, return_counts=True)
    parts = torch.from_numpy(dataset.test.item).split(counts.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=-1)


def _names(activity: Tensor, group: Tensor) -> tuple[str, ...]:
    names = []
    for number in range(_GROUPS):
        mine = activity[group == number]
        if not mine.numel():
            names.append("–")
            continue
        low, high = int(mine.min()), int(mine.max())
        names.append(str(low) if low == high else f"{low}–{high}")
    return tuple(names)
