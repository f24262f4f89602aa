"""Blocks of similarity rows as factors, against rows that are formed in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl import ops
from mmssl.models.mmssl.config import CriticConfig
from mmssl.models.mmssl.rows import dense_real_rows, multiply, real_rows, similarity_rows
from mmssl.ops._cases import sample_graph
from mmssl.ops.masked_similarity import batch_edges, similarity_factors
from tests.ops.kernels import needs_cpu_kernel, needs_gpu_operators

BLOCKS = 3
CAPACITY = pytest.mark.parametrize(
    "capacity", [False, pytest.param(True, marks=needs_gpu_operators)]
)


class World:
    """Two blocks, their batch and its edges; ``capacity``: arrays longer than the edges."""

    def __init__(self, capacity: bool, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.graph = sample_graph(40, 25, 300)
        self.users = torch.randperm(40, generator=generator)[:17]
        count = int(self.graph.index.rowptr.diff()[self.users].sum())
        self.edges = batch_edges(self.graph.ui, self.users, count + 9 if capacity else None)
        # Tables as the model has them: columns of one wide table.
        self.user, self.item = (
            torch.randn(n, BLOCKS * 6, generator=generator, dtype=torch.float64)
            .view(n, BLOCKS, 6)
            .transpose(0, 1)
            .requires_grad_()
            for n in (40, 25)
        )

    def dense(self) -> Tensor:
        """(K B, I), formed."""
        pairs = zip(self.user, self.item, strict=True)
        rows = [ops.masked_similarity(u, i, self.users, self.graph.ui) for u, i in pairs]
        return torch.cat(rows)


@needs_cpu_kernel
@CAPACITY
def test_masked_similarity_linear_of_several_blocks(capacity):
    world = World(capacity)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(25, 5, generator=generator, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(BLOCKS * 17, 5, generator=generator, dtype=torch.float64)
    leaves = (world.user, world.item, weight)
    found = multiply([similarity_rows(world.user, world.item, world.users, world.edges)], weight)
    expected = world.dense() @ weight
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for got, want in zip(
        torch.autograd.grad((found * upstream).sum(), leaves),
        torch.autograd.grad((expected * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@needs_cpu_kernel
@CAPACITY
def test_masked_similarity_linear_behind_the_edges_is_nothing(capacity):
    world = World(capacity)
    edges = world.edges
    value = similarity_factors(world.user, world.item, world.users, edges)[1].detach()
    stacked = edges.stacked(value)
    live = slice(0, int(edges.view.rowptr[-1]))
    expected = torch.zeros(BLOCKS, 17, 25, dtype=torch.float64)
    expected[:, edges.position[live], edges.item[live]] = value[:, live]
    eye = torch.eye(25, dtype=torch.float64)
    assert torch.equal(ops.spmm(stacked, eye), expected.flatten(0, 1))
    rows = torch.eye(BLOCKS * 17, dtype=torch.float64)
    assert torch.equal(ops.spmm(stacked.transpose(), rows), expected.flatten(0, 1).T)


@needs_cpu_kernel
@CAPACITY
def test_masked_similarity_linear_bridged_to_observed_rows(capacity):
    world = World(capacity)
    config = CriticConfig(gumbel_tau=0.005, similarity_scale=3.0, gumbel_scale=1e-3)
    whole = torch.rand(17, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tables = world.user[:1].detach(), world.item[:1].detach()
    own = similarity_rows(*tables, world.users, world.edges)
    draws = whole[world.edges.position, world.edges.item]
    eye = torch.eye(25, dtype=torch.float64)
    found = multiply([real_rows(own, draws, config, "sparse")], eye)
    expected = dense_real_rows(own, whole, config)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
