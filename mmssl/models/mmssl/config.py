"""The configuration of MMSSL. Importing this module requires the standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mmssl.section import Section, Tune, check


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The recommender (docs/model.md; Wei et al., WWW 2023, section 3)."""

    embedding_dim: Annotated[int, ">= 1"] = 64
    """Width D of the ID embeddings and of the projected features."""
    num_layers: Annotated[int, ">= 1"] = 2
    """Number of propagation layers over the interaction graph, L."""
    num_feature_layers: Annotated[int, ">= 1"] = 1
    """Number of propagation layers of the projected features, each feeding the next."""
    normalization: Literal["row_sqrt", "sym", "row"] = "row_sqrt"
    """Normalization of the interaction graph and of the modality graphs."""
    attention: Literal["cross_modal", "identity"] = "cross_modal"
    """`cross_modal`: multi-head attention over the modality views of a node; `identity`: what the
    released code computes, where the attention map cancels and only the output projection acts."""
    num_heads: Annotated[int, ">= 1"] = 4
    """Number of attention heads, H; must divide embedding_dim."""
    id_weight: float = 0.36
    """Weight of the normalized attention output added to the ID embedding (eta)."""
    feat_weight: float = 0.55
    """Weight of the normalized modality features in the final embedding (omega)."""
    dropout: Annotated[float, "in [0, 1)"] = 0.2
    """Dropout rate of the projected features."""
    final_softmax: bool = False
    """Whether the last propagation layer applies a softmax over D, as the released code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"a divisor of model.embedding_dim = {self.embedding_dim}"
        divides = self.embedding_dim % self.num_heads == 0
        check(divides, "model.num_heads", expected, self.num_heads)


@dataclass(frozen=True, kw_only=True)
class CriticConfig(Section):
    """The critic of the adversarial task and the rows that it scores (WGAN-GP)."""

    hidden: Annotated[int | Literal["paper"], '>= 2 or "paper"'] = "paper"
    """Width of the first hidden layer; "paper" means I/4. The second is half as wide."""
    negative_slope: float = 0.2
    """Negative slope of the LeakyReLU; the released code uses 1.0, which makes it the identity."""
    dropout: Annotated[tuple[float, float], "two rates in [0, 1)"] = (0.31, 0.5)
    """Dropout rates after the first and the second hidden layer."""
    gumbel_tau: Annotated[float, "> 0"] = 0.005
    """Temperature of the Gumbel softmax over a user's interaction row."""
    gumbel_scale: float = 1e-5
    """Factor of the Gumbel noise."""
    gumbel_divides: Literal["logit", "noise"] = "logit"
    """What the temperature divides: the whole logit or, in the released code, only the noise."""
    similarity_scale: float = 100.0
    """Weight of the model's own similarity row in the real row (zeta)."""
    gp_weight: float = 1.0
    """Weight of the gradient penalty."""
    penalty_interval: Annotated[int, ">= 1"] = 1
    """Steps n between two gradient penalties, each of which is weighted by n (the lazy
    regularization of Karras et al., CVPR 2020)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of the critic's matrix products and of the activations between them; sums,
    statistics, scores and parameters stay float32."""
    lr: Annotated[float, "> 0", Tune(low=1e-4, high=1e-3, log=True)] = 3e-4
    """Learning rate of Adam, with betas (0.5, 0.9)."""
    clip_norm: Annotated[float, ">= 0"] = 0.0
    """Maximum norm of the gradient over all parameters of the critic; 0 disables clipping."""


@dataclass(frozen=True, kw_only=True)
class StructureConfig(Section):
    """How the modality graphs are learned from the scores of the recommender."""

    top_k_rate: Annotated[float, "in [0, 1]"] = 1e-4
    """Edges kept per user and modality, as a fraction of I."""
    min_k: Annotated[int, ">= 0"] = 1
    """Minimum number of edges per user and modality; with 0 the number is rounded down and may be
    0, as in the released code."""
    refresh_interval: Annotated[int, ">= 1"] = 1
    """Steps between two rebuilds of the modality graphs, T."""
    schedule: Literal["latest", "released"] = "latest"
    """`latest`: rebuild from the newest edges of every user (the interactions of a user that has
    not been sampled yet); `released`: rebuild from the edges collected since the last rebuild, with
    users and items paired as in the released code, which leaves the graphs empty for most of an
    epoch."""

    def edges_per_user(self, num_items: int) -> int:
        """Return the number k of edges per user and modality for I items."""
        if self.min_k == 0:
            return int(num_items * self.top_k_rate)
        return min(num_items, max(self.min_k, round(num_items * self.top_k_rate)))


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """Weights of the terms of the recommender's loss."""

    decay: Annotated[float, ">= 0"] = 1e-5
    """Weight of the L2 penalty on the batch's final embeddings."""
    feat_reg_decay: Annotated[float, ">= 0"] = 1e-5
    """Weight of the L2 penalty on the propagated features."""
    cl_weight: Annotated[float, ">= 0", Tune(low=0.003, high=0.3, log=True)] = 0.03
    """Weight of InfoNCE between each modality view and the final user embedding."""
    temperature: Annotated[float, "> 0", Tune(low=0.1, high=1.0)] = 0.5
    """Temperature of InfoNCE (tau)."""
    cl_eps: Annotated[float, ">= 0"] = 0.0
    """Constant added inside the logarithm of InfoNCE; the released code uses 1e-8."""
    g_weight: Annotated[float, ">= 0"] = 1e-4
    """Weight of the recommender's adversarial loss; 0 disables the critic."""
