"""A peer in another process, mostly of another environment, that answers line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.registry import Missing
from benchmarks.peers.serve import OWN, PEERS

ROOT = Path(__file__).resolve().parents[2]
# What mmssl.keep_freed_memory sets in our own process.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
# These replace what OpenBLAS finds out about the processor, and can only slow a peer down.
OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def environment_python(name: str) -> Path:
    """Return the interpreter of an environment in ``MMSSL_PEERS``, or where install.sh puts it.

    Raises:
        Missing: No such environment.
    """
    if name == OWN:
        return Path(sys.executable)
    folder = Path(os.environ.get("MMSSL_PEERS") or ROOT / "build" / "peers")
    python = folder / name / "bin" / "python"
    if not python.exists():
        raise Missing(f"no environment {name!r}; run sh benchmarks/peers/install.sh")
    return python


class Remote:
    """A process that serves one peer (serve.py).

    Args:
        case: Key of ``PEERS``.
        name: Of the peer.
        problem: File of its arrays.

    Raises:
        Missing: No environment, or the process ended before it was ready.
    """

    def __init__(self, case: str, name: str, problem: Path) -> None:
        python = environment_python(PEERS[case][name].environment)
        command = [str(python), "-m", "benchmarks.peers.serve", case, name, str(problem)]
        kept = {key: value for key, value in os.environ.items() if key not in OVERRIDES}
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT,
            env={**kept, **KEEP_FREED_MEMORY, **threads},
        )  # fmt: skip
        self.version: str = self._read()

    def ask(self, line: str) -> Any:
        """Send a line and return the answer."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Missing(f"its process ended with status {self.process.wait()}")
        return json.loads(line)
