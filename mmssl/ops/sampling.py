"""BPR triples, drawn on the device of the graph.

Legend: U users, I items, B triples.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.ops._autograd import Operator
from mmssl.ops._cases import Bad, Sample, sample_graph
from mmssl.ops._registry import Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native


class Triples(NamedTuple):
    """BPR training triples, (B,) int64 each."""

    user: Tensor
    pos_item: Tensor
    neg_item: Tensor


def sample_bpr(
    graph: InteractionGraph, batch_size: int, generator: torch.Generator | None = None
) -> Triples:
    """Draw distinct users, and for each one of its items and one item it lacks, all uniform.

    A batch takes ``torch.rand(3, B)`` in float64 from the generator and nothing else, so the
    generator determines it, with every backend on one device alike. It costs O(B log B) for any
    number of users. The users are the first B of a shuffle, the negative is the r-th item that its
    user lacks: no draw is rejected and a positive is never returned as a negative. Nothing waits
    for the device.

    Args:
        graph: the train graph.
        batch_size: B, not more than the number of users that have an item and lack one.
        generator: a generator of the graph's device; None uses the default one.

    Returns:
        (B,) int64 each: user, pos_item, neg_item.

    Raises:
        InputError: ``batch_size`` is out of range.
        RuntimeError: backend "native" is required and no kernel exists for the device.

    Source: the sampler of Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit
    Feedback", UAI 2009, without its rejections; users without replacement as in the released MMSSL.
    """
    draw = _draw(graph, batch_size, generator)
    if not use_native("sample_bpr", graph.device.type):
        return triples_from_draws(graph, draw)
    index = graph.index
    return Triples(
        *torch.ops.mmssl.sample_bpr(
            draw, graph.trainable_users, index.rowptr, index.col, graph.num_items
        )
    )


def sample_bpr_reference(
    graph: InteractionGraph, batch_size: int, generator: torch.Generator | None = None
) -> Triples:
    """Compute :func:`sample_bpr` in plain PyTorch, from the same draws."""
    return triples_from_draws(graph, _draw(graph, batch_size, generator))


def _draw(graph: InteractionGraph, batch_size: int, generator: torch.Generator | None) -> Tensor:
    """(3, B) float64 in [0, 1) for the users, their items and their missing items."""
    if not isinstance(graph, InteractionGraph):
        raise InputError(f"graph: expected an InteractionGraph, got {type(graph).__name__}")
    count = graph.trainable_users.numel()
    if not isinstance(batch_size, numbers.Integral) or isinstance(batch_size, bool):
        raise InputError(f"batch_size: expected an integer, got {batch_size!r:.60}")
    if not 0 <= batch_size <= count:
        raise InputError(
            f"batch_size: expected an integer in [0, {count}], the users with at least one train "
            f"item and one missing item, got {batch_size}"
        )
    return torch.rand(3, batch_size, generator=generator, device=graph.device, dtype=torch.float64)


def triples_from_draws(graph: InteractionGraph, draw: Tensor) -> Triples:
    """Compute the batch that belongs to given draws in plain PyTorch.

    The negative is the r-th missing item of the user, found by binary search.

    Args:
        graph: the train graph.
        draw: (3, B) float64 in [0, 1), for the users, their items and their missing items.
    """
    candidates = graph.trainable_users
    user = candidates[shuffled_head(draw[0], candidates.numel())]
    return triples_of_users(graph, user, draw[1:])


def triples_of_users(graph: InteractionGraph, user: Tensor, draw: Tensor) -> Triples:
    """Compute the triples of given users in plain PyTorch.

    Args:
        graph: the train graph.
        user: (B,) int64, each with an item and a missing one.
        draw: (2, B) float64 in [0, 1), for their items and their missing items.
    """
    rowptr, col = graph.index.rowptr, graph.index.col
    degree = rowptr[user + 1] - rowptr[user]
    position = (draw[0] * degree).long().minimum(degree - 1)
    return Triples(user, col[rowptr[user] + position].long(), graph.missing_item(user, draw[1]))


def shuffled_head(draw: Tensor, count: int) -> Tensor:
    """Compute the first B entries of a shuffled ``arange(count)`` in O(B log B).

    Step b of the Fisher-Yates shuffle swaps position b with a uniform position p_b >= b. Instead of
    keeping the array, each value is traced back: the value at a position was put there by the last
    step that swapped into it and came from that step's own position, where the same holds; without
    such a step it is the position itself. All chains are followed at once, by doubling.

    Args:
        draw: (B,) float64 in [0, 1).
        count: at least B.
    """
    batch = draw.numel()
    step = torch.arange(batch, device=draw.device)
    target = step + (draw * (count - step)).long().minimum(count - step - 1)
    key = (target * batch + step).sort().values  # by position, then by step

    def last_step(at: Tensor) -> Tensor:
        """Find the last step before step b that swapped into position ``at[b]``, or b itself."""
        slot = torch.searchsorted(key, at * batch + step) - 1
        found = key[slot.clamp_min(0)]
        same = (slot >= 0) & (found // max(batch, 1) == at)
        return torch.where(same, found % max(batch, 1), step)

    origin = last_step(step)
    for _ in range(max(batch - 1, 0).bit_length()):
        origin = origin[origin]
    source = last_step(target)
    return torch.where(source == step, target, origin[source])


def _fake(
    draw: Tensor, candidates: Tensor, rowptr: Tensor, col: Tensor, num_items: int
) -> tuple[Tensor, Tensor, Tensor]:
    user, pos, neg = (candidates.new_empty(draw.shape[1]) for _ in range(3))
    return user, pos, neg


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(label: str, users: int, items: int, edges: int, share: float) -> Sample:
        graph = sample_graph(users, items, edges)
        batch_size = int(share * graph.trainable_users.numel())
        return Sample(label, {"graph": graph, "batch_size": batch_size}, tiny=users < 50)

    yield sample("typical", 8, 5, 12, 0.5)
    yield sample("all users", 30, 7, 90, 1)
    yield sample("one user", 1, 3, 2, 1)
    yield sample("no triple", 5, 4, 6, 0)
    yield sample("no edge", 3, 2, 0, 1)
    yield sample("large", 3000, 300, 9000, 1)


def _bad() -> Iterator[Bad]:
    yield Bad("graph", None, "graph: expected an InteractionGraph, got NoneType")
    for value in (2.0, True, None, "all"):
        yield Bad("batch_size", value, f"batch_size: expected an integer, got {value!r}")
    for value in (-1, 10**6):
        message = rf"batch_size: expected an integer in \[0, \d+\], the users .* got {value}"
        yield Bad("batch_size", value, message)


declare(
    Op(
        sample_bpr,
        Contract(_samples, _bad, derivatives=0),
        Words(
            "a batch of users, positives and exact negatives",
            "a Python loop",
        ),
        dtypes={"cpu": (), "cuda": ()},
        operators=(Operator("sample_bpr", fake=_fake),),
        folder="sampling",
    )
)
