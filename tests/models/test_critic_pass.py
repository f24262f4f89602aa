"""The critic's written-out gradient against autograd through plain PyTorch, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmssl import ops
from mmssl.models.mmssl.config import CriticConfig
from mmssl.models.mmssl.critic import Critic, critic_loss
from mmssl.models.mmssl.rows import DenseRows
from tests.ops.kernels import needs_cpu_kernel

CONFIG = CriticConfig(hidden=9, dropout=(0.3, 0.5))


def make_critic(config: CriticConfig, num_items: int, dtype: torch.dtype) -> Critic:
    torch.manual_seed(1)
    critic = Critic(num_items, config).to(dtype)
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return critic.train()


def problem(num_items: int, batch: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(2)
    draw = [torch.randn(batch, num_items, generator=generator).to(dtype) for _ in range(3)]
    fake = [DenseRows(rows.requires_grad_()) for rows in draw[:2]]
    alpha = torch.rand(2 * batch, 1, generator=generator).to(dtype)
    return fake, DenseRows(draw[2]), alpha


def run(backend: str, config: CriticConfig, with_penalty: bool, dtype: torch.dtype, items: int):
    """The loss, its terms, all gradients and the running statistics."""
    critic = make_critic(config, items, dtype)
    fake, real, alpha = problem(items, 6, dtype)
    torch.manual_seed(3)  # the masks
    with ops.backend(backend):
        loss, terms = critic_loss(critic, fake, real, alpha, 2.5, with_penalty=with_penalty)
        (1.5 * loss).backward()
    assert not any(term.requires_grad for term in terms)
    grads = {name: p.grad for name, p in critic.named_parameters()}
    return {"loss": loss.detach(), **terms._asdict(), **grads, **dict(critic.named_buffers())}


def compare(got, expected, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    largest = max(float(t.abs().max()) for t in expected.values())
    for name, truth in expected.items():
        error = float((got[name].double() - truth.double()).abs().max())
        assert error <= tolerance * (float(truth.double().abs().max()) + 1e-3 * largest), name


@needs_cpu_kernel
@pytest.mark.parametrize("items", [5, 40])  # either way to the norms of the penalty
@pytest.mark.parametrize("with_penalty", [True, False])
@pytest.mark.parametrize("rates", [(0.3, 0.5), (0.0, 0.5), (0.0, 0.0)], ids=str)
def test_loss_and_gradients_are_those_of_autograd(items, with_penalty, rates):
    hidden = 9 if items == 5 else 30
    config = dataclasses.replace(CONFIG, dropout=rates, hidden=hidden)
    arguments = config, with_penalty, torch.float64, items
    compare(run("native", *arguments), run("reference", *arguments), 1e-10)


@needs_cpu_kernel
def test_bfloat16_products_are_within_their_rounding():
    config = dataclasses.replace(CONFIG, precision="bfloat16", hidden=64)
    found = run("native", config, True, torch.float32, 90)
    assert all(t.dtype in (torch.float32, torch.int64) for t in found.values())
    wide = dataclasses.replace(config, precision="float32")
    exact = run("reference", wide, True, torch.float32, 90)
    for name in ("fake", "real"):
        assert float(found[name]) == pytest.approx(float(exact[name]), rel=0.05)
    grad, truth = found["weight"].double().flatten(), exact["weight"].flatten()
    assert float(torch.cosine_similarity(grad, truth, 0)) > 0.95


@needs_cpu_kernel
def test_mean_score_has_the_gradient_of_the_rows():
    results = []
    for backend in ("native", "reference"):
        critic = make_critic(CONFIG, 20, torch.float64).requires_grad_(False)
        fake, _, _ = problem(20, 6, torch.float64)
        torch.manual_seed(4)
        with ops.backend(backend):
            score = critic.mean_score(fake)
            score.backward()
        buffers = dict(critic.named_buffers())
        rows = {f"fake {n}": block.rows.grad for n, block in enumerate(fake)}
        results.append({"score": score.detach(), **rows, **buffers})
    compare(*results, 1e-11)


@needs_cpu_kernel
def test_in_eval_mode_and_with_the_reference_autograd_differentiates():
    critic = make_critic(CONFIG, 20, torch.float32)
    assert critic.in_one_pass(critic.weight)
    assert not critic.eval().in_one_pass(critic.weight)
    with ops.backend("reference"):
        assert not critic.train().in_one_pass(critic.weight)
