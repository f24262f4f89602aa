"""Random holdout for each user."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data.splits import random_holdout
from mmssl.errors import InputError

PAIRS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 40)), unique=True, min_size=1)
RATIOS = st.sampled_from([(0.8, 0.1, 0.1), (0.1, 0.45, 0.45), (0.6, 0.3, 0.1), (0.05, 0.9, 0.05)])


@settings(max_examples=150, deadline=None)
@given(pairs=PAIRS, ratios=RATIOS, seed=st.integers(0, 5), order=st.randoms())
def test_partition_of_each_users_items(pairs, ratios, seed, order):
    user, item = zip(*pairs, strict=True)
    parts = random_holdout(user, item, ratios, seed)
    sets = [set(zip(part.user.tolist(), part.item.tolist(), strict=True)) for part in parts]
    assert sum(map(len, sets)) == len(pairs) and set.union(*sets) == set(pairs)
    for one in set(user):
        n = user.count(one)
        train, val, test = (sum(u == one for u, _ in part) for part in sets)
        if n < 3:
            assert (train, val, test) == (n, 0, 0)
            continue
        assert train >= 1
        assert val == min(max(1, int(n * ratios[1] + 0.5)), n - 2)
        assert test == min(max(1, int(n * ratios[2] + 0.5)), n - 1 - val)
    shuffled = list(pairs)
    order.shuffle(shuffled)
    again = random_holdout(*zip(*shuffled, strict=True), ratios, seed)
    for part, same in zip(parts, again, strict=True):
        assert np.array_equal(part.user, same.user) and np.array_equal(part.item, same.item)


def test_seed_matters_and_choice_is_uniform():
    user, item = np.zeros(10, int), np.arange(10)
    chosen = [int(random_holdout(user, item, seed=seed)[2].item[0]) for seed in range(2000)]
    counts = np.bincount(chosen, minlength=10)
    assert counts.sum() == 2000 and (np.abs(counts - 200) < 70).all()  # five sigma


@pytest.mark.parametrize(
    ("user", "ratios", "words"),
    [
        ([0, 0, 1], (0.8, 0.2), "ratios must be three numbers"),
        ([0, 0, 1], (0.8, 0.2, 0.0), "ratios must be three numbers"),
        ([0, 0, 1], (0.8, 0.2, 0.1), "ratios must sum to 1, got 1.1"),
        ([0, 0, 0], (0.8, 0.1, 0.1), "interactions must be unique, got user 0, item 1 twice"),
    ],
)
def test_refuses(user, ratios, words):
    with pytest.raises(InputError, match=words):
        random_holdout(user, [2, 1, 1], ratios)
