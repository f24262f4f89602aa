"""A linear layer on the package's own products."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.ops.product import product


class Linear(nn.Linear):
    """``torch.nn.Linear`` whose products are :func:`mmssl.ops.product.product`."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) to (n, out), in the dtype of ``x``."""
        return product(x, self.weight.to(x.dtype).T) + self.bias.to(x.dtype)
