"""A graph of six users, and tables and ids to go with it."""

from __future__ import annotations

import torch

from mmssl.graph import InteractionGraph

USERS, ITEMS, DIM, BATCH = 6, 5, 4, 3


def graph() -> InteractionGraph:
    user = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5])
    item = torch.tensor([0, 2, 1, 3, 4, 0, 2, 1])
    return InteractionGraph.from_edges(user, item, USERS, ITEMS)


def table(rows: int, columns: int = DIM, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-1, 1, rows * columns, dtype=torch.float64).view(rows, columns).to(dtype)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
