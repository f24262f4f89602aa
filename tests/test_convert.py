"""Graphs and views from and to sparse matrices of torch, torch_sparse and scipy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import NORMALIZATIONS, GraphView, InteractionGraph

try:
    from torch_sparse import SparseTensor
except ModuleNotFoundError:

    class SparseTensor:
        """The documented interface of torch_sparse's class, as far as it is read."""

        def __init__(self, row, col, value=None, sparse_sizes=None):
            self.entries, self.sizes = (row, col, value), sparse_sizes

        def coo(self):
            return self.entries

        def sparse_sizes(self):
            return self.sizes


ROWS, COLS = 5, 4
LAYOUTS = ("coo", "csr", "csc", "torch_sparse", "scipy")
# Multiples of 1/8, whose sums are exact in every dtype and order.
VALUES = st.integers(-16, 16).map(lambda n: n / 8)
ENTRIES = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, COLS - 1), VALUES), max_size=30
)


@pytest.fixture(autouse=True)
def no_beta_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CS[RC] tensor support is in beta")
        yield


def unpacked(entries) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row, col, value = zip(*entries, strict=True) if entries else ((), (), ())
    return torch.tensor(row).long(), torch.tensor(col).long(), torch.tensor(value).double()


def summed(row, col, value, shape=(ROWS, COLS)) -> torch.Tensor:
    """The dense float64 matrix, entry by entry."""
    dense = torch.zeros(shape, dtype=torch.float64)
    for r, c, v in zip(row.tolist(), col.tolist(), value.tolist(), strict=True):
        dense[r, c] += v
    return dense


def compressed(major, minor, value, size, dtype):
    """Pointers of the major index; repeated and unsorted minor indices stay as they are."""
    order = torch.sort(major, stable=True).indices
    pointer = torch.zeros(size + 1, dtype=dtype)
    pointer[1:] = torch.bincount(major, minlength=size).cumsum(0)
    return pointer, minor[order].to(dtype), value[order]


def matrix(layout, row, col, value, shape=(ROWS, COLS), index=torch.int64):
    """A sparse matrix with the entries as given, repeated ones too."""
    if layout == "coo":
        return torch.sparse_coo_tensor(torch.stack([row, col]), value, shape)
    if layout == "csr":
        return torch.sparse_csr_tensor(*compressed(row, col, value, shape[0], index), shape)
    if layout == "csc":
        return torch.sparse_csc_tensor(*compressed(col, row, value, shape[1], index), shape)
    if layout == "torch_sparse":
        return SparseTensor(row=row, col=col, value=value, sparse_sizes=shape)
    entries = value.detach().numpy(), (row.numpy(), col.numpy())
    return scipy.sparse.coo_matrix(entries, shape=shape)


def build(kind, given, **options):
    name = "from_scipy" if scipy.sparse.issparse(given) else "from_torch"
    return getattr(kind, name)(given, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=50)
@given(
    entries=ENTRIES,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    index=st.sampled_from([torch.int32, torch.int64]),
)
def test_every_layout_keeps_its_values_and_sums_repeated_ones(layout, dtype, entries, index):
    row, col, value = unpacked(entries)
    if layout == "scipy":
        dtype = torch.float32 if dtype.itemsize == 2 else dtype
    given_matrix = matrix(layout, row, col, value.to(dtype), index=index)
    truth = summed(row, col, value)
    view = build(GraphView, given_matrix)
    graph = build(InteractionGraph, given_matrix, normalization="none")
    for one in (view, graph.ui, graph.iu.transpose()):
        assert torch.equal(one.to_dense(torch.float64), truth)
        assert torch.equal(one.transpose().to_dense(torch.float64), truth.T)
    stored = {(r, c) for r, c, _ in entries}
    assert graph.nnz == view.nnz == (int((truth != 0).sum()) if layout == "scipy" else len(stored))
    if graph.value is not None:
        wide = dtype == torch.float64 and layout != "scipy"
        assert graph.value.dtype == (torch.float64 if wide else torch.float32)


@settings(max_examples=50)
@given(entries=ENTRIES, normalization=st.sampled_from(NORMALIZATIONS))
def test_round_trips(normalization, entries):
    row, col, value = unpacked(entries)
    value = (value.abs() + 1).float()
    graph = InteractionGraph.from_edges(
        row, col, ROWS, COLS, value=value, normalization=normalization
    )
    for view in (graph.ui, graph.iu, graph.iu.transpose()):
        dense = view.to_dense()
        for sparse in (view.to_sparse_csr(), view.to_sparse_coo()):
            assert torch.equal(sparse.to_dense(), dense)
            assert torch.equal(GraphView.from_torch(sparse).to_dense(), dense)
        assert view.to_sparse_coo().is_coalesced()
        torch.sparse_coo_tensor(
            view.to_sparse_coo().indices(), view.edge_weight(), dense.shape, check_invariants=True
        )
        torch.sparse_csr_tensor(
            view.rowptr, view.col.long(), view.edge_weight(), dense.shape, check_invariants=True
        )
        assert np.array_equal(view.to_scipy().toarray(), dense.numpy())
        assert torch.equal(GraphView.from_scipy(view.to_scipy()).to_dense(), dense)
    edge_index, values = graph.to_edge_index()
    again = InteractionGraph.from_edge_index(
        edge_index, ROWS, COLS, value=values, normalization=normalization
    )
    raw = graph.with_normalization("none").ui
    for other in (
        again,
        InteractionGraph.from_torch(raw.to_sparse_csr(), normalization=normalization),
        InteractionGraph.from_torch(raw.to_sparse_coo(), normalization=normalization),
    ):
        assert all(torch.equal(a, b) for a, b in zip(graph.index, other.index, strict=True))
        assert torch.equal(other.ui.to_dense(), graph.ui.to_dense())
        assert torch.equal(other.iu.to_dense(), graph.iu.to_dense())


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "torch_sparse"])
@settings(max_examples=20)
@given(entries=ENTRIES)
def test_gradients_flow_back_to_the_values(layout, entries):
    if layout in ("csr", "csc"):  # torch itself has no gradient of repeated or unsorted entries
        entries = sorted({entry[:2]: entry for entry in entries}.values())
    row, col, value = unpacked(entries)
    value = value.requires_grad_()
    x = torch.arange(1.0, 2 * COLS + 1, dtype=torch.float64).reshape(COLS, 2)
    rows = torch.arange(1.0, ROWS + 1, dtype=torch.float64)[:, None]

    def gradient(product):
        loss = (rows * product.square()).sum()
        return torch.autograd.grad(loss, value, retain_graph=True)[0]

    dense = torch.zeros(ROWS, COLS, dtype=torch.float64)
    expected = gradient(dense.index_put((row, col), value, accumulate=True) @ x)
    given_matrix = matrix(layout, row, col, value)
    view = GraphView.from_torch(given_matrix)
    graph = InteractionGraph.from_torch(given_matrix, normalization="none")
    assert view.value.requires_grad and graph.value.requires_grad
    for product in (
        ops.spmm(view, x),
        ops.spmm(graph.ui, x),
        graph.ui.to_dense(torch.float64) @ x,
        torch.sparse.mm(graph.ui.to_sparse_coo(), x),
        torch.sparse.mm(view.to_sparse_csr(), x),
    ):
        assert torch.allclose(gradient(product), expected, rtol=1e-12)


def test_a_sparse_leaf_gets_its_gradient():
    leaf = torch.eye(3).to_sparse().requires_grad_()
    graph = InteractionGraph.from_torch(leaf, normalization="none")
    assert graph.value is not None  # although all are 1
    ops.spmm(graph.ui, torch.ones(3, 1)).sum().backward()
    assert torch.equal(leaf.grad.to_dense(), torch.eye(3))


def test_values_are_trained_from_zero():
    zeros = torch.zeros(2, requires_grad=True)
    given_matrix = torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 0]]), zeros, (2, 2))
    view = GraphView.from_torch(given_matrix)
    ops.spmm(view, torch.ones(2, 1)).sum().backward()
    assert view.nnz == 2 and zeros.grad.tolist() == [1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ones_make_a_binary_graph_unless_they_are_repeated(layout):
    row, col = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3])
    once = build(InteractionGraph, matrix(layout, row, col, torch.ones(3)))
    assert once.value is None and once.ui.row_scale is not None
    col = torch.tensor([2, 0, 0])
    twice = build(InteractionGraph, matrix(layout, row, col, torch.ones(3)), normalization="none")
    assert twice.value.tolist() == [1, 2]


def test_a_bool_matrix_has_its_true_entries():
    liked = torch.tensor([[True, False], [True, True]])
    for given_matrix in (liked.to_sparse(), liked.to_sparse_csr(), liked.to_sparse_csc()):
        graph = InteractionGraph.from_torch(given_matrix)
        assert graph.value is None and graph.nnz == 3
    indices, stored = torch.tensor([[0, 0, 1], [1, 1, 0]]), torch.tensor([True, True, False])
    view = GraphView.from_torch(torch.sparse_coo_tensor(indices, stored, (2, 2)))
    assert view.value is None and view.to_dense().tolist() == [[0, 1], [0, 0]]


def test_small_integers_are_summed_without_wrapping():
    indices = torch.zeros(2, 300, dtype=torch.int64)
    given_matrix = torch.sparse_coo_tensor(indices, torch.ones(300, dtype=torch.uint8), (1, 1))
    assert GraphView.from_torch(given_matrix).value.tolist() == [300]


def test_repeated_values_are_summed_in_float64():
    value = torch.tensor([1.0] + [2.0**-25] * 1024)  # each vanishes next to 1 in float32
    ids = torch.zeros(value.numel(), dtype=torch.int64)
    for layout in ("coo", "csr", "csc", "torch_sparse"):
        view = GraphView.from_torch(matrix(layout, ids, ids, value, (1, 1)))
        assert view.value.tolist() == [1 + 2.0**-15]


def test_a_sparse_tensor_of_torch_sparse_without_values():
    row, col = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0])
    graph = InteractionGraph.from_torch(SparseTensor(row=row, col=col, sparse_sizes=(2, 3)))
    assert graph.value is None and graph.nnz == 2 and (graph.num_users, graph.num_items) == (2, 3)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (3, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_entries(layout, shape):
    none = torch.zeros(0, dtype=torch.int64)
    given_matrix = matrix(layout, none, none, torch.zeros(0), shape)
    graph = build(InteractionGraph, given_matrix)
    assert (graph.num_users, graph.num_items, graph.nnz) == (*shape, 0)
    for view in (graph.ui, build(GraphView, given_matrix)):
        for out in (view.to_sparse_csr(), view.to_sparse_coo(), view.to_scipy()):
            assert tuple(out.shape) == shape
    weighted = InteractionGraph.from_edges(none, none, *shape, value=torch.zeros(0))
    assert weighted.nnz == 0 and weighted.to_edge_index()[0].shape == (2, 0)


def test_a_view_multiplies_as_its_matrix_does():
    torch.manual_seed(0)
    adjacency = (torch.rand(40, 30) * (torch.rand(40, 30) < 0.1)).to_sparse_csr()
    x = torch.randn(30, 8)
    view = GraphView.from_torch(adjacency)
    assert torch.allclose(ops.spmm(view, x), torch.sparse.mm(adjacency, x), atol=1e-6)
    assert torch.equal(view.to_sparse_csr().values(), adjacency.values())


def test_a_view_moves():
    view = GraphView.from_torch(torch.tensor([[0.0, 2.0], [1.0, 0.0]]).to_sparse())
    assert view.to("cpu") is view
    moved = view.to("meta")
    assert moved.device.type == moved.value.device.type == moved.t_edge.device.type == "meta"
    assert (moved.num_rows, moved.num_cols, moved.nnz, moved.edge) == (2, 2, 2, None)


def test_memory_is_shared_where_it_says_so():
    values = torch.tensor([1.0, 2.0, 3.0])
    coo = torch.sparse_coo_tensor([[0, 0, 1], [0, 1, 1]], values, (2, 2), is_coalesced=True)
    csr = coo.to_sparse_csr()
    for given_matrix in (coo, csr):
        graph = InteractionGraph.from_torch(given_matrix, normalization="none")
        given_matrix.values().zero_()
        assert graph.value.tolist() == [1, 2, 3]
        values.copy_(torch.tensor([1.0, 2.0, 3.0]))
    view = graph.ui
    out = view.to_sparse_csr()
    assert out.crow_indices().data_ptr() == view.rowptr.data_ptr()
    assert out.values().data_ptr() == view.value.data_ptr()
    scaled = graph.with_normalization("row").ui.to_sparse_csr()
    assert scaled.values().data_ptr() != view.value.data_ptr()
    out = view.to_scipy()
    out.data[:] = 0
    out.eliminate_zeros()
    assert view.to_dense().tolist() == [[1, 2], [0, 3]]


@pytest.mark.parametrize("under", [torch.inference_mode, torch.no_grad])
def test_what_is_built_under_inference_mode_can_be_trained_on(under):
    with under():
        given_matrix = torch.tensor([[0.5, 0], [2, 1]]).to_sparse_csr()
        views = [GraphView.from_torch(given_matrix)]
        views += [InteractionGraph.from_torch(given_matrix).ui]
        views += [InteractionGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2, 2).ui]
    for view in views:
        x = torch.ones(2, 1, requires_grad=True)
        ops.spmm(view, x).sum().backward()
        assert bool((x.grad > 0).all())


EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("given_matrix", "message"),
    [
        (
            EYE,
            r"got layout torch.strided of shape \(2, 2\); convert a dense matrix with .to_sparse",
        ),
        (None, "in COO, CSR or CSC layout, got NoneType"),
        (scipy.sparse.eye(2).tocsr(), "got csr_matrix"),
        (EYE.to_sparse_bsr((1, 1)), "got layout torch.sparse_bsr"),
        (torch.ones(2, 2, 2).to_sparse(), r"\(R, C\) without dense dimensions, got .* \(2, 2, 2\)"),
        (torch.ones(2, 2, 3).to_sparse(2), r"without dense dimensions, got .* \(2, 2, 3\)"),
        (EYE.to(torch.complex64).to_sparse(), "expected real numbers, got torch.complex64"),
        (EYE.to(torch.complex64).to_sparse_csr(), "expected real numbers, got torch.complex64"),
        (
            torch.sparse_coo_tensor([[0, 3], [1, 1]], [1.0, 1.0], (2, 2), check_invariants=False),
            r"^matrix, row: expected ids in \[0, 2\), got 3$",
        ),
        (
            torch.sparse_csr_tensor([0, 1, 2], [0, 7], [1.0, 1.0], (2, 2), check_invariants=False),
            r"^matrix, column: expected ids in \[0, 2\), got 7$",
        ),
        (
            torch.sparse_csr_tensor([0, 3, 2], [0, 1], [1.0, 1.0], (2, 2), check_invariants=False),
            "^matrix: expected ascending row pointers from 0 to 2, got others$",
        ),
        (
            SparseTensor(
                row=torch.tensor([0]),
                col=torch.tensor([0]),
                value=torch.ones(1, 3),
                sparse_sizes=(1, 1),
            ),
            r"^matrix: expected one number per entry, got values of shape \(1, 3\)$",
        ),
    ],
)
def test_other_matrices_are_refused_in_one_line(given_matrix, message):
    for kind in (InteractionGraph, GraphView):
        with pytest.raises(InputError, match=message) as caught:
            kind.from_torch(given_matrix)
        assert "\n" not in str(caught.value) and str(caught.value).startswith("matrix")


def test_values_that_a_normalization_refuses():
    with pytest.raises(InputError, match="edge values of user 0 with a positive"):
        InteractionGraph.from_torch((-EYE).to_sparse())
    with pytest.raises(InputError, match="finite numbers, got nan"):
        InteractionGraph.from_torch((EYE * torch.nan).to_sparse(), normalization="none")
    graph = InteractionGraph.from_torch((-EYE).to_sparse(), normalization="none")
    with pytest.raises(InputError, match="edge values of user 0 with a positive"):
        graph.with_normalization("row")
    with pytest.raises(InputError, match="normalization: expected one of .*got 'l2'"):
        graph.with_normalization("l2")


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_with_normalization_is_a_graph_built_with_it(normalization):
    user, item, value = torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0]), torch.arange(1.0, 4)
    for values in (None, value):
        graph = InteractionGraph.from_edges(user, item, 3, 3, value=values)
        expected = InteractionGraph.from_edges(
            user, item, 3, 3, value=values, normalization=normalization
        )
        other = graph.with_normalization(normalization)
        assert torch.equal(other.ui.to_dense(), expected.ui.to_dense())
        assert torch.equal(other.iu.to_dense(), expected.iu.to_dense())
        assert other.index.col is graph.index.col


def test_a_graph_and_a_view_say_what_they_are():
    graph = InteractionGraph.from_edges([0, 0, 1, 2, 0], [1, 2, 0, 2, 1], 3, 4, normalization="sym")
    assert repr(graph) == "InteractionGraph(3 users, 4 items, 4 edges, binary, sym, cpu)"
    assert repr(graph.iu) == "GraphView(4 x 3, 4 edges, cpu)"


def test_out_to_torch_sparse_and_back():
    """The line of docs/graphs.md."""
    sparse = pytest.importorskip("torch_sparse", reason="an optional package")
    value = torch.tensor([1.0, 2, 3, 4, 5], requires_grad=True)
    graph = InteractionGraph.from_edges(
        [0, 0, 1, 2, 0], [1, 2, 0, 2, 1], 3, 4, normalization="sym", value=value
    )
    matrix = sparse.SparseTensor.from_torch_sparse_csr_tensor(graph.ui.to_sparse_csr())
    assert torch.equal(matrix.to_dense(), graph.ui.to_dense())
    assert torch.equal(GraphView.from_torch(matrix).to_dense(), graph.ui.to_dense())
    assert torch.equal(GraphView.from_torch(matrix.t()).to_dense(), graph.ui.to_dense().T)
    x = torch.randn(4, 3)
    gradients = [
        torch.autograd.grad(product.square().sum(), value, retain_graph=True)[0]
        for product in (matrix @ x, ops.spmm(GraphView.from_torch(matrix), x))
    ]
    assert torch.allclose(*gradients, rtol=1e-5)
