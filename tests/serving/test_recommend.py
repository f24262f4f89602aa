"""Lists without train items, lookup of ids with one-line errors, titles instead of indices."""

from __future__ import annotations

import pytest
import torch

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.serving import (
    item_label,
    recommend,
    recommend_with_titles,
    resolve_user,
    user_label,
)


def make_dataset(**names) -> InteractionDataset:
    return InteractionDataset(
        name="made up",
        num_users=3,
        num_items=4,
        train=Interactions.from_edges([0, 0, 1, 1, 1, 1], [1, 2, 0, 1, 2, 3]),
        val=Interactions.from_edges([0], [0]),
        test=Interactions.from_edges([0], [3]),
        **names,
    )


@pytest.fixture
def graph() -> InteractionGraph:
    dataset = make_dataset()
    return InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)


USER = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
ITEM = torch.tensor([[1.0, 5.0], [9.0, 0.0], [8.0, 1.0], [3.0, 5.0]])


def test_lists_exclude_train_items(graph):
    # User 0 has items 1 and 2, user 1 all items, user 2 none; items 0 and 3 tie for user 2.
    assert recommend(USER, ITEM, graph, [2, 0, 1], 3) == [
        [(0, 10.0), (3, 10.0), (2, 2.0)],
        [(3, 3.0), (0, 1.0)],
        [],
    ]


def test_k_beyond_the_number_of_items(graph):
    (row,) = recommend(USER, ITEM, graph, [2], 100)
    assert [item for item, _ in row] == [0, 3, 2, 1]


def test_no_users_no_lists(graph):
    assert recommend(USER, ITEM, graph, [], 5) == []


@pytest.mark.parametrize(
    ("users", "k", "message"),
    [
        ([0], 0, "k: expected at least 1, got 0"),
        ([0, 3], 5, r"users: expected indices in \[0, 3\), got 3"),
        ([-1], 5, r"users: expected indices in \[0, 3\), got -1"),
    ],
)
def test_bad_requests(graph, users, k, message):
    with pytest.raises(InputError, match=message):
        recommend(USER, ITEM, graph, users, k)


def test_tables_of_another_size(graph):
    with pytest.raises(InputError, match=r"item_emb: expected shape \(4, D\), got \(3, 2\)"):
        recommend(USER, ITEM[:3], graph, [0], 2)


def test_titles_and_history(graph):
    dataset = make_dataset(
        user_ids=("ann", "bob", "eve"),
        item_ids=("a", "b", "c", "d"),
        item_titles=("Alien", "Brazil", "", "Dune"),
    )
    (row,) = recommend_with_titles(dataset, graph, USER, ITEM, [0], 5)
    assert row.user == "ann"
    assert row.history == ("Brazil", "item c")
    assert row.items == (("Dune", 3.0), ("Alien", 1.0))
    (row,) = recommend_with_titles(dataset, graph, USER, ITEM, [1], 5, history=1)
    assert row.history == ("Alien",)
    assert row.items == ()


def test_labels_without_names():
    dataset = make_dataset()
    assert user_label(dataset, 2) == "2"
    assert item_label(dataset, 2) == "item 2"


def test_users_without_ids():
    assert resolve_user(make_dataset(), "2") == 2
    for wrong in ("3", "-1", "1.0", "ann", "", "\u0661", "9" * 5000):
        with pytest.raises(InputError, match=r"^user: expected a number in 0 \.\. 2, got "):
            resolve_user(make_dataset(), wrong)


def test_users_with_external_ids():
    dataset = make_dataset(user_ids=("ann", "bob", "anna"))
    assert resolve_user(dataset, "bob") == 1
    with pytest.raises(InputError, match="3 user ids, such as 'anna', 'ann', got 'annna'"):
        resolve_user(dataset, "annna")
    with pytest.raises(InputError, match="3 user ids, such as 'bob', got ' BOB'"):
        resolve_user(dataset, " BOB")
    with pytest.raises(InputError, match="such as 'ann', 'bob', 'anna', got '0'"):
        resolve_user(dataset, "0")


def test_numeric_ids_suggest_close_values():
    dataset = make_dataset(user_ids=("900", "17", "21"))
    assert resolve_user(dataset, "17") == 1  # the id, not the index
    with pytest.raises(InputError, match="such as '21', '17', '900', got '20'"):
        resolve_user(dataset, "20")
