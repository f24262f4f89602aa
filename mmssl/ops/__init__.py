"""The ops of MMSSL for any project: compiled kernels with a plain PyTorch fallback.

``with ops.backend("reference"): ...`` or ``MMSSL_OPS=reference`` chooses the fallback;
:func:`status` reports the backend of each op on this machine and why it was chosen.
"""

import mmssl.forks  # noqa: F401 - registers itself
from mmssl.ops import _registry
from mmssl.ops.add_normalized import add_normalized
from mmssl.ops.bpr import bpr_loss
from mmssl.ops.cosine_logsumexp import cosine_logsumexp
from mmssl.ops.dispatch import (
    BACKENDS,
    OpStatus,
    backend,
    requested_backend,
    set_backend,
    status,
)
from mmssl.ops.info_nce import info_nce
from mmssl.ops.keep_mask import keep_mask
from mmssl.ops.masked_similarity import masked_similarity, masked_similarity_linear
from mmssl.ops.masked_topk import masked_topk
from mmssl.ops.norm_act import norm_act
from mmssl.ops.propagate import propagate, spmm
from mmssl.ops.propagate_layers import propagate_layers
from mmssl.ops.propagated_bpr_loss import propagated_bpr_loss
from mmssl.ops.propagated_bpr_step import propagated_bpr_step  # noqa: F401 - not for users
from mmssl.ops.propagated_rows import propagated_rows  # noqa: F401 - not for users
from mmssl.ops.sampling import Triples, sample_bpr
from mmssl.ops.view_attention import view_attention

__all__ = [
    "BACKENDS",
    "OpStatus",
    "Triples",
    "add_normalized",
    "backend",
    "bpr_loss",
    "cosine_logsumexp",
    "info_nce",
    "keep_mask",
    "masked_similarity",
    "masked_similarity_linear",
    "masked_topk",
    "norm_act",
    "propagate",
    "propagate_layers",
    "propagated_bpr_loss",
    "requested_backend",
    "sample_bpr",
    "set_backend",
    "spmm",
    "status",
    "view_attention",
]

_registry.activate()
