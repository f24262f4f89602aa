"""BPR triples from uniform draws in plain PyTorch.

Legend: B triples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmssl.graph import InteractionGraph


class Triples(NamedTuple):
    """BPR training triples, (B,) int64 each."""

    user: Tensor
    pos_item: Tensor
    neg_item: Tensor


def triples_from_draws_reference(graph: InteractionGraph, draw: Tensor) -> Triples:
    """The batch that :func:`mmssl.ops.sample_bpr` makes of its draws.

    The negative is the r-th missing item of the user, found by binary search.

    Args:
        graph: the train graph.
        draw: (3, B) float64 in [0, 1), for the users, their items and their missing items.
    """
    candidates = graph.trainable_users
    user = candidates[distinct_reference(draw[0], candidates.numel())]
    rowptr, col = graph.index.rowptr, graph.index.col
    degree = rowptr[user + 1] - rowptr[user]
    position = (draw[1] * degree).long().minimum(degree - 1)
    return Triples(user, col[rowptr[user] + position].long(), graph.missing_item(user, draw[2]))


def distinct_reference(draw: Tensor, count: int) -> Tensor:
    """The first B places of a shuffled ``arange(count)``, in O(B log B).

    Step b of the Fisher-Yates shuffle swaps place b with a uniform place p_b >= b. Instead of the
    array, follow one value back: what stands on a place was put there by the last step that swapped
    into it, and came from that step's own place, where the same holds; without such a step it is
    the place itself. All chains are followed at once, by doubling.

    Args:
        draw: (B,) float64 in [0, 1).
        count: at least B.
    """
    batch = draw.numel()
    step = torch.arange(batch, device=draw.device)
    place = step + (draw * (count - step)).long().minimum(count - step - 1)
    key = (place * batch + step).sort().values  # by place, then by step

    def last_step(at: Tensor) -> Tensor:
        """The last step before step b that swapped into place ``at[b]``; b if there is none."""
        slot = torch.searchsorted(key, at * batch + step) - 1
        found = key[slot.clamp_min(0)]
        there = (slot >= 0) & (found // max(batch, 1) == at)
        return torch.where(there, found % max(batch, 1), step)

    origin = last_step(step)
    for _ in range(max(batch - 1, 0).bit_length()):
        origin = origin[origin]
    source = last_step(place)
    return torch.where(source == step, place, origin[source])
