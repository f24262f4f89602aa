"""LightGCN against the dense formula of the paper, its training, and popularity."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from mmssl.training.baselines import train_lightgcn

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.errors import InputError
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.lightgcn import LightGCN
from mmssl.models.popularity import popularity


def make_dataset(num_groups: int = 4, users: int = 12, items: int = 10) -> InteractionDataset:
    """Users of a group like only the items of their group: easy to learn, impossible to guess."""
    rng = np.random.default_rng(7)
    splits: dict[str, list[tuple[int, int]]] = {"train": [], "val": [], "test": []}
    for user in range(num_groups * users):
        liked = rng.permutation(items)[:7] * num_groups + user % num_groups
        for rank, item in enumerate(liked):
            splits["train" if rank < 5 else "val" if rank == 5 else "test"].append((user, item))
    edges = {name: Interactions.from_edges(*np.array(pairs).T) for name, pairs in splits.items()}
    return InteractionDataset(
        name="groups", num_users=num_groups * users, num_items=num_groups * items, **edges
    )


def make_graph(dataset: InteractionDataset, normalization="sym") -> InteractionGraph:
    return InteractionGraph.from_edges(
        *dataset.train, dataset.num_users, dataset.num_items, normalization=normalization
    )


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_forward_is_the_papers_matrix_form(num_layers):
    # Equations 7 and 8: the mean over l of (D^-1/2 [[0, A], [A^T, 0]] D^-1/2)^l E.
    user, item = np.array([0, 0, 1, 3, 3]), np.array([0, 2, 2, 1, 2])
    graph = InteractionGraph.from_edges(user, item, 4, 5, normalization="sym")
    model = LightGCN(graph, 4, 5, embedding_dim=6, num_layers=num_layers).double()
    adjacency = torch.zeros(9, 9, dtype=torch.float64)
    adjacency[user, 4 + item] = 1
    adjacency = adjacency + adjacency.T
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    propagate = scale[:, None] * adjacency * scale
    layer = torch.cat(list(model.ego()))
    total = layer
    for _ in range(num_layers):
        layer = propagate @ layer
        total = total + layer
    expected = total / (num_layers + 1)
    got = torch.cat(list(model()))
    # The graph keeps its scales in float32.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    got.square().sum().backward()
    assert model.user_embedding.grad is not None
    assert bool((model.user_embedding.grad[2] != 0).any())  # no edge, but still layer 0


def test_wrong_graphs_and_sizes():
    dataset = make_dataset()
    with pytest.raises(InputError, match="expected normalization 'sym', got 'row_sqrt'"):
        LightGCN(make_graph(dataset, "row_sqrt"), 48, 40)
    with pytest.raises(InputError, match="expected 47 users and 40 items, got 48 and 40"):
        LightGCN(make_graph(dataset), 47, 40)
    with pytest.raises(InputError, match="num_layers: expected at least 0, got -1"):
        LightGCN(make_graph(dataset), 48, 40, num_layers=-1)
    with pytest.raises(InputError, match="embedding_dim: expected at least 1, got 0"):
        LightGCN(make_graph(dataset), 48, 40, embedding_dim=0)


def test_training_finds_the_groups():
    dataset = make_dataset()
    graph = make_graph(dataset, "row_sqrt")
    seen = []
    result = train_lightgcn(
        dataset, graph, epochs=60, lr=0.02, batch_size=64, seed=1, progress=seen.append
    )
    popular = Evaluator(dataset, "test", graph).evaluate(*popularity(graph))
    # Five items of the group are left, so the first five places hold the held-out one.
    assert result.test["recall@10"] == 1.0
    assert popular["recall@10"] < 0.7
    assert seen == result.epochs
    assert [epoch.epoch for epoch in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].loss < seen[0].loss
    best = max(epoch.val["recall@20"] for epoch in seen)
    assert result.val["recall@20"] == best
    assert seen[result.best_epoch - 1].val == result.val
    # The reported numbers are those of the returned embeddings.
    for split, expected in (("val", result.val), ("test", result.test)):
        assert Evaluator(dataset, split, graph).evaluate(*result.embeddings) == expected


def test_patience_ends_the_training():
    # A vanishing learning rate leaves the ranking as it is, so epoch 1 stays the best.
    dataset = make_dataset()
    result = train_lightgcn(dataset, make_graph(dataset), epochs=50, lr=1e-12, patience=3)
    assert result.best_epoch == 1
    assert len(result.epochs) == 4


def test_same_seed_same_bits():
    dataset = make_dataset()
    graph = make_graph(dataset)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = train_lightgcn(dataset, graph, epochs=3, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(10)
    again = train_lightgcn(dataset, graph, epochs=3, seed=5)
    other = train_lightgcn(dataset, graph, epochs=3, seed=6)
    assert torch.equal(first.embeddings.user, again.embeddings.user)
    assert torch.equal(first.embeddings.item, again.embeddings.item)
    assert not torch.equal(first.embeddings.item, other.embeddings.item)


def test_negatives_are_uniform_over_the_missing_items():
    # User 0 has items 0, 1 and 4 of 6; user 1 has none; user 2 lacks only item 3.
    graph = InteractionGraph.from_edges(
        np.array([0, 0, 0, 2, 2, 2, 2, 2]), np.array([0, 1, 4, 0, 1, 2, 4, 5]), 3, 6
    )
    user = torch.arange(3).repeat_interleave(30_000)
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(user.numel(), generator=generator, dtype=torch.float64)
    items = graph.missing_item(user, draw).view(3, -1)
    for row, missing in zip(items, ([2, 3, 5], [0, 1, 2, 3, 4, 5], [3]), strict=True):
        share = torch.bincount(row, minlength=6) / row.numel()
        expected = torch.zeros(6)
        expected[missing] = 1 / len(missing)
        torch.testing.assert_close(share, expected, rtol=0, atol=0.015)  # > 5 sigma
        assert share[expected == 0].sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"epochs": 1, "batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"epochs": 1, "patience": 0}, "patience: expected at least 1, got 0"),
        ({"epochs": 1, "lr": float("nan")}, "lr: expected a positive number, got nan"),
        ({"epochs": 1, "reg": -1.0}, "reg: expected a number of at least 0, got -1.0"),
        ({"epochs": 2, "lr": 1e30}, "training diverged: loss term bpr is (nan|inf) in epoch 2"),
    ],
)
def test_bad_arguments(arguments, message):
    dataset = make_dataset()
    with pytest.raises(InputError, match=message):
        train_lightgcn(dataset, make_graph(dataset), **arguments)


def test_nothing_to_learn_from():
    # The only user with train edges has every item, so no negative exists.
    dataset = dataclasses.replace(
        make_dataset(),
        num_users=2,
        num_items=2,
        train=Interactions.from_edges([0, 0], [0, 1]),
        val=Interactions.from_edges([1], [0]),
        test=Interactions.from_edges([1], [1]),
    )
    with pytest.raises(InputError, match="an edge of a user who lacks an item, got none"):
        train_lightgcn(dataset, make_graph(dataset), epochs=1)


def test_popularity_is_the_train_degree():
    graph = InteractionGraph.from_edges(np.array([0, 1, 2, 2]), np.array([1, 1, 1, 3]), 3, 4)
    user, item = popularity(graph)
    assert user.tolist() == [[1.0]] * 3
    assert item.tolist() == [[0.0], [3.0], [0.0], [1.0]]
