"""Checks of arguments that several ops share. Each raises one line: what, expected, got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import GraphView


def check_tensor(name: str, x: Any, *, dims: str, like: Tensor | None = None) -> None:
    """A floating point tensor with as many dimensions as ``dims`` names, on the device of ``like``.

    Args:
        name: of the argument.
        x: what was given.
        dims: the shape in words, such as ``(N, D)``.
        like: a tensor checked before, whose device and dtype are the ones wanted; None: any.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if x.dim() != dims.count(",") + (not dims.endswith(",)")):
        raise InputError(f"{name}: expected shape {dims}, got {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise InputError(f"{name}: expected a floating point dtype, got {x.dtype}")
    if like is not None and x.dtype != like.dtype:
        raise InputError(f"{name}: expected dtype {like.dtype}, as the others, got {x.dtype}")
    if like is not None and x.device != like.device:
        raise InputError(f"{name}: expected device {like.device}, got {x.device}")


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Exactly this shape."""
    if tuple(x.shape) != tuple(shape):
        raise InputError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")


def check_number(name: str, x: Any, low: float, high: float, expected: str) -> None:
    """A real number in [low, high); NaN and bool are none."""
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not low <= x < high:
        raise InputError(f"{name}: expected {expected}, got {x!r:.60}")


def check_not_negative(name: str, x: Any) -> None:
    """A finite number >= 0."""
    check_number(name, x, 0, math.inf, "a finite number >= 0")


def check_view(name: str, view: Any) -> None:
    """A view of a graph."""
    if not isinstance(view, GraphView):
        raise InputError(
            f"{name}: expected a GraphView, such as graph.ui, got {type(view).__name__}"
        )


def check_ids(name: str, ids: Any, limit: int, device: torch.device) -> None:
    """(B,) int64 on a device; on the CPU each in [0, limit) as well, unless it is being traced."""
    if not isinstance(ids, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, got {type(ids).__name__}")
    if ids.dim() != 1 or ids.dtype != torch.int64:
        raise InputError(f"{name}: expected shape (B,) int64, got {tuple(ids.shape)} {ids.dtype}")
    if ids.device != device:
        raise InputError(f"{name}: expected device {device}, got {ids.device}")
    # Reading values would break a compiled graph and stall a GPU.
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= limit:
            raise InputError(
                f"{name}: expected ids in [0, {limit}), got {low if low < 0 else high}"
            )
