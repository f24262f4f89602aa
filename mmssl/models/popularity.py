"""Popularity: every user gets the same list, the items with most train users first."""

from __future__ import annotations

import torch

from mmssl.graph import InteractionGraph
from mmssl.models.lightgcn import IdEmbeddings


def popularity(graph: InteractionGraph) -> IdEmbeddings:
    """Item degree in the train graph as a model of one dimension: user 1, item its degree.

    Degrees are exact in float32 up to 2^24 users; equal ones rank by smaller item id.

    Returns:
        user (U, 1) and item (I, 1) float32, on the graph's device.
    """
    degree = graph.index.colptr.diff().float()[:, None]
    return IdEmbeddings(torch.ones(graph.num_users, 1, device=graph.device), degree)
