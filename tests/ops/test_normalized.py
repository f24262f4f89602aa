"""add_normalized against its reference: errors bounded by the reference's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.errors import InputError
from mmssl.ops.reference import add_normalized_reference
from tests.ops.kernels import assert_same_bits_at_every_simd_level, needs_cpu_kernel

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def problem(views, rows, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, dim, generator=generator)
    return base.to(dtype), torch.randn(views, rows, dim, generator=generator).to(dtype)


def native(base, x, weight):
    with ops.backend("native"):
        return ops.add_normalized(base, x, weight)


def run(function, base, x, weight, dtype):
    """Result and both gradients under uneven weights."""
    base, x = (t.to(dtype, copy=True).requires_grad_() for t in (base, x))
    out = function(base, x, weight)
    upstream = torch.linspace(-1, 2, out.numel()).view_as(out).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, (base, x), upstream)]


def assert_as_good_as_reference(base, x, weight=0.7):
    truth = run(add_normalized_reference, base, x, weight, torch.float64)
    reference = run(add_normalized_reference, base, x, weight, x.dtype)
    mine = run(native, base, x, weight, x.dtype)
    # What is added and subtracted on the way, whatever is left of it: gradients of short rows are
    # large, and those along a row cancel.
    norm = x.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    scales = [base.double().abs() + weight * x.shape[0], torch.tensor(2.0), 2 * weight / norm]
    for t, r, m, scale in zip(truth, reference, mine, scales, strict=True):
        assert m.dtype == r.dtype and m.shape == r.shape
        bound = 2 * (r - t).abs() + 8 * torch.finfo(x.dtype).eps * scale
        assert ((m - t).abs() <= bound).all()


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("dim", [1, 7, 64, 300])
def test_shapes(views, dim, dtype):
    assert_as_good_as_reference(*problem(views, 37, dim, dtype))


@needs_cpu_kernel
def test_views_side_by_side_are_read_in_place():
    base, x = problem(3, 50, 8)
    columns = x.transpose(0, 1).flatten(1)  # (N, M D)
    views = columns.view(50, 3, 8).transpose(0, 1)
    assert_as_good_as_reference(base, views)
    leaf = columns.clone().requires_grad_()
    native(base, leaf.view(50, 3, 8).transpose(0, 1), 1.0).sum().backward()
    assert leaf.grad.is_contiguous()
    for odd in (x[:, :, ::2], x[::2, ::2], x[:1].expand(4, -1, -1)):
        assert_as_good_as_reference(base[: odd.shape[1], : odd.shape[2]], odd)


@needs_cpu_kernel
def test_zero_rows_and_tiny_rows():
    base, x = problem(2, 6, 5, torch.float64)
    x[0, 1], x[1, 2], x[:, 3] = 0, 1e-14, 0
    assert_as_good_as_reference(base, x)


@needs_cpu_kernel
@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 3, 0), (0, 3, 4)])
def test_nothing(shape):
    base, x = torch.randn(shape[1:]), torch.randn(shape).requires_grad_()
    out = native(base, x, 2.0)
    assert torch.equal(out, base)
    out.sum().backward()
    assert x.grad.shape == shape


@needs_cpu_kernel
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 600), st.integers(1, 70), st.integers(0, 99))
def test_any_problem(views, rows, dim, seed):
    assert_as_good_as_reference(*problem(views, rows, dim, seed=seed))


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    base, x = (t.requires_grad_() for t in problem(2, 5, 3, dtype))
    torch.library.opcheck(torch.ops.mmssl.add_normalized.default, (base, x, 0.5))


@needs_cpu_kernel
def test_gradcheck():
    base, x = (t.requires_grad_() for t in problem(2, 4, 3, torch.float64))
    assert torch.autograd.gradcheck(lambda b, v: native(b, v, 0.3), (base, x))


@needs_cpu_kernel
def test_same_bits_for_any_number_of_threads():
    base, x = problem(2, 3000, 33)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(native, base, x, 0.5, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.slow
@needs_cpu_kernel
def test_same_bits_at_every_simd_level():
    assert_same_bits_at_every_simd_level(
        "import hashlib, torch\n"
        "from tests.ops.test_normalized import native\n"
        "x = (torch.arange(3 * 70 * 45) * 7919 % 1009 / 1009 - 0.5).view(3, 70, 45)\n"
        "leaf = x.clone().requires_grad_()\n"
        "out = native(x[0], leaf, 0.5)\n"
        "parts = [out.detach(), *torch.autograd.grad(out, leaf, x[1])]\n"
        "digest = hashlib.sha256(b''.join(p.numpy().tobytes() for p in parts)).hexdigest()\n"
        "print(torch.ops.mmssl.cpu_capability(), digest)\n"
    )


@needs_cpu_kernel
def test_compiles_to_one_graph():
    base, x = problem(2, 20, 6)
    x.requires_grad_()
    eager = native(base, x, 0.5)
    compiled = torch.compile(native, fullgraph=True, backend="aot_eager")(base, x, 0.5)
    assert torch.equal(eager, compiled)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (eager, compiled)]
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("base", "x", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 2), r"x: expected an \(M, N, D\) .* got \(3, 2\)"),
        (torch.ones(3, 2), torch.ones(1, 3, 2).int(), "x: expected .* got .*int32"),
        (torch.ones(2, 2), torch.ones(1, 3, 2), r"base: expected \(3, 2\) .* got \(2, 2\)"),
        (torch.ones(3, 2).double(), torch.ones(1, 3, 2), "base: expected .* got .*float64"),
    ],
)
def test_bad_arguments_are_named(base, x, message):
    with pytest.raises(InputError, match=message):
        ops.add_normalized(base, x)
