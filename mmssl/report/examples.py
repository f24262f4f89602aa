"""Sample lists: what some users have, and what each run would show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmssl.data.dataset import InteractionDataset
from mmssl.graph import InteractionGraph
from mmssl.report.entries import Entry
from mmssl.report.pictures import Pictures
from mmssl.serving import item_label, recommend, user_label

LENGTH = 10
_HISTORY = 12


class Shown(NamedTuple):
    """An item of a list."""

    label: str
    picture: str | None
    """A data URL."""
    is_hit: bool = False
    """In the user's test items."""


class Example(NamedTuple):
    """One user."""

    user: str
    num_train: int
    num_test: int
    history: list[Shown]
    """Some of the train items, the most popular ones."""
    lists: list[list[Shown]]
    """One per entry."""


def example_users(dataset: InteractionDataset, count: int) -> list[int]:
    """Users with test items, from inactive to active ones, the same ones every time."""
    users = np.unique(dataset.test.user)
    activity = np.bincount(dataset.train.user, minlength=dataset.num_users)[users]
    ordered = users[np.argsort(activity, kind="stable")]
    ordered = ordered[np.sort(activity) > 0]
    places = (np.arange(count) + 0.5) / max(count, 1) * ordered.size
    return list(dict.fromkeys(ordered[places.astype(int)].tolist())) if ordered.size else []


def make_examples(
    entries: Sequence[Entry],
    dataset: InteractionDataset,
    users: Sequence[int],
    pictures: Pictures | None,
) -> list[Example]:
    """The lists of the first run of each entry."""
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    ranked = [
        recommend(*entry.directories[0].load_embeddings(), graph, users, LENGTH)
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
