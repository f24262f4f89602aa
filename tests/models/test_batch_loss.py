"""The recommender's loss by the kernels of a GPU against the composed one, in float64."""

from __future__ import annotations

import pytest
import torch

from mmssl import ops
from mmssl.models.mmssl.config import LossConfig
from mmssl.models.mmssl.loss import recommender_loss
from mmssl.models.mmssl.model import MultiModalEmbeddings
from mmssl.ops import Triples
from tests.ops.kernels import needs_cpu_kernel, needs_gpu_operators

USERS, ITEMS, VIEWS, DIM, BATCH = 50, 30, 3, 6, 40


def tables() -> MultiModalEmbeddings:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def columns(rows: int) -> torch.Tensor:
        return draw(rows, VIEWS, DIM).transpose(0, 1)

    parts = draw(USERS, DIM), draw(ITEMS, DIM), columns(USERS), columns(ITEMS)
    views = draw(VIEWS, USERS + ITEMS, DIM)
    return MultiModalEmbeddings(*parts, views[:, :USERS], views[:, USERS:])


def run(backend: str, config: LossConfig, repeated: bool, scored: bool):
    generator = torch.Generator().manual_seed(2)
    leaves = [t.detach().requires_grad_() for t in tables()[:6]]
    users = torch.randperm(USERS, generator=generator)[:BATCH]
    if repeated:
        users = users % 7
    pos, neg = (torch.randint(0, ITEMS, (BATCH,), generator=generator) for _ in range(2))
    score = torch.tensor(1.7, dtype=torch.float64, requires_grad=True) if scored else None
    with ops.backend(backend):
        loss, terms = recommender_loss(
            MultiModalEmbeddings(*leaves),
            Triples(users, pos, neg),
            score,
            config,
            batch_size=BATCH,
        )
        (1.5 * loss).backward()
    assert not any(term.requires_grad for term in terms)
    grads = [leaf.grad for leaf in leaves] + ([score.grad] if score is not None else [])
    return [loss.detach(), *terms], grads


@needs_cpu_kernel
@needs_gpu_operators
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("cl_weight", [0.4, 0.0])
def test_loss_of_a_gpu_is_the_composed_one(repeated, scored, cl_weight):
    config = LossConfig(
        decay=0.3, feat_reg_decay=0.2, cl_weight=cl_weight, cl_eps=1e-3, g_weight=0.7
    )
    found, grads = run("native", config, repeated, scored)
    expected, exact = run("reference", config, repeated, scored)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    for got, want in zip(grads, exact, strict=True):
        if want is None:
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
