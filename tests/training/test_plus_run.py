"""`plus` end to end: command line, Python, tuning, and a resumed run with every random part on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import mmssl
from mmssl.cli import main
from mmssl.config import load_config
from mmssl.data.neighbors import Neighbors
from mmssl.errors import InputError
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.popularity import popularity
from mmssl.training.checkpoint import load_checkpoint
from mmssl.training.fit import fit_run
from mmssl.training.guards import Interrupted
from mmssl.training.run import RunDirectory

SMALL = ("model.embedding_dim=16", "plus.batch_size=40", "plus.epochs=3")
RANDOM = ("plus.prune=0.4", "plus.negatives=12", "plus.contrast_weight=0.1")


@pytest.mark.parametrize("settings", [RANDOM, ("plus.ranking=bpr",)])
@pytest.mark.parametrize("stop_after", [3, 12, 23])
def test_stopped_and_resumed_is_bitwise_the_same(tiny_dataset, tmp_path, settings, stop_after):
    config = load_config("plus", settings=(*SMALL, *settings))
    whole, part = (
        RunDirectory.new(tmp_path / name, "mmssl", tmp_path, tiny_dataset, config)
        for name in ("whole", "part")
    )
    expected = fit_run(whole, tiny_dataset, show_progress=False)
    polls = iter(range(1, 10_000))
    with pytest.raises(Interrupted):
        fit_run(
            part,
            tiny_dataset,
            show_progress=False,
            should_stop=lambda: next(polls) == stop_after,
        )
    torch.manual_seed(999)
    got = fit_run(part, tiny_dataset, show_progress=False, resume=True)
    assert (got["val"], got["test"]) == (expected["val"], expected["test"])
    first, second = (load_checkpoint(run.checkpoint_path).tensors for run in (part, whole))
    assert first.keys() == second.keys()
    assert all(tensor.equal(second[name]) for name, tensor in first.items())


def test_commands(tiny_directory, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--variant", "plus", "--quiet"]
    settings = ["--set", "plus.temperature=0.3", "--set", "plus.modality_weights.text=2"]
    settings = [*settings, "--set", "plus.mix=0"]
    assert main([*command, *settings, "--epochs", "4", "--out", str(out)]) == 0
    run = RunDirectory.open(out)
    assert run.config.plus.temperature == 0.3 and run.config.plus.epochs == 4
    assert run.config.plus.modality_weights == {"text": 2.0}
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["model"], metrics["variant"]) == ("mmssl", "plus")
    # The exported embeddings are the ones that were evaluated; serving multiplies them.
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"split": "test", **metrics["test"]}
    user, item = run.load_embeddings()
    for table in (user, item):
        torch.testing.assert_close(table.norm(dim=1), torch.ones(len(table)))
    assert main(["train", "--resume", "--out", str(out), "--epochs", "5", "--quiet"]) == 0
    assert len(json.loads((out / "metrics.json").read_text())["epochs"]) == 5


def test_a_run_stores_and_reports_the_mix(tiny_dataset, tmp_path):
    settings = (*SMALL, "plus.mix=0.5", "plus.mix_rank=7", "plus.ranking_popularity=0.5")
    columns = 16 + 1 + 7
    config = load_config("plus", settings=settings)
    run = RunDirectory.new(tmp_path / "run", "mmssl", tmp_path, tiny_dataset, config)
    metrics = fit_run(run, tiny_dataset, show_progress=False)
    vectors = run.load_embeddings()
    assert vectors.user.shape == (80, columns) and vectors.item.shape == (50, columns)
    graph = InteractionGraph.from_edges(*tiny_dataset.train, 80, 50, normalization="sym")
    for split in ("val", "test"):
        assert Evaluator(tiny_dataset, split, graph).evaluate(vectors) == metrics[split]
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = fit_run(run, tiny_dataset, show_progress=False, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert (again["val"], again["test"]) == (metrics["val"], metrics["test"])


def test_default_run_directory_and_profile(tiny_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--data", str(tiny_directory), "--variant", "plus", "--seed", "7"]
    assert main([*command, "--epochs", "1", "--quiet"]) == 0
    assert (tmp_path / "runs" / "tiny-plus-7" / "metrics.json").exists()
    assert main([*command, "--out", "profiled", "--profile"]) == 0
    assert "backward" in capsys.readouterr().out


def test_from_python_it_learns(tiny_dataset, tmp_path):
    settings = {"plus.lr": 0.01, "plus.batch_size": 64, "plus.temperature": 0.2}
    run = mmssl.train(
        tiny_dataset,
        variant="plus",
        out=tmp_path / "run",
        epochs=30,
        progress=False,
        settings=settings,
    )
    graph = InteractionGraph.from_edges(
        *tiny_dataset.train, tiny_dataset.num_users, tiny_dataset.num_items
    )
    evaluator = mmssl.evaluation.Evaluator(tiny_dataset, "test", graph)
    popular = evaluator.evaluate(*popularity(graph))
    assert run.metrics["test"]["recall@10"] > popular["recall@10"] + 0.1
    losses = [epoch["loss"]["ranking"] for epoch in run.metrics["epochs"]]
    assert losses[-1] < losses[0]
    assert len(run.recommender().recommend([0], k=3)) == 1


def test_a_data_set_with_neighbors_only(tiny_dataset, tmp_path):
    listed = Neighbors.from_edges([0, 1, 2], [1, 0, 0])
    dataset = dataclasses.replace(tiny_dataset, features={}, neighbors={"text": listed})
    run = mmssl.train(dataset, variant="plus", out=tmp_path / "run", epochs=1, progress=False)
    assert run.directory.read_data().neighbors["text"].row.tolist() == [0, 1, 2]


def test_tune(tiny_directory, tmp_path, capsys):
    space = tmp_path / "space.toml"
    space.write_text('[space]\n"plus.temperature" = {low = 0.1, high = 1.0}\n')
    command = ["tune", "--data", str(tiny_directory), "--variant", "plus", "--space", str(space)]
    options = ["--trials", "2", "--epochs", "2", "--device", "cpu"]
    assert main([*command, *options, "--out", str(tmp_path / "study")]) == 0
    assert "plus.temperature" in capsys.readouterr().out
    own = [part for part in command if part not in ("--space", str(space))]
    assert main([*own, *options, "--out", str(tmp_path / "own")]) == 0  # the model's own space
    assert "plus.contrast_weight" in capsys.readouterr().out
    space.write_text('[space]\n"training.lr" = {low = 0.1, high = 1.0}\n')
    assert main([*command, *options, "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "training.lr: has no effect on --model mmssl --variant plus" in error


def test_wrong_weights_end_before_anything_is_written(tiny_directory, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--variant", "plus", "--out", str(out)]
    assert main([*command, "--set", "plus.modality_weights.sound=1.0"]) == 2
    assert "modality_weights: expected image, text, got 'sound'" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(InputError, match="variant: expected paper, released or plus"):
        mmssl.train(str(tiny_directory), variant="best", out=out)
