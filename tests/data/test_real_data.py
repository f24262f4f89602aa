"""Sizes of the released data sets, compared with their published statistics."""

from __future__ import annotations

import pytest

from mmssl.data import read_dataset
from mmssl.data.summary import summarize

COUNTS = {
    "tiktok": ((9308, 6710), (59541, 3051, 6130), {"audio": 128, "image": 128}),
    "baby": ((19445, 7050), (118551, 21682, 20559), {"image": 128, "text": 128}),
    "ml1m": ((6036, 2928), (438275, 51487, 51487), {"audio": 128, "image": 1280, "text": 384}),
    "sports": ((35598, 18357), (218409, 40029, 37899), {}),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(real_data, name):
    if not (real_data / name).is_dir():
        pytest.skip(f"{name} is not among the real data sets")
    dataset = read_dataset(real_data / name)
    sizes, edges, widths = COUNTS[name]
    assert (dataset.num_users, dataset.num_items) == sizes
    assert tuple(split.num_edges for _, split in dataset.splits()) == edges
    assert {modality: rows.shape[1] for modality, rows in dataset.features.items()} == widths
    if name == "ml1m":
        assert dataset.item_titles[:2] == ("Jumanji (1995)", "Grumpier Old Men (1995)")
        assert dataset.item_ids[:2] == ("2", "3")


def test_tiktok_in_numbers(real_data):
    facts = summarize(read_dataset(real_data / "tiktok"))
    assert facts["users_without_train_edge"] == 10
    assert facts["items_without_train_edge"] == 465
    assert facts["cold_test_edges"] == pytest.approx(0.073, abs=5e-4)
    assert facts["modalities"]["audio"]["repeated_rows"] == 55
