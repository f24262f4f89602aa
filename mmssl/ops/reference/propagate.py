"""Sparse propagation in plain PyTorch.

Legend: R rows, C columns, E edges of a view, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmssl.ops.reference.common import accumulation_dtype

if TYPE_CHECKING:
    from mmssl.graph import GraphView


def spmm_reference(view: GraphView, x: Tensor) -> Tensor:
    """``view.to_dense() @ x`` by gather and ordered scatter-add.

    Args:
        view: an (R, C) graph view.
        x: (C, D).

    Returns:
        (R, D), in the dtype of ``x``, accumulated in float32 for the half types.
    """
    acc = accumulation_dtype(x.dtype)
    col = view.col.long()
    gathered = x.to(acc)[col]  # (E, D)
    if view.value is not None:
        value = view.value if view.edge is None else view.value[view.edge]
        gathered = gathered * value.to(acc)[:, None]
    if view.col_scale is not None:
        gathered = gathered * view.col_scale.to(acc)[col][:, None]
    out = gathered.new_zeros(view.num_rows, x.shape[1]).index_add(0, view.row_of_edge(), gathered)
    if view.row_scale is not None:
        out = out * view.row_scale.to(acc)[:, None]
    return out.to(x.dtype)
