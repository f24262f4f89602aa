"""Numbers that are not finite, clipping, the determinism switch."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from mmssl.errors import Diverged, InputError
from mmssl.training.checkpoint import load_checkpoint
from mmssl.training.guards import Interrupted, LossMeter, check_finite, deterministic
from mmssl.training.run import RunDirectory
from mmssl.training.trainer import Trainer
from tests.training.test_trainer import (
    assert_same_bits,
    config_for,
    new_trainer,
    trainer_of,
    weights,
)


def stop_after(steps: int):
    polls = iter(range(10_000))
    return lambda: next(polls) == steps


def spoil_gradient(trainer: Trainer, parameter: torch.Tensor, step: int, value: float) -> None:
    """The gradient of one number is ``value`` from that step on, counted from 1 over all epochs."""
    calls = iter(range(1, 10_000))

    def hook(grad: torch.Tensor) -> torch.Tensor:
        if next(calls) < step:
            return grad
        grad = grad.clone()
        grad[0, 0] = value
        return grad

    parameter.register_hook(hook)


@pytest.mark.parametrize("where", ["recommender", "critic"])
@pytest.mark.parametrize("clip", [0.0, 5.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_gradient_is_named_and_never_saved(
    tiny_dataset, tiny_directory, tmp_path, where, clip, value
):
    config = config_for(
        "paper",
        *("training.epochs=3", "training.checkpoint_interval=1", "critic.penalty_interval=2"),
        *(f"training.clip_norm={clip}", f"critic.clip_norm={clip}"),
    )
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    assert trainer.task.critic is not None
    bad = trainer.task.steps_per_epoch + 3  # step 3 of epoch 2
    if where == "critic":
        # Its gradient passes twice a step where there is a penalty; the head's bias only once.
        spoil_gradient(trainer, trainer.task.critic.head[1].weight, bad, value)
    else:
        spoil_gradient(trainer, trainer.task.model.item_embedding, bad, value)
    with pytest.raises(Diverged) as caught:
        trainer.fit()
    message = str(caught.value)
    assert message.count("\n") == 0
    if clip:
        name = "critic_grad_norm" if where == "critic" else "grad_norm"
        assert f"training diverged: {name} is {value}" in message
        assert "in epoch 2, step 3;" in message
    elif where == "critic":  # whose next use is in the same step
        assert "training diverged: loss term adversarial is nan in epoch 2, step 3;" in message
    else:  # the step's losses were still fine; its weights are not, and they are not saved
        assert "training diverged: model.item_embedding holds nan in epoch 2, step 3;" in message
    assert "the checkpoint after 1 epochs and 2 steps is intact" in message
    assert "--set training.lr=" in message
    saved = load_checkpoint(trainer.run.checkpoint_path)
    assert (saved.state["epoch"], saved.state["step"]) == (1, 2)
    check_finite(saved.tensors, "")


def test_goes_on_with_a_smaller_learning_rate(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=3", "training.checkpoint_interval=2")
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    spoil_gradient(trainer, trainer.task.model.user_embedding, 5, float("nan"))
    with pytest.raises(Diverged, match="after 0 epochs and 4 steps is intact"):
        trainer.fit()
    run = RunDirectory.open(tmp_path / "run")
    with pytest.raises(InputError, match=r"--set model.dropout: can't be changed by --resume"):
        run.change(["model.dropout=0.1"])
    run.change(["training.lr=0.001", "training.clip_norm=1"])
    run.initialize()
    resumed = trainer_of(run, tiny_dataset)
    assert resumed.resume()
    metrics = resumed.fit()
    assert metrics["epochs"][0]["lr"] == 0.001
    assert len(metrics["epochs"]) == 3
    assert RunDirectory.open(tmp_path / "run").config.training.lr == 0.001


def test_diverged_before_the_first_checkpoint(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=2", "training.lr=1e30")
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    with pytest.raises(
        Diverged, match=r"loss term \w+ is (nan|inf).* in epoch 1, step 2; no check"
    ):
        trainer.fit()
    assert not trainer.run.checkpoint_path.exists()


def test_a_request_to_stop_does_not_save_a_bad_state(tiny_dataset, tiny_directory, tmp_path):
    config = config_for("paper", "training.epochs=2")
    options = {"should_stop": stop_after(3)}
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run", **options)
    spoil_gradient(trainer, trainer.task.model.user_embedding, 3, float("nan"))
    with pytest.raises(Diverged, match="user_embedding holds nan in epoch 1, step 3"):
        trainer.fit()
    assert not trainer.run.checkpoint_path.exists()


@pytest.mark.parametrize("steps_per_look", [1, 3, 50])
def test_meter_sums_the_same_however_often_it_looks(steps_per_look):
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    meter = LossMeter(["a", "b", "c"], torch.device("cpu"))
    meter.steps_per_look = steps_per_look
    meter.start(1)
    for row in rows[:17]:
        meter.add(row)
    middle = meter.look()
    meter.start(1, 17, middle)  # as a resumed process does
    for row in rows[17:]:
        meter.add(row)
    expected = [0.0, 0.0, 0.0]
    for row in rows.tolist():
        expected = [total + value for total, value in zip(expected, row, strict=True)]
    assert list(meter.look().values()) == expected


def test_meter_that_looks_late_names_the_right_step():
    meter = LossMeter(["a", "b"], torch.device("cuda"))  # only the pace depends on it
    assert meter.steps_per_look == 50
    meter.start(7, 10)
    for step in range(11, 60):
        meter.add(torch.tensor([1.0, float("-inf") if step >= 23 else 0.0]))
    with pytest.raises(Diverged, match=r"loss term b is -inf in epoch 7, step 23"):
        meter.look()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (["bpr"], "loss term bpr is nan in"),
        (["bpr", "critic_real"], "loss term critic_real is nan (and with it bpr) in"),
        (["bpr", "critic_grad_norm"], "critic_grad_norm is nan (and with it bpr) in"),
        (["bpr", "grad_norm"], "loss term bpr is nan (and with it grad_norm) in"),
        (["grad_norm"], ": grad_norm is nan in"),
    ],
)
def test_the_first_bad_term_of_a_step_is_named(bad, words):
    names = ["bpr", "l2", "critic_real", "critic_grad_norm", "grad_norm"]
    meter = LossMeter(names, torch.device("cpu"))
    meter.start(1)
    with pytest.raises(Diverged) as caught:
        meter.add(torch.tensor([float("nan") if name in bad else 1.0 for name in names]))
    assert words in f": {caught.value}"


def test_check_finite():
    tensors = {
        "empty": torch.empty(0, 3),
        "integers": torch.arange(3),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "float64": torch.tensor(1e300, dtype=torch.float64),
    }
    check_finite(tensors, "now")
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = torch.zeros(5, 4)
        bad[3, 1] = value
        with pytest.raises(Diverged, match=f"bad holds {value} now"):
            check_finite({**tensors, "bad": bad}, "now")


def test_clipping(tiny_dataset, tiny_directory, tmp_path):
    """No optimizer sees a gradient longer than its limit; a high limit changes no bit."""
    limits = ("training.clip_norm=0.001", "critic.clip_norm=0.01")
    config = config_for("paper", "training.epochs=1", *limits)
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "tight")
    seen: dict[str, list[float]] = {"model": [], "critic": []}

    def watch(name, optimizer, module):
        def hook(*_):
            grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            seen[name].append(float(torch.cat(grads).norm()))

        optimizer.register_step_pre_hook(hook)

    watch("model", trainer.task.training_step.optimizer, trainer.task.model)
    watch("critic", trainer.task.training_step.critic_optimizer, trainer.task.critic)
    metrics = trainer.fit()
    assert len(seen["model"]) == len(seen["critic"]) == trainer.task.steps_per_epoch
    assert max(seen["model"]) <= 0.001 * 1.001 and max(seen["critic"]) <= 0.01 * 1.001
    epoch = metrics["epochs"][0]
    assert epoch["grad_norm"]["grad_norm"] > 0.001
    assert epoch["grad_norm"]["critic_grad_norm"] > 0.01
    assert "grad_norm" not in epoch["loss"]

    states = []
    for name, limit in (("off", 0), ("high", 1e6)):
        settings = (f"training.clip_norm={limit}", f"critic.clip_norm={limit}")
        config = config_for("paper", "training.epochs=1", *settings)
        other = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / name)
        assert ("grad_norm" in other.fit()["epochs"][0]) == bool(limit)
        states.append(weights(other))
    assert_same_bits(*states)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.clip_norm=-1", "training.clip_norm: expected >= 0"),
        ("critic.clip_norm=-1", "critic.clip_norm: expected >= 0"),
        ("training.clip_norm=nan", "training.clip_norm: expected a finite number"),
        ("training.keep_checkpoints=0", "training.keep_checkpoints: expected >= 1"),
        ("training.checkpoint_interval=-5", "training.checkpoint_interval: expected >= 0"),
        ("training.deterministic=1", "training.deterministic: expected true or false"),
    ],
)
def test_bad_settings(setting, words):
    with pytest.raises(InputError, match=words):
        config_for("paper", setting)


@pytest.mark.parametrize("enabled", [True, False])
def test_determinism_switch(tiny_dataset, tiny_directory, tmp_path, enabled):
    config = config_for(
        "paper", "training.epochs=1", f"training.deterministic={str(enabled).lower()}"
    )
    seen = []
    options = {"should_stop": lambda: seen.append(torch.are_deterministic_algorithms_enabled())}
    before = torch.get_num_threads()
    torch.set_num_threads(4)  # possibly more than cores: threads arrive in any order
    try:
        states = []
        for name in ("a", "b") if enabled else ("a",):
            trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / name, **options)
            trainer.fit()
            states.append(weights(trainer))
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {enabled}
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_bits(states[0], states[-1])


def test_determinism_is_put_back_after_an_error():
    with pytest.raises(KeyError), deterministic(torch.device("cpu"), True):
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("before", [None, ":16:8"])
def test_cublas_is_deterministic_on_a_gpu(before, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if before:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before)
    with deterministic(torch.device("cuda"), True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (before or ":4096:8")
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == before


def test_training_draws_from_no_other_generator(tiny_dataset, tiny_directory, tmp_path):
    """A checkpoint holds torch's generators; Python's and NumPy's must not matter."""
    config = config_for("paper", "training.epochs=2")
    trainer = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "run")
    before = random.getstate(), np.random.get_state()
    trainer.fit()
    assert random.getstate() == before[0]
    for got, expected in zip(np.random.get_state(), before[1], strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    "settings",
    [
        ("critic.penalty_interval=3", "structure.refresh_interval=4", "training.lr_decay=0.5"),
        ("training.shared_forward=false", "critic.precision=bfloat16"),
        ("training.clip_norm=0.1", "critic.clip_norm=0.1", "loss.cl_weight=0.0"),
        ("loss.g_weight=0.0", "model.attention=identity", "training.patience=1"),
    ],
    ids=lambda settings: settings[0],
)
def test_every_counter_is_in_the_checkpoint(tiny_dataset, tiny_directory, tmp_path, settings):
    config = config_for("paper", "training.epochs=2", *settings)
    whole = new_trainer(tiny_dataset, tiny_directory, config, tmp_path / "whole")
    expected = whole.fit()
    path, steps = tmp_path / "part", [1, 4, 5, 3]
    options = {"should_stop": stop_after(steps[0])}
    part = new_trainer(tiny_dataset, tiny_directory, config, path, **options)
    for count in steps[1:]:
        with pytest.raises(Interrupted):
            part.fit()
        torch.manual_seed(999)
        part = trainer_of(RunDirectory.open(path), tiny_dataset, should_stop=stop_after(count))
        assert part.resume()
    part.should_stop = lambda: False
    got = part.fit()
    first, second = (load_checkpoint(t.run.checkpoint_path) for t in (part, whole))
    assert_same_bits(first.tensors, second.tensors)
    for name in ("val", "test", "best_epoch"):
        assert got[name] == expected[name]
    assert [e["loss"] for e in got["epochs"]] == [e["loss"] for e in expected["epochs"]]
