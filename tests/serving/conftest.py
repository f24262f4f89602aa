"""Fixtures: a trained run with ids, titles and a cold item, and its export."""

from __future__ import annotations

import pytest

from mmssl.cli import main
from mmssl.data.dataset import InteractionDataset
from mmssl.data.writers import write_dataset
from mmssl.serving import Recommender
from tests.conftest import make_dataset


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Train a run with ids and titles; return it and the folder of its data set."""
    base = tmp_path_factory.mktemp("serving")
    plain = make_dataset()
    keep = plain.train.item != 4  # item 4 has no train interactions
    dataset = InteractionDataset(
        name="named",
        num_users=plain.num_users,
        num_items=plain.num_items,
        train=type(plain.train)(plain.train.user[keep], plain.train.item[keep]),
        val=plain.val,
        test=plain.test,
        features=plain.features,
        user_ids=tuple(f"user-{n:03d}" for n in range(plain.num_users)),
        item_ids=tuple(f"b{n}" for n in range(plain.num_items)),
        item_titles=tuple("" if n == 3 else f'Film "{n}", part' for n in range(plain.num_items)),
    )
    write_dataset(dataset, base / "data")
    command = ["train", "--data", str(base / "data"), "--out", str(base / "run"), "--epochs", "2"]
    assert main([*command, "--set", "model.embedding_dim=16", "--quiet", "--device", "cpu"]) == 0
    return base


@pytest.fixture(scope="session")
def exported(world):
    assert main(["export", str(world / "run"), "--to", str(world / "export")]) == 0
    return world / "export"


@pytest.fixture(scope="session")
def recommender(exported):
    return Recommender.load(exported)
