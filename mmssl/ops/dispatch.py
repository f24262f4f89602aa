"""Which implementation an op takes: the compiled kernel or the plain PyTorch reference.

``auto`` takes the kernel where there is one for the device and dtype and says once why not
otherwise; ``native`` raises instead; ``reference`` never asks. The environment variable
``MMSSL_OPS`` sets the choice a process starts with.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mmssl.errors import InputError
from mmssl.ops import _extension

BACKENDS = ("auto", "native", "reference")

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# op -> device -> dtypes with a kernel. An op without a kernel anywhere has an empty entry.
_KERNELS: dict[str, dict[str, tuple[torch.dtype, ...]]] = {
    "spmm": {"cpu": _KERNEL_DTYPES, "cuda": _KERNEL_DTYPES},
    "propagate": {"cpu": _KERNEL_DTYPES, "cuda": _KERNEL_DTYPES},
    "info_nce": {"cpu": _KERNEL_DTYPES, "cuda": _KERNEL_DTYPES},
    "norm_act": {"cpu": _KERNEL_DTYPES},
    "view_attention": {"cpu": _KERNEL_DTYPES},
    "add_normalized": {"cpu": _KERNEL_DTYPES},
    "keep_mask": {"cpu": (torch.uint8,)},
    "masked_topk": {"cpu": _KERNEL_DTYPES, "cuda": _KERNEL_DTYPES},
    "masked_similarity": {},
    # Its sparse part is spmm; the rest are ordinary products.
    "masked_similarity_linear": {"cpu": _KERNEL_DTYPES, "cuda": _KERNEL_DTYPES},
    "sample_bpr": {"cpu": ()},  # ids only; on a GPU plain PyTorch is meant to do
    "bpr_loss": {"cpu": _KERNEL_DTYPES, "cuda": _KERNEL_DTYPES},
}


class OpStatus(NamedTuple):
    """What one op does on one device now."""

    op: str
    device: str
    dtypes: tuple[str, ...]
    backend: str  # "native" or "reference"
    reason: str  # why it is the reference; empty for a kernel


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# A plain global and no context variable: torch.compile traces it and guards on it.
_requested = _checked(os.environ.get("MMSSL_OPS", "auto"), "environment variable MMSSL_OPS")
_warned: set[str] = set()


def requested_backend() -> str:
    """The choice in force: "auto", "native" or "reference"."""
    return _requested


def set_backend(name: str) -> None:
    """Makes a choice for the rest of the process.

    Raises:
        InputError: not one of :data:`BACKENDS`.
    """
    global _requested
    _requested = _checked(name, "backend")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Makes a choice for a block: ``with ops.backend("reference"): ...``.

    The choice belongs to the process, not to the thread that makes it.

    Raises:
        InputError: not one of :data:`BACKENDS`.
    """
    before = requested_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def why_not_native(op: str, device: str, dtype: torch.dtype | None = None) -> str:
    """Why an op has no kernel here, in one line; empty if it has one."""
    kernels = _KERNELS[op]
    if not kernels:
        return "no native kernel yet"
    if device not in kernels:
        return f"no kernel for device {device}"
    if dtype is not None and dtype not in kernels[device]:
        return f"no kernel for {dtype} on {device}"
    module = "_C_cuda" if device == "cuda" else "_C"
    return _extension.missing.get(module, "")


def use_native(op: str, device: str, dtype: torch.dtype | None = None) -> bool:
    """Whether to call the kernel, as requested and possible.

    Raises:
        RuntimeError: "native" was requested and there is no kernel.
    """
    if _requested == "reference":
        return False
    reason = why_not_native(op, device, dtype)
    if not reason:
        return True
    if _requested == "native":
        raise RuntimeError(f"mmssl.ops.{op}: backend 'native' is required, but {reason}")
    if _KERNELS[op] and not torch.compiler.is_compiling() and reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"mmssl.ops.{op}: slower plain PyTorch is used: {reason}", RuntimeWarning, stacklevel=3
        )
    return False


def status() -> list[OpStatus]:
    """What every op does on every device of this machine, under the choice in force."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    rows = []
    for op, kernels in _KERNELS.items():
        for device in devices:
            reason = why_not_native(op, device)
            if not reason and _requested == "reference":
                reason = "requested"
            dtypes = kernels.get(device, ()) if not reason else ()
            names = tuple(str(dtype).removeprefix("torch.") for dtype in dtypes) or ("any",)
            rows.append(OpStatus(op, device, names, "reference" if reason else "native", reason))
    return rows
