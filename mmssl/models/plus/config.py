"""The configuration of `plus`. Importing this module requires the standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mmssl.section import Section, Tune


@dataclass(frozen=True, kw_only=True)
class PlusConfig(Section):
    """Variant `plus` (docs/model.md); width and seed are those of the other variants."""

    num_layers: Annotated[int, ">= 0"] = 2
    """Number of propagation layers over the interaction graph."""
    ranking: Literal["softmax", "bpr"] = "softmax"
    """`softmax`: cross-entropy over the catalog on cosines divided by the temperature; `bpr`:
    pairwise loss with one negative on dot products."""
    temperature: Annotated[
        float | Literal["density"], '> 0 or "density"', Tune(low=0.1, high=0.6)
    ] = "density"
    """Temperature of the softmax; `density`: 0.8 (I / n)^(1/3) for n train edges of I items, at
    most 0.3, which is the value for up to 19 edges per item."""
    negatives: Annotated[int | Literal["all"], '>= 1 or "all"'] = "all"
    """Items in the denominator of the softmax: the whole catalog, or K items per step, drawn
    uniformly without replacement, whose sum is scaled to that of the catalog."""
    reg: Annotated[float, ">= 0"] = 1e-4
    """Weight of the L2 penalty on the batch's ID embeddings."""
    popularity: Annotated[float, ">= 0", Tune(low=0.0, high=1.0)] = 0.5
    """Weight of the logarithm of an item's number of train users in the score that the softmax is
    trained on."""
    ranking_popularity: Annotated[float | Literal["validation"], '>= 0 or "validation"'] = (
        "validation"
    )
    """The same weight in the score that ranks items; `validation`: the one of a few weights that
    has the highest Recall@20 on validation, chosen in every epoch."""
    item_weight: Annotated[float, ">= 0"] = 2.0
    """Weight of an item's neighborhood in the item graph; 0 disables the graph."""
    num_neighbors: Annotated[int, ">= 1"] = 10
    """Nearest items per item and modality; a neighbor list in the data is used as it is."""
    modality_weights: Annotated[dict[str, float], "weights >= 0 by modality"] = field(
        default_factory=dict
    )
    """Weight of each modality in the item graph. A modality that is not listed gets its measured
    weight: how much more often its neighbors share train users than by chance, minus 1."""
    min_co_visits: Annotated[int, ">= 0"] = 0
    """Minimum number of train users that two neighbors have in common; 0 keeps every edge."""
    contrast_weight: Annotated[float, ">= 0", Tune(low=0.0, high=0.3)] = 0.1
    """Weight of InfoNCE between the interaction view and the modality view of users and items."""
    contrast_temperature: Annotated[float, "> 0"] = 0.5
    """Temperature of that InfoNCE."""
    mix: Annotated[float | Literal["validation"], '>= 0 or "validation"'] = "validation"
    """Weight, relative to their spread, of the scores of CEASE (EASE without features) that are
    added after training; `validation`: the one of a few weights that has the highest Recall@20 on
    validation, or 0 for a catalog that is too large for CEASE."""
    mix_reg: Annotated[float, "> 0"] = 100.0
    """Penalty of these scores, see `cease.reg`."""
    mix_content: Annotated[float, ">= 0"] = 100.0
    """Weight of the features in them, see `cease.weight`."""
    mix_rank: Annotated[int, ">= 1"] = 256
    """Number of columns that they add to the vectors of users and items."""
    prune: Annotated[float, "in [0, 1)"] = 0.0
    """Share of the train edges left out of the propagation, drawn again every epoch with
    probabilities that grow with the degrees of both ends."""
    lr: Annotated[float, "> 0", Tune(low=5e-4, high=5e-3, log=True)] = 2e-3
    """Learning rate of Adam."""
    batch_size: Annotated[int, ">= 1"] = 2048
    """Edges per step."""
    epochs: Annotated[int, ">= 1"] = 250
    """Maximum number of epochs."""
    patience: Annotated[int, ">= 1"] = 10
    """Validations without an improvement of Recall@20 before training stops."""
