"""The modality graphs: newest lists of those seen, interactions of the rest, saved and loaded."""

from __future__ import annotations

import pytest
import torch

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.mmssl.config import StructureConfig
from mmssl.models.mmssl.model import MultiModalEmbeddings
from mmssl.models.mmssl.structure import LatestStructure

USERS, ITEMS, K = 12, 9, 4


def make_graph() -> InteractionGraph:
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(USERS, (40,), generator=generator)
    item = torch.randint(ITEMS, (40,), generator=generator)
    # User 0 lacks two items only, fewer than k.
    full = torch.arange(ITEMS - 2)
    return InteractionGraph.from_edges(
        torch.cat([user, torch.zeros_like(full)]), torch.cat([item, full]), USERS, ITEMS
    )


def make_embeddings(seed: int) -> MultiModalEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    user, item = (torch.randn(2, n, 6, generator=generator) for n in (USERS, ITEMS))
    return MultiModalEmbeddings(user[0], item[0], user, item, user, item)


def expected(graph: InteractionGraph, lists: dict[int, set[int]]) -> torch.Tensor:
    dense = graph.ui.to_dense() > 0
    for user, items in lists.items():
        dense[user] = False
        dense[user, list(items)] = True
    return dense


@pytest.mark.parametrize("interval", [1, 2])
def test_newest_lists_of_those_seen(interval):
    graph = make_graph()
    config = StructureConfig(refresh_interval=interval, min_k=K)
    learner = LatestStructure(graph, 2, config)
    lists: list[dict[int, set[int]]] = [{}, {}]
    in_force = [expected(graph, {})] * 2
    for step, users in enumerate(([0, 3, 5], [3, 7, 11], [1, 5, 2])):
        embeddings, batch = make_embeddings(step), torch.tensor(users)
        learner.step(batch, embeddings, step)
        for modality in range(2):
            user, item = embeddings.user_feature[modality], embeddings.item_feature[modality]
            _, top = ops.masked_topk(user, item, K, users=batch, exclude=graph.ui)
            for u, row in zip(users, top.tolist(), strict=True):
                lists[modality][u] = {i for i in row if i >= 0}
        if (step + 1) % interval == 0:
            in_force = [expected(graph, own) for own in lists]
        for learned, dense in zip(learner.graphs, in_force, strict=True):
            assert torch.equal(learned.ui.to_dense() > 0, dense)
            assert torch.equal(learned.iu.to_dense() > 0, dense.T)
    assert 1 <= len(lists[0][0]) < K


def test_saved_and_loaded_graphs_have_the_same_arrays():
    graph = make_graph()
    learner = LatestStructure(graph, 2, StructureConfig(min_k=K))
    learner.step(torch.tensor([0, 4, 8]), make_embeddings(0), 0)
    restored = LatestStructure(graph, 2, StructureConfig(min_k=K))
    restored.load_state_dict(learner.state_dict())
    assert restored.steps == learner.steps
    for ours, theirs in zip(restored.graphs, learner.graphs, strict=True):
        for a, b in zip(ours.index[:4], theirs.index[:4], strict=True):
            assert torch.equal(a, b)
