"""CSV, TSV and Parquet logs: what is read, and one line by number for what can't be."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmssl.cli import main
from mmssl.data.importing import Dialect, ImportOptions, import_data
from mmssl.data.importing.cells import natural_order, numbers
from mmssl.data.log import read_log
from mmssl.errors import InputError
from tests.conftest import ROOT

pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")

HEADER = "userId,movieId,rating,timestamp\n"


@pytest.fixture
def bring(tmp_path):
    """Writes a file, imports it, and gives the log and its manifest."""

    def run(content: str | bytes, name: str = "log.csv", **options):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        import_data(tmp_path / name, tmp_path / "out", ImportOptions(**options))
        return read_log(tmp_path / "out")

    run.path = tmp_path
    return run


def pairs(log) -> list[tuple[str, str]]:
    return [(log.user_ids[u], log.item_ids[i]) for u, i in zip(log.user, log.item, strict=True)]


def test_reads_and_numbers_by_id(bring):
    log, manifest = bring(HEADER + "10,b,4,7\n2,a,5,8\n2,b,3.5,9\n")
    assert log.name == "log"
    assert log.user_ids == ("2", "10") and log.item_ids == ("a", "b")
    assert log.user.tolist() == [0, 0, 1] and log.item.tolist() == [0, 1, 1]
    assert log.rating.tolist() == [5, 3.5, 4] and log.time.tolist() == [8, 9, 7]
    assert log.time.dtype == np.int64
    source = manifest.source
    assert (source.rows_read, source.rows_kept, source.dropped) == (3, 3, {})
    assert source.columns["item"] == "movieId" and len(source.files["log.csv"]) == 64


def test_the_order_of_rows_does_not_matter(bring, tmp_path):
    rows = [f"u{n % 7},i{n % 11},{n % 5},{n}\n" for n in range(60)]
    first, one = bring(HEADER + "".join(rows))
    import shutil

    shutil.rmtree(tmp_path / "out")
    second, other = bring(HEADER + "".join(reversed(rows)))
    assert one.log_hash == other.log_hash and first.user_ids == second.user_ids


@pytest.mark.parametrize(("keep", "rating", "time"), [("last", 2, 9), ("first", 5, 3)])
def test_repeated_rows(bring, keep, rating, time):
    log, manifest = bring(HEADER + "1,a,2,9\n1,a,5,3\n1,a,4,5\n", keep=keep)
    assert (log.rating.tolist(), log.time.tolist()) == ([rating], [time])
    assert manifest.source.dropped == {f"repeated, the {keep} one kept": 2}


@pytest.mark.parametrize(("keep", "rating"), [("last", 4), ("first", 2)])
def test_repeated_rows_without_times(bring, keep, rating):
    log, _ = bring("user,item,rating\n1,a,2\n1,a,5\n1,a,4\n", keep=keep)
    assert log.rating.tolist() == [rating] and log.time is None


def test_minimum_rating_counts_the_kept_opinion(bring):
    log, manifest = bring(HEADER + "1,a,5,1\n1,a,2,2\n2,b,5,1\n", min_rating=4)
    assert pairs(log) == [("2", "b")] and log.num_items == 1
    assert manifest.source.dropped["rated below 4"] == 1


@pytest.mark.parametrize(
    ("content", "name", "options"),
    [
        ("user;item\nann;x\n", "log.csv", {}),
        ("user|item\nann|x\n", "log.txt", {}),
        ("user\titem\nann\tx\n", "log.tsv", {}),
        ("user::item\nann::x\n", "log.dat", {}),
        ("user item\nann x\n", "log.txt", {"dialect": Dialect("space")}),
        ("\ufeffuser,item\r\n\r\nann,x\r\n", "log.csv", {}),
        ("user,item\rann,x\r", "log.csv", {}),
        ('"user","item"\n"ann","x"\n', "log.csv", {}),
        ("ann,x", "log.csv", {"columns": {"user": "1", "item": "2"}}),
        ("x,ann,9\n", "log.csv", {"columns": {"user": "2", "item": "1"}}),
        ("who,what\nann,x\n", "log.csv", {"columns": {"user": "who", "item": "what"}}),
        ("reviewerID,asin,overall\nann,x,5\n", "log.csv", {}),
        ("user,item\nann,x\n".encode("utf-16"), "log.csv", {"dialect": Dialect(encoding="utf-16")}),
        (gzip.compress(b"user\titem\nann\tx\n", mtime=0), "log.tsv.gz", {}),
    ],
)
def test_kinds_of_files(bring, content, name, options):
    assert pairs(bring(content, name, **options)[0]) == [("ann", "x")]


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["3", "-1"], np.int64, [3, -1]),
        (["3", "1.5e3"], np.float64, [3, 1500]),
        (["1970-01-01", "1970-01-02 00:00:01.5"], np.int64, [0, 86_401_500_000]),
        (["1970-01-01T00:00Z", "1970-01-01T01:00:00+0100"], np.int64, [0, 0]),
    ],
)
def test_times(bring, cells, kind, expected):
    log, _ = bring("user,item,time\n" + "".join(f"{n},a,{t}\n" for n, t in enumerate(cells)))
    assert log.time.dtype == kind and log.time.tolist() == expected


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", {}, "log.csv: expected rows, got an empty file"),
        (HEADER, {}, "log.csv: expected at least one usable row, got none of 0"),
        ("x\n1\n", {}, "log.csv: line 1: expected cells separated by a comma"),
        (
            "a,b\n1,2\n",
            {},
            "expected a column of user ids, got columns 'a', 'b': name it with --user",
        ),
        ("a,b\n1,2\n", {"columns": {"user": "c"}}, "expected a column 'c' as user, got columns"),
        ("user,item\n1,2\n", {"columns": {"user": "1", "item": "2"}}, "what looks like a header"),
        ("1,2\n", {"columns": {"user": "1", "item": "3"}}, "expected a column '3' as item"),
        ("u,u\n1,2\n", {"columns": {"user": "u", "item": "u"}}, "expected one column 'u', got 2"),
        ("user,b\n1,2\n", {"columns": {"item": "user"}}, "expected different columns, got 'user'"),
        (HEADER + "1,a,5,1\n1,b,5\n", {}, "line 3: expected 4 cells, got 3 (--bad-rows skip"),
        (HEADER + "1,a,5,1\n\n1,b,5,6,7\n", {}, "line 4: expected 4 cells, got 5"),
        (
            HEADER + "1,a,5,1\n,b,5,6\n",
            {},
            "line 3: expected a user id of one line without tabs, got",
        ),
        (HEADER + "1, ,5,1\n", {}, "line 2: expected an item id of one line without tabs, got n"),
        (HEADER + '1,"a\nb",5,1\n', {}, "line 2: expected an item id of one line"),
        (HEADER + '1,"a""b",5,1\n2,"x\ny",5,1\n', {}, "line 3: expected an item id of one line"),
        (HEADER + "1,a,5,1\n1,b,nan,1\n", {}, "line 3: expected a finite rating, got 'nan'"),
        (HEADER + "1,a,,1\n", {}, "line 2: expected a finite rating, got nothing"),
        (
            HEADER + "1,a,1_0,1\n2,a,x,1\n",
            {},
            "got '1_0' (2 of 2 rows can't be used)",
        ),
        (HEADER + "1,a,1e999,1\n", {}, "line 2: expected a finite rating, got '1e999'"),
        (HEADER + "1,a,5,1\n1,b,5,2024-01-01\n", {}, "line 3: expected a time, a number as in the"),
        (HEADER + "1,a,5,2024-01-01\n1,b,5,2024-13-01\n", {}, "line 3: expected a time like"),
        (HEADER + '1,"a,5,1\n2,b,5,1\n', {}, "line 2: expected cells with closed quotes"),
        (
            HEADER + '1,"a"x,5,1\n',
            {},
            "line 2: expected cells with closed quotes, got '\"a\"x,5,1' (",
        ),
        (HEADER + '1,"a,5,1\n2,"b",5,1\n', {}, "line 2: expected cells with closed quotes, got"),
        (HEADER + '1,"a\nb",5,1\n2,"""b"",5,1\n', {}, "line 4: expected cells with closed quotes"),
        (HEADER + '1,a,5,1\n2,""b"",5,1\n', {}, "line 3: expected cells with closed quotes"),
        (
            b"user,item\n1,a\n2,\xe9\n",
            {},
            "line 3: expected utf-8, got byte 0xe9: name the encoding",
        ),
        ("user,item\n1,a\n".encode("utf-16"), {}, "expected UTF-8, got UTF-16: --encoding utf-16"),
        (b"user,item\n1,a\0\n", {}, "line 2: expected text, got a zero byte"),
        (b"PAR1....", {}, "expected Parquet, got something else"),
        (b"PK\x03\x04..", {}, "expected a zip archive that opens without a password"),
        (b"\x1f\x8b\x08rubbish", {}, "expected a whole compressed file, got a damaged one"),
        ("user,item\n1,a\n", {"min_rating": 3}, "a minimum rating needs a column of ratings"),
        (
            HEADER + "1,a,2,1\n",
            {"min_rating": 3},
            "expected interactions rated 3 or more, got none",
        ),
        (
            "user,item\n1,a\n",
            {"dialect": Dialect(encoding="klingon")},
            "encoding must be one Python",
        ),
        ("user,item\n1,a\n", {"dialect": Dialect("é")}, "separator must be ASCII"),
        ("user,item\n1,a\n", {"keep": "best"}, "keep must be one of last, first, got 'best'"),
        ("not parquet", {"format": "parquet"}, "expected Parquet, got something else"),
    ],
)
def test_refuses(bring, content, options, words):
    with pytest.raises(InputError) as caught:
        bring(content, **options)
    message = str(caught.value)
    assert words in message and "\n" not in message, message
    assert [path.name for path in bring.path.iterdir()] in (["log.csv"], [])


def test_bad_rows_are_skipped_and_counted(bring):
    rows = "1,a,5,1\n,a,5,1\n1,b\n2,a,nan,1\n2,b,4,x\n3,b,4,1\n"
    log, manifest = bring(HEADER + rows, bad_rows="skip")
    assert pairs(log) == [("1", "a"), ("3", "b")]
    assert manifest.source.rows_read == 6 and manifest.source.rows_kept == 2
    assert manifest.source.dropped == {
        "another number of cells": 1,
        "user id empty, missing or not one line": 1,
        "rating not a finite number": 1,
        "time not a number or a date": 1,
    }


def test_ratings_and_times_can_be_left_alone(bring):
    columns = {"rating": "none", "time": "none"}
    log, _ = bring(HEADER + "1,a,good,yesterday\n", columns=columns)
    assert log.rating is None and log.time is None


def test_a_table_of_items(bring):
    items = bring.path / "movies.csv"
    items.write_text('title,movieId,genres\n"Heat, ""the"" film",b,"x\ny"\nAlien,c,\nZ,q,\n')
    log, manifest = bring(HEADER + "1,a,5,1\n1,b,5,1\n1,c,5,1\n", items=items)
    assert log.item_titles == ("", 'Heat, "the" film', "Alien")
    assert log.item_columns == {"genres": ("", "x y", "")}
    assert set(manifest.source.files) == {"log.csv", "movies.csv"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "movieId,title\na,x\na,y\n",
            "line 3: expected each item once, got 'a' again (first in line 2",
        ),
        ("movieId,title\nb,x\n", "expected items of the log in column 'movieId', got none of them"),
        ("movieId,title\na\n", "line 2: expected 2 cells, got 1"),
    ],
)
def test_refuses_tables_of_items(bring, content, words):
    items = bring.path / "movies.csv"
    items.write_text(content)
    with pytest.raises(InputError) as caught:
        bring(HEADER + "1,a,5,1\n", items=items)
    assert words in str(caught.value)


def test_parquet(bring, tmp_path):
    from datetime import datetime

    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "user_id": pa.array(["ann", "bob", "ann"]).dictionary_encode(),
            "item_id": [7, 10, 10],
            "rating": [1.0, 2.5, 3.0],
            "when": pa.array([datetime(1970, 1, 1, 0, 0, n) for n in range(3)]),
        }
    )
    parquet.write_table(table, tmp_path / "log.parquet")
    import_data(tmp_path / "log.parquet", tmp_path / "a", ImportOptions(columns={"time": "when"}))
    log, _ = read_log(tmp_path / "a")
    assert pairs(log) == [("ann", "7"), ("ann", "10"), ("bob", "10")]
    assert log.rating.tolist() == [1, 3, 2.5] and log.time.tolist() == [0, 2_000_000, 1_000_000]
    parquet.write_table(pa.table({"user": ["a", None], "item": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="b.parquet: row 2: expected a user id .* got nothing"):
        import_data(tmp_path / "b.parquet", tmp_path / "b", ImportOptions())
    parquet.write_table(pa.table({"user": ["a"], "item": [1.5]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="column 'item': expected text or integers .* got double"):
        import_data(tmp_path / "c.parquet", tmp_path / "c", ImportOptions())


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / name).write_bytes(b"user,item\n1,2\n")
    assert main(["data", "import", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f'{name}: importing tables needs pyarrow: expected it installed (pip install "mms' in (
        message
    )
    assert message.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == [name]


def test_pyarrow_is_imported_only_to_read():
    code = "import sys, mmssl.data.importing; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_natural_order_and_numbers():
    assert natural_order(["10", "9", "0"]).tolist() == [2, 1, 0]
    assert natural_order(["10", "9", "a"]).tolist() == [0, 1, 2]
    assert natural_order(["10", "09"]).tolist() == [1, 0]  # "09" is a name, not a number
    found = numbers(["1", "-.5", "1e2", " 1", "inf", "nan", "1_0", "١", "1 2", "1,5", ""])
    assert found[:4].tolist() == [1, -0.5, 100, 1] and np.isnan(found[4:]).all()
    found = numbers(["1,5", "-,5", "1e2", "2", "1.5", "1,500,000"], ",")
    assert found[:4].tolist() == [1.5, -0.5, 100, 2] and np.isnan(found[4:]).all()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda p: (p / "interactions.npy").write_bytes(b"\x80\x04"),
            "got a pickle, which is never unpickled",
        ),
        (lambda p: np.save(p / "interactions.npy", np.ones(3)), "expected a vector of records"),
        (lambda p: (p / "interactions.npy").unlink(), "interactions.npy: can't be read"),
        (
            lambda p: _edit(p, lambda r: r["item"].__setitem__(0, 1)),
            "was changed after it was written",
        ),
    ],
)
def test_refuses_damaged_logs(bring, damage, words):
    bring("user,item\n1,a\n2,b\n")
    damage(bring.path / "out")
    with pytest.raises(InputError) as caught:
        read_log(bring.path / "out")
    assert words in str(caught.value)


def _edit(folder: Path, change) -> None:
    records = np.load(folder / "interactions.npy")
    change(records)
    np.save(folder / "interactions.npy", records)


def test_the_log_reads_anywhere(bring):
    bring(HEADER + "1,a,5,1\n2,b,4,2\n")
    records = np.load(bring.path / "out" / "interactions.npy", allow_pickle=False)
    assert records.dtype.names == ("user", "item", "rating", "time")
    assert json.dumps(records["item"].tolist()) == "[0, 1]"
