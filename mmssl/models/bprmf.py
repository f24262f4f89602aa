"""BPR-MF: matrix factorization trained by BPR.

Rendle, Freudenthaler, Gantner, Schmidt-Thieme: "BPR: Bayesian Personalized Ranking from Implicit
Feedback", UAI 2009, arXiv 1205.2618, section 4.3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmssl.models.configs import BPRMFConfig
from mmssl.models.lightgcn import LightGCN, bpr_with_l2
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class BPRMFTask(PairwiseTask[LightGCN, BPRMFConfig]):
    """BPR and L2 on ``e_u . e_i``: LightGCN without a layer."""

    section = "bprmf"
    terms = ("bpr", "l2")
    varies = ""

    def build(self, dataset: InteractionDataset) -> LightGCN:
        """See the base class."""
        return LightGCN(self.graph, embedding_dim=self.config.model.embedding_dim, num_layers=0)

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        ego = self.model.ego()
        return bpr_with_l2(ego, ego, batch, self.settings.reg)
