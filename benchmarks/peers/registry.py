"""Helpers of the peers: optional packages, and the exception for a missing peer."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness.memory import available_mb
from mmssl import ops

# Their versions are recorded with every result.
PACKAGES = (
    "torch", "numpy", "scipy", "torch-sparse", "torch-scatter", "torch-geometric", "faiss-cpu",
    "implicit", "triton", "cut-cross-entropy", "liger-kernel", "inf-cl", "siglip-kernel",
)  # fmt: skip


class Missing(Exception):
    """A peer cannot be measured here, for the given reason."""


def require(module: str, package: str) -> Any:
    """Import an optional package."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # some fail with the error of a missing driver
        text = (str(error).splitlines() or [""])[0]
        raise Missing(f"{package}: {type(error).__name__}: {text}") from None


def need_bytes(count: float, device: str, what: str) -> None:
    """Raise `Missing` for a peer that would not fit into memory."""
    if device == "cuda":
        free = float(torch.cuda.mem_get_info()[0])
    else:
        free = 2**20 * available_mb()
    if count > 0.9 * free:
        raise Missing(f"{what} need about {count / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")


def with_backend(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function to run under ``ops.backend(...)``."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with ops.backend(backend):
            return function(*arguments, **options)

    return call


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the given shapes; what was compiled for other shapes is dropped."""
    torch.compiler.reset()  # else it gives up after a few shapes and dtypes
    return torch.compile(function, dynamic=False)
