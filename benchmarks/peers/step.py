"""One training step as the released loop runs it: dense rows, two forwards, Python loops.

Legend: U users, I items, B batch, D embedding dim, M modalities.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from benchmarks.peers.model import Pair, PeerCritic, PeerModel, PeerOutput
from mmssl.config import Config
from mmssl.models.mmssl.critic import Critic
from mmssl.models.mmssl.model import MMSSL

# From the released code: guards of its logarithms, and scale of the penalty.
_EPS = 1e-8
_PENALTY = 0.3


class Batch(NamedTuple):
    """The batch of a step; noise that is None is drawn during the step."""

    users: list[int]  # (B,)
    pos_items: list[int]
    neg_items: list[int]
    uniform: Tensor | None = None  # (B, I)
    alpha: Tensor | None = None  # (M B, 1)


class ReleasedStep:
    """Model, critic, optimizers and the loop's state.

    Args:
        model: of variant ``released``; parameters are copied, features shared.
        critic: the same.
        config: whose hyper-parameters are taken; ``training.batch_size`` rows a step.
        seed: of sampling.
    """

    def __init__(self, model: MMSSL, critic: Critic, config: Config, seed: int = 0) -> None:
        graph = model.graph
        self.config = config
        self.model = PeerModel(model).train()
        self.critic = PeerCritic(critic).to(graph.device).train()
        self.device = graph.device
        rowptr, col = graph.index.rowptr.cpu().numpy(), graph.index.col.cpu().numpy()
        ones = np.ones(graph.nnz, np.float32)
        self.matrix = scipy.sparse.csr_matrix(
            (ones, col, rowptr), (graph.num_users, graph.num_items)
        )
        self.train_items = [row.tolist() for row in np.split(col, rowptr[1:-1])]
        self.active_users = graph.trainable_users.tolist()
        self.batch_size = min(config.training.batch_size, len(self.active_users))
        self.k = config.structure.edges_per_user(graph.num_items)
        self.collected: list[tuple[list[int], list[int]]] = [([], []) for _ in self.model.raw]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.training.lr)
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=config.critic.lr, betas=(0.5, 0.9)
        )
        self._users = random.Random(seed)
        self._items = np.random.RandomState(seed)

    def draw(self) -> Batch:
        """Users without replacement, then one loop over them for a positive and a negative each."""
        with record_function("mmssl::sample"):
            users = self._users.sample(self.active_users, self.batch_size)
            pos_items, neg_items = [], []
            for user in users:
                own = self.train_items[user]
                pos_items.append(own[self._items.randint(0, len(own), size=1)[0]])
                while True:
                    item = int(self._items.randint(0, self.matrix.shape[1], size=1)[0])
                    if item not in own:
                        break
                neg_items.append(item)
            return Batch(users, pos_items, neg_items)

    def __call__(self, batch: Batch, step_of_epoch: int) -> dict[str, Tensor]:
        """Updates critic, modality graphs and recommender; every loss term by name."""
        critic_terms = self.train_critic(batch)
        return {**self.train_recommender(batch, step_of_epoch), **critic_terms}

    def train_critic(self, batch: Batch) -> dict[str, Tensor]:
        """A forward pass without gradient, dense rows of it, one Adam step."""
        with torch.no_grad():
            with record_function("mmssl::forward"):
                out = self.model()
            with record_function("mmssl::similarity_rows"):
                own = self.similarity(out.user, out.item, batch.users)
                fake = self._generated(out, batch.users)
            with record_function("mmssl::real_rows"):
                real = self._real(own, batch)
        with record_function("mmssl::critic_forward"):
            fake_score, real_score = self.critic(fake).mean(), self.critic(real).mean()
        with record_function("mmssl::gradient_penalty"):
            penalty = self.config.critic.gp_weight * self._penalty(real, fake, batch.alpha)
        self.critic_optimizer.zero_grad()
        with record_function("mmssl::critic_backward"):
            (fake_score - real_score + penalty).backward()
        with record_function("mmssl::critic_optimizer"):
            self.critic_optimizer.step()
        terms = {"critic_fake": fake_score, "critic_real": real_score, "critic_penalty": penalty}
        return {name: term.detach() for name, term in terms.items()}

    def train_recommender(self, batch: Batch, step_of_epoch: int) -> dict[str, Tensor]:
        """A second forward pass, the modality graphs, all losses, one AdamW step."""
        users = batch.users
        with record_function("mmssl::forward"):
            out = self.model()
        with record_function("mmssl::similarity_rows"):
            fake = self._generated(out, users)
        with record_function("mmssl::structure"):
            self._structure(users, fake.detach().chunk(len(self.model.raw)), step_of_epoch)
        with record_function("mmssl::recommender_loss"):
            terms = self._losses(out, fake, batch)
        self.optimizer.zero_grad()
        with record_function("mmssl::backward"):
            sum(terms.values()).backward()  # the critic's weights get gradients that are not used
        with record_function("mmssl::optimizer"):
            self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def _losses(self, out: PeerOutput, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        config, users = self.config.loss, batch.users
        user, pos, neg = out.user[users], out.item[batch.pos_items], out.item[batch.neg_items]
        margin = (user * pos).sum(1) - (user * neg).sum(1)
        norms = sum(part.square().sum() for part in (user, pos, neg))
        features = sum(part.square().sum() for part in (*out.user_feature, *out.item_feature))
        with record_function("mmssl::info_nce"):
            contrastive = sum(self._contrastive(view[users], user) for view in out.user_modality)
        with record_function("mmssl::critic_forward"):
            adversarial = -config.g_weight * self.critic(fake).mean()
        return {
            "bpr": -F.logsigmoid(margin).mean(),
            "l2": config.decay * 0.5 * norms / self.batch_size,
            "feat_reg": config.feat_reg_decay * 0.5 * features / len(out.item),
            "contrastive": config.cl_weight * contrastive,
            "adversarial": adversarial,
        }

    def similarity(self, user: Tensor, item: Tensor, users: list[int]) -> Tensor:
        """(B, I) scores with the train items set to 0, in blocks of items, then normalized."""
        mine, known = user[users], self._dense(users)
        width, blocks = self.batch_size, []
        for first in range(0, item.shape[0], width):
            score = mine @ item[first : first + width].T
            blocks.append(score * (1 - known[:, first : first + width]))
        return F.normalize(torch.cat(blocks, 1), dim=1)

    def _dense(self, users: list[int]) -> Tensor:
        return torch.from_numpy(self.matrix[users].toarray()).to(self.device)

    def _generated(self, out: PeerOutput, users: list[int]) -> Tensor:
        """(M B, I): the similarity rows of every modality, stacked."""
        pairs = zip(out.user_feature, out.item_feature, strict=True)
        return torch.cat([self.similarity(user, item, users) for user, item in pairs])

    def _real(self, own: Tensor, batch: Batch) -> Tensor:
        """(M B, I): softened observed rows plus the model's own, once per modality."""
        config = self.config.critic
        uniform = torch.rand_like(own) if batch.uniform is None else batch.uniform
        noise = -config.gumbel_scale * torch.log(-torch.log(uniform + _EPS) + _EPS)
        soft = torch.softmax(self._dense(batch.users) + noise / config.gumbel_tau, 1)
        real = F.normalize(soft + config.similarity_scale * own, dim=1)
        return torch.cat([real] * len(self.model.raw))

    def _penalty(self, real: Tensor, fake: Tensor, alpha: Tensor | None) -> Tensor:
        alpha = torch.rand(len(real), 1, device=self.device) if alpha is None else alpha
        mixed = (alpha * real + (1 - alpha) * fake).requires_grad_()
        score = self.critic(mixed)
        ones = torch.ones_like(score)
        (grad,) = torch.autograd.grad(score, mixed, ones, create_graph=True, retain_graph=True)
        return _PENALTY * (grad.norm(2, dim=1) - 1).square().mean()

    def _contrastive(self, first: Tensor, second: Tensor) -> Tensor:
        """InfoNCE of (B, D) rows against blocks of rows, each pair of blocks normalized again."""
        size, losses = self.batch_size, []
        for start in range(0, len(first), size):
            rows = first[start : start + size]
            within, between = [], []
            for other in range(0, len(first), size):
                within.append(self._affinity(rows, first[other : other + size]))
                between.append(self._affinity(rows, second[other : other + size]))
            within, between = torch.cat(within, 1), torch.cat(between, 1)
            own = slice(start, start + size)
            same = between[:, own].diag()
            total = within.sum(1) + between.sum(1) - within[:, own].diag()
            losses.append(-torch.log(same / total + self.config.loss.cl_eps))
        return torch.cat(losses).mean()

    def _affinity(self, first: Tensor, second: Tensor) -> Tensor:
        cosine = F.normalize(first) @ F.normalize(second).T
        return torch.exp(cosine / self.config.loss.temperature)

    def _structure(self, users: list[int], rows: tuple[Tensor, ...], step_of_epoch: int) -> None:
        """Collects the strongest scores in Python lists, or rebuilds from them and clears them."""
        if step_of_epoch == 0 or step_of_epoch % self.config.structure.refresh_interval:
            for (collected_users, collected_items), row in zip(self.collected, rows, strict=True):
                top = row.topk(self.k, dim=1).indices
                collected_users += torch.tensor(users).repeat(self.k).tolist()
                collected_items += top.flatten().tolist()
            return
        shape = self.matrix.shape
        self.model.modality_graphs = []
        for collected_users, collected_items in self.collected:
            ones = np.ones(len(collected_users), np.float32)
            places = (np.array(collected_users, int), np.array(collected_items, int))
            matrix = scipy.sparse.csr_matrix((ones, places), shape=shape)
            both = (_scaled(matrix), _scaled(matrix.T.tocsr()))
            self.model.modality_graphs.append(Pair(*(m.to(self.device) for m in both)))
        self.collected = [([], []) for _ in self.collected]


def _scaled(matrix: scipy.sparse.csr_matrix) -> Tensor:
    """Rows divided by the root of their sums, as a coalesced torch COO matrix."""
    degree = np.asarray(matrix.sum(1)).ravel()
    scaled = (scipy.sparse.diags((degree + _EPS) ** -0.5) @ matrix).tocoo()
    index = torch.from_numpy(np.stack([scaled.row, scaled.col]).astype(np.int64))
    value = torch.from_numpy(scaled.data.astype(np.float32))
    return torch.sparse_coo_tensor(index, value, matrix.shape, check_invariants=False).coalesce()
