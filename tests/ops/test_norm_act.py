"""norm_act: error bounds of results, statistics, gradients and second derivatives."""

from __future__ import annotations

import functools

import pytest
import torch

from mmssl import ops
from tests.ops.kernels import needs_cpu_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def problem(n: int, h: int, dtype: torch.dtype, rate: float = 0.3, seed: int = 0):
    """x, weight, bias, keep, upstream, and the direction of the second derivative."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    sums = torch.float32 if dtype == torch.bfloat16 else dtype
    x, up, direction = (draw(n, h).to(dtype) for _ in range(3))
    weight, bias = 1 + 0.3 * draw(h).to(sums), draw(h).to(sums)
    keep = (torch.rand(n, h, generator=generator) >= rate).to(torch.uint8) if rate else None
    return x, weight, bias, keep, up, direction


def everything(backend, x, weight, bias, keep, up, direction):
    """Result, running statistics, gradients and gradients of the gradients."""
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, up)]
    sums = weight.dtype
    mean, var = torch.zeros(x.shape[1], dtype=sums), torch.ones(x.shape[1], dtype=sums)
    with ops.backend(backend):
        y = ops.norm_act(*leaves[:3], keep=keep, keep_scale=1.5, running_mean=mean, running_var=var)
    grads = torch.autograd.grad(y, leaves[:3], leaves[3], create_graph=True)
    target = (grads[0] * direction).sum() + grads[1].sin().sum() + grads[2].cos().sum()
    second = torch.autograd.grad(target, (leaves[0], leaves[1], leaves[3]))
    return [t.detach() for t in (y, mean, var, *grads, *second)]


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (4, 5), (33, 64), (64, 17), (257, 130), (1000, 3)])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_error_is_within_that_of_the_reference(dtype, shape, rate):
    inputs = problem(*shape, dtype, rate)
    exact = everything(
        "reference",
        *(t if t is None or t.dtype == torch.uint8 else t.double() for t in inputs),
    )
    plain, own = everything("reference", *inputs), everything("native", *inputs)
    epsilon = torch.finfo(dtype).eps
    for number, (got, usual, truth) in enumerate(zip(own, plain, exact, strict=True)):
        assert got.dtype == usual.dtype
        scale = float(truth.abs().max()) + 1e-3
        error, allowed = (float((t.double() - truth).abs().max()) / scale for t in (got, usual))
        slack = 16 if dtype != torch.float64 else 1000  # there the truth is the reference itself
        assert error <= 2 * allowed + slack * epsilon, number


@needs_cpu_kernel
def test_two_rows():
    """xhat is -1 and 1 but for eps; gradients with respect to x are its rounding."""
    x = torch.tensor([[1.0, -4.0], [3.0, 2.0]], dtype=torch.float64)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(ops.norm_act(x, one, zero), expected, rtol=1e-4, atol=0)
