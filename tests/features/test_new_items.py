"""Features of items that are new, with the words and the projection of a data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmssl.cli import main
from mmssl.data import read_dataset
from mmssl.data.tables import table_text
from mmssl.errors import InputError
from mmssl.features.tfidf import FittedTfidf
from mmssl.training.checkpoint import save_checkpoint

pytest.importorskip("sklearn", reason="features of texts need mmssl[text]")


@pytest.fixture
def new(shop, tmp_path):
    """A folder of new items: two titles of the data set, one of unknown words, one without text."""
    folder = tmp_path / "new"
    folder.mkdir()
    titles = read_dataset(shop).item_titles
    texts = (titles[30], titles[7], "xyzzy plugh", "")
    rows = [(f"n{row}", text) for row, text in enumerate(texts)]
    (folder / "items.tsv").write_text(table_text(("item", "id", "title"), rows))
    return folder


def test_equal_texts_get_equal_rows_and_are_recommended(shop, new, tmp_path, capsys):
    fitted, run = str(tmp_path / "words.safetensors"), str(tmp_path / "run")
    command = ["features", "text", str(shop), "--dim=8", "--dtype=float32"]
    assert main([*command, "--save", fitted]) == 0
    assert f"words and projection, for --load: {fitted}" in capsys.readouterr().out
    assert main(["features", "text", str(new), "--load", fitted, "--dtype=float32"]) == 0
    assert "2 items without text (50.0%) have zero rows: n2, n3" in capsys.readouterr().out
    old, rows = (np.load(folder / "text_feat.npy") for folder in (shop, new))
    np.testing.assert_allclose(rows[:2], old[[30, 7]], atol=1e-5)
    assert not rows[2:].any()

    train = ["train", "--data", str(shop), "--model=lightgcn", "--out", run, "--epochs=1"]
    assert main([*train, "--quiet", "--device=cpu"]) == 0
    capsys.readouterr()
    command = ["recommend", run, "--user=3", "--top-k=54", "--new-items", str(new), "--json"]
    assert main(command) == 0
    assert {"n0", "n1", "n2", "n3"} < set(json.loads(capsys.readouterr().out)["item_ids"])


def test_what_is_kept_is_what_was_fitted(tmp_path):
    words = ("ab", "übung")
    fitted = FittedTfidf(words, np.array([1.0, 2.0]), np.eye(2, dtype=np.float32), {"dim": 2})
    fitted.save(tmp_path / "f")
    read = FittedTfidf.load(tmp_path / "f")
    assert read.words == words and read.record == {"name": "tfidf", "dim": 2}
    ((_, rows),) = read.encode(["AB", "übung, Übung ab"])
    count = np.array([1 * 1.0, (1 + np.log(2)) * 2.0])  # 1 + ln(occurrences), times idf
    np.testing.assert_allclose(rows, [[1, 0], count / np.linalg.norm(count)], rtol=1e-6)
    assert read.has_content("x ab") and not read.has_content("abc")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "new: expected --load FILE for new items"),
        (["--load", "none"], "none: can't be read"),
        (["--load", "{shop}/train.json"], "train.json: not a safetensors file"),
        (["--load", "x", "--save", "y"], "--load: expected no --save or --dim"),
        (["--load", "x", "--dim", "3"], "--load: expected no --save or --dim"),
        (["--save", "x", "--pca", "3"], "--save: expected no --pca or --normalize zscore"),
        (["--load", "x", "--normalize", "zscore"], "--load: expected no --pca or --norm"),
        (["--load", "x", "--encoder", "minilm"], "--load: expected --encoder tfidf, got minilm"),
    ],
)
def test_bad_options(shop, new, capsys, options, says):
    options = [option.format(shop=shop) for option in options]
    assert main(["features", "text", str(new), *options]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in new.iterdir()] == ["items.tsv"]


@pytest.mark.parametrize("text", ["item\ttitle\n0\tx\n", "item\tid\n0\tx\n1\tx\n"])
def test_new_items_need_ids(new, capsys, text):
    (new / "items.tsv").write_text(text)
    assert main(["features", "text", str(new), "--load", "x"]) == 2
    assert "items.tsv: expected a column 'id' with the id of each" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"words": torch.zeros(2)},
        {"words": torch.tensor(list(b"a\na"), dtype=torch.uint8)},
        {"idf": torch.full((2,), torch.nan, dtype=torch.float64)},
        {"components": torch.zeros(3, 5)},
        {"other": torch.zeros(1)},
    ],
)
def test_a_file_of_another_content(tmp_path, change):
    tensors = {
        "words": torch.tensor(list(b"a\nb"), dtype=torch.uint8),
        "idf": torch.ones(2, dtype=torch.float64),
        "components": torch.zeros(3, 2),
    }
    save_checkpoint(tmp_path / "f", tensors, {"dim": None})
    FittedTfidf.load(tmp_path / "f")
    save_checkpoint(tmp_path / "f", tensors | change, {})
    with pytest.raises(InputError, match="f: expected what `mmssl features text --save` writes"):
        FittedTfidf.load(tmp_path / "f")
