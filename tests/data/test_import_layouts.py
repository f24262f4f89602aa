"""Directories of other packages, and an import that is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmssl.data import read_dataset, write_dataset
from mmssl.data.importing import ImportOptions, import_data
from mmssl.data.log import is_log, read_log
from mmssl.data.staging import staged
from mmssl.errors import InputError
from tests.data.test_writers import assert_same

pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")


def bring(source: Path, out: Path, **options):
    import_data(source, out, ImportOptions(**options))
    return read_log(out)[0] if is_log(out) else read_dataset(out)


def refused(source: Path, out: Path, words: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        bring(source, out, **options)
    message = str(caught.value)
    assert words in message and "\n" not in message, message
    assert not out.exists()


def test_mmssl_round_trip(tmp_path, toy_dataset):
    write_dataset(toy_dataset, tmp_path / "toy")
    assert_same(bring(tmp_path / "toy", tmp_path / "a"), toy_dataset)
    assert_same(bring(tmp_path / "a", tmp_path / "b", format="mmssl"), toy_dataset)
    text = (tmp_path / "b" / "dataset.toml").read_text()
    assert 'format = "mmssl"' in text and '"train.json" = ' in text


def test_the_released_layout(folder, tmp_path):
    """Half precision stays half precision, and there was no dataset.toml."""
    bring(folder, tmp_path / "out")
    assert read_dataset(tmp_path / "out").content_hash() == read_dataset(folder).content_hash()
    image = (tmp_path / "out" / "image_feat.npy").read_bytes()
    assert image == (folder / "image_feat.npy").read_bytes()
    refused(folder, tmp_path / "x", "min-rating has no effect for the format mmssl", min_rating=3)


@pytest.fixture
def mmrec(tmp_path) -> Path:
    path = tmp_path / "baby"
    path.mkdir()
    rows = ["0\t0\t5\t1\t0", "0\t2\t4\t2\t0", "0\t1\t4\t3\t1", "1\t1\t5\t1\t0", "1\t2\t5\t4\t2"]
    head = "userID\titemID\trating\ttimestamp\tx_label\n"
    (path / "baby.inter").write_text(head + "\n".join(rows) + "\n")
    (path / "u_id_mapping.csv").write_text("user_id\tuserID\nAXB\t0\nAQ\t1\n")
    (path / "i_id_mapping.csv").write_text("asin\titemID\nB2\t2\nB0\t0\nB1\t1\nB3\t3\n")
    np.save(path / "image_feat.npy", np.arange(8, dtype=np.float16).reshape(4, 2))
    return path


def test_mmrec(mmrec, tmp_path):
    (mmrec / "meta.csv").write_text('asin,title\nB1,"Cot, white"\nB3,Bib\n')
    dataset = bring(mmrec, tmp_path / "out", items=mmrec / "meta.csv")
    assert dataset.name == "baby" and (dataset.num_users, dataset.num_items) == (2, 4)
    assert dataset.train.user.tolist() == [0, 0, 1] and dataset.train.item.tolist() == [0, 2, 1]
    assert dataset.val.item.tolist() == [1] and dataset.test.item.tolist() == [2]
    assert dataset.user_ids == ("AXB", "AQ") and dataset.item_ids == ("B0", "B1", "B2", "B3")
    assert dataset.item_titles == ("", "Cot, white", "", "Bib")
    assert dataset.features["image"][3].tolist() == [6, 7]
    assert dataset.split.protocol == "given"


def test_mmrec_without_labels_or_ids(mmrec, tmp_path):
    for name in ("u_id_mapping.csv", "i_id_mapping.csv"):
        (mmrec / name).unlink()
    (mmrec / "baby.inter").write_text("userID\titemID\n0\t3\n1\t0\n")
    log = bring(mmrec / "baby.inter", tmp_path / "out")
    assert log.num_items == 4 and log.user_ids is None and log.item.tolist() == [3, 0]
    assert (tmp_path / "out" / "image_feat.npy").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("baby.inter", "\t5\t1\t0\n0", "\t5\t1\t7\n0", "line 2: expected a split label 0, 1 or 2"),
        ("baby.inter", "1\t1\t5", "01\t1\t5", "line 5: expected an id that is a number in 0"),
        ("baby.inter", "1\t1\t5", "1\t4\t5", "expected items in 0 .. 3, as i_id_mapping.csv has 4"),
        ("baby.inter", "itemID", "thing", "expected a column of item ids"),
        ("i_id_mapping.csv", "B1\t1", "B1\t2", "line 4: expected each number of 0 .. 3 once"),
        (
            "i_id_mapping.csv",
            "B3\t3\n",
            "",
            "expected 3 items, the number in i_id_mapping",
        ),
        ("u_id_mapping.csv", "userID", "number", "expected each number of 0 .. 1 once, got 'AXB'"),
    ],
)
def test_mmrec_refuses(mmrec, tmp_path, file, old, new, words):
    text = (mmrec / file).read_text()
    assert old in text
    (mmrec / file).write_text(text.replace(old, new, 1))
    refused(mmrec, tmp_path / "out", words)


@pytest.fixture
def recbole(tmp_path) -> Path:
    path = tmp_path / "shop"
    path.mkdir()
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (path / "shop.inter").write_text(head + "ann\t9\t5\t1\nbob\t10\t4\t2\nbob\t9\t3\t3\n")
    (path / "shop.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\temb:float_seq\n"
        '10\t"Great" Cats\tDoc\t1 2.5\n9\tHeat\tCrime\t\n'
    )
    return path


def test_recbole(recbole, tmp_path):
    log = bring(recbole, tmp_path / "out")
    assert log.user_ids == ("ann", "bob") and log.item_ids == ("9", "10")
    assert log.item_titles == ("Heat", '"Great" Cats') and log.rating.tolist() == [5, 3, 4]
    assert log.item_columns == {"class": ("Crime", "Doc")}
    emb = np.load(tmp_path / "out" / "emb_feat.npy")
    assert emb.dtype == np.float32 and emb.tolist() == [[0, 0], [1, 2.5]]


def test_recbole_in_parts(recbole, tmp_path):
    (recbole / "shop.inter").unlink()
    for part, row in {"train": "ann\t9", "valid": "ann\t10", "test": "bob\t9"}.items():
        (recbole / f"shop.{part}.inter").write_text(f"user_id:token\titem_id:token\n{row}\n")
    for number, source in enumerate((recbole, recbole / "shop.valid.inter")):
        dataset = bring(source, tmp_path / str(number))
        assert dataset.train.item.tolist() == [0] and dataset.val.item.tolist() == [1]
        assert dataset.test.user.tolist() == [1] and dataset.name == "shop"
    (recbole / "shop.test.inter").unlink()
    refused(recbole, tmp_path / "x", "shop.test.inter: expected a file next to the other parts")


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("shop.inter", "bob\t10\t4\t2", "bob\t10\t4", "line 3: expected 4 cells, got 3"),
        ("shop.inter", "bob\t9\t3", "bob\t9\tx", "line 4: expected a finite rating, got 'x'"),
        ("shop.item", "1 2.5", "1 inf", "line 2: expected 2 finite numbers in 'emb:float_seq'"),
        ("shop.item", "item_id:token\tmovie_title:token_seq\tclass:token_seq\temb:float_seq",
         "item_id\tb\tc\td", "expected names with types like user_id:token"),
    ],
)  # fmt: skip
def test_recbole_refuses(recbole, tmp_path, file, old, new, words):
    text = (recbole / file).read_text()
    assert old in text
    (recbole / file).write_text(text.replace(old, new, 1))
    refused(recbole, tmp_path / "out", words)


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "out", "expected train.json (mmssl) or a .inter file")
    refused(tmp_path / "missing", tmp_path / "out", "expected a file or directory to import")


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    """SIGKILL while the files are written: no directory, and the next import clears the rest."""
    rows = "".join(f"{n % 5000},{n},5\n" for n in range(100_000))
    (tmp_path / "log.csv").write_text("user,item,rating\n" + rows)
    command = [sys.executable, "-m", "mmssl", "data", "import"]
    command += [str(tmp_path / "log.csv"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (left := list(tmp_path.glob(".out.partial-*"))) and process.poll() is None:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode == 0:
        pytest.skip("the import was done before it could be killed")
    assert not (tmp_path / "out").exists() and left
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]
    assert read_log(tmp_path / "out")[0].num_edges == 100_000


def test_a_writer_at_work_is_left_alone(tmp_path):
    with staged(tmp_path / "out") as first:
        with staged(tmp_path / "out") as second:
            assert first != second and first.exists()
            (second / "a").write_text("a")
        shutil.rmtree(tmp_path / "out")
        (first / "b").write_text("b")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_json_of_a_split_is_plain(recbole, tmp_path, capsys):
    from mmssl.cli import main

    assert main(["data", "import", str(recbole), "--out", str(tmp_path / "log")]) == 0
    assert "is not split yet; next: mmssl data split" in capsys.readouterr().out
    assert main(["data", "inspect", str(tmp_path / "log"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["interactions"] == 3
    assert main(["data", "inspect", str(tmp_path / "log")]) == 0
    assert "not split yet" in capsys.readouterr().out
    assert main(["train", "--data", str(tmp_path / "log"), "--out", str(tmp_path / "run")]) == 2
    assert "got a log that is not split yet; run mmssl data split" in capsys.readouterr().err
