"""Bayesian personalised ranking: loss, L2 of the rows it touches, and one scatter for both.

Legend: U users, I items, B triples, D features.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._autograd import once_differentiable
from mmssl.ops.dispatch import use_native
from mmssl.ops.reference import accumulation_dtype, bpr_loss_reference


@overload
def bpr_loss(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    *,
    with_l2: Literal[False] = False,
) -> Tensor: ...


@overload
def bpr_loss(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    *,
    with_l2: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def bpr_loss(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    *,
    with_l2: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The BPR loss of a batch of triples, and on request the squares of the rows it reads.

    Equal to::

        user, pos, neg = user_emb[users], item_emb[pos_items], item_emb[neg_items]
        loss = -F.logsigmoid((user * pos).sum(1) - (user * neg).sum(1)).mean()
        l2 = user.square().sum() + pos.square().sum() + neg.square().sum()

    A row that stands in the batch several times counts as often. Gradients of both results come out
    of one scatter, dense, (U, D) and (I, D), each row summed in the order of the batch: the same
    bits every time, on the CPU for any number of threads. They can't be differentiated again.
    Half types are summed in float32. Under autocast the tables keep their dtype.

    Args:
        user_emb: (U, D) floating point.
        item_emb: (I, D), of the same dtype.
        users: (B,) int64. Ids out of range raise on the CPU; on a GPU they are not looked at, since
            that would wait for the device, and a kernel reads whatever is there.
        pos_items: (B,) int64.
        neg_items: (B,) int64.
        with_l2: whether to return the sum of squares as well; it costs nothing.

    Returns:
        The loss, a scalar, NaN for no triple; with ``with_l2`` the loss and the sum of squares.
        float32 for the half types, else the dtype of ``user_emb``.

    Raises:
        InputError: an argument is not as above.
        RuntimeError: ids out of range; or backend "native" is required and there is no kernel for
            device and dtype.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from
    Implicit Feedback", UAI 2009.
    """
    _check(user_emb, item_emb, users, pos_items, neg_items)
    if not use_native("bpr_loss", user_emb.device.type, user_emb.dtype):
        return bpr_loss_reference(user_emb, item_emb, users, pos_items, neg_items, with_l2=with_l2)
    loss, squares, _ = _call(user_emb, item_emb, users, pos_items, neg_items)
    return (loss, squares) if with_l2 else loss


def _check(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, pos_items: Tensor, neg_items: Tensor
) -> None:
    for name, table in (("user_emb", user_emb), ("item_emb", item_emb)):
        if not isinstance(table, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(table).__name__}")
        if table.dim() != 2:
            rows = "U" if name == "user_emb" else "I"
            raise InputError(f"{name}: expected shape ({rows}, D), got {tuple(table.shape)}")
    if not user_emb.dtype.is_floating_point:
        raise InputError(f"user_emb: expected a floating point dtype, got {user_emb.dtype}")
    _check_like("item_emb", item_emb, user_emb)
    if item_emb.shape[1] != user_emb.shape[1]:
        raise InputError(
            f"item_emb: expected shape (I, {user_emb.shape[1]}), D of user_emb, "
            f"got {tuple(item_emb.shape)}"
        )
    for name, ids in (("users", users), ("pos_items", pos_items), ("neg_items", neg_items)):
        if not isinstance(ids, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(ids).__name__}")
        if ids.dtype != torch.int64:
            raise InputError(f"{name}: expected dtype torch.int64, got {ids.dtype}")
        expected = "(B,)" if name == "users" else f"{tuple(users.shape)}, that of users"
        if ids.dim() != 1 or ids.shape != users.shape:
            raise InputError(f"{name}: expected shape {expected}, got {tuple(ids.shape)}")
        if ids.device != user_emb.device:
            raise InputError(
                f"{name}: expected device {user_emb.device}, that of user_emb, got {ids.device}"
            )


def _check_like(name: str, table: Tensor, other: Tensor) -> None:
    if table.dtype != other.dtype:
        raise InputError(
            f"{name}: expected dtype {other.dtype}, that of user_emb, got {table.dtype}"
        )
    if table.device != other.device:
        raise InputError(
            f"{name}: expected device {other.device}, that of user_emb, got {table.device}"
        )


def _fake(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, pos_items: Tensor, neg_items: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation_dtype(user_emb.dtype)
    loss, squares = (user_emb.new_empty((), dtype=acc) for _ in range(2))
    return loss, squares, user_emb.new_empty(users.shape[0], dtype=acc)


def _backward_fake(
    grad_loss: Tensor,
    grad_squares: Tensor,
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    slope: Tensor,
    user_order: Tensor | None,
    item_order: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(user_emb, memory_format=torch.contiguous_format),
        torch.empty_like(item_emb, memory_format=torch.contiguous_format),
    )


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    slope = output[2]
    ctx.mark_non_differentiable(slope)
    ctx.save_for_backward(*inputs, slope)


def _backward(ctx: Any, grad_loss: Tensor, grad_squares: Tensor, _: Tensor) -> tuple[Any, ...]:
    user_emb, item_emb, users, pos_items, neg_items, slope = ctx.saved_tensors
    user_order = item_order = None
    if user_emb.is_cuda:  # the kernel finds a row's places side by side; the CPU chains them
        user_order = torch.argsort(users, stable=True)
        item_order = torch.argsort(torch.cat([pos_items, neg_items]), stable=True)
    grads = torch.ops.mmssl.bpr_loss_backward(
        grad_loss,
        grad_squares,
        user_emb,
        item_emb,
        users,
        pos_items,
        neg_items,
        slope,
        user_order,
        item_order,
    )
    return (*grads, None, None, None)


_call = once_differentiable(
    "bpr_loss", fake=_fake, save=_save, backward=_backward, backward_fake=_backward_fake
)
