"""sample_bpr: exact, uniform, reproducible, and the same batch from every backend."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.ops.sampling import shuffled_head, triples_from_draws
from tests.ops.kernels import needs_cpu_kernel

BACKENDS = [pytest.param("native", marks=needs_cpu_kernel), "reference"]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            pytest.mark.gpu,
        ],
    ),
]


def random_graph(users, items, edges, seed=0) -> InteractionGraph:
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.randint(n, (edges,), generator=generator) for n in (users, items))
    return InteractionGraph.from_edges(*ids, users, items)


def sample(graph, batch_size, seed, backend="auto"):
    generator = torch.Generator(device=graph.device).manual_seed(seed)
    with ops.backend(backend):
        return ops.sample_bpr(graph, batch_size, generator)


def assert_uniform(counts: torch.Tensor) -> None:
    """Chi-square over cells of one probability, within six standard deviations of its mean."""
    expected = float(counts.sum()) / counts.numel()
    chi_square = float((counts - expected).square().sum()) / expected
    freedom = counts.numel() - 1
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom), counts


@needs_cpu_kernel
@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 40),
    items=st.integers(1, 12),
    edges=st.integers(0, 150),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
)
def test_every_backend_draws_the_same_batch(users, items, edges, seed, share):
    graph = random_graph(users, items, edges, seed)
    batch_size = round(share * graph.trainable_users.numel())
    batches = [sample(graph, batch_size, seed, backend) for backend in ("native", "reference")]
    for ours, plain in zip(*batches, strict=True):
        assert ours.dtype == torch.int64
        assert torch.equal(ours, plain)


@needs_cpu_kernel
def test_every_backend_draws_the_same_large_batch():
    graph = random_graph(20_000, 3_000, 100_000)
    for batch_size in (1024, graph.trainable_users.numel()):
        batches = [sample(graph, batch_size, 3, backend) for backend in ("native", "reference")]
        assert all(torch.equal(x, y) for x, y in zip(*batches, strict=True))
        assert batches[0].user.unique().numel() == batch_size


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_positives_are_edges_and_negatives_are_not(device, backend):
    graph = random_graph(60, 9, 250)
    dense = graph.ui.to_dense() > 0
    users = graph.trainable_users.tolist()
    batch = sample(graph.to(device), len(users), 1, backend)
    assert sorted(batch.user.tolist()) == users
    user, pos, neg = (x.cpu() for x in batch)
    assert dense[user, pos].all() and not dense[user, neg].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_users_are_uniform_without_replacement(backend):
    """All 5 * 4 ordered pairs of five users are equally likely."""
    graph = InteractionGraph.from_edges([0, 1, 2, 4, 6], [0, 1, 0, 1, 0], 8, 2)
    pairs = {pair: n for n, pair in enumerate(itertools.permutations([0, 1, 2, 4, 6], 2))}
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(len(pairs))
    with ops.backend(backend):
        for _ in range(4000):
            counts[pairs[tuple(ops.sample_bpr(graph, 2, generator).user.tolist())]] += 1
    assert_uniform(counts)


def test_orders_of_a_whole_shuffle_are_uniform():
    orders = {order: n for n, order in enumerate(itertools.permutations(range(4)))}
    draw = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.zeros(len(orders))
    for row in draw:
        counts[orders[tuple(shuffled_head(row, 4).tolist())]] += 1
    assert_uniform(counts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_items_are_uniform(backend):
    """Users with 3 of 7 items, with one item, and with all but one."""
    edges = [(0, 1), (0, 3), (0, 4), (1, 6)] + [(2, i) for i in range(7) if i != 5]
    graph = InteractionGraph.from_edges([u for u, _ in edges], [i for _, i in edges], 3, 7)
    generator = torch.Generator().manual_seed(0)
    with ops.backend(backend):
        batches = [ops.sample_bpr(graph, 3, generator) for _ in range(4000)]
    user, pos, neg = (torch.cat(x) for x in zip(*batches, strict=True))
    for u in range(3):
        own = graph.index.col[graph.index.rowptr[u] : graph.index.rowptr[u + 1]].long()
        missing = torch.tensor([i for i in range(7) if i not in own.tolist()])
        for items, drawn in ((own, pos[user == u]), (missing, neg[user == u])):
            counts = torch.bincount(drawn, minlength=7).float()
            assert counts[items].sum() == 4000
            if items.numel() > 1:
                assert_uniform(counts[items])


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_close_to_one_stay_inside(backend):
    graph = InteractionGraph.from_edges([0, 0, 1], [0, 2, 1], 2, 4)
    almost = torch.full((3, 2), 1 - 2**-53, dtype=torch.float64)
    with ops.backend(backend):
        if backend == "native":
            index = graph.index
            arguments = (graph.trainable_users, index.rowptr, index.col, 4)
            batch = torch.ops.mmssl.sample_bpr(almost, *arguments)
        else:
            batch = triples_from_draws(graph, almost)
    assert [x.tolist() for x in batch] == [[1, 0], [1, 2], [3, 3]]


@pytest.mark.parametrize("device", DEVICES)
def test_the_generator_decides(device):
    graph = random_graph(50, 20, 200).to(device)
    first, again, other = (sample(graph, 16, seed) for seed in (5, 5, 6))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first.user, other.user)
    # The draws of a batch are the whole of what it takes from the stream.
    generator = torch.Generator(device=device).manual_seed(5)
    expected = torch.Generator(device=device).manual_seed(5)
    ops.sample_bpr(graph, 16, generator)
    torch.rand(3, 16, generator=expected, device=device, dtype=torch.float64)
    assert torch.equal(generator.get_state(), expected.get_state())
    torch.manual_seed(0)
    without = ops.sample_bpr(graph, 16)
    torch.manual_seed(0)
    assert torch.equal(without.user, ops.sample_bpr(graph, 16).user)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_triple_and_no_user(backend):
    for graph in (random_graph(5, 4, 6), InteractionGraph.from_edges([], [], 3, 2)):
        batch = sample(graph, 0, 0, backend)
        assert [tuple(x.shape) for x in batch] == [(0,)] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_size_out_of_range(backend):
    graph = InteractionGraph.from_edges([0, 1, 1], [0, 0, 1], 3, 2)  # 1 has everything, 2 nothing
    for batch_size in (-1, 2):
        with pytest.raises(InputError, match=rf"batch_size: .* in \[0, 1\].*got {batch_size}"):
            sample(graph, batch_size, 0, backend)
