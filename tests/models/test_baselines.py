"""LightGCN against the dense formula of the paper, its training, and popularity."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.config import load_config
from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.errors import Diverged, InputError
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.lightgcn import LightGCN, LightGCNTask
from mmssl.models.popularity import popularity
from mmssl.training.checkpoint import load_checkpoint, save_checkpoint
from mmssl.training.fit import fit_run
from mmssl.training.guards import Interrupted
from mmssl.training.pairwise import PairwiseTask
from mmssl.training.run import RunDirectory
from mmssl.training.task import create_task
from tests.models.truth import light_convolution


def make_dataset(num_groups: int = 4, users: int = 12, items: int = 10) -> InteractionDataset:
    """Users of a group like only the items of their group: easy to learn, impossible to guess."""
    rng = np.random.default_rng(7)
    splits: dict[str, list[tuple[int, int]]] = {"train": [], "val": [], "test": []}
    for user in range(num_groups * users):
        liked = rng.permutation(items)[:7] * num_groups + user % num_groups
        for rank, item in enumerate(liked):
            splits["train" if rank < 5 else "val" if rank == 5 else "test"].append((user, item))
    edges = {name: Interactions.from_edges(*np.array(pairs).T) for name, pairs in splits.items()}
    return InteractionDataset(
        name="groups", num_users=num_groups * users, num_items=num_groups * items, **edges
    )


def make_graph(dataset: InteractionDataset, normalization="sym") -> InteractionGraph:
    return InteractionGraph.from_edges(
        *dataset.train, dataset.num_users, dataset.num_items, normalization=normalization
    )


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_forward_is_the_papers_matrix_form(num_layers):
    # Equations 7 and 8: the mean over l of (D^-1/2 [[0, A], [A^T, 0]] D^-1/2)^l E.
    user, item = np.array([0, 0, 1, 3, 3]), np.array([0, 2, 2, 1, 2])
    graph = InteractionGraph.from_edges(user, item, 4, 5, normalization="sym")
    model = LightGCN(graph, embedding_dim=6, num_layers=num_layers).double()
    expected = torch.cat(light_convolution(graph, *model.ego(), num_layers))
    got = torch.cat(list(model()))
    # The graph keeps its scales in float32.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    got.square().sum().backward()
    assert model.user_embedding.grad is not None
    assert bool((model.user_embedding.grad[2] != 0).any())  # no edge, but still layer 0


def test_wrong_graphs_and_sizes():
    dataset = make_dataset()
    with pytest.raises(InputError, match="expected normalization 'sym', got 'row_sqrt'"):
        LightGCN(make_graph(dataset, "row_sqrt"))
    with pytest.raises(InputError, match="num_layers: expected at least 0, got -1"):
        LightGCN(make_graph(dataset), num_layers=-1)
    with pytest.raises(InputError, match="embedding_dim: expected at least 1, got 0"):
        LightGCN(make_graph(dataset), embedding_dim=0)


def train(dataset: InteractionDataset, path: Path, *settings: str, **options) -> RunDirectory:
    """A finished LightGCN run."""
    config = load_config(settings=[f"lightgcn.{setting}" for setting in settings])
    run = RunDirectory.new(path, "lightgcn", path, dataset, config)
    fit_run(run, dataset, show_progress=False, **options)
    return run


def test_training_finds_the_groups(tmp_path):
    dataset = make_dataset()
    seen = []
    settings = ("epochs=60", "lr=0.02", "batch_size=64")
    run = train(dataset, tmp_path / "run", *settings, on_epoch=seen.append)
    metrics = run.read_metrics()
    graph = make_graph(dataset)
    popular = Evaluator(dataset, "test", graph).evaluate(*popularity(graph))
    # Five items of the group are left, so the first five positions hold the held-out one.
    assert metrics["test"]["recall@10"] == 1.0
    assert popular["recall@10"] < 0.7
    assert seen == metrics["epochs"]
    assert [epoch["epoch"] for epoch in seen] == list(range(1, len(seen) + 1))
    assert seen[-1]["loss"]["bpr"] < seen[0]["loss"]["bpr"]
    best = max(epoch["val"]["recall@20"] for epoch in seen)
    assert metrics["val"]["recall@20"] == best
    assert seen[metrics["best_epoch"] - 1]["val"] == metrics["val"]
    # The reported numbers are those of the embeddings on disk.
    for split in ("val", "test"):
        evaluator = Evaluator(dataset, split, graph)
        assert evaluator.evaluate(*run.load_embeddings()) == metrics[split]


def test_patience_ends_the_training(tmp_path):
    # A vanishing learning rate leaves the ranking as it is, so epoch 1 stays the best.
    run = train(make_dataset(), tmp_path / "run", "epochs=50", "lr=1e-12", "patience=3")
    metrics = run.read_metrics()
    assert metrics["best_epoch"] == 1
    assert len(metrics["epochs"]) == 4


def test_same_seed_same_bits(tmp_path):
    dataset = make_dataset()

    def trained(name: str, seed: int) -> bytes:
        config = load_config(settings=["lightgcn.epochs=3", f"training.seed={seed}"])
        run = RunDirectory.new(tmp_path / name, "lightgcn", tmp_path, dataset, config)
        fit_run(run, dataset, show_progress=False)
        return (run.path / "model.safetensors").read_bytes()

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = trained("first", 5)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(10)
    assert trained("again", 5) == first
    assert trained("other", 6) != first


@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 11])
def test_stopped_and_resumed_is_bitwise_the_same(tmp_path, stop_after):
    """Within an epoch too: the order of its edges is drawn again from the checkpoint."""
    dataset = make_dataset()
    settings = ("epochs=3", "batch_size=64")  # four steps per epoch
    whole = train(dataset, tmp_path / "whole", *settings)
    polls = iter(range(10_000))
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "part", *settings, should_stop=lambda: next(polls) == stop_after)
    torch.manual_seed(999)  # nothing may depend on what the process did before
    part = RunDirectory.open(tmp_path / "part")
    assert load_checkpoint(part.checkpoint_path).state["step"] == stop_after % 4
    fit_run(part, dataset, show_progress=False, resume=True)
    first, second = (load_checkpoint(run.checkpoint_path) for run in (part, whole))
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.equal(second.tensors[name]), name
    got, expected = part.read_metrics(), whole.read_metrics()
    for name in ("val", "test", "best_epoch"):
        assert got[name] == expected[name]
    assert [e["loss"] for e in got["epochs"]] == [e["loss"] for e in expected["epochs"]]


def test_checkpoint_of_another_version(tmp_path):
    dataset = make_dataset()
    run = train(dataset, tmp_path / "run", "epochs=1")
    # The state that LightGCN checkpoints had before they were written by the shared trainer.
    state = {"best_epoch": 1, "history": [], "log_size": 0}
    save_checkpoint(run.checkpoint_path, {"model.user_embedding": torch.ones(2)}, state)
    with pytest.raises(InputError, match="expected a checkpoint of this version"):
        fit_run(run, dataset, show_progress=False, resume=True)


def test_a_step_is_that_of_autograd_and_adam():
    """The step of the CPU, and the one that any model and device takes, with one state."""
    dataset, config = make_dataset(), load_config(settings=["lightgcn.batch_size=50"])
    tasks = [create_task("lightgcn", dataset, config) for _ in range(2)]
    steps = LightGCNTask.train_on, PairwiseTask.train_on
    for task in tasks:
        task.start_epoch(0, 0)
    for number in range(4):
        pair = zip(tasks, steps, strict=True)
        torch.testing.assert_close(*(step(task, task._draw(number)) for task, step in pair))
        steps = steps[::-1] if number == 1 else steps
    one, other = (task.state() for task in tasks)
    assert one.keys() == other.keys() and one["optimizer.0.step"] == 4
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


def test_an_epoch_has_every_edge_once():
    """Also when the last batch is smaller; negatives are never train items."""
    dataset = make_dataset()
    config = load_config(settings=["lightgcn.batch_size=50"])
    task = create_task("lightgcn", dataset, config)
    assert task.steps_per_epoch == 5  # 240 edges
    drawn = []
    task.train_on = lambda batch: drawn.append(batch) or LightGCNTask.train_on(task, batch)
    orders = []
    for epoch in range(2):
        task.start_epoch(epoch, 0)
        for number in range(task.steps_per_epoch):
            task.step(number)
        user, pos, neg = (torch.cat(ids) for ids in zip(*drawn, strict=True))
        edges = dataset.train.user * 40 + dataset.train.item
        assert (user * 40 + pos).sort().values.tolist() == edges.tolist()
        assert not np.isin((user * 40 + neg).numpy(), edges).any()
        orders.append(user.tolist())
        drawn.clear()
    assert orders[0] != orders[1]
    for number in (-1, 5):
        with pytest.raises(
            InputError, match=f"^step: expected a number in 0 .. 4, .* got {number}$"
        ):
            task.step(number)


def test_negatives_are_uniform_over_the_missing_items():
    # User 0 has items 0, 1 and 4 of 6; user 1 has none; user 2 lacks only item 3.
    graph = InteractionGraph.from_edges(
        np.array([0, 0, 0, 2, 2, 2, 2, 2]), np.array([0, 1, 4, 0, 1, 2, 4, 5]), 3, 6
    )
    user = torch.arange(3).repeat_interleave(30_000)
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(user.numel(), generator=generator, dtype=torch.float64)
    items = graph.missing_item(user, draw).view(3, -1)
    for row, missing in zip(items, ([2, 3, 5], [0, 1, 2, 3, 4, 5], [3]), strict=True):
        share = torch.bincount(row, minlength=6) / row.numel()
        expected = torch.zeros(6)
        expected[missing] = 1 / len(missing)
        torch.testing.assert_close(share, expected, rtol=0, atol=0.015)  # > 5 sigma
        assert share[expected == 0].sum() == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=0", "lightgcn.epochs: expected >= 1, got 0"),
        ("batch_size=0", "lightgcn.batch_size: expected >= 1, got 0"),
        ("patience=0", "lightgcn.patience: expected >= 1, got 0"),
        ("lr=nan", "lightgcn.lr: expected a finite number, got nan"),
        ("lr=0.0", "lightgcn.lr: expected > 0, got 0.0"),
        ("reg=-1.0", "lightgcn.reg: expected >= 0, got -1.0"),
    ],
)
def test_bad_settings(tmp_path, setting, message):
    with pytest.raises(InputError, match=message):
        train(make_dataset(), tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


def test_divergence(tmp_path):
    """The message names the model's own section and no option that the model lacks."""
    with pytest.raises(Diverged) as caught:
        train(make_dataset(), tmp_path / "run", "epochs=3", "lr=1e30")
    message = str(caught.value)
    assert re.search(
        r"training diverged: loss term \w+ is (nan|inf).* in epoch 2, step 1;", message
    )
    assert "the checkpoint after 1 epochs and 0 steps is intact" in message
    assert message.endswith("(--set lightgcn.lr=2.5e+29)")


def test_nothing_to_learn_from(tmp_path):
    # The only user with train edges has every item, so no negative exists.
    dataset = dataclasses.replace(
        make_dataset(),
        num_users=2,
        num_items=2,
        train=Interactions.from_edges([0, 0], [0, 1]),
        val=Interactions.from_edges([1], [0]),
        test=Interactions.from_edges([1], [1]),
    )
    with pytest.raises(InputError, match="an edge of a user who lacks an item, got none"):
        train(dataset, tmp_path / "run", "epochs=1")
    assert not (tmp_path / "run").exists()


def test_popularity_is_the_train_degree():
    graph = InteractionGraph.from_edges(np.array([0, 1, 2, 2]), np.array([1, 1, 1, 3]), 3, 4)
    user, item = popularity(graph)
    assert user.tolist() == [[1.0]] * 3
    assert item.tolist() == [[0.0], [3.0], [0.0], [1.0]]
