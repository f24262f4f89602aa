"""Reading the MMSSL layout: valid directories, and one-line errors for all others."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmssl.data import read_dataset
from mmssl.errors import InputError


def refused(folder: Path, words: str, **kwargs) -> None:
    with pytest.raises(InputError) as caught:
        read_dataset(folder, **kwargs)
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message


def test_reads_splits_and_features(folder):
    dataset = read_dataset(folder)
    assert (dataset.name, dataset.num_users, dataset.num_items) == ("toy", 4, 5)
    assert dataset.train.user.tolist() == [0, 0, 1, 3, 3]
    assert dataset.train.item.tolist() == [0, 2, 1, 3, 4]
    assert list(dataset.features) == ["image", "text"]
    image = np.load(folder / "image_feat.npy").astype(np.float32)
    assert np.array_equal(dataset.features["image"], image)
    assert dataset.features["text"].dtype == np.float32
    assert dataset.user_ids is dataset.item_ids is dataset.item_titles is None


def test_users_without_any_interaction_at_the_end_do_not_count(folder):
    # test.json has a key "4" with an empty list; TikTok's has eleven such keys.
    assert "4" in json.loads((folder / "test.json").read_text())
    assert read_dataset(folder).num_users == 4


def test_items_beyond_the_interactions_come_from_the_features(folder):
    for name in ("image", "text"):
        np.save(folder / f"{name}_feat.npy", np.ones((9, 2), np.float32))
    assert read_dataset(folder).num_items == 9
    assert read_dataset(folder, modalities=[]).num_items == 9


def test_without_features_the_highest_id_counts(folder):
    for path in folder.glob("*_feat.npy"):
        path.unlink()
    dataset = read_dataset(folder)
    assert dataset.num_items == 5 and dataset.features == {}


def test_modalities_are_chosen_and_ordered(folder):
    assert list(read_dataset(folder, modalities=["text", "image"]).features) == ["text", "image"]
    assert list(read_dataset(folder, modalities=["text"]).features) == ["text"]
    refused(folder, "expected modalities among image, text, got 'audio'", modalities=["audio"])
    refused(folder, "got 'text' twice", modalities=["text", "text"])


@pytest.mark.parametrize(
    ("split", "content", "words"),
    [
        ("train", "", "train.json: expected JSON"),
        ("train", '{"0": [1', "train.json: expected JSON"),
        ("val", b"\xff\xfe\xfa", "val.json: expected JSON"),
        ("train", "[" * 100_000, "train.json: expected JSON"),
        ("train", '{"0": [' + "9" * 5000 + "]}", "train.json: expected"),
        ("train", "[[0, 1]]", "expected a JSON object, got a list"),
        ("val", '{"0": [1], "0": [2]}', "val.json: expected unique keys, got duplicate key '0'"),
        ("val", '{"0": [NaN]}', "val.json: expected JSON numbers, got NaN"),
        ("val", '{"ann": [1]}', "val.json: expected user keys to be integers"),
        ("val", '{"-1": [1]}', "got '-1'"),
        ("val", '{"01": [1]}', "got '01'"),
        ("val", '{"1.0": [1]}', "got '1.0'"),
        ("val", '{"\u0661": [1]}', "expected user keys to be integers"),
        ("val", '{"2147483647": [1]}', "got '2147483647'"),
        ("val", '{"0": 1}', "val.json: expected a list of items for user 0, got a number"),
        ("val", '{"0": {"1": 1}}', "expected a list of items for user 0, got an object"),
        ("val", '{"0": [1.0]}', "expected integer items for user 0, got a number 1.0"),
        ("val", '{"0": [true]}', "expected integer items for user 0, got a boolean True"),
        ("val", '{"0": ["1"]}', "expected integer items for user 0, got a string '1'"),
        ("val", '{"0": [null]}', "expected integer items for user 0, got null"),
        ("val", '{"0": [-1]}', "expected items in 0 .. 2147483646 for user 0, got -1"),
        ("val", '{"0": [2147483647]}', "for user 0, got 2147483647"),
        ("val", '{"0": [' + "9" * 400 + "]}", "got a number far out of range"),
        ("val", '{"2": [1, 3, 1]}', "val.json: expected unique items for user 2, got item 1"),
        ("val", '{"2": [5]}', "val.json: expected items in 0 .. 4"),
        ("val", '{"3": [1, 4]}', "val.json: expected no edge of train.json, got overlap: user 3"),
        ("test", '{"2": [2]}', "test.json: expected no edge of val.json, got overlap: user 2"),
        ("test", '{"2": []}', "test.json: expected at least one interaction"),
        ("train", "{}", "train.json: expected at least one interaction"),
    ],
)
def test_refuses_splits(folder, split, content, words):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / f"{split}.json").write_bytes(data)
    refused(folder, words)


def test_item_beyond_the_features_names_file_user_and_item(folder):
    (folder / "test.json").write_text('{"1": [0], "3": [0, 7]}')
    refused(folder, "test.json: expected items in 0 .. 4 (the features have 5 rows), got item 7")
    refused(folder, "for user 3")


def test_missing_files(folder, tmp_path):
    refused(tmp_path / "nowhere", "expected the directory of a data set")
    refused(tmp_path / ("x" * 5000), "expected the directory of a data set")
    refused(folder / "train.json", "expected the directory of a data set")
    (folder / "val.json").unlink()
    refused(folder, "val.json: expected a file, got none")


def test_train_mat_alone_is_no_data_set(folder):
    (folder / "train.json").unlink()
    (folder / "train_mat").write_bytes(b"")
    refused(folder, "train_mat is a pickle, which is never opened")


class Payload:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_malicious_train_mat_is_never_executed(folder, tmp_path):
    trap = tmp_path / "executed"
    with (folder / "train_mat").open("wb") as file:
        pickle.dump(Payload(trap), file)
    assert read_dataset(folder).train.num_edges == 5
    assert not trap.exists()


def test_object_array_is_never_unpickled(folder, tmp_path):
    trap = tmp_path / "executed"
    rows = np.array([[Payload(trap)]] * 5, dtype=object)
    np.save(folder / "image_feat.npy", rows, allow_pickle=True)
    refused(folder, "image_feat.npy: expected plain numbers, got Python objects")
    assert not trap.exists()
    np.load(folder / "image_feat.npy", allow_pickle=True)  # unpickling does create the file
    assert trap.exists()


def test_pickle_named_npy_is_never_unpickled(folder, tmp_path):
    trap = tmp_path / "executed"
    with (folder / "image_feat.npy").open("wb") as file:
        pickle.dump(Payload(trap), file)
    refused(folder, "image_feat.npy: expected a .npy array, got a pickle, which is never unpickled")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.ones(5, np.float32), "image_feat.npy: expected shape (items, d), got (5,)"),
        (np.ones((5, 2, 2), np.float32), "expected shape (items, d), got (5, 2, 2)"),
        (np.ones((5, 2), np.complex64), "expected a matrix of real numbers, got dtype complex64"),
        (np.full((5, 2), "a"), "expected a matrix of real numbers, got dtype <U1"),
        (np.zeros((5, 2), "M8[s]"), "expected a matrix of real numbers, got dtype datetime64[s]"),
        (np.zeros((5, 2), [("x", "f4")]), "expected a matrix of real numbers"),
        (np.ones((5, 0), np.float32), "expected at least one row and one column, got (5, 0)"),
        (np.ones((0, 2), np.float32), "expected at least one row and one column, got (0, 2)"),
        (np.ones((6, 2), np.float32), "text_feat.npy: expected 6 rows, the same number as image"),
        (np.full((5, 2), 1e300), "float32, got 1e+300 at row 0, column 0"),
        (
            np.array([[1.0], [-1e10], [2e10], [0], [0]], "f4"),
            "got 20000000000.0 at row 2, column 0",
        ),
    ],
)
def test_refuses_features(folder, rows, words):
    np.save(folder / "image_feat.npy", rows)
    refused(folder, words)


def test_names_row_and_column_of_what_is_not_finite(folder):
    rows = np.ones((5, 3), np.float16)
    rows[2, 1] = np.inf
    np.save(folder / "image_feat.npy", rows)
    refused(folder, "float32, got inf at row 2, column 1")


@pytest.mark.parametrize(
    "rows",
    [
        np.asfortranarray(np.arange(15.0).reshape(5, 3)),
        np.arange(15, dtype=">f4").reshape(5, 3),
        np.arange(15, dtype=np.int16).reshape(5, 3),
        np.arange(15).reshape(5, 3) % 2 == 0,
    ],
    ids=["fortran", "big-endian", "int16", "bool"],
)
def test_every_kind_of_real_matrix_becomes_float32(folder, rows):
    np.save(folder / "image_feat.npy", rows)
    read = read_dataset(folder).features["image"]
    assert read.dtype == np.float32 and read.flags.c_contiguous
    assert np.array_equal(read, rows.astype(np.float32))


def npy_header(text: str, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "got an empty file"),
        (b"PK\x03\x04", "got a zip archive (.npz?)"),
        (b"hello", "got something else"),
        (b"\x93NUMPY", "expected a valid .npy header"),
        (b"\x93NUMPY\x09\x00", "expected .npy format 1.0 or 2.0"),
        (npy_header("nonsense"), "expected a valid .npy header"),
        (npy_header("(" * 900), "expected a valid .npy header"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 3)}\n"), "at least"),
        (
            npy_header(
                "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 64)}\n"
            ),
            "truncated: expected 1180591620717411303424 bytes",
        ),
        (
            npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 999999999999)}\n")
            + bytes(64),
            "truncated: expected 19999999999980 bytes of data for shape (5, 999999999999), got 64",
        ),
    ],
)
def test_refuses_broken_npy(folder, content, words):
    (folder / "image_feat.npy").write_bytes(content)
    refused(folder, words)


def test_truncated_and_overlong_npy(folder):
    path = folder / "image_feat.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(folder, "image_feat.npy: truncated: expected 30 bytes of data for shape (5, 3), got 29")
    path.write_bytes(whole + b"\0")
    refused(folder, "image_feat.npy: expected 30 bytes of data for shape (5, 3), got 31")


def test_directories_in_place_of_files(folder):
    (folder / "audio_feat.npy").mkdir()
    refused(folder, "audio_feat.npy: expected a regular file, got a directory")
    (folder / "audio_feat.npy").rmdir()
    (folder / "users.tsv").symlink_to(folder / "nowhere")
    refused(folder, "users.tsv: can't be read")
    (folder / "a b_feat.npy").touch()
    refused(folder, "expected a modality of letters, digits, '_' and '-', got 'a b'")


def test_reads_the_tables(folder):
    # Columns of MovieLens-1M, Windows line endings, unsorted rows.
    rows = ["item\tmovieId\ttitle\tgenres", "1\t11\tAlien\tHorror", "0\t10\tHeat\tCrime"]
    rows += [f"{item}\t1{item}\t\t" for item in (2, 3, 4)]
    (folder / "items.tsv").write_bytes("\r\n".join(rows).encode() + b"\r\n")
    (folder / "users.tsv").write_text("user\tid\n0\tann\n1\tbob\n2\tcid\n3\tdee\n")
    dataset = read_dataset(folder)
    assert dataset.item_ids == ("10", "11", "12", "13", "14")
    assert dataset.item_titles == ("Heat", "Alien", "", "", "")
    assert dataset.user_ids == ("ann", "bob", "cid", "dee")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "users.tsv: expected first column 'user', got ''"),
        ("id\n", "users.tsv: expected first column 'user', got 'id'"),
        ("user\tid\n0\ta\n", "users.tsv: expected 4 rows, got 1"),
        ("user\tid\n0\ta\n1\tb\n2\n3\td\n", "line 4: expected 2 cells, got 1"),
        ("user\tid\n0\ta\n1\tb\n1\tc\n3\td\n", "line 4: expected a unique user in 0 .. 3"),
        ("user\tid\n0\ta\n1\tb\nx\tc\n3\td\n", "a unique user in 0 .. 3, got 'x'"),
        ("user\tid\n0\ta\n1\tb\n2\tb\n3\td\n", "users.tsv: expected unique, non-empty ids"),
        (b"user\tid\n0\t\xff", "users.tsv: expected UTF-8 text"),
    ],
)
def test_refuses_tables(folder, content, words):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "users.tsv").write_bytes(data)
    refused(folder, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "dataset.toml: not valid TOML"),
        ("a = " + "[" * 3000, "dataset.toml: not valid TOML"),
        ("num_users = '4'", "dataset.toml: expected num_users to be an integer, got '4'"),
        ("num_items = true", "dataset.toml: expected num_items to be an integer, got True"),
        ("num_items = 0", "dataset.toml: expected num_items to be an integer in 1 .. "),
        ("num_users = 3", "dataset.toml: expected num_users above the highest id 3, got 3"),
        ("num_items = 6", "image_feat.npy: expected 6 rows, num_items of dataset.toml, got 5"),
        ("name = ' '", "dataset.toml: expected name"),
        ("format = 2", "dataset.toml: expected format 1, got 2, written by a newer version"),
        ("split = 1", "dataset.toml: expected split to be a table, got 1"),
        ("[split]\nseed = 'x'", "dataset.toml: expected split.seed to be an integer, got 'x'"),
        ("[split]\nhash = 'abc'", "dataset.toml: expected interactions with the hash abc, got "),
        ("[source.dropped]\nx = 'y'", "expected source.dropped.x to be an integer, got 'y'"),
        ("[log]\nhash = 'abc'", "got a log that is not split yet; run mmssl data split"),
    ],
)
def test_refuses_dataset_toml(folder, content, words):
    (folder / "dataset.toml").write_text(content)
    refused(folder, words)


def test_a_split_is_known_by_its_interactions(folder):
    first = read_dataset(folder)
    assert first.split.protocol == "given" and first.split.label() == "given"
    np.save(folder / "audio_feat.npy", np.ones((5, 2), np.float32))
    second = read_dataset(folder)
    assert second.interactions_hash() == first.interactions_hash()
    assert second.content_hash() != first.content_hash()
    train = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(train | {"0": [2]}))
    assert read_dataset(folder).interactions_hash() != first.interactions_hash()


def test_further_columns_of_items(folder):
    (folder / "items.tsv").write_text(
        "item\tmovieId\ttitle\tgenres\n" + "".join(f"{i}\tm{i}\tt\tg{i}\n" for i in range(5))
    )
    dataset = read_dataset(folder)
    assert dataset.item_ids == ("m0", "m1", "m2", "m3", "m4")
    assert dataset.item_columns == {"genres": ("g0", "g1", "g2", "g3", "g4")}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_gives_a_data_set_or_one_line(folder, data):
    """Reading a data set with one damaged file returns a data set or raises InputError."""
    name = data.draw(st.sampled_from(["train.json", "image_feat.npy", "users.tsv", "dataset.toml"]))
    damaged = folder.parent / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(folder, damaged)
    (damaged / "users.tsv").write_text("user\tid\n0\tann\n1\tbob\n2\tcid\n3\tdee\n")
    (damaged / "dataset.toml").write_text(
        "name = 'a'\nnum_users = 4\n[split]\nseed = 1\n[source.dropped]\n'b' = 2\n"
    )
    content = bytearray((damaged / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        if not content:
            break
    (damaged / name).write_bytes(bytes(content))
    try:
        dataset = read_dataset(damaged)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert dataset.num_items >= 1


def test_masks_are_read_with_their_features(folder):
    mask = np.array([True, False, True, True, True])
    rows = np.load(folder / "image_feat.npy")
    rows[1] = 0
    np.save(folder / "image_feat.npy", rows)
    plain = read_dataset(folder)
    np.save(folder / "image_mask.npy", mask)
    dataset = read_dataset(folder)
    assert list(dataset.masks) == ["image"] and np.array_equal(dataset.masks["image"], mask)
    assert dataset.content_hash() == plain.content_hash()
    assert plain.masks == {} == read_dataset(folder, modalities=["text"]).masks


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones(4, bool), "image_mask.npy: expected 5 booleans, got dtype bool, shape (4,)"),
        (np.ones((5, 1), bool), "shape (5, 1)"),
        (np.ones(5, np.uint8), "got dtype uint8"),
        (np.array([None] * 5), "got Python objects, which are never unpickled"),
        (np.arange(5) != 1, "must be zero where its mask is False, got row 1"),
    ],
)
def test_refuses_masks(folder, mask, words):
    np.save(folder / "image_mask.npy", mask, allow_pickle=True)
    refused(folder, words)


def test_refuses_damaged_masks(folder):
    np.save(folder / "image_mask.npy", np.ones(5, bool))
    whole = (folder / "image_mask.npy").read_bytes()
    (folder / "image_mask.npy").write_bytes(whole[:-2])
    refused(folder, "image_mask.npy: expected 5 bytes of data, got 3 (truncated?)")
    (folder / "image_mask.npy").write_bytes(whole[:-1] + b"\x07")  # any nonzero byte is True
    assert read_dataset(folder).masks["image"].all()
