"""The CUDA kernels without a GPU: compiled by nvcc, and run on the CPU by an emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.kernels import CXX, ROOT, needs_compiler, run_emulated

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
    run_emulated(tmp_path, "spmm")
