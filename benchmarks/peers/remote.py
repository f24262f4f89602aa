"""A peer in another environment: a process that answers line by line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.registry import Missing

ROOT = Path(__file__).resolve().parents[2]
# What mmssl.keep_freed_memory sets in our own process.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


def environment_python() -> Path:
    """Return the interpreter with the frameworks: ``MMSSL_PEERS``, or where install.sh puts it.

    Raises:
        Missing: No such environment.
    """
    folder = Path(os.environ.get("MMSSL_PEERS") or ROOT / "build" / "peers")
    python = folder / "bin" / "python"
    if not python.exists():
        raise Missing(f"no {python}; run sh benchmarks/peers/install.sh")
    return python


class Remote:
    """A process that runs a script of this folder and waits for lines.

    Args:
        script: File name of the script.
        arguments: Its arguments.

    Raises:
        Missing: No environment, or the script ended before it was ready.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        command = [str(environment_python()), str(Path(__file__).with_name(script)), *arguments]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, **KEEP_FREED_MEMORY, **threads},
        )  # fmt: skip
        self._read()

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
            raise Missing(f"{self.process.args[1]}: ended with status {self.process.wait()}")
        return json.loads(line)
