"""Fixtures that several directories of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from mmssl import _extension
from mmssl.data.dataset import InteractionDataset
from mmssl.data.splits import random_holdout
from mmssl.data.writers import write_dataset
from tests.shell import Shell

ROOT = Path(__file__).resolve().parents[1]

# The examples are the same in every run, so that a failure belongs to the change that is tested.
# Fuzzing with fresh examples is `pytest --hypothesis-profile=default`.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

# The models of the tests are tiny: on a busy machine a second thread costs far more than it gives.
# Tests about threads set their own number.
torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes that tests start share the cores as well
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Without the compiled modules the ops say once that plain PyTorch is used: no error then."""
    if _extension.ops is None:
        config.addinivalue_line(
            "filterwarnings", "ignore:.*slower plain PyTorch is used:RuntimeWarning"
        )


@pytest.fixture(scope="session")
def oracle():
    """Arrays recorded from the released code; all sizes are read from them."""
    folder = Path(os.environ.get("MMSSL_ORACLE", ROOT.parent / "shared" / "oracle"))
    if not folder.is_dir():
        pytest.skip(f"no recorded oracle: folder {folder} does not exist (set MMSSL_ORACLE)")
    return np.load(folder / "oracle.npz", allow_pickle=False)


def make_dataset(num_users: int = 80, num_items: int = 50, seed: int = 0) -> InteractionDataset:
    """Make a small learnable data set: users and items of four tastes, two modalities."""
    rng = np.random.default_rng(seed)
    user_taste, item_taste = rng.integers(0, 4, num_users), rng.integers(0, 4, num_items)
    chance = np.where(user_taste[:, None] == item_taste[None, :], 0.5, 0.05)
    chance[0] = 0.2  # every user has an interaction
    user, item = np.nonzero(rng.random(chance.shape) < chance)
    splits = zip(("train", "val", "test"), random_holdout(user, item, seed=seed), strict=True)
    centers = rng.normal(size=(2, 4, 12))
    features = {
        name: (centers[m, item_taste] + 0.3 * rng.normal(size=(num_items, 12))).astype(np.float32)
        for m, name in enumerate(("image", "text"))
    }
    return InteractionDataset(
        name="tiny", num_users=num_users, num_items=num_items, features=features, **dict(splits)
    )


@pytest.fixture(scope="session")
def tiny_dataset() -> InteractionDataset:
    return make_dataset()


@pytest.fixture(scope="session")
def tiny_directory(tiny_dataset, tmp_path_factory) -> Path:
    """The tiny data set on disk."""
    directory = tmp_path_factory.mktemp("data") / "tiny"
    write_dataset(tiny_dataset, directory)
    return directory


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys) -> Shell:
    """Runs commands in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)
