"""The type that the forward pass of a model with user and item vectors returns.

Legend: U users, I items, D embedding dim, B requested users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.graph import GraphView


class Embeddings(NamedTuple):
    """Vectors of every user and item; scores are their dot products.

    It is a :class:`mmssl.models.scorer.Scorer`.
    """

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)

    @property
    def num_users(self) -> int:
        """U."""
        return self.user.shape[0]

    @property
    def num_items(self) -> int:
        """I."""
        return self.item.shape[0]

    def best(
        self, users: Tensor, k: int, exclude: GraphView | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores and items (B, k) of the best items of some users (B,)."""
        return ops.masked_topk(self.user, self.item, k, users=users, exclude=exclude)

    def score(self, user: int, items: Tensor) -> Tensor:
        """Return the scores (n,) of items (n,) for one user."""
        # Elementwise, since starting BLAS threads takes longer than the few rows of a request.
        return (self.item[items] * self.user[user]).sum(1)

    def check(self, num_users: int, num_items: int) -> None:
        """Require vectors of U users and I items.

        Raises:
            InputError: A table has another shape.
        """
        for name, table, rows in (
            ("user_emb", self.user, num_users),
            ("item_emb", self.item, num_items),
        ):
            if table.dim() != 2 or table.shape[0] != rows:
                raise InputError(f"{name}: expected shape ({rows}, D), got {tuple(table.shape)}")

    def tensors(self) -> dict[str, Tensor]:
        """Return both tables by the names that they have in a run directory."""
        return {"embedding.user": self.user, "embedding.item": self.item}

    def to(self, device: torch.device | str) -> Embeddings:
        """Return the same vectors on another device."""
        return Embeddings(self.user.to(device), self.item.to(device))


def stored_embeddings(
    tensors: Mapping[str, Tensor], where: object, dataset: InteractionDataset | None = None
) -> Embeddings:
    """Restore what :meth:`Embeddings.tensors` returned.

    Args:
        tensors: Content of a file.
        where: Name of the file; begins every error message.
        dataset: The data that they must fit, if known.

    Raises:
        InputError: No tables of one width and dtype, or not those of the data set's users and
            items.
    """
    tables = []
    for name in ("embedding.user", "embedding.item"):
        table = tensors.get(name)
        if table is None or table.dim() != 2 or not table.dtype.is_floating_point:
            raise InputError(f"{where}: expected a matrix {name} of real numbers, got none")
        tables.append(table)
    user, item = tables
    if user.shape[1] != item.shape[1] or user.dtype != item.dtype:
        raise InputError(
            f"{where}: expected two tables of one width and type, got {tuple(user.shape)} "
            f"{user.dtype} and {tuple(item.shape)} {item.dtype}"
        )
    if dataset is not None:
        counts = (("user", user, dataset.num_users), ("item", item, dataset.num_items))
        for name, table, rows in counts:
            if table.shape[0] != rows:
                raise InputError(
                    f"{where}: expected {rows} rows in embedding.{name}, the number in the data "
                    f"set, got {table.shape[0]}"
                )
    return Embeddings(user, item)
