"""The BPR loss of a batch on the mean of a LightGCN's layers, with the L2 of the batch's inputs.

Legend: U users, I items, B triples, D features, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmssl.graph import InteractionGraph
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Bad, Sample, make_strided, normal, sample_graph, sample_ids
from mmssl.ops._checks import check_triples, is_cpu_half, promoted
from mmssl.ops._registry import CPU_DTYPES, Contract, Op, Words, declare
from mmssl.ops.bpr import bpr_loss, bpr_loss_reference
from mmssl.ops.dispatch import use_native
from mmssl.ops.propagate_layers import (
    check_layers,
    gradients_fake,
    graph_operands,
    propagate_layers,
    propagate_layers_reference,
    transposed,
)


def propagated_bpr_loss(
    graph: InteractionGraph,
    user: Tensor,
    item: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    """Compute the BPR loss of a batch on propagated embeddings, and the L2 of the rows before.

    Equal to::

        final = ops.propagate_layers(graph, user, item, num_layers)
        loss = ops.bpr_loss(*final, users, pos_items, neg_items)
        rows = user[users], item[pos_items], item[neg_items]
        squares = sum(row.square().sum() for row in rows)

    which is a training step of LightGCN. On the CPU it is one node of the autograd graph. The last
    layer is computed for the rows of the batch only; backward, the first hop reads these rows only,
    and what the squares add to the gradient goes to the rows of the batch. Neither the results of
    the propagation nor their gradient ever exists for all rows, and no gradients are added table by
    table. On a GPU the call is the expression above.

    The same bits every time, on the CPU for any number of threads. Half types are computed in
    float32. Double backward is not supported on the CPU.

    Args:
        graph: the graph, of any normalization; its edge values must not require a gradient.
        user: (U, D) floating point, D >= 1, on the device of the graph.
        item: (I, D), likewise.
        users: (B,) int64. Ids out of range are an error on the CPU; on a GPU they are not checked.
        pos_items: (B,) int64, likewise.
        neg_items: (B,) int64, likewise.
        num_layers: L >= 0.

    Returns:
        The loss, a scalar, NaN for an empty batch, and the sum of squares; float32 for the half
        types, else the dtype of ``user``.

    Raises:
        InputError: an argument does not match its description, or an id is out of range.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.

    Source: He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for
    Recommendation", SIGIR 2020, equation 15.
    """
    user, item = promoted(user, item)
    check_layers(graph, user, item, num_layers, "mean")
    check_triples(users, pos_items, neg_items, user.device)
    if user.dtype == torch.bfloat16 or is_cpu_half(user):
        user, item = user.float(), item.float()
    batch = users, pos_items, neg_items
    if num_layers == 0 or not _joined_on(user.device):
        _, squares = bpr_loss(user, item, *batch, with_l2=True)
        return bpr_loss(*propagate_layers(graph, user, item, num_layers), *batch), squares
    if not use_native("propagated_bpr_loss", user.device.type, user.dtype):
        counts = user.shape[0], item.shape[0]
        check_triples(users, pos_items, neg_items, user.device, counts)  # -1 is a row in torch
        return propagated_bpr_loss_reference(graph, user, item, *batch, num_layers)
    loss, squares, *_ = _call(user, item, *batch, *graph_operands(graph, user.dtype, num_layers))
    return loss, squares


def _joined_on(device: torch.device) -> bool:
    """Whether one kernel computes all, instead of those of the ops that make up the definition."""
    return device.type != "cuda"


def propagated_bpr_loss_reference(
    graph: InteractionGraph,
    user: Tensor,
    item: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`propagated_bpr_loss` in plain PyTorch."""
    batch = users, pos_items, neg_items
    final = propagate_layers_reference(graph, user, item, num_layers)
    _, squares = bpr_loss_reference(user, item, *batch, with_l2=True)
    loss = bpr_loss_reference(*final, *batch)
    assert isinstance(loss, Tensor)
    return loss, squares


_TABLES, _BATCH = 2, 5  # the inputs begin with two tables and the three arrays of the batch


def _fake(user: Tensor, item: Tensor, users: Tensor, *_: Any) -> tuple[Tensor, ...]:
    batch, width = users.shape[0], user.shape[1]
    sizes: tuple[tuple[Any, ...], ...] = ((), (), (batch,), (batch, width), (2 * batch, width))
    return tuple(user.new_empty(size) for size in sizes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_BATCH], *output[2:])
    ctx.rest = inputs[_BATCH:]  # nothing here needs a gradient, so it bypasses autograd


def _backward(ctx: Any, grad_loss: Tensor, grad_squares: Tensor) -> tuple[Tensor, Tensor]:
    grads: tuple[Tensor, Tensor] = _call_backward(
        grad_loss, grad_squares, *ctx.saved_tensors, *transposed(ctx.rest)
    )
    return grads


_FORWARD = Operator(
    "propagated_bpr_loss", fake=_fake, save=_save, backward=_backward, differentiable=(0, 1),
    hidden=3,
)  # fmt: skip
_BACKWARD = Operator("propagated_bpr_loss_backward", fake=gradients_fake, refused="double backward")
_call, _call_backward = eager(_FORWARD), eager(_BACKWARD)


def batch_samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield valid arguments of :func:`propagated_bpr_loss`, the last ones not contiguous."""

    def sample(
        label: str,
        sizes: tuple[int, int, int, int],
        batch: int,
        num_layers: int,
        kind: Any = "sym",
        valued: bool = False,
    ) -> Sample:
        users, items, edges, d = sizes
        user, item = normal(dtype, d, (users, d), (items, d))
        arguments: dict[str, Any] = {"graph": sample_graph(users, items, edges, kind, valued)}
        arguments |= {"user": user, "item": item, "num_layers": num_layers}
        rows = {"users": users, "pos_items": items, "neg_items": items}
        arguments |= sample_ids(batch + d, {name: (n, batch) for name, n in rows.items()})
        return Sample(label, arguments, tiny=edges < 50)

    yield sample("typical", (5, 4, 9, 3), 4, 3)
    yield sample("no layer", (5, 4, 9, 3), 4, 0)
    yield sample("one layer", (5, 4, 9, 2), 6, 1, "row_sqrt")
    yield sample("edge values", (5, 4, 9, 3), 3, 2, "row", True)
    yield sample("no scale", (5, 4, 9, 2), 7, 4, "none")
    yield sample("one of each", (1, 1, 1, 1), 1, 2)
    yield sample("no edge", (3, 2, 0, 2), 4, 3)
    yield sample("no triple", (5, 4, 9, 3), 0, 2)
    yield sample("no user", (0, 2, 0, 2), 0, 2)
    yield sample("odd sizes", (11, 7, 40, 17), 9, 3, "sym", True)
    yield sample("large", (500, 300, 20_000, 33), 400, 3)
    strided = sample("strided", (5, 6, 12, 4), 6, 2).arguments
    yield Sample("strided", make_strided(strided))


def _bad() -> Iterator[Bad]:
    user, item, ids = torch.zeros(5, 3), torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    yield Bad("graph", None, "graph: expected an InteractionGraph, got NoneType")
    yield Bad("user", item, r"user: expected shape \(5, D\) with D >= 1, .* got \(4, 3\)")
    yield Bad("item", user, r"item: expected shape \(4, 3\), .* got \(5, 3\)")
    yield Bad("item", item.double(), "item: expected dtype torch.float32, like the other")
    for name in ("users", "pos_items", "neg_items"):
        yield Bad(name, [0, 1, 2], f"{name}: expected a torch.Tensor, got list")
        yield Bad(name, ids.int(), rf"{name}: expected shape \(B,\) int64, got \(4,\) torch.int32")
        yield Bad(name, ids.to("meta"), f"{name}: expected device cpu, got meta")
    yield Bad("neg_items", ids[:2], r"neg_items: expected shape \(4,\), got \(2,\)")
    yield Bad("num_layers", -1, "num_layers: expected an integer >= 0, got -1")


declare(
    Op(
        propagated_bpr_loss,
        Contract(batch_samples, _bad, differentiable=("user", "item")),
        Words(
            "BPR on the results of `propagate_layers`, and the L2 of its inputs",
            "the results and their gradient, except for the batch's rows",
            notes={"cuda": "`propagate_layers` and `bpr_loss`"},
            page="propagate_layers",
        ),
        dtypes={"cpu": CPU_DTYPES},
        operators=(_FORWARD, _BACKWARD),
        folder="propagate_layers",
    )
)
