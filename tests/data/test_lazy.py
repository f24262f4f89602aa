"""Splits in records, and reading parts of a data set without the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data import DatasetReader, Interactions, read_dataset, write_dataset
from mmssl.data import blocks as blocks_module
from mmssl.data.importing import ImportOptions, import_data
from mmssl.data.resplit import SplitOptions, split_data
from mmssl.data.split_files import RecordSplit, write_records
from mmssl.errors import InputError


@pytest.fixture
def both(tiny_dataset, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """The same data set with splits in JSON and in records."""
    write_dataset(tiny_dataset, tmp_path / "json")
    monkeypatch.setattr("mmssl.data.writers.RECORDS_FROM", 1)
    write_dataset(tiny_dataset, tmp_path / "records")
    monkeypatch.setattr(blocks_module, "BLOCK", 17)
    return tmp_path / "json", tmp_path / "records"


def same(one: Interactions, other: Interactions) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_records_are_read_as_json_is(both, tiny_dataset):
    lists, records = map(read_dataset, both)
    assert sorted(p.name for p in both[1].glob("*.npy"))[-1] == "val.npy"
    assert not list(both[1].glob("*.json"))
    assert lists.content_hash() == records.content_hash() == tiny_dataset.content_hash()
    assert lists.interactions_hash() == records.interactions_hash()
    stored = np.load(both[1] / "train.npy")
    assert stored.dtype == [("user", "<i4"), ("item", "<i4")]
    assert (stored["user"] == tiny_dataset.train.user).all()


def test_import_and_split_take_records(both, tmp_path, monkeypatch):
    monkeypatch.setattr("mmssl.data.writers.RECORDS_FROM", 10**9)
    for path, name in zip(both, ("a", "b"), strict=True):
        report = import_data(path, tmp_path / name, ImportOptions())
        assert not any("not read" in line for line in report.lines)
        split_data(tmp_path / name, tmp_path / f"{name}-split", SplitOptions())
    for a in (tmp_path / "a-split").iterdir():
        if a.suffix == ".json":
            assert a.read_bytes() == (tmp_path / "b-split" / a.name).read_bytes()
    (both[1] / "val.npy").unlink()
    report = import_data(both[1], tmp_path / "drawn", ImportOptions())
    assert any(line.startswith("note: validation: ") for line in report.lines)


@pytest.mark.parametrize("kind", [0, 1])
def test_parts(both, tiny_dataset, kind):
    reader = DatasetReader(both[kind])
    assert (reader.num_users, reader.num_items) == (80, 50)
    assert reader.modalities == tuple(sorted(tiny_dataset.features))
    rng = np.random.default_rng(0)
    for split, edges in tiny_dataset.splits():
        assert reader.num_edges(split) == edges.num_edges
        assert same(reader.interactions(split), edges)
        for first, last in ((0, 80), (0, 20), (20, 41), (79, 80), (5, 5), (9, 3)):
            kept = (edges.user >= first) & (edges.user < last)
            found = reader.interactions(split, users=range(first, last))
            assert same(found, Interactions(edges.user[kept], edges.item[kept]))
        users, items = rng.permutation(80)[:30], rng.permutation(50)[:11].astype(np.int32)
        for chosen in ({"users": users}, {"items": items}, {"users": users, "items": items},
                       {"users": range(10, 60), "items": range(7, 30)}):  # fmt: skip
            kept = np.isin(edges.user, list(chosen.get("users", range(80))))
            kept &= np.isin(edges.item, list(chosen.get("items", range(50))))
            found = reader.interactions(split, **chosen)
            assert same(found, Interactions(edges.user[kept], edges.item[kept]))
        assert reader.interactions(split, users=np.empty(0, np.int64)).num_edges == 0
    name = reader.modalities[0]
    rows = reader.features(name)
    assert isinstance(rows, np.memmap)
    assert np.array_equal(rows[3:9], tiny_dataset.features[name][3:9])


def test_ranks_have_all_interactions_once(both, tiny_dataset):
    reader = DatasetReader(both[1])
    parts = [reader.interactions("train", users=range(20 * r, 20 * r + 20)) for r in range(4)]
    joined = Interactions(*(np.concatenate(ids) for ids in zip(*parts, strict=True)))
    assert same(joined, tiny_dataset.train)


def test_only_the_blocks_of_a_range_are_read(tmp_path, monkeypatch):
    user = np.repeat(np.arange(1000), 10)
    edges = Interactions(user, np.tile(np.arange(10), 1000))
    write_records(tmp_path / "train.npy", edges)
    monkeypatch.setattr(blocks_module, "BLOCK", 100)
    counted = []
    read = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: counted.append(k["count"]) or read(*a, **k))
    found = RecordSplit(tmp_path / "train.npy").read(range(500, 530))
    assert found.user.tolist() == np.repeat(np.arange(500, 530), 10).tolist()
    assert sum(counted) < 300 + 2 * 20  # the bisections read single records


@settings(max_examples=40, deadline=None)
@given(users=st.lists(st.integers(0, 9), min_size=1, max_size=30), data=st.data())
def test_ranges_against_a_filter(users, data, tmp_path_factory):
    user = np.sort(np.array(users))
    edges = Interactions(user, np.arange(user.size))
    path = tmp_path_factory.mktemp("split") / "train.npy"
    write_records(path, edges)
    first, last = data.draw(st.integers(0, 11)), data.draw(st.integers(0, 11))
    kept = (user >= first) & (user < last)
    found = RecordSplit(path).read(range(first, last))
    assert same(found, Interactions(edges.user[kept], edges.item[kept]))


def _records(path: Path, user: list[int], item: list[int]) -> None:
    write_records(path, Interactions(np.array(user), np.array(item)))


@pytest.mark.parametrize(
    ("user", "item", "message"),
    [
        ([1, 0], [0, 0], "expected unique records sorted by user"),
        ([0, 0], [1, 1], "expected unique records sorted by user"),
        ([0, 1], [0, -1], "expected item ids in 0 .. 2147483646, got -1"),
        ([-2, 1], [0, 1], "expected user ids in 0 .. 2147483646, got -2"),
        ([0, 1], [0, 50], "expected items in 0 .. 49"),
        ([], [], "expected at least one interaction, got none"),
    ],
)
def test_malformed_records(both, user, item, message):
    _records(both[1] / "train.npy", user, item)
    with pytest.raises(InputError, match=message):
        read_dataset(both[1])


def test_wrong_calls(both, tmp_path):
    reader = DatasetReader(both[1])
    for call, message in (
        (lambda: reader.interactions("dev"), "split must be one of train, val, test, got 'dev'"),
        (lambda: reader.interactions("val", users=range(81)), "users must be in 0 .. 79, got 80"),
        (lambda: reader.interactions("val", items=[-1]), "items must be in 0 .. 49, got -1"),
        (lambda: reader.interactions("val", users=range(0, 9, 2)), "a range of step 1, got step 2"),
        (lambda: reader.interactions("val", users=[0.5]), "users: expected integer ids"),
        (lambda: reader.features("smell"), "expected a modality among .*, got 'smell'"),
        (lambda: DatasetReader(tmp_path / "none"), "expected the directory of a data set"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    shutil.copy(both[0] / "val.json", both[1] / "val.json")
    with pytest.raises(InputError, match=r"expected val.json or val.npy, got both"):
        read_dataset(both[1])
    (both[0] / "dataset.toml").unlink()
    with pytest.raises(InputError, match="expected num_users and num_items, got none"):
        DatasetReader(both[0])
    _records(both[1] / "train.npy", [0, 1], [0, 50])
    with pytest.raises(InputError, match=r"train.npy: expected item ids in 0 .. 49, got 50"):
        reader.interactions("train")


def test_a_cut_file_is_refused(both):
    path = both[1] / "train.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="expected .* records of 8 bytes, got"):
        DatasetReader(both[1]).interactions("train")
