"""Multi-head attention between the M views of one node, averaged over the queries.

Legend: M views, N nodes, D features, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._autograd import once_differentiable
from mmssl.ops._checks import check_tensor
from mmssl.ops.dispatch import use_native
from mmssl.ops.reference import view_attention_reference


def view_attention(query: Tensor, key: Tensor, view: Tensor, num_heads: int) -> Tensor:
    """What every head makes of the full views of a node, the mean over the queries.

    Equal to::

        q, k = (t.view(M, N, H, D // H) for t in (query, key))
        score = (q[:, None] * k).sum(-1) / (D // H) ** 0.5  # (M queries, M, N, H)
        weight = score.softmax(1).mean(0)  # (M, N, H)
        out = (weight[..., None] * view[:, :, None]).sum(0).view(N, H * D)

    Gradients flow to all three and can't be differentiated again. The same bits come out for any
    number of threads.

    Args:
        query: (M, N, D) floating point, already projected.
        key: (M, N, D), likewise.
        view: (M, N, D), what is mixed.
        num_heads: H, a divisor of D.

    Returns:
        (N, H D) in the dtype of ``view``.

    Raises:
        InputError: an argument is not as above.
        RuntimeError: backend "native" is required and there is no kernel for device and dtype.

    Source: Wei et al., "Multi-Modal Self-Supervised Learning for Recommendation", WWW 2023,
    equation 9; only the mean over the queries is needed there, and it commutes with the mixing.
    """
    if not isinstance(view, Tensor) or view.dim() != 3 or not view.dtype.is_floating_point:
        got = (
            f"{tuple(view.shape)} {view.dtype}" if isinstance(view, Tensor) else type(view).__name__
        )
        raise InputError(f"view: expected an (M, N, D) floating point tensor, got {got}")
    for name, tensor in (("query", query), ("key", key)):
        check_tensor(name, tensor, dims="(M, N, D)", like=view)
        if tensor.shape != view.shape or tensor.dtype != view.dtype:
            raise InputError(
                f"{name}: expected {tuple(view.shape)} {view.dtype}, the view's, got "
                f"{tuple(tensor.shape)} {tensor.dtype}"
            )
    if type(num_heads) is not int or num_heads < 1 or view.shape[2] % num_heads:
        raise InputError(f"num_heads: expected a divisor of {view.shape[2]}, got {num_heads!r:.60}")
    if not use_native("view_attention", view.device.type, view.dtype):
        return view_attention_reference(query, key, view, num_heads)
    out: Tensor = _call(query, key, view, num_heads)
    return out


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


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.mmssl.view_attention_backward(grad, *ctx.saved_tensors, ctx.num_heads)
    return (*grads, None)


_call = once_differentiable(
    "view_attention", fake=_fake, save=_save, backward=_backward, backward_fake=_backward_fake
)
