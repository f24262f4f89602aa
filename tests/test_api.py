"""Training and loading from Python, and what importing the package needs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mmssl
from mmssl.cli import main
from mmssl.data.readers import read_dataset
from mmssl.errors import Diverged, InputError
from mmssl.training.run import RunDirectory
from tests.conftest import make_dataset

SMALL = {"settings": {"model.embedding_dim": 16}, "training": {"batch_size": 32}}


def train(data, model="mmssl", **options) -> mmssl.Run:
    small = SMALL if model == "mmssl" else {}
    options = {"model": model, "epochs": 2, "device": "cpu", "progress": False, **small, **options}
    return mmssl.train(data, **options)


@pytest.fixture(scope="module")
def run(tiny_directory, tmp_path_factory) -> mmssl.Run:
    return train(str(tiny_directory), out=tmp_path_factory.mktemp("api") / "run", seed=3)


def test_train_does_what_the_command_does(run, tiny_directory, tmp_path, capsys):
    command = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "run"), "--quiet"]
    options = ["--epochs=2", "--seed=3", "--device=cpu"]
    settings = ["--set=model.embedding_dim=16", "--set=training.batch_size=32"]
    assert main([*command, *options, *settings]) == 0
    for name in ("config.toml", "model.safetensors"):
        assert (run.path / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert capsys.readouterr().err == ""


def test_run(run, tiny_dataset):
    assert run.metrics["seed"] == 3 and len(run.metrics["epochs"]) == 2
    assert run.config.training.batch_size == 32
    for split in ("val", "test"):
        assert run.evaluate(split, device="cpu") == run.metrics[split]
    again = mmssl.Run(str(run.path), data=tiny_dataset)
    assert again.evaluate(device="cpu") == run.metrics["test"]
    assert again.metrics == run.metrics and str(run.path) in repr(again)
    (items,) = run.recommender().recommend(["3"], k=5)
    assert len(items) == 5


@pytest.mark.parametrize("model", ["mmssl", "lightgcn", "popularity"])
def test_data_set_object(tmp_path, model):
    dataset = make_dataset(40, 30)
    run = train(dataset, model=model, out=str(tmp_path / "run"))
    assert read_dataset(run.path / "data").content_hash() == dataset.content_hash()
    assert RunDirectory.open(run.path).info.data == str((run.path / "data").resolve())
    expected = run.recommender(device="cpu").recommend([0, 1], k=3)
    for data in (None, dataset, str(run.path / "data"), run.path / "data"):
        assert mmssl.load(run.path, data=data, device="cpu").recommend([0, 1], k=3) == expected


def test_load_an_export(run, tmp_path):
    assert main(["export", str(run.path), "--to", str(tmp_path / "export")]) == 0
    got = mmssl.load(str(tmp_path / "export"), device="cpu").recommend(["3"], k=4)
    assert got == mmssl.load(run.path, device="cpu").recommend(["3"], k=4)
    with pytest.raises(InputError, match="expected no data set for an export, got one"):
        mmssl.load(tmp_path / "export", data=make_dataset())


def test_default_directory(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(tiny_dataset, model="lightgcn", seed=7)
    assert run.path == Path("runs/tiny-lightgcn-7")
    assert train(tiny_dataset, variant="released", epochs=1).path == Path("runs/tiny-released-2022")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "gpt"}, "model: expected one of mmssl, "),
        ({"model": {"embedding_dim": 8}}, "settings={'model.FIELD': ...}"),
        ({"settings": {"model.width": 8}}, "train: unknown field 'model.width', expected one of"),
        ({"settings": {"model": 8}}, "train: model: expected a section, got 8"),
        ({"preset": "tictok"}, "preset: expected one of"),
        ({"variant": "best"}, "variant: expected paper, released or plus"),
        ({"settings": ["plus.lr=1"]}, "settings: expected a dict like"),
        ({"settings": {1: 1}}, "settings: expected a dict like"),
        ({"settings": {"variant": "plus"}}, "settings: expected section.field, got 'variant'"),
        ({"epochs": 0}, "train: training.epochs: expected >= 1, got 0"),
        ({"seed": -1}, "training.seed: expected >= 0, got -1"),
        ({"optimizer": {"lr": 1.0}}, "train: unknown field 'optimizer', expected one of "),
        ({"loss": {"weight": 1.0}}, "train: unknown field 'loss.weight', expected one of"),
        ({"loss": 3}, "train: loss: expected a section, got 3"),
        ({"loss": {"temperature": "warm"}}, "loss.temperature: expected a finite number"),
        ({"device": "tpu"}, "device: expected auto, cpu or cuda, got 'tpu'"),
        ({"out": 5}, "out: expected a path, got int"),
        ({"data": None}, "data: expected a path, got NoneType"),
        ({"data": "no/such/data"}, "no/such/data"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(tiny_directory, tmp_path, options, words):
    options = {"data": tiny_directory, "out": tmp_path / "run", **options}
    with pytest.raises(InputError) as caught:
        train(**options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_data_that_can_not_be_trained_on_leaves_nothing(tiny_dataset, tmp_path):
    with pytest.raises(InputError, match="expects item features .* got no modality"):
        train(dataclasses.replace(tiny_dataset, features={}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_existing_unfinished_and_foreign_runs(run, tiny_dataset, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        train(tiny_dataset, out=run.path)
    with pytest.raises(Diverged, match="training diverged"):
        training = {"batch_size": 32, "lr": 1e30}
        train(tiny_dataset, out=tmp_path / "run", training=training)
    with pytest.raises(InputError, match=r"continue it with: mmssl train --resume --out"):
        mmssl.Run(tmp_path / "run")
    with pytest.raises(InputError, match="not a run directory"):
        mmssl.Run(tmp_path)
    with pytest.raises(InputError, match="split: expected 'val' or 'test', got 'train'"):
        run.evaluate("train")
    with pytest.raises(InputError, match="data set 'tiny': not the data of"):
        mmssl.Run(run.path, data=make_dataset(seed=1)).evaluate()


def test_names_at_the_top():
    assert set(mmssl.__all__) <= set(dir(mmssl))
    for name in mmssl.__all__:
        assert getattr(mmssl, name) is not None
    assert not hasattr(mmssl, "no_such_name")


IMPORTS = """
import importlib, pkgutil, sys

# The three packages themselves may need others of their own.
ALLOWED = {"torch", "numpy", "safetensors"}
import numpy, safetensors.torch, torch, torch._dynamo
ALLOWED |= {name.partition(".")[0] for name in sys.modules} - {"tqdm"}
for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
    del sys.modules[name]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top != "mmssl" and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import mmssl.ops, mmssl.models, mmssl.training, mmssl.api
for package in (mmssl.ops, mmssl.models, mmssl.training):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
from mmssl import InteractionGraph, Recommender, load, ops, train
for name in ("tqdm", "tomli_w", "msgspec"):
    assert name not in sys.modules, name
"""


def test_imports_need_torch_numpy_and_safetensors_only():
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert {"mmssl.models.mmssl.task", "mmssl.training.trainer", "mmssl.ops.info_nce"} <= imported


@pytest.mark.parametrize(
    "statement",
    [
        "import mmssl",
        "import mmssl.models, mmssl.models.registry, mmssl.models.mmssl",
        "import mmssl.training",
        "import mmssl.config",
    ],
)
def test_light_imports(statement):
    code = f"import sys; {statement}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scalars_of_numpy_and_torch_are_numbers(tiny_dataset, tmp_path):
    options = {"epochs": np.int64(1), "seed": torch.tensor(3), "device": "cpu", "progress": False}
    settings = {"lightgcn.batch_size": np.int32(64)}
    section = {"lr": np.float64(0.25)}
    run = mmssl.train(
        tiny_dataset, "lightgcn", out=tmp_path / "a", settings=settings, lightgcn=section, **options
    )
    assert (run.config.lightgcn.batch_size, run.config.lightgcn.lr) == (64, 0.25)
    assert run.config.training.seed == 3


def test_fields_without_effect_are_named(tiny_dataset, tmp_path, monkeypatch):
    options = {"epochs": 1, "device": "cpu", "progress": False}
    with pytest.warns(UserWarning, match="^training.lr has no effect .*, which reads lightgcn.lr$"):
        mmssl.train(tiny_dataset, "lightgcn", out=tmp_path / "a", training={"lr": 1.0}, **options)
    with pytest.warns(UserWarning, match="^critic.hidden has no effect on --model lightgcn$"):
        settings = {"critic.hidden": 8}
        mmssl.train(tiny_dataset, "lightgcn", out=tmp_path / "b", settings=settings, **options)
    with pytest.warns(UserWarning, match="^variant plus has no effect on --model popularity$"):
        mmssl.train(tiny_dataset, "popularity", variant="plus", out=tmp_path / "c", **options)
    with pytest.warns(UserWarning, match="^preset tiktok has no effect on --model popularity$"):
        mmssl.train(tiny_dataset, "popularity", preset="tiktok", out=tmp_path / "d", **options)
