"""LightGCN by hand in plain PyTorch, and with torch_geometric: what an epoch is compared with.

Imports numpy, scipy and torch only, and torch_geometric where it is asked for, so that a peer can
run in an environment of its own (serve.py). Without a layer LightGCN is matrix factorization.

Legend: U users, I items, D embedding dim, n train edges, B batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[Any]


class LightGCNPeer(ABC):
    """BPR with L2 on shuffled train edges, Adam; negatives drawn again until they are none.

    Args:
        problem: ``user`` and ``item`` (n,) train edges; ``user_table`` (U, D) and ``item_table``
            (I, D), where training starts; ``batches`` (k, 3, B), the triples of :meth:`check`;
            ``layers``, ``lr``, ``reg`` and ``batch_size``.
    """

    def __init__(self, problem: Mapping[str, Array]) -> None:
        self.user, self.item = problem["user"].astype(np.int64), problem["item"].astype(np.int64)
        self.num_users, self.num_items = len(problem["user_table"]), len(problem["item_table"])
        self.layers, self.batch_size = int(problem["layers"]), int(problem["batch_size"])
        self.reg, self.batches = float(problem["reg"]), problem["batches"]
        self.edges = np.sort(self.user * self.num_items + self.item)
        self.rng = np.random.default_rng(0)
        tables = np.concatenate([problem["user_table"], problem["item_table"]])
        self.table = torch.nn.Parameter(torch.from_numpy(tables.astype(np.float32)))
        self.optimizer = torch.optim.Adam([self.table], lr=float(problem["lr"]))

    @abstractmethod
    def loss(self, users: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Return BPR plus ``reg (|u|^2 + |pos|^2 + |neg|^2) / (2 B)`` of a batch of (B,) ids."""

    def step(self, users: Array, pos: Array, neg: Array) -> Tensor:
        """Train on a batch and return its loss."""
        loss = self.loss(*(torch.from_numpy(ids) for ids in (users, pos, neg)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def check(self) -> list[float]:
        """Train on the given batches and return the loss of each."""
        return [float(self.step(*batch)) for batch in self.batches]

    def run(self) -> None:
        """Pass once through the train edges."""
        order = self.rng.permutation(len(self.user))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            users = self.user[batch]
            self.step(users, self.item[batch], self.negatives(users))

    def negatives(self, users: Array) -> Array:
        """Draw an item for each user; up to three times again where it is a train item."""
        drawn = self.rng.integers(0, self.num_items, len(users))
        for _ in range(3):
            key = users * self.num_items + drawn
            at = np.minimum(np.searchsorted(self.edges, key), len(self.edges) - 1)
            again = self.rng.integers(0, self.num_items, len(users))
            drawn = np.where(self.edges[at] == key, again, drawn)
        return drawn


class PlainPyTorch(LightGCNPeer):
    """The symmetric matrix of both sides in torch's CSR, which is its own transpose in backward."""

    def __init__(self, problem: Mapping[str, Array]) -> None:
        super().__init__(problem)
        self.matrix = csr(normalized(self.user, self.item, self.num_users, self.num_items))

    def loss(self, users: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """See the base class."""
        final = mean_of_layers(self.table, self.layers, self.matrix)
        pos, neg = pos + self.num_users, neg + self.num_users
        squares = sum(self.table[ids].square().sum() for ids in (users, pos, neg))
        return bpr(final[users], final[pos], final[neg]) + self.reg * squares / 2 / len(users)


def normalized(user: Array, item: Array, num_users: int, num_items: int) -> scipy.sparse.csr_matrix:
    """Return the matrix (U + I, U + I) of both sides, divided by roots of both degrees."""
    one_side = scipy.sparse.csr_matrix((np.ones(len(user)), (user, item)), (num_users, num_items))
    both = scipy.sparse.bmat([[None, one_side], [one_side.T, None]]).tocsr()
    degree = np.asarray(both.sum(1)).ravel()
    scale = scipy.sparse.diags(np.where(degree > 0, np.maximum(degree, 1) ** -0.5, 0))
    return (scale @ both @ scale).tocsr()


def csr(matrix: scipy.sparse.csr_matrix) -> Tensor:
    """Return a float32 matrix of torch."""
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        torch.from_numpy(matrix.data.astype(np.float32)),
        matrix.shape,
    )


def mean_of_layers(table: Tensor, layers: int, matrix: Tensor) -> Tensor:
    """Return the mean of the table (U + I, D) and of its products with a symmetric matrix."""
    found = [table]
    for _ in range(layers):
        found.append(product(found[-1], matrix, matrix))
    return torch.stack(found).mean(0)


def bpr(user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    """Return the mean over rows (B, D)."""
    return F.softplus((user * neg).sum(1) - (user * pos).sum(1)).mean()


def product(x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
    """Return ``matrix @ x``, whose gradient is the product with the kept transpose."""
    found: Tensor = _Product.apply(x, matrix, transpose)
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transpose @ grad.contiguous(), None, None


class Geometric(LightGCNPeer):
    """``torch_geometric.nn.LightGCN`` with its own loss, on the graph as an edge index."""

    def __init__(self, problem: Mapping[str, Array]) -> None:
        super().__init__(problem)
        from torch_geometric.nn import LightGCN

        self.model = LightGCN(len(self.table), self.table.shape[1], self.layers)
        self.model.embedding.weight = self.table
        user = torch.from_numpy(self.user)
        item = torch.from_numpy(self.item + self.num_users)
        self.graph = torch.stack([torch.cat([user, item]), torch.cat([item, user])])

    def loss(self, users: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """See the base class."""
        pos, neg = pos + self.num_users, neg + self.num_users
        pairs = torch.stack([torch.cat([users, users]), torch.cat([pos, neg])])
        liked, other = self.model(self.graph, pairs).chunk(2)
        rows = torch.cat([users, pos, neg])
        loss: Tensor = self.model.recommendation_loss(liked, other, rows, self.reg / 2)
        return loss
