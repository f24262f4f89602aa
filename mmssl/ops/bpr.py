"""The BPR loss, the L2 of the rows it reads, and one scatter for the gradients of both.

Legend: U users, I items, B triples, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import _extension
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._batch_loss import OPERATORS as BATCH_OPERATORS
from mmssl.ops._cases import Bad, Sample
from mmssl.ops._checks import (
    accumulation_dtype,
    check_tables,
    check_triples,
    is_cpu_half,
    promoted,
)
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native


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
    """Compute the BPR loss of a batch of triples and, on request, the L2 of the rows it reads.

    Equal to::

        user, pos, neg = user_emb[users], item_emb[pos_items], item_emb[neg_items]
        loss = -F.logsigmoid((user * pos).sum(1) - (user * neg).sum(1)).mean()
        l2 = user.square().sum() + pos.square().sum() + neg.square().sum()

    A row that appears several times in the batch counts each time. The gradients of both results
    come from one scatter and are dense, (U, D) and (I, D). Each row is summed in the order of the
    batch: the same bits every time, on the CPU for any number of threads. Double backward is not
    supported. Half types are summed in float32. Under autocast the tables keep their dtype; mixed
    ones are promoted to the wider.

    Args:
        user_emb: (U, D) floating point.
        item_emb: (I, D), same dtype and device.
        users: (B,) int64. Ids out of range are an error on the CPU; on a GPU they are not
            checked, since that would wait for the device, and are read out of bounds.
        pos_items: (B,) int64, likewise.
        neg_items: (B,) int64, likewise.
        with_l2: whether to return the sum of squares as well, at no extra cost.

    Returns:
        The loss, a scalar, NaN for an empty batch; with ``with_l2`` the loss and the sum of
        squares. float32 for the half types, else the dtype of ``user_emb``.

    Raises:
        InputError: an argument does not match its description, or an id is out of range.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from
    Implicit Feedback", UAI 2009.
    """
    user_emb, item_emb = promoted(user_emb, item_emb)
    check_tables(user_emb, item_emb)
    check_triples(users, pos_items, neg_items, user_emb.device)
    if is_cpu_half(user_emb):
        user_emb, item_emb = user_emb.float(), item_emb.float()
    if not use_native("bpr_loss", user_emb.device.type, user_emb.dtype):
        counts = user_emb.shape[0], item_emb.shape[0]
        check_triples(users, pos_items, neg_items, user_emb.device, counts)  # -1 is a row in torch
        return bpr_loss_reference(user_emb, item_emb, users, pos_items, neg_items, with_l2=with_l2)
    loss, squares, *_ = _call(user_emb, item_emb, users, pos_items, neg_items)
    return (loss, squares) if with_l2 else loss


def bpr_loss_reference(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    *,
    with_l2: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute :func:`bpr_loss` in plain PyTorch, with three gathered copies of the rows."""
    acc = accumulation_dtype(user_emb.dtype)
    rows = [user_emb[users], item_emb[pos_items], item_emb[neg_items]]
    user, pos, neg = (row.to(acc) for row in rows)
    loss = -F.logsigmoid((user * pos).sum(1) - (user * neg).sum(1)).mean()
    if not with_l2:
        return loss
    return loss, user.square().sum() + pos.square().sum() + neg.square().sum()


def _fake(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, pos_items: Tensor, neg_items: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation_dtype(user_emb.dtype)
    loss, squares = (user_emb.new_empty((), dtype=acc) for _ in range(2))
    return loss, squares, user_emb.new_empty(users.shape[0], dtype=acc)


def _backward_fake(
    grad_loss: Tensor, grad_squares: Tensor, user_emb: Tensor, item_emb: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(user_emb, memory_format=torch.contiguous_format),
        torch.empty_like(item_emb, memory_format=torch.contiguous_format),
    )


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[2])  # one slope per triple


def _backward(ctx: Any, grad_loss: Tensor, grad_squares: Tensor) -> tuple[Tensor, Tensor]:
    inputs = ctx.saved_tensors
    users, pos_items, neg_items = inputs[2:5]
    user_order = item_order = None
    if _extension.on_gpu(users):  # the kernel of the CPU links the positions of a row itself
        user_order = torch.argsort(users, stable=True)
        item_order = torch.argsort(torch.cat([pos_items, neg_items]), stable=True)
    grads: tuple[Tensor, Tensor] = _call_backward(
        grad_loss, grad_squares, *inputs, user_order, item_order
    )
    return grads


_FORWARD = Operator(
    "bpr_loss", fake=_fake, save=_save, backward=_backward, differentiable=(0, 1), hidden=1
)
_BACKWARD = Operator("bpr_loss_backward", fake=_backward_fake, refused="double backward")
_call, _call_backward = eager(_FORWARD), eager(_BACKWARD)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(
        label: str, batch: int, d: int, users: int = 5, items: int = 4, **options: Any
    ) -> Sample:
        generator = torch.Generator().manual_seed(batch + d)
        tables = [torch.randn(n, d, generator=generator).to(dtype) for n in (users, items)]
        ids = [torch.randint(n, (batch,), generator=generator) for n in (users, items, items)]
        names = ("user_emb", "item_emb", "users", "pos_items", "neg_items")
        arguments = dict(zip(names, (*tables, *ids), strict=True))
        return Sample(label, {**arguments, **options}, tiny=batch < 20)

    yield sample("typical", 7, 3, with_l2=True)
    yield sample("loss only", 7, 3)
    yield sample("one triple", 1, 1, 1, 1, with_l2=True)
    yield sample("no triple", 0, 3, with_l2=True)
    yield sample("odd sizes", 11, 17, 3, 7, with_l2=True)
    yield sample("large", 3000, 33, 2500, 1500, with_l2=True)
    strided = sample("strided", 6, 4, with_l2=True).arguments
    strided = {
        k: v.repeat(2, *[1] * (v.dim() - 1))[::2] if k != "with_l2" else v
        for k, v in strided.items()
    }
    yield Sample("strided", {**strided, "user_emb": strided["user_emb"].T.contiguous().T})


def _bad() -> Iterator[Bad]:
    table, ids = torch.zeros(5, 3), torch.zeros(7, dtype=torch.int64)
    yield Bad("user_emb", [1.0], "user_emb: expected a torch.Tensor, got list")
    yield Bad("user_emb", table[0], r"user_emb: expected shape \(U, D\), got \(3,\)")
    yield Bad("user_emb", table.int(), "user_emb: expected a floating point dtype, got torch.int32")
    yield Bad("item_emb", table[0], r"item_emb: expected shape \(I, D\), got \(3,\)")
    yield Bad("item_emb", table.double(), "item_emb: expected dtype torch.float32, like the other")
    yield Bad("item_emb", table[:, :2], r"item_emb: expected shape \(5, 3\), got \(5, 2\)")
    yield Bad("item_emb", table.to("meta"), "item_emb: expected device cpu, got meta")
    for name in ("users", "pos_items", "neg_items"):
        yield Bad(name, [0, 1, 2], f"{name}: expected a torch.Tensor, got list")
        yield Bad(name, ids.int(), rf"{name}: expected shape \(B,\) int64, got \(7,\) torch.int32")
        yield Bad(name, ids[None], rf"{name}: expected shape \(B,\) int64, got \(1, 7\)")
        yield Bad(name, ids.to("meta"), f"{name}: expected device cpu, got meta")
    yield Bad("neg_items", ids[:2], r"neg_items: expected shape \(7,\), got \(2,\)")


declare(
    Op(
        bpr_loss,
        Contract(_samples, _bad, differentiable=("user_emb", "item_emb")),
        Words("BPR and the L2 of its rows", "three gathered copies"),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_FORWARD, _BACKWARD),
        gpu_operators=BATCH_OPERATORS,
        folder="bpr",
    )
)
