"""propagate_layers and what is built on it: the hops one by one, the same bits for any threads."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import NORMALIZATIONS, InteractionGraph
from mmssl.ops._registry import OPS
from mmssl.ops.propagate_layers import graph_operands
from mmssl.ops.propagated_bpr_step import AdamRates
from tests.ops.cases import operator_calls, sample
from tests.ops.kernels import needs_cpu_kernel

pytestmark = needs_cpu_kernel


def hop_by_hop(
    graph: InteractionGraph, user: Tensor, item: Tensor, num_layers: int
) -> list[Tensor]:
    user_sum, item_sum = user, item
    for _ in range(num_layers):
        user, item = ops.spmm(graph.ui, item), ops.spmm(graph.iu, user)
        user_sum, item_sum = user_sum + user, item_sum + item
    scale = 1.0 / (num_layers + 1)
    return [user_sum * scale, item_sum * scale]


class Counted(TorchDispatchMode):
    """Counts the calls of the package's operators."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += str(func).startswith("mmssl.")
        return func(*args, **(kwargs or {}))


def random_graph(users: int, items: int, edges: int, hub: int, **options) -> InteractionGraph:
    """Draw edges; user 0 has up to ``hub`` more, which are summed in chunks and may be shared."""
    generator = torch.Generator().manual_seed(users + edges)
    user, item = (torch.randint(n, (edges + hub,), generator=generator) for n in (users, items))
    user[edges:] = 0
    return InteractionGraph.from_edges(user, item, users, items, **options)


GRAPHS = {
    "d": st.one_of(st.integers(1, 80), st.sampled_from([16, 32, 48, 64, 128])),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "normalization": st.sampled_from(NORMALIZATIONS),
    "valued": st.booleans(),
    "hub": st.sampled_from([0, 3000]),
}


def everything(function, graph: InteractionGraph, num_layers: int, tables: list[Tensor]):
    """Results and gradients of a loss that reads the inputs directly as well, like LightGCN's."""
    user, item = (t.detach().clone().requires_grad_() for t in tables)
    out = function(graph, user, item, num_layers)
    rows = torch.tensor([0, 0, 1])
    ego = user[rows].square().sum() + item[rows].square().sum() + item[rows.flip(0)].square().sum()
    loss = sum((t * torch.linspace(0.5, 1, t.shape[1], dtype=t.dtype)).square().sum() for t in out)
    return [*out, *torch.autograd.grad(loss + 0.3 * ego, [user, item])]


@settings(max_examples=40, deadline=None)
@given(num_layers=st.integers(0, 5), threads=st.integers(2, 4), **GRAPHS)
def test_hops_one_by_one_and_the_same_bits_for_any_number_of_threads(
    num_layers, d, dtype, normalization, valued, hub, threads
):
    value = torch.linspace(0.5, 1.5, 4000 + hub) if valued else None
    graph = random_graph(90, 1700, 4000, hub, normalization=normalization, value=value)
    generator = torch.Generator().manual_seed(d)
    tables = [torch.randn(n, d, generator=generator, dtype=dtype) * 0.1 for n in (90, 1700)]
    before = torch.get_num_threads()
    try:
        with ops.backend("native"):
            torch.set_num_threads(1)
            alone = everything(ops.propagate_layers, graph, num_layers, tables)
            torch.set_num_threads(threads)
            got = everything(ops.propagate_layers, graph, num_layers, tables)
            wide = everything(hop_by_hop, graph, num_layers, [t.double() for t in tables])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(g, a) for g, a in zip(got, alone, strict=True))
    for g, exact in zip(got, wide, strict=True):
        bound = 16 * torch.finfo(dtype).eps * float(exact.detach().abs().max())
        assert (g.double() - exact).abs().max() <= bound


def test_half_types_are_rounded_once():
    """In bfloat16 1 + 2^-9 + 2^-9 is 1 after every rounding."""
    graph = InteractionGraph.from_edges([0], [0], 1, 1, normalization="none")
    user, item = torch.full((1, 3), 2.0**-9), torch.ones(1, 3)
    user, item = user.bfloat16(), item.bfloat16()
    # Layers of the user: 2^-9, 1, 2^-9, 1; those of the item the other way round.
    got, _ = ops.propagate_layers(graph, user, item, 3, combine="sum")
    assert torch.equal(got, torch.full((1, 3), 2 + 2.0**-8).bfloat16())


def test_one_operator_call_each_way():
    calls = operator_calls(
        OPS["propagate_layers"], sample(OPS["propagate_layers"], torch.float32, "typical")
    )
    # The gradient is the same operator for the transposed matrix, and so is its own.
    assert {function._schema.name for function, _ in calls} == {"mmssl::propagate_layers"}
    graph = random_graph(50, 40, 300, 0)
    user, item = torch.randn(50, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    with Counted() as counted:
        torch.autograd.backward(ops.propagate_layers(graph, user, item, 4), (user, item))
    assert counted.calls == 2


def test_no_layer_is_kept_for_the_backward_pass():
    graph = random_graph(50, 40, 300, 0)
    user, item = torch.randn(50, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        ops.propagate_layers(graph, user, item, 4)
    assert not saved


@pytest.mark.parametrize("part", [0, 1])
def test_one_result_or_one_input_is_enough(part):
    graph = random_graph(50, 40, 300, 0)
    tables = [torch.randn(50, 8), torch.randn(40, 8)]
    tables[part].requires_grad_()
    for other in (0, 1):
        grads = [
            torch.autograd.grad(f(graph, *tables, 3)[other].square().sum(), tables[part])[0]
            for f in (ops.propagate_layers, hop_by_hop)
        ]
        torch.testing.assert_close(*grads)


def step(function, graph: InteractionGraph, num_layers: int, tables: list[Tensor], batch):
    """Loss, squares and the gradients of a weighted sum of both."""
    user, item = (t.detach().clone().requires_grad_() for t in tables)
    loss, squares = function(graph, user, item, *batch, num_layers)
    grads = torch.autograd.grad(loss + 0.3 * squares, [user, item])
    return [loss.detach(), squares.detach(), *grads]


def by_parts(graph, user, item, users, pos_items, neg_items, num_layers):
    """The definition of ``propagated_bpr_loss``, in the ops that it joins."""
    final = hop_by_hop(graph, user, item, num_layers)
    rows = user[users], item[pos_items], item[neg_items]
    squares = sum(row.square().sum() for row in rows)
    return ops.bpr_loss(*final, users, pos_items, neg_items), squares


@settings(max_examples=40, deadline=None)
@given(
    num_layers=st.integers(0, 4),
    size=st.sampled_from([1, 7, 300]),
    threads=st.integers(2, 4),
    **GRAPHS,
)
def test_a_step_is_that_of_its_parts_and_the_same_for_any_number_of_threads(
    num_layers, d, dtype, normalization, valued, hub, size, threads
):
    value = torch.linspace(0.5, 1.5, 4000 + hub) if valued else None
    graph = random_graph(90, 1700, 4000, hub, normalization=normalization, value=value)
    random = torch.Generator().manual_seed(d + size)
    tables = [torch.randn(n, d, generator=random, dtype=dtype) * 0.1 for n in (90, 1700)]
    batch = [torch.randint(n, (size,), generator=random) for n in (90, 1700, 1700)]
    before = torch.get_num_threads()
    try:
        with ops.backend("native"):
            torch.set_num_threads(1)
            alone = step(ops.propagated_bpr_loss, graph, num_layers, tables, batch)
            torch.set_num_threads(threads)
            got = step(ops.propagated_bpr_loss, graph, num_layers, tables, batch)
            wide = step(by_parts, graph, num_layers, [t.double() for t in tables], batch)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(g, a) for g, a in zip(got, alone, strict=True))
    for g, exact in zip(got, wide, strict=True):
        bound = 32 * torch.finfo(dtype).eps * max(float(exact.abs().max()), 1e-3)
        assert (g.double() - exact).abs().max() <= bound


@settings(max_examples=40, deadline=None)
@given(num_layers=st.integers(1, 4), threads=st.integers(2, 4), step=st.integers(1, 3), **GRAPHS)
def test_a_step_of_adam_is_that_of_torch_and_the_same_for_any_number_of_threads(
    num_layers, d, dtype, normalization, valued, hub, threads, step
):
    value = torch.linspace(0.5, 1.5, 4000 + hub) if valued else None
    graph = random_graph(90, 1700, 4000, hub, normalization=normalization, value=value)
    random = torch.Generator().manual_seed(d)
    tables = [torch.randn(n, d, generator=random, dtype=dtype) * 0.1 for n in (90, 1700) * 3]
    tables[4:] = [0.001 + t.square() for t in tables[4:]]
    batch = [torch.randint(n, (300,), generator=random) for n in (90, 1700, 1700)]
    before = torch.get_num_threads()

    def run(native: bool, dtype: torch.dtype) -> list[Tensor]:
        own = [t.to(dtype, copy=True) for t in tables]
        rates = AdamRates(0.01, 0.9, 0.999, 1e-8, step)
        with ops.backend("native" if native else "reference"):
            terms = ops.propagated_bpr_step(graph, *own, *batch, num_layers, 0.2, rates)
        return [terms, *own]

    try:
        torch.set_num_threads(1)
        alone = run(True, dtype)
        torch.set_num_threads(threads)
        got = run(True, dtype)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(g, a) for g, a in zip(got, alone, strict=True))
    for g, plain, exact in zip(got, run(False, dtype), run(False, torch.float64), strict=True):
        slack = 64 * torch.finfo(dtype).eps * max(float(exact.abs().max()), 1e-3)
        assert (g - exact).abs().max() <= 2 * (plain - exact).abs().max() + slack


def test_a_step_of_adam_changes_nothing_if_an_id_is_out_of_range():
    graph = random_graph(50, 40, 300, 0)
    tables = [torch.rand(n, 8) for n in (50, 40) * 3]
    before = [t.clone() for t in tables]
    batch = [torch.tensor([3, 49]), torch.tensor([0, 39]), torch.tensor([5, 40])]
    with pytest.raises(InputError, match=r"neg_items: expected ids in \[0, 40\), got 40"):
        ops.propagated_bpr_step(graph, *tables, *batch, 3, 0.1, AdamRates(0.1, 0.9, 0.9, 0.1, 1))
    assert all(torch.equal(*pair) for pair in zip(tables, before, strict=True))


@pytest.mark.parametrize(
    ("users", "items"), [([0, 50], [0]), ([0], [-1]), ([0.0], [0]), ([[0]], [0])]
)
def test_rows_out_of_range_are_refused(users, items):
    graph = random_graph(50, 40, 300, 0)
    tables = [torch.rand(50, 8), torch.rand(40, 8)]
    ids = torch.tensor(users), torch.tensor(items)
    operands = graph_operands(graph, torch.float32, 2)
    with pytest.raises((ValueError, RuntimeError), match="expected ids|must be"):
        torch.ops.mmssl.propagated_rows(*tables, *ids, *operands)
    good = torch.tensor([1, 2]), torch.tensor([3])
    for grads in ((torch.rand(1, 8), torch.rand(1, 8)), (torch.rand(2, 8), torch.rand(1, 7))):
        with pytest.raises(RuntimeError, match="the gradients must be like the results"):
            torch.ops.mmssl.propagated_rows_backward(*grads, *tables, *good, *operands)


def test_a_step_is_one_operator_call_each_way():
    graph = random_graph(50, 40, 300, 0)
    user, item = torch.randn(50, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    batch = [torch.tensor([3, 3, 49]), torch.tensor([0, 39, 0]), torch.tensor([5, 0, 39])]
    with Counted() as counted:
        loss, squares = ops.propagated_bpr_loss(graph, user, item, *batch, 3)
        (loss + squares).backward()
    assert counted.calls == 2


@pytest.mark.parametrize("of_loss", [True, False])
def test_either_result_of_a_step_alone_has_its_gradient(of_loss):
    graph = random_graph(50, 40, 300, 0)
    tables = [torch.randn(50, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)]
    batch = [torch.tensor([3, 3, 49]), torch.tensor([0, 39, 0]), torch.tensor([5, 0, 39])]
    grads = [
        torch.autograd.grad(f(graph, *tables, *batch, 3)[1 - of_loss], tables, allow_unused=True)
        for f in (ops.propagated_bpr_loss, by_parts)
    ]
    for got, exact in zip(*grads, strict=True):
        torch.testing.assert_close(got, exact)


def test_a_step_is_propagate_layers_and_bpr_loss_where_no_kernel_joins_them(monkeypatch):
    """The way of a GPU, on the CPU: the tensors claim to be there."""
    graph = random_graph(50, 40, 300, 0)
    tables = [torch.randn(50, 8), torch.randn(40, 8)]
    batch = [torch.tensor([3, 3, 49]), torch.tensor([0, 39, 0]), torch.tensor([5, 0, 39])]
    expected = step(ops.propagated_bpr_loss, graph, 3, tables, batch)
    module = sys.modules["mmssl.ops.propagated_bpr_loss"]  # the package's name is the function's
    monkeypatch.setattr(module, "_joined_on", lambda device: False)
    with Counted() as counted:
        got = step(ops.propagated_bpr_loss, graph, 3, tables, batch)
    assert counted.calls == 6
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
