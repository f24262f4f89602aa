"""What peers share: the packages they come from, and how one that is missing says so."""

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
    """Why a peer can't be measured here."""


def require(module: str, package: str) -> Any:
    """An optional package."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # some fail at import with whatever a missing driver raises
        text = (str(error).splitlines() or [""])[0]
        raise Missing(f"{package}: {type(error).__name__}: {text}") from None


def need_bytes(count: float, device: str, what: str) -> None:
    """Leaves a peer out that would not fit."""
    if device == "cuda":
        free = float(torch.cuda.mem_get_info()[0])
    else:
        free = 2**20 * available_mb()
    if count > 0.9 * free:
        raise Missing(f"{what} need about {count / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")


def with_backend(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Under ``ops.backend(...)``."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with ops.backend(backend):
            return function(*arguments, **options)

    return call


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for the shapes at hand; what it kept of other shapes is dropped."""
    torch.compiler.reset()  # or it gives up after a few shapes and dtypes
    return torch.compile(function, dynamic=False)
