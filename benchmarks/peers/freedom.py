"""FREEDOM by hand in plain PyTorch, once with everything kept that can be, once as MMRec computes.

``AsMMRec`` is written from a description of MMRec's operations, not from its text: products with
COO matrices that are not coalesced, features that are trained, a Python loop over the negatives,
and in the evaluation a forward for every 4,096 users and a Python loop over the ranked lists. It is
not MMRec, which is a repository and no package that could be installed.

Legend: U users, I items, D embedding dim, d width of a modality, n train edges, B batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.lightgcn import LightGCNPeer, bpr, csr, mean_of_layers, normalized, product

Array = npt.NDArray[Any]
CUTOFFS = (5, 10, 20, 50)
USERS_AT_ONCE = 4096


class PlainPyTorch(LightGCNPeer):
    """CSR matrices with kept transposes, constant features, everything else on whole arrays.

    Args:
        problem: As for LightGCNPeer, and ``kept`` (2, k), the train edges that :meth:`check`
            propagates over; ``prune``; ``item_graph`` (2, p) and ``item_value`` (p,);
            ``features_m`` (I, d), ``weight_m`` (D, d) and ``bias_m`` (D,) for m = 0, 1, ...;
            ``held`` (2, h), the users and items of the validation, if an epoch ends with one.
    """

    train_features = False

    def __init__(self, problem: Mapping[str, Array]) -> None:
        super().__init__(problem)
        self.prune = float(problem["prune"])
        count = sum(name.startswith("features_") for name in problem)

        def given(name: str) -> list[Tensor]:
            arrays = (problem[f"{name}_{m}"] for m in range(count))
            return [torch.from_numpy(array.astype(np.float32)) for array in arrays]

        self.features = given("features")
        self.weights, self.biases = given("weight"), given("bias")
        trained = [*self.weights, *self.biases, *(self.features if self.train_features else ())]
        for tensor in trained:
            tensor.requires_grad_()
        self.optimizer.add_param_group({"params": trained})
        self.keep_item_graph(problem["item_graph"], problem["item_value"])
        user_degree, item_degree = np.bincount(self.user), np.bincount(self.item)
        weight = 1 / np.sqrt(1.0 * user_degree[self.user] * item_degree[self.item])
        self.weight_of_edge = torch.from_numpy(weight.astype(np.float32))
        self.whole = self.matrix_of(self.user, self.item)
        self.matrix = self.matrix_of(*problem["kept"])
        self.held = relevant(*problem["held"]) if "held" in problem else {}

    def keep_item_graph(self, pairs: Array, value: Array) -> None:
        """Store the item graph, (2, p) rows and columns and (p,) values."""
        matrix = scipy.sparse.csr_matrix((value, tuple(pairs)), (self.num_items,) * 2)
        self.item_matrix, self.item_transpose = csr(matrix), csr(matrix.T.tocsr())

    def matrix_of(self, user: Array, item: Array) -> Tensor:
        """Return the normalized matrix (U + I, U + I) of some edges."""
        return csr(normalized(user, item, self.num_users, self.num_items))

    def draw_edges(self) -> None:
        """Keep edges in proportion to one over the root of both degrees."""
        count = len(self.user) - int(self.prune * len(self.user))
        kept = torch.multinomial(self.weight_of_edge, count).numpy()
        self.matrix = self.matrix_of(self.user[kept], self.item[kept])

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings, (U, D) and (I, D)."""
        both = mean_of_layers(self.table, self.layers, self.matrix)
        items = self.table[self.num_users :]
        neighbors = product(items, self.item_matrix, self.item_transpose)
        return both[: self.num_users], both[self.num_users :] + neighbors

    def loss(self, users: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Return BPR, plus ``reg`` times BPR of the users with the projected features."""
        user, item = self.embeddings()
        of_features = torch.zeros(())
        for features, weight, bias in zip(self.features, self.weights, self.biases, strict=True):
            projected = F.linear(features, weight, bias)
            of_features = of_features + bpr(user[users], projected[pos], projected[neg])
        return bpr(user[users], item[pos], item[neg]) + self.reg * of_features

    def check(self) -> list[float]:
        """Return the losses, and Recall@20 after them if asked to validate."""
        losses = super().check()
        return [*losses, self.validate()["recall@20"]] if self.held else losses

    def run(self) -> None:
        """Draw the edges, pass once through all of them, and validate if asked to."""
        self.draw_edges()
        super().run()
        if self.held:
            self.validate()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return metrics of the ranking of all items, train items left out."""
        self.matrix = self.whole
        self.final = self.embeddings()
        ranked = [self.rank(users) for users in in_blocks(list(self.held))]
        return metrics(self.hits(np.concatenate(ranked)), [len(x) for x in self.held.values()])

    def rank(self, users: list[int]) -> Array:
        """Return the best items of some users, best first."""
        user, item = self.final
        score = user[users] @ item.T
        row = np.full(self.num_users, -1)
        row[users] = np.arange(len(users))
        seen = row[self.user] >= 0
        score[row[self.user[seen]], self.item[seen]] = -1e10
        best: Array = score.topk(max(CUTOFFS)).indices.numpy()
        return best

    def hits(self, ranked: Array) -> Array:
        """Return whether the ranked items (users, K) are relevant."""
        keys = [user * self.num_items + item for user, of in self.held.items() for item in of]
        users = np.array(list(self.held))
        found: Array = np.isin(users[:, None] * self.num_items + ranked, keys)
        return found


class AsMMRec(PlainPyTorch):
    """See the head of this file."""

    train_features = True

    def __init__(self, problem: Mapping[str, Array]) -> None:
        super().__init__(problem)
        self.seen: dict[int, set[int]] = {}
        for user, item in zip(self.user.tolist(), self.item.tolist(), strict=True):
            self.seen.setdefault(user, set()).add(item)
        self.all_items = sorted(set(self.item.tolist()))

    def keep_item_graph(self, pairs: Array, value: Array) -> None:
        """See the base class."""
        size = (self.num_items, self.num_items)
        self.item_matrix = torch.sparse_coo_tensor(
            torch.from_numpy(pairs), torch.from_numpy(value), size
        )

    def matrix_of(self, user: Array, item: Array) -> Tensor:
        """See the base class."""
        degrees = (np.bincount(ids) for ids in (user, item))
        scale = [torch.from_numpy(degree.astype(np.float32)).rsqrt() for degree in degrees]
        user_ids, item_ids = torch.from_numpy(user), torch.from_numpy(item)
        value = scale[0][user_ids] * scale[1][item_ids]
        pairs = torch.stack([user_ids, item_ids + self.num_users])
        both = torch.cat([pairs, pairs.flip(0)], 1)
        size = (len(self.table), len(self.table))
        return torch.sparse_coo_tensor(both, torch.cat([value, value]), size)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """See the base class."""
        neighbors = torch.sparse.mm(self.item_matrix, self.table[self.num_users :])
        layers = [self.table]
        for _ in range(self.layers):
            layers.append(torch.sparse.mm(self.matrix, layers[-1]))
        user, item = torch.stack(layers, 1).mean(1).split([self.num_users, self.num_items])
        return user, item + neighbors

    def negatives(self, users: Array) -> Array:
        """See the base class."""
        found = []
        for user in users.tolist():
            item = random.choice(self.all_items)
            while item in self.seen[user]:
                item = random.choice(self.all_items)
            found.append(item)
        return np.array(found)

    def rank(self, users: list[int]) -> Array:
        """See the base class."""
        self.final = self.embeddings()
        return super().rank(users)

    def hits(self, ranked: Array) -> Array:
        """See the base class."""
        lists = zip(self.held.values(), ranked, strict=True)
        return np.array([[item in of for item in best] for of, best in lists])


def relevant(user: Array, item: Array) -> dict[int, Array]:
    """Return the held-out items of every user that has any."""
    order = np.argsort(user, kind="stable")
    users, start = np.unique(user[order], return_index=True)
    return dict(zip(users.tolist(), np.split(item[order], start[1:]), strict=True))


def in_blocks(users: list[int]) -> list[list[int]]:
    """Split users into those that are ranked at once."""
    return [users[at : at + USERS_AT_ONCE] for at in range(0, len(users), USERS_AT_ONCE)]


def metrics(hits: Array, counts: Sequence[int]) -> dict[str, float]:
    """Return means of recall, precision, NDCG and MAP from hits (users, K) and lengths of lists."""
    count = np.array(counts)[:, None]
    ranks = np.arange(1, hits.shape[1] + 1)
    found = hits.cumsum(1)
    discount = 1 / np.log2(ranks + 1)
    ideal = np.cumsum(discount)[np.minimum(count, ranks) - 1]
    tables = {
        "recall": found / count,
        "precision": found / ranks,
        "ndcg": (hits * discount).cumsum(1) / ideal,
        "map": (hits * found / ranks).cumsum(1) / np.minimum(count, ranks),
    }
    means = {name: table.mean(0) for name, table in tables.items()}
    assert all(math.isfinite(mean[-1]) for mean in means.values())
    return {f"{name}@{k}": float(mean[k - 1]) for name, mean in means.items() for k in CUTOFFS}
