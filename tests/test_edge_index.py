"""Graphs from and to the edge_index of torch_geometric."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph

try:
    from torch_geometric import EdgeIndex
except ModuleNotFoundError:

    class EdgeIndex:
        """The documented interface of torch_geometric's class, as far as it is read."""

        def __init__(self, data, sparse_size=(None, None), sort_order=None, is_undirected=False):
            self.data, self.sizes = torch.as_tensor(data), sparse_size
            self.is_undirected = is_undirected

        def as_tensor(self):
            return self.data

        def sparse_size(self):
            return self.sizes


EDGES = [[0, 0, 1, 2, 0], [1, 2, 0, 2, 1]]


@pytest.mark.parametrize(
    "edge_index",
    [
        torch.tensor(EDGES),
        torch.tensor(EDGES, dtype=torch.int32),
        np.array(EDGES),
        EDGES,
        EdgeIndex(EDGES, sparse_size=(3, 4)),
        EdgeIndex(EDGES),
    ],
    ids=["tensor", "int32", "numpy", "list", "EdgeIndex", "EdgeIndex without sizes"],
)
def test_edge_index_of_every_kind(edge_index):
    expected = InteractionGraph.from_edges(*EDGES, 3, 4, normalization="sym")
    graph = InteractionGraph.from_edge_index(edge_index, 3, 4, normalization="sym")
    assert all(torch.equal(a, b) for a, b in zip(graph.index, expected.index, strict=True))
    weighted = InteractionGraph.from_edge_index(edge_index, 3, 4, value=[1, 2, 3, 4, 5])
    assert weighted.value.tolist() == [6, 2, 3, 4]  # by user, then by item
    assert all(type(t) is torch.Tensor for t in graph.index)


def test_sizes_of_an_edge_index_object():
    graph = InteractionGraph.from_edge_index(EdgeIndex(EDGES, sparse_size=(3, 4)))
    assert (graph.num_users, graph.num_items) == (3, 4)
    with pytest.raises(
        InputError, match="^num_items: expected 4, as the sparse_size .* got 5; use"
    ):
        InteractionGraph.from_edge_index(EdgeIndex(EDGES, sparse_size=(3, 4)), 3, 5)
    for edge_index in (EdgeIndex(EDGES), torch.tensor(EDGES)):
        with pytest.raises(InputError, match=r"^num_users: expected an integer in .* got None$"):
            InteractionGraph.from_edge_index(edge_index)


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        (
            torch.tensor([[0, 1], [3, 4]]),
            r"row 1, got up to 1 and 4; if items are counted from num",
        ),
        (
            torch.tensor([[0, 3], [3, 0]]),
            r"users in \[0, 3\) in row 0 .* got up to 3 and 3; if item",
        ),
        (torch.tensor([[0, 1], [3, 99]]), r"^item: expected ids in \[0, 2\), got 99$"),
        (torch.tensor([[0, -1], [3, 1]]), r"^user: expected ids in \[0, 3\), got -1$"),
        (torch.zeros(5, 2).long(), r"shape \(2, E\), users in row 0 .*got \(5, 2\); transpose it$"),
        (torch.zeros(3).long(), r"shape \(2, E\), users in row 0 and items in row 1, got \(3,\)$"),
        (torch.zeros(2, 3), "expected integer ids, got torch.float32"),
        (torch.eye(2).to_sparse(), "expected a dense tensor, got one of layout torch.sparse_coo"),
        (None, "expected an array of numbers, got NoneType"),
        (EdgeIndex([[0], [3]], sparse_size=(5, 5)), "^num_users: expected 5, as the sparse_size"),
        (
            EdgeIndex([[0, 1], [1, 0]], is_undirected=True),
            "^edge_index: expected edges from users to items, got an undirected EdgeIndex; take",
        ),
    ],
)
def test_another_edge_index_is_refused_in_one_line(edge_index, message):
    with pytest.raises(InputError, match=message) as caught:
        InteractionGraph.from_edge_index(edge_index, 3, 2)
    assert "\n" not in str(caught.value)


def test_what_the_message_about_item_ids_says_is_right():
    """The form of torch_geometric.nn.LightGCN: one range of ids, every edge in both directions."""
    graph = InteractionGraph.from_edges(*EDGES, 3, 4)
    one_way = graph.to_edge_index()[0] + torch.tensor([[0], [3]])
    both = torch.cat([one_way, one_way.flip(0)], 1)
    with pytest.raises(InputError, match="take the columns with edge_index"):
        InteractionGraph.from_edge_index(both, 3, 4)
    kept = both[:, both[0] < 3] - torch.tensor([[0], [3]])
    again = InteractionGraph.from_edge_index(kept, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(graph.index, again.index, strict=True))


def test_out_to_torch_geometric_and_back():
    """The lines of docs/graphs.md, and PyG's LightGCN as the truth of propagation."""
    geometric = pytest.importorskip("torch_geometric", reason="an optional package")
    graph = InteractionGraph.from_edges(*EDGES, 3, 4, normalization="sym")
    edge_index, _ = graph.to_edge_index()
    known = geometric.EdgeIndex(edge_index, sparse_size=(3, 4), sort_order="row")
    known.validate()
    assert known.as_tensor().data_ptr() == edge_index.data_ptr()
    again = InteractionGraph.from_edge_index(known, normalization="sym")
    assert all(torch.equal(a, b) for a, b in zip(graph.index, again.index, strict=True))
    model = geometric.nn.LightGCN(7, 8, 2)
    one_way = edge_index + torch.tensor([[0], [3]])
    expected = model.get_embedding(torch.cat([one_way, one_way.flip(0)], 1))
    users, items = ops.propagate_layers(graph, *model.embedding.weight.split([3, 4]), 2)
    assert torch.allclose(torch.cat([users, items]), expected, atol=1e-6)
