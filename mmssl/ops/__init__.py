"""The ops of MMSSL for anyone to use: compiled kernels with a plain PyTorch fallback.

``with ops.backend("reference"): ...`` or ``MMSSL_OPS=reference`` chooses the fallback;
:func:`status` says what each op does on this machine and why.
"""

from mmssl.ops.bpr import bpr_loss
from mmssl.ops.dispatch import (
    BACKENDS,
    OpStatus,
    backend,
    requested_backend,
    set_backend,
    status,
)
from mmssl.ops.dropout import keep_mask
from mmssl.ops.info_nce import info_nce
from mmssl.ops.masked_similarity import masked_similarity, masked_similarity_linear
from mmssl.ops.norm_act import norm_act
from mmssl.ops.normalized import add_normalized
from mmssl.ops.propagate import propagate, spmm
from mmssl.ops.reference import Triples
from mmssl.ops.sampling import sample_bpr
from mmssl.ops.topk import masked_topk
from mmssl.ops.view_attention import view_attention

__all__ = [
    "BACKENDS",
    "OpStatus",
    "Triples",
    "add_normalized",
    "backend",
    "bpr_loss",
    "info_nce",
    "keep_mask",
    "masked_similarity",
    "masked_similarity_linear",
    "masked_topk",
    "norm_act",
    "propagate",
    "requested_backend",
    "sample_bpr",
    "set_backend",
    "spmm",
    "status",
    "view_attention",
]
