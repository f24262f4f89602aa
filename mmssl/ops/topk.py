"""Score, mask and select in one pass: every user's best items without a U x I matrix.

Legend: U users, I items, B users to rank for, D features, E edges of a view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops import _extension
from mmssl.ops._checks import check_view
from mmssl.ops.dispatch import requested_backend, use_native
from mmssl.ops.reference import accumulation_dtype, masked_topk_reference

if TYPE_CHECKING:
    from mmssl.graph import GraphView

# The CUDA kernel sorts a list in shared memory, which longer ones would not fit (kMaxTopk in
# csrc/ops/topk/kernels.cuh); they are ranked by the reference.
_MAX_CUDA_K = 1024


def masked_topk(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    *,
    users: Tensor | None = None,
    exclude: GraphView | None = None,
) -> tuple[Tensor, Tensor]:
    """``(user_emb[users] @ item_emb.T).masked_fill(excluded, -inf).topk(k)``, ties by smaller id.

    The (B, I) scores are never formed. The lists have the same bits every time, on the CPU whatever
    the number of threads and whoever else is ranked. They carry no gradient; where scores need one,
    ``(user_emb[users][:, None] * item_emb[items]).sum(-1)`` has it.

    Args:
        user_emb: (U, D) floating point.
        item_emb: (I, D), same dtype and device.
        k: Length of the lists, at least 0; may exceed I. Beyond 1024 a GPU takes the reference.
        users: (B,) int64 rows of ``user_emb`` to rank for, on the same device; all of them by
            default. On a GPU a row out of range is not looked for (that would wait for the device)
            and gets an empty list.
        exclude: (U, I) view whose edges are never returned (the train interactions).

    Returns:
        scores (B, k), highest first, float32 for the half types, and items (B, k) int64. Where
        fewer than k items are left, the tail is -inf and -1. NaN and -inf are never returned.

    Raises:
        InputError: an argument is not as described.
        RuntimeError: backend "native" is required and there is no kernel for device and dtype.
    """
    _check(user_emb, item_emb, k, users, exclude)
    user_emb, item_emb = user_emb.detach(), item_emb.detach()
    native = use_native("masked_topk", user_emb.device.type, user_emb.dtype)
    if native and user_emb.device.type == "cuda" and k > _MAX_CUDA_K:
        if requested_backend() == "native":
            raise RuntimeError(
                "mmssl.ops.masked_topk: backend 'native' is required, but the CUDA kernel makes "
                f"lists of at most {_MAX_CUDA_K}, got k = {k}"
            )
        native = False
    if not native:
        return masked_topk_reference(user_emb, item_emb, k, users=users, exclude=exclude)
    rowptr, col = (None, None) if exclude is None else (exclude.rowptr, exclude.col)
    scores, items = torch.ops.mmssl.masked_topk(user_emb, item_emb, k, users, rowptr, col)
    return scores, items


def _check(
    user_emb: Tensor, item_emb: Tensor, k: int, users: Tensor | None, exclude: GraphView | None
) -> None:
    for name, table in (("user_emb", user_emb), ("item_emb", item_emb)):
        if not isinstance(table, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(table).__name__}")
        if table.dim() != 2:
            raise InputError(f"{name}: expected shape (rows, D), got {tuple(table.shape)}")
    if not user_emb.dtype.is_floating_point:
        raise InputError(f"user_emb: expected a floating point dtype, got {user_emb.dtype}")
    if item_emb.shape[1] != user_emb.shape[1]:
        raise InputError(
            f"item_emb: expected shape (I, {user_emb.shape[1]}), got {tuple(item_emb.shape)}"
        )
    if item_emb.dtype != user_emb.dtype:
        raise InputError(f"item_emb: expected {user_emb.dtype} as user_emb, got {item_emb.dtype}")
    if item_emb.device != user_emb.device:
        raise InputError(
            f"item_emb: expected device {user_emb.device} as user_emb, got {item_emb.device}"
        )
    if not isinstance(k, int) or isinstance(k, bool) or k < 0:
        raise InputError(f"k: expected an integer of at least 0, got {k!r}")
    if users is not None:
        _check_users(users, user_emb)
    if exclude is not None:
        check_view("exclude", exclude)
        expected = (user_emb.shape[0], item_emb.shape[0])
        if (exclude.num_rows, exclude.num_cols) != expected:
            got = (exclude.num_rows, exclude.num_cols)
            raise InputError(f"exclude: expected a view of shape {expected}, got {got}")
        if exclude.device != user_emb.device:
            raise InputError(f"exclude: expected device {user_emb.device}, got {exclude.device}")


def _check_users(users: Tensor, user_emb: Tensor) -> None:
    if not isinstance(users, Tensor):
        raise InputError(f"users: expected a torch.Tensor or None, got {type(users).__name__}")
    if users.dim() != 1 or users.dtype != torch.int64:
        raise InputError(
            f"users: expected shape (B,) int64, got {tuple(users.shape)} {users.dtype}"
        )
    if users.device != user_emb.device:
        raise InputError(f"users: expected device {user_emb.device}, got {users.device}")
    # Reading values would break a compiled graph and stall a GPU; the CPU kernel checks them too.
    if users.device.type == "cpu" and users.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in torch.aminmax(users))
        if low < 0 or high >= user_emb.shape[0]:
            raise InputError(
                f"users: expected rows in [0, {user_emb.shape[0]}), got {low if low < 0 else high}"
            )


def _masked_topk_fake(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    users: Tensor | None,
    rowptr: Tensor | None,
    col: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch = (user_emb if users is None else users).shape[0]
    scores = user_emb.new_empty(batch, k, dtype=accumulation_dtype(user_emb.dtype))
    return scores, user_emb.new_empty(batch, k, dtype=torch.int64)


if _extension.ops is not None:
    torch.library.register_fake("mmssl::masked_topk")(_masked_topk_fake)
