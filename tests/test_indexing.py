"""Index arrays from lists and rows: the compiled module and plain torch against from_edges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmssl import _extension, indexing
from mmssl.graph import InteractionGraph
from mmssl.indexing import edges_of_rows
from mmssl.ops import spmm
from mmssl.ops.masked_similarity import batch_edges
from tests.ops.kernels import needs_gpu_operators

needs_host = pytest.mark.skipif(
    _extension.host is None, reason=f"no mmssl._host: {_extension.missing.get('_host')}"
)
WAYS = [pytest.param("host", marks=needs_host), "torch"]


@contextmanager
def in_way(way: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if way == "torch":
            patch.setattr(indexing, "_host_for", lambda array: None)
        yield


@pytest.fixture(params=WAYS)
def fixed_way(request):
    with in_way(request.param):
        yield


def random_graph(rng, users, items, edges) -> InteractionGraph:
    return InteractionGraph.from_edges(
        rng.integers(0, max(users, 1), edges), rng.integers(0, max(items, 1), edges), users, items
    )


def random_lists(rng, modalities, users, items, k) -> Tensor:
    """(M, U, k) distinct items; some lists are empty, some end early."""
    order = rng.random((modalities, users, items)).argsort(2)[:, :, :k]
    length = rng.integers(0, k + 1, users)
    order[:, np.arange(k) >= length[:, None]] = -1
    return torch.from_numpy(order).int()


def expected_index(graph: InteractionGraph, lists: Tensor) -> indexing.GraphIndex:
    """By a set of edges, as it was before there were counting sorts."""
    user, item = (lists >= 0).nonzero()[:, 0], lists[lists >= 0].long()
    edge_user = graph.ui.row_of_edge()
    unseen = ~(lists >= 0).any(1)[edge_user]
    user = torch.cat([user, edge_user[unseen]])
    item = torch.cat([item, graph.index.col[unseen].long()])
    return InteractionGraph.from_edges(user, item, graph.num_users, graph.num_items).index


def assert_same(index: indexing.GraphIndex, expected: indexing.GraphIndex) -> None:
    for ours, theirs in zip(index[:4], expected[:4], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@st.composite
def graphs(draw, least_users=0):
    """Draw a graph, and the generator for what else is drawn at random."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    users, items = draw(st.integers(least_users, 9)), draw(st.integers(1, 9))
    return random_graph(rng, users, items, draw(st.integers(0, 40)) if users else 0), rng


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 9))
@pytest.mark.parametrize("way", WAYS)
def test_index_of_any_lists(way, drawn, k):
    graph, rng = drawn
    lists = random_lists(rng, 2, graph.num_users, graph.num_items, min(k, graph.num_items))
    with in_way(way):
        built = graph.with_lists(lists)
    for learned, own in zip(built, lists, strict=True):
        assert_same(learned.index, expected_index(graph, own))
        assert learned.normalization == graph.normalization and learned.value is None


@needs_host
def test_index_of_lists_on_several_threads():
    rng = np.random.default_rng(0)
    graph = random_graph(rng, 30_000, 500, 200_000)
    lists = random_lists(rng, 1, 30_000, 500, 60)
    assert int((lists >= 0).sum()) > 3 * 2**18  # three threads' worth
    (learned,) = graph.with_lists(lists)
    assert_same(learned.index, expected_index(graph, lists[0]))


@pytest.mark.usefixtures("fixed_way")
def test_learned_graphs_move_and_multiply():
    rng = np.random.default_rng(0)
    graph = random_graph(rng, 12, 8, 30)
    (learned,) = graph.with_lists(random_lists(rng, 1, 12, 8, 4))
    assert torch.equal(learned.to("cpu").iu.to_dense(), learned.iu.to_dense())
    dense = learned.ui.to_dense() > 0
    assert torch.equal(learned.iu.to_dense() > 0, dense.T)


@pytest.mark.usefixtures("fixed_way")
@pytest.mark.parametrize("bad", [8, -2, 2**31 - 1])
def test_items_out_of_range_are_refused(bad):
    graph = random_graph(np.random.default_rng(0), 5, 8, 10)
    lists = torch.full((1, 5, 2), -1, dtype=torch.int32)
    lists[0, 3, 1] = bad
    with pytest.raises(ValueError, match=rf"lists: expected items in \[-1, 8\), got {bad}"):
        graph.with_lists(lists)
    with pytest.raises(ValueError, match=r"lists: expected shape \(M, 5, k\), got \(1, 4, 2\)"):
        graph.with_lists(lists[:, :4])


@settings(max_examples=60, deadline=None)
@given(graphs(least_users=1), st.integers(0, 12))
@pytest.mark.parametrize("way", WAYS)
def test_edges_of_any_batch(way, drawn, batch):
    graph, rng = drawn
    rows = torch.from_numpy(rng.integers(0, graph.num_users, batch))  # repeated ones too
    with in_way(way):
        edges = batch_edges(graph.ui, rows)
    dense = (graph.ui.to_dense() > 0)[rows]
    position, item = dense.nonzero().unbind(1)
    assert torch.equal(edges.position, position) and torch.equal(edges.item, item)
    view = edges.view
    assert [t.dtype for t in (view.rowptr, view.col, view.t_rowptr, view.t_col, view.t_edge)] == [
        torch.int64, torch.int32, torch.int64, torch.int32, torch.int64,
    ]  # fmt: skip
    assert torch.equal(view.to_dense() > 0, dense)
    value = torch.arange(1.0, position.numel() + 1)
    weighted = edges.with_value(value)
    assert torch.equal(weighted.transpose().to_dense(), weighted.to_dense().T)
    assert torch.equal(weighted.to_dense()[position, item], value)
    by_item, order = torch.sort(item, stable=True)  # equal items in the order of the batch
    assert torch.equal(view.t_col.long(), position[order]) and torch.equal(view.t_edge, order)
    assert torch.equal(by_item, view.transpose().row_of_edge())


@needs_gpu_operators
@pytest.mark.parametrize("more", [0, 1, 9])
def test_edges_with_a_capacity_begin_like_those_without(more):
    graph = random_graph(np.random.default_rng(1), 12, 8, 40)
    rows = torch.tensor([3, 0, 7, 11])
    view = graph.ui
    with in_way("torch"):
        exact = edges_of_rows(view.rowptr, view.col, 8, rows)
    count = exact.item.numel()
    padded = edges_of_rows(view.rowptr, view.col, 8, rows, count + more)
    for name, want in exact._asdict().items():
        got = getattr(padded, name)
        if name == "live":
            assert torch.equal(got, torch.arange(count + more) < count)
        elif name in ("rowptr", "t_rowptr"):
            assert torch.equal(got, want), name
        else:
            assert torch.equal(got[:count], want) and got.dtype == want.dtype, name
    # What is behind the edges repeats the last one.
    assert (padded.position[count:] == exact.position[-1]).all()
    assert (padded.item[count:] == exact.item[-1]).all()


@needs_gpu_operators
@pytest.mark.parametrize("edges", [0, 1, 60])
def test_padded_graphs_of_counts_are_those_of_repeated_edges(edges):
    rng = np.random.default_rng(4)
    graph = random_graph(rng, 12, 8, 30)
    user, item = (torch.from_numpy(rng.integers(0, n, edges)) for n in (12, 8))
    ones = torch.ones(edges)
    exact = InteractionGraph.from_edges(
        user, item, 12, 8, normalization=graph.normalization, value=ones
    )
    counted = graph.of_counts(user, item)
    assert counted.nnz == edges
    x, y = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (8, 12))
    for view, want, table in ((counted.ui, exact.ui, x), (counted.iu, exact.iu, y)):
        torch.testing.assert_close(spmm(view, table), spmm(want, table), rtol=1e-6, atol=1e-9)
        back = table.new_ones(view.num_rows, 3)
        transposed = spmm(view.transpose(), back), spmm(want.transpose(), back)
        torch.testing.assert_close(*transposed, rtol=1e-6, atol=1e-9)


@needs_gpu_operators
def test_padded_graphs_begin_like_the_others():
    rng = np.random.default_rng(2)
    graph, lists = random_graph(rng, 12, 8, 30), random_lists(rng, 2, 12, 8, 3)
    with in_way("torch"):
        others, change = graph.with_changing_lists(lists.flip(2))
        change(lists)
        for exact, padded in zip(graph.with_lists(lists), others, strict=True):
            count = exact.nnz
            assert padded.nnz >= count
            for name in ("rowptr", "col", "colptr", "row"):
                got, want = getattr(padded.index, name), getattr(exact.index, name)
                assert torch.equal(got[: len(want)], want), name
            for name in ("row_scale", "col_scale"):
                got, want = getattr(padded.ui, name), getattr(exact.ui, name)
                assert (got is None and want is None) or torch.allclose(got, want, rtol=1e-6)


@needs_host
def test_rows_out_of_range_are_named():
    graph = random_graph(np.random.default_rng(0), 5, 8, 10)
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=rf"row {bad} is outside \[0, 5\)"):
            batch_edges(graph.ui, torch.tensor([0, bad]))
    host, (rowptr, col) = _extension.host, (t.numpy() for t in graph.index[:2])
    with pytest.raises(ValueError, match="rowptr must run from 0 to the number of edges"):
        host.edges_of_rows(rowptr, col[:-1], 8, np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="rows must be"):
        host.edges_of_rows(rowptr, col, 8, np.zeros((1, 1), np.int64))
    with pytest.raises(ValueError, match=r"lists must be \(U, k\), U = 5"):
        host.index_of_lists(np.zeros((4, 2), np.int32), rowptr, col, 8)
