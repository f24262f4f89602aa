"""Numbers at the ends of float32: subnormal, tiny, huge, zero rows, and everything in between.

The truth is plain PyTorch in float64. A kernel may be wrong by a few times what the same PyTorch in
float32 is wrong by; and where that stays finite, so does the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmssl import ops
from mmssl.ops import _extension
from tests.ops.graphs import random_view
from tests.ops.kernels import needs_cpu_kernel

pytestmark = needs_cpu_kernel

# Beyond the reference's own error: some roundings, of the largest number there is.
ROUNDINGS = 64 * torch.finfo(torch.float32).eps
SUBNORMAL, TINY, HUGE = 1.4e-45, 1.2e-38, 1e18

scales = st.sampled_from([0.0, SUBNORMAL, 1e-42, TINY, 1e-30, 1e-12, 1.0, 1e6, 1e12, HUGE])
seeds = st.integers(0, 2**31)


def rows(count: int, dim: int, seed: int, row_scales: Sequence[float]) -> Tensor:
    """(count, dim) normal numbers, each row times one of the scales."""
    random = torch.Generator().manual_seed(seed)
    factor = torch.tensor(row_scales, dtype=torch.float64)
    picked = factor[torch.randint(len(row_scales), (count,), generator=random)]
    return (
        torch.randn(count, dim, generator=random, dtype=torch.float64) * picked[:, None]
    ).float()


def check(function: Callable[..., Tensor], *inputs: Tensor, terms: float = 0.0) -> None:
    """Result and gradients of the kernel against float64 and against plain PyTorch in float32.

    ``terms``: size of what is added up where the results are small differences.
    """

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        own = [x.to(dtype).requires_grad_() for x in inputs]
        with ops.backend(backend):
            out = function(*own)
            gradients = torch.autograd.grad(out.sum(), own, allow_unused=True)
        found = [out, *(g for g in gradients if g is not None)]
        return [t.detach().double() for t in found]

    truths = run("reference", torch.float64)
    for truth, plain, kernel in zip(
        truths, run("reference", torch.float32), run("native", torch.float32), strict=True
    ):
        assert not (kernel.isfinite() < plain.isfinite()).any(), "not finite where PyTorch is"
        known = truth.isfinite() & plain.isfinite() & kernel.isfinite()
        if not known.any():
            continue
        truth, plain, kernel = truth[known], plain[known], kernel[known]
        size = max(float(truth.abs().max()), torch.finfo(torch.float32).tiny, terms)
        allowed = 4 * float((plain - truth).abs().max()) + ROUNDINGS * size
        assert float((kernel - truth).abs().max()) <= allowed


@settings(max_examples=25)
@given(
    seed=seeds,
    dim=st.sampled_from([1, 3, 16, 33]),
    scale=st.lists(scales, min_size=1, max_size=3),
)
def test_spmm(seed, dim, scale):
    view = random_view(30, 20, 90, valued=False, seed=seed % 1000)
    check(lambda x: ops.spmm(view, x), rows(20, dim, seed, scale))


@settings(max_examples=25)
@given(
    seed=seeds,
    count=st.integers(1, 20),
    dim=st.sampled_from([1, 3, 16, 33]),
    scale=st.lists(scales, min_size=1, max_size=3),
    temperature=st.sampled_from([0.02, 0.1, 0.5, 10.0]),
)
def test_info_nce(seed, count, dim, scale, temperature):
    # A gradient goes with the inverse of its row's norm, or of normalize's eps.
    anchor, positive = rows(count, dim, seed, scale), rows(count, dim, seed + 1, scale)
    norm = float(torch.cat([anchor, positive]).double().norm(dim=1).clamp_min(1e-12).min())
    terms = max(1.0, 1 / norm) / temperature
    check(lambda a, b: ops.info_nce(a, b, temperature), anchor, positive, terms=terms)


@settings(max_examples=25)
@given(seed=seeds, dim=st.sampled_from([1, 5, 16]), scale=st.lists(scales, min_size=1, max_size=3))
def test_bpr_loss(seed, dim, scale):
    random = torch.Generator().manual_seed(seed)
    users, pos, neg = torch.randint(0, 6, (3, 11), generator=random).unbind()
    user, item = rows(6, dim, seed, scale), rows(6, dim, seed + 1, scale)
    # A gradient adds rows of the other table, which may cancel.
    terms = float(torch.cat([user, item]).abs().max())
    check(lambda u, i: ops.bpr_loss(u, i, users, pos, neg), user, item, terms=terms)


@settings(max_examples=25)
@given(seed=seeds, count=st.integers(2, 40), scale=st.lists(scales, min_size=1, max_size=2))
def test_norm_act(seed, count, scale):
    weight, bias = torch.ones(7), torch.zeros(7)
    scale = [s for s in scale if s <= 1e6] or [1.0]  # squares beyond float32 are inf in either
    # With equal gradients for all of y that for x is zero, and only roundings would be compared.
    grad = torch.linspace(-1, 2, 7 * count).view(count, 7)
    check(
        lambda x: ops.norm_act(x, weight.to(x), bias.to(x)) * grad.to(x),
        rows(count, 7, seed, scale),
    )


@settings(max_examples=25)
@given(seed=seeds, dim=st.sampled_from([4, 12, 32]), scale=st.lists(scales, min_size=1, max_size=2))
def test_view_attention(seed, dim, scale):
    scale = [s for s in scale if s <= 1.0] or [1.0]  # softmax of huge scores jumps between rows
    parts = [rows(3 * 5, dim, seed + n, scale).view(3, 5, dim) for n in range(3)]
    check(lambda q, k, v: ops.view_attention(q, k, v, 4), *parts)


@settings(max_examples=25)
@given(seed=seeds, k=st.integers(0, 12), scale=st.lists(scales, min_size=1, max_size=3))
def test_masked_topk_ranks_what_it_scores(seed, k, scale):
    user, item = rows(7, 9, seed, scale), rows(10, 9, seed + 1, scale)
    scores, items = ops.masked_topk(user, item, k)
    truth = user.double() @ item.double().T
    kept = items >= 0
    assert not scores.isnan().any() and (scores[~kept] == -torch.inf).all()
    assert (scores[:, :-1] >= scores[:, 1:]).all() if k > 1 else True
    chosen = truth.gather(1, items.clamp_min(0))
    bound = 1e-5 * (user.double().abs() @ item.double().abs().T).gather(1, items.clamp_min(0))
    near = (scores.double() - chosen).abs() <= bound + torch.finfo(torch.float32).tiny
    assert (near | ~kept | ~scores.isfinite()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_rows(value):
    """A NaN spoils what it takes part in and nothing else, and nothing is read where it points."""
    view = random_view(30, 20, 90, valued=False)
    x = torch.randn(20, 33)
    clean = ops.spmm(view, x)
    x[4, 7] = value
    spoiled = ops.spmm(view, x)
    touched = view.to_dense()[:, 4] != 0
    assert torch.equal(spoiled[~touched], clean[~touched])
    assert not spoiled[touched, 7].isfinite().any()
    user = torch.randn(5, 8)
    user[2] = value
    scores, _ = ops.masked_topk(user, torch.randn(6, 8), 3)
    assert not scores.isnan().any() and scores[[0, 1, 3, 4]].isfinite().all()
    assert _extension.ops is not None
