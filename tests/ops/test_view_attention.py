"""view_attention: error bounds at any shape, large scores."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.ops.view_attention import view_attention_reference
from tests.ops.kernels import needs_cpu_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def problem(m: int, n: int, d: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """query, key, view (M, N, D) and an upstream gradient of any width."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(m, n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    ]


def everything(function, inputs: list[torch.Tensor], heads: int) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves, heads)
    generator = torch.Generator().manual_seed(9)
    up = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, up)]


@needs_cpu_kernel
@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 5),
    n=st.sampled_from([0, 1, 2, 7, 300]),
    width=st.integers(1, 19) | st.just(40),
    heads=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_error_is_within_that_of_the_reference(m, n, width, heads, dtype, seed):
    inputs = problem(m, n, width * heads, dtype, seed)
    exact = everything(view_attention_reference, [t.double() for t in inputs], heads)
    plain = everything(view_attention_reference, inputs, heads)
    with ops.backend("native"):
        own = everything(ops.view_attention, inputs, heads)
    for number, (got, usual, truth) in enumerate(zip(own, plain, exact, strict=True)):
        assert got.dtype == dtype and got.shape == truth.shape
        if truth.numel() == 0:
            continue
        scale = float(truth.abs().max()) + 1
        error, allowed = (float((t.double() - truth).abs().max()) / scale for t in (got, usual))
        assert error <= 2 * allowed + 8 * torch.finfo(dtype).eps, number


@needs_cpu_kernel
def test_large_scores_do_not_overflow():
    query, key, view = problem(3, 4, 8, torch.float32)
    got = ops.view_attention(1e4 * query, key, view, 2)
    expected = view_attention_reference(1e4 * query, key, view, 2)
    torch.testing.assert_close(got, expected)
