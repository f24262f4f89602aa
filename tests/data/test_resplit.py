"""Splitting of logs: k-core, protocols, copied features and the recorded parameters."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data import Interactions, read_dataset, write_dataset
from mmssl.data.log import InteractionLog, write_log
from mmssl.data.resplit import SplitOptions, split_data, split_log
from mmssl.data.splits import PROTOCOLS, assign, k_core
from mmssl.errors import InputError

PAIRS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), unique=True, min_size=1)


def make_log(num_users: int = 60, num_items: int = 40, seed: int = 0) -> InteractionLog:
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((num_users, num_items)) < 0.25)
    return InteractionLog(
        name="shop",
        num_users=num_users,
        num_items=num_items,
        user=user,
        item=item,
        rating=rng.integers(1, 6, user.size).astype(np.float64),
        time=rng.integers(0, 500, user.size),
        user_ids=tuple(f"u{n}" for n in range(num_users)),
        item_ids=tuple(f"i{n}" for n in range(num_items)),
        item_titles=tuple(f"title {n}" for n in range(num_items)),
        item_columns={"genre": tuple(f"g{n}" for n in range(num_items))},
    )


@settings(max_examples=150, deadline=None)
@given(pairs=PAIRS, user_k=st.integers(1, 4), item_k=st.integers(1, 4))
def test_k_core_against_removing_one_by_one(pairs, user_k, item_k):
    left = set(pairs)
    while True:
        poor = {
            (u, i)
            for u, i in left
            if sum(a == u for a, _ in left) < user_k or sum(b == i for _, b in left) < item_k
        }
        if not poor:
            break
        left -= {min(poor)}  # the core does not depend on the order of removal
    user, item = map(np.array, zip(*pairs, strict=True))
    kept = k_core(user, item, user_k, item_k)
    assert {pairs[place] for place in kept} == left and (np.diff(kept) > 0).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol(protocol):
    log = make_log()
    split = split_log(log, SplitOptions(protocol=protocol, seed=3))
    dataset = split.dataset
    train, val, test = (edges for _, edges in dataset.splits())
    assert set(np.unique(val.user)) | set(np.unique(test.user)) <= set(np.unique(train.user))
    kept = sum(edges.num_edges for _, edges in dataset.splits())
    assert kept + sum(dataset.split.dropped.values()) == log.num_edges
    known = {(log.user_ids[u], log.item_ids[i]) for u, i in zip(log.user, log.item, strict=True)}
    for _, edges in dataset.splits():
        for u, i in zip(*edges, strict=True):
            assert (dataset.user_ids[u], dataset.item_ids[i]) in known
    assert dataset.item_titles == tuple(f"title {id[1:]}" for id in dataset.item_ids)
    assert dataset.item_columns["genre"] == tuple(f"g{id[1:]}" for id in dataset.item_ids)
    again = split_log(log, SplitOptions(protocol=protocol, seed=3)).dataset
    other = split_log(log, SplitOptions(protocol=protocol, seed=4)).dataset
    assert dataset.interactions_hash() == again.interactions_hash()
    drawn = protocol not in ("leave-one-out", "temporal")
    assert (dataset.interactions_hash() != other.interactions_hash()) == drawn
    assert dataset.split.seed == (3 if drawn else None)


def test_the_same_split_on_every_machine():
    """Recorded splits; a change would invalidate the splits of all users."""
    log = make_log()
    found = {
        protocol: split_log(log, SplitOptions(protocol=protocol)).dataset.interactions_hash()[:16]
        for protocol in PROTOCOLS
    }
    assert found == RECORDED


RECORDED = {
    "random": "2eb82651190e1927",
    "random-global": "57d2a323c7fe782d",
    "leave-one-out": "f9429df50a49171b",
    "leave-one-out-random": "8c71763f7eb632f1",
    "temporal": "d7266a5229c086c5",
    "cold-item": "a81ac45f81c91705",
}


def labels(protocol, user, item, time=None, ratio=(0.8, 0.1, 0.1), seed=0):
    time = None if time is None else np.array(time)
    return assign(
        protocol, Interactions(np.array(user), np.array(item)), time, ratio, seed
    ).tolist()


def test_leave_one_out_by_time():
    user, item = [0, 0, 0, 0, 1, 1], [1, 2, 3, 4, 1, 2]
    assert labels("leave-one-out", user, item, [5, 9, 7, 1, 3, 4]) == [0, 2, 1, 0, 0, 0]
    drawn = labels("leave-one-out-random", user, item)
    assert sorted(drawn[:4]) == [0, 0, 1, 2] and drawn[4:] == [0, 0]


def test_temporal_has_one_pair_of_moments():
    time = [1, 2, 3, 4, 5, 6, 7, 8, 8, 9]
    found = labels("temporal", [0] * 10, range(10), time, (0.6, 0.2, 0.2))
    assert found == [0, 0, 0, 0, 0, 0, 1, 2, 2, 2]  # equal times stay together, in the later split
    for protocol in ("temporal", "leave-one-out"):
        with pytest.raises(InputError, match=f"protocol {protocol}: expected data with times"):
            labels(protocol, [0, 0], [0, 1])


def test_global_and_cold_items_have_the_shares():
    user, item = np.divmod(np.arange(1000), 50)
    counts = np.bincount(labels("random-global", user, item, ratio=(0.7, 0.1, 0.2)))
    assert counts.tolist() == [700, 100, 200]
    found = np.array(labels("cold-item", user, item))
    of_item = [set(found[item == one].tolist()) for one in range(50)]
    assert sorted(map(tuple, of_item)) == [(0,)] * 40 + [(1,)] * 5 + [(2,)] * 5


def test_order_of_the_steps():
    """Ratings, then the k-core, then users without train edges, then renumbering."""
    log = make_log()
    options = SplitOptions(min_rating=3, user_core=5, item_core=4, protocol="random-global")
    dataset = split_log(log, options).dataset
    liked = np.flatnonzero(log.rating >= 3)
    core = liked[k_core(log.user[liked], log.item[liked], 5, 4)]
    assert dataset.split.dropped["rated below 3"] == log.num_edges - liked.size
    assert dataset.split.dropped["not in the k-core"] == liked.size - core.size
    assert set(dataset.item_ids) <= {log.item_ids[i] for i in log.item[core]}
    assert dataset.split.label() == (
        "random-global (ratio 8:1:1, user_core 5, item_core 4, min_rating 3.0, cold_items keep, "
        "seed 2022)"
    )


def test_cold_items_can_be_dropped():
    user, item = np.divmod(np.arange(30), 3)
    item = np.where(item == 2, item + user, item)  # every user has an exclusive item
    edges = Interactions.from_edges(user, item)
    log = InteractionLog(name="x", num_users=10, num_items=12, user=edges.user, item=edges.item)
    kept = split_log(log, SplitOptions()).dataset
    left = split_log(log, SplitOptions(cold_items="drop")).dataset
    trained = np.bincount(left.train.item, minlength=left.num_items) > 0
    assert trained.all() and left.num_items < kept.num_items
    assert left.split.dropped["item without a train interaction"] > 0


def write(log: InteractionLog, folder):
    folder.mkdir()
    write_log(log, folder, None)
    return folder


def test_features_and_masks_go_with_the_items(tmp_path):
    log = make_log()
    folder = write(log, tmp_path / "log")
    rows = np.arange(80, dtype=np.float16).reshape(40, 2)
    mask = rows[:, 0] % 3 == 0
    rows[~mask] = 0
    np.save(folder / "text_feat.npy", rows)
    np.save(folder / "text_mask.npy", mask)
    (folder / "text_feat.toml").write_text("dimensions = 2\n")
    report = split_data(folder, tmp_path / "all", SplitOptions())
    assert report.features == ["text_feat.npy"] and (tmp_path / "all/text_feat.toml").exists()
    split_data(folder, tmp_path / "out", SplitOptions(min_rating=4, item_core=5))
    dataset = read_dataset(tmp_path / "out")
    assert dataset.num_items < 40
    places = [int(id[1:]) for id in dataset.item_ids]
    assert np.array_equal(dataset.features["text"], rows[places].astype(np.float32))
    assert np.load(tmp_path / "out/text_feat.npy").dtype == np.float16
    assert np.array_equal(np.load(tmp_path / "out/text_mask.npy"), mask[places])
    assert not (tmp_path / "out/text_feat.toml").exists()


def test_a_data_set_is_split_again(tmp_path, tiny_dataset):
    write_dataset(tiny_dataset, tmp_path / "tiny")
    split_data(tmp_path / "tiny", tmp_path / "loo", SplitOptions(protocol="leave-one-out-random"))
    dataset = read_dataset(tmp_path / "loo")
    edges = sum(part.num_edges for _, part in tiny_dataset.splits())
    assert sum(part.num_edges for _, part in dataset.splits()) == edges
    assert dataset.split.protocol == "leave-one-out-random" and dataset.split.seed == 2022
    assert set(dataset.features) == {"image", "text"}


def test_another_file_under_the_same_toml_is_refused(tmp_path):
    folder = write(make_log(), tmp_path / "log")
    for seed in (1, 2):
        split_data(folder, tmp_path / str(seed), SplitOptions(seed=seed))
    shutil.copy(tmp_path / "1" / "test.json", tmp_path / "2" / "test.json")
    with pytest.raises(InputError, match="expected"):
        read_dataset(tmp_path / "2")
    shutil.copy(tmp_path / "1" / "train.json", tmp_path / "2" / "train.json")
    shutil.copy(tmp_path / "1" / "val.json", tmp_path / "2" / "val.json")
    with pytest.raises(InputError, match=r"dataset.toml: expected interactions with the hash"):
        read_dataset(tmp_path / "2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "best"}, "protocol must be one of random"),
        ({"ratio": (8, 1)}, "ratios must be three numbers"),
        ({"ratio": (8, 0, 1)}, "ratios must be three numbers"),
        ({"ratio": (8, -9, 1)}, "ratios must be three numbers"),
        ({"user_core": 0}, "user_core must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in 0"),
        ({"cold_items": "hide"}, "cold-items must be keep or drop"),
        ({"protocol": "cold-item", "cold_items": "drop"}, "cold-items must be keep for"),
        ({"user_core": 99}, "expected interactions to split, got none: not in the k-core"),
        ({"min_rating": 9}, "expected interactions to split, got none: rated below 9"),
    ],
)
def test_refuses(tmp_path, options, words):
    folder = write(make_log(20, 15), tmp_path / "log")
    with pytest.raises(InputError, match=words):
        split_data(folder, tmp_path / "out", SplitOptions(**options))
    assert not (tmp_path / "out").exists()
