"""What all multi-modal baselines have in common: they learn, and refuse data without content."""

from __future__ import annotations

import dataclasses

import pytest

from mmssl.config import load_config
from mmssl.data.neighbors import Neighbors
from mmssl.errors import InputError
from mmssl.training.task import create_task
from tests.models.truth import loss_of_epochs

SETTINGS = {
    "freedom": ("lr=0.02", "reg=0.01"),
    "vbpr": ("lr=0.02",),
    "bm3": ("lr=0.02", "dropout=0.1"),
    "lattice": ("lr=0.02",),
    "slmrec": ("lr=0.01",),
    "grcn": ("lr=0.02",),
}


def task_for(name, dataset, *settings):
    return create_task(name, dataset, load_config(settings=[f"{name}.{s}" for s in settings]))


@pytest.mark.parametrize("name", SETTINGS)
def test_training_lowers_the_loss(tiny_dataset, name):
    task = task_for(name, tiny_dataset, "batch_size=100", *SETTINGS[name])
    first, *_, last = loss_of_epochs(task, 12)
    assert last < 0.8 * first


@pytest.mark.parametrize("name", SETTINGS)
def test_data_without_modalities(tiny_dataset, name):
    bare = dataclasses.replace(tiny_dataset, features={})
    words = rf"data set tiny: model {name} expects item features \(NAME_feat.npy\).*, got no modal"
    with pytest.raises(InputError, match=words):
        task_for(name, bare)
    listed = dataclasses.replace(bare, neighbors={"image": Neighbors.from_edges([0], [1])})
    settings = ()
    if name == "freedom":  # needs features only for its second term
        task_for(name, listed)
        name, settings = "freedom with freedom.reg > 0", ("reg=0.1",)
    with pytest.raises(InputError, match=f"model {name} expects item feat.*, got neighbor lists"):
        task_for(name.split()[0], listed, *settings)
