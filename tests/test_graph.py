"""InteractionGraph against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmssl import indexing
from mmssl.errors import InputError
from mmssl.graph import NORMALIZATIONS, InteractionGraph
from mmssl.ops import sample_bpr


def dense(user, item, num_users, num_items, value=None) -> torch.Tensor:
    matrix = torch.zeros(num_users, num_items, dtype=torch.float64)
    for position, (u, i) in enumerate(zip(user, item, strict=True)):
        matrix[u, i] = 1.0 if value is None else matrix[u, i] + value[position]
    return matrix


def scaled(matrix: torch.Tensor, normalization: str) -> torch.Tensor:
    def power(degree, exponent):
        return torch.where(degree > 0, degree.clamp_min(1e-9) ** exponent, 0.0)

    row, col = matrix.sum(1), matrix.sum(0)
    if normalization == "none":
        return matrix
    if normalization == "row":
        return power(row, -1.0)[:, None] * matrix
    half = power(row, -0.5)[:, None] * matrix
    return half if normalization == "row_sqrt" else half * power(col, -0.5)


EDGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=40)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("native", [True, False])
@given(edges=EDGES)
def test_views(normalization, native, edges):
    user = np.array([u for u, _ in edges], dtype=np.int64)
    item = np.array([i for _, i in edges], dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(indexing, "_host_for", lambda array: None)
        graph = InteractionGraph.from_edges(user, item, 7, 5, normalization=normalization)
    matrix = dense(user, item, 7, 5)
    assert graph.nnz == int(matrix.sum())
    assert torch.allclose(graph.ui.to_dense().double(), scaled(matrix, normalization), atol=1e-6)
    assert torch.allclose(graph.iu.to_dense().double(), scaled(matrix.T, normalization), atol=1e-6)
    for view in (graph.ui, graph.iu):
        assert torch.equal(view.transpose().to_dense(), view.to_dense().T)
        assert torch.equal(view.transpose().transpose().to_dense(), view.to_dense())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(edges=EDGES)
def test_values_of_repeated_edges_add_up(normalization, edges):
    user = np.array([u for u, _ in edges], dtype=np.int64)
    item = np.array([i for _, i in edges], dtype=np.int64)
    value = torch.arange(1.0, len(edges) + 1)
    graph = InteractionGraph.from_edges(user, item, 7, 5, normalization=normalization, value=value)
    matrix = dense(user, item, 7, 5, value)
    for view, truth in ((graph.ui, matrix), (graph.iu, matrix.T)):
        expected = scaled(truth, normalization).float()
        assert torch.allclose(view.to_dense(), expected, rtol=1e-5, atol=1e-6)
        assert torch.allclose(view.transpose().to_dense(), expected.T, rtol=1e-5, atol=1e-6)


def test_from_scipy():
    matrix = scipy.sparse.random(20, 12, density=0.2, random_state=0, format="csr")
    graph = InteractionGraph.from_scipy(matrix, normalization="none")
    assert np.allclose(graph.ui.to_dense().numpy(), matrix.toarray())
    matrix.data[:] = 1
    assert InteractionGraph.from_scipy(matrix).value is None


def test_errors():
    with pytest.raises(InputError, match=r"item: expected ids in \[0, 3\), got 3"):
        indexing.build_index(torch.tensor([0]), torch.tensor([3]), 2, 3)
    for user, item in (([2], [0]), ([-1], [0]), ([0], [3])):
        with pytest.raises(InputError, match="got (2|-1|3)"):
            InteractionGraph.from_edges(user, item, 2, 3)
    with pytest.raises(InputError, match="normalization: expected one of row_sqrt, .*got 'l2'"):
        InteractionGraph.from_edges([0], [0], 1, 1, normalization="l2")
    with pytest.raises(InputError, match="user, item: expected shape .E,. of both"):
        InteractionGraph.from_edges([0, 1], [0], 2, 1)
    with pytest.raises(InputError, match="value: expected shape \(2,\), got \(3,\)"):
        InteractionGraph.from_edges([0, 1], [0, 0], 2, 1, value=torch.ones(3))


@given(edges=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=8, max_size=34))
def test_samples_are_positives_and_never_negatives(edges):
    graph = InteractionGraph.from_edges([u for u, _ in edges], [i for _, i in edges], 7, 5)
    seen, users = set(edges), graph.trainable_users
    batch = sample_bpr(graph, users.numel(), torch.Generator().manual_seed(len(edges)))
    assert sorted(batch.user.tolist()) == users.tolist()
    for u, p, n in zip(*(t.tolist() for t in batch), strict=True):
        assert (u, p) in seen and (u, n) not in seen and 0 <= n < 5


def test_samples_are_uniform():
    graph = InteractionGraph.from_edges([0, 0, 0], [1, 3, 4], 1, 7)
    generator = torch.Generator().manual_seed(0)
    batches = [sample_bpr(graph, 1, generator) for _ in range(6000)]
    positives = torch.bincount(torch.cat([b.pos_item for b in batches]), minlength=7)
    negatives = torch.bincount(torch.cat([b.neg_item for b in batches]), minlength=7)
    assert positives[[1, 3, 4]].sum() == 6000 and negatives[[0, 2, 5, 6]].sum() == 6000
    # Six standard deviations of a binomial count.
    assert (positives[[1, 3, 4]] - 2000).abs().max() < 6 * (6000 * 2 / 9) ** 0.5
    assert (negatives[[0, 2, 5, 6]] - 1500).abs().max() < 6 * (6000 * 3 / 16) ** 0.5


def test_sample_needs_enough_users():
    graph = InteractionGraph.from_edges([0, 1, 1], [0, 0, 1], 3, 2)  # 1 has everything, 2 nothing
    with pytest.raises(InputError, match=r"batch_size: expected an integer in \[0, 1\]"):
        sample_bpr(graph, 2)
