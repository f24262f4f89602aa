"""Round trips of data sets, and no partial output after an interrupt."""

from __future__ import annotations

import shutil
import stat

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmssl.data import InteractionDataset, Interactions, read_dataset, write_dataset, writers
from mmssl.data.dataset import MAX_FEATURE
from mmssl.data.manifest import SplitInfo
from mmssl.errors import InputError

LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), max_size=8)


def assert_same(first: InteractionDataset, second: InteractionDataset) -> None:
    for name in (
        "name",
        "num_users",
        "num_items",
        "user_ids",
        "item_ids",
        "item_titles",
        "item_columns",
        "split",
    ):
        assert getattr(first, name) == getattr(second, name)
    for (_, one), (_, other) in zip(first.splits(), second.splits(), strict=True):
        assert np.array_equal(one.user, other.user) and np.array_equal(one.item, other.item)
    assert first.features.keys() == second.features.keys()
    for modality, rows in first.features.items():
        assert rows.tobytes() == second.features[modality].tobytes()
    assert first.content_hash() == second.content_hash()


@st.composite
def datasets(draw: st.DrawFn) -> InteractionDataset:
    num_users, num_items = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    cells = st.integers(0, num_users * num_items - 1)
    keys = np.array(draw(st.lists(cells, min_size=3, unique=True)), dtype=np.int64)
    bounds = sorted(
        draw(st.lists(st.integers(1, len(keys) - 1), min_size=2, max_size=2, unique=True))
    )
    train, val, test = (
        Interactions.from_edges(*np.divmod(part, num_items)) for part in np.split(keys, bounds)
    )
    finite = st.floats(-MAX_FEATURE, MAX_FEATURE, width=32)

    def names(count: int, *, unique: bool) -> st.SearchStrategy[tuple[str, ...]]:
        cell = LINE.filter(bool) if unique else LINE
        return st.lists(cell, min_size=count, max_size=count, unique=unique).map(tuple)

    modalities = st.sampled_from(["image", "text", "a-b_2"])
    rows = hnp.arrays(np.float32, st.tuples(st.just(num_items), st.integers(1, 3)), elements=finite)
    return InteractionDataset(
        name=draw(LINE.filter(str.strip)),
        num_users=num_users,
        num_items=num_items,
        train=train,
        val=val,
        test=test,
        features=draw(st.dictionaries(modalities, rows)),
        user_ids=draw(st.none() | names(num_users, unique=True)),
        item_ids=draw(st.none() | names(num_items, unique=True)),
        item_titles=draw(st.none() | names(num_items, unique=False)),
        item_columns=draw(
            st.dictionaries(st.sampled_from(["genres", "a b"]), names(num_items, unique=False))
        ),
        split=draw(
            st.builds(
                SplitInfo,
                protocol=st.sampled_from(["random", "temporal"]),
                seed=st.none() | st.integers(0, 2**40),
                parameters=st.dictionaries(st.sampled_from(["ratio", "k_core"]), st.integers(0, 9)),
                dropped=st.dictionaries(st.just("not in the k-core"), st.integers(0, 9)),
            )
        ),
    )


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(dataset=datasets())
def test_round_trip_of_any_data_set(tmp_path, dataset):
    target = tmp_path / "round"
    shutil.rmtree(target, ignore_errors=True)
    write_dataset(dataset, target)
    assert_same(read_dataset(target), dataset)


def test_round_trip_into_new_folders(tmp_path, toy_dataset):
    target = tmp_path / "a" / "b"
    write_dataset(toy_dataset, target)
    assert_same(read_dataset(target), toy_dataset)
    assert [path.name for path in target.parent.iterdir()] == ["b"]
    assert stat.S_IMODE(target.stat().st_mode) & stat.S_IRUSR
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert target.stat().st_mode == ordinary.stat().st_mode


def test_an_empty_folder_is_filled_and_anything_else_kept(tmp_path, toy_dataset):
    empty, full, file = tmp_path / "empty", tmp_path / "full", tmp_path / "file"
    empty.mkdir()
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    write_dataset(toy_dataset, empty)
    assert_same(read_dataset(empty), toy_dataset)
    with pytest.raises(
        InputError, match="full: expected a new or empty directory, got one with files"
    ):
        write_dataset(toy_dataset, full)
    with pytest.raises(InputError, match="file: expected a new or empty directory, got a file"):
        write_dataset(toy_dataset, file)
    with pytest.raises(InputError, match="can't be written"):
        write_dataset(toy_dataset, file / "below")
    with pytest.raises(InputError, match="can't be written"):
        write_dataset(toy_dataset, tmp_path / ("x" * 300))
    assert [path.name for path in full.iterdir()] == ["mine.txt"] and file.read_text() == "mine"


def test_a_link_to_an_empty_folder_is_followed(tmp_path, toy_dataset):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_dataset(toy_dataset, tmp_path / "link")
    assert_same(read_dataset(tmp_path / "real"), toy_dataset)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupt_leaves_nothing(tmp_path, toy_dataset, monkeypatch, fault):
    def fail(*args, **kwargs):
        raise fault

    monkeypatch.setattr(writers, "save_array", fail)
    expected = InputError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_dataset(toy_dataset, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
