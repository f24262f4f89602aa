"""mmssl._host against scipy and against the index building in plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import _extension, graph, indexing

pytestmark = pytest.mark.skipif(
    _extension.host is None, reason=f"no mmssl._host: {_extension.missing.get('_host')}"
)


def build(user, item, num_users, num_items):
    arrays = _extension.host.build_index(user, item, num_users, num_items)
    assert [a.dtype for a in arrays] == [np.int64, np.int32, np.int64, np.int32, np.int64]
    return arrays


def by_scipy(user, item, num_users, num_items):
    shape = (num_users, num_items)
    csr = sp.coo_matrix((np.ones(user.size, np.int64), (user, item)), shape=shape).tocsr()
    csr.sum_duplicates()
    csr.data = np.arange(csr.nnz)
    csc = csr.tocsc()
    return csr.indptr, csr.indices, csc.indptr, csc.indices, csc.data


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_edge_list(data):
    num_users, num_items = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    size = data.draw(st.integers(0, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    user, item = rng.integers(0, num_users, size), rng.integers(0, num_items, size)
    expected = by_scipy(user, item, num_users, num_items)
    for ours, theirs in zip(build(user, item, num_users, num_items), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("order", ["random", "sorted", "sorted with repetitions"])
def test_many_edges_on_several_threads(order):
    rng = np.random.default_rng(0)
    num_users, num_items, size = 30_000, 5_000, 1_300_000  # more than two threads' worth
    user = np.sort(rng.zipf(1.3, size) % num_users) if order != "random" else None
    if user is None:
        user = rng.integers(0, num_users, size)
    item = rng.zipf(1.2, size) % num_items
    if order != "random":
        key = np.sort(user * num_items + item)
        key = np.unique(key) if order == "sorted" else key
        user, item = key // num_items, key % num_items
    expected = by_scipy(user, item, num_users, num_items)
    for ours, theirs in zip(build(user, item, num_users, num_items), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_agrees_with_the_fallback(monkeypatch):
    rng = np.random.default_rng(1)
    user, item = torch.from_numpy(rng.integers(0, 50, (2, 400)))
    with_host = graph.InteractionGraph.from_edges(user, item, 60, 55).index
    monkeypatch.setattr(indexing, "_host_for", lambda array: None)
    without = graph.InteractionGraph.from_edges(user, item, 60, 55).index
    for ours, theirs in zip(with_host, without, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_strided_ids():
    ids = np.array([[3, 0], [1, 2], [3, 1]])
    rowptr, col, *_ = build(ids[:, 0], ids[:, 1], 4, 3)
    assert rowptr.tolist() == [0, 0, 1, 1, 3] and col.tolist() == [2, 0, 1]


@pytest.mark.parametrize("size", [3, 1_300_000])
def test_first_edge_out_of_range_is_named(size):
    user, item = np.zeros(size, np.int64), np.zeros(size, np.int64)
    cases = (
        (user, -1, r"edge {}: user -1 is outside \[0, 5\)"),
        (user, 5, r"edge {}: user 5 is outside \[0, 5\)"),
        (item, 7, r"edge {}: item 7 is outside \[0, 7\)"),
        (item, 2**40, r"edge {}: item 1099511627776 is outside \[0, 7\)"),
    )
    for ids, bad, message in cases:
        for first in (0, size - 2):
            ids[[first, size - 1]] = bad
            with pytest.raises(ValueError, match=message.format(first)):
                build(user, item, 5, 7)
            ids[:] = 0


def test_bad_arguments_are_named():
    two, three = np.zeros(2, np.int64), np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="one-dimensional and of one length"):
        build(two, three, 5, 5)
    with pytest.raises(ValueError, match="one-dimensional and of one length"):
        build(two[:, None], two[:, None], 5, 5)
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\^31\), got 2147483648 and 5"):
        build(two, two, 2**31, 5)
    with pytest.raises(TypeError):
        build(np.zeros(2), np.zeros(2), 5, 5)  # no silent rounding of floats


def test_host_functions_refuse_what_would_leave_an_array():
    host = _extension.host
    rowptr, col = np.array([0, 2, 3]), np.array([0, 1, 1], np.int32)
    rows, lists = np.array([0, 1]), np.full((2, 1), -1, np.int32)
    for bad_rowptr in ([0, 2**40, 3], [0, -7, 3], [0, 2**63 - 1, 3], [0, 3, 2], [1, 2, 3]):
        with pytest.raises(ValueError, match="rowptr must (run|be non-decreasing) from 0"):
            host.edges_of_rows(np.array(bad_rowptr), col, 2, rows)
        with pytest.raises(ValueError, match="rowptr must (run|be non-decreasing) from 0"):
            host.index_of_lists(lists, np.array(bad_rowptr), col, 2)
    for bad in (2, -1, 2**31 - 1, -(2**31)):
        wrong = np.array([0, bad, 1], np.int32)
        with pytest.raises(ValueError, match="col must hold columns"):
            host.edges_of_rows(rowptr, wrong, 2, rows)
        with pytest.raises(ValueError, match="col must hold columns"):
            host.index_of_lists(lists, rowptr, wrong, 2)
    for bad in (2, -1, 2**62):
        with pytest.raises(ValueError, match="is outside"):
            host.edges_of_rows(rowptr, col, 2, np.array([0, bad]))
    for bad in (2, -2, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match="is outside"):
            host.index_of_lists(np.array([[0], [bad]], np.int32), rowptr, col, 2)
