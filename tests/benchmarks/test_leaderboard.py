"""The leaderboard's runner: what is searched, what is recorded, and that it continues."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.leaderboard import cell as cells
from benchmarks.leaderboard import records
from benchmarks.leaderboard.__main__ import _progress, main
from benchmarks.leaderboard.cell import Budget, Cell
from benchmarks.leaderboard.data import Data
from benchmarks.leaderboard.entries import WITHOUT_EFFECT, Entry, ablations, entries
from benchmarks.leaderboard.score import FEW_EDGES, FinalTest
from mmssl.config import Config
from mmssl.data.dataset import Interactions
from mmssl.models.embeddings import Embeddings
from mmssl.models.registry import model_specs
from mmssl.training.guards import Interrupted
from mmssl.tuning.space import parse_space

NEVER = lambda: False  # noqa: E731
LIGHTGCN = Entry("lightgcn", "lightgcn")


@pytest.fixture
def board(tiny_directory, tmp_path, monkeypatch):
    """Returns the cell of an entry, and runs it; training has few epochs."""
    start = Entry.start
    few = {"lightgcn": {"epochs": 6}}
    monkeypatch.setattr(
        Entry, "start", lambda self, data: start(self, data).replace(few, source="test")
    )

    class Board:
        out, work = tmp_path / "out", tmp_path / "runs"

        def cell(self, entry=LIGHTGCN, trials=2, seeds=2):
            data = Data.read(tiny_directory, self.out)
            return Cell(data, entry, Budget(trials, seeds), self.out, self.work)

        def run(self, cell, should_stop=NEVER):
            said = []
            test = FinalTest(cell.data.dataset)
            cell.tune(should_stop, said.append)
            cell.run_seeds(lambda: test, should_stop, said.append)
            return said

    return Board()


def results(folder):
    """Everything in a cell's records that does not depend on time and machine."""
    varies = ("seconds", "seconds_to_best", "seconds_per_epoch", "evaluate_seconds", "peak_mb")
    files = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {
        name: {k: v for k, v in record.items() if k not in (*varies, "environment")}
        for name, record in files.items()
    }


def test_every_model_has_an_entry_and_a_search_space_around_its_start():
    every = entries()
    assert {entry.model for entry in every} == {spec.name for spec in model_specs()}
    labels = [entry.label for entry in every]
    assert {"paper", "plus", "lightgcn"} <= set(labels) and "released" not in labels
    assert len({entry.folder for entry in [*every, *ablations()]}) == len(every) + len(ablations())
    for entry in every:
        for data in ("tiktok", "baby-mmrec", "other"):
            start = entry.start(data)
            content = entry.space(start)
            if not content:  # nothing to tune, or selected on validation by the model
                assert not entry.is_trained, entry.label
                continue
            space = parse_space(content, start, entry.model, entry.label)
            assert space.values_of(start) is not None  # so that trial 0 is the start


def test_what_a_model_chooses_on_its_own_is_not_searched():
    by_label = {entry.label: entry for entry in entries()}
    ease, plus = by_label["ease"], by_label["plus"]
    assert ease.start("other").ease.reg == "validation" and ease.space(ease.start("other")) == {}
    searched = plus.space(plus.start("other"))["space"]
    assert plus.start("other").plus.temperature == "density" and "plus.lr" in searched
    assert "plus.temperature" not in searched


def test_ablations_change_what_the_model_reads():
    for entry in ablations():
        base = next(e for e in entries() if e.label == entry.base)
        assert entry.settings and entry.model == base.model
        for setting in entry.settings:
            section, field = setting.partition("=")[0].split(".")
            assert field in base.read_fields(base.start("other"))[section]


def test_fields_without_an_effect_on_the_result_do_not_outdate_records():
    start = LIGHTGCN.start("other")
    other = {"seed": 5, "checkpoint_interval": 7, "keep_checkpoints": 2, "wire": "bfloat16"}
    other["capture"] = "never"
    changed = start.replace({"training": other}, source="test")
    assert LIGHTGCN.read_fields(changed) == LIGHTGCN.read_fields(start)


def test_every_field_of_the_training_loop_either_outdates_records_or_does_not():
    """A new field of the loop has to be put into one of the two lists."""
    outdating = {"epochs", "batch_size", "lr", "lr_decay", "patience", "shared_forward"}
    outdating |= {"clip_norm", "deterministic"}
    without = {name.removeprefix("training.") for name in WITHOUT_EFFECT}
    fields = Config().to_dict()["training"].keys()
    assert fields == outdating | without and not outdating & without
    paper = next(entry for entry in entries() if entry.label == "paper")
    assert paper.read_fields(Config())["training"].keys() == outdating


def test_preset_of_the_same_interactions():
    paper = next(entry for entry in entries() if entry.label == "paper")
    assert paper.start("sports-mmrec") == paper.start("sports") != paper.start("other")


def test_a_cell_is_tuned_on_validation_and_tested_once_per_seed(board, monkeypatch):
    cell = board.cell()
    read = []
    original = FinalTest.score
    monkeypatch.setattr(FinalTest, "score", lambda self, s: read.append(1) or original(self, s))
    board.run(cell)
    trials = records.numbered(cell.folder, "trial")
    seeds = records.numbered(cell.folder, "seed")
    assert list(trials) == [0, 1] and list(seeds) == [1, 2] and len(read) == 2
    assert all("test" not in record for record in trials.values())
    best = max(trials.values(), key=lambda t: (t["val"]["recall@20"], -t["number"]))
    for seed, record in seeds.items():
        assert record["tuning"] == {
            "trials": 2, "chosen": best["number"], "parameters": best["parameters"],
        }  # fmt: skip
        assert record["config"]["lightgcn"]["lr"] == best["parameters"]["lightgcn.lr"]
        assert record["seed"] == seed and record["data"] == cell.data.record["hash"]
        assert record["parameters"] == (80 + 50) * 64 and record["peak_mb"] > 50
        assert record["environment"]["torch"] == torch.__version__
        assert record["seconds_to_best"] <= record["seconds"]
    assert seeds[1]["test"] != seeds[2]["test"]
    assert not list(board.work.rglob("seed-*"))
    monkeypatch.setattr(cells, "fit_run", None)  # nothing is trained any more
    assert board.run(cell) == []


@pytest.mark.slow
def test_a_stopped_cell_continues_to_the_same_results(board, tmp_path):
    whole = board.cell()
    board.run(whole)
    expected = results(whole.folder)
    board.out, board.work = tmp_path / "stopped", tmp_path / "stopped-runs"
    interrupted, calls, limit = board.cell(), 0, 4

    def should_stop():
        nonlocal calls
        calls += 1
        return calls > limit

    stops = 0
    while True:
        try:
            board.run(interrupted, should_stop)
            break
        except Interrupted:
            stops, calls = stops + 1, 0
    assert stops > 3
    assert results(interrupted.folder) == expected


def test_a_cell_continues_from_its_records_alone(board):
    """In a clone of the results, on a machine that has no unfinished runs."""
    cell = board.cell(trials=3, seeds=1)
    board.run(cell)
    expected = results(cell.folder)
    shutil.rmtree(board.work)
    for name in ("trial-2", "seed-1"):
        (cell.folder / f"{name}.json").unlink()
    assert [line[:8] for line in board.run(cell)] == ["trial 2:", "seed 1: "]
    assert results(cell.folder) == expected
    shutil.rmtree(board.work)
    (cell.folder / "trial-0.json").unlink()
    assert [line[:8] for line in board.run(cell)] == ["trial 0:"]
    assert results(cell.folder) == expected
    shutil.rmtree(board.work)
    path = cell.folder / "trial-1.json"
    record = {k: v for k, v in records.read(path).items() if k != "schema"}
    record["parameters"]["lightgcn.lr"] *= 2  # as if another version of Optuna had drawn it
    records.write(path, record)
    (cell.folder / "trial-0.json").unlink()
    assert [line[:8] for line in board.run(cell)] == ["trial 0:", "trial 1:"]
    assert results(cell.folder) == expected


@pytest.mark.parametrize("file", ["config.toml", "checkpoint/last.safetensors"])
def test_a_run_that_cannot_be_continued_starts_again(board, file):
    cell, polls = board.cell(trials=0, seeds=1), 0

    def should_stop():
        nonlocal polls
        polls += 1
        return polls > 2

    with pytest.raises(Interrupted):
        board.run(cell, should_stop)
    path = cell.work / "seed-1" / file
    path.write_bytes(b"damaged")
    (line,) = board.run(cell)
    assert line.startswith("seed 1: test recall@20") and not path.exists()


def test_records_of_another_setting_are_replaced(board):
    cell = board.cell(trials=0, seeds=1)
    board.run(cell)
    path = cell.folder / "seed-1.json"
    record = records.read(path)
    assert board.run(cell) == []
    other = copy.deepcopy(record["config"])
    other["lightgcn"]["reg"] *= 2
    older = copy.deepcopy(record["config"])
    del older["lightgcn"]["patience"]  # as if the field had come later, with a default
    for config in (other, older):
        content = {**record, "config": config}
        records.write(path, {k: v for k, v in content.items() if k != "schema"})
        removed, again = board.run(cell)
        assert "removed" in removed and again.startswith("seed 1: test recall@20")
        assert records.read(path)["config"] == record["config"]


@pytest.mark.parametrize("ended", [True, False])
def test_a_limit_of_epochs_outdates_the_runs_that_it_ended(board, monkeypatch, ended):
    board.run(board.cell(trials=1, seeds=1))
    before = results(board.cell().folder)
    for name, record in before.items():  # as if early stopping had ended it, or the limit of 6
        record["epochs"] = 5 if ended else 6
        records.write(board.cell().folder / name, {k: record[k] for k in record if k != "schema"})
    start = Entry.start

    def limit(epochs):
        few = {"lightgcn": {"epochs": epochs}}
        monkeypatch.setattr(
            Entry, "start", lambda self, data: start(self, data).replace(few, source="test")
        )

    limit(8)
    said = board.run(board.cell(trials=1, seeds=1))
    assert [line[:8] for line in said] == ([] if ended else ["trial 0:", "seed 1: ", "seed 1: "])
    after = results(board.cell().folder)
    assert after["seed-1.json"]["config"]["lightgcn"]["epochs"] == (6 if ended else 8)
    limit(4)
    assert not board.cell(trials=1, seeds=1).finished_trials()


def test_more_trials_keep_those_that_are_done(board, monkeypatch):
    board.run(board.cell(trials=1, seeds=1))
    first = records.numbered(board.cell().folder, "trial")[0]
    board.run(board.cell(trials=2, seeds=1))
    trials = records.numbered(board.cell().folder, "trial")
    assert list(trials) == [0, 1] and trials[0] == first


def test_a_run_says_how_many_trials_chose_its_setting(board):
    """Trial 0 is the model's own setting; a run with it is kept if no trial is better."""
    cell = board.cell(trials=0, seeds=1)
    board.run(cell)
    path = cell.folder / "seed-1.json"
    before = records.read(path)
    assert before["tuning"]["trials"] == 0
    board.run(board.cell(trials=1, seeds=1))
    after = records.read(path)
    assert after.pop("tuning")["trials"] == 1 and before.pop("tuning") and after == before
    board.run(cell)  # a smaller budget takes nothing back
    assert records.read(path)["tuning"]["trials"] == 1


def test_an_ablation_changes_the_tuned_setting_of_its_base(board):
    base = board.cell(trials=2, seeds=1)
    changed = replace(
        LIGHTGCN, label="lightgcn, one layer", base="lightgcn", settings=("lightgcn.num_layers=1",)
    )
    with pytest.raises(cells.InputError, match="expected 2 trials of lightgcn .* got 0; run it"):
        board.run(board.cell(changed, trials=2, seeds=1))
    board.run(base)
    ablation = board.cell(changed, trials=2, seeds=1)
    board.run(ablation)
    ours, theirs = (records.numbered(c.folder, "seed")[1]["config"] for c in (ablation, base))
    assert ours["lightgcn"].pop("num_layers") == 1 and theirs["lightgcn"].pop("num_layers") == 3
    assert ours == theirs
    assert not list(ablation.folder.glob("trial-*"))


def test_scores_against_loops(tiny_dataset):
    generator = np.random.default_rng(0)
    kept = tiny_dataset.train.item >= 3  # items 0, 1, 2 are cold
    train = Interactions(*(ids[kept] for ids in tiny_dataset.train))
    data = replace(tiny_dataset, train=train)
    user = generator.standard_normal((data.num_users, 8)).astype(np.float32)
    item = generator.standard_normal((data.num_items, 8)).astype(np.float32)
    vectors = Embeddings(torch.from_numpy(user), torch.from_numpy(item))
    found = FinalTest(data).score(vectors)
    train_of = {u: set(train.item[train.user == u]) for u in range(data.num_users)}
    degree = np.bincount(train.item, minlength=data.num_items)
    head = sorted(range(data.num_items), key=lambda i: (-degree[i], i))[: data.num_items // 5]
    groups = {
        "all": lambda u, i: True,
        "tail": lambda u, i: i not in head,
        "cold": lambda u, i: degree[i] == 0,
        "sparse": lambda u, i: len(train_of[u]) < FEW_EDGES,
    }
    recalls = {name: [] for name in groups}
    listed = set()
    for u in np.unique(data.test.user):
        scores = user[u].astype(np.float64) @ item.T.astype(np.float64)
        order = [i for i in np.argsort(-scores, kind="stable") if i not in train_of[u]][:20]
        listed |= set(order)
        for name, belongs in groups.items():
            items = data.test.item[data.test.user == u]
            relevant = {i for i in items if belongs(u, i)}
            if relevant:
                recalls[name].append(len(relevant & set(order)) / len(relevant))
    assert found["test"]["recall@20"] == pytest.approx(np.mean(recalls["all"]), rel=1e-12)
    np.testing.assert_allclose(records.unpack(found["users"]), recalls["all"], rtol=1e-6)
    for name in ("tail", "cold", "sparse"):
        group = found["groups"][name]
        assert group["users"] == len(recalls[name]) > 0
        assert group["recall@20"] == pytest.approx(np.mean(recalls[name]), rel=1e-12)
    assert found["coverage@20"] == len(listed) / data.num_items
    warm = FinalTest(replace(data, train=Interactions.from_edges(*all_items(data))))
    assert warm.score(vectors)["groups"]["cold"] == {"users": 0}


def all_items(data):
    """Train edges of user 0 with all items, apart from those in other splits."""
    held_out = {int(i) for edges in (data.val, data.test) for i in edges.item[edges.user == 0]}
    items = [i for i in range(data.num_items) if i not in held_out]
    users = [0] * len(items) + [1] * len(held_out)
    other = {int(i) for edges in (data.val, data.test) for i in edges.item[edges.user == 1]}
    assert not other & held_out
    return users, [*items, *held_out]


def test_the_command(tiny_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["run", "--data", str(tiny_directory), "--models", "popularity", "--out", "out"]
    assert main([*options, "--dry-run"]) == 0
    assert capsys.readouterr().out == "tiny, popularity: trials 0/0, seeds 0/1\n"
    assert not (tmp_path / "out").exists()
    assert main(options) == 0
    assert capsys.readouterr().out.startswith("tiny, popularity: seed 1: test recall@20 0.")
    assert main([*options, "--dry-run"]) == 0
    assert "seeds 1/1" in capsys.readouterr().out
    assert main([*options[:-1], "other", "--minutes", "1e-9"]) == 0
    assert capsys.readouterr().out == "stopped; the same command continues\n"
    for wrong, message in (
        (["--models", "nothing"], "--models: expected one of '"),
        (["--trials", "-1"], "--trials: expected at least 0, got -1"),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--minutes", "0"], "--minutes: expected a positive number, got 0.0"),
    ):
        assert main([*options, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_the_progress_counts_the_seeds_of_the_budget(board):
    cell = board.cell(trials=0, seeds=2)
    board.run(cell)
    for seeds, shown in ((1, "1/1"), (2, "2/2"), (3, "2/3")):
        line = _progress(board.cell(trials=0, seeds=seeds))
        assert f"seeds {shown}" in line and ("left" in line) == (seeds == 3)


def test_models_that_are_tuned_need_optuna(tiny_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.chdir(tmp_path)
    options = ["run", "--data", str(tiny_directory), "--out", "out", "--models", "popularity"]
    assert main([*options, "lightgcn"]) == 2
    printed = capsys.readouterr()
    assert 'needs optuna: expected it installed (pip install "mmssl[tune]")' in printed.err
    assert not printed.out
    assert not (tmp_path / "out").exists()
    assert main(options) == 0  # nothing is searched


def test_a_model_that_cannot_be_trained_is_left_out(tiny_dataset, tmp_path, capsys):
    from mmssl.data.writers import write_dataset

    write_dataset(replace(tiny_dataset, features={}), tmp_path / "bare")
    options = ["run", "--data", str(tmp_path / "bare"), "--models", "paper", "popularity"]
    out = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    assert main([*options, *out]) == 0
    printed = capsys.readouterr()
    assert "paper: left out: data set tiny: variant paper expects item features" in printed.err
    assert "popularity: seed 1" in printed.out
