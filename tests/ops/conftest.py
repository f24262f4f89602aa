"""The libraries of emulated CUDA kernels, which take minutes to build: once for all workers."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.ops.kernels import build_emulated_bindings


def _built(factory: pytest.TempPathFactory, name: str, sanitizer: str) -> Path:
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers' folders are in one of the whole run
        folder = folder.parent
    folder = folder / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = folder / "emulated.so"
        return library if library.exists() else build_emulated_bindings(folder, sanitizer)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory) -> Path:
    """The library that replaces the CPU kernels by the CUDA kernels on the emulator."""
    return _built(tmp_path_factory, "emulated", "")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory) -> Path:
    """The same with AddressSanitizer and UBSan."""
    return _built(tmp_path_factory, "sanitized", "address")
