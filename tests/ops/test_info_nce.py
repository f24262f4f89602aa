"""info_nce against its reference: errors bounded by the reference's own against float64 truth."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from mmssl.ops.reference import info_nce_reference
from tests.ops.kernels import ROOT, needs_compiler, needs_cpu_kernel, needs_gpu, run_emulated

OPTIONS = {
    "mmssl": {"eps": 1e-8},
    "cross": {"intra_view": False},
    "symmetric": {"symmetric": True},
    "symmetric eps": {"symmetric": True, "eps": 0.1, "reduction": "sum"},
    "sum": {"reduction": "sum"},
}


def problem(n, d, batch=(), negatives=None, dtype=torch.float32, seed=0):
    """(anchor, positive, negatives), related enough for the positives to stand out."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(*batch, n, d, generator=generator)
    positive = anchor + torch.randn(*batch, n, d, generator=generator)
    extra = None if negatives is None else torch.randn(negatives, d, generator=generator).to(dtype)
    return anchor.to(dtype), positive.to(dtype), extra


def run(function, anchor, positive, negatives, temperature, dtype, **options):
    """The loss, and the gradients of all inputs under uneven weights."""
    leaves = [anchor, positive] + ([] if negatives is None else [negatives])
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in leaves]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    t = torch.tensor(temperature, dtype=acc, requires_grad=True)
    extra = leaves[2] if negatives is not None else None
    loss = function(leaves[0], leaves[1], t, negatives=extra, **options)
    weight = torch.linspace(0.5, 1.5, loss.numel(), dtype=acc).view_as(loss)
    return [loss.detach(), *torch.autograd.grad((loss * weight).sum(), [*leaves, t])]


def native(*args, **options):
    with ops.backend("native"):
        return ops.info_nce(*args, **options)


def assert_as_good_as_reference(
    anchor, positive, negatives, temperature, dtype=torch.float32, **options
):
    """No error above twice the reference's own, up to a few roundings at the problem's scale."""
    args = (anchor, positive, negatives, temperature)
    truth = run(info_nce_reference, *args, torch.float64, **options)
    reference = run(info_nce_reference, *args, dtype, **options)
    mine = run(native, *args, dtype, **options)
    n = anchor.shape[-2]
    rows = 1 if options.get("reduction", "mean") == "mean" else n
    total = n if options.get("reduction", "mean") == "sum" else 1
    # A gradient is a sum of (p - 1) z / (t |x|): the p are rounded whatever the sum comes to.
    norm = min(x.double().norm(dim=-1).clamp_min(1e-12).min() for x in (anchor, positive))
    slope = rows / n / temperature
    scale = [total * (1.0 + 1 / temperature)] + [slope / norm] * 2 + [rows / temperature**2]
    if negatives is not None:
        norm = negatives.double().norm(dim=-1).clamp_min(1e-12).min()
        scale.insert(3, n * slope / norm)
    unit = {torch.float32: 1e-6, torch.float64: 4e-14, torch.bfloat16: 1e-6}[dtype]
    names = ["loss", "anchor", "positive", "negatives", "temperature"]
    if negatives is None:
        names.remove("negatives")
    for name, t, r, m, s in zip(names, truth, reference, mine, scale, strict=True):
        assert m.dtype == r.dtype and m.shape == r.shape, name
        assert m.isfinite().all(), name
        bound = 2 * (r - t).abs().amax() + unit * s
        if dtype == torch.bfloat16 and name != "loss":
            # the weights p are rounded to 8 bits as well
            bound += 2**-8 * t.abs().amax() + 2e-4 * s
        worst = (m - t).abs().amax()
        assert worst <= bound, f"{name}: error {worst:.2e}, allowed {bound:.2e}"


@needs_cpu_kernel
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("d", [1, 16, 65])
@pytest.mark.parametrize("n", [1, 2, 7, 127, 129])
def test_shapes(n, d, options):
    assert_as_good_as_reference(*problem(n, d), 0.2, **options)


@needs_cpu_kernel
@pytest.mark.parametrize("d", [7, 64, 128, 300])
def test_wide_rows_with_negatives_and_batch(d):
    anchor, positive, negatives = problem(67, d, batch=(2, 2), negatives=101)
    assert_as_good_as_reference(anchor, positive, negatives, 0.3, reduction="none", symmetric=True)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 0.016, 0.02, 0.03, 0.2, 5.0])
def test_temperatures(temperature, dtype):
    anchor, positive, negatives = problem(200, 24, negatives=50, dtype=dtype)
    for options in ({"symmetric": True, "eps": 1e-8}, {"reduction": "none"}):
        assert_as_good_as_reference(anchor, positive, negatives, temperature, dtype, **options)
        anchor, positive = anchor.neg(), positive


@needs_cpu_kernel
@pytest.mark.parametrize("temperature", [0.01, 0.017, 0.0175, 0.05])
def test_opposite_rows_do_not_underflow(temperature):
    anchor = torch.nn.functional.one_hot(torch.arange(5), 8).float()
    for options in ({}, {"intra_view": False}):
        assert_as_good_as_reference(anchor, -anchor, None, temperature, **options)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1000, 4097])
def test_many_rows(n, dtype):
    assert_as_good_as_reference(*problem(n, 64, dtype=dtype), 0.2, dtype, eps=1e-8)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_rows_and_scales(dtype):
    anchor, positive, negatives = problem(40, 9, negatives=5, dtype=dtype)
    anchor[3], positive[4], negatives[0] = 0, 0, 0
    anchor[7] *= 1e8
    positive[9] *= 1e-8
    truth = run(info_nce_reference, anchor, positive, negatives, 0.2, torch.float64)
    mine = run(native, anchor, positive, negatives, 0.2, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for t, m in zip(truth, mine, strict=True):
        assert m.isfinite().all()
        # gradients of zero rows are 1e12 times the others: every row on its own scale
        scale = t.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        assert ((m - t).abs() / scale).max() < tolerance


@needs_cpu_kernel
@pytest.mark.parametrize("n", [1, 2, 7, 127, 129, 1000, 4097])
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


@needs_cpu_kernel
def test_identical_rows():
    anchor = torch.ones(130, 5)
    loss = native(anchor, anchor, 0.05, reduction="none")
    torch.testing.assert_close(loss, torch.full((130,), 2 * 130 - 1.0).log())


@needs_cpu_kernel
@pytest.mark.parametrize("batch", [(), (0,), (3,)])
def test_no_rows(batch):
    anchor = torch.zeros(*batch, 0, 4, requires_grad=True)
    negatives = torch.randn(3, 4, requires_grad=True)
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
def test_not_contiguous():
    wide, _, _ = problem(90, 22)
    anchor, positive = wide[::2, ::2], wide.T[:11, :45].T
    assert not anchor.is_contiguous() and not positive.is_contiguous()
    assert_as_good_as_reference(anchor, positive, None, 0.2)


@needs_cpu_kernel
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(symmetric):
    anchor, positive, negatives = problem(6, 3, batch=(2,), negatives=4, dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (anchor, positive, negatives, t)]
    with ops.backend("native"):
        assert torch.autograd.gradcheck(
            lambda a, p, n, t: ops.info_nce(
                a, p, t, negatives=n, symmetric=symmetric, eps=0.03, reduction="none"
            ),
            leaves,
        )


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    anchor, positive, negatives = problem(5, 3, batch=(2,), negatives=4, dtype=dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    t = torch.full((1,), 0.3, dtype=acc)
    leaves = [x.requires_grad_() for x in (anchor, positive, t, negatives)]
    torch.library.opcheck(torch.ops.mmssl.info_nce.default, (*leaves, True, True, 0.1, False))
    options = (None, False, False, 0.0, False)
    torch.library.opcheck(torch.ops.mmssl.info_nce.default, (*leaves[:3], *options))


@needs_cpu_kernel
def test_differentiating_twice_is_refused():
    anchor, positive, _ = problem(4, 3)
    anchor.requires_grad_()
    (grad,) = torch.autograd.grad(native(anchor, positive, 0.2), anchor, create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of gradients are not there"):
        grad.sum().backward()


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype):
    anchor, positive, negatives = problem(300, 33, batch=(2,), negatives=130, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5, 16, 2):
            torch.set_num_threads(threads)
            results.append(run(native, anchor, positive, negatives, 0.2, dtype, symmetric=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@needs_cpu_kernel
def test_a_pair_does_not_depend_on_its_neighbours():
    anchor, positive, _ = problem(50, 8, batch=(3,))
    together = native(anchor, positive, 0.2, reduction="none")
    for n in range(3):
        assert torch.equal(together[n], native(anchor[n], positive[n], 0.2, reduction="none"))


@needs_cpu_kernel
def test_compiles_to_one_graph():
    anchor, positive, _ = problem(20, 6)
    anchor.requires_grad_()
    with ops.backend("native"):
        eager = ops.info_nce(anchor, positive, 0.2, eps=1e-8)
        compiled = torch.compile(
            lambda a, p: ops.info_nce(a, p, 0.2, eps=1e-8), fullgraph=True, backend="aot_eager"
        )
        loss = compiled(anchor, positive)
        assert torch.equal(loss, eager)
        assert torch.equal(
            torch.autograd.grad(loss, anchor)[0], torch.autograd.grad(eager, anchor)[0]
        )


@needs_cpu_kernel
def test_autocast_leaves_the_inputs_alone():
    anchor, positive, _ = problem(20, 6)
    anchor.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside = native(anchor, positive, 0.2)
    outside = native(anchor, positive, 0.2)
    assert torch.equal(inside, outside)
    (first,) = torch.autograd.grad(inside, anchor)
    assert torch.equal(first, torch.autograd.grad(outside, anchor)[0])


@pytest.mark.gpu
@needs_gpu
def test_captured_in_a_cuda_graph():
    anchor, positive, _ = (None if x is None else x.cuda() for x in problem(200, 64))
    anchor.requires_grad_()

    def step():
        loss = native(anchor, positive, 0.2)
        return loss, *torch.autograd.grad(loss, anchor)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        anchor.mul_(-1)
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)


@needs_cpu_kernel
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 40),
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


LEVELS = """
import torch
from tests.ops.test_info_nce import assert_as_good_as_reference, problem
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for n, d, t in ((150, 33, 0.2), (60, 70, 0.01), (13, 300, 0.02)):
        args = problem(n, d, batch=(2,), negatives=31, dtype=dtype)
        assert_as_good_as_reference(*args, t, dtype, symmetric=True)
        assert_as_good_as_reference(*args, t, dtype, eps=1e-3)
print(torch.ops.mmssl.cpu_capability())
"""


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@needs_cpu_kernel
def test_memory_is_linear_in_the_rows():
    kilobytes = int(run_python(MEMORY, MMSSL_OPS="native"))
    assert kilobytes < 40_000  # one 12288 x 12288 float32 matrix would be 590,000


@needs_compiler
def test_cuda_kernels_are_right_under_the_emulator(tmp_path):
    run_emulated(tmp_path, "info_nce")


def bad(x: Tensor | None = None, **changes):
    x = torch.zeros(3, 2) if x is None else x
    arguments = {"anchor": x, "positive": x, "temperature": 0.2, **changes}
    return ops.info_nce(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor": [1.0]}, "anchor: expected a torch.Tensor, got list"),
        ({"anchor": torch.zeros(3, 2).int()}, "anchor: expected a floating point dtype, got"),
        ({"anchor": torch.zeros(3)}, r"anchor: expected shape \(..., N, D\) .* got \(3,\)"),
        ({"anchor": torch.zeros(3, 0)}, r"anchor: expected shape .* D >= 1, got \(3, 0\)"),
        ({"positive": torch.zeros(2, 2)}, r"positive: expected shape \(3, 2\), .* got \(2, 2\)"),
        ({"positive": torch.zeros(3, 2).double()}, "positive: expected dtype torch.float32"),
        ({"positive": torch.zeros(3, 2, device="meta")}, "positive: expected device cpu"),
        ({"negatives": torch.zeros(4, 3)}, r"negatives: expected shape \(K, 2\), got \(4, 3\)"),
        ({"negatives": 3}, "negatives: expected a torch.Tensor, got int"),
        ({"temperature": 0}, "temperature: expected a finite number > 0, got 0"),
        ({"temperature": float("nan")}, "temperature: expected a finite number > 0, got nan"),
        ({"temperature": "warm"}, "temperature: expected a number or a tensor, got str"),
        ({"temperature": torch.ones(2)}, r"temperature: .* one element, got shape \(2,\)"),
        ({"eps": -1.0}, "eps: expected a finite number >= 0, got -1.0"),
        ({"reduction": "max"}, "reduction: expected one of mean, sum, none, got 'max'"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        bad(**changes)
