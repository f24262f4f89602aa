"""Texts and paths of items from untrusted tables."""

from __future__ import annotations

import gzip
import json

import pytest

from mmssl.errors import InputError
from mmssl.features.content import read_content, read_item_table

IDS = ("a", "b", "c")


def table(tmp_path, name: str, text: str | bytes):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(words: str, path, *args, **kwargs) -> None:
    with pytest.raises(InputError) as caught:
        read_content(path, IDS, *args, **kwargs)
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'id,title,year\nb,"One, ""two""\nlines",1999\na,Heat,1995\nz,Other,1\n'),
        ("t.tsv", "\ufeffid:token\ttitle:token_seq\tyear\nb\tOne, \"two\" lines\t1999\r\n"
                  "a\tHeat\t1995\n\nz\t\t\n"),
        ("t.jsonl", '{"id": "b", "title": ["One,", "\\"two\\"", ["lines"]], "year": 1999}\n\n'
                    '{"title": "Heat", "id": "a", "year": 1995, "more": null}\n{"id": "z"}\n'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_formats(tmp_path, name, text, packed):
    data = text.encode()
    path = table(tmp_path, name + ".gz" * packed, gzip.compress(data) if packed else data)
    content = read_content(path, IDS, ["title", "year"], id_column="id")
    assert [" ".join(cell.split()) for cell in content.cells] == [
        "Heat 1995",
        'One, "two" lines 1999',
        "",
    ]
    assert (content.unknown_rows, content.repeated_rows) == (1, 0)
    assert content.source == f"{path.name}: title, year"


def test_numeric_ids_in_the_first_column(tmp_path):
    path = table(tmp_path, "t.jsonl", '{"item": 7, "text": "x"}\n')
    assert read_content(path, ("7",), []).cells == ("x",)


def test_default_column_is_text_then_title(tmp_path):
    assert read_content(table(tmp_path, "t.csv", "id,title,text\na,1,2\n"), IDS, []).cells[0] == "2"
    assert read_content(table(tmp_path, "u.csv", "id,title\na,1\n"), IDS, []).cells[0] == "1"
    refused(
        "expected a column text or title, got id, name",
        table(tmp_path, "v.csv", "id,name\na,1"),
        [],
    )


def test_the_id_column_is_found_where_the_first_one_holds_none(tmp_path):
    text = '{"main_category": "Toys", "title": "Bib", "parent_asin": "b"}\n'
    assert read_content(table(tmp_path, "meta.json", text), IDS, []).cells == ("", "Bib", "")


def test_duplicates(tmp_path):
    same = table(tmp_path, "same.csv", "id,text\na,x\na, x\n")
    assert read_content(same, IDS, [])[0::3] == (("x", "", ""), 1)
    other = table(tmp_path, "other.csv", "id,text\na,x\nb,q\na,y\n")
    refused(
        "line 4: expected one row per item, got different content for item 'a' on line 2", other, []
    )
    assert read_content(other, IDS, [], on_duplicate="first").cells[0] == "x"
    assert read_content(other, IDS, [], on_duplicate="join").cells[0] == "x y"


def test_encodings(tmp_path):
    path = table(tmp_path, "t.csv", "id,text\na,x\nb,Amélie\n".encode("latin-1"))
    refused("line 3: expected utf-8 text, got byte 0xe9", path, [])
    assert read_content(path, IDS, [], encoding="latin-1").cells[1] == "Amélie"
    refused("--encoding: expected a text encoding", path, [], encoding="utf-16")
    refused("--encoding: expected a text encoding", path, [], encoding="klingon")


def test_lone_surrogates_of_json_are_replaced(tmp_path):
    path = table(tmp_path, "t.jsonl", json.dumps({"id": "a", "text": "x\ud800y"}) + "\n")
    assert read_content(path, IDS, []).cells[0] == "x?y"


def test_long_cells(tmp_path):
    text = "word " * 100_000  # exceeds the default limit of the csv module
    path = table(tmp_path, "t.csv", f"id,text\na,{text}\n")
    assert read_content(path, IDS, []).cells[0] == text.strip()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.xlsx", "", "expected a file name ending in .csv, .tsv, .jsonl"),
        ("t.csv", "", "got no row"),
        ("t.csv", "id,text\n", "got no row"),
        (
            "t.csv",
            "id,text\n1,x\n2,y\n",
            "expected item ids such as 'a', got only unknown ids such as '1'",
        ),
        ("t.csv", "id,id\na,a\n", "expected unique column names, got id, id"),
        ("t.csv", "id,text\na\n", "line 2: expected 2 cells, got 1"),
        ("t.csv", 'id,text\na,"x\n', "line 2: expected CSV"),
        ("t.csv", "id,name\na,1\n", "expected a column text or title"),
        ("t.jsonl", "{\n", "line 1: expected a JSON object"),
        ("t.jsonl", "[" * 100_000, "line 1: expected a JSON object"),
        ("t.jsonl", "3\n", "line 1: expected a JSON object"),
        ("t.csv.gz", b"\x1f\x8bid,text\na,x\n", "got a damaged one"),
        ("t.csv.gz", gzip.compress(b"id,text\na,x\n", mtime=0)[:-9], "got a damaged one"),
        ("t.json", "{'id': 'a', 'text': u'x'}\n", "got a Python literal, as in Amazon's metadata"),
    ],
)
def test_bad_tables(tmp_path, name, text, words):
    refused(words, table(tmp_path, name, text), [])


def test_selected_columns_must_exist(tmp_path):
    path = table(tmp_path, "t.csv", "id,text\na,x\n")
    refused("expected columns among id, text, got 'plot'", path, ["plot"])
    refused(
        "line 2: expected an id in column 'asin', got columns id, text", path, [], id_column="asin"
    )
    refused("No such file", tmp_path / "none.csv", [])


def test_item_table(shop):
    content = read_item_table(shop, 50, [])
    assert content.cells[:3] == ("", "", "blue dark 2") or content.cells[2].endswith("2")
    assert content.source == "items.tsv: title"
    assert read_item_table(shop, 50, ["id", "title"]).cells[0] == "i0"
    with pytest.raises(InputError, match="expected columns among item, id, title, got 'plot'"):
        read_item_table(shop, 50, ["plot"])
    (shop / "items.tsv").unlink()
    with pytest.raises(InputError, match="expected a table with item texts, got no file"):
        read_item_table(shop, 50, [])
