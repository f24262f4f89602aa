"""Choose the backend of an op: the compiled kernel or the plain PyTorch reference.

``auto`` uses the kernel if one exists for the device and dtype, and warns once otherwise;
``native`` raises instead; ``reference`` always uses plain PyTorch. The environment variable
``MMSSL_OPS`` sets the initial choice of a process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mmssl import _extension
from mmssl.errors import InputError, NoKernel
from mmssl.ops import _registry

BACKENDS = ("auto", "native", "reference")


class OpStatus(NamedTuple):
    """The backend that one op uses on one device."""

    op: str
    device: str
    dtypes: tuple[str, ...]
    backend: str  # "native" or "reference"
    reason: str  # why the reference is used; empty for a kernel


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# A plain global instead of a context variable: torch.compile traces it and guards on it.
_requested = _checked(os.environ.get("MMSSL_OPS", "auto"), "environment variable MMSSL_OPS")
_warned: set[str] = set()


def requested_backend() -> str:
    """Return the current choice: "auto", "native" or "reference"."""
    return _requested


def set_backend(name: str) -> None:
    """Choose the backend for the rest of the process.

    Args:
        name: one of :data:`BACKENDS`.

    Raises:
        InputError: ``name`` is not one of :data:`BACKENDS`.
    """
    global _requested
    _requested = _checked(name, "backend")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend within a block: ``with ops.backend("reference"): ...``.

    The choice applies to the whole process, not only to the calling thread.

    Args:
        name: one of :data:`BACKENDS`.

    Raises:
        InputError: ``name`` is not one of :data:`BACKENDS`.
    """
    before = requested_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def why_not_native(op: str, device: str, dtype: torch.dtype | None = None) -> str:
    """Explain in one line why an op has no kernel here; empty if it has one."""
    kernels = _registry.OPS[op].dtypes
    if not kernels:
        return "no native kernel yet"
    if device not in kernels:
        return f"no kernel for device {device}"
    if dtype is not None and dtype not in kernels[device]:
        return f"no kernel for {dtype} on {device}"
    module = "_C_cuda" if device == "cuda" else "_C"
    return _extension.missing.get(module, "")


def use_native(op: str, device: str, dtype: torch.dtype | None = None) -> bool:
    """Decide whether to call the kernel.

    Args:
        op: name of the op.
        device: type of the device of its arguments.
        dtype: their dtype; None for an op without floating point arguments.

    Raises:
        NoKernel: "native" was requested and no kernel exists.
    """
    if _requested == "reference":
        return False
    reason = why_not_native(op, device, dtype)
    if not reason:
        return True
    if _requested == "native":
        raise NoKernel(f"mmssl.ops.{op}: backend 'native' is required, but {reason}")
    if _registry.OPS[op].dtypes and not torch.compiler.is_compiling() and reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"mmssl.ops.{op}: slower plain PyTorch is used: {reason}", RuntimeWarning, stacklevel=3
        )
    return False


def runs_on_gpu(op: str, x: torch.Tensor) -> bool:
    """Whether the kernels of a GPU compute an op of tensors where ``x`` is."""
    return _extension.on_gpu(x) and use_native(op, x.device.type)


def status() -> list[OpStatus]:
    """Return the backend of every op on every device of this machine, under the current choice."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    rows = []
    for op in _registry.OPS.values():
        if not op.public:
            continue
        for device in devices:
            reason = why_not_native(op.name, device)
            if not reason and _requested == "reference":
                reason = "requested"
            dtypes = op.dtypes.get(device, ()) if not reason else ()
            names = tuple(str(dtype).removeprefix("torch.") for dtype in dtypes) or ("any",)
            rows.append(
                OpStatus(op.name, device, names, "reference" if reason else "native", reason)
            )
    return rows
