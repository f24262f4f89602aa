"""The sections of the configuration of the models that are one file each.

They stand here and not in the models' files so that importing this module requires the standard
library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mmssl.section import Section


@dataclass(frozen=True, kw_only=True)
class LightGCNConfig(Section):
    """The LightGCN baseline (He et al., SIGIR 2020); width and seed are those of MMSSL."""

    num_layers: Annotated[int, ">= 0"] = 3
    """Number of propagation layers."""
    lr: Annotated[float, "> 0"] = 1e-3
    """Learning rate of Adam."""
    reg: Annotated[float, ">= 0"] = 1e-4
    """Weight of the L2 penalty on the batch's ID embeddings."""
    batch_size: Annotated[int, ">= 1"] = 2048
    """Edges per step."""
    epochs: Annotated[int, ">= 1"] = 250
    """Maximum number of epochs."""
    patience: Annotated[int, ">= 1"] = 50
    """Validations without an improvement of Recall@20 before training stops. BPR first stays on a
    plateau at the level of popularity, where a shorter patience would stop it."""
