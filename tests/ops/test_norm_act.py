"""The contract of norm_act and keep_mask, on every device, dtype and backend there is."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.errors import InputError
from mmssl.ops.reference import keep_mask_reference, norm_act_reference
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


def everything(function, x, weight, bias, keep, up, direction):
    """Result, running statistics, gradients and gradients of the gradients."""
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, up)]
    sums = weight.dtype
    mean, var = torch.zeros(x.shape[1], dtype=sums), torch.ones(x.shape[1], dtype=sums)
    y = function(
        *leaves[:3],
        negative_slope=0.2,
        keep=keep,
        keep_scale=1.5,
        running_mean=mean,
        running_var=var,
    )
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
        norm_act_reference,
        *(t if t is None or t.dtype == torch.uint8 else t.double() for t in inputs),
    )
    plain = everything(norm_act_reference, *inputs)
    with ops.backend("native"):
        own = everything(ops.norm_act, *inputs)
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


@needs_cpu_kernel
def test_gradients_by_differences():
    x, weight, bias, keep, *_ = problem(6, 5, torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]

    def layer(x, weight, bias):
        return ops.norm_act(x, weight, bias, negative_slope=0.3, keep=keep, keep_scale=1.4)

    with ops.backend("native"):
        assert torch.autograd.gradcheck(layer, leaves)
        assert torch.autograd.gradgradcheck(layer, leaves)


@needs_cpu_kernel
def test_third_derivative_is_refused():
    x, weight, bias, keep, up, direction = problem(6, 5, torch.float64)
    x.requires_grad_()
    y = ops.norm_act(x, weight, bias, keep=keep)
    (first,) = torch.autograd.grad((y * up).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable twice"):
        second.sum().backward()


@needs_cpu_kernel
def test_opcheck():
    x, weight, bias, keep, up, direction = problem(7, 5, torch.float32)
    stats = torch.zeros(5), torch.ones(5)
    tail = (keep, 1.4, 0.2)
    for mask in (keep, None):
        arguments = (x.requires_grad_(), weight.requires_grad_(), bias, mask, 1.4, 0.2, 1e-5)
        torch.library.opcheck(torch.ops.mmssl.norm_act.default, arguments)
    torch.library.opcheck(
        torch.ops.mmssl.norm_act_backward.default,
        (up.requires_grad_(), x, weight, *stats, *tail),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    torch.library.opcheck(
        torch.ops.mmssl.norm_act_double_backward.default,
        (direction, weight.detach(), bias, up.detach(), x.detach(), weight.detach(), *stats, *tail),
    )
    torch.library.opcheck(torch.ops.mmssl.keep_mask.default, (torch.tensor([5]), 70, -3))


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    inputs = problem(300, 200, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(everything(ops.norm_act, *inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu_kernel
def test_non_contiguous():
    x, weight, bias, keep, up, direction = problem(40, 30, torch.float32)
    plain = everything(ops.norm_act, x, weight, bias, keep, up, direction)
    turned = [t.T.contiguous().T for t in (x, keep, up, direction)]
    weight = torch.stack([weight, weight], 1)[:, 0]
    other = everything(ops.norm_act, turned[0], weight, bias, turned[1], turned[2], turned[3])
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@needs_cpu_kernel
def test_compiles_whole():
    x, weight, bias, keep, *_ = problem(20, 10, torch.float32)
    x.requires_grad_()

    def layer(x):
        return ops.norm_act(x, weight, bias, keep=keep, keep_scale=1.4).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(layer(x), x)
    (got,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(got, expected)


def test_bad_arguments():
    x, weight, bias, keep, *_ = problem(4, 3, torch.float32)
    for change, message in (
        ({"x": x[0]}, r"x: expected an \(N, H\) floating point tensor, got \(3,\)"),
        ({"x": x[:1]}, "x: expected at least 2 rows for batch statistics, got 1"),
        ({"weight": weight[:2]}, r"weight: expected shape \(3,\), got \(2,\)"),
        ({"keep": keep.bool()}, r"keep: expected shape \(4, 3\) of uint8, got .* of torch.bool"),
        ({"negative_slope": -1.0}, "negative_slope: expected a finite number >= 0, got -1.0"),
    ):
        arguments = {"x": x, "weight": weight, "bias": bias, "keep": keep, **change}
        with pytest.raises(InputError, match=message):
            ops.norm_act(**arguments)


@needs_cpu_kernel
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    n=st.integers(0, 300) | st.just(70_001),
    limit=st.integers(-(2**15), 2**15 - 1),
)
def test_mask_is_the_reference_bit_for_bit(seed, n, limit):
    start = torch.tensor([seed])
    expected = keep_mask_reference(start, n, limit)
    assert torch.equal(torch.ops.mmssl.keep_mask(start, n, limit), expected)


def test_first_words_are_those_of_splitmix64():
    """The generator's published outputs for the seed 1234567."""
    words = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    draws = [(w >> (16 * j)) & 0xFFFF for w in words for j in range(4)]
    signed = torch.tensor([d - 0x10000 if d >= 0x8000 else d for d in draws])
    for limit in (-20000, 0, 15000):
        got = keep_mask_reference(torch.tensor([1234567]), 12, limit)
        assert torch.equal(got.bool(), signed >= limit)
