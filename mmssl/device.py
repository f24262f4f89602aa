"""The device to compute on."""

from __future__ import annotations

import torch

from mmssl.errors import InputError


def resolve_device(name: str) -> str:
    """Return "cpu" or a CUDA device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: Another name, or a CUDA device that torch can't use.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(name).type
    except (RuntimeError, TypeError):
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu or cuda, got {name!r:.60}")
    if kind == "cuda" and not available:
        raise InputError(f"device {name}: torch {torch.__version__} finds no usable CUDA device")
    return name
