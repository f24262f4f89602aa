"""From a raw CSV and a table of titles to recommendations, with `mmssl` commands only."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmssl.cli import main
from mmssl.data import read_dataset
from tests.conftest import ROOT, make_dataset
from tests.shell import pairs_of

pytest.importorskip("sklearn", reason="features from text need mmssl[text]")
pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")

SMALL = "--set model.embedding_dim=16 --set critic.hidden=32 --set training.batch_size=4096"


def write_raw(folder: Path, dataset, titles: list[str], seed: int = 0) -> None:
    """Write what a shop exports: ratings with times, low ones too, unordered; quoted titles."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"user-{u}", dataset.item_ids[i] if dataset.item_ids else f"m{i}")
        for _, edges in dataset.splits()
        for u, i in zip(*edges, strict=True)
    ]
    with open(folder / "ratings.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["userId", "movieId", "rating", "timestamp"])
        for position in rng.permutation(len(rows)).tolist():
            user, item = rows[position]
            moment = 978_300_000 + int(rng.integers(0, 10**8))
            writer.writerow([user, item, rng.choice([2, 4, 4, 5, 5, 5]), moment])
    ids = dataset.item_ids or [f"m{i}" for i in range(dataset.num_items)]
    with open(folder / "movies.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["movieId", "title", "genres"])
        writer.writerows(zip(ids, titles, ["Drama|Comedy"] * len(ids), strict=True))


Run = Callable[[str], str]  # arguments of mmssl -> what it prints


def in_a_process(folder: Path, command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mmssl", *shlex.split(command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def walk(folder: Path, mmssl: Run, split: str, train: str = "") -> None:
    """The flow of docs/bring-your-own-data.md."""
    printed = mmssl("data import ratings.csv --items movies.csv --name films --out log")
    assert "user = userId, item = movieId, rating = rating, time = timestamp" in printed
    printed = mmssl(f"data split log --out films --min-rating 4 {split}")
    dataset = read_dataset(folder / "films")
    assert dataset.interactions_hash() in printed and "rated below 4" in printed
    mmssl("features text films --column title --column genres --dim 16")
    assert dataset.interactions_hash() == read_dataset(folder / "films").interactions_hash()
    mmssl(f"train --data films --out run --epochs 1 --quiet --device cpu {SMALL} {train}")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["data"]["split"]["hash"] == dataset.interactions_hash()
    assert metrics["data"]["split"]["protocol"] == dataset.split.protocol
    user = dataset.user_ids[int(dataset.test.user[0])]
    printed = mmssl(f"recommend run --user {user} --top-k 5")
    assert sum(title in printed for title in dataset.item_titles) >= 5
    assert dataset.interactions_hash() in mmssl("data inspect films")


def test_a_small_shop(tmp_path, monkeypatch, capsys):
    def in_this_process(command: str) -> str:
        assert main(shlex.split(command)) == 0
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    dataset = make_dataset(num_users=120, num_items=60)
    words = ["red", "old", "lost", "river", "night", "queen", "iron", "glass", "storm", "garden"]
    rng = np.random.default_rng(0)
    titles = [f'"{" ".join(rng.choice(words, 3))}", part {n}' for n in range(60)]
    write_raw(tmp_path, dataset, titles)
    walk(tmp_path, in_this_process, "--k-core 3")


@pytest.mark.slow
def test_movielens_1m(tmp_path):
    root = Path(os.environ.get("MMSSL_DATA", ROOT.parent / "shared" / "data"))
    if not (root / "ml1m" / "items.tsv").is_file():
        pytest.skip("no ml1m among the real data sets (set MMSSL_DATA to their folder)")
    dataset = read_dataset(root / "ml1m", modalities=())
    write_raw(tmp_path, dataset, list(dataset.item_titles))
    walk(
        tmp_path,
        functools.partial(in_a_process, tmp_path),
        "--protocol leave-one-out --user-core 100 --item-core 80",
        "--model lightgcn",
    )


@pytest.fixture
def mmssl(tmp_path, monkeypatch, capsys) -> Run:
    def run(command: str) -> str:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


LIGHTGCN = "--model lightgcn --set lightgcn.epochs=1 --quiet --device cpu"


def test_microlens(tmp_path, mmssl):
    """Lines of a user, a tab and items by time, to recommendations by title."""
    rng = np.random.default_rng(0)
    lists = {str(user): rng.permutation(40)[: rng.integers(4, 9)].tolist() for user in range(60)}
    rows = [f"{user}\t{' '.join(map(str, items))}\n" for user, items in lists.items()]
    (tmp_path / "pairs.tsv").write_text("".join(rows))
    titles = [f'{item},"Film {item}, the {word}"\n' for item in range(40) for word in ["red"]]
    (tmp_path / "titles.csv").write_text("item,title\n" + "".join(titles))
    mmssl("data import pairs.tsv --items titles.csv --ordered --name microlens --out log")
    mmssl("data split log --protocol leave-one-out --out microlens")
    dataset = read_dataset(tmp_path / "microlens")
    for split, position in (("test", -1), ("val", -2)):
        expected = {user: str(items[position]) for user, items in lists.items()}
        assert dict(pairs_of(dataset, split)) == expected
    mmssl("features text microlens --dim 8")
    mmssl(f"train --data microlens --out run {LIGHTGCN}")
    assert mmssl("recommend run --user 1 --top-k 5").count("Film ") >= 5


def test_amazon(tmp_path, mmssl):
    """Reviews and metadata as published in 2023, to recommendations by title."""
    rng = np.random.default_rng(0)
    with gzip.open(tmp_path / "Toys.jsonl.gz", "wt") as file:
        for user in range(60):
            for moment, item in enumerate(rng.permutation(40)[:8].tolist()):
                row = {"rating": 4.0, "title": "fine", "images": [], "asin": f"B{item}-red",
                       "parent_asin": f"B{item}", "user_id": f"A{user}",
                       "timestamp": 1_500_000_000_000 + moment}  # fmt: skip
                file.write(json.dumps(row) + "\n")
    with gzip.open(tmp_path / "meta_Toys.jsonl.gz", "wt") as file:
        for item in range(40):
            row = {"main_category": "Toys", "title": f"Toy {item}", "description": ["soft", "red"],
                   "details": {"Brand": "x"}, "parent_asin": f"B{item}"}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    mmssl("data import Toys.jsonl.gz --items meta_Toys.jsonl.gz --name toys --out log")
    mmssl("data split log --k-core 2 --protocol leave-one-out --out toys")
    mmssl("features text toys --column title --column description --dim 8")
    mmssl("features text toys --name again --from meta_Toys.jsonl.gz --column title --dim 8")
    mmssl(f"train --data toys --out run {LIGHTGCN}")
    assert mmssl("recommend run --user A1 --top-k 5").count("Toy ") >= 5
