"""info_nce as an op: opcheck, compilation, determinism, SIMD levels, memory, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from tests.ops.info_nce import native, problem, run
from tests.ops.kernels import (
    ROOT,
    assert_captured_in_a_cuda_graph,
    needs_compiler,
    needs_cpu_kernel,
    needs_gpu,
    run_emulated,
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

    assert_captured_in_a_cuda_graph(step, lambda: anchor.mul_(-1))


LEVELS = """
import torch
from tests.ops.info_nce import assert_as_good_as_reference, problem
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
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@needs_cpu_kernel
def test_memory_is_linear_in_the_rows():
    kilobytes = int(run_python(MEMORY, MMSSL_OPS="native"))
    assert kilobytes < 40_000  # one 12288 x 12288 float32 matrix would be 590,000


@pytest.mark.slow
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
