"""The contract of view_attention, on every dtype and backend there is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.errors import InputError
from mmssl.ops.reference import view_attention_reference
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


@needs_cpu_kernel
def test_gradients_by_differences_and_no_second_ones():
    leaves = [t.requires_grad_() for t in problem(3, 4, 6, torch.float64)]
    with ops.backend("native"):
        assert torch.autograd.gradcheck(lambda q, k, v: ops.view_attention(q, k, v, 2), leaves)
        out = ops.view_attention(*leaves, 2).square().sum()
        (grad,) = torch.autograd.grad(out, leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match="gradients of gradients are not there"):
            grad.sum().backward()


@needs_cpu_kernel
def test_opcheck_and_compile():
    leaves = [t.requires_grad_() for t in problem(2, 5, 6, torch.float32)]
    torch.library.opcheck(torch.ops.mmssl.view_attention.default, (*leaves, 2))
    compiled = torch.compile(
        lambda q, k, v: ops.view_attention(q, k, v, 2), fullgraph=True, backend="aot_eager"
    )
    expected = torch.autograd.grad(ops.view_attention(*leaves, 2).sum(), leaves)
    got = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads_and_strides(dtype):
    inputs = problem(2, 1000, 64, dtype)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    threads = torch.get_num_threads()
    results = []
    try:
        for count, operands in ((1, inputs), (2, inputs), (5, turned)):
            torch.set_num_threads(count)
            results.append(everything(ops.view_attention, operands, 4))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.slow
@needs_cpu_kernel
@pytest.mark.parametrize("level", ["avx2", "default"])
def test_every_simd_level_is_right(level):
    code = (
        "import torch\nfrom mmssl import ops\nfrom mmssl.ops.reference import *\n"
        f"assert torch.ops.mmssl.cpu_capability() in ({level!r}, 'default')\n"
        "q, k, v = torch.randn(3, 2, 50, 40, dtype=torch.float64)\n"
        "got, want = ops.view_attention(q, k, v, 4), view_attention_reference(q, k, v, 4)\n"
        "torch.testing.assert_close(got, want)\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": level, "MMSSL_OPS": "native"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_bad_arguments():
    query, key, view = problem(2, 3, 6, torch.float32)
    for arguments, message in (
        ((query, key, view[0], 2), r"view: expected an \(M, N, D\) floating point tensor, got"),
        ((query[:1], key, view, 2), r"query: expected \(2, 3, 6\) torch.float32, the view's, got"),
        (
            (query, key.double(), view, 2),
            r"key: expected dtype torch.float32, .* got torch.float64",
        ),
        ((query, key, view, 4), "num_heads: expected a divisor of 6, got 4"),
    ):
        with pytest.raises(InputError, match=message):
            ops.view_attention(*arguments)
