"""The CUDA kernels without a GPU: compiled by nvcc, and run on the CPU by an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
CXX = shutil.which(os.environ.get("CXX", "g++"))


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


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_kernels_are_right_under_the_emulator(tmp_path):
    program = tmp_path / "emulated"
    sources = ["csrc/emu/test_spmm.cpp", "csrc/cuda/spmm.cu"]
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    done = subprocess.run(
        [CXX, *flags, "-DMMSSL_EMULATE_CUDA", "-Icsrc", "-x", "c++", *sources, "-o", str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "ok" in done.stdout
