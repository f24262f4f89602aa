"""Joining the processes that torchrun has started, and their end."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch

from mmssl.distributed import launched, reports_early
from mmssl.distributed.group import SINGLE, Group, Processes
from mmssl.distributed.watch import Watch
from mmssl.errors import InputError, LostProcess

_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A process may wait this long for another, for example while the first one writes a checkpoint.
_TIMEOUT = timedelta(hours=1)


@contextmanager
def joined(mode: str | None, device: str) -> Iterator[tuple[Group, str]]:
    """Join the processes of this run, and end with them.

    Whatever raises in one process or kills it ends all of them: the others lose their connection to
    it. The first process that raises is the only one to say why; the others exit without a word. A
    process that can't end, because it waits for yet another one, is ended by a :class:`Watch`.

    Args:
        mode: One of :data:`mmssl.distributed.MODES`; None for training in a single process.
        device: "cpu" or "cuda".

    Yields:
        The group and the device of this process.

    Raises:
        InputError: Not started by torchrun, or by torchrun without a mode.
    """
    try:
        _check_environment(mode)
    except InputError:
        if not reports_early():
            raise SystemExit(2) from None
        raise
    if mode is None:
        yield SINGLE, device
        return
    _end_with_launcher()
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    watch = Watch()
    try:
        store = _connect(device, watch)
        try:
            yield Processes(sharded=mode == "sharded"), device
        except BaseException as error:
            _fail(error, store, watch)
            raise
        finally:
            _disconnect()
        watch.leave()
    finally:
        watch.close()


def _check_environment(mode: str | None) -> None:
    if mode is None:
        several = os.environ.get("WORLD_SIZE", "1") != "1"
        if several and launched():
            raise InputError(
                "train: expected --parallel data or --parallel sharded under torchrun with several "
                "processes, got neither"
            )
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise InputError(
            f"--parallel {mode}: expected to be started by torchrun, as in: torchrun "
            f"--nproc-per-node 2 -m mmssl train --parallel {mode} ..., got no {missing[0]} in the "
            "environment"
        )


def _end_with_launcher() -> None:
    """Have the system send SIGTERM when torchrun is killed, which then can't end its processes."""
    if launched():
        with suppress(AttributeError, OSError):  # Linux only
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _connect(device: str, watch: Watch) -> Any:
    """Initialize torch's default process group; return the store that all processes share."""
    import torch.distributed as dist

    # torch's deterministic mode imports this. Imported after the process group exists, some of its
    # modules keep the group as a default argument, and its threads abort the process at its end.
    importlib.import_module("torch._inductor.config")

    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    if device != "cpu":
        count = torch.cuda.device_count()
        if int(device.removeprefix("cuda:")) >= count:
            raise InputError(
                "--parallel: expected a CUDA device for every process of a machine, got "
                f"{count} devices and no {device}"
            )
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        store.set_timeout(_TIMEOUT)
        # The store outlives the processes: after a restart it still has their addresses.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        watch.connect(store, rank, size, os.environ["MASTER_ADDR"], lambda: _is_first(store))
    except (OSError, RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"--parallel: the processes can't connect: {line}") from error
    return store


def _fail(error: BaseException, store: Any, watch: Watch) -> None:
    """Have all processes end; return in the one that reports the error."""
    code = 1 if isinstance(error, LostProcess) else 2
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        code = error.code
    watch.fail(code, f"error: {error}" if isinstance(error, Exception) else "interrupted")
    first = not isinstance(error, Exception) or _is_first(store)
    watch.drop()
    if not first:
        raise SystemExit(code) from None


def _disconnect() -> None:
    """End the threads of the connections, which would abort the process at its end."""
    import torch.distributed as dist

    with suppress(RuntimeError):
        dist.destroy_process_group()


def _is_first(store: Any) -> bool:
    """Whether this process is the first that reports an error."""
    with suppress(RuntimeError):  # the store may have ended with the process that holds it
        return bool(store.add("mmssl/reported", 1) == 1)
    return True
