"""The dense products at any shape, and the ways through oneDNN, tall products and plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.ops.product import product, symmetric_product
from tests.ops.kernels import needs_cpu_kernel


def matrix(rows, columns, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def assert_close(got, truth, dtype):
    """To some roundings of a sum of that many products."""
    scale = float(truth.abs().max()) if truth.numel() else 0.0
    assert got.shape == truth.shape and got.isfinite().all()
    error = float((got.detach().double() - truth).abs().max()) if truth.numel() else 0.0
    assert error <= 20 * torch.finfo(dtype).eps * max(scale, 1.0)


@needs_cpu_kernel
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 7, 127, 129, 512, 513, 1300]),
    p=st.integers(1, 70),
    q=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_tall_product(rows, p, q, dtype):
    a, b = matrix(rows, p, dtype), matrix(rows, q, dtype, seed=1)
    assert_close(torch.ops.mmssl.tall_product(a, b), a.double().T @ b.double(), dtype)


@needs_cpu_kernel
@pytest.mark.parametrize("columns", [1, 33, 200])
def test_tall_product_of_a_matrix_with_itself(columns):
    a = matrix(1700, columns)
    out = torch.ops.mmssl.tall_product(a, a)
    assert torch.equal(out, out.T)
    assert_close(out, a.double().T @ a.double(), torch.float32)
    assert_close(symmetric_product(a), a.double().T @ a.double(), torch.float32)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("shapes", [((900, 5), (5, 7)), ((6, 900), (900, 8)), ((0, 3), (3, 4))])
def test_product_and_its_gradients(shapes, backend):
    """Through every path: oneDNN, tall, plain; as it is and with transposed operands."""
    for turned in (False, True):
        leaves = [matrix(*s, seed=n).requires_grad_() for n, s in enumerate(shapes)]
        if turned:
            leaves = [leaf.detach().T.contiguous().T.requires_grad_() for leaf in leaves]
        with ops.backend(backend):
            out = product(*leaves)
            upstream = matrix(*out.shape, seed=5)
            grads = torch.autograd.grad(out, leaves, upstream)
        a, b = (leaf.detach().double() for leaf in leaves)
        assert_close(out, a @ b, torch.float32)
        assert_close(grads[0], upstream.double() @ b.T, torch.float32)
        assert_close(grads[1], a.T @ upstream.double(), torch.float32)
