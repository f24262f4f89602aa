"""All hops of a LightGCN over a graph and the mean of its layers, in one call.

Legend: U users, I items, E edges, D features, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph, Normalization
from mmssl.ops._autograd import Operator, eager, one_by_one
from mmssl.ops._cases import Bad, Sample, normal, sample_graph
from mmssl.ops._checks import (
    accumulation_dtype,
    check_device,
    check_integer,
    check_row_count,
    check_tensor,
    is_cpu_half,
    promoted,
)
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native
from mmssl.ops.propagate import spmm_reference

COMBINATIONS = ("mean", "sum")


def propagate_layers(
    graph: InteractionGraph, user: Tensor, item: Tensor, num_layers: int, combine: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Propagate both sides of a graph for L layers and combine the layers 0 to L of each side.

    Equal to::

        users, items = [user], [item]
        for _ in range(num_layers):  # both read the layer below
            below = users[-1], items[-1]
            users.append(ops.spmm(graph.ui, below[1]))
            items.append(ops.spmm(graph.iu, below[0]))
        out = tuple(sum(layers) * (1 / (num_layers + 1)) for layers in (users, items))

    The kernels add in another order, ``x + M (x + M (x + ...))`` for one hop M of both sides, and
    give the same bits every time, on the CPU for any number of threads. Half types are computed in
    float32 and rounded once, gradients as well. Gradients flow to ``user`` and ``item`` and can be
    differentiated any number of times; no layer is stored for the backward pass.

    Args:
        graph: the graph, of any normalization; its edge values must not require a gradient.
        user: (U, D) floating point, D >= 1, on the device of the graph.
        item: (I, D), likewise.
        num_layers: L >= 0; the results for 0 are copies of the inputs.
        combine: "mean" or "sum" of the layers.

    Returns:
        (U, D) and (I, D) in the dtype of the inputs.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.

    Source: He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for
    Recommendation", SIGIR 2020, equations 3 and 4.
    """
    user, item = promoted(user, item)
    check_layers(graph, user, item, num_layers, combine)
    if user.dtype == torch.bfloat16 or is_cpu_half(user):
        wide = propagate_layers(graph, user.float(), item.float(), num_layers, combine)
        return wide[0].to(user.dtype), wide[1].to(item.dtype)
    if not use_native("propagate_layers", user.device.type, user.dtype):
        return propagate_layers_reference(graph, user, item, num_layers, combine)
    if num_layers == 0:
        return user.clone(), item.clone()
    out: tuple[Tensor, Tensor] = _call(
        user, item, *graph_operands(graph, user.dtype, num_layers, combine)
    )
    return out


def propagate_layers_reference(
    graph: InteractionGraph, user: Tensor, item: Tensor, num_layers: int, combine: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Compute :func:`propagate_layers` in plain PyTorch, hop by hop."""
    acc = accumulation_dtype(user.dtype)
    layer = user, item
    user_sum, item_sum = user.to(acc), item.to(acc)
    for _ in range(num_layers):
        layer = spmm_reference(graph.ui, layer[1]), spmm_reference(graph.iu, layer[0])
        user_sum, item_sum = user_sum + layer[0].to(acc), item_sum + layer[1].to(acc)
    scale = _scale(num_layers, combine)
    return (user_sum * scale).to(user.dtype), (item_sum * scale).to(item.dtype)


def _scale(num_layers: int, combine: str) -> float:
    return 1.0 / (num_layers + 1) if combine == "mean" else 1.0


def check_layers(graph: Any, user: Any, item: Any, num_layers: Any, combine: Any) -> None:
    """Check the arguments of :func:`propagate_layers`."""
    if not isinstance(graph, InteractionGraph):
        raise InputError(f"graph: expected an InteractionGraph, got {type(graph).__name__}")
    if graph.value is not None and graph.value.requires_grad:
        raise InputError(
            "graph.value: expected a tensor that does not require a gradient (only user and item "
            "get one; spmm supports trained edge values), got one that does"
        )
    check_tensor("user", user, dims="(U, D)")
    check_row_count("user", user, graph.num_users, "user of the graph")
    check_device("user", user, graph.device)
    check_tensor("item", item, dims="(I, D)", like=user)
    if tuple(item.shape) != (graph.num_items, user.shape[1]):
        raise InputError(
            f"item: expected shape ({graph.num_items}, {user.shape[1]}), one row per item of the "
            f"graph and as wide as user, got {tuple(item.shape)}"
        )
    check_integer("num_layers", num_layers, 0)
    if combine not in COMBINATIONS:
        raise InputError(f"combine: expected {' or '.join(COMBINATIONS)}, got {combine!r:.60}")


_INDEX, _FACTORS = 2, 4  # position of the index among the inputs, of the four scales after it


def graph_operands(
    graph: InteractionGraph, dtype: torch.dtype, num_layers: int, combine: str = "mean"
) -> tuple[Any, ...]:
    """Return what the operators take after the tables: index, scales, values and the two numbers.

    Args:
        graph: the graph.
        dtype: that of the tables.
        num_layers: L.
        combine: "mean" or "sum" of the layers.
    """
    index, (ui, iu) = graph.index, (graph.ui, graph.iu)
    acc = accumulation_dtype(dtype)
    factors = (ui.row_scale, ui.col_scale, iu.row_scale, iu.col_scale, graph.value)
    return (
        index.rowptr,
        index.col,
        index.colptr,
        index.row,
        *(t if t is None or t.dtype == acc else t.to(acc) for t in factors),
        None if graph.value is None else index.perm,
        num_layers,
        _scale(num_layers, combine),
    )


def transposed(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the :func:`graph_operands` of the transposed matrix, which swaps the scales."""
    end = _FACTORS + 4
    ui_row, ui_col, iu_row, iu_col = operands[_FACTORS:end]
    return (*operands[:_FACTORS], iu_col, iu_row, ui_col, ui_row, *operands[end:])


def _fake(user: Tensor, item: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return user.new_empty(user.shape), item.new_empty(item.shape)


def gradients_fake(
    first: Tensor, second: Tensor, user: Tensor, item: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    """Return what a backward operator of two gradients does: tensors like the two tables."""
    return _fake(user, item)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.rest = inputs[_INDEX:]  # nothing here needs a gradient, so it bypasses autograd


def _backward(ctx: Any, grad_user: Tensor, grad_item: Tensor) -> tuple[Tensor, Tensor]:
    """The same sum over the powers of the transposed matrix."""
    out: tuple[Tensor, Tensor] = _call(grad_user, grad_item, *transposed(ctx.rest))
    return out


def _vmap(call: Any, info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Any, Any]:
    """A batch of tables is one wide table."""
    if any(dim is not None for dim in in_dims[_INDEX:]):
        return one_by_one(call, info, in_dims, *inputs)
    size = info.batch_size
    wide = [
        x.movedim(dim, 1) if dim is not None else x[:, None].expand(-1, size, -1)  # (rows, B, D)
        for x, dim in zip(inputs[:_INDEX], in_dims, strict=False)
    ]
    out = call(*(x.flatten(1) for x in wide), *inputs[_INDEX:])
    return tuple(t.unflatten(1, (size, -1)) for t in out), (1,) * len(out)


_OPERATOR = Operator(
    "propagate_layers",
    fake=_fake,
    save=_save,
    backward=_backward,
    differentiable=(0, 1),
    vmap=_vmap,
)
_call = eager(_OPERATOR)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(
        label: str,
        sizes: tuple[int, int, int, int],
        num_layers: int,
        kind: Normalization = "sym",
        valued: bool = False,
        combine: str = "mean",
    ) -> Sample:
        users, items, edges, d = sizes
        graph = sample_graph(users, items, edges, kind, valued)
        user, item = normal(dtype, d, (users, d), (items, d))
        arguments: dict[str, Any] = {"graph": graph, "user": user, "item": item}
        arguments |= {"num_layers": num_layers, "combine": combine}
        return Sample(label, arguments, tiny=edges < 50)

    yield sample("typical", (5, 4, 9, 3), 3)
    yield sample("no layer", (5, 4, 9, 3), 0)
    yield sample("one layer", (5, 4, 9, 2), 1, "row_sqrt")
    yield sample("sum", (5, 4, 9, 3), 2, combine="sum")
    yield sample("edge values", (5, 4, 9, 3), 2, "row", True)
    yield sample("no scale", (5, 4, 9, 2), 4, "none")
    yield sample("one edge", (1, 1, 1, 1), 2)
    yield sample("no edge", (3, 2, 0, 2), 3)
    yield sample("no user", (0, 2, 0, 2), 2)
    yield sample("odd sizes", (11, 7, 40, 17), 3, "sym", True)
    yield sample("large", (500, 300, 20_000, 33), 3)
    strided = sample("strided", (5, 6, 12, 4), 2).arguments
    transposed = {name: strided[name].T.contiguous().T for name in ("user", "item")}
    yield Sample("strided", {**strided, **transposed})


def _bad() -> Iterator[Bad]:
    user, item = torch.zeros(5, 3), torch.zeros(4, 3)
    yield Bad("graph", None, "graph: expected an InteractionGraph, got NoneType")
    yield Bad("graph", sample_graph(5, 4, 9).ui, "graph: expected an InteractionGraph, got GraphV")
    graph = sample_graph(5, 4, 9, "sym", True)
    assert graph.value is not None
    trained = InteractionGraph(graph.index, "sym", graph.value.clone().requires_grad_())
    yield Bad("graph", trained, "graph.value: expected a tensor that does not require a gradient")
    yield Bad("user", item, r"user: expected shape \(5, D\) with D >= 1, .* got \(4, 3\)")
    yield Bad("user", user[:, :0], r"user: expected shape \(5, D\) with D >= 1, .* got \(5, 0\)")
    yield Bad("user", user.to("meta"), "user: expected device cpu, got meta")
    yield Bad("item", user, r"item: expected shape \(4, 3\), .* got \(5, 3\)")
    yield Bad("item", item[:, :2], r"item: expected shape \(4, 3\), .* got \(4, 2\)")
    yield Bad("item", item.double(), "item: expected dtype torch.float32, like the other")
    for count in (-1, 1.5, True, None):
        yield Bad("num_layers", count, "num_layers: expected an integer >= 0, got")
    for combine in ("last", None, 1):
        yield Bad("combine", combine, f"combine: expected mean or sum, got {combine!r}")


declare(
    Op(
        propagate_layers,
        Contract(_samples, _bad, differentiable=("user", "item"), derivatives=2),
        Words(
            "all hops of a LightGCN and the mean of its layers",
            "the layers, once the next one is computed",
        ),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_OPERATOR,),
    )
)
