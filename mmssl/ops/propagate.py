"""Sparse propagation over a graph view: ``y = view @ x``.

Legend: R rows, C columns, E edges of a view, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import GraphView, Normalization
from mmssl.ops._autograd import Operator, eager, one_by_one, under_torch_func
from mmssl.ops._cases import Bad, Sample, normal, sample_graph
from mmssl.ops._checks import (
    accumulation_dtype,
    check_device,
    check_row_count,
    check_tensor,
    check_view,
    is_cpu_half,
)
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native


def spmm(view: GraphView, x: Tensor) -> Tensor:
    """Compute ``view.to_dense() @ x``, summed in float32 (float64 for float64).

    Gradients flow to ``x``, through the other index of the view and so without a sort or an atomic,
    and to ``view.value``; both can be differentiated again. The result has the same bits every
    time, on the CPU for any number of threads.

    Args:
        view: an (R, C) view of a graph, such as ``graph.ui``.
        x: (C, D) floating point, D >= 1, on the device of the view.

    Returns:
        (R, D) in the dtype of ``x``.

    Raises:
        InputError: an argument does not match its description, or a scale of the view requires a
            gradient.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.
    """
    _check(view, x)
    if is_cpu_half(x):
        return spmm(view, x.float()).to(x.dtype)
    if not use_native("spmm", x.device.type, x.dtype):
        return spmm_reference(view, x)
    y: Tensor = _spmm(x, *_operands(view, x.dtype))
    return y


def spmm_added(view: GraphView, x: Tensor, base: Tensor, scale: float = 1.0) -> Tensor:
    """Compute ``scale * (base + spmm(view, x))`` in the launch of the product, on a GPU only.

    Not differentiable; for use inside an autograd function.

    Args:
        view: As in :func:`spmm`.
        x: (C, D), of a dtype with kernels.
        base: (R, D), of the same dtype.
        scale: A number.
    """
    out: Tensor = torch.ops.mmssl.spmm_added(x, *_operands(view, x.dtype), base, scale)
    return out


def propagate_packed(views: Sequence[GraphView], xs: Sequence[Tensor]) -> Tensor:
    """Compute :func:`propagate` with all results one below the other, on a GPU only.

    Not differentiable; for use inside an autograd function.

    Args:
        views: As in :func:`propagate`.
        xs: (C_n, D) each, of one width and one dtype with kernels.

    Returns:
        The sum of all R_n rows, D columns.
    """
    operands = zip(*(_operands(view, xs[0].dtype) for view in views), strict=True)
    out: Tensor = torch.ops.mmssl.propagate_packed(xs, *(list(column) for column in operands))
    return out


def spmm_reference(view: GraphView, x: Tensor) -> Tensor:
    """Compute :func:`spmm` in plain PyTorch by gather and ordered scatter-add."""
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


def propagate(views: Sequence[GraphView], xs: Sequence[Tensor]) -> list[Tensor]:
    """Compute ``[spmm(view, x) for view, x in zip(views, xs)]``: the same bits, fewer launches.

    All products of one dtype share one parallel region on the CPU and one launch on a GPU (per 16
    products of similar width), forward and backward, whatever graphs they belong to: the modality
    graphs of a model and both their directions. Only views whose ``value`` needs a gradient are
    computed one by one. Inputs that share a view are not concatenated: reading 4 bytes of index
    less per row of 256 would not pay for the copies.

    Args:
        views: (R_n, C_n) views, one per input; a view may appear more than once.
        xs: (C_n, D_n) inputs.

    Returns:
        (R_n, D_n) results, in order.

    Raises:
        InputError: as :func:`spmm`, or the numbers of views and inputs differ.
        RuntimeError: backend "native" is required and no kernel exists for a device and dtype.
    """
    _check_lists(views, xs)
    if any(map(is_cpu_half, xs)):
        wide = [x.float() if is_cpu_half(x) else x for x in xs]
        return [y.to(x.dtype) for y, x in zip(propagate(views, wide), xs, strict=True)]
    out: dict[int, Tensor] = {}
    batches: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for n, (view, x) in enumerate(zip(views, xs, strict=True)):
        _check(view, x)
        trained = view.value is not None and view.value.requires_grad
        alone = trained or under_torch_func()
        if alone or not use_native("propagate", x.device.type, x.dtype):
            out[n] = spmm(view, x)
        else:
            batches.setdefault((x.device, x.dtype), []).append(n)
    for batch in batches.values():
        operands = zip(*(_operands(views[n], xs[n].dtype) for n in batch), strict=True)
        products = _propagate([xs[n] for n in batch], *(list(column) for column in operands))
        out.update(zip(batch, products, strict=True))
    return [out[n] for n in range(len(xs))]


def propagate_reference(views: Sequence[GraphView], xs: Sequence[Tensor]) -> list[Tensor]:
    """Compute :func:`propagate` in plain PyTorch, one product after the other."""
    return [spmm_reference(view, x) for view, x in zip(views, xs, strict=True)]


def _check_lists(views: Any, xs: Any) -> None:
    for name, values, kind in (("views", views, "GraphViews"), ("xs", xs, "tensors")):
        if not isinstance(values, (list, tuple)):
            raise InputError(f"{name}: expected a list of {kind}, got {type(values).__name__}")
    if len(views) != len(xs):
        raise InputError(f"xs: expected one tensor per view, {len(views)}, got {len(xs)}")


def _check(view: GraphView, x: Tensor) -> None:
    check_view("view", view)
    check_tensor("x", x, dims="(C, D)")
    check_row_count("x", x, view.num_cols, "column of the view")
    check_device("x", x, view.device)
    for name, scale in (("row_scale", view.row_scale), ("col_scale", view.col_scale)):
        if scale is not None and scale.requires_grad:
            raise InputError(
                f"view.{name}: expected a tensor that does not require a gradient (only x and "
                "view.value get one), got one that does"
            )


# The inputs of the operators after x, or lists of them for a batch, are six arrays of the index
# (rowptr, col, t_rowptr, t_col, row_scale, col_scale), the values of the edges, and two maps from
# positions to values (edge, t_edge).
_VALUE = 7  # position of the values among all inputs


def _transposed(index: Sequence[Any], value: Any, maps: Sequence[Any]) -> tuple[Any, ...]:
    """Return the inputs that belong to the transposed views."""
    rowptr, col, t_rowptr, t_col, row_scale, col_scale = index
    edge, t_edge = maps
    return t_rowptr, t_col, rowptr, col, col_scale, row_scale, value, t_edge, edge


def _operands(view: GraphView, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    acc = accumulation_dtype(dtype)
    scales = [_as(t, acc) for t in (view.row_scale, view.col_scale, view.value)]
    return view.rowptr, view.col, view.t_rowptr, view.t_col, *scales, view.edge, view.t_edge


def _as(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return t if t is None or t.dtype == dtype else t.to(dtype)


def _spmm_fake(x: Tensor, rowptr: Tensor, *_: Any) -> Tensor:
    return x.new_empty(rowptr.shape[0] - 1, x.shape[1])


def _spmm_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # Index arrays bypass autograd, which would inspect each. x is kept only for the values' sake.
    ctx.index, ctx.maps = inputs[1:_VALUE], inputs[_VALUE + 1 :]
    ctx.save_for_backward(inputs[0] if ctx.needed[1] else None, inputs[_VALUE])


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, value = ctx.saved_tensors
    grad_x = grad_value = None
    if ctx.needed[0]:
        grad_x = _spmm(grad, *_transposed(ctx.index, value, ctx.maps))
    if ctx.needed[1]:
        grad_value = _value_grad(grad, x, *ctx.index, *ctx.maps)
    return grad_x, grad_value


def _spmm_vmap(
    call: Any, info: Any, in_dims: Sequence[Any], x: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    """A batch of tables is one wide table."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        return one_by_one(call, info, in_dims, x, *rest)
    wide = x.movedim(in_dims[0], 1)  # (C, B, D)
    y = call(wide.flatten(1), *rest)
    return y.unflatten(1, wide.shape[1:]), 1


def _value_grad_fake(grad: Tensor, x: Tensor, rowptr: Tensor, col: Tensor, *_: Any) -> Tensor:
    return x.new_empty(col.shape[0], dtype=accumulation_dtype(x.dtype))


def _value_grad_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.index, ctx.maps = inputs[2:8], inputs[8:]
    ctx.save_for_backward(*inputs[:2])


def _value_grad_backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The operator is bilinear: both get a product with ``up`` (E,) as the edge values."""
    grad, x = ctx.saved_tensors
    to_grad = _spmm(x, *ctx.index, up, *ctx.maps) if ctx.needed[0] else None
    to_x = _spmm(grad, *_transposed(ctx.index, up, ctx.maps)) if ctx.needed[1] else None
    return to_grad, to_x


def _propagate_fake(x: list[Tensor], rowptr: list[Tensor], *_: Any) -> list[Tensor]:
    return [t.new_empty(p.shape[0] - 1, t.shape[1]) for t, p in zip(x, rowptr, strict=True)]


def _packed_fake(x: list[Tensor], rowptr: list[Tensor], *_: Any) -> Tensor:
    return x[0].new_empty(sum(p.shape[0] - 1 for p in rowptr), x[0].shape[1])


def _propagate_save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)  # no product for a result without a gradient
    ctx.index, ctx.maps = inputs[1:_VALUE], inputs[_VALUE + 1 :]
    ctx.save_for_backward(*inputs[_VALUE])


def _propagate_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[list[Tensor | None]]:
    """Compute one batch of the transposed products, for the inputs that need a gradient."""
    wanted = [n for n, g in enumerate(grads) if ctx.needed[0][n] and g is not None]
    out: list[Tensor | None] = [None] * len(grads)
    if wanted:
        transposed = _transposed(ctx.index, ctx.saved_tensors, ctx.maps)
        picked = [[column[n] for n in wanted] for column in transposed]
        results = _propagate([grads[n] for n in wanted], *picked)
        for n, result in zip(wanted, results, strict=True):
            out[n] = result
    return (out,)


_SPMM = Operator(
    "spmm",
    fake=_spmm_fake,
    save=_spmm_save,
    backward=_spmm_backward,
    differentiable=(0, _VALUE),
    vmap=_spmm_vmap,
)
_VALUE_GRAD = Operator(
    "spmm_value_grad",
    fake=_value_grad_fake,
    save=_value_grad_save,
    backward=_value_grad_backward,
    differentiable=(0, 1),
)
_PROPAGATE = Operator(
    "propagate",
    fake=_propagate_fake,
    save=_propagate_save,
    backward=_propagate_backward,
    differentiable=(0,),
    list_input=True,
)
_spmm, _value_grad, _propagate = eager(_SPMM), eager(_VALUE_GRAD), eager(_PROPAGATE)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(
        label: str,
        users: int,
        items: int,
        edges: int,
        d: int,
        kind: Normalization = "none",
        valued: bool = False,
    ) -> Sample:
        view = sample_graph(users, items, edges, kind, valued).ui
        if view.value is not None:
            view = dataclasses.replace(view, value=view.value.to(accumulation_dtype(dtype)))
        (x,) = normal(dtype, d, (items, d))
        return Sample(label, {"view": view, "x": x}, tiny=edges < 50)

    yield sample("typical", 5, 4, 9, 3, "row_sqrt")
    yield sample("edge values", 5, 4, 9, 3, "sym", True)
    yield sample("binary", 5, 4, 9, 2)
    yield sample("one edge", 1, 1, 1, 1)
    yield sample("no edge", 3, 2, 0, 2, "sym")
    yield sample("no row", 0, 2, 0, 2)
    yield sample("odd sizes", 11, 7, 40, 17, "row", True)
    yield sample("large", 500, 300, 20_000, 33, "sym", True)
    strided = sample("strided", 5, 6, 12, 4, "row").arguments
    yield Sample("strided", {**strided, "x": strided["x"].T.contiguous().T})


def _batch_samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(label: str, users: int, items: int, edges: int, widths: Sequence[int]) -> Sample:
        graph = sample_graph(users, items, edges, "sym", False)
        other = sample_graph(users, items, edges // 2, "row", True)
        views = [graph.ui, graph.iu, other.ui, graph.ui][: len(widths)]
        shapes = [(view.num_cols, d) for view, d in zip(views, widths, strict=True)]
        xs = normal(dtype, edges, *shapes)
        return Sample(label, {"views": views, "xs": xs}, tiny=edges < 50)

    yield sample("typical", 5, 4, 9, (3, 2, 1, 3))
    yield sample("one product", 3, 2, 4, (2,))
    yield Sample("no product", {"views": [], "xs": []})
    yield sample("no edge", 3, 2, 0, (2, 1))
    yield sample("odd sizes", 11, 7, 40, (17, 1, 5))
    yield sample("large", 500, 300, 20_000, (33, 64, 5))


def _bad() -> Iterator[Bad]:
    x = torch.zeros(4, 3)
    yield Bad("view", None, "view: expected a GraphView, such as graph.ui, got NoneType")
    yield Bad("view", x, "view: expected a GraphView, such as graph.ui, got Tensor")
    yield Bad("x", [[1.0]], "x: expected a torch.Tensor, got list")
    yield Bad("x", x[0], r"x: expected shape \(C, D\), got \(3,\)")
    yield Bad("x", x[:3], r"x: expected shape \(4, D\) with D >= 1, .* got \(3, 3\)")
    yield Bad("x", x[:, :0], r"x: expected shape \(4, D\) with D >= 1, .* got \(4, 0\)")
    yield Bad("x", x.long(), "x: expected a floating point dtype, got torch.int64")
    yield Bad("x", x.to(torch.complex64), "x: expected a floating point dtype, got torch.complex64")
    yield Bad("x", x.to("meta"), "x: expected device cpu, got meta")
    view = sample_graph(5, 4, 9, "sym", False).ui
    for name in ("row_scale", "col_scale"):
        scale = getattr(view, name).clone().requires_grad_()
        trained = dataclasses.replace(view, **{name: scale})
        yield Bad("view", trained, rf"view\.{name}: expected a tensor that does not require")


def _batch_bad() -> Iterator[Bad]:
    yield Bad("views", None, "views: expected a list of GraphViews, got NoneType")
    yield Bad("views", [], "xs: expected one tensor per view, 0, got 4")
    yield Bad("views", [None] * 4, "view: expected a GraphView, such as graph.ui, got NoneType")
    yield Bad("xs", torch.zeros(4, 3), "xs: expected a list of tensors, got Tensor")
    yield Bad("xs", [torch.zeros(4, 3)], "xs: expected one tensor per view, 4, got 1")
    yield Bad("xs", [torch.zeros(3, 3)] * 4, r"x: expected shape \(4, D\) with D >= 1")


declare(
    Op(
        spmm,
        Contract(_samples, _bad, differentiable=("x", "view.value"), derivatives=2),
        Words("`diag(r) A diag(c) @ x`", "a sorted transpose per backward pass", page="propagate"),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_SPMM, _VALUE_GRAD),
        gpu_operators=(
            Operator("spmm_added", fake=_spmm_fake),
            Operator("propagate_packed", fake=_packed_fake),
        ),
        folder="propagate",
    )
)
declare(
    Op(
        propagate,
        Contract(_batch_samples, _batch_bad, differentiable=("xs",), derivatives=2),
        Words("`spmm` for several graphs and directions at once", "a launch per product"),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_PROPAGATE,),
    )
)
