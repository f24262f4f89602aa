"""Popularity: every user gets the same list, the items with most train users first."""

from __future__ import annotations

import torch

from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.training.task import Task


def popularity(graph: InteractionGraph) -> Embeddings:
    """Return item degrees in the train graph as a model of one dimension: user 1, item its degree.

    Degrees are exact in float32 up to 2^24 users; equal ones rank by smaller item id.

    Returns:
        user (U, 1) and item (I, 1) float32, on the graph's device.
    """
    degree = graph.index.colptr.diff().float()[:, None]
    return Embeddings(torch.ones(graph.num_users, 1, device=graph.device), degree)


class PopularityTask(Task):
    """Popularity as a model in closed form."""

    def embed(self) -> Embeddings:
        """See the base class."""
        return popularity(self.graph)
