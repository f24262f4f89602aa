"""propagate_layers: the bits of the hops one by one, one operator call each way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmssl import ops
from mmssl.graph import NORMALIZATIONS, InteractionGraph
from mmssl.ops._registry import OPS
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


def random_graph(users: int, items: int, edges: int, hub: int, **options) -> InteractionGraph:
    """Draw edges; user 0 has up to ``hub`` more, which are summed in chunks and may be shared."""
    generator = torch.Generator().manual_seed(users + edges)
    user, item = (torch.randint(n, (edges + hub,), generator=generator) for n in (users, items))
    user[edges:] = 0
    return InteractionGraph.from_edges(user, item, users, items, **options)


def everything(function, graph: InteractionGraph, num_layers: int, tables: list[Tensor]):
    """Results and gradients of a loss that reads the inputs directly as well, like LightGCN's."""
    user, item = (t.detach().clone().requires_grad_() for t in tables)
    out = function(graph, user, item, num_layers)
    rows = torch.tensor([0, 0, 1])
    ego = user[rows].square().sum() + item[rows].square().sum() + item[rows.flip(0)].square().sum()
    loss = sum((t * torch.linspace(0.5, 1, t.shape[1], dtype=t.dtype)).square().sum() for t in out)
    return [*out, *torch.autograd.grad(loss + 0.3 * ego, [user, item])]


@settings(max_examples=40, deadline=None)
@given(
    num_layers=st.integers(0, 5),
    d=st.integers(1, 80),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    normalization=st.sampled_from(NORMALIZATIONS),
    valued=st.booleans(),
    hub=st.sampled_from([0, 3000]),
    threads=st.integers(1, 4),
)
def test_bits_are_those_of_the_single_hops(
    num_layers, d, dtype, normalization, valued, hub, threads
):
    value = torch.linspace(0.5, 1.5, 4000 + hub) if valued else None
    graph = random_graph(90, 1700, 4000, hub, normalization=normalization, value=value)
    generator = torch.Generator().manual_seed(d)
    tables = [
        (torch.randn(n, d, generator=generator, dtype=torch.float64) * 0.1).to(dtype)
        for n in (90, 1700)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ops.backend("native"):
            got = everything(ops.propagate_layers, graph, num_layers, tables)
            expected = everything(hop_by_hop, graph, num_layers, tables)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))


def test_the_sum_over_the_layers_is_kept_in_float32():
    """In bfloat16 1 + 2^-9 + 2^-9 is 1 after every rounding; here it is rounded once."""
    graph = InteractionGraph.from_edges([0], [0], 1, 1, normalization="none")
    user, item = torch.full((1, 3), 2.0**-9), torch.ones(1, 3)
    user, item = user.bfloat16(), item.bfloat16()
    # Layers of the user: 2^-9, 1, 2^-9, 1; those of the item the other way round.
    with ops.backend("native"):
        got, _ = ops.propagate_layers(graph, user, item, 3, combine="sum")
        by_hops, _ = hop_by_hop(graph, user, item, 3)
    assert torch.equal(got.float(), torch.full((1, 3), 2 + 2.0**-8).bfloat16().float())
    exact = 2 + 2.0**-8
    assert (got.double() - exact).abs().max() <= (4 * by_hops.double() - exact).abs().max()


def test_one_operator_call_each_way():
    calls = operator_calls(
        OPS["propagate_layers"], sample(OPS["propagate_layers"], torch.float32, "typical")
    )
    names = [function._schema.name.removeprefix("mmssl::") for function, _ in calls]
    # Forward and backward; the derivative of the backward is the forward operator.
    assert names == ["propagate_layers", "propagate_layers_backward"] + ["propagate_layers"] * (
        len(names) - 2
    )


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
