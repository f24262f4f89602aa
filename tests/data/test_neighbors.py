"""``NAME_knn.npz``: what is read, one clear line for every defect, and where it travels to."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from mmssl.data import read_dataset, write_dataset
from mmssl.data.dataset import InteractionDataset
from mmssl.data.neighbors import Neighbors
from mmssl.data.npz import write_neighbors
from mmssl.data.resplit import SplitOptions, split_data
from mmssl.data.summary import summarize, summary_lines
from mmssl.errors import InputError

ROW, COL = np.array([4, 0, 0], np.int32), np.array([1, 3, 2], np.int32)


def save(folder, name: str = "text_knn.npz", **arrays) -> None:
    np.savez_compressed(folder / name, **arrays)


def test_reads_next_to_features_and_in_place_of_them(folder):
    save(folder, row=ROW, col=COL)
    save(folder, "audio_knn.npz", row=ROW, col=COL, value=np.array([0.5, 0.25, 1.0]))
    dataset = read_dataset(folder)
    assert list(dataset.neighbors) == ["audio", "text"]
    assert list(dataset.features) == ["image", "text"]
    text, audio = dataset.neighbors["text"], dataset.neighbors["audio"]
    assert (text.row.tolist(), text.col.tolist(), text.value) == ([0, 0, 4], [2, 3, 1], None)
    assert audio.value.tolist() == [1.0, 0.25, 0.5] and audio.value.dtype == np.float32
    chosen = read_dataset(folder, modalities=["audio", "image"])
    assert list(chosen.neighbors) == ["audio"] and list(chosen.features) == ["image"]


def test_the_hash_depends_on_neighbors(folder):
    plain = read_dataset(folder)
    save(folder, row=ROW, col=COL)
    first = read_dataset(folder)
    save(folder, row=ROW, col=COL, value=np.ones(3))
    second = read_dataset(folder)
    save(folder, row=ROW[::-1], col=COL[::-1])
    assert read_dataset(folder).content_hash() == first.content_hash()
    assert len({d.content_hash() for d in (plain, first, second)}) == 3
    assert len({d.interactions_hash() for d in (plain, first, second)}) == 1


def test_inspect_shows_them(folder):
    save(folder, row=ROW, col=COL)
    dataset = read_dataset(folder)
    assert summarize(dataset)["neighbors"] == {
        "text": {"edges": 3, "items_without_neighbors": 3, "weighted": False}
    }
    assert "neighbors text: 3 edges, 3 items without neighbors" in summary_lines(dataset)


def test_written_and_read_again(folder, tmp_path):
    save(folder, row=ROW, col=COL, value=np.array([0.1, 0.2, 0.3]))
    dataset = read_dataset(folder)
    write_dataset(dataset, tmp_path / "copy")
    assert read_dataset(tmp_path / "copy").content_hash() == dataset.content_hash()
    write_neighbors(tmp_path / "again.npz", dataset.neighbors["text"])
    first = (tmp_path / "copy" / "text_knn.npz").read_bytes()
    assert (tmp_path / "again.npz").read_bytes() == first


def test_a_new_split_takes_them_along(folder, tmp_path):
    save(folder, row=ROW, col=COL)
    titles = "".join(f"{item}\ti{item}\n" for item in range(5))
    (folder / "items.tsv").write_text(f"item\tid\n{titles}")
    split_data(folder, tmp_path / "out", SplitOptions(protocol="random"))
    dataset = read_dataset(tmp_path / "out")
    text, names = dataset.neighbors["text"], dataset.item_ids
    pairs = {(names[i], names[j]) for i, j in zip(text.row, text.col, strict=True)}
    assert pairs == {("i0", "i2"), ("i0", "i3"), ("i4", "i1")}


def test_items_are_renumbered():
    neighbors = Neighbors.from_edges([0, 1, 4], [4, 0, 2], [1.0, 2.0, 3.0])
    got = neighbors.of_items(np.array([4, 0, 3]), 5)
    assert (got.row.tolist(), got.col.tolist(), got.value.tolist()) == ([1], [0], [1.0])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"row": ROW}, "expected the arrays row and col, optionally value, got 'row.npy'"),
        ({"row": ROW, "data": COL}, "expected the arrays row and col"),
        ({"row": ROW, "col": COL, "x": COL}, "expected the arrays row and col"),
        ({"row": ROW, "col": COL[:2]}, "col: expected a vector of 3 numbers, got shape (2,)"),
        ({"row": ROW[None], "col": COL}, "row.npy: expected a vector of numbers, got shape (1, 3)"),
        ({"row": ROW * 1.0, "col": COL}, "row: expected integer ids, got float64"),
        ({"row": ROW, "col": COL == 1}, "col.npy: expected a vector of numbers, got shape (3,), b"),
        ({"row": ROW, "col": COL - 2}, "col: expected items in 0 .. 4, got -1"),
        ({"row": ROW + 1, "col": COL}, "row: expected items in 0 .. 4, got 5"),
        ({"row": ROW, "col": np.array([4, 3, 2])}, "got item 4 as its own neighbor (1 such edges)"),
        ({"row": ROW * 0, "col": np.array([1, 3, 3])}, "once, got item 0 with neighbor 3 twice"),
        ({"row": ROW, "col": COL, "value": [1, 0, 1.0]}, "got 0.0 for item 0 and neighbor 3"),
        ({"row": ROW, "col": COL, "value": [1, -1, 1.0]}, "value: expected positive finite"),
        ({"row": ROW, "col": COL, "value": [1, 1, np.nan]}, "value: expected positive finite"),
        ({"row": ROW, "col": COL, "value": [1, 1e300, 1]}, "value: expected positive finite"),
        ({"row": ROW, "col": COL, "value": ["a", "b", "c"]}, "value.npy: expected a vector of num"),
        ({"row": np.array([None] * 3), "col": COL}, "holds Python objects; refused (never unpickl"),
    ],
)
def test_refuses_content(folder, arrays, words):
    save(folder, **arrays)
    with pytest.raises(InputError) as caught:
        read_dataset(folder)
    message = str(caught.value)
    assert "text_knn.npz: " in message and words in message and "\n" not in message, message


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_refuses_damaged_archives(folder):
    path = folder / "text_knn.npz"
    save(folder, row=ROW, col=COL)
    whole = path.read_bytes()
    np.savez(path, row=ROW, col=COL)  # not compressed
    plain = path.read_bytes()
    huge = npy(np.zeros(1, np.int64)).replace(b"(1,)", b"(9,)").replace(b"(9,) ", b"(2147483647,) ")
    for content, words in (
        (b"", "expected a .npz archive, got BadZipFile"),
        (b"\x80\x04K\x01.", "expected a .npz archive"),
        (npy(ROW), "expected a .npz archive"),
        (whole[:-30], "expected a .npz archive"),
        (plain.replace(b"NUMPY", b"NUMPX"), "expected a .npz archive, got BadZipFile"),
        (plain.replace(ROW.tobytes(), bytes(12)), "expected a .npz archive, got BadZipFile"),
        ({"row.npy": b"text", "col.npy": npy(COL)}, "row.npy: expected a .npy array"),
        ({"row.npy": npy(ROW)[:-4], "col.npy": npy(COL)}, "row.npy: expected 12 bytes of data"),
        ({"row.npy": npy(ROW) + b"x", "col.npy": npy(COL)}, "bytes of data, got more"),
        ({"row.npy": huge, "col.npy": npy(COL)}, "row.npy: expected "),
        ({}, "expected a .npz archive, got KeyError"),
    ):
        if isinstance(content, dict):
            with zipfile.ZipFile(path, "w") as archive:
                for name, member in content.items():
                    archive.writestr(name, member)
        else:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_dataset(folder)
        assert words in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_refuses_other_modalities_and_names(folder):
    save(folder, row=ROW, col=COL)
    with pytest.raises(InputError, match="expected modalities among image, text, got 'sound'"):
        read_dataset(folder, modalities=["sound"])
    save(folder, "a b_knn.npz", row=ROW, col=COL)
    with pytest.raises(InputError, match="expected a modality of letters"):
        read_dataset(folder)


def test_refuses_neighbors_that_are_not_sorted(toy):
    unsorted = Neighbors(np.array([1, 0]), np.array([0, 1]))
    with pytest.raises(InputError, match="neighbors of 'text': row: expected edges sorted"):
        InteractionDataset(**toy, neighbors={"text": unsorted})
    short = Neighbors(np.array([0]), np.array([1]), np.ones(2, np.float32))
    with pytest.raises(InputError, match="value: expected 1 numbers, got 2"):
        InteractionDataset(**toy, neighbors={"text": short})
