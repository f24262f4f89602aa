"""BPR triples, drawn on the device of the graph.

Legend: U users, I items, B triples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.ops import _extension
from mmssl.ops.dispatch import requested_backend, use_native
from mmssl.ops.reference import Triples, triples_from_draws_reference


def sample_bpr(
    graph: InteractionGraph, batch_size: int, generator: torch.Generator | None = None
) -> Triples:
    """Distinct users, one interacted and one not interacted item each, all uniform and exact.

    A batch takes ``torch.rand(3, B)`` in float64 from the generator and nothing else, so it is
    reproducible from it, the same with every backend on one device, and costs O(B log B) whatever
    the number of users. The users are the first B of a shuffle, the negative is the r-th item that
    its user lacks: no draw is rejected and a positive can never come back. Nothing waits for the
    device; on a GPU it is plain PyTorch.

    Args:
        graph: the train graph.
        batch_size: B, at most the number of users that have an item and lack one.
        generator: of the graph's device; the default one if None.

    Returns:
        (B,) int64 each: user, pos_item, neg_item.

    Raises:
        InputError: ``batch_size`` is out of range.
        RuntimeError: backend "native" is required and there is no kernel for the device.

    Source: the sampler of Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit
    Feedback", UAI 2009, without its rejections; users without replacement as in the released MMSSL.
    """
    if not isinstance(graph, InteractionGraph):
        raise InputError(f"graph: expected an InteractionGraph, got {type(graph).__name__}")
    candidates = graph.trainable_users
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise InputError(f"batch_size: expected an integer, got {batch_size!r:.60}")
    if not 0 <= batch_size <= candidates.numel():
        raise InputError(
            f"batch_size must lie in [0, {candidates.numel()}], the users with at least one train "
            f"item and one missing item, got {batch_size}"
        )
    device = graph.device
    draw = torch.rand(3, batch_size, generator=generator, device=device, dtype=torch.float64)
    # Plain PyTorch is what a GPU is meant to run, so that is no reason for a warning.
    if device.type != "cpu" and requested_backend() == "auto":
        return triples_from_draws_reference(graph, draw)
    if not use_native("sample_bpr", device.type):
        return triples_from_draws_reference(graph, draw)
    index = graph.index
    return Triples(
        *torch.ops.mmssl.sample_bpr(draw, candidates, index.rowptr, index.col, graph.num_items)
    )


def _fake(
    draw: Tensor, candidates: Tensor, rowptr: Tensor, col: Tensor, num_items: int
) -> tuple[Tensor, Tensor, Tensor]:
    user, pos, neg = (candidates.new_empty(draw.shape[1]) for _ in range(3))
    return user, pos, neg


if _extension.ops is not None:
    torch.library.register_fake("mmssl::sample_bpr")(_fake)
