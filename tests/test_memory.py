"""`mmssl.keep_freed_memory`: fewer page faults, safe to call anywhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import mmssl
from mmssl.memory import keep_freed_memory

COUNT = """
import resource, sys
import mmssl

if sys.argv[1] != "default":
    large = sys.argv[1] == "keep"
    assert all(mmssl.keep_freed_memory(large=large) for _ in range(2))
    assert "torch" not in sys.modules and "numpy" not in sys.modules
import numpy as np

np.ones(8_000_000)  # 64 MB, which glibc maps each time
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_page_faults():
    faults = {}
    for setting in ("default", "keep", "keep small ones"):
        command = [sys.executable, "-c", COUNT, setting]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[setting] = int(done.stdout)
    # At least 160 even with huge pages of 2 MB.
    assert faults["default"] >= 100 and faults["keep"] < faults["default"] / 5
    assert faults["keep small ones"] >= 100  # a block of 64 MB is none


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TENSOR = """
from pathlib import Path
import mmssl.cli.train, mmssl.models.sharded, mmssl.training.fit  # torch has created no tensor
import mmssl
mmssl.keep_freed_memory(large=False)
import torch
tensor = torch.ones(50_000_000)  # 200 MB
(line,) = (l for l in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHuge" in l)
print(line.split()[1])
"""


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(),
    reason="the system has no transparent huge pages",
)
def test_blocks_that_are_not_kept_have_huge_pages():
    done = subprocess.run([sys.executable, "-c", TENSOR], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100_000  # kB


@pytest.mark.parametrize("has_mallopt", [True, False])
def test_another_c_library_is_left_alone(monkeypatch, has_mallopt):
    called = []

    class Library:
        if has_mallopt:  # Android's, for example

            def mallopt(self, name: int, value: int) -> int:
                called.append((name, value))
                return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert keep_freed_memory.__wrapped__() is False
    assert called == []


def test_no_dynamic_loading(monkeypatch):
    def fail(name: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert keep_freed_memory.__wrapped__() is False


def test_top_level_name():
    assert mmssl.keep_freed_memory is keep_freed_memory
