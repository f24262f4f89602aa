"""InteractionGraph against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmssl import indexing, ops
from mmssl.errors import InputError
from mmssl.graph import NORMALIZATIONS, InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.ops import sample_bpr
from mmssl.serving.tables import ServingTables


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


@pytest.mark.parametrize("format", ["coo", "csr", "csc", "lil", "dok", "bsr"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int8, np.uint64, bool])
def test_from_scipy_takes_any_format_and_dtype(format, dtype):
    dense = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).astype(dtype)
    if dtype is not bool:
        dense[0, 1] = 7
    for kind in (scipy.sparse.coo_matrix, scipy.sparse.coo_array):
        graph = InteractionGraph.from_scipy(kind(dense).asformat(format), normalization="none")
        assert np.array_equal(graph.ui.to_dense().numpy(), dense.astype(np.float32))
    assert (graph.value is None) == (dtype is bool)


def test_from_scipy_sums_small_integers_without_wrapping():
    ones = np.ones(300, np.uint8)
    matrix = scipy.sparse.coo_matrix((ones, (ones * 0, ones * 0)), shape=(1, 1))
    assert InteractionGraph.from_scipy(matrix).value.tolist() == [300.0]


def test_from_scipy_keeps_what_float32_cannot_hold():
    for small in (1e-50, 1e50):
        graph = InteractionGraph.from_scipy(scipy.sparse.csr_matrix([[small, 1.0]]))
        assert graph.value.tolist() == [small, 1.0] and graph.value.dtype == torch.float64


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), r"of shape \(R, C\), got ndarray \(3, 3\)"),
        ([[1]], r"got list \(\)"),
        (scipy.sparse.eye(2, dtype=complex), "matrix: expected real numbers, got complex128"),
        (scipy.sparse.csr_matrix([[np.nan]]), "value: expected finite numbers, got nan"),
        (
            scipy.sparse.csr_matrix([[-1.0]]),
            "edge values of user 0 with a positive",
        ),
    ],
)
def test_from_scipy_errors(matrix, message):
    with pytest.raises(InputError, match=message):
        InteractionGraph.from_scipy(matrix)


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
    with pytest.raises(InputError, match=r"value: expected shape \(2,\), got \(3,\)"):
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


# Using a graph never changes it.


class Propagation(torch.nn.Module):
    def __init__(self, graph: InteractionGraph) -> None:
        super().__init__()
        self.graph = graph
        self.item = torch.nn.Parameter(torch.arange(80.0).reshape(20, 4))

    def forward(self) -> torch.Tensor:
        return ops.spmm(self.graph.ui, self.item)


def plain_graph(normalization="sym", **options) -> InteractionGraph:
    user, item = torch.arange(50) % 10, torch.arange(50) % 20
    return InteractionGraph.from_edges(user, item, 10, 20, normalization=normalization, **options)


def trained(graph: InteractionGraph, backend: str) -> torch.Tensor:
    """One gradient, and one batch; both must work after whatever was done to the graph."""
    model = Propagation(graph)
    with ops.backend(backend):
        model().square().sum().backward()
        sample_bpr(graph, 4, torch.Generator().manual_seed(0))
    return model.item.grad


def under_inference_mode(graph: InteractionGraph) -> None:
    with torch.inference_mode():
        Propagation(graph)()
        sample_bpr(graph, 4)


def under_export(graph: InteractionGraph) -> None:
    exported = torch.export.export(Propagation(graph), ())
    assert torch.equal(exported.module()(), Propagation(graph)())


def under_compile(graph: InteractionGraph) -> None:
    compiled = torch.compile(Propagation(graph), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), Propagation(graph)())


def under_fake_tensors(graph: InteractionGraph) -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        Propagation(graph)()
        with pytest.raises(Exception):  # noqa: B017 - its number of users has no fake value
            sample_bpr(graph, 4)
        _ = graph.negative_rank_key


def under_transforms(graph: InteractionGraph) -> None:
    def loss(item):
        with ops.backend("reference"):
            sample_bpr(graph, 4)
            return ops.spmm(graph.ui, item).sum()

    torch.func.grad(loss)(torch.ones(20, 4))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize(
    "use",
    [under_inference_mode, under_export, under_compile, under_fake_tensors, under_transforms],
)
def test_use_leaves_a_graph_as_it_was(use, valued, backend):
    options = {"value": torch.arange(1.0, 51.0)} if valued else {}
    graph = plain_graph(**options)
    with ops.backend(backend):
        use(graph)
    fresh = plain_graph(**options)
    assert torch.equal(trained(graph, backend), trained(fresh, backend))
    kept = [v for v in vars(graph).values() if isinstance(v, torch.Tensor)]
    kept += [v for view in (graph.ui, graph.iu) for v in vars(view).values() if v is not None]
    assert all(type(v) is torch.Tensor and not v.is_inference() for v in kept)
    assert torch.equal(graph.negative_rank_key, fresh.negative_rank_key)
    assert torch.equal(graph.trainable_users, fresh.trainable_users)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_graph_built_under_inference_mode_can_be_trained_on(backend):
    with torch.inference_mode():
        value = torch.arange(1.0, 51.0)
        lists = torch.arange(20, dtype=torch.int32).repeat(1, 10, 1)
        graphs = [plain_graph(), plain_graph(value=value), *plain_graph().with_lists(lists)]
        graphs += [graphs[0].with_value(torch.ones(graphs[0].nnz)), graphs[1].to("cpu")]
    assert all(trained(graph, backend).isfinite().all() for graph in graphs[:2])
    for graph in graphs[2:]:
        with ops.backend(backend):
            Propagation(graph)().sum().backward()


def test_inference_mode_does_not_turn_gradients_on():
    value = torch.ones(50, requires_grad=True)
    with torch.inference_mode():
        graph = plain_graph(value=value)
        assert not torch.is_grad_enabled()
    assert not graph.value.requires_grad and not graph.ui.value.requires_grad


def test_tables_of_cold_items_are_kept_outside_inference_mode():
    tables = ServingTables(
        name="t", model="m", data_hash="h", seen="train",
        scorer=Embeddings(torch.rand(9, 2), torch.rand(10, 2)),
        graph=InteractionGraph.from_edges(range(9), range(9), 9, 10),
        train_degree=(torch.arange(10) < 9).long(),
        features={"text": torch.rand(10, 3)},
    )  # fmt: skip
    with torch.inference_mode():
        vectors = tables.cold_vectors
    assert vectors is not None and not vectors.is_inference()
    torch.nn.Linear(2, 1)(vectors).sum().backward()
