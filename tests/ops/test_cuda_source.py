"""The CUDA kernels without a GPU: compiled by nvcc, and run on the CPU by an emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.ops import _extension
from tests.ops.kernels import (
    CXX,
    ROOT,
    build_emulated_bindings,
    needs_compiler,
    needs_cpu_kernel,
    run_emulated,
)

CUDA_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (CUDA_HOME / "bin/nvcc").exists() or CXX is None,
    reason=f"no nvcc in {CUDA_HOME}/bin, or no C++ compiler",
)
def test_cuda_part_compiles_and_links(tmp_path):
    done = subprocess.run(
        ["bash", "csrc/check_cuda.sh", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "CUDA_HOME": str(CUDA_HOME)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_compiler
def test_kernels_are_right_under_the_emulator(tmp_path):
    run_emulated(tmp_path, "propagate")


# Calls an op on the CPU, then replaces its kernels by the CUDA bindings and calls it again.
CHECK_BINDINGS = r"""
import sys
import torch

torch.ops.load_library(sys.argv[1])
op = torch.ops.mmssl
rowptr, t_rowptr = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 2, 2, 3])
col = torch.tensor([0, 4, 1], dtype=torch.int32)
t_col = torch.tensor([0, 1, 0], dtype=torch.int32)
view = (rowptr, col, t_rowptr, t_col, None, None)
x, grad = torch.randn(5, 8), torch.randn(2, 8)


def results():
    return op.spmm(x, *view, None, None, None), op.spmm_value_grad(grad, x, *view, None, None)


def rejected(what, call):
    try:
        call()
    except RuntimeError as error:
        assert what in str(error), error
    else:
        raise AssertionError(f"not rejected: {what}")


def check_rejections():
    rejected("lists must be as long as x, 0",
             lambda: op.propagate([], [rowptr], [col], [t_rowptr], [t_col], *[[None]] * 5))
    for wrong in (
        grad[0], grad[:, :4], grad[:1], grad.double(),
    ):
        rejected("grad must be (R, D)",
                 lambda: op.spmm_value_grad(wrong, x, *view, None, None))
    for rowptrs in ((rowptr[0], col, t_rowptr), (rowptr, col, t_rowptr[0])):
        rejected("grad must be (R, D)",
                 lambda: op.spmm_value_grad(grad, x, *rowptrs, t_col, None, None, None, None))


on_cpu = results()
check_rejections()
torch.ops.load_library(sys.argv[2])
for got, want in zip(results(), on_cpu, strict=True):
    torch.testing.assert_close(got, want)
check_rejections()
rejected("on one device",  # meta stands for another device: its memory can't be read
         lambda: op.spmm_value_grad(grad.to("meta"), x, *view, None, None))
print("checked")
"""


@needs_compiler
@needs_cpu_kernel
def test_cuda_bindings_check_their_operands_as_the_cpu_does(tmp_path):
    library = build_emulated_bindings(tmp_path)
    assert _extension.ops is not None
    done = subprocess.run(
        [sys.executable, "-c", CHECK_BINDINGS, _extension.ops.__file__, str(library)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "checked" in done.stdout
