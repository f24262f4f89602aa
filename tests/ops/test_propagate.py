"""propagate: a batch of products has the same bits as the products one by one."""

from __future__ import annotations

import dataclasses
import os
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.graph import GraphView
from mmssl.ops._registry import OPS
from mmssl.ops.propagate import _operands
from tests.ops.graphs import DTYPES, any_view, assert_accurate, on, random_view, random_x
from tests.ops.kernels import (
    KERNELS,
    assert_captured_in_a_cuda_graph,
    needs_cpu_kernel,
    needs_gpu,
)

Batch = tuple[list[GraphView], list[torch.Tensor]]


def mixed(dtype: torch.dtype, device: str = "cpu") -> Batch:
    """Views shared and not, binary and valued, without edges, without rows; widths that differ."""
    shared = random_view(30, 40, valued=False)
    views = [
        shared,
        random_view(20, 40, hub=1500, seed=1),
        random_view(7, 9, 0),
        shared.transpose(),
        random_view(0, 5, 0, valued=False),
        shared,
    ]
    widths = (64, 5, 3, 64, 4, 130)
    xs = [random_x(v, d, dtype, seed=d) for v, d in zip(views, widths, strict=True)]
    return [on(v, device) for v in views], [x.to(device) for x in xs]


def gradients(outputs: list[torch.Tensor], xs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(sum((y * y.detach()).sum() for y in outputs), xs)


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_batch_is_its_products_bit_by_bit(device, dtype):
    views, xs = mixed(dtype, device)
    for x in xs:
        x.requires_grad_()
    with ops.backend("native"):
        together = ops.propagate(views, xs)
        alone = [ops.spmm(v, x) for v, x in zip(views, xs, strict=True)]
        pairs = [(together, alone), (gradients(together, xs), gradients(alone, xs))]
    for results, expected in pairs:
        for result, e in zip(results, expected, strict=True):
            assert result.dtype == dtype and torch.equal(result, e)


@needs_cpu_kernel
def test_values_that_are_trained_get_their_gradient():
    view = random_view(seed=3)
    value = view.value.double().requires_grad_()
    trained = dataclasses.replace(view, value=value)
    other = random_view(valued=False)
    xs = [random_x(v, 6, torch.float64).requires_grad_() for v in (trained, other)]
    with ops.backend("native"):
        results = ops.propagate([trained, other], xs)
        got = torch.autograd.grad(sum(y.square().sum() for y in results), [value, *xs])
    with ops.backend("reference"):
        expected = torch.autograd.grad(
            sum(ops.spmm(v, x).square().sum() for v, x in zip((trained, other), xs, strict=True)),
            [value, *xs],
        )
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


@needs_cpu_kernel
def test_nothing_is_multiplied_for_what_has_no_gradient():
    views, xs = mixed(torch.float32)
    for x in xs[1:]:
        x.requires_grad_()
    with ops.backend("native"):
        results = ops.propagate(views, xs)
        grads = torch.autograd.grad(results[1].sum(), xs[1:], allow_unused=True)
    assert [g is None for g in grads] == [False, True, True, True, True]


@needs_cpu_kernel
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_batch(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    different = data.draw(st.lists(any_view(), min_size=1, max_size=5))
    batch = data.draw(st.lists(st.sampled_from(different), min_size=1, max_size=5))
    xs = []
    for n, view in enumerate(batch):
        d = data.draw(st.integers(1, 80))
        x = random_x(view, 2 * d, dtype, seed=n)
        xs.append((x[:, ::2] if data.draw(st.booleans()) else x[:, :d]).requires_grad_())
    with ops.backend("native"):
        together = ops.propagate(batch, xs)
        alone = [ops.spmm(v, x) for v, x in zip(batch, xs, strict=True)]
        pairs = [(together, alone), (gradients(together, xs), gradients(alone, xs))]
    for view, x, y in zip(batch, xs, together, strict=True):
        assert_accurate(view, x.detach(), y.detach())
    for results, expected in pairs:
        for result, e in zip(results, expected, strict=True):
            assert torch.equal(result, e)


@pytest.mark.parametrize("device", KERNELS)
def test_more_products_than_one_launch_takes(device):
    views = [on(random_view(5 + n, 30, 100 * n, hub=40 * n, seed=n), device) for n in range(37)]
    xs = [random_x(v, 16, torch.float32, seed=n).to(device) for n, v in enumerate(views)]
    with ops.backend("native"):
        for view, x, y in zip(views, xs, ops.propagate(views, xs), strict=True):
            assert torch.equal(y, ops.spmm(view, x))


@needs_cpu_kernel
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                "ATEN_CPU_CAPABILITY" in os.environ,
                reason="inductor does not support a lower ATEN_CPU_CAPABILITY",
            ),
        ),
    ],
)
def test_torch_compile_in_one_graph(backend):
    views, xs = mixed(torch.float32)
    xs = [x.requires_grad_() for x in xs]

    def layer(*xs):
        return ops.propagate(views, [x.relu() for x in xs])

    with ops.backend("native"):
        expected = layer(*xs)
        result = torch.compile(layer, fullgraph=True, backend=backend)(*xs)
        pairs = [(result, expected), (gradients(result, xs), gradients(expected, xs))]
    for results, wanted in pairs:
        for y, e in zip(results, wanted, strict=True):
            torch.testing.assert_close(y, e)


@pytest.mark.parametrize("device", KERNELS)
def test_autocast_leaves_the_dtypes_alone(device):
    view = on(random_view(), device)
    x = random_x(view, 8, torch.float32).to(device).requires_grad_()
    with torch.autocast(device, torch.bfloat16), ops.backend("native"):
        half = x @ torch.eye(8, device=device)
        results = ops.propagate([view, view, view], [x, half, x])
        (grad,) = torch.autograd.grad(sum(y.float().sum() for y in results), x)
    assert [y.dtype for y in results] == [torch.float32, torch.bfloat16, torch.float32]
    assert torch.equal(results[0], results[2]) and grad.dtype == torch.float32


@needs_gpu
@pytest.mark.gpu
def test_capture_in_a_cuda_graph():
    views, xs = mixed(torch.float32, "cuda")
    xs = [x.requires_grad_() for x in xs]

    def step():
        results = ops.propagate(views, xs)
        return (*results, *gradients(results, xs))

    with ops.backend("native"):
        assert_captured_in_a_cuda_graph(step, lambda: [x.mul_(2) for x in xs])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_without_a_kernel_and_without_products(backend, monkeypatch):
    views, xs = [random_view(), random_view(seed=1)], [torch.ones(40, 2).bfloat16()] * 2
    for name in ("spmm", "propagate"):
        op = dataclasses.replace(OPS[name], dtypes={"cpu": (torch.float32,)})
        monkeypatch.setitem(OPS, name, op)
    with ops.backend(backend):
        assert ops.propagate([], []) == []
        with pytest.warns(RuntimeWarning) if backend == "auto" else nullcontext():
            ops.dispatch._warned.clear()
            results = ops.propagate(views, xs)
        assert [y.dtype for y in results] == [torch.bfloat16] * 2


@needs_cpu_kernel
def test_the_op_itself_refuses_what_it_would_read_out_of_bounds():
    view = random_view(valued=False)
    good = [[column] * 2 for column in _operands(view, torch.float32)]
    xs = [torch.zeros(40, 4)] * 2
    with pytest.raises(RuntimeError, match="lists must be as long as x, 2"):
        torch.ops.mmssl.propagate(xs, good[0][:1], *good[1:])
    with pytest.raises(RuntimeError, match="of one dtype"):
        torch.ops.mmssl.propagate([xs[0], xs[1].double()], *good)
