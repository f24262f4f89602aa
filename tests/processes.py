"""Groups of connected processes, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # before a process group exists, see mmssl/distributed/launch.py
import torch.distributed as dist


def run_together(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(*arguments)`` in ``size`` new processes of a gloo group on the CPU.

    Starting a Python with torch takes longer than most tests, so the processes are forked from one
    that has imported the module of ``work``.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    multiprocessing.set_forkserver_preload([work.__module__])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _joined, (size, f"file://{folder}/store", work, arguments), size,
            start_method="forkserver",
        )  # fmt: skip


def _joined(
    rank: int, size: int, store: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store, rank=rank, world_size=size)
    work(*arguments)
    dist.destroy_process_group()
