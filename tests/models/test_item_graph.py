"""Nearest neighbors against brute force, co-visits, and the merged item graph."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.config import PlusConfig
from mmssl.data.dataset import Interactions
from mmssl.data.neighbors import Neighbors
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.item_graph import nearest_neighbors
from mmssl.models.plus import item_graph
from mmssl.models.plus.item_graph import build_item_graph, co_visit_lift, co_visits


def brute_force(features: np.ndarray, k: int) -> list[tuple[int, int]]:
    """Cosines of centered rows in float64, rounded so that equal ones stay equal."""
    known = [i for i, row in enumerate(features) if row.any()]
    mean = features[known].astype(np.float64).mean(0) if known else 0
    centered = {i: features[i].astype(np.float64) - mean for i in known}
    known = [i for i in known if np.linalg.norm(centered[i]) > 1e-6 * np.linalg.norm(features[i])]
    pairs = []
    for i in known:
        unit = {j: centered[j] / np.linalg.norm(centered[j]) for j in known}
        others = sorted((-round(float(unit[i] @ unit[j]), 6), j) for j in known if j != i)
        pairs += [(i, j) for _, j in others[:k]]
    return pairs


def pairs_of(features: np.ndarray, k: int) -> list[tuple[int, int]]:
    item, neighbor = nearest_neighbors(torch.from_numpy(features), k)
    return list(zip(item.tolist(), neighbor.tolist(), strict=True))


@pytest.mark.parametrize("k", [1, 5, 39, 40, 1000])
def test_neighbors_are_those_of_brute_force(k):
    features = np.random.default_rng(k).normal(size=(40, 6)).astype(np.float32)
    features[[3, 17]] = 0  # items without content
    got = pairs_of(features, k)
    assert got == brute_force(features, k)
    assert len(got) == 38 * min(k, 37)


@settings(max_examples=60)
@given(data=st.data())
def test_ties_zero_rows_and_repeated_rows(data):
    """Few directions only, so that nearly every cosine occurs several times."""
    directions = np.array(
        [[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 4]], np.float32
    )
    count = data.draw(st.integers(1, 12))
    chosen = [data.draw(st.integers(0, 5)) for _ in range(count)]
    # With every direction and its opposite, the mean is zero and ties are exact.
    features = np.concatenate([directions[chosen], -directions[chosen]])
    k = data.draw(st.integers(1, 30))
    assert pairs_of(features, k) == brute_force(features, k)


@pytest.mark.parametrize("rows", [np.zeros((4, 3)), np.full((4, 3), 0.1), np.eye(1, 3)])
def test_without_direction_no_neighbors(rows):
    assert pairs_of(rows.astype(np.float32), 2) == []


def test_a_common_component_does_not_matter():
    features = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    assert pairs_of(features + np.float32(8), 3) == pairs_of(features, 3)


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_co_visits_count_common_users(block, monkeypatch):
    monkeypatch.setattr(item_graph, "_PAIRS_PER_BLOCK", block)
    dense = torch.rand(20, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    dense[:, 4] = False  # an item without users
    graph = InteractionGraph.from_edges(*dense.nonzero().T, 20, 9)
    first, second = torch.cartesian_prod(torch.arange(9), torch.arange(9)).T
    expected = (dense.double().T @ dense.double()).long()
    assert torch.equal(co_visits(graph, first, second), expected[first, second])
    assert co_visits(graph, first[:0], second[:0]).numel() == 0


def test_lift_is_one_for_chance_and_counts_naively(tiny_dataset):
    generator = torch.Generator().manual_seed(2)
    dense = (torch.rand(300, 40, generator=generator) < torch.linspace(0.05, 0.4, 40)).double()
    dense[:, 7] = 0
    graph = InteractionGraph.from_edges(*dense.nonzero().T, 300, 40)
    first, second = torch.combinations(torch.arange(40)).T
    assert co_visit_lift(graph, first, second) == pytest.approx(1, abs=0.05)

    degree, common = dense.sum(0), dense.T @ dense
    kappa = (dense.sum(1) * (dense.sum(1) - 1)).sum() / dense.sum() ** 2
    first, second = torch.tensor([0, 3, 3, 7, 9]), torch.tensor([1, 9, 12, 1, 7])
    pairs = [(0, 1), (3, 9), (3, 12)]  # item 7 has no users
    found = sum(common[i, j] / (degree[i] * degree[j]).sqrt() for i, j in pairs)
    chance = sum(kappa * (degree[i] * degree[j]).sqrt() for i, j in pairs)
    assert co_visit_lift(graph, first, second) == pytest.approx(float(found / chance))
    assert co_visit_lift(graph, first[3:], second[3:]) == 0


def test_weights_are_measured_unless_given(tiny_dataset):
    noise = np.random.default_rng(5).normal(size=(50, 12)).astype(np.float32)
    dataset = dataclasses.replace(tiny_dataset, features={**tiny_dataset.features, "noise": noise})
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    lifts = {}
    for name, features in dataset.features.items():
        lifts[name] = co_visit_lift(graph, *nearest_neighbors(torch.from_numpy(features), 3))
    assert lifts["text"] > 1.5 and lifts["image"] > 1.5 and lifts["noise"] < 1.2
    weights = {name: max(lift - 1, 0.0) for name, lift in lifts.items()}
    expected = dense_graph(dataset, num_neighbors=3, modality_weights=weights)
    torch.testing.assert_close(dense_graph(dataset, num_neighbors=3), expected)
    del weights["text"]
    expected = dense_graph(dataset, num_neighbors=3, modality_weights=weights)
    torch.testing.assert_close(dense_graph(dataset, num_neighbors=3), expected)
    # Where no neighbors are related to the interactions, all modalities count alike.
    listed = {"a": Neighbors.from_edges([0], [1]), "b": Neighbors.from_edges([0], [2])}
    train = Interactions.from_edges([0, 1, 2], [0, 1, 2])
    unrelated = dataclasses.replace(tiny_dataset, features={}, neighbors=listed, train=train)
    assert dense_graph(unrelated)[0, :4].tolist() == [0, 0.5, 0.5, 0]


def dense_graph(dataset, **fields) -> torch.Tensor | None:
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    view = build_item_graph(dataset, graph, PlusConfig(**fields))
    return None if view is None else view.to_dense()


def test_modalities_are_merged_by_weight(tiny_dataset):
    expected = torch.zeros(50, 50)
    for name, weight in (("image", 0.5), ("text", 1.0)):
        for i, j in brute_force(tiny_dataset.features[name], 3):
            expected[i, j] += weight
    expected = expected / expected.sum(1, keepdim=True)
    weights = {"image": 0.5, "text": 1.0}
    got = dense_graph(tiny_dataset, num_neighbors=3, modality_weights=weights)
    torch.testing.assert_close(got, expected)
    only_text = dense_graph(tiny_dataset, num_neighbors=3, modality_weights={"image": 0.0})
    listed = {tuple(pair) for pair in only_text.nonzero().tolist()}
    assert listed == set(brute_force(tiny_dataset.features["text"], 3))


def test_neighbor_lists_replace_and_complete_features(tiny_dataset):
    listed = Neighbors.from_edges([0, 0, 7], [1, 2, 0], [1.0, 3.0, 0.5])
    dataset = dataclasses.replace(
        tiny_dataset,
        features={"image": tiny_dataset.features["image"]},
        neighbors={"image": listed, "audio": Neighbors.from_edges([0], [1])},
    )
    got = dense_graph(dataset, modality_weights={"image": 1.0, "audio": 3.0})
    expected = torch.zeros(50, 50)
    # Each list has row sums of 1 before it gets its weight.
    expected[0, 1], expected[0, 2], expected[7, 0] = (0.25 + 3) / 4, 0.75 / 4, 1
    torch.testing.assert_close(got, expected)


def test_co_visits_filter_the_edges(tiny_dataset):
    dense = torch.zeros(tiny_dataset.num_users, 50)
    dense[tiny_dataset.train.user, tiny_dataset.train.item] = 1
    common = dense.T @ dense
    for minimum in (1, 6):
        all_edges = dense_graph(tiny_dataset, num_neighbors=4) > 0
        got = dense_graph(tiny_dataset, num_neighbors=4, min_co_visits=minimum) > 0
        cold = dense.sum(0) == 0
        assert torch.equal(got, all_edges & ((common >= minimum) | cold[:, None]))
    assert bool((all_edges & ~got).any())


def test_no_graph(tiny_dataset):
    assert dense_graph(tiny_dataset, item_weight=0.0) is None
    assert dense_graph(dataclasses.replace(tiny_dataset, features={})) is None
    with pytest.raises(InputError, match="modality_weights: expected image, text, got 'sound'"):
        dense_graph(tiny_dataset, modality_weights={"sound": 1.0})
