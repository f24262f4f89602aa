"""add_normalized: error bounds row by row, layouts read in place, zero rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.ops.add_normalized import add_normalized_reference, offset_rows
from tests.ops.kernels import needs_cpu_kernel, needs_gpu_operators

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
@settings(max_examples=40, deadline=None)
@given(
    views=st.integers(1, 5),
    rows=st.integers(1, 600),
    dim=st.integers(1, 70) | st.just(300),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_any_problem(views, rows, dim, dtype, seed):
    assert_as_good_as_reference(*problem(views, rows, dim, dtype, seed))


@needs_gpu_operators
@pytest.mark.parametrize("with_offset", [False, True])
def test_rows_of_one_length_and_a_column_more(with_offset):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    offset = torch.randn(7, generator=generator, dtype=torch.float64) if with_offset else None
    found = offset_rows(x, offset, 9.0)
    last = torch.ones(7, 1, dtype=torch.float64) if offset is None else offset[:, None]
    length = 9.0 if offset is None else (81 - last.square()).sqrt()
    expected = torch.cat([F.normalize(x, dim=-1) * length, last], 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (got,), (want,) = (torch.autograd.grad(y, x, upstream) for y in (found, expected))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
