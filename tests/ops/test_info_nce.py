"""info_nce: error bounds, temperatures, zero rows, SIMD levels, memory, CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.ops.info_nce import info_nce_reference
from tests.ops.info_nce import assert_as_good_as_reference, native, problem, run
from tests.ops.kernels import (
    KERNELS,
    assert_captured_in_a_cuda_graph,
    needs_cpu_kernel,
    needs_gpu,
    run_python,
)

each_device = pytest.mark.parametrize("device", KERNELS)


@each_device
@pytest.mark.parametrize("d", [7, 64, 128, 300])
def test_wide_rows_with_negatives_and_batch(d, device):
    anchor, positive, negatives = problem(67, d, batch=(2, 2), negatives=101)
    options = {"reduction": "none", "symmetric": True}
    assert_as_good_as_reference(anchor, positive, negatives, 0.3, device=device, **options)


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 0.016, 0.02, 0.03, 0.2, 5.0])
def test_temperatures(temperature, dtype, device):
    anchor, positive, negatives = problem(200, 24, negatives=50, dtype=dtype)
    for options in ({"symmetric": True, "eps": 1e-8}, {"reduction": "none"}):
        assert_as_good_as_reference(
            anchor, positive, negatives, temperature, dtype, device, **options
        )
        anchor, positive = anchor.neg(), positive


@each_device
@pytest.mark.parametrize("temperature", [0.01, 0.017, 0.0175, 0.05])
def test_opposite_rows_do_not_underflow(temperature, device):
    anchor = torch.nn.functional.one_hot(torch.arange(5), 8).float()
    for options in ({}, {"intra_view": False}):
        assert_as_good_as_reference(anchor, -anchor, None, temperature, device=device, **options)


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1000, 4097])
def test_many_rows(n, dtype, device):
    assert_as_good_as_reference(*problem(n, 64, dtype=dtype), 0.2, dtype, device, eps=1e-8)


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_rows_and_scales(dtype, device):
    anchor, positive, negatives = problem(40, 9, negatives=5, dtype=dtype)
    anchor[3], positive[4], negatives[0] = 0, 0, 0
    anchor[7] *= 1e8
    positive[9] *= 1e-8
    truth = run(info_nce_reference, anchor, positive, negatives, 0.2, torch.float64)
    mine = run(native, anchor, positive, negatives, 0.2, dtype, device)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for t, m in zip(truth, mine, strict=True):
        assert m.isfinite().all()
        # gradients of zero rows are 1e12 times the others: every row on its own scale
        scale = t.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        assert ((m - t).abs() / scale).max() < tolerance


@needs_cpu_kernel
@pytest.mark.parametrize("n", [1, 2, 7, 127, 129, 1000, pytest.param(4097, marks=pytest.mark.slow)])
def test_zero_rows_at_any_temperature(n):
    """Every row on the scale of its own gradient, that of a zero row included."""

    @settings(max_examples=8 if n < 1000 else 2, deadline=None)
    @given(
        temperature=st.floats(0.01, 5),
        zero=st.sets(st.integers(0, n - 1), max_size=3),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        seed=st.integers(0, 100),
    )
    def check(temperature, zero, dtype, seed):
        inputs = problem(n, 8, dtype=dtype, seed=seed)[:2]
        for x in inputs:
            x[list(zero)] = 0
        truth, reference, mine = (
            run(function, *inputs, None, temperature, used, eps=1e-8)
            for function, used in (
                (info_nce_reference, torch.float64),
                (info_nce_reference, dtype),
                (native, dtype),
            )
        )
        slope = 1.5 / n / temperature
        assert (mine[0] - truth[0]).abs() <= 2 * (reference[0] - truth[0]).abs() + 2e-6 * (
            1 + 1 / temperature
        )
        for x, t, r, m in zip(inputs, truth[1:3], reference[1:3], mine[1:3], strict=True):
            norm = x.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
            rounded = 2**-8 * t.abs().amax(-1, keepdim=True) + 2e-4 * slope / norm
            bound = 2 * ((r - t) * norm).abs().amax() / norm + 1e-6 * slope / norm
            bound = bound + rounded * (dtype == torch.bfloat16)
            assert ((m - t).abs() <= bound).all()

    check()


@each_device
def test_identical_rows(device):
    anchor = torch.ones(130, 5, device=device)
    loss = native(anchor, anchor, 0.05, reduction="none")
    torch.testing.assert_close(loss, torch.full((130,), 2 * 130 - 1.0, device=device).log())


@each_device
@pytest.mark.parametrize("batch", [(), (0,), (3,)])
def test_no_rows(batch, device):
    anchor = torch.zeros(*batch, 0, 4, requires_grad=True, device=device)
    negatives = torch.randn(3, 4, requires_grad=True, device=device)
    loss = native(anchor, anchor.detach(), 0.2, negatives=negatives, reduction="sum")
    assert loss.shape == batch and (loss == 0).all()
    loss.sum().backward()
    assert anchor.grad.shape == anchor.shape
    assert (negatives.grad == 0).all()


@needs_cpu_kernel
def test_no_negatives_is_as_none():
    anchor, positive, _ = problem(9, 4)
    empty = torch.empty(0, 4, requires_grad=True)
    loss = native(anchor, positive, 0.2, negatives=empty)
    assert torch.equal(loss, native(anchor, positive, 0.2))
    loss.backward()
    assert empty.grad.shape == (0, 4)


@needs_cpu_kernel
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40) | st.sampled_from([127, 128, 129]),
    d=st.integers(1, 40) | st.sampled_from([64, 65, 128]),
    k=st.none() | st.integers(0, 20),
    temperature=st.floats(0.05, 3),
    symmetric=st.booleans(),
    intra_view=st.booleans(),
    eps=st.sampled_from([0.0, 1e-8, 0.5]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    seed=st.integers(0, 1000),
)
def test_any_problem(n, d, k, temperature, symmetric, intra_view, eps, reduction, seed):
    assert_as_good_as_reference(
        *problem(n, d, negatives=k, seed=seed),
        temperature,
        symmetric=symmetric,
        intra_view=intra_view,
        eps=eps,
        reduction=reduction,
    )


@needs_cpu_kernel
def test_a_pair_does_not_depend_on_its_neighbors():
    anchor, positive, _ = problem(50, 8, batch=(3,))
    together = native(anchor, positive, 0.2, reduction="none")
    for n in range(3):
        assert torch.equal(together[n], native(anchor[n], positive[n], 0.2, reduction="none"))


def test_setting_of_tf32_by_either_interface():
    """In a process of its own: torch refuses to read the older setting after the newer one."""
    assert run_python(SETTINGS) == "False True False True"


@pytest.mark.gpu
@needs_gpu
def test_captured_in_a_cuda_graph():
    anchor, positive, _ = (None if x is None else x.cuda() for x in problem(200, 64))
    anchor.requires_grad_()

    def step():
        loss = native(anchor, positive, 0.2)
        return loss, *torch.autograd.grad(loss, anchor)

    assert_captured_in_a_cuda_graph(step, lambda: anchor.mul_(-1))


SETTINGS = """
import torch
from mmssl.ops.info_nce import takes_tf32
seen = [takes_tf32()]
torch.set_float32_matmul_precision("high")
seen.append(takes_tf32())
torch.backends.cuda.matmul.fp32_precision = "ieee"
seen.append(takes_tf32())
torch.backends.cuda.matmul.fp32_precision = "tf32"
seen.append(takes_tf32())
print(*seen)
"""

LEVELS = """
import torch
from tests.ops.info_nce import assert_as_good_as_reference, problem
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for n, d, t in ((150, 33, 0.2), (60, 70, 0.01), (13, 300, 0.02)):
        args = problem(n, d, batch=(2,), negatives=31, dtype=dtype)
        assert_as_good_as_reference(*args, t, dtype, symmetric=True)
        assert_as_good_as_reference(*args, t, dtype, eps=1e-3)
        order = torch.randperm(n).expand(2, n)
        assert_as_good_as_reference(*args, t, dtype, target=order)
        assert_as_good_as_reference(*args, t, dtype, target=order, in_batch=False)
print(torch.ops.mmssl.cpu_capability())
"""


@pytest.mark.slow
@needs_cpu_kernel
@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_every_simd_level(level):
    at_most = ["default", "avx2", "avx512"]
    got = run_python(LEVELS, ATEN_CPU_CAPABILITY=level)
    assert at_most.index(got) <= at_most.index(level)


MEMORY = """
import resource, torch
from mmssl import ops
torch.set_num_threads(2)
n, d = 12288, 8
anchor = torch.randn(n, d, requires_grad=True)
ops.info_nce(anchor[:64], anchor[:64].detach(), 0.2).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.info_nce(anchor, anchor.detach(), 0.2).backward()
ids = torch.arange(n) % 100
ops.info_nce(anchor, anchor.detach(), 0.2, target=ids).backward()
ops.info_nce(anchor, anchor.detach(), 0.2, labels=ids).backward()
ops.info_nce(anchor, anchor.detach(), 0.2, negatives=anchor.detach(), in_batch=False).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@needs_cpu_kernel
def test_memory_is_linear_in_the_rows():
    kilobytes = int(run_python(MEMORY, MMSSL_OPS="native"))
    assert kilobytes < 40_000  # one 12288 x 12288 float32 matrix would be 590,000
