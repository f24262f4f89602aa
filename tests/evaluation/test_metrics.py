"""The vectorized metrics against a loop over users and against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.errors import InputError
from mmssl.evaluation import metrics as M


def naive(name: str, hits: list[bool], length: int, num_relevant: int, k: int) -> float:
    """Compute one metric of one user by its textbook definition."""
    top = hits[:k]
    gains = [1 / math.log2(rank + 1) for rank in range(1, len(hits) + k + 2)]
    dcg = sum(g for g, h in zip(gains, top, strict=False) if h)
    if name == "recall":
        return sum(top) / num_relevant
    if name == "precision":
        return sum(top) / k
    if name == "precision_released":
        return sum(top) / min(k, length) if length else 0.0
    if name == "hit":
        return float(any(top))
    if name == "ndcg":
        return dcg / sum(gains[: min(k, num_relevant)])
    if name == "ndcg_released":
        ideal = sum(g for g, h in zip(gains, sorted(hits, reverse=True)[:k], strict=False) if h)
        return dcg / ideal if ideal else 0.0
    if name == "map":
        precisions = [sum(hits[: r + 1]) / (r + 1) for r, h in enumerate(top) if h]
        return sum(precisions) / min(k, num_relevant)
    if name == "mrr":
        return next((1 / (r + 1) for r, h in enumerate(top) if h), 0.0)
    raise AssertionError(name)


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[list[bool]], list[int], list[int]]:
    width = draw(st.integers(1, 30))
    hits, lengths, relevant = [], [], []
    for _ in range(draw(st.integers(1, 6))):
        length = draw(st.integers(0, width))
        row = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        hits.append(row + [False] * (width - length))
        lengths.append(length)
        relevant.append(max(1, sum(row) + draw(st.integers(0, 40))))
    return hits, lengths, relevant


@settings(max_examples=150, deadline=None)
@given(lists(), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_every_metric_equals_the_loop(data, ks):
    hits, lengths, relevant = data
    ranked = M.RankedHits(torch.tensor(hits), torch.tensor(lengths), torch.tensor(relevant))
    names = tuple(M.METRICS)
    got = M.compute(ranked, names, tuple(ks))
    columns = [(name, k) for name in names for k in ks]
    assert got.dtype == torch.float64
    assert got.shape == (len(hits), len(columns))
    for user in range(len(hits)):
        for column, (name, k) in enumerate(columns):
            expected = naive(name, hits[user], lengths[user], relevant[user], k)
            assert got[user, column].item() == pytest.approx(expected, abs=1e-13), (name, k)
            assert -1e-12 <= got[user, column].item() <= 1 + 1e-12


def test_known_answer():
    # Hits at ranks 2 and 4 of 5; three relevant items in total.
    ranked = M.RankedHits(
        torch.tensor([[False, True, False, True, False]]), torch.tensor([5]), torch.tensor([3])
    )
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    expected = {
        "recall": 2 / 3,
        "precision": 2 / 5,
        "precision_released": 2 / 5,
        "hit": 1.0,
        "ndcg": dcg / (1 + 1 / math.log2(3) + 0.5),
        "ndcg_released": dcg / (1 + 1 / math.log2(3)),
        "map": (1 / 2 + 2 / 4) / 3,
        "mrr": 1 / 2,
    }
    for name, value in expected.items():
        assert M.METRICS[name](ranked, 5).item() == pytest.approx(value, abs=1e-15), name


def test_where_the_released_definitions_differ():
    # One of four relevant items is ranked first in a list of two: 1.0 in the released code.
    ranked = M.RankedHits(torch.tensor([[True, False]]), torch.tensor([2]), torch.tensor([4]))
    assert M.ndcg_released(ranked, 10).item() == 1.0
    assert M.ndcg(ranked, 10).item() < 0.4
    assert M.precision_released(ranked, 10).item() == 0.5
    assert M.precision(ranked, 10).item() == 0.1


def test_the_released_ideal_counts_hits_beyond_the_cutoff():
    # At k = 2 the list has one hit, but the released ideal also counts the hit at rank 3.
    ranked = M.RankedHits(torch.tensor([[True, False, True]]), torch.tensor([3]), torch.tensor([2]))
    assert M.ndcg_released(ranked, 1).item() == 1.0
    assert M.ndcg_released(ranked, 2).item() == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_keys_follow_the_columns():
    assert M.keys(("recall", "ndcg"), (10, 20)) == ("recall@10", "recall@20", "ndcg@10", "ndcg@20")


@pytest.mark.parametrize(
    ("names", "ks", "message"),
    [
        (("recal",), (10,), r"expected names among recall.*got 'recal'"),
        (("recall",), (0,), r"ks: expected positive integers, got 0"),
        (("recall",), (True,), r"ks: expected positive integers, got True"),
        ((), (10,), r"at least one"),
        (("recall",), (), r"at least one"),
    ],
)
def test_bad_names_and_cutoffs(names, ks, message):
    with pytest.raises(InputError, match=message):
        M.keys(names, ks)
