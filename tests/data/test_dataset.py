"""Validation, hashes and summary of a data set."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest

from mmssl.data import InteractionDataset, Interactions
from mmssl.data.summary import summarize, summary_lines
from mmssl.errors import InputError

F32 = np.float32


def edges(*pairs: tuple[int, int]) -> Interactions:
    user, item = zip(*pairs, strict=True)
    return Interactions(np.array(user, np.int64), np.array(item, np.int64))


def test_from_edges_sorts_by_user_then_item():
    user, item = Interactions.from_edges([3, 0, 3, 0], np.array([1, 9, 0, 2], dtype=np.int32))
    assert user.tolist() == [0, 0, 3, 3] and item.tolist() == [2, 9, 0, 1]
    assert user.dtype == item.dtype == np.int64


@pytest.mark.parametrize(
    ("user", "item", "words"),
    [
        ([0, 1], [0], r"^user, item: expected shape \(E,\) of both, got \(2,\) and \(1,\)$"),
        ([[0]], [[0]], r"^user, item: expected shape \(E,\) of both, got \(1, 1\) and \(1, 1\)$"),
        ([0.0], [1], "^user: expected integer ids, got float64; drop missing values"),
        ([0], [True], "^item: expected integer ids, got bool$"),
        (["a"], [0], "^user: expected integer ids, got <U1; map ids"),
        ([0, 1], np.ma.array([0, 1], mask=[0, 1]), "^item: expected no missing values"),
    ],
)
def test_from_edges_refuses(user, item, words):
    with pytest.raises(InputError, match=words):
        Interactions.from_edges(user, item)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_users": 0}, "num_users must be an int in 1"),
        ({"train": ([0], [1])}, "train must be of type Interactions, got tuple"),
        ({"features": np.zeros((5, 3), F32)}, "features must be of type Mapping, got ndarray"),
        ({"num_items": 2**31}, "num_items must be an int in 1"),
        ({"num_users": 3}, "train must have user ids in 0 .. 2, got 3"),
        ({"num_items": 4, "features": {}}, "train must have item ids in 0 .. 3, got 4"),
        ({"val": edges((0, -1))}, "val must have item ids in 0 .. 4, got -1"),
        ({"val": edges((1, 2), (0, 1))}, "val must be sorted by"),
        ({"val": edges((0, 1), (0, 1))}, "unique edges, got user 0, item 1 twice"),
        ({"val": edges((0, 1), (3, 3))}, "user 3, item 3 in both train and val"),
        ({"test": edges((0, 2))}, "user 0, item 2 in both train and test"),
        ({"test": edges((2, 2))}, "user 2, item 2 in both val and test"),
        ({"test": Interactions.from_edges([], [])}, "test must have at least one"),
        ({"train": Interactions(np.arange(2), np.arange(3))}, "one item id per user id"),
        ({"train": Interactions(np.zeros(1, np.int32), np.zeros(1, np.int64))}, "int64 vector"),
        ({"features": {"image": np.zeros((4, 3), F32)}}, r"shape \(5, d\).*got \(4, 3\)"),
        ({"features": {"image": np.zeros((5, 0), F32)}}, r"d >= 1"),
        ({"features": {"image": np.zeros((5, 3))}}, "float32 array, got float64"),
        ({"features": {"image": np.zeros((3, 5), F32).T}}, "C-contiguous"),
        ({"features": {"a/b": np.zeros((5, 3), F32)}}, "modality names must consist"),
        ({"user_ids": ("a", "b")}, "user_ids must be a tuple of 4 strings, got 2"),
        ({"user_ids": ("a", "b", "a", "c")}, "user_ids must be unique, got 'a'"),
        ({"item_ids": ("1", "2", "3", "4", "")}, r"item_ids\[4\] must be a non-empty string"),
        ({"item_titles": ("a", "b", "c", "d", "e\tf")}, r"item_titles\[4\] must be one line"),
        ({"item_titles": ("a", "b", "c", "d", "\ud800")}, r"item_titles\[4\] must be one line"),
        ({"name": ""}, "name must be a non-empty string"),
    ],
)
def test_refuses(toy, change, words):
    with pytest.raises(InputError, match=words) as caught:
        InteractionDataset(**(toy | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 2e10])
def test_names_the_first_value_that_can_not_be_used(toy, bad):
    rows = np.full((5, 3), -1e10, F32)
    rows[3, 1], rows[4, 0] = bad, np.inf
    with pytest.raises(InputError, match=r"finite and at most 1e10 .* at row 3, column 1"):
        InteractionDataset(**(toy | {"features": {"image": rows}}))


def test_hash_counts_content_and_nothing_else(toy):
    def digest(**change):
        return InteractionDataset(**(toy | change)).content_hash()

    rows = toy["features"]["image"]
    plain = digest(features={"image": rows, "text": rows})
    other_rows = rows.copy()
    other_rows[4, 2] += 1
    assert plain == digest(features={"text": rows, "image": rows}, name="x", item_ids=None)
    different = {
        plain,
        digest(features={"image": rows}),
        digest(features={"image": rows, "audio": rows}),
        digest(features={"image": rows, "text": other_rows}),
        digest(features={"image": rows, "text": rows}, val=toy["test"], test=toy["val"]),
        digest(features={"image": rows, "text": rows}, num_users=5, user_ids=None),
    }
    assert len(different) == 6


def test_hash_is_the_same_everywhere(toy):
    # Computed independently, little-endian; changing the hash would invalidate all recorded ones.
    parts = [b"mmssl-dataset-1 4 5\n"]
    for split in ("train", "val", "test"):
        user, item = toy[split]
        parts += [f"{split} {len(user)}\n".encode()]
        parts += [struct.pack(f"<{len(user)}q", *user), struct.pack(f"<{len(item)}q", *item)]
    parts += [b"image 5 3\n", struct.pack("<15f", *range(15))]
    expected = hashlib.sha256(b"".join(parts)).hexdigest()
    assert InteractionDataset(**toy).content_hash() == expected


def test_summary_counts(toy):
    rows = np.array([[1, 2], [0, 0], [1, 2], [0, 0], [3, 4]], F32)
    change = {
        "test": edges((1, 4), (2, 3), (3, 0)),
        "train": edges((0, 0), (0, 2), (1, 1), (3, 4)),
        "features": {"text": rows},
    }
    dataset = InteractionDataset(**(toy | change))
    facts = summarize(dataset)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["edges"] == {"train": 4, "val": 2, "test": 3}
    assert facts["density"] == pytest.approx(9 / 20)
    assert facts["users_without_train_edge"] == 1
    assert facts["items_without_train_edge"] == 1
    assert facts["cold_test_edges"] == facts["cold_test_items"] == pytest.approx(1 / 3)
    described = {"dim": 2, "zero_rows": 2, "repeated_rows": 2, "without_content": 0}
    assert facts["modalities"] == {"text": described}
    assert facts["user_degree"]["max"] == 2 and facts["user_degree"]["median"] == 1
    text = "\n".join(summary_lines(dataset))
    assert "train 4, val 2, test 3" in text and "modality text: 2 dimensions, 2 zero rows" in text
