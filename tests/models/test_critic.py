"""The factored critic against the dense one, in float64: outputs, penalty and every gradient."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.mmssl import rows as rows_module
from mmssl.models.mmssl.config import CriticConfig
from mmssl.models.mmssl.critic import Critic, critic_loss, gradient_penalty
from mmssl.models.mmssl.rows import (
    DenseRows,
    dense_real_rows,
    gumbel_form,
    multiply,
    real_rows,
    similarity_rows,
    uniform_shape,
)
from mmssl.ops.masked_similarity import batch_edges, masked_similarity_linear

SPARSE = CriticConfig(hidden=9, gumbel_tau=0.005, dropout=(0.0, 0.0))
FLAT = dataclasses.replace(SPARSE, gumbel_divides="noise")


def random_graph(num_users: int, num_items: int, density: float, seed: int) -> InteractionGraph:
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.rand(num_users, num_items, generator=generator) < density).nonzero()
    return InteractionGraph.from_edges(edges[:, 0], edges[:, 1], num_users, num_items)


def leaf(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    error = (got - expected).detach().abs().max()
    return float(error / expected.detach().abs().max().clamp_min(1e-300))


@settings(max_examples=40, deadline=None)
@given(
    num_users=st.integers(1, 12),
    num_items=st.integers(1, 40),
    dim=st.integers(1, 9),
    hidden=st.integers(1, 6),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    seed=st.integers(0, 2**16),
)
def test_linear_is_the_dense_product(num_users, num_items, dim, hidden, density, seed):
    graph = random_graph(num_users, num_items, density, seed)
    generator = torch.Generator().manual_seed(seed)
    users = torch.randperm(num_users, generator=generator)[: max(1, num_users // 2)]
    user, item = leaf(num_users, dim, seed=seed), leaf(num_items, dim, seed=seed + 1)
    weight = leaf(num_items, hidden, seed=seed + 2)
    upstream = leaf(users.numel(), hidden, seed=seed + 3).detach()
    full = (graph.index.rowptr.diff()[users] == num_items).any()
    if full:  # a row of rounding noise has no direction to compare
        return
    results = []
    for product in (
        masked_similarity_linear(user, item, users, graph.ui, weight),
        ops.masked_similarity(user, item, users, graph.ui) @ weight,
    ):
        grads = torch.autograd.grad((product * upstream).sum(), (user, item, weight))
        results.append((product, *grads))
    for got, expected in zip(*results, strict=True):
        # Rows with few items left are small differences of large numbers.
        expected = expected.detach()
        error = float((got.detach() - expected).abs().max())
        assert error <= 1e-7 * max(1.0, float(expected.abs().max()))


def test_users_with_every_item_and_with_none():
    graph = InteractionGraph.from_edges([0, 0, 0], [0, 1, 2], 2, 3)
    user, item, weight = leaf(2, 4, seed=0), leaf(3, 4, seed=1), leaf(3, 5, seed=2)
    product = masked_similarity_linear(user, item, torch.tensor([0, 1]), graph.ui, weight)
    assert torch.equal(product[0], torch.zeros(5, dtype=torch.float64))
    expected = torch.nn.functional.normalize(user[1] @ item.T, dim=0) @ weight
    assert relative(product[1], expected) < 1e-12
    product.sum().backward()
    for tensor in (user, item, weight):
        assert torch.isfinite(tensor.grad).all()


def test_wrong_weight_is_refused():
    graph = random_graph(3, 4, 0.3, 0)
    with pytest.raises(ValueError, match=r"weight: expected shape \(4, 2\), got \(5, 2\)"):
        masked_similarity_linear(
            torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0]), graph.ui, torch.ones(5, 2)
        )
    with pytest.raises(ValueError, match=r"weight: expected dtype torch.float32, .* got .*64"):
        masked_similarity_linear(
            torch.ones(3, 2),
            torch.ones(4, 2),
            torch.tensor([0]),
            graph.ui,
            torch.ones(4, 2).double(),
        )


def world(config: CriticConfig, num_items: int = 60, seed: int = 3):
    """A critic in train mode and the factors of two generated blocks and the model's own rows."""
    graph = random_graph(30, num_items, 0.15, seed)
    users = graph.trainable_users[:16]
    edges = batch_edges(graph.ui, users)
    embeddings = [
        (leaf(30, 8, seed=10 * b + seed), leaf(num_items, 8, seed=10 * b + seed + 1))
        for b in range(3)
    ]
    factors = [similarity_rows(u[None], i[None], users, edges) for u, i in embeddings]
    torch.manual_seed(seed)
    critic = Critic(num_items, config).double()
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return critic, graph, users, edges, embeddings, factors


def test_whole_critic_step_matches_dense():
    critic, graph, users, edges, embeddings, factors = world(SPARSE)
    assert gumbel_form(SPARSE, graph.num_items) == "sparse"
    whole = torch.rand(users.numel(), graph.num_items, dtype=torch.float64)
    on_edges = whole[edges.position, edges.item]
    assert on_edges.shape == uniform_shape("sparse", edges)
    own = factors[2].detach()
    dense_fake = [
        DenseRows(ops.masked_similarity(u, i, users, graph.ui)) for u, i in embeddings[:2]
    ]
    alpha = torch.rand(2 * users.numel(), 1, dtype=torch.float64)
    leaves = [t for pair in embeddings[:2] for t in pair]
    named = dict(critic.named_parameters())
    results = []
    for fake, real in (
        (factors[:2], real_rows(own, on_edges, SPARSE, "sparse")),
        (dense_fake, DenseRows(dense_real_rows(own, whole, SPARSE))),
    ):
        loss, terms = critic_loss(critic, fake, real, alpha, 1.0)
        score = critic(fake)
        generator_grads = torch.autograd.grad(score.mean(), leaves, retain_graph=True)
        critic_grads = torch.autograd.grad(loss, list(named.values()))
        results.append((*terms, score, *generator_grads, *critic_grads))
    largest = max(float(g.abs().max()) for g in results[1][-len(named) :])
    for got, expected in zip(*([t.detach() for t in r] for r in results), strict=True):
        scale = largest if expected.shape in {p.shape for p in named.values()} else 0.0
        error = (got - expected).abs().max() / max(float(expected.abs().max()), scale * 1e-3)
        assert error < 1e-10


def test_flat_rows_are_dense_rows_without_the_noise():
    _, graph, users, edges, _, factors = world(FLAT)
    own = factors[2]
    quiet = dataclasses.replace(FLAT, gumbel_scale=0.0)
    uniform = torch.rand(users.numel(), graph.num_items, dtype=torch.float64)
    eye = torch.eye(graph.num_items, dtype=torch.float64)
    flat = multiply([real_rows(own, uniform.new_empty(0), FLAT, "flat")], eye)
    assert relative(flat, dense_real_rows(own, uniform, quiet)) < 1e-12


@pytest.mark.parametrize("num_items", [40, 1000, 7050])
@pytest.mark.parametrize(
    ("divides", "tau"), list(itertools.product(["logit", "noise"], [0.002, 0.02, 0.06, 0.5]))
)
def test_left_out_part_is_below_rounding(num_items, divides, tau):
    """Wherever a closed form is chosen, the dense rows agree with it to float32 rounding."""
    config = dataclasses.replace(SPARSE, gumbel_divides=divides, gumbel_tau=tau)
    form = gumbel_form(config, num_items)
    if form == "dense":
        return
    _, graph, users, edges, _, factors = world(config, num_items)
    uniform = torch.rand(users.numel(), graph.num_items, dtype=torch.float64)
    draws = uniform[edges.position, edges.item] if form == "sparse" else uniform.new_empty(0)
    own = factors[2]
    eye = torch.eye(num_items, dtype=torch.float64)
    closed = multiply([real_rows(own, draws, config, form)], eye)
    error = (closed - dense_real_rows(own, uniform, config)).norm(dim=1)
    assert float(error.detach().max()) < 4 * rows_module._TOLERANCE


def test_forms():
    assert gumbel_form(SPARSE, 6710) == "sparse"
    assert gumbel_form(FLAT, 6710) == "flat"
    assert gumbel_form(FLAT, 40) == "dense"
    assert gumbel_form(dataclasses.replace(SPARSE, gumbel_tau=0.5), 6710) == "dense"
    assert gumbel_form(dataclasses.replace(FLAT, similarity_scale=0.0), 6710) == "dense"


@pytest.mark.parametrize("rows", [3, 64])  # one on either side of the choice between K and delta W
def test_gradient_penalty_by_definition(rows):
    critic, *_ = world(SPARSE)
    critic.eval()  # rows independent, so that the definition can be evaluated row by row
    x = leaf(rows, critic.weight.shape[0], seed=1)
    penalty = gradient_penalty(
        critic, critic.pre_activation([DenseRows(x)], critic.weight), critic.weight
    )
    (grad,) = torch.autograd.grad(critic([DenseRows(x)]).sum(), x, create_graph=True)
    expected = 0.3 * (grad.norm(dim=1) - 1).square().mean()
    assert relative(penalty, expected) < 1e-12
    parameters = [p for p in critic.parameters()]
    got = torch.autograd.grad(penalty, parameters, allow_unused=True)
    want = torch.autograd.grad(expected, parameters, allow_unused=True)
    for ours, truth in zip(got, want, strict=True):
        assert (ours is None) == (truth is None)
        if ours is not None:
            assert float((ours - truth).abs().max()) <= 1e-10 * max(float(truth.abs().max()), 1e-6)


def test_widths():
    assert Critic(400, CriticConfig()).weight.shape == (400, 100)
    assert Critic(400, CriticConfig(hidden=32)).weight.shape == (400, 32)
    std = float(Critic(4000, CriticConfig(hidden=64)).weight.detach().std())
    assert std == pytest.approx(math.sqrt(2 / 4000), rel=0.02)
