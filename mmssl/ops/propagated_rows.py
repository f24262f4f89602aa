"""Some rows of the mean of a LightGCN's layers.

Legend: U users, I items, D features, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.graph import InteractionGraph
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Sample
from mmssl.ops._checks import check_ids
from mmssl.ops._registry import Contract, Op, declare
from mmssl.ops.dispatch import use_native
from mmssl.ops.propagate_layers import (
    check_layers,
    gradients_fake,
    graph_operands,
    propagate_layers,
    propagate_layers_reference,
    transposed,
)
from mmssl.ops.propagated_bpr_loss import batch_samples


def propagated_rows(
    graph: InteractionGraph,
    user: Tensor,
    item: Tensor,
    users: Tensor,
    items: Tensor,
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    """Compute rows of :func:`mmssl.ops.propagate_layers`, and nothing for all rows that they spare.

    Equal to::

        of_user, of_item = ops.propagate_layers(graph, user, item, num_layers)
        return of_user[users], of_item[items]

    On the CPU the last layer is computed for these rows only, and the gradient is that of
    :func:`mmssl.ops.propagated_bpr_loss`; elsewhere the call is the expression above.

    The same bits every time, on the CPU for any number of threads. Double backward is not supported
    on the CPU.

    Args:
        graph: the graph, of any normalization; its edge values must not require a gradient.
        user: (U, D) floating point, D >= 1, on the device of the graph.
        item: (I, D), likewise.
        users: (n,) int64. Ids out of range are an error on the CPU; on a GPU they are not checked.
        items: (m,) int64, likewise.
        num_layers: L >= 0.

    Returns:
        (n, D) and (m, D) in the dtype of the inputs.

    Raises:
        InputError: an argument does not match its description, or an id is out of range.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.
    """
    check_layers(graph, user, item, num_layers, "mean")
    joined = num_layers > 0 and user.device.type != "cuda"
    native = joined and use_native("propagated_rows", user.device.type, user.dtype)
    for name, ids, table in (("users", users, user), ("items", items, item)):
        check_ids(name, ids, None if native else table.shape[0], user.device)
    if not joined:
        of_user, of_item = propagate_layers(graph, user, item, num_layers)
        return F.embedding(users, of_user), F.embedding(items, of_item)
    if not native:
        return propagated_rows_reference(graph, user, item, users, items, num_layers)
    operands = graph_operands(graph, user.dtype, num_layers)
    out: tuple[Tensor, Tensor] = _call(user, item, users, items, *operands)
    return out


def propagated_rows_reference(
    graph: InteractionGraph,
    user: Tensor,
    item: Tensor,
    users: Tensor,
    items: Tensor,
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`propagated_rows` in plain PyTorch."""
    of_user, of_item = propagate_layers_reference(graph, user, item, num_layers)
    return F.embedding(users, of_user), F.embedding(items, of_item)


_SAVED = 4  # the inputs begin with two tables and two arrays of ids


def _fake(user: Tensor, item: Tensor, users: Tensor, items: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(user.new_empty((ids.shape[0], user.shape[1])) for ids in (users, items))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_SAVED])
    ctx.rest = inputs[_SAVED:]  # nothing here needs a gradient, so it bypasses autograd


def _backward(ctx: Any, grad_user: Tensor, grad_item: Tensor) -> tuple[Tensor, Tensor]:
    rest = transposed(ctx.rest)
    grads: tuple[Tensor, Tensor] = _call_backward(grad_user, grad_item, *ctx.saved_tensors, *rest)
    return grads


_FORWARD = Operator(
    "propagated_rows", fake=_fake, save=_save, backward=_backward, differentiable=(0, 1)
)
_BACKWARD = Operator("propagated_rows_backward", fake=gradients_fake, refused="double backward")
_call, _call_backward = eager(_FORWARD), eager(_BACKWARD)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for label, arguments, tiny in batch_samples(dtype):
        items = torch.cat([arguments.pop("pos_items"), arguments.pop("neg_items")])
        yield Sample(label, {**arguments, "items": items}, tiny)
        if label == "typical":
            yield Sample("no item", {**arguments, "items": items[:0]}, tiny)


declare(
    Op(
        propagated_rows,
        Contract(_samples, differentiable=("user", "item")),
        None,
        dtypes={"cpu": (torch.float32, torch.float64)},
        operators=(_FORWARD, _BACKWARD),
        folder="propagate_layers",
    )
)
