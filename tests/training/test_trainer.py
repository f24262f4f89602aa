"""The loop: it learns, repeats itself bit for bit, stops and continues anywhere."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from mmssl import ops
from mmssl.config import Config, load_config
from mmssl.errors import Diverged, InputError
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.popularity import popularity
from mmssl.training.guards import Interrupted
from mmssl.training.run import RunDirectory
from mmssl.training.task import create_task
from mmssl.training.trainer import Trainer

# Small enough for a test, every part of the step switched on.
SETTINGS = (
    "model.embedding_dim=16",
    "training.batch_size=24",
    "training.lr=0.01",
    "structure.top_k_rate=0.06",
    "structure.refresh_interval=2",
)


def config_for(variant: str, *settings: str) -> Config:
    return load_config(variant, settings=(*SETTINGS, *settings))


def new_trainer(dataset, directory, config, path, *, model: str = "mmssl", **options) -> Trainer:
    run = RunDirectory.new(path, model, directory, dataset, config)
    trainer = trainer_of(run, dataset, **options)
    run.initialize()
    return trainer


def trainer_of(run: RunDirectory, dataset, **options) -> Trainer:
    task = create_task(run.info.model, dataset, run.config)
    return Trainer(task, dataset, run, show_progress=False, **options)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert trainer.task.critic is not None
    state = {f"model.{k}": v for k, v in trainer.task.model.state_dict().items()}
    return state | {f"critic.{k}": v for k, v in trainer.task.critic.state_dict().items()}


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_learns(tiny_dataset, tiny_directory, tmp_path, variant):
    config = config_for(variant, "training.epochs=10")
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    metrics = trainer.fit()
    graph = InteractionGraph.from_edges(
        *tiny_dataset.train, tiny_dataset.num_users, tiny_dataset.num_items
    )
    baseline = Evaluator(tiny_dataset, "test", graph).evaluate(*popularity(graph))
    assert metrics["test"]["recall@10"] > baseline["recall@10"] + 0.1
    bpr = [epoch["loss"]["bpr"] for epoch in metrics["epochs"]]
    assert bpr[-1] < bpr[0]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_same_curve_with_and_without_the_kernels(tiny_dataset, tiny_directory, tmp_path, variant):
    """Kernels and plain PyTorch round differently; a training run must not notice."""
    if not any(s.op == "info_nce" and s.backend == "native" for s in ops.status()):
        pytest.skip("no kernels: the extension is not loaded")
    curves = []
    for backend in ("reference", "auto"):
        with ops.backend(backend):
            config = config_for(variant, "training.epochs=3")
            trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / backend)
            epochs = trainer.fit()["epochs"]
        curves.append([part for epoch in epochs for part in epoch["loss"].values()])
    torch.testing.assert_close(
        torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=2e-4, atol=1e-5
    )


def test_run_directory(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=2")
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    returned = trainer.fit()
    run = RunDirectory.open(tmp_path / "run")
    assert run.config == config
    assert run.read_data().content_hash() == tiny_dataset.content_hash()
    metrics = run.read_metrics()
    assert metrics is not None
    assert {k: metrics[k] for k in returned} == json.loads(json.dumps(returned))
    assert metrics["variant"] == "paper" and metrics["seed"] == config.training.seed
    assert set(metrics["environment"]) >= {"torch", "threads", "ops", "mmssl"}
    assert metrics["timing"]["seconds_per_step"] > 0
    lines = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    # The metrics are those of the embeddings on disk.
    user, item = run.load_embeddings()
    assert (
        Evaluator(tiny_dataset, "test", trainer.task.model.graph).evaluate(user, item)
        == (metrics["test"])
    )
    assert metrics["val"] == metrics["epochs"][metrics["best_epoch"] - 1]["val"]


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("stop_after", [1, 7, 11])
def test_stopped_and_resumed_is_bitwise_the_same(
    tiny_dataset, tiny_directory, tmp_path, variant, stop_after
):
    config = config_for(variant, "training.epochs=3")
    whole = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "whole")
    expected = whole.fit()

    polls = iter(range(1, 10_000))
    part = new_trainer(
        tiny_dataset,
        tiny_directory,
        config,
        tmp_path / "part",
        should_stop=lambda: next(polls) == stop_after,
    )
    with pytest.raises(Interrupted):
        part.fit()
    del part
    torch.manual_seed(999)  # nothing may depend on what the process did before
    resumed = trainer_of(RunDirectory.open(tmp_path / "part"), tiny_dataset)
    assert resumed.resume()
    got = resumed.fit()
    assert_same_bits(weights(resumed), weights(whole))
    for split in ("val", "test"):
        assert got[split] == expected[split]
    losses = [[epoch["loss"] for epoch in m["epochs"]] for m in (got, expected)]
    assert losses[0] == losses[1]


def test_released_defaults_empty_the_graphs_and_resume(tiny_dataset, tiny_directory, tmp_path):
    """k = int(50 * 1e-4) = 0, as on TikTok and Baby: no edge is ever collected."""
    settings = ("structure.top_k_rate=1e-4", "structure.refresh_interval=1", "training.epochs=2")
    config = config_for("released", *settings)
    whole = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "whole")
    whole.fit()
    assert [graph.nnz for graph in whole.task.model.modality_graphs] == [0, 0]
    polls = iter(range(1, 10_000))
    options = {"should_stop": lambda: next(polls) == whole.task.steps_per_epoch + 2}
    part = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "part", **options)
    with pytest.raises(Interrupted):
        part.fit()
    resumed = trainer_of(RunDirectory.open(tmp_path / "part"), tiny_dataset)
    resumed.resume()
    resumed.fit()
    assert_same_bits(weights(resumed), weights(whole))


def test_more_epochs_continue_a_finished_run(tiny_dataset, tiny_directory, tmp_path):
    short = config_for("paper", "training.epochs=2")
    long = config_for("paper", "training.epochs=4")
    whole = new_trainer(tiny_dataset, tiny_directory, long, tmp_path / "whole")
    whole.fit()
    new_trainer(tiny_dataset, tiny_directory, short, tmp_path / "part").fit()
    run = RunDirectory.open(tmp_path / "part")
    run.change(["training.epochs=4"])
    resumed = trainer_of(run, tiny_dataset)
    resumed.resume()
    resumed.fit()
    assert_same_bits(weights(resumed), weights(whole))


def test_seed_decides_everything(tiny_dataset, tiny_directory, tmp_path):
    def train(name: str, seed: int) -> dict[str, torch.Tensor]:
        config = config_for("paper", "training.epochs=1", f"training.seed={seed}")
        trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / name)
        trainer.fit()
        return weights(trainer)

    first = train("a", 1)
    assert_same_bits(first, train("b", 1))
    other = train("c", 2)
    assert not torch.equal(first["model.user_embedding"], other["model.user_embedding"])


def test_reference_and_chosen_backend_train_alike(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=2")
    curves = []
    for backend in ("auto", "reference"):
        with ops.backend(backend):
            trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / backend)
            curves.append([epoch["loss"] for epoch in trainer.fit()["epochs"]])
    for first, second in zip(*curves, strict=True):
        assert first == pytest.approx(second, rel=2e-3)


def test_early_stopping(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=200", "training.patience=2", "training.lr=0.03")
    metrics = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run").fit()
    assert len(metrics["epochs"]) == metrics["best_epoch"] + 2 < 200
    recalls = [epoch["val"]["recall@20"] for epoch in metrics["epochs"]]
    assert recalls.index(max(recalls)) == metrics["best_epoch"] - 1


def test_without_critic(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=2", "loss.g_weight=0.0")
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    assert trainer.task.critic is None
    metrics = trainer.fit()
    assert set(metrics["epochs"][0]["loss"]) == {
        "bpr", "l2", "feat_reg", "contrastive", "adversarial"
    }  # fmt: skip
    assert metrics["epochs"][0]["loss"]["adversarial"] == 0


def test_learning_rate_schedule(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=3", "training.lr_decay=0.5")
    metrics = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run").fit()
    rates = [epoch["lr"] for epoch in metrics["epochs"]]
    assert rates == pytest.approx([0.01 * 0.5 ** (epoch / 50) for epoch in range(3)])


def test_any_number_of_modalities(tiny_dataset, tiny_directory, tmp_path):
    image = tiny_dataset.features["image"]
    for features in ({"image": image}, {"a": image, "b": image[:, :5].copy(), "keys": image}):
        dataset = dataclasses.replace(tiny_dataset, features=features)
        config = config_for("paper", "training.epochs=1")
        path = tmp_path / f"{len(features)}"
        metrics = new_trainer(dataset, tiny_directory, config, path).fit()
        assert all(map(math.isfinite, metrics["test"].values()))
    with pytest.raises(InputError, match="expects item features .* got no modality"):
        dataset = dataclasses.replace(tiny_dataset, features={})
        new_trainer(dataset, tiny_directory, config, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_divergence_names_the_term(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=3", "training.lr=1e30")
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    with pytest.raises(Diverged, match=r"training diverged: loss term \w+ is (nan|inf)"):
        trainer.fit()


def test_checkpoint_of_another_configuration(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=1")
    new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run").fit()
    other = config_for("paper", "training.epochs=1", "model.embedding_dim=8")
    run = RunDirectory.open(tmp_path / "run")
    trainer = trainer_of(RunDirectory(run.path, run.info, other), tiny_dataset)
    with pytest.raises(InputError, match="not a checkpoint of this configuration"):
        trainer.resume()


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_with_nothing_left_to_train_says_so(
    tiny_dataset, tiny_directory, tmp_path, capsys, epochs
):
    config = config_for("paper", "training.epochs=2")
    metrics = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run").fit()
    run = RunDirectory.open(tmp_path / "run")
    run.change([f"training.epochs={epochs}"])
    again = trainer_of(run, tiny_dataset)
    again.show_progress = True
    assert again.resume()
    line = f"nothing is left to train after 2 epochs: epochs = {epochs}\n"
    assert capsys.readouterr().err == line
    assert again.fit()["test"] == metrics["test"]
