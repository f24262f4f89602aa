"""A linear layer on the package's own products, and the projection of features by one.

Legend: I items, d width of the features, D columns of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmssl.ops.product import affine, product

BLOCK_NUMBERS = 1 << 24
"""Numbers of the features that are converted at a time: 64 MB in float32."""


class Linear(nn.Linear):
    """``torch.nn.Linear`` whose products are :func:`mmssl.ops.product.product`."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) to (n, out), in the dtype of ``x``."""
        return affine(x, self.weight.to(x.dtype).T, self.bias.to(x.dtype))


def row_slices(count: int, width: int) -> Iterator[slice]:
    """Yield slices that cover ``range(count)``, each of about ``BLOCK_NUMBERS / width`` rows."""
    step = max(1, BLOCK_NUMBERS // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def project(layer: Linear, raw: Tensor, item: Tensor | None = None) -> Tensor:
    """Compute ``layer(raw[item])`` in the dtype of the layer, (n, D).

    Features of another dtype, which are float16 in a large file, are converted block by block,
    forward and backward, so that no float32 copy of them is held. The result is the same number by
    number; the gradient of the weight is summed block by block.

    Args:
        layer: A layer of d columns.
        raw: (I, d) features: constants, or parameters in the dtype of the layer.
        item: (n,) int64, which items; None means all.
    """
    if item is not None:
        # Trained features get their gradient in a tenth of the time that raw[item] takes.
        return cast(Tensor, layer(raw.index_select(0, item).to(layer.weight.dtype)))
    if raw.dtype == layer.weight.dtype:
        return cast(Tensor, layer(raw))
    return cast(Tensor, _ProjectBlocks.apply(raw, layer.weight, layer.bias))


class _ProjectBlocks(torch.autograd.Function):
    """``raw @ weight.T + bias`` of rows that are converted one block at a time."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(raw, weight)
        out = weight.new_empty(raw.shape[0], weight.shape[0])
        for part in row_slices(*raw.shape):
            out[part] = product(raw[part].to(weight.dtype), weight.T) + bias
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        raw, weight = ctx.saved_tensors
        of_weight = torch.zeros_like(weight)
        for part in row_slices(*raw.shape):
            of_weight += product(grad[part].T, raw[part].to(weight.dtype))
        return None, of_weight, grad.sum(0)
