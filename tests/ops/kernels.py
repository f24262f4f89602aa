"""The kernels available on this machine, and the ways to run them that several tests share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmssl import _extension

ROOT = Path(__file__).resolve().parents[2]
CXX = shutil.which(os.environ.get("CXX", "g++"))

needs_cpu_kernel = pytest.mark.skipif(
    _extension.ops is None, reason=f"no CPU kernel: {_extension.missing.get('_C')}"
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or _extension.cuda is None,
    reason=f"no CUDA kernel: {_extension.missing.get('_C_cuda', 'no CUDA device')}",
)
needs_compiler = pytest.mark.skipif(
    CXX is None or not (ROOT / "csrc").is_dir(), reason="no C++ compiler, or no source tree"
)
needs_gpu_operators = pytest.mark.skipif(
    not _extension.on_gpu(torch.empty(0)), reason="the emulator does not run"
)
KERNELS = [
    pytest.param("cpu", marks=needs_cpu_kernel),
    pytest.param("cuda", marks=[needs_gpu, pytest.mark.gpu]),
]


def run_python(code: str, **environment: str) -> str:
    """Run code in a new process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Each finds what the other can't: indices out of range, and data races between threads.
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-g1", "-fsanitize=thread"],
}


def run_emulated(folder: Path, op: str, sanitizer: str) -> None:
    """Builds the CUDA kernels of csrc/ops/OP for the CPU with their emulator test and runs it."""
    program = folder / "emulated"
    folders = dict.fromkeys([op, *_kernels_used(op)])
    sources = [f"csrc/ops/{op}/emulator_test.cpp"]
    sources += sorted(str(p) for name in folders for p in (ROOT / "csrc/ops" / name).glob("*.cu"))
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += SANITIZERS[sanitizer]
    assert CXX is not None
    done = subprocess.run(
        [CXX, *flags, "-DMMSSL_EMULATE_CUDA", "-Icsrc", "-x", "c++", *sources, "-o", str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # ThreadSanitizer does not run with randomized addresses.
    fixed = ["setarch", "-R"] if sanitizer == "thread" else []
    done = subprocess.run([*fixed, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok" in done.stdout


def _kernels_used(op: str) -> list[str]:
    """The ops whose CUDA kernels csrc/ops/OP calls, its own included, by their headers."""
    text = "".join(path.read_text() for path in (ROOT / "csrc/ops" / op).glob("*.cu*"))
    return re.findall(r'#include "ops/(\w+)/kernels.cuh"', text)


def build_emulated_bindings(folder: Path, sanitizer: str = "") -> Path:
    """Builds the CUDA bindings, with their kernels on the emulator, as a library for the CPU.

    Loaded after ``mmssl._C``, it replaces the CPU kernels: ``torch.ops.mmssl`` then runs
    the CUDA bindings on CPU tensors. With a sanitizer the process needs :func:`preloaded`.
    """
    torch_root, ops = Path(torch.__file__).parent, ROOT / "csrc/ops"
    sanitize = SANITIZERS.get(sanitizer, [])
    flags = ["-std=c++20", "-O1", "-fPIC", "-w", "-DMMSSL_EMULATE_CUDA"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", *sanitize]
    flags += ["-Icsrc", "-isystem", str(torch_root / "include")]

    def compiler(*arguments: str) -> None:
        assert CXX is not None
        done = subprocess.run([CXX, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def built(source: Path) -> str:
        target = folder / f"{source.parent.name}_{source.name}.o"
        compiler(*flags, "-x", "c++", "-c", str(source), "-o", str(target))
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(built, [*ops.glob("*/cuda.cpp"), *ops.glob("*/*.cu")]))
    library = folder / "emulated.so"
    link = [f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"]
    compiler("-shared", *sanitize, *objects, "-o", str(library), *link)
    return library


def preloaded() -> dict[str, str]:
    """What the environment of a process needs that loads a library with SANITIZERS["address"]."""
    assert CXX is not None
    libraries = [
        subprocess.check_output([CXX, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Leaks are Python's own; a test asks for more memory than there is.
    options = "detect_leaks=0:allocator_may_return_null=1"
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": options}


def assert_captured_in_a_cuda_graph(
    step: Callable[[], Sequence[Tensor]], change: Callable[[], object]
) -> None:
    """Check that replaying a captured step sees inputs that changed in place after the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # one-time initialization must not be captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        change()
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)
