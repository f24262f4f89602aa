"""Every bad input ends in one line on stderr and exit code 2, with the run directory untouched."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmssl import _extension
from mmssl.cli import main
from mmssl.config import Config
from mmssl.ops import dispatch


class Payload:
    """Unpickling this would create the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def data(tiny_directory, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_directory, tmp_path / "data"))


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def missing_file(data: Path) -> None:
    (data / "val.json").unlink()


def wrong_shape(data: Path) -> None:
    np.save(data / "text_feat.npy", np.ones(7, np.float32))


def wrong_rows(data: Path) -> None:
    np.save(data / "text_feat.npy", np.ones((7, 3), np.float32))


def nan_feature(data: Path) -> None:
    rows = np.load(data / "text_feat.npy")
    rows[5, 3] = np.nan
    np.save(data / "text_feat.npy", rows)


def item_beyond_features(data: Path) -> None:
    edit_json(data / "train.json", lambda c: c["3"].append(50))


def empty_split(data: Path) -> None:
    (data / "test.json").write_text("{}")


def duplicate_edge(data: Path) -> None:
    edit_json(data / "train.json", lambda c: c["3"].append(c["3"][0]))


def malicious_feature(data: Path) -> None:
    payload = np.array([Payload(data / "pwned")], dtype=object)
    np.save(data / "text_feat.npy", payload, allow_pickle=True)


def raw_pickle_as_feature(data: Path) -> None:
    (data / "text_feat.npy").write_bytes(pickle.dumps(Payload(data / "pwned")))


def only_a_pickled_matrix(data: Path) -> None:
    (data / "train.json").unlink()
    (data / "train_mat").write_bytes(pickle.dumps(Payload(data / "pwned")))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing_file, ["val.json"]),
        (wrong_shape, ["text_feat.npy", "(7,)"]),
        (wrong_rows, ["_feat.npy", "7", "50"]),
        (nan_feature, ["text_feat.npy", "row 5"]),
        (item_beyond_features, ["train.json", "50", "user 3"]),
        (empty_split, ["test.json"]),
        (duplicate_edge, ["train.json", "user 3"]),
        (malicious_feature, ["text_feat.npy", "object"]),
        (raw_pickle_as_feature, ["text_feat.npy"]),
        (only_a_pickled_matrix, ["train.json"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_data(data, tmp_path, capsys, spoil, words):
    spoil(data)
    run = tmp_path / "run"
    for command in (
        ["train", "--data", str(data), "--out", str(run)],
        ["data", "inspect", str(data)],
    ):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1, err
        for word in words:
            assert word in err, (word, err)
    assert not run.exists()
    assert not (data / "pwned").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], ["epochs", ">= 1", "0"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--preset", "tictok"], ["tictok", "tiktok"]),
        (["--variant", "best"], ["--variant", "best"]),
        (["--set", "model.width=3"], ["model.width", "embedding_dim"]),
        (["--set", "model.embedding_dim=wide"], ["embedding_dim", "integer", "wide"]),
        (["--set", "model.num_heads=7"], ["num_heads", "64", "7"]),
        (["--set", "critic.hidden=true"], ["critic.hidden", "paper"]),
        (["--config", "none.toml"], ["none.toml", "No such file"]),
        (["--device", "cuda"], ["cuda"]),
        (["--resume", "--seed", "4"], ["--seed", "--resume"]),
        (["--nonsense"], ["--nonsense"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options(tiny_directory, tmp_path, capsys, options, words):
    import torch

    if options == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("a CUDA device is available, so asking for one is valid")
    run = tmp_path / "run"
    assert main(["train", "--data", str(tiny_directory), "--out", str(run), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)
    assert not run.exists()


def test_bad_config_file(tiny_directory, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    for text in ("a = [", "[model]\nwidth = 3\n", "[model]\ndropout = 2.0\n", "model = 3\n"):
        file.write_text(text)
        command = ["train", "--data", str(tiny_directory), "--config", str(file)]
        assert main([*command, "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert str(file) in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_existing_run_is_left_alone(tiny_directory, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious").write_text("mine")
    assert main(["train", "--data", str(tiny_directory), "--out", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert [p.name for p in run.iterdir()] == ["precious"]


@pytest.mark.parametrize("ratio", ["8:1", "0:0:1", "8:1:nan", "8:-1:1", "8/1/1"])
def test_ratio(tmp_path, capsys, ratio):
    command = ["data", "split", str(tmp_path), "--out", str(tmp_path / "x"), "--ratio", ratio]
    assert main(command) == 2
    expected = f"--ratio: expected three positive numbers like 8:1:1, got {ratio!r}"
    assert expected in capsys.readouterr().err


def test_a_variant_is_no_model(capsys):
    assert main(["train", "--data", "data", "--model", "plus"]) == 2
    assert "'plus' is a variant of mmssl: --variant plus" in capsys.readouterr().err


def test_data_that_has_moved(tiny_directory, tmp_path, capsys):
    data, out = tmp_path / "data", str(tmp_path / "run")
    shutil.copytree(tiny_directory, data)
    command = ["train", "--data", str(data), "--model=popularity", "--out", out, "--quiet"]
    assert main(command) == 0
    data.rename(tmp_path / "moved")
    assert main(["evaluate", out]) == 2
    assert "data: expected the data set of" in (error := capsys.readouterr().err)
    assert "--data DIR" in error and error.count("\n") == 1
    assert main(["evaluate", out, "--data", str(tmp_path / "moved")]) == 0


def test_required_kernels_that_are_missing(tiny_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "_requested", "auto")
    monkeypatch.setitem(_extension.missing, "_C", "mmssl._C was not built")
    command = ["train", "--data", str(tiny_directory), "--model=lightgcn", "--ops=native"]
    assert main([*command, "--out", str(tmp_path / "run"), "--device=cpu", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: mmssl.ops.") and error.count("\n") == 1
    assert "backend 'native' is required, but mmssl._C was not built" in error


def test_not_a_run(tmp_path, capsys):
    for command in (["evaluate"], ["recommend", "--user", "1"], ["report"]):
        assert main([command[0], str(tmp_path), *command[1:]]) == 2
        assert "not a run directory" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "--data" in capsys.readouterr().err


OUT_OF_MEMORY = """
import argparse, resource, sys, torch, mmssl.cli
from mmssl import ops
from mmssl.graph import InteractionGraph

edge = torch.zeros(1, dtype=torch.int64)
graph = InteractionGraph.from_edges(edge, edge, 1_000_000, 1)
rows = torch.ones(1, 2048)

def command(arguments):
    resource.setrlimit(resource.RLIMIT_DATA, (3_000_000_000,) * 2)
    ops.spmm(graph.ui, rows)  # 8 GB
    return 0

mmssl.cli._parsed = lambda argv: argparse.Namespace(run=command)
sys.exit(mmssl.cli.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is for Linux")
def test_an_operator_that_lacks_memory():
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: out of memory: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--model=lightgcn", "--set=training.epochs=1", "--set=critic.hidden=8"],
            "warning: --set training.epochs has no effect on --model lightgcn, which reads "
            "lightgcn.epochs\nwarning: --set critic.hidden has no effect on --model lightgcn\n",
        ),
        (
            ["--variant=plus", "--set=training.lr=1", "--set=plus.modality_weights.text=2"],
            "warning: --set training.lr has no effect on --variant plus, which reads plus.lr\n",
        ),
        (
            ["--model=bprmf", "--preset=tiktok", "--set=training.deterministic=false"],
            "warning: --preset tiktok has no effect on --model bprmf\n",
        ),
        (
            ["--model=popularity", "--variant=plus"],
            "warning: --variant plus has no effect on --model popularity\n",
        ),
        (["--preset=tiktok", "--set=training.lr=1e-3"], ""),
        (["--model=lightgcn", "--preset=ml-100k", "--seed=1", "--set=training.seed=2"], ""),
    ],
)
def test_options_without_effect_are_named(tiny_directory, tmp_path, capsys, options, expected):
    command = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "run")]
    assert main([*command, "--epochs=1", "--quiet", "--device=cpu", *options]) == 0
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (
            "[training]\nlr = 1.0\nbatch_size = 7\nseed = 1\n[lightgcn]\nlr = 0.01\n",
            ["--model=lightgcn"],
            "warning: --config {}: training.lr has no effect on --model lightgcn, which reads "
            "lightgcn.lr; nor have training.batch_size\n",
        ),
        (
            "[loss]\ndecay = 9.0\ntemperature = 9.0\ncl_eps = 9.0\n[critic]\nhidden = 7\nlr = 9.0\n"
            "gumbel_tau = 9.0\n[lightgcn]\nlr = 0.01\n",
            ["--model=lightgcn"],
            "warning: --config {}: loss.decay has no effect on --model lightgcn; nor have "
            "loss.temperature, loss.cl_eps, critic.hidden, critic.lr, 1 more\n",
        ),
        (
            "[loss]\ndecay = 9.0\n",
            ["--model=lightgcn"],
            "warning: --config {} has no effect on --model lightgcn\n",
        ),
        (Config().to_toml(), ["--model=lightgcn"], ""),
        ('variant = "plus"\n[plus]\nlr = 0.01\n', [], ""),
    ],
)
def test_fields_of_a_file_without_effect_are_named(
    tiny_directory, tmp_path, capsys, content, options, expected
):
    file = tmp_path / "my.toml"
    file.write_text(content)
    command = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "run")]
    command += ["--config", str(file), "--epochs=1", "--quiet", "--device=cpu"]
    assert main([*command, *options]) == 0
    assert capsys.readouterr().err == expected.format(file)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs=0", "error: --epochs: training.epochs: expected >= 1, got 0\n"),
        ("--seed=-1", "error: --seed: training.seed: expected >= 0, got -1\n"),
    ],
)
def test_an_option_is_named_as_it_was_given(tiny_directory, tmp_path, capsys, option, message):
    command = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "run"), option]
    assert main(command) == 2
    assert capsys.readouterr().err == message


def test_the_variant_is_chosen_in_one_place(tiny_directory, tmp_path, capsys):
    file = tmp_path / "my.toml"
    file.write_text('variant = "plus"\n')
    command = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "run")]
    assert main([*command, "--variant=paper", "--config", str(file)]) == 2
    assert "my.toml: variant: expected paper, as chosen, got 'plus'" in capsys.readouterr().err
    assert main([*command, "--set=variant=plus"]) == 2
    assert "expected section.field, got the variant, which --variant" in capsys.readouterr().err


def test_resumed_option_without_effect(tiny_directory, tmp_path, capsys):
    out = str(tmp_path / "run")
    command = ["train", "--data", str(tiny_directory), "--model=lightgcn", "--out", out]
    assert main([*command, "--epochs=1", "--quiet", "--device=cpu"]) == 0
    command = ["train", "--resume", "--out", out, "--epochs=2", "--quiet", "--device=cpu"]
    assert main([*command, "--set=training.lr=1e-4"]) == 0
    assert "training.lr has no effect on --model lightgcn" in capsys.readouterr().err
