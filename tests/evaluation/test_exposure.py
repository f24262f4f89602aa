"""Coverage, concentration and popularity against naive implementations of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.evaluation import exposure

LISTS = torch.tensor([[0, 1, 2], [0, 3, -1], [0, 1, 4]])
DEGREE = torch.tensor([10, 6, 4, 4, 2, 0])


def test_by_hand():
    assert exposure.counts(LISTS, 6).tolist() == [3, 2, 1, 1, 1, 0]
    assert exposure.coverage(LISTS, 6) == 5 / 6
    means = (20 / 3, 14 / 2, 18 / 3)
    assert exposure.average_popularity(LISTS, DEGREE) == pytest.approx(sum(means) / 3)
    # The head, 20% of six items, is one item: item 0.
    assert exposure.tail_share(LISTS, DEGREE) == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert exposure.by_popularity(DEGREE).tolist() == [0, 1, 2, 3, 4, 5]


def test_gini_against_the_double_sum():
    rng = np.random.default_rng(0)
    for _ in range(5):
        lists = torch.from_numpy(rng.integers(-1, 12, (9, 4)))
        n = exposure.counts(lists, 12).double().numpy()
        expected = np.abs(n[:, None] - n).sum() / (2 * n.size * n.sum())
        assert exposure.gini(lists, 12) == pytest.approx(expected)
    assert exposure.gini(torch.arange(12).view(3, 4), 12) == pytest.approx(0)
    assert exposure.gini(torch.zeros(7, 1, dtype=torch.int64), 100) == pytest.approx(0.99)


def test_item_groups_hold_equal_shares_of_the_interactions():
    rng = np.random.default_rng(0)
    degree = torch.from_numpy(rng.pareto(1.5, 2000).astype(np.int64) + rng.integers(0, 2, 2000))
    group = exposure.popularity_groups(degree, 5)
    held = torch.bincount(group, weights=degree.double(), minlength=5) / degree.sum()
    assert (held - 0.2).abs().max() < 0.1
    assert (torch.bincount(group).diff() > 0).all()
    order = exposure.by_popularity(degree)
    assert (group[order].diff() >= 0).all()
    shares = exposure.shares(order[:100].view(10, 10), group, 5)
    assert shares.sum() == pytest.approx(1)
    expected = torch.bincount(group[order[:100]], minlength=5) / 100
    assert torch.allclose(shares, expected.double())


def test_users_of_equal_activity_are_in_one_group():
    degree = torch.tensor([1, 1, 1, 2, 3, 9, 9, 9])
    assert exposure.activity_groups(degree, 4).tolist() == [1, 1, 1, 1, 2, 3, 3, 3]
    assert exposure.activity_groups(torch.full((5,), 3), 4).tolist() == [3] * 5
    group = exposure.activity_groups(torch.arange(40), 4)
    assert torch.bincount(group).tolist() == [10] * 4


def test_nothing_listed():
    empty = torch.full((3, 2), -1)
    assert exposure.coverage(empty, 6) == exposure.gini(empty, 6) == 0
    assert exposure.average_popularity(empty, DEGREE) == exposure.tail_share(empty, DEGREE) == 0
    assert exposure.shares(empty, exposure.popularity_groups(DEGREE), 5).tolist() == [0] * 5
    assert exposure.popularity_groups(torch.zeros(4, dtype=torch.int64), 5).tolist() == [0] * 4
