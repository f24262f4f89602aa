"""Multi-head attention between the M views of one node, averaged over the queries.

Legend: M views, N nodes, D features, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Bad, Sample, normal
from mmssl.ops._checks import accumulation_dtype, check_shape, check_tensor, is_cpu_half, promoted
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native


def view_attention(query: Tensor, key: Tensor, view: Tensor, num_heads: int) -> Tensor:
    """Mix the views of every node by multi-head attention, averaged over the queries.

    Equal to::

        q, k = (t.view(M, N, H, D // H) for t in (query, key))
        score = (q[:, None] * k).sum(-1) / (D // H) ** 0.5  # (M queries, M, N, H)
        weight = score.softmax(1).mean(0)  # (M, N, H)
        out = (weight[..., None] * view[:, :, None]).sum(0).view(N, H * D)

    Gradients flow to all three tensors; double backward is not supported. The result has the same
    bits for any number of threads.

    Args:
        query: (M, N, D) floating point, already projected.
        key: (M, N, D), likewise.
        view: (M, N, D), the values that are mixed.
        num_heads: H, a divisor of D.

    Returns:
        (N, H D) in the dtype of ``view``.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.

    Source: Wei et al., "Multi-Modal Self-Supervised Learning for Recommendation", WWW 2023,
    equation 9. Only the mean over the queries is needed there, and it commutes with the mixing.
    """
    query, key, view = promoted(query, key, view)
    check_tensor("view", view, dims="(M, N, D)")
    for name, tensor in (("query", query), ("key", key)):
        check_tensor(name, tensor, dims="(M, N, D)", like=view)
        check_shape(name, tensor, view.shape)
    if type(num_heads) is not int or num_heads < 1 or view.shape[2] % num_heads:
        raise InputError(f"num_heads: expected a divisor of {view.shape[2]}, got {num_heads!r:.60}")
    if is_cpu_half(view):
        wide = view_attention(query.float(), key.float(), view.float(), num_heads)
        return wide.to(view.dtype)
    if not use_native("view_attention", view.device.type, view.dtype):
        return view_attention_reference(query, key, view, num_heads)
    out: Tensor = _call(query, key, view, num_heads)
    return out


def view_attention_reference(query: Tensor, key: Tensor, view: Tensor, num_heads: int) -> Tensor:
    """Compute :func:`view_attention` in plain PyTorch."""
    num_views, num_nodes, dim = view.shape
    acc = accumulation_dtype(view.dtype)
    heads = (num_views, num_nodes, num_heads, dim // num_heads)
    # Elementwise over the few pairs of views: a batched product of N H tiny matrices is slower.
    product = query.to(acc).reshape(heads)[:, None] * key.to(acc).reshape(heads)
    score = product.sum(-1) * heads[-1] ** -0.5  # (M queries, M, N, H)
    weight = score.softmax(1).mean(0)  # (M, N, H)
    mixed = (weight[..., None] * view.to(acc)[:, :, None]).sum(0)
    return mixed.reshape(num_nodes, num_heads * dim).to(view.dtype)


def _fake(query: Tensor, key: Tensor, view: Tensor, num_heads: int) -> Tensor:
    return view.new_empty(view.shape[1], num_heads * view.shape[2])


def _backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, view: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    shape = view.shape
    return query.new_empty(shape), key.new_empty(shape), view.new_empty(shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = _call_backward(grad, *ctx.saved_tensors, ctx.num_heads)
    return grads


_FORWARD = Operator(
    "view_attention", fake=_fake, save=_save, backward=_backward, differentiable=(0, 1, 2)
)
_BACKWARD = Operator("view_attention_backward", fake=_backward_fake, refused="double backward")
_call, _call_backward = eager(_FORWARD), eager(_BACKWARD)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(label: str, m: int, n: int, width: int, heads: int) -> Sample:
        (parts,) = normal(dtype, n, (3, m, n, width * heads))
        names = ("query", "key", "view")
        arguments: dict[str, Any] = dict(zip(names, parts, strict=True))
        return Sample(label, {**arguments, "num_heads": heads}, tiny=n < 20)

    yield sample("typical", 3, 4, 3, 2)
    yield sample("one view", 1, 2, 2, 1)
    yield sample("one node", 2, 1, 1, 1)
    yield sample("no node", 2, 0, 4, 2)
    yield sample("odd sizes", 5, 7, 19, 3)
    yield sample("large", 2, 1000, 16, 4)
    strided = sample("strided", 2, 6, 4, 2).arguments
    for name in ("query", "key", "view"):
        strided[name] = strided[name].transpose(0, 1).contiguous().transpose(0, 1)
    yield Sample("strided", strided)


def _bad() -> Iterator[Bad]:
    view = torch.zeros(3, 4, 6)
    yield Bad("view", view[0], r"view: expected shape \(M, N, D\), got \(4, 6\)")
    yield Bad("view", view.long(), "view: expected a floating point dtype, got torch.int64")
    for name in ("query", "key"):
        yield Bad(name, None, f"{name}: expected a torch.Tensor, got NoneType")
        yield Bad(name, view[:1], rf"{name}: expected shape \(3, 4, 6\), got \(1, 4, 6\)")
        yield Bad(name, view.double(), f"{name}: expected dtype torch.float32, like the other")
        yield Bad(name, view.to("meta"), f"{name}: expected device cpu, got meta")
    for value in (4, 0, -1, 2.0, True, None, "two"):
        yield Bad("num_heads", value, f"num_heads: expected a divisor of 6, got {value!r}")


declare(
    Op(
        view_attention,
        Contract(_samples, _bad, differentiable=("query", "key", "view")),
        Words("multi-head attention between the M views of a node", "per-head copies of the views"),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_FORWARD, _BACKWARD),
    )
)
