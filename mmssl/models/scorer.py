"""What ranks items: the interface between a trained model and evaluation, serving and reports.

There are two kinds: :class:`mmssl.models.embeddings.Embeddings`, whose scores are dot products, and
:class:`mmssl.models.item_weights.ItemWeights`, which score an item by the items of a user.

Legend: U users, I items, B requested users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mmssl.errors import InputError

if TYPE_CHECKING:
    from mmssl.graph import GraphView


class Scorer(Protocol):
    """Scores of every user and item, without a U x I matrix."""

    @property
    def num_users(self) -> int:
        """U."""

    @property
    def num_items(self) -> int:
        """I."""

    def best(
        self, users: Tensor, k: int, exclude: GraphView | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the best items of some users, ties by smaller id.

        Args:
            users: (B,) int64.
            k: Length of the lists.
            exclude: (U, I) view whose edges are never listed, such as the train interactions.

        Returns:
            Scores (B, k), highest first, and items (B, k) int64. A shorter list ends in -inf
            and -1.
        """

    def score(self, user: int, items: Tensor) -> Tensor:
        """Return the scores (n,) of items (n,) int64 for one user."""

    def check(self, num_users: int, num_items: int) -> None:
        """Require scores of U users and I items.

        Raises:
            InputError: A tensor has the shape of another number of users or items.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a run directory stores of it, by name."""

    def to(self, device: torch.device | str) -> Scorer:
        """Return the same scores on another device."""


def check_values(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Require finite numbers on a device; NaN and infinity leave a ranking undefined.

    Args:
        tensors: Tensors by the name in error messages, of at least one dimension.
        device: Where they must be.

    Raises:
        InputError: One of them is elsewhere, or has a value that is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise InputError(f"{name}: expected device {device}, got {tensor.device}")
        finite = torch.isfinite(tensor.unsqueeze(-1)).flatten(1).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise InputError(f"{name}: expected finite values, got NaN or infinity in row {row}")
