"""spmm: error bounds for every kind of view and width, rows longer than a chunk, the backend."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.graph import GraphView
from mmssl.ops._registry import OPS
from tests.ops.graphs import (
    DTYPES,
    any_view,
    assert_accurate,
    on,
    random_view,
    random_x,
    size_of,
    slack,
    worst,
)
from tests.ops.kernels import KERNELS, needs_cpu_kernel

# name -> view; the hub's row is longer than a chunk of the kernels (512 edges)
VIEWS = {
    "binary": lambda: random_view(valued=False, scales=False),
    "scaled": lambda: random_view(valued=False),
    "valued": lambda: random_view(),
    "one-scale": lambda: dataclasses.replace(random_view(valued=False), row_scale=None),
    "transposed": lambda: random_view(30, 70, 500).transpose(),
    "hub": lambda: random_view(hub=2500),
    "one row": lambda: random_view(1, 40, 5000),
    "no edge": lambda: random_view(nnz=0),
    "no row": lambda: random_view(0, 40, 0),
}


def native(view: GraphView, x: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    with ops.backend("native"):
        return ops.spmm(on(view, device), x.to(device)).cpu()


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VIEWS)
def test_error_is_within_that_of_the_reference(device, dtype, name):
    view = VIEWS[name]()
    for d in (1, 2, 3, 7, 16, 31, 48, 64, 65, 130, 256, 300, 512):
        x = random_x(view, d, dtype)
        assert_accurate(view, x, native(view, x, device))


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 7, 64, 100, 300])
def test_gradient_error_is_within_that_of_the_reference(device, dtype, d):
    view = random_view(hub=1500)
    x = random_x(view, d, dtype)
    upstream = random_x(view.transpose(), d, dtype, seed=1)
    results = {}
    for backend, where, kind in (
        ("native", device, dtype),
        ("reference", "cpu", dtype),
        ("reference", "cpu", torch.float64),
    ):
        leaf = x.to(where, kind).detach().requires_grad_()
        value = view.value.to(where, torch.promote_types(kind, torch.float32))
        value = value.detach().requires_grad_()
        with ops.backend(backend):
            y = ops.spmm(dataclasses.replace(on(view, where), value=value), leaf)
        y.backward(upstream.to(where, kind))
        results[backend, kind] = leaf.grad.cpu(), value.grad.cpu()
    exact = results["reference", torch.float64]
    sizes = size_of(view.transpose(), upstream), float(exact[1].abs().max())
    own = [results["native", dtype], results["reference", dtype]]
    for n, what in enumerate(("x", "value")):
        kernel, plain = (worst(grads[n], exact[n], sizes[n]) for grads in own)
        assert kernel <= plain + slack(dtype), what


@needs_cpu_kernel
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_graph(data):
    view, d = data.draw(any_view()), data.draw(st.integers(1, 300))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = random_x(view, 2 * d, dtype)
    x = {"plain": x[:, :d], "columns": x[:, ::2], "fortran": x[:, d:].mT.contiguous().mT}[
        data.draw(st.sampled_from(["plain", "columns", "fortran"]))
    ]
    assert_accurate(view, x, native(view, x))


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(500, 20_000, 0), (500, 5_000, 30_000), (1, 40_000, 0)])
def test_same_bits_with_any_number_of_threads(dtype, shape):
    num_rows, nnz, hub = shape
    view = random_view(num_rows, 300, nnz, hub=hub)
    x, up = random_x(view, 64, dtype), random_x(view.transpose(), 64, dtype, seed=1)
    index = (view.rowptr, view.col, view.t_rowptr, view.t_col, None, None)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            grad = torch.ops.mmssl.spmm_value_grad(up, x, *index, view.edge, view.t_edge)
            results.append((native(view, x), grad))
    finally:
        torch.set_num_threads(before)
    for y, grad in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(grad, results[0][1])


@needs_cpu_kernel
def test_compiled_code_follows_the_backend(monkeypatch):
    view = random_view()
    x = random_x(view, 16, torch.bfloat16)
    op = dataclasses.replace(OPS["spmm"], dtypes={"cpu": (torch.float32,)})
    monkeypatch.setitem(OPS, "spmm", op)
    compiled = torch.compile(lambda x: ops.spmm(view, x), fullgraph=True, backend="eager")
    with ops.backend("reference"):
        assert torch.equal(compiled(x), ops.spmm(view, x))
    with ops.backend("native"), pytest.raises(Exception, match="no kernel for torch.bfloat16"):
        compiled(x)


@pytest.mark.parametrize("device", KERNELS)
def test_autocast_leaves_the_dtype_alone(device):
    view = on(random_view(), device)
    x = random_x(view, 8, torch.float32).to(device)
    with torch.autocast(device, torch.bfloat16), ops.backend("native"):
        half = x @ torch.eye(8, device=device)
        assert ops.spmm(view, x).dtype == torch.float32
        assert half.dtype == ops.spmm(view, half).dtype == torch.bfloat16
