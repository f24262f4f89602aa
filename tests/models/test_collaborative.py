"""BPR-MF, LayerGCN, SGL and XSimGCL against the dense equations of their papers in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.config import load_config
from mmssl.errors import InputError
from mmssl.models.layergcn import refined
from mmssl.training.task import create_task
from tests.models import truth

SETTINGS = {
    "bprmf": ("lr=0.02",),
    "layergcn": ("lr=0.02", "prune=0.2"),
    "sgl": ("lr=0.02",),
    "xsimgcl": ("lr=0.02",),
}


def task_for(name, dataset, *settings):
    settings = ["model.embedding_dim=8", *(f"{name}.{s}" for s in settings)]
    return create_task(name, dataset, load_config(settings=settings))


def started(name, dataset, *settings):
    """A task with small weights that are not those of its start, and a batch of it."""
    task = task_for(name, dataset, "batch_size=60", *settings)
    for table in task.model.parameters():
        torch.nn.init.normal_(table, std=0.3)
    task.start_epoch(0, 0)
    return task, task._draw(0)


def check(task, losses, formula):
    """Compare losses, gradients and what ranks items with a formula in float64.

    The formula returns the terms of the loss and the final embeddings for two tables.
    """
    parameters = truth.trainable(task.model)
    sum(losses.values()).backward()
    terms, final = formula(parameters["user_embedding"], parameters["item_embedding"])
    assert set(losses) == set(terms) == set(task.terms)
    truth.check_step(task, losses, terms, final, parameters, 1e-5)


def test_bprmf(tiny_dataset):
    task, batch = started("bprmf", tiny_dataset, "reg=0.1")

    def expected(user, item):
        l2 = 0.1 * truth.ego_penalty(user, item, batch)
        return {"bpr": truth.bpr(user, item, batch), "l2": l2}, (user, item)

    check(task, task.losses(batch), expected)


def layergcn(graph, user, item, num_layers):
    adjacency, ego = truth.normalized_adjacency(graph), torch.cat((user, item))
    layer, total = ego, 0
    for _ in range(num_layers):
        hop = adjacency @ layer
        norms = (hop.norm(dim=1) * ego.norm(dim=1)).clamp_min(1e-8)
        layer = ((hop * ego).sum(1) / norms)[:, None] * hop
        total = total + layer
    return total[: len(user)], total[len(user) :]


def test_layergcn(tiny_dataset):
    task, batch = started("layergcn", tiny_dataset, "num_layers=3", "prune=0.5", "reg=0.1")
    assert task.pruned.nnz == task.graph.nnz - task.graph.nnz // 2

    def expected(user, item):
        terms = {
            "bpr": truth.bpr(*layergcn(task.pruned, user, item, 3), batch),
            "l2": 0.1 * truth.ego_penalty(user, item, batch),
        }
        # What ranks items is propagated over all train edges.
        return terms, layergcn(task.graph, user, item, 3)

    check(task, task.losses(batch), expected)


def test_the_gradient_of_layergcns_refinement():
    generator = torch.Generator().manual_seed(0)
    layer, ego = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(refined, (layer.requires_grad_(), ego.requires_grad_()))
    isolated = layer.detach().clone()
    isolated[2] = 0  # a node that pruning has left without edges
    ours = isolated.requires_grad_(), ego.detach().clone().requires_grad_()
    result = refined(*ours)
    plain = [table.detach().clone().requires_grad_() for table in ours]
    expected = torch.cosine_similarity(*plain)[:, None] * plain[0]
    grad = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    theirs = torch.autograd.grad(expected, plain, grad)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(torch.autograd.grad(result, ours, grad), theirs)


def test_sgl(tiny_dataset):
    settings = ("num_layers=2", "dropout=0.3", "reg=0.1", "contrast_weight=0.7")
    task, batch = started("sgl", tiny_dataset, *settings, "contrast_temperature=0.4")
    first, second = task.subgraphs
    whole, *parts = (
        set(zip(graph.ui.row_of_edge().tolist(), graph.index.col.tolist(), strict=True))
        for graph in (task.graph, *task.subgraphs)
    )
    kept = len(whole) - int(0.3 * len(whole))
    assert all(len(part) == kept and part < whole for part in parts) and parts[0] != parts[1]

    def expected(user, item):
        one = truth.light_convolution(first, user, item, 2)
        two = truth.light_convolution(second, user, item, 2)
        of_users = truth.contrast(one[0], two[0], batch.user, 0.4)
        of_items = truth.contrast(one[1], two[1], batch.pos_item, 0.4)
        final = truth.light_convolution(task.graph, user, item, 2)
        terms = {
            "bpr": truth.bpr(*final, batch),
            "l2": 0.1 * truth.ego_penalty(user, item, batch),
            "contrast": 0.7 * (of_users + of_items),
        }
        return terms, final

    check(task, task.losses(batch), expected)
    task.start_epoch(1, 0)
    assert not any(torch.equal(first.index.col, graph.index.col) for graph in task.subgraphs)


@pytest.mark.parametrize("layer", [1, 3])
def test_xsimgcl(tiny_dataset, layer):
    settings = ("num_layers=3", f"contrast_layer={layer}", "noise=0.1", "reg=0.1")
    more = ("contrast_weight=0.7", "contrast_temperature=0.4")
    task, batch = started("xsimgcl", tiny_dataset, *settings, *more)
    state = task.generator.get_state()
    losses = task.losses(batch)
    task.generator.set_state(state)
    drawn = [
        [torch.rand(rows, 8, generator=task.generator).double() for rows in (80, 50)]
        for _ in range(3)
    ]

    def layers_of(user, item, noise):
        adjacency, layer, layers = (
            truth.normalized_adjacency(task.graph),
            torch.cat((user, item)),
            [],
        )
        for uniform in drawn:
            layer = adjacency @ layer
            if noise:
                step = torch.cat([part / part.norm(dim=1, keepdim=True) for part in uniform])
                layer = layer + noise * torch.sign(layer.detach()) * step
            layers.append(layer)
        return layers

    def expected(user, item):
        layers = layers_of(user, item, 0.1)
        final, other = torch.stack(layers).mean(0), layers[layer - 1]
        terms = []
        for ids in (batch.user.unique(), 80 + batch.pos_item.unique()):
            scores = F.normalize(final[ids]) @ F.normalize(other[ids]).T / 0.4
            terms.append(-scores.log_softmax(1).diagonal().mean())
        losses = {
            "bpr": truth.bpr(final[:80], final[80:], batch),
            "l2": 0.1 * truth.ego_penalty(user, item, batch),
            "contrast": 0.7 * sum(terms),
        }
        quiet = torch.stack(layers_of(user, item, 0)).mean(0)
        return losses, (quiet[:80], quiet[80:])

    check(task, losses, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_training_lowers_the_loss(tiny_dataset, name):
    task = task_for(name, tiny_dataset, "batch_size=100", *SETTINGS[name])
    first, *_, last = truth.loss_of_epochs(task, 12)
    assert last < 0.95 * first


def test_the_contrasted_layer_exists():
    words = "xsimgcl.contrast_layer: expected at most xsimgcl.num_layers = 2, got 3"
    with pytest.raises(InputError, match=words):
        load_config(settings=["xsimgcl.contrast_layer=3"])
