"""Every op in plain PyTorch: the fallback, the oracle of the tests, one side of every benchmark.

Nothing here imports the extension. Gradients are ordinary autograd. One file per op.
"""

from mmssl.ops.reference.bpr import bpr_loss_reference
from mmssl.ops.reference.common import accumulation_dtype
from mmssl.ops.reference.dropout import keep_mask_reference
from mmssl.ops.reference.info_nce import info_nce_reference
from mmssl.ops.reference.norm_act import norm_act_reference
from mmssl.ops.reference.normalized import add_normalized_reference
from mmssl.ops.reference.propagate import spmm_reference
from mmssl.ops.reference.sampling import Triples, distinct_reference, triples_from_draws_reference
from mmssl.ops.reference.similarity import masked_similarity_reference
from mmssl.ops.reference.topk import edges_of_rows, masked_topk_reference
from mmssl.ops.reference.view_attention import view_attention_reference

__all__ = [
    "Triples",
    "accumulation_dtype",
    "add_normalized_reference",
    "bpr_loss_reference",
    "distinct_reference",
    "edges_of_rows",
    "info_nce_reference",
    "keep_mask_reference",
    "masked_similarity_reference",
    "masked_topk_reference",
    "norm_act_reference",
    "spmm_reference",
    "triples_from_draws_reference",
    "view_attention_reference",
]
