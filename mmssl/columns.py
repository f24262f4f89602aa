"""Conversion of ids and numbers in any array type to NumPy arrays, without loss.

NumPy arrays (read-only, big-endian, strided), tensors on the CPU, columns of pandas and polars and
everything else that :func:`numpy.asarray` understands, lists and ranges. Importing this module does
not import torch; :mod:`mmssl.arrays` does the same for tensors.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError

DROP_MISSING = "; drop missing values, then convert with .astype('int64'), or .long() for a tensor"
"""What to do about floating point ids, for messages."""
_MAP = "; map ids to 0, 1, ... first, for instance with numpy.unique(ids, return_inverse=True)"
_HOW = {"b": "", "f": DROP_MISSING}


def id_column(name: str, values: Any) -> npt.NDArray[Any]:
    """Convert integers to an array of some integer dtype, not beyond int64.

    Floating point numbers are refused even where they are whole, since a float column of ids is
    often the result of missing values. An empty array of any numeric dtype is accepted.

    Args:
        name: Name of the argument, for messages.
        values: Integers of any dtype and array type.

    Raises:
        InputError: ``values`` holds something other than integers, or one beyond int64.
    """
    array = _asarray(name, values)
    if array.dtype == object:
        array = _each(name, array, operator.index, "integer ids", np.int64)
    if array.dtype.kind not in "iu" and (array.size or array.dtype.kind not in "f"):
        how = _HOW.get(array.dtype.kind, _MAP)
        raise InputError(f"{name}: expected integer ids, got {array.dtype}{how}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size:
        if int(array.max()) >= 2**63:
            raise InputError(f"{name}: expected ids below 2^63, got {array.max()}")
    return array


def number_column(name: str, values: Any) -> npt.NDArray[Any]:
    """Convert real numbers to an array of some integer or floating point dtype.

    NaN and infinity are not checked.

    Args:
        name: Name of the argument, for messages.
        values: Real numbers of any dtype and array type.

    Raises:
        InputError: ``values`` holds something other than real numbers.
    """
    array = _asarray(name, values)
    if array.dtype == object:
        array = _each(name, array, float, "real numbers", np.float64)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected real numbers, got {array.dtype}")
    return array


def leaves_float32(array: npt.NDArray[Any]) -> bool:
    """Return whether a finite number would become infinite, or one other than 0 become 0."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float32)
    lost = ((narrow == 0) & (array != 0)) | (np.isinf(narrow) & np.isfinite(array))
    return bool(lost.any())


def _asarray(name: str, values: Any) -> npt.NDArray[Any]:
    """Call :func:`numpy.asarray`, unless that would lose something."""
    if isinstance(values, np.ma.MaskedArray) and bool(np.ma.getmaskarray(values).any()):
        raise InputError(f"{name}: expected no missing values, got a masked array that masks some")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{name}: expected an array of numbers, got {type(values).__name__} "
            f"({reason[0] if reason else type(error).__name__:.100})"
        ) from error
    if array.ndim == 0 and array.dtype == object:
        raise InputError(f"{name}: expected an array of numbers, got {type(values).__name__}")
    return array


def _each(
    name: str, array: npt.NDArray[Any], convert: Any, expected: str, dtype: Any
) -> npt.NDArray[Any]:
    """Convert an array of Python objects, as nullable columns of pandas give, one by one."""
    out = np.empty(array.size, dtype)
    hint = _MAP if convert is operator.index else ""
    for position, element in enumerate(array.ravel()):
        try:
            if isinstance(element, (bool, np.bool_, str, bytes)):
                raise TypeError
            out[position] = convert(element)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"{name}: expected {expected}, got {element!r:.60} at position {position}{hint}"
            ) from None
    return out.reshape(array.shape)
