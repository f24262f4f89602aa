"""Conversion of ids and numbers in any array type to tensors, without loss and without a warning.

Tensors of every integer or floating dtype, NumPy arrays (read-only, big-endian, strided), columns
of pandas and polars and everything else that :func:`numpy.asarray` understands, lists and ranges.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.columns import DROP_MISSING, id_column, leaves_float32, number_column
from mmssl.errors import InputError


def as_ids(name: str, values: Any, device: torch.device | None = None) -> Tensor:
    """Convert integers to an int64 tensor.

    Accepts tensors of any integer dtype and what :func:`mmssl.columns.id_column` accepts.

    Args:
        name: Name of the argument, for messages.
        values: Integers of any dtype and array type.
        device: Device of the result; None leaves a tensor on its device and puts the rest on the
            CPU. A tensor on another device is refused.

    Raises:
        InputError: ``values`` holds something other than integers, or one beyond int64.
    """
    if isinstance(values, Tensor):
        _check_device(name, values, device)
        kind = _kind(values.dtype)
        if kind not in "iu" and (values.numel() or kind != "f"):
            how = DROP_MISSING if kind == "f" else ""
            raise InputError(f"{name}: expected integer ids, got {values.dtype}{how}")
        ids = values.detach().long()
        if values.dtype == torch.uint64 and bool((ids < 0).any()):
            raise InputError(f"{name}: expected ids below 2^63, got a larger one")
        return ids
    return _tensor(id_column(name, values), np.int64, device)


def as_numbers(name: str, values: Any, device: torch.device | None = None) -> Tensor:
    """Convert real numbers to a float32 or float64 tensor.

    float64 stays float64; half precision, integers and lists become float32, a list float64 if a
    value is outside the range of float32. Gradients flow back to a tensor. NaN and infinity are
    not checked.

    Args:
        name: Name of the argument, for messages.
        values: Real numbers of any dtype and array type.
        device: As in :func:`as_ids`.

    Raises:
        InputError: ``values`` holds something other than real numbers.
    """
    if isinstance(values, Tensor):
        _check_device(name, values, device)
        if _kind(values.dtype) not in "iuf":
            raise InputError(f"{name}: expected real numbers, got {values.dtype}")
        numbers = values if values.dtype == torch.float64 else values.float()
        if torch.compiler.is_compiling():  # a tracer can't tell, and makes tensors of its own
            return numbers
        return numbers.clone() if numbers.is_inference() else numbers
    array = number_column(name, values)
    wide = array.dtype.kind == "f" and array.dtype.itemsize >= 8
    if isinstance(values, (list, tuple)):
        wide = leaves_float32(array)
    return _tensor(array, np.float64 if wide else np.float32, device)


def as_count(name: str, value: Any) -> int:
    """Convert an integer of any type, such as a NumPy scalar, in [0, 2^31); bool is refused.

    Raises:
        InputError: ``value`` is not an integer or out of range.
    """
    try:
        count = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        count = -1
    if not 0 <= count < 2**31:
        raise InputError(f"{name}: expected an integer in [0, 2^31), got {value!r:.60}")
    return count


def _kind(dtype: torch.dtype) -> str:
    """Return NumPy's letter for a kind of dtype: b(ool), i(nteger), f(loating), c(omplex)."""
    if dtype.is_floating_point:
        return "f"
    return "b" if dtype == torch.bool else "c" if dtype.is_complex else "i"


def _check_device(name: str, values: Tensor, device: torch.device | None) -> None:
    if values.layout is not torch.strided:
        raise InputError(f"{name}: expected a dense tensor, got one of layout {values.layout}")
    if device is not None and values.device != device:
        raise InputError(f"{name}: expected device {device}, got {values.device}")


def _tensor(array: np.ndarray[Any, Any], dtype: Any, device: torch.device | None) -> Tensor:
    with np.errstate(over="ignore"):  # what overflows is infinite, which the callers refuse
        array = np.asarray(array, dtype, order="C")
    # torch.from_numpy warns of a read-only array and refuses a negative stride, which even an
    # array of one element may have.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array).to(device)
