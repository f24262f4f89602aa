"""LightGCN: ID embeddings averaged over the layers of a parameter-free graph convolution.

He, Deng, Wang, Li, Zhang, Wang: "LightGCN: Simplifying and Powering Graph Convolution Network for
Recommendation", SIGIR 2020, arXiv 2002.02126, equations 3 to 8.

Legend: U users, I items, D embedding dim, L layers, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmssl import ops
from mmssl.distributed.sharded_graph import ShardedGraph
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.configs import LightGCNConfig
from mmssl.models.embeddings import Embeddings
from mmssl.ops import Triples
from mmssl.ops.propagated_bpr_step import AdamRates
from mmssl.training.pairwise import PairwiseTask
from mmssl.training.state import adam_state

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

Kind = TypeVar("Kind", bound="LightGCN")
TrainGraph = InteractionGraph | ShardedGraph
"""The whole train graph, or the part of one process."""


def light_convolution(graph: TrainGraph, user: Tensor, item: Tensor, num_layers: int) -> Embeddings:
    """Average the layers of a graph convolution without parameters (equations 3, 7 and 8).

    Args:
        graph: (U, I) graph.
        user: (U, D) layer 0.
        item: (I, D) layer 0.
        num_layers: L, the number of further layers.
    """
    # Both sides read the layer below (equation 3), unlike MMSSL's hops.
    if isinstance(graph, ShardedGraph):
        return Embeddings(*graph.propagate_layers(user, item, num_layers))
    return Embeddings(*ops.propagate_layers(graph, user, item, num_layers))


class LightGCN(nn.Module):
    """``mean_l S^l [E_user; E_item]`` with S the symmetrically normalized bipartite graph.

    S has only user-item blocks, so a layer is one product per side with the (U, I) matrix
    ``D_u^-1/2 A D_i^-1/2`` and its transpose; the (U + I)^2 matrix never exists. The embeddings are
    drawn from N(0, 0.1^2), as in the authors' code.

    Args:
        graph: The train graph, normalization "sym".
        embedding_dim: D.
        num_layers: L; 0 is matrix factorization.

    Raises:
        InputError: A graph of another normalization, or a size below its minimum.
    """

    graph: InteractionGraph  # or a ShardedGraph, of which only the convolution is used

    def __init__(self, graph: TrainGraph, *, embedding_dim: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        if graph.normalization != "sym":
            raise InputError(f"graph: expected normalization 'sym', got {graph.normalization!r}")
        if embedding_dim < 1:
            raise InputError(f"embedding_dim: expected at least 1, got {embedding_dim}")
        if num_layers < 0:
            raise InputError(f"num_layers: expected at least 0, got {num_layers}")
        self.graph = graph  # type: ignore[assignment]
        self.num_layers = num_layers
        self.user_embedding = nn.Parameter(torch.empty(graph.num_users, embedding_dim))
        self.item_embedding = nn.Parameter(torch.empty(graph.num_items, embedding_dim))
        for table in self.ego():
            nn.init.normal_(table, std=0.1)

    def xavier(self: Kind) -> Kind:
        """Draw the embeddings again, Xavier-uniform as in the code of later models."""
        for table in self.ego():
            nn.init.xavier_uniform_(table)
        return self

    def ego(self) -> Embeddings:
        """Return the parameters themselves, layer 0; L2 regularization applies to these."""
        return Embeddings(self.user_embedding, self.item_embedding)

    def forward(self) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D)."""
        return light_convolution(self.graph, *self.ego(), self.num_layers)


def bpr_with_l2(
    embeddings: Embeddings, ego: Embeddings, batch: Triples, reg: float
) -> dict[str, Tensor]:
    """Compute BPR and the L2 penalty of a batch.

    Args:
        embeddings: The final embeddings, which BPR ranks by.
        ego: The parameters, of whose rows in the batch the penalty is.
        batch: (B,) triples.
        reg: Weight of the penalty ``(|u|^2 + |pos|^2 + |neg|^2) / (2 B)``.
    """
    # One gather and one scatter of the batch's rows; the loss of the ego embeddings is not used.
    _, squares = ops.bpr_loss(*ego, *batch, with_l2=True)
    return {"bpr": ops.bpr_loss(*embeddings, *batch), "l2": reg * 0.5 * squares / len(batch.user)}


def propagated_bpr_with_l2(
    graph: InteractionGraph, ego: Embeddings, batch: Triples, num_layers: int, reg: float
) -> dict[str, Tensor]:
    """Compute :func:`bpr_with_l2` of :func:`light_convolution`, without all of its rows."""
    bpr, squares = ops.propagated_bpr_loss(graph, *ego, *batch, num_layers)
    return {"bpr": bpr, "l2": reg * 0.5 * squares / len(batch.user)}


class LightGCNTask(PairwiseTask[LightGCN, LightGCNConfig]):
    """BPR on the final embeddings plus ``reg (|u|^2 + |pos|^2 + |neg|^2) / (2 B)`` on the ego ones.

    Keep ``lightgcn.patience`` generous: BPR first learns popularity, and validation stagnates for a
    dozen epochs (MovieLens-100K, lr 1e-3: epochs 3 to 16) before it rises by half. A short patience
    stops on that plateau and leaves a baseline too weak to compare with.
    """

    section = "lightgcn"
    terms = ("bpr", "l2")
    varies = ""
    phases = (*PairwiseTask.phases, "step")

    def build(self, dataset: InteractionDataset) -> LightGCN:
        """See the base class."""
        width, layers = self.config.model.embedding_dim, self.settings.num_layers
        return LightGCN(self.graph, embedding_dim=width, num_layers=layers)

    def train_on(self, batch: Triples) -> Tensor:
        """See the base class; one process on the CPU does all of it in one call."""
        if self.device.type != "cpu" or self.group.size > 1:
            return super().train_on(batch)
        with record_function("mmssl::step"):
            ego, settings = self.model.ego(), self.settings
            user, item = (adam_state(self.optimizer, table) for table in ego)
            for state in (user, item):
                state["step"] += 1
            group = self.optimizer.param_groups[0]
            beta1, beta2 = group["betas"]
            rates = AdamRates(group["lr"], beta1, beta2, group["eps"], int(user["step"]))
            return ops.propagated_bpr_step(
                self.graph,
                *ego,
                user["exp_avg"],
                item["exp_avg"],
                user["exp_avg_sq"],
                item["exp_avg_sq"],
                *batch,
                settings.num_layers,
                settings.reg,
                rates,
            )

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        part, share = self.part(batch)
        terms = propagated_bpr_with_l2(
            self.graph, self.model.ego(), part, self.settings.num_layers, self.settings.reg
        )
        return {name: share * term for name, term in terms.items()}
