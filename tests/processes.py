"""Groups of connected processes, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # before a process group exists, see mmssl/distributed/launch.py
import torch.distributed as dist

_LIMIT_SECONDS = 1200  # far more than any test takes, on a busy machine too


def run_together(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(*arguments)`` in ``size`` new processes of a gloo group on the CPU.

    Starting a Python with torch takes longer than most tests, so the processes are forked from one
    that has imported the module of ``work``.
    """
    forked(work.__module__)
    with tempfile.TemporaryDirectory() as folder:
        running: Any = torch.multiprocessing.start_processes(
            _joined, (size, f"file://{folder}/store", work, arguments), size,
            start_method="forkserver", join=False,
        )  # fmt: skip
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not running.join(timeout=1.0):
            if time.monotonic() > deadline:
                for process in running.processes:
                    process.kill()
                raise TimeoutError(f"{work.__name__}: not done after {_LIMIT_SECONDS} s")


def forked(module: str) -> Any:
    """Return the context of processes forked from a server that has imported a module."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _joined(
    rank: int, size: int, store: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store, rank=rank, world_size=size)
    work(*arguments)
    dist.barrier()  # no process leaves while another still reads from it
    dist.destroy_process_group()
