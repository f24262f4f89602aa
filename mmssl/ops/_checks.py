"""Argument checks that the ops share. Each raises one line: argument, expected, got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import GraphView

_INTEGER = (int, np.integer)
_REAL = (int, float, np.integer, np.floating)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are formed in: float32 for the half types, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def is_cpu_half(x: Any) -> bool:
    """Whether x is float16 on the CPU: the ops compute in float32 there, since no kernel reads it.

    Every float16 is a float32, so results and gradients are rounded once, at the end.
    """
    return isinstance(x, Tensor) and x.dtype == torch.float16 and x.device.type == "cpu"


def promoted(*tensors: Any) -> tuple[Any, ...]:
    """Return tensors of several dtypes in the widest of them under autocast, as torch's losses do.

    A layer returns autocast's half type there, a table of embeddings stays float32. What is not a
    floating point tensor is returned as it is, as is everything outside autocast.
    """
    mixed = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    dtypes = {t.dtype for t in mixed}
    if len(dtypes) < 2 or not all(_under_autocast(t.device.type) for t in mixed):
        return tensors
    widest = reduce(torch.promote_types, dtypes)
    return tuple(t.to(widest) if any(t is m for m in mixed) else t for t in tensors)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which torch's products keep the dtype of their operands."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if _under_autocast(device) else nullcontext()


# Asked once: torch.compile of torch 2.11 can't trace the question.
_HAVE_AUTOCAST = frozenset(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)


def _under_autocast(device: str) -> bool:
    return device in _HAVE_AUTOCAST and torch.is_autocast_enabled(device)


def check_tensor(name: str, x: Any, *, dims: str, like: Tensor | None = None) -> None:
    """Check for a floating point tensor with the given number of dimensions.

    Args:
        name: name of the argument.
        x: its value.
        dims: the expected shape in words, such as ``(N, D)``; a leading ``...`` stands for any
            number of dimensions.
        like: a tensor whose dtype and device are expected; None accepts any.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    count = dims.count(",") + (not dims.endswith(",)"))
    wrong = x.dim() < count - 1 if dims.startswith("(...") else x.dim() != count
    if wrong:
        raise InputError(f"{name}: expected shape {dims}, got {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise InputError(f"{name}: expected a floating point dtype, got {x.dtype}")
    if like is not None and x.dtype != like.dtype:
        raise InputError(
            f"{name}: expected dtype {like.dtype}, like the other arguments, got {x.dtype}"
        )
    if like is not None:
        check_device(name, x, like.device)


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    """Check that a tensor lives on the device of the other arguments."""
    if x.device != device:
        raise InputError(f"{name}: expected device {device}, got {x.device}")


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Check for exactly this shape."""
    if tuple(x.shape) != tuple(shape):
        raise InputError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")


def check_tables(user_emb: Any, item_emb: Any) -> None:
    """Check for the (U, D) and (I, D) embeddings of users and items."""
    check_tensor("user_emb", user_emb, dims="(U, D)")
    check_tensor("item_emb", item_emb, dims="(I, D)", like=user_emb)
    check_shape("item_emb", item_emb, (item_emb.shape[0], user_emb.shape[1]))


def check_row_count(name: str, x: Tensor, rows: int, of: str) -> None:
    """Check a matrix for this number of rows, one for each ``of``, and for a column."""
    if x.shape[0] != rows or x.shape[1] == 0:
        raise InputError(
            f"{name}: expected shape ({rows}, D) with D >= 1, one row per {of}, "
            f"got {tuple(x.shape)}"
        )


def check_number(name: str, x: Any, low: float, high: float, expected: str) -> None:
    """Check for a real number in [low, high); NaN and bool are refused."""
    if isinstance(x, bool) or not isinstance(x, _REAL) or not low <= x < high:
        raise InputError(f"{name}: expected {expected}, got {x!r:.60}")


def check_not_negative(name: str, x: Any) -> None:
    """Check for a finite number >= 0."""
    check_number(name, x, 0, math.inf, "a finite number >= 0")


def check_temperature(temperature: Any) -> None:
    """Check for a finite number > 0, or a tensor of one element, whose value is not looked at."""
    if not isinstance(temperature, Tensor):
        least = math.nextafter(0, 1)
        check_number("temperature", temperature, least, math.inf, "a finite number > 0")
    elif temperature.numel() != 1 or not temperature.dtype.is_floating_point:
        raise InputError(
            "temperature: expected a number or a floating point tensor of one element, got "
            f"shape {tuple(temperature.shape)} of {temperature.dtype}"
        )


def check_integer(name: str, x: Any, low: int, high: float = math.inf) -> None:
    """Check for an integer in [low, high]; bool is refused."""
    if isinstance(x, bool) or not isinstance(x, _INTEGER) or not low <= x <= high:
        expected = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
        raise InputError(f"{name}: expected an integer {expected}, got {x!r:.60}")


def check_view(
    name: str,
    view: Any,
    *,
    shape: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> None:
    """Check for a view of a graph, with a shape and on a device if these are given."""
    if not isinstance(view, GraphView):
        raise InputError(
            f"{name}: expected a GraphView, such as graph.ui, got {type(view).__name__}"
        )
    got = (view.num_rows, view.num_cols)
    if shape is not None and got != shape:
        raise InputError(f"{name}: expected a view of shape {shape}, got {got}")
    if device is not None and view.device != device:
        raise InputError(f"{name}: expected device {device}, got {view.device}")


def check_ids(
    name: str,
    ids: Any,
    limit: int | None,
    device: torch.device,
    shape: tuple[int, ...] | None = None,
    what: str = "ids",
) -> None:
    """Check for int64 ids on a device, of a shape or, if that is None, (B,) for any B.

    On the CPU each id must lie in [0, limit), unless the call is being traced or ``limit`` is None:
    the kernel then checks the ids. On a GPU reading them would wait for the device.
    """
    if not isinstance(ids, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, got {type(ids).__name__}")
    fits = ids.dim() == 1 if shape is None else tuple(ids.shape) == shape
    if not fits or ids.dtype != torch.int64:
        raise InputError(
            f"{name}: expected shape {'(B,)' if shape is None else shape} int64, "
            f"got {tuple(ids.shape)} {ids.dtype}"
        )
    check_device(name, ids, device)
    if limit is None or ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if torch._C._functorch.is_batchedtensor(ids):  # torch.vmap has no value to look at
        return
    if ids.numel():
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= limit:
            raise InputError(
                f"{name}: expected {what} in [0, {limit}), got {low if low < 0 else high}"
            )


def check_triples(
    users: Any,
    pos_items: Any,
    neg_items: Any,
    device: torch.device,
    counts: tuple[int, int] | None = None,
) -> None:
    """Check for three (B,) int64 arrays on a device, and for ids below the counts (U, I).

    Without ``counts`` a kernel checks the ids.
    """
    num_users, num_items = (None, None) if counts is None else counts
    for name, ids, limit in (
        ("users", users, num_users),
        ("pos_items", pos_items, num_items),
        ("neg_items", neg_items, num_items),
    ):
        check_ids(name, ids, limit, device)
        check_shape(name, ids, users.shape)
