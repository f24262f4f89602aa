"""Normalized graphs against sums by math.fsum, which rounds once."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import NORMALIZATIONS, InteractionGraph

GRAPHS = 200
USERS, ITEMS = 12, 9


def exact(user, item, value, normalization: str, x, by_item: bool, rows: int) -> torch.Tensor:
    """The product of a view and (C,) ``x`` in Python floats; repeated edges add up."""
    entries, of_user, of_item = defaultdict(list), defaultdict(list), defaultdict(list)
    for u, i, v in zip(user, item, value, strict=True):
        entries[u, i].append(v)
        of_user[u].append(v)
        of_item[i].append(v)
    terms = defaultdict(list)
    for (u, i), values in entries.items():
        row, column = (i, u) if by_item else (u, i)
        own, other = math.fsum(of_user[u]), math.fsum(of_item[i])
        own, other = (other, own) if by_item else (own, other)
        divisor = {
            "none": 1.0,
            "row": own,
            "row_sqrt": math.sqrt(own),
            "sym": math.sqrt(own) * math.sqrt(other),
        }[normalization]
        terms[row].append(math.fsum(values) / divisor * x[column])
    return torch.tensor([math.fsum(terms[row]) for row in range(rows)], dtype=torch.float64)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_weights_over_twelve_orders_of_magnitude(normalization, backend):
    worst = 0.0
    for seed in range(GRAPHS):
        rng = np.random.default_rng(seed)
        edges = int(rng.integers(1, 60))
        user, item = rng.integers(0, USERS, edges), rng.integers(0, ITEMS, edges)
        value = (10 ** rng.uniform(-6, 6, edges)).astype(np.float32)
        graph = InteractionGraph.from_edges(
            user, item, USERS, ITEMS, normalization=normalization, value=value
        )
        for view, by_item in ((graph.ui, False), (graph.iu, True)):
            x = rng.uniform(0.5, 2, view.num_cols).astype(np.float32)
            lists = (user.tolist(), item.tolist(), value.tolist())
            truth = exact(*lists, normalization, x.tolist(), by_item, view.num_rows)
            with ops.backend(backend):
                y = ops.spmm(view, torch.from_numpy(x)[:, None]).squeeze(1).double()
            assert bool((y[truth == 0] == 0).all())
            error = (y - truth).abs() / truth.where(truth != 0, 1.0)
            worst = max(worst, float(error.max()))
            # The transposed arrays, which the backward pass multiplies by.
            transposed = view.transpose().to_dense(torch.float64)
            dense = view.to_dense(torch.float64).T
            assert torch.allclose(transposed, dense, rtol=1e-12, atol=0)
    assert worst < 1e-6


@pytest.mark.parametrize("normalization", ["row", "row_sqrt", "sym"])
@pytest.mark.parametrize(
    ("power", "dtype"), [(-43, np.float32), (36, np.float32), (-310, np.float64), (300, np.float64)]
)
def test_degrees_at_the_ends_of_the_range(normalization, power, dtype):
    """Their scales would overflow or vanish in float32 or even in float64."""
    user, item = [0, 0, 1, 2], [0, 1, 1, 2]
    value = np.array([1.0, 3.0, 1.0, 1.0], np.float64)
    value[:3] *= 10.0**power
    value = value.astype(dtype)
    graph = InteractionGraph.from_edges(user, item, 3, 3, normalization=normalization, value=value)
    for view, by_item in ((graph.ui, False), (graph.iu, True)):
        ones = torch.ones(3, 1, dtype=graph.value.dtype)
        y = ops.spmm(view, ones).squeeze(1)
        truth = exact(user, item, value.tolist(), normalization, [1.0] * 3, by_item, 3)
        assert torch.allclose(y.double(), truth, rtol=1e-6, atol=0)


def test_float64_values_have_float64_scales():
    value = torch.rand(40, dtype=torch.float64) + 0.1
    ids = torch.randint(6, (2, 40))
    graph = InteractionGraph.from_edges(*ids, 6, 6, normalization="row", value=value)
    sums = ops.spmm(graph.ui, torch.ones(6, 1, dtype=torch.float64))
    assert torch.allclose(sums[sums > 0], torch.ones((), dtype=torch.float64), rtol=1e-15)


def test_repeated_edges_are_summed_in_float64():
    value = np.array([1.0] + [2.0**-25] * 1024, np.float32)  # each vanishes next to 1 in float32
    ids = np.zeros(value.size, np.int64)
    graph = InteractionGraph.from_edges(ids, ids, 1, 1, value=value)
    assert graph.value.tolist() == [1 + 2.0**-15]


@pytest.mark.parametrize("normalization", ["row", "row_sqrt", "sym"])
def test_rows_without_a_positive_sum(normalization):
    def build(*value):
        return InteractionGraph.from_edges(
            [0, 1, 1], [0, 0, 1], 3, 2, normalization=normalization, value=torch.tensor(value)
        )

    for value, what, got in (
        ((9.0, 1.0, -2.0), "user 1", "-1"),
        ((1.0, 1.0, -1.0), "user 1", "0"),
        ((1.0, -2.0, 3.0), "item 0", "-1"),
    ):
        with pytest.raises(
            InputError, match=rf"^value: .* values of {what} .* '{normalization}' .* got {got};"
        ):
            build(*value)
    graph = build(0.0, 0.0, 2.0)
    assert torch.equal(graph.ui.to_dense()[0], torch.zeros(2))  # all values are 0
    assert torch.equal(graph.ui.to_dense()[2], torch.zeros(2))  # no edges
    assert bool(torch.isfinite(graph.ui.to_dense()).all())


def test_a_cancellation_is_not_a_degree():
    value = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)  # sums to 2.8e-17
    with pytest.raises(InputError, match="edge values of user 0 with a positive"):
        InteractionGraph.from_edges([0] * 3, [0, 1, 2], 1, 3, value=value)
    graph = InteractionGraph.from_edges([0] * 3, [0, 1, 2], 1, 3, value=value, normalization="none")
    assert torch.equal(graph.ui.to_dense(torch.float64)[0], value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalization", ["none", "sym"])
def test_values_that_are_not_finite(bad, normalization):
    with pytest.raises(InputError, match="finite numbers, got .* edge of user 2 and item 0"):
        InteractionGraph.from_edges(
            [0, 2], [1, 0], 3, 2, value=[1.0, bad], normalization=normalization
        )
    with pytest.raises(InputError, match="value: .* got inf"):  # the sum of a repeated edge
        InteractionGraph.from_edges([0, 0], [0, 0], 1, 1, value=torch.full((2,), 3e38))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_flow_through_the_degrees(normalization, backend):
    user, item = torch.tensor([0, 0, 1, 2, 0]), torch.tensor([1, 2, 0, 2, 1])  # one twice
    value = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    xs = [torch.randn(n, 2, dtype=torch.float64).requires_grad_() for n in (4, 4)]

    def results(value, *xs):
        graph = InteractionGraph.from_edges(
            user, item, 4, 4, normalization=normalization, value=value
        )
        with ops.backend(backend):
            return tuple(ops.propagate([graph.ui, graph.iu], xs))

    fixed, trained = results(value, *xs), results(value.clone().requires_grad_(), *xs)
    for one, other in zip(fixed, trained, strict=True):
        assert torch.allclose(one, other, rtol=1e-13)
    arguments = (value.requires_grad_(), *xs)
    assert torch.autograd.gradcheck(results, arguments)
    assert torch.autograd.gradgradcheck(results, arguments)


def test_with_value_trains_without_sorting():
    graph = InteractionGraph.from_edges([0, 0, 1, 2], [1, 2, 0, 2], 3, 3, normalization="sym")
    lists = torch.tensor([[[1, 2], [0, -1], [2, -1]]])
    (learned,) = graph.with_lists(lists)  # its index has no map from items to users
    logit = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([logit], lr=1.0)
    for base in (graph, learned):
        before = logit.detach().clone()
        for _ in range(3):
            weighted = base.with_value(logit.exp())
            expected = InteractionGraph.from_edges(
                base.ui.row_of_edge(), base.index.col, 3, 3, normalization="sym", value=logit.exp()
            )
            for one, other in ((weighted.ui, expected.ui), (weighted.iu, expected.iu)):
                assert torch.equal(one.to_dense(), other.to_dense())
                assert torch.equal(one.transpose().to_dense(), other.to_dense().T)
            optimizer.zero_grad()
            x = torch.arange(6.0).reshape(3, 2)
            ops.spmm(weighted.iu, ops.spmm(weighted.ui, x)).square().sum().backward()
            optimizer.step()
        assert not torch.equal(logit, before)
    with pytest.raises(InputError, match=r"value: expected shape \(4,\), got \(3,\)"):
        graph.with_value(torch.ones(3))


def test_values_of_zero_get_no_gradient_from_a_division_by_zero():
    value = torch.tensor([0.0, 2.0], requires_grad=True)
    graph = InteractionGraph.from_edges([0, 1], [0, 1], 2, 2, value=value)
    ops.spmm(graph.ui, torch.ones(2, 1)).sum().backward()
    assert value.grad[0] == 0 and bool(torch.isfinite(value.grad).all())


def test_the_function_transforms_see_values():
    graph = InteractionGraph.from_edges([0, 0, 1], [1, 2, 0], 2, 3)

    def loss(value):
        with ops.backend("reference"):
            return ops.spmm(graph.with_value(value).ui, torch.arange(3.0)[:, None]).square().sum()

    value = torch.tensor([1.0, 2.0, 3.0])
    with torch.enable_grad():
        leaf = value.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.allclose(torch.func.grad(loss)(value), expected)
