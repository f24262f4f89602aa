"""Arguments for the contract suite: valid ones, wrong ones, and a graph to make them of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mmssl.graph import InteractionGraph, Normalization


class Sample(NamedTuple):
    """Valid arguments of a public op."""

    label: str
    arguments: dict[str, Any]
    tiny: bool = True
    """Small enough for numerical differentiation."""


class Bad(NamedTuple):
    """One wrong argument and the start of the message that it must cause (a regular expression)."""

    argument: str
    value: Any
    message: str


def normal(dtype: torch.dtype, seed: int, *shapes: Sequence[int]) -> list[torch.Tensor]:
    """Draw tensors from the standard normal distribution, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def sample_graph(
    users: int,
    items: int,
    edges: int,
    normalization: Normalization = "row_sqrt",
    valued: bool = False,
) -> InteractionGraph:
    """Build a graph of random edges for a sample.

    Args:
        users: U.
        items: I.
        edges: number of drawn edges; repeated ones are merged.
        normalization: as in :class:`mmssl.graph.InteractionGraph`.
        valued: whether the edges have values.
    """
    generator = torch.Generator().manual_seed(users + edges)
    user, item = (torch.randint(max(n, 1), (edges,), generator=generator) for n in (users, items))
    value = torch.rand(edges, generator=generator) + 0.5 if valued else None
    return InteractionGraph.from_edges(
        user, item, users, items, normalization=normalization, value=value
    )


def sample_ids(seed: int, sizes: Mapping[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Draw int64 ids for the named arguments, one after the other.

    Args:
        seed: of the generator.
        sizes: for each name the number of rows, below which the ids are, and of ids.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(max(rows, 1), (count,), generator=generator)
        for name, (rows, count) in sizes.items()
    }


def make_strided(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the arguments of a sample with tables and arrays of ids that are not contiguous."""
    layouts = {1: lambda ids: ids.repeat(2)[::2], 2: lambda table: table.T.contiguous().T}
    return {
        name: layouts[value.dim()](value) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
