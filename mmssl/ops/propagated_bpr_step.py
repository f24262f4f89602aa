"""A step of Adam on the loss of ``propagated_bpr_loss``, as one call.

Legend: U users, I items, B triples, D features, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Sample, normal
from mmssl.ops._checks import check_integer, check_shape, check_tensor, check_triples
from mmssl.ops._registry import Contract, Op, declare
from mmssl.ops.dispatch import use_native
from mmssl.ops.propagate_layers import check_layers, graph_operands
from mmssl.ops.propagated_bpr_loss import batch_samples, propagated_bpr_loss


class AdamRates(NamedTuple):
    """The numbers of a step of Adam."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int
    """Of this step, from 1."""

    @property
    def size(self) -> float:
        """The learning rate with the bias correction of the first moment."""
        return self.lr / (1 - self.beta1**self.step)

    @property
    def root(self) -> float:
        """What corrects the square root of the second moment."""
        return 1 / math.sqrt(1 - self.beta2**self.step)


def propagated_bpr_step(
    graph: InteractionGraph,
    user: Tensor,
    item: Tensor,
    user_mean: Tensor,
    item_mean: Tensor,
    user_square: Tensor,
    item_square: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    num_layers: int,
    reg: float,
    rates: AdamRates,
) -> Tensor:
    """Take a step of Adam on the BPR loss of a batch and its L2; update the six tables in place.

    Equal to these lines with ``torch.optim.Adam``, whose moments are the last four tables::

        loss, squares = ops.propagated_bpr_loss(
            graph, user, item, users, pos_items, neg_items, num_layers
        )
        (loss + reg * squares / (2 * len(users))).backward()
        optimizer.step()

    On the CPU it is one kernel. Neither gradients nor results exist for all rows: the last hop of
    the gradient updates a row as soon as it is summed, and with several threads each keeps its
    columns of all six tables.

    The same bits every time, on the CPU for any number of threads.

    Args:
        graph: the graph, of any normalization.
        user: (U, D) floating point, contiguous, D >= 1, on the device of the graph.
        item: (I, D), likewise.
        user_mean: (U, D), the first moment of ``user``, likewise.
        item_mean: (I, D), the first moment of ``item``, likewise.
        user_square: (U, D), the second moment of ``user``, likewise.
        item_square: (I, D), the second moment of ``item``, likewise.
        users: (B,) int64. Ids out of range are an error on the CPU, before any change; on a GPU
            they are not checked.
        pos_items: (B,) int64, likewise.
        neg_items: (B,) int64, likewise.
        num_layers: L >= 0.
        reg: weight of the L2.
        rates: of Adam.

    Returns:
        (2,) the loss and its L2 before the step, ``reg * squares / (2 B)``.

    Raises:
        InputError: an argument does not match its description, or an id is out of range.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.

    Source: Kingma, Ba: "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """
    check_layers(graph, user, item, num_layers, "mean")
    tables = {"user": user, "user_mean": user_mean, "user_square": user_square}
    tables |= {"item": item, "item_mean": item_mean, "item_square": item_square}
    for name, table in tables.items():
        check_tensor(name, table, dims="(N, D)", like=user)
        check_shape(name, table, (user if name.startswith("user") else item).shape)
        if not table.is_contiguous():
            raise InputError(f"{name}: expected a contiguous tensor, got strides {table.stride()}")
    check_triples(users, pos_items, neg_items, user.device)
    check_integer("rates.step", rates.step, 1)
    batch = users, pos_items, neg_items
    moments = user_mean, item_mean, user_square, item_square
    if num_layers == 0 or not use_native("propagated_bpr_step", user.device.type, user.dtype):
        return propagated_bpr_step_reference(
            graph, user, item, *moments, *batch, num_layers, reg, rates
        )
    operands = graph_operands(graph, user.dtype, num_layers)
    numbers = reg, rates.size, rates.root, rates.beta1, rates.beta2, rates.eps
    with torch.no_grad():
        found: Tensor = _call(user, item, *moments, *batch, *operands, *numbers)
    return found


def propagated_bpr_step_reference(
    graph: InteractionGraph,
    user: Tensor,
    item: Tensor,
    user_mean: Tensor,
    item_mean: Tensor,
    user_square: Tensor,
    item_square: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    num_layers: int,
    reg: float,
    rates: AdamRates,
) -> Tensor:
    """Compute :func:`propagated_bpr_step` by the loss, its gradient and Adam, one after another."""
    leaves = user.detach().requires_grad_(), item.detach().requires_grad_()
    with torch.enable_grad():
        loss, squares = propagated_bpr_loss(graph, *leaves, users, pos_items, neg_items, num_layers)
        l2 = reg * 0.5 * squares / len(users)
        grads = torch.autograd.grad(loss + l2, leaves)
    with torch.no_grad():
        update_by_adam(
            (user, item), grads, (user_mean, item_mean), (user_square, item_square), rates
        )
    return torch.stack([loss, l2]).detach()


def update_by_adam(
    tables: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    rates: AdamRates,
) -> None:
    """Update tables and moments in place by Adam, in plain PyTorch."""
    for table, grad, mean, square in zip(tables, grads, means, squares, strict=True):
        mean.lerp_(grad, 1 - rates.beta1)
        square.mul_(rates.beta2).addcmul_(grad, grad, value=1 - rates.beta2)
        table.addcdiv_(mean, (square.sqrt() * rates.root).add_(rates.eps), value=-rates.size)


def _fake(user: Tensor, *_: Any) -> Tensor:
    return user.new_empty((2,))


_MOMENTS = "user_mean", "item_mean", "user_square", "item_square"
_OPERATOR = Operator("propagated_bpr_step", fake=_fake)
_call = eager(_OPERATOR)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for number, (label, arguments, tiny) in enumerate(batch_samples(dtype)):
        tables = arguments["user"], arguments["item"]
        if label == "strided" or not len(arguments["users"]):
            continue  # the tables have to be contiguous, and a step needs a triple
        noise = normal(dtype, number, *(table.shape for table in 2 * tables))
        moments = dict(
            zip(_MOMENTS, [*noise[:2], *(drawn.square() for drawn in noise[2:])], strict=True)
        )
        rates = AdamRates(0.05, 0.9, 0.99, 1e-8, 1 + number)  # the first one is of the first step
        yield Sample(label, {**arguments, **moments, "reg": 0.3, "rates": rates}, tiny)


declare(
    Op(
        propagated_bpr_step,
        Contract(
            _samples,
            derivatives=0,
            updated=("user", "item", *_MOMENTS),
        ),
        None,
        dtypes={"cpu": (torch.float32, torch.float64)},
        operators=(_OPERATOR,),
        folder="propagate_layers",
    )
)
