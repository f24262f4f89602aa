"""Example users: their train items, and the list that each run recommends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmssl.data.dataset import InteractionDataset
from mmssl.graph import InteractionGraph
from mmssl.report.entries import Entry
from mmssl.report.pictures import Pictures
from mmssl.serving import Recommendation, item_label, user_label
from mmssl.serving.recommend import Ranker, listed

LENGTH = 10
_HISTORY = 12


class Shown(NamedTuple):
    """An item as it is shown."""

    label: str
    picture: str | None
    """Data URL of its picture."""
    is_hit: bool = False
    """Whether it is one of the user's test items."""


class Example(NamedTuple):
    """A user and the lists of the user."""

    user: str
    num_train: int
    num_test: int
    history: list[Shown]
    """The most popular of the train items."""
    lists: list[list[Shown]]
    """The recommended items, one list per entry."""


def example_users(dataset: InteractionDataset, count: int) -> list[int]:
    """Choose users with test items, evenly from inactive to active; the choice is fixed."""
    users = np.unique(dataset.test.user)
    activity = np.bincount(dataset.train.user, minlength=dataset.num_users)[users]
    ordered = users[np.argsort(activity, kind="stable")]
    ordered = ordered[np.sort(activity) > 0]
    positions = (np.arange(count) + 0.5) / max(count, 1) * ordered.size
    return list(dict.fromkeys(ordered[positions.astype(int)].tolist())) if ordered.size else []


def make_examples(
    entries: Sequence[Entry],
    dataset: InteractionDataset,
    users: Sequence[int],
    pictures: Pictures | None,
) -> list[Example]:
    """Recommend items to users by the first run of each entry."""
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    ranked = [
        listed(
            *Ranker(entry.directories[0].load_scorer(dataset), graph).best(users, LENGTH),
            Recommendation,
        )
        for entry in entries
    ]
    degree = np.bincount(dataset.train.item, minlength=dataset.num_items)

    def shown(item: int, relevant: set[int]) -> Shown:
        own = str(item) if dataset.item_ids is None else dataset.item_ids[item]
        picture = None if pictures is None else pictures.url(own)
        return Shown(item_label(dataset, item), picture, item in relevant)

    examples = []
    for position, user in enumerate(users):
        mine = dataset.train.item[dataset.train.user == user]
        relevant = set(dataset.test.item[dataset.test.user == user].tolist())
        best_known = mine[np.argsort(-degree[mine], kind="stable")][:_HISTORY]
        examples.append(
            Example(
                user_label(dataset, user),
                mine.size,
                len(relevant),
                [shown(item, set()) for item in best_known.tolist()],
                [[shown(item, relevant) for item, _ in lists[position]] for lists in ranked],
            )
        )
    return examples
