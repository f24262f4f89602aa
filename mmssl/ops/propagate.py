"""Sparse propagation over a graph view: ``y = view @ x``.

Legend: R rows, C columns, E edges of a view, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._checks import check_view
from mmssl.ops._propagate_autograd import Operands, Propagate, Spmm
from mmssl.ops.dispatch import use_native
from mmssl.ops.reference import accumulation_dtype, spmm_reference

if TYPE_CHECKING:
    from mmssl.graph import GraphView


def spmm(view: GraphView, x: Tensor) -> Tensor:
    """``view.to_dense() @ x``, summed in float32 (float64 for float64).

    Gradients flow to ``x``, through the other index of the view and so without a sort or an atomic,
    and to ``view.value``; both can be differentiated again. The result has the same bits every
    time, on the CPU whatever the number of threads.

    Args:
        view: an (R, C) view of a graph, such as ``graph.ui``.
        x: (C, D) floating point, D >= 1, on the device of the view.

    Returns:
        (R, D) in the dtype of ``x``.

    Raises:
        InputError: ``x`` is not such a tensor, or a scale of the view requires a gradient.
        RuntimeError: backend "native" is required and there is no kernel for device and dtype.
    """
    _check(view, x)
    if not use_native("spmm", x.device.type, x.dtype):
        return spmm_reference(view, x)
    operands = _operands(view, x.dtype)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        y: Tensor = torch.ops.mmssl.spmm(x, *operands)
    else:
        y = Spmm.apply(operands, x, operands.value)
    return y


def propagate(views: Sequence[GraphView], xs: Sequence[Tensor]) -> list[Tensor]:
    """``[spmm(view, x) for view, x in zip(views, xs)]`` at once: the same bits, fewer launches.

    All products of one dtype are one parallel region on the CPU and one launch on a GPU (per 16
    products of like width), forward and backward, whatever graphs they belong to: the modality
    graphs of a model and both their directions. Only views whose ``value`` needs a gradient go one
    by one. Inputs that share a view are not laid side by side: reading 4 bytes of index less per
    row of 256 would not pay for the copies.

    Args:
        views: (R_n, C_n) views, one per input; a view may appear more than once.
        xs: (C_n, D_n) inputs.

    Returns:
        (R_n, D_n) results, in order.

    Raises:
        InputError: as :func:`spmm`, or the numbers of views and inputs differ.
        RuntimeError: backend "native" is required and there is no kernel for a device and dtype.
    """
    if len(views) != len(xs):
        raise InputError(f"xs: expected one tensor per view, {len(views)}, got {len(xs)}")
    out: dict[int, Tensor] = {}
    batches: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for n, (view, x) in enumerate(zip(views, xs, strict=True)):
        _check(view, x)
        trained = view.value is not None and view.value.requires_grad
        if trained or not use_native("propagate", x.device.type, x.dtype):
            out[n] = spmm(view, x)
        else:
            batches.setdefault((x.device, x.dtype), []).append(n)
    for batch in batches.values():
        products = _propagate_native([views[n] for n in batch], [xs[n] for n in batch])
        out.update(zip(batch, products, strict=True))
    return [out[n] for n in range(len(xs))]


def _propagate_native(views: list[GraphView], xs: list[Tensor]) -> Sequence[Tensor]:
    operands = zip(*(_operands(view, xs[0].dtype) for view in views), strict=True)
    lists = Operands(*(list(column) for column in operands))
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        products: Sequence[Tensor] = torch.ops.mmssl.propagate(xs, *lists)
    else:
        products = Propagate.apply(lists, *xs)
    return products


def _operands(view: GraphView, dtype: torch.dtype) -> Operands:
    acc = accumulation_dtype(dtype)
    return Operands(
        view.rowptr,
        view.col,
        view.t_rowptr,
        view.t_col,
        _as(view.row_scale, acc),
        _as(view.col_scale, acc),
        _as(view.value, acc),
        view.edge,
        view.t_edge,
    )


def _as(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return t if t is None or t.dtype == dtype else t.to(dtype)


def _check(view: GraphView, x: Tensor) -> None:
    check_view("view", view)
    if not isinstance(x, Tensor):
        raise InputError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 2 or x.shape[0] != view.num_cols or x.shape[1] == 0:
        raise InputError(
            f"x: expected shape ({view.num_cols}, D) with D >= 1, one row per column of the view, "
            f"got {tuple(x.shape)}"
        )
    if not x.dtype.is_floating_point:
        raise InputError(f"x: expected a floating point dtype, got {x.dtype}")
    if x.device != view.rowptr.device:
        raise InputError(f"x: expected device {view.rowptr.device}, the view's, got {x.device}")
    for name, scale in (("row_scale", view.row_scale), ("col_scale", view.col_scale)):
        if scale is not None and scale.requires_grad:
            raise InputError(
                f"view.{name}: expected a tensor without gradient (only x and view.value have "
                "one), got one that requires it"
            )
