"""Every SIMD level: the error bounds of the contract, and the same bits if an op promises them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.ops.kernels import ROOT, needs_cpu_kernel

SCRIPT = """
import hashlib, json, torch
from mmssl.ops._registry import OPS
from tests.ops.cases import NATIVE, everything
from tests.ops.graphs import DTYPES, random_view, random_x
from tests.ops.test_all_ops import test_errors_are_within_those_of_the_reference as check
from tests.ops.test_masked_topk import native as topk, normal, whole_numbers
from tests.ops import test_bpr

found = {}

def note(name, results):
    digest = found.setdefault(name, hashlib.sha256())
    for result in results:
        digest.update(result.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

for op in NATIVE:
    for dtype in DTYPES:
        if dtype in op.dtypes["cpu"] or op.name in ("keep_mask", "sample_bpr"):
            check(op, dtype, "cpu")
for dtype in DTYPES:
    for case in OPS["add_normalized"].contract.samples(dtype):
        # torch draws random numbers differently at every level; these are the same.
        own = {
            name: (torch.arange(x.numel()) * 7919 % 1009 / 1009 - 0.5).view(x.shape).to(dtype)
            for name, x in case.arguments.items() if isinstance(x, torch.Tensor)
        }
        own["weight"] = 0.5
        note("add_normalized", everything(OPS["add_normalized"], own, "native"))
    for d in (1, 2, 3, 5, 8, 12, 16, 17, 32, 48, 64, 100, 129, 256, 300):
        for valued in (False, True):
            view = random_view(60, 40, 400, hub=1500, valued=valued)
            x, grad = random_x(view, d, dtype), random_x(view.transpose(), d, dtype, seed=1)
            index = (view.rowptr, view.col, view.t_rowptr, view.t_col, None, None)
            call = torch.ops.mmssl
            note("spmm", [
                call.spmm(x, *index, None, None, None),
                call.spmm_value_grad(grad, x, *index, None, None),
            ])
        note("bpr_loss", test_bpr.run(test_bpr.native, test_bpr.problem(90, d, dtype=dtype), dtype))
    for d, k in ((1, 7), (5, 40), (64, 10), (100, 300), (64, 2000)):
        view = random_view(37, 1500, 4000)
        for name, make in (("whole scores", whole_numbers), ("real scores", normal)):
            if name == "real scores" and dtype == torch.bfloat16:
                continue  # two features at a time where the processor can
            note(name, topk(make(37, d, dtype), make(1500, d, dtype, 1), k, exclude=view))
print(json.dumps([call.cpu_capability(), {k: v.hexdigest() for k, v in found.items()}]))
"""


@pytest.mark.slow
@needs_cpu_kernel
def test_every_simd_level():
    found = {}
    for level in ("default", "avx2", "avx512"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "ATEN_CPU_CAPABILITY": level, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        name, digests = json.loads(done.stdout.splitlines()[-1])
        found[name] = digests
    assert "default" in found
    for name in ("spmm", "bpr_loss", "add_normalized", "whole scores"):
        assert len({digests[name] for digests in found.values()}) == 1, name
    # Portable code has no fused multiply-add.
    fused = {digests["real scores"] for level, digests in found.items() if level != "default"}
    assert len(fused) <= 1


WITHOUT_AVX = """
import torch
from mmssl import InteractionGraph, ops

print(torch.ops.mmssl.cpu_capability(), torch.backends.cpu.get_cpu_capability())
graph = InteractionGraph.from_edges([0, 0, 1, 2], [1, 2, 0, 2], num_users=3, num_items=3)
x = torch.arange(192.0).reshape(3, 64).sin()
for op in (
    lambda: ops.spmm(graph.ui, x),
    lambda: ops.info_nce(x, x.flip(0), temperature=0.5),
    lambda: ops.masked_topk(x, x, 2, exclude=graph.ui)[0],
):
    with ops.backend("native"):
        got = op()
    with ops.backend("reference"):
        torch.testing.assert_close(got, op(), rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
@needs_cpu_kernel
@pytest.mark.skipif(
    not shutil.which("qemu-x86_64"), reason="no qemu-x86_64 (Debian: apt install qemu-user)"
)
def test_a_processor_without_avx():
    """An emulated processor of 2008: SSE4.2, which NumPy needs, and nothing newer."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", "Nehalem", sys.executable, "-c", WITHOUT_AVX],
        cwd=ROOT,
        env={**own, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["default", "DEFAULT"]
