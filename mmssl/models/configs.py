"""The sections of the configuration of the models that are one file each.

They stand here and not in the models' files so that importing this module requires the standard
library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mmssl.section import Section, Tune, check


@dataclass(frozen=True, kw_only=True)
class BPRMFConfig(Section):
    """Matrix factorization trained by BPR (Rendle et al., UAI 2009).

    Width and seed are those of MMSSL, as for all baselines.
    """

    lr: Annotated[float, "> 0", Tune(low=5e-4, high=1e-2, log=True)] = 1e-3
    """Learning rate of Adam."""
    reg: Annotated[float, ">= 0", Tune(low=1e-4, high=0.3, log=True)] = 1e-4
    """Weight of the L2 penalty on the batch's ID embeddings. The authors' 1e-4 is far too little on
    TikTok, Baby and Sports: about .1 is best without convolutions, .01 to .03 with them."""
    batch_size: Annotated[int, ">= 1"] = 2048
    """Edges per step."""
    epochs: Annotated[int, ">= 1"] = 1000
    """Maximum number of epochs, as of LightGCN's authors."""
    patience: Annotated[int, ">= 1"] = 50
    """Validations without an improvement of Recall@20 before training stops. BPR first stays on a
    plateau at the level of popularity, where a shorter patience would stop it."""


@dataclass(frozen=True, kw_only=True)
class LightGCNConfig(BPRMFConfig):
    """The LightGCN baseline (He et al., SIGIR 2020)."""

    num_layers: Annotated[int, ">= 0", Tune(low=1, high=4)] = 3
    """Number of propagation layers."""


@dataclass(frozen=True, kw_only=True)
class LayerGCNConfig(LightGCNConfig):
    """The LayerGCN baseline (Zhou et al., ICDE 2023), with the settings of the authors' code."""

    num_layers: Annotated[int, ">= 1"] = 4
    """Number of propagation layers."""
    prune: Annotated[float, "in [0, 1)", Tune(choices=[0.0, 0.1, 0.2, 0.5])] = 0.1
    """Share of the train edges left out of the propagation, drawn again every epoch with
    probabilities that grow with the degrees of both ends."""


@dataclass(frozen=True, kw_only=True)
class SGLConfig(LightGCNConfig):
    """The SGL baseline with edge dropout (Wu et al., SIGIR 2021), as its code for Yelp2018."""

    dropout: Annotated[float, "in [0, 1)"] = 0.1
    """Share of the train edges left out of each of the two graphs that are contrasted, drawn again
    every epoch."""
    contrast_weight: Annotated[float, ">= 0", Tune(low=0.005, high=0.5, log=True)] = 0.1
    """Weight of InfoNCE between the two graphs, of users and of items."""
    contrast_temperature: Annotated[float, "> 0", Tune(low=0.1, high=1.0)] = 0.2
    """Temperature of InfoNCE."""


@dataclass(frozen=True, kw_only=True)
class XSimGCLConfig(LightGCNConfig):
    """The XSimGCL baseline (Yu et al., TKDE 2024), with the settings of the authors' code."""

    num_layers: Annotated[int, ">= 1"] = 2
    """Number of propagation layers."""
    contrast_layer: Annotated[int, ">= 1"] = 1
    """The layer that is contrasted with the final embeddings, at most `num_layers`."""
    noise: Annotated[float, ">= 0"] = 0.2
    """Length of the noise that is added to every vector of every layer in training."""
    contrast_weight: Annotated[float, ">= 0", Tune(low=0.005, high=0.5, log=True)] = 0.2
    """Weight of InfoNCE between the layer and the final embeddings, of users and of items."""
    contrast_temperature: Annotated[float, "> 0", Tune(low=0.1, high=1.0)] = 0.15
    """Temperature of InfoNCE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"at most xsimgcl.num_layers = {self.num_layers}"
        fits = self.contrast_layer <= self.num_layers
        check(fits, "xsimgcl.contrast_layer", expected, self.contrast_layer)


@dataclass(frozen=True, kw_only=True)
class EASEConfig(Section):
    """The EASE baseline (Steck, WWW 2019)."""

    reg: Annotated[
        float | Literal["validation"], '> 0 or "validation"', Tune(low=1.0, high=1e4, log=True)
    ] = "validation"
    """Weight of the L2 penalty on the item-to-item weights; `validation`: the one of 10, 30, 100,
    300, 1000, 3000 and 10000 that has the highest Recall@20 on validation."""


@dataclass(frozen=True, kw_only=True)
class CEASEConfig(EASEConfig):
    """EASE with item features (Jeunen et al., RecSys 2020)."""

    weight: Annotated[
        float | Literal["validation"], '> 0 or "validation"', Tune(low=1.0, high=1e3, log=True)
    ] = "validation"
    """Weight of the features next to the interactions; `validation`: the one of 1, 10, 100 and 1000
    that has the highest Recall@20 on validation."""


@dataclass(frozen=True, kw_only=True)
class GFCFConfig(Section):
    """The GF-CF baseline (Shen et al., CIKM 2021), with the settings of the paper."""

    num_components: Annotated[int, ">= 1"] = 256
    """Number of singular vectors that the ideal low-pass filter keeps."""
    ideal_weight: Annotated[float, ">= 0", Tune(choices=[0.0, 0.1, 0.3, 1.0])] = 0.3
    """Weight of the ideal low-pass filter next to the linear filter."""


@dataclass(frozen=True, kw_only=True)
class MMGFConfig(Section):
    """The MM-GF baseline (Roh et al., 2025), with the settings of the authors' code for Baby."""

    alpha: Annotated[float, "in [0, 1]", Tune(low=0.5, high=1.0)] = 0.89
    """Exponent of the users' degrees, and of an item's sum of features, in the normalization; the
    other side has 1 - alpha."""
    power: Annotated[float, "> 0", Tune(low=0.4, high=1.5)] = 0.67
    """Power to which every similarity is raised."""
    modality_weights: Annotated[dict[str, float], "weights >= 0 by modality"] = field(
        default_factory=dict
    )
    """Weight of the filter of each modality. One that is not listed gets the one of 0, 0.1, 1, 10,
    100 and 1000 with the highest Recall@20 on validation, one modality after the other."""


@dataclass(frozen=True, kw_only=True)
class ItemKNNConfig(Section):
    """Item kNN by common users (Deshpande and Karypis, TOIS 2004)."""

    num_neighbors: Annotated[int, ">= 1", Tune(choices=[10, 20, 50, 100, 200, 500])] = 100
    """Number of neighbors of an item that receive a weight from it."""
    alpha: Annotated[float, "in [0, 1]", Tune(low=0.0, high=1.0)] = 0.0
    """Exponent of the frequency of an item by which its weights are divided; 0 favors popular
    items as the data does, 1 does not favor them."""


@dataclass(frozen=True, kw_only=True)
class ContentKNNConfig(Section):
    """Content kNN by the cosine of the item features."""

    num_neighbors: Annotated[int, ">= 1", Tune(choices=[10, 20, 50, 100, 200])] = 50
    """Neighbors of an item per modality; a neighbor list in the data is used as it is."""


@dataclass(frozen=True, kw_only=True)
class MultiModalConfig(Section):
    """What the multi-modal baselines have in common, with the settings of MMRec."""

    lr: Annotated[float, "> 0", Tune(low=5e-4, high=1e-2, log=True)] = 1e-3
    """Learning rate of Adam."""
    batch_size: Annotated[int, ">= 1"] = 2048
    """Edges per step."""
    epochs: Annotated[int, ">= 1"] = 1000
    """Maximum number of epochs."""
    patience: Annotated[int, ">= 1"] = 20
    """Validations without an improvement of Recall@20 before training stops."""


@dataclass(frozen=True, kw_only=True)
class FreedomConfig(MultiModalConfig):
    """The FREEDOM baseline (Zhou and Shen, MM 2023), with the settings of the authors' code."""

    num_layers: Annotated[int, ">= 0"] = 2
    """Number of propagation layers over the interaction graph."""
    num_item_layers: Annotated[int, ">= 0"] = 1
    """Number of propagation layers over the item graph."""
    num_neighbors: Annotated[int, ">= 1"] = 10
    """Neighbors of an item per modality, itself included; a neighbor list in the data is used as it
    is."""
    image_weight: Annotated[float, "in [0, 1]"] = 0.1
    """Weight of the modality `image` in the item graph; the others share the rest equally."""
    prune: Annotated[float, "in [0, 1)", Tune(choices=[0.0, 0.5, 0.8, 0.9])] = 0.8
    """Share of the train edges left out of the propagation, drawn again every epoch with
    probabilities that grow with the degrees of both ends."""
    reg: Annotated[float, ">= 0", Tune(choices=[0.0, 1e-5, 1e-4, 1e-3])] = 0.0
    """Weight of BPR between the users and the projected features. The authors search 0, 1e-5, 1e-4
    and 1e-3."""


@dataclass(frozen=True, kw_only=True)
class VBPRConfig(MultiModalConfig):
    """The VBPR baseline (He and McAuley, AAAI 2016)."""

    reg: Annotated[float, ">= 0", Tune(low=1e-6, high=1e-1, log=True)] = 1e-2
    """Weight of the L2 penalty on the batch's vectors."""


@dataclass(frozen=True, kw_only=True)
class BM3Config(MultiModalConfig):
    """The BM3 baseline (Zhou et al., WWW 2023), with the settings of the authors' code."""

    num_layers: Annotated[int, ">= 0", Tune(low=1, high=2)] = 1
    """Number of propagation layers."""
    dropout: Annotated[float, "in [0, 1)", Tune(choices=[0.3, 0.5])] = 0.5
    """Share of the numbers that are dropped from the targets."""
    modality_weight: Annotated[float, ">= 0"] = 2.0
    """Weight of the terms that align and bootstrap the modalities."""
    reg: Annotated[float, ">= 0", Tune(choices=[0.1, 0.01])] = 0.1
    """Weight of the norms of all embeddings."""
    patience: Annotated[int, ">= 1"] = 100
    """Validations without an improvement of Recall@20 before training stops. Without negatives, the
    embeddings first agree on popularity; it takes dozens of epochs until they differ."""


@dataclass(frozen=True, kw_only=True)
class LatticeConfig(MultiModalConfig):
    """The LATTICE baseline (Zhang et al., MM 2021)."""

    num_layers: Annotated[int, ">= 0"] = 2
    """Number of propagation layers over the interaction graph."""
    num_item_layers: Annotated[int, ">= 0"] = 1
    """Number of propagation layers over the item graph."""
    num_neighbors: Annotated[int, ">= 1"] = 10
    """Neighbors of an item per modality, itself included; a neighbor list in the data is used as
    the initial graph as it is."""
    initial_weight: Annotated[float, "in [0, 1]"] = 0.9
    """Weight of the graph of the raw features; that of the projected features has the rest."""
    reg: Annotated[float, ">= 0", Tune(choices=[0.0, 1e-5, 1e-4, 1e-3])] = 1e-5
    """Weight of the L2 penalty on the batch's final embeddings."""


@dataclass(frozen=True, kw_only=True)
class SLMRecConfig(MultiModalConfig):
    """The SLMRec baseline (Tao et al., IEEE Transactions on Multimedia 2022)."""

    num_layers: Annotated[int, ">= 0"] = 3
    """Number of propagation layers."""
    temperature: Annotated[float, "> 0"] = 0.2
    """Temperature of InfoNCE between users and items."""
    contrast_weight: Annotated[float, ">= 0", Tune(choices=[0.01, 0.05, 0.1, 0.5, 1.0])] = 0.1
    """Weight of InfoNCE between the views of an item."""
    contrast_temperature: Annotated[float, "> 0", Tune(choices=[0.1, 0.2, 0.5, 1.0])] = 0.2
    """Temperature of that InfoNCE."""
    weight_decay: Annotated[float, ">= 0", Tune(choices=[0.0, 1e-5, 1e-4, 1e-3])] = 1e-4
    """Weight decay of Adam, an L2 penalty on all parameters."""


@dataclass(frozen=True, kw_only=True)
class GRCNConfig(MultiModalConfig):
    """The GRCN baseline (Wei et al., MM 2020)."""

    num_layers: Annotated[int, ">= 0"] = 2
    """Number of propagation layers of the ID embeddings."""
    num_routings: Annotated[int, ">= 0"] = 0
    """Number of times that the preferences of a user are refined by the features of the items. The
    paper has 3; in the authors' code the refinement has no effect (docs/baselines.md)."""
    reg: Annotated[float, ">= 0", Tune(low=1e-5, high=1e-1, log=True)] = 1e-3
    """Weight of the mean squares of the batch's ID embeddings and preferences."""
    lr: Annotated[float, "> 0", Tune(low=5e-4, high=1e-2, log=True)] = 3e-3
    """Learning rate of Adam."""
