"""`plus` against naive formulas: forward, losses and gradients, negatives, pruning."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from mmssl import ops
from mmssl.config import PlusConfig, load_config
from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.errors import InputError
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.plus.loss import catalog_softmax, density_temperature, with_offset
from mmssl.models.plus.model import Plus
from mmssl.models.plus.task import PlusTask, distinct
from mmssl.models.pruning import prune
from mmssl.ops import Triples


def dense_softmax(user, item, positive, temperature):
    scores = F.normalize(user) @ F.normalize(item).T / temperature
    return F.cross_entropy(scores, positive)


@pytest.mark.parametrize("batch", [1, 3, 64, 65, 130])
@pytest.mark.parametrize("temperature", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_catalog_softmax_is_cross_entropy_over_all_items(batch, temperature, backend):
    generator = torch.Generator().manual_seed(batch)
    shape = {"generator": generator, "dtype": torch.float64}
    user = torch.randn(batch, 5, **shape, requires_grad=True)
    item = torch.randn(7, 5, **shape, requires_grad=True)
    positive = torch.randint(7, (batch,), generator=generator)
    with ops.backend(backend):
        got = catalog_softmax(user, item, positive, temperature)
    expected = dense_softmax(user, item, positive, temperature)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for a, b in zip(
        torch.autograd.grad(got, (user, item)),
        torch.autograd.grad(expected, (user, item)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_catalog_softmax_in_float32_where_the_positive_is_worst():
    # All other users' positives beat the own one by exp(40): the part taken out is the larger.
    user = torch.eye(2).repeat_interleave(32, 0)
    item = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    positive = torch.tensor([1, 3]).repeat_interleave(32)
    got = catalog_softmax(user, item, positive, 0.05)
    expected = dense_softmax(user.double(), item.double(), positive, 0.05)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


def test_drawn_items_estimate_the_sum_without_bias():
    """The mean over all draws of K items is the sum over the catalog, whatever the positive."""
    torch.manual_seed(0)
    user, item = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    positive = torch.tensor([0, 1, 2, 3, 4, 5])
    scores = F.normalize(user) @ F.normalize(item).T / 0.3
    exact = scores.exp().sum(1)
    for size in (1, 2, 5):
        drawn = torch.combinations(torch.arange(6), size)
        sums = torch.zeros(6, dtype=torch.float64)
        for items in drawn:
            for row in range(6):
                loss = catalog_softmax(
                    user[row : row + 1], item, positive[row : row + 1], 0.3, items
                )
                sums[row] += (loss + scores[row, row]).exp()  # the estimated denominator
        torch.testing.assert_close(sums / len(drawn), exact)


def test_drawing_every_item_is_the_exact_loss():
    torch.manual_seed(1)
    user, item = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4)
    positive = torch.randint(5, (9,))
    got = catalog_softmax(user, item, positive, 0.2, torch.randperm(5))
    expected = dense_softmax(user, item, positive, 0.2)
    torch.testing.assert_close(got, expected)
    only_itself = catalog_softmax(user[:1], item, positive[:1], 0.2, positive[:1])
    (gradient,) = torch.autograd.grad(only_itself, user)
    assert only_itself.item() == 0 and not gradient.any()


def small_graph(num_users: int = 6, num_items: int = 5) -> InteractionGraph:
    generator = torch.Generator().manual_seed(3)
    adjacency = torch.rand(num_users, num_items, generator=generator) < 0.5
    adjacency[:, 0] = True
    return InteractionGraph.from_edges(
        *adjacency.nonzero().T, num_users, num_items, normalization="sym"
    )


@pytest.mark.parametrize("num_layers", [0, 2])
def test_forward_is_the_dense_formula(num_layers):
    graph = small_graph()
    pairs = torch.tensor([[0, 1], [0, 2], [1, 0], [3, 4]])
    value = torch.tensor([1.0, 3.0, 1.0, 2.0])
    items = InteractionGraph.from_edges(*pairs.T, 5, 5, normalization="row", value=value).ui
    model = Plus(graph, items, embedding_dim=3, num_layers=num_layers, item_weight=0.7).double()
    neighbors = torch.zeros(5, 5, dtype=torch.float64)
    neighbors[0, 1], neighbors[0, 2], neighbors[1, 0], neighbors[3, 4] = 0.25, 0.75, 1, 1
    adjacency = graph.ui.to_dense(torch.float64)  # D_u^-1/2 A D_i^-1/2

    def convolution(user, item):
        layer, users, total = (user, item), user, item
        for _ in range(num_layers):
            layer = adjacency @ layer[1], adjacency.T @ layer[0]
            users, total = users + layer[0], total + layer[1]
        return users / (num_layers + 1), total / (num_layers + 1)

    user, item = model.user_embedding, model.item_embedding
    expected = convolution(user, item + 0.7 * neighbors @ item)
    close = {"rtol": 1e-6, "atol": 1e-7}  # the graph keeps its scales in float32
    final, *views = model()
    torch.testing.assert_close(tuple(final), expected, **close)
    assert views == [None, None]
    final, interaction, modality = model(views=True)
    torch.testing.assert_close(tuple(final), expected, **close)
    torch.testing.assert_close(tuple(interaction), convolution(user, item), **close)
    without = torch.zeros_like(user)
    expected = convolution(without, 0.7 * neighbors @ item)
    torch.testing.assert_close(tuple(modality), expected, **close)
    model.item_graph = None
    torch.testing.assert_close(tuple(model().final), convolution(user, item), **close)


def test_refuses_another_normalization():
    graph = InteractionGraph.from_edges([0], [0], 1, 1, normalization="row")
    with pytest.raises(InputError, match="graph: expected normalization 'sym', got 'row'"):
        Plus(graph, None)


@pytest.mark.parametrize("temperature", [0.05, 0.4])
def test_the_offset_is_added_to_the_score(temperature):
    torch.manual_seed(0)
    user, item = torch.randn(2, 3, 4).double(), torch.randn(5, 4).double()
    offset = torch.tensor([[-1.0], [0.0], [0.5], [2.0], [-3.0]]).double()
    users, items, scaled = with_offset(user, item, offset, temperature, largest=3.0)
    assert users.shape == (2, 3, 5) and items.shape == (5, 5)
    got = F.normalize(users, dim=-1) @ F.normalize(items, dim=-1).T / scaled
    cosine = F.normalize(user, dim=-1) @ F.normalize(item, dim=-1).T
    shrunk = cosine * (1 - (offset / 30).square()).sqrt().T
    torch.testing.assert_close(got, shrunk / temperature + offset.T)
    torch.testing.assert_close(items.norm(dim=1), torch.full((5,), 30.0).double())


@pytest.mark.parametrize(("per_item", "expected"), [(1, 0.3), (18, 0.3), (64, 0.2), (1000, 0.08)])
def test_dense_data_get_a_low_temperature(per_item, expected):
    user, item = torch.arange(per_item).repeat(3), torch.arange(3).repeat_interleave(per_item)
    graph = InteractionGraph.from_edges(user, item, per_item, 3)
    assert density_temperature(graph.num_items, graph.nnz) == pytest.approx(expected)


def test_the_temperature_is_that_of_the_density_unless_given(tiny_dataset):
    task = task_for(tiny_dataset)
    assert task.temperature == density_temperature(task.graph.num_items, task.graph.nnz)
    assert task.selected == {"plus.temperature": task.temperature}
    task = task_for(tiny_dataset, "plus.temperature=0.7")
    assert task._scored(*task.model().final, 0.0).temperature == 0.7
    assert not task.selected


def task_for(dataset, *settings: str) -> PlusTask:
    fixed = ("model.embedding_dim=8", "plus.batch_size=32", "plus.num_neighbors=4")
    return PlusTask(dataset, load_config("plus", settings=(*fixed, *settings)), "cpu")


def test_a_step_computes_the_documented_loss(tiny_dataset):
    settings = ("plus.contrast_weight=0.3", "plus.contrast_temperature=0.7", "plus.reg=0.01")
    settings = (*settings, "plus.temperature=0.6", "plus.item_weight=0.5", "plus.popularity=0.8")
    settings = (*settings, "plus.ranking_popularity=0.8")
    task = task_for(tiny_dataset, *settings)
    task.start_epoch(0, 0)
    batch = task._draw(0)
    got = task.losses(batch)
    (user, item), interaction, modality = task.model(views=True)
    degree = torch.bincount(torch.from_numpy(tiny_dataset.train.item), minlength=50)
    scores = F.normalize(user[batch.user]) @ F.normalize(item).T / 0.6 + 0.8 * degree.log1p()
    expected = F.cross_entropy(scores, batch.pos_item)
    torch.testing.assert_close(got["ranking"], expected, rtol=5e-3, atol=0)  # shrunk by .995
    # The exported embeddings rank by the same scores.
    table = task.embed()
    for row in (0, 17):
        order = (table.user[batch.user[row]] @ table.item.T).argsort()
        assert (order == scores[row].argsort()).float().mean() > 0.9

    def contrast(first, second):
        z, y = F.normalize(first), F.normalize(second)
        cross, intra = z @ y.T / 0.7, z @ z.T / 0.7
        intra = intra.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return (torch.cat([cross, intra], 1).logsumexp(1) - cross.diagonal()).mean()

    users, items = batch.user.unique(), batch.pos_item.unique()
    expected = contrast(interaction.user[users], modality.user[users])
    expected = expected + contrast(interaction.item[items], modality.item[items])
    torch.testing.assert_close(got["contrast"], 0.3 * expected)
    ego_user, ego_item = task.model.user_embedding, task.model.item_embedding
    squares = ego_user[batch.user].square().sum() + ego_item[batch.pos_item].square().sum()
    torch.testing.assert_close(got["l2"], 0.01 / 2 * squares / batch.user.numel())


def test_distinct_ids_are_padded():
    ids = torch.randint(9, (4, 16), generator=torch.Generator().manual_seed(0))
    ids[3] = torch.arange(16).flip(0)
    found, count = distinct(ids)
    for batch, got, number in zip(ids, found, count, strict=True):
        assert torch.equal(got[:number], batch.unique())
        assert (got[number:] == got[0]).all()
    assert count[3] == 16 and distinct(ids[:, :1])[1].tolist() == [1, 1, 1, 1]


def test_bpr_compares_dot_products(tiny_dataset):
    task = task_for(tiny_dataset, "plus.ranking=bpr", "plus.item_weight=0")
    task.start_epoch(0, 0)
    user, pos_item, neg_item = task._draw(0)
    final = task.model().final
    margin = (final.user[user] * (final.item[pos_item] - final.item[neg_item])).sum(1)
    got = task.losses(Triples(user, pos_item, neg_item))
    torch.testing.assert_close(got["ranking"], -F.logsigmoid(margin).mean())
    assert torch.equal(task.embed().item, task.model().final.item)


def test_embeddings_of_the_softmax_have_unit_length(tiny_dataset):
    for popularity, width in ((0, 8), (0.5, 9)):
        for table in task_for(tiny_dataset, f"plus.ranking_popularity={popularity}").embed():
            assert table.shape[1] == width
            torch.testing.assert_close(table.norm(dim=1), torch.ones(len(table)))


def test_validation_chooses_the_weight_of_popularity(tiny_dataset):
    task = task_for(tiny_dataset)
    recalls, tables = [], []
    for weight in (0.0, 0.15, 0.3, 0.5, 0.7, 1.0):
        fixed = task_for(tiny_dataset, f"plus.ranking_popularity={weight}")  # the same seed
        tables.append(fixed.embed())
        evaluator = Evaluator(tiny_dataset, "val", task.graph)
        recalls.append(evaluator.evaluate(*tables[-1])["recall@20"])
    assert len(set(recalls)) > 1
    assert torch.equal(task.embed().item, tables[recalls.index(max(recalls))].item)


def test_equal_degrees_give_no_offset(tiny_dataset):
    train = Interactions.from_edges([0, 1], [0, 1])
    val, test = Interactions.from_edges([0], [1]), Interactions.from_edges([1], [0])
    splits = {"train": train, "val": val, "test": test}
    dataset = InteractionDataset(name="flat", num_users=2, num_items=2, **splits)
    task = task_for(dataset, "plus.ranking_popularity=0.5")
    task.start_epoch(0, 0)
    assert all(map(math.isfinite, task.step(0).tolist()))
    assert all(bool(table.isfinite().all()) for table in task.embed())


def test_pruned_edges_follow_their_weights():
    graph = InteractionGraph.from_edges([0, 0, 1, 1], [0, 1, 0, 1], 2, 2, normalization="sym")
    weight = torch.tensor([1.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    draws = 20_000
    for _ in range(draws):
        kept = prune(graph, weight, 0.75, generator)
        assert kept.nnz == 1 and kept.normalization == "sym"
        counts[2 * kept.ui.row_of_edge() + kept.index.col] += 1
    torch.testing.assert_close(counts / draws, weight.float() / 8, rtol=0, atol=0.014)  # 4 sigma
    assert prune(graph, weight, 0.5, generator).nnz == 2
    assert prune(graph, weight, 0.2, generator).nnz == 4


def test_pruning_spares_rare_items(tiny_dataset):
    task = task_for(tiny_dataset, "plus.prune=0.5", "plus.contrast_weight=0")
    user, item = task.graph.ui.row_of_edge(), task.graph.index.col.long()
    degrees = task.graph.index.rowptr.diff()[user] * task.graph.index.colptr.diff()[item]
    torch.testing.assert_close(task.pruning.weight, degrees.double().rsqrt())
    task.start_epoch(0, 0)
    first, dense = task.pruned, task.pruned.ui.to_dense()
    assert first.nnz == task.graph.nnz - task.graph.nnz // 2
    task.start_epoch(1, 0)
    # The next one is in the arrays of the first, where a step that was recorded reads it.
    assert task.pruned is first and task.graph.nnz > first.nnz
    assert not torch.equal(first.ui.to_dense(), dense)
    assert torch.equal(first.iu.to_dense(), first.ui.to_dense().T)
    edges = first.ui.row_of_edge(), first.index.col.long()
    fresh = InteractionGraph.from_edges(*edges, 80, 50, normalization="sym")
    assert torch.equal(fresh.ui.to_dense(), first.ui.to_dense())
    # The propagation of a step uses the pruned graph, the evaluation the whole one.
    seen = []
    task.model.register_forward_hook(lambda module, inputs, views: seen.append(views.final.item))
    task.losses(task._draw(0))
    task.embed()
    assert torch.equal(seen[0], task.model(task.pruned).final.item)
    assert torch.equal(seen[1], task.model().final.item)


def test_a_step_draws_negatives_only_if_asked(tiny_dataset):
    assert task_for(tiny_dataset)._draw_items() is None
    assert task_for(tiny_dataset, "plus.negatives=50")._draw_items() is None  # the whole catalog
    task = task_for(tiny_dataset, "plus.negatives=10")
    drawn = [task._draw_items() for _ in range(600)]
    assert all(len(items.unique()) == 10 for items in drawn)
    share = torch.bincount(torch.cat(drawn), minlength=50) / 600
    torch.testing.assert_close(share, torch.full((50,), 0.2), rtol=0, atol=0.08)  # 5 sigma


def test_without_modalities(tiny_dataset):
    task = task_for(dataclasses.replace(tiny_dataset, features={}), "plus.contrast_weight=1.0")
    task.start_epoch(0, 0)
    terms = dict(zip(task.terms, task.step(0).tolist(), strict=True))
    assert terms["contrast"] == 0 and math.isfinite(terms["ranking"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("plus.temperature=0", 'plus.temperature: expected > 0 or "density", got 0'),
        ("plus.temperature=low", "expected a finite number or \"density\", got 'low'"),
        ("plus.negatives=0", 'plus.negatives: expected >= 1 or "all", got 0'),
        ("plus.negatives=some", "plus.negatives: expected an integer or \"all\", got 'some'"),
        ("plus.ranking=triplet", 'plus.ranking: expected "softmax" or "bpr"'),
        ("plus.prune=1.0", "plus.prune: expected in [0, 1), got 1.0"),
        ("plus.num_neighbors=0", "plus.num_neighbors: expected >= 1, got 0"),
        ("plus.modality_weights=1", "plus.modality_weights: expected a table of numbers, got 1"),
        ("plus.modality_weights.text=x", "expected a table of numbers, got {'text': 'x'}"),
        ("plus.modality_weights.text=-1.0", "plus.modality_weights: expected weights >= 0 by"),
        ("plus.modality_weights.text=nan", "plus.modality_weights: expected weights >= 0 by"),
        ("plus.ranking_popularity=-1.0", 'plus.ranking_popularity: expected >= 0 or "validation"'),
        ("plus.ranking_popularity=test", "expected a finite number or \"validation\", got 'test'"),
        ("plus.ranking_popularity=inf", "plus.ranking_popularity: expected a finite number"),
        ("plus.lr=nan", "plus.lr: expected a finite number, got nan"),
    ],
)
def test_refuses_settings(setting, words):
    with pytest.raises(InputError) as caught:
        load_config("plus", settings=[setting])
    assert words in str(caught.value), caught.value


def test_modality_weights_are_set_one_by_one(tmp_path):
    settings = ["plus.modality_weights={image=0.1}", "plus.modality_weights.text=1"]
    config = load_config("plus", settings=settings)
    assert config.plus.modality_weights == {"image": 0.1, "text": 1.0}
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert load_config("plus", file=tmp_path / "c.toml") == config
    assert PlusConfig().modality_weights == {}
