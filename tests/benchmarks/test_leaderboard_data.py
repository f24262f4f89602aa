"""The data of the leaderboard: results of other machines go on, those of other data do not."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.leaderboard import records
from benchmarks.leaderboard.data import Data
from mmssl.data.dataset import Interactions
from mmssl.errors import InputError


def _moved(edges):
    """The items of the edges, the last replaced by one to which its user has no train edge."""
    item = edges.item.copy()
    item[-1] = next(i for i in range(50) if i not in item[edges.user == edges.user[-1]])
    return item


def test_data_of_another_machine_agree_to_rounding(tiny_dataset, tmp_path):
    from mmssl.data.writers import write_dataset

    out = tmp_path / "out"

    def read(name, **changes):
        write_dataset(replace(tiny_dataset, **changes), tmp_path / name)
        data = Data.read(tmp_path / name, out)
        data.write(out)
        return data

    first = read("first")
    image = tiny_dataset.features["image"]
    rest = {name: rows for name, rows in tiny_dataset.features.items() if name != "image"}
    rounded = np.nextafter(image, np.float32(9))
    again = read("rounded", features={**rest, "image": rounded})
    assert again.record["hash"] != first.record["hash"]
    assert records.read(out / "tiny" / "data.json")["hash"] == first.record["hash"]

    train = tiny_dataset.train
    fewer = Interactions.from_edges(train.user[1:], train.item[1:])
    moved = Interactions.from_edges(train.user, _moved(train))
    changed = image.copy()
    changed[3, 1] += 0.01 * abs(image).max()
    for number, (what, changes) in enumerate(
        [
            ("features", {"features": rest}),
            ("features 'image'", {"features": {**rest, "image": changed}}),
            ("features 'image'", {"features": {**rest, "image": image[::-1].copy()}}),
            ("train", {"train": fewer}),
            ("splits and item graphs", {"train": moved}),
        ]
    ):
        expected = f"expected the data of {out}/tiny/data.json, got other {what}; choose another"
        with pytest.raises(InputError, match=re.escape(expected)):
            read(f"other-{number}", **changes)
