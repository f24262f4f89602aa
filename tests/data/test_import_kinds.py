"""What else there is of the kinds of ``tests/test_public_cases.py``: said, refused, or mended."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mmssl.data import read_dataset
from tests.shell import LOG, ROWS, pairs, same_log, table

pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")

MOMENT = 1_500_001_768_000_000  # 2017-07-14 03:09:28 UTC


def test_cells_that_hold_lists_are_no_ids(shell):
    shell.write("log.csv", 'user,item\na,"[1, 2]"\nb,"[3]"\n')
    shell.refused("log.csv", says=("line 2: expected an item id", "'[1, 2]'", "--format lists"))
    assert shell.bring("log.csv", "--format", "lists", "--header").num_edges == 3
    assert shell.bring("log.csv", "--format", "csv", name="b").item_ids == ("[1, 2]", "[3]")
    shell.write("log.json", '{"user": "a", "item": ["x", "y"]}\n')
    shell.refused(
        "log.json", says="column 'item': expected text or integers as item ids, got lists"
    )


def test_ids_that_look_alike_are_told(shell):
    shell.write("log.csv", "user,item\nAnn,x\nann,y\n7,x\n007,y\n1.0,x\n")
    log = shell.bring("log.csv", says="2 user ids differ from another one only by case, leading")
    assert len(log.user_ids) == 5
    shell.write("log.csv", "user,item\nZoë,x\nZoe\u0308,y\na,x\na\u200b,x\n")
    says = r"'.0' or how they are encoded, such as 'Zo\xeb' and 'Zoe\u0308'; they stay different"
    assert len(shell.bring("log.csv", says=says, name="b").user_ids) == 4


def test_numbers_of_columns_are_advised_for_text_only(shell):
    shell.write("log.json", '{"who": "a", "what": "x"}\n')
    shell.refused("log.json", says="name it with --user-col\n")
    shell.write("log.csv", "who,what\na,x\n")
    shell.refused("log.csv", says="or number the columns of a file without a header")


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (
            ("1.23E+12", "1.24E+12", "x"),
            "2 item ids look like numbers that a spread",
        ),
        (("1.0", "2.0", "3.0"), "note: all item ids end in '.0', such as '1.0'"),
    ],
)
def test_ids_that_another_program_has_changed_are_told(shell, ids, says):
    shell.write("log.csv", "user,item\n" + "".join(f"a,{item}\n" for item in ids))
    assert shell.bring("log.csv", says=says).item_ids == ids
    shell.write("log.csv", "user,item\na,12e45\na,1.0\na,7E9\n")  # hexadecimal digits, versions
    code, printed = shell.run("data", "import", "log.csv", "--out", "b")
    assert code == 0 and "note: all" not in printed and "rounded" not in printed


def test_low_ratings_are_no_secret(shell):
    shell.write("log.csv", LOG)
    says = "ratings from 1 to 3 all count as interactions; mmssl data split --min-rating X"
    shell.bring("log.csv", says=says)
    shell.write("log.csv", "user,item,rating\na,x,5\na,y,5\n")
    code, printed = shell.run("data", "import", "log.csv", "--out", "b")
    assert code == 0 and "ratings from" not in printed


def test_a_k_core_of_nothing_is_refused(shell):
    shell.write("log.csv", LOG)
    shell.bring("log.csv")
    for value in ("0", "-2"):
        command = ("data", "split", "out", "--out", "ds", f"--k-core={value}")
        shell.refused(*command, says=f"--k-core: expected at least 1, got {value}")


def test_commands_in_messages_can_be_pasted(shell):
    shell.write("log.csv", LOG)
    shell.bring("log.csv", name="my log", says="mmssl data split 'my log' --out 'my log-split'\n")
    command = ("train", "--data", "my log", "--out", "run")
    shell.refused(*command, says="run mmssl data split 'my log' --out DIR")


@pytest.mark.parametrize("protocol", ["random", "leave-one-out", "random-global", "cold-item"])
def test_a_split_that_would_be_empty_is_told_why(shell, protocol):
    shell.write("log.csv", "user,item,time\na,x,1\n")
    shell.bring("log.csv")
    why = "users with three or more" if protocol in ("random", "leave-one-out") else "too few"
    command = ("data", "split", "out", "--out", "ds", "--protocol", protocol)
    shell.refused(*command, says=("log: expected interactions for validation, got none: ", why))


def test_a_header_repeated_by_joined_files_is_no_row(shell):
    shell.write("log.csv", "user,item\na,x\nb,x\nuser,item\nb,y\n")
    shell.refused("log.csv", says="line 4: expected a row, got the header again")
    assert shell.bring("log.csv", "--bad-rows", "skip").num_edges == 3


def test_metadata_of_amazon_as_the_table_of_items(shell):
    shell.write("log.csv", "user,parent_asin\na,x\nb,y\n")
    meta = {"main_category": "Toys", "title": "Bib", "description": ["soft", "red"],
            "details": {"a": 1}, "parent_asin": "x"}  # fmt: skip
    shell.write("meta.jsonl", json.dumps(meta) + "\n" + json.dumps({"parent_asin": "q"}) + "\n")
    log = shell.bring("log.csv", "--items", "meta.jsonl", says="that hold objects: details")
    assert log.item_titles == ("Bib", "") and log.item_columns["description"] == ("soft red", "")
    shell.write("old.json", "{'asin': 'x', 'title': u'Bib'}\n")
    shell.run("data", "import", "log.csv", "--out", "b")
    code, printed = shell.run("data", "import", "log.csv", "--items", "old.json", "--out", "c")
    assert code == 2 and "got a Python literal, as in Amazon's metadata of 2014" in printed
    command = printed.split("this converts it: python -c ")[1].strip().strip('"')
    subprocess.run([sys.executable, "-c", command], check=True, cwd=shell.folder)
    assert shell.bring("log.csv", "--items", "old.json.jsonl", name="d").item_titles[0] == "Bib"


def test_json_that_is_not_lines_of_objects_is_named_by_line(shell):
    shell.write("log.json", '{"user": "a", "item": "x"}\n{"user": 1, "item": "y"}\n')
    assert pairs(shell.bring("log.json")) == [("1", "y"), ("a", "x")]
    shell.write("array.json", '[{"user": 1, "item": 2}, {"user": 2, "item": 2}]')
    assert shell.bring("array.json", name="b").num_edges == 2
    shell.write("bad.json", '{"user": "a", "item": "x"}\n{"user": "b", "item": \n')
    shell.refused("bad.json", says="line 2: expected a JSON object, got invalid JSON")


def test_archives_of_several_files_and_other_binaries_are_named(shell):
    with zipfile.ZipFile(shell.folder / "ml.zip", "w") as archive:
        archive.writestr("ratings.csv", LOG)
        archive.writestr("movies.csv", LOG)
    shell.refused(
        "ml.zip", says="expected a zip archive of one file, got 2 (ratings.csv, movies.csv)"
    )
    for magic, says in (
        (b"\x89HDF\r\n", "HDF5"),
        (b"SQLite format 3\0", "SQLite"),
        (b"\x93NUMPY\x01", "NumPy array"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
    ):
        shell.write("log.bin", magic + bytes(64))
        shell.refused("log.bin", says=says)


def test_dates_that_do_not_show_the_order_of_day_and_month(shell):
    shell.write("log.csv", "user,item,date\na,x,07/04/2017\na,y,08/04/2017\n")
    shell.refused("log.csv", says=("'07/04/2017'", "--dates dmy or --dates mdy"))
    days = [shell.bring("log.csv", "--dates", d, name=d).time.tolist() for d in ("dmy", "mdy")]
    assert np.diff(days[0]) == 86_400_000_000 and np.diff(days[1]) == 31 * 86_400_000_000
    shell.write("odd.csv", "user,item,date\na,x,31/04/2017\na,y,28/04/2017\n")
    shell.refused("odd.csv", says="line 2: expected a time like '31/04/2017'")


def test_seconds_and_milliseconds_in_one_column(shell):
    shell.write("log.csv", "user,item,ts\na,x,1500001768\nb,x,1500001768000\n")
    says = ("in seconds (line 2: 1500001768) and", "milliseconds (line 3", "--time-unit mixed")
    shell.refused("log.csv", says=says[1:])
    assert set(shell.bring("log.csv", "--time-unit", "mixed").time.tolist()) == {MOMENT}
    assert np.ptp(shell.bring("log.csv", "--time-unit", "same", name="b").time) > 1e12


def test_times_of_zero_among_moments_are_told(shell):
    shell.write("log.csv", "user,item,ts\na,x,1500001768\nb,x,0\nb,y,-1\n")
    assert shell.bring("log.csv", says="2 times are 0 or less, such as 0").num_edges == 3


def test_options_without_effect_are_refused(shell):
    shell.write("log.txt", "1 2 3\n2 3\n")
    lists = ("log.txt", "--format", "lists")
    shell.refused(*lists, "--user-col", "1", says="user-col has no effect for the format lists")
    shell.refused(*lists, "--sep", ",", says="sep and quotes have no effect for the format lists")


def test_a_table_of_items_without_a_header_loses_no_item(shell):
    shell.write("log.csv", "user,item\na,1\nb,2\n")
    shell.write("titles.csv", "1,Heat\n2,Alien\n")
    shell.refused(
        "log.csv", "--items", "titles.csv", says="line 1: expected names of columns, got '1'"
    )
    options = ("--items", "titles.csv", "--no-items-header", "--title-col", "2")
    assert shell.bring("log.csv", *options).item_titles == ("Heat", "Alien")


def test_items_of_the_table_without_interactions_are_counted(shell):
    shell.write("log.csv", "user,item\na,x\nb,y\n")
    shell.write("items.csv", "item,title\nx,X\ny,Y\nz,Z\nq,Q\nq,Q\n")
    says = "items that are not in it: 0; items without interactions, left out: 2"
    assert shell.bring("log.csv", "--items", "items.csv", says=says).num_items == 2


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_all_items_of_the_table_are_kept(shell, form):
    shell.write("log.csv", "user,item\n" + "".join(f"u{n // 4},{n % 4}\n" for n in range(40)))
    titles = {"0": "a", "1": "b", "2": "c", "3": "d", "11": "k", "7": "g", "NULL": "-"}
    lines = ["item,title", *(f"{item},{title}" for item, title in titles.items())]
    if form == "jsonl":
        lines = [json.dumps({"item": item, "title": title}) for item, title in titles.items()]
    shell.write(f"items.{form}", "\n".join(lines) + "\n")
    options = ("--items", f"items.{form}", "--all-items")
    log = shell.bring("log.csv", *options, says="items without interactions, kept: 2")
    assert log.item_ids == ("0", "1", "2", "3", "7", "11") and log.num_items == 6
    assert log.item_titles == ("a", "b", "c", "d", "g", "k")
    same = shell.bring("log.csv", name="plain")
    assert pairs(log) == pairs(same)

    code, printed = shell.run("data", "split", "out", "--out", "some", "--ratio", "2:1:1")
    assert code == 0
    assert "items without interactions, left out (--all-items keeps them): 2\n" in printed
    code, printed = shell.run(
        "data", "split", "out", "--out", "all", "--all-items", "--item-core=2"
    )
    assert code == 0 and "items without interactions, kept as cold items: 2\n" in printed, printed
    some, every = read_dataset(shell.folder / "some"), read_dataset(shell.folder / "all")
    assert (some.num_items, every.num_items) == (4, 6)
    assert every.item_titles == log.item_titles
    assert "all_items" in every.split.label()


def test_all_items_need_a_table_and_ids_that_it_can_add_to(shell):
    shell.write("log.csv", LOG)
    shell.refused("log.csv", "--all-items", says="--all-items: expected --items, a table of all")
    scipy = pytest.importorskip("scipy.sparse")
    scipy.save_npz(shell.folder / "log.npz", scipy.csr_matrix(np.eye(3)))
    shell.write("items.csv", "item,title\n0,a\n")
    options = ("log.npz", "--all-items", "--items", "items.csv")
    shell.refused(*options, says="all-items has no effect for the format npz")


def test_a_table_of_items_that_repeats_an_item(shell):
    shell.write("log.csv", "user,item\na,1\nb,2\n")
    shell.write("titles.csv", "item,title\n1,Heat\n2,Alien\n1,Heat\n")
    assert shell.bring("log.csv", "--items", "titles.csv").item_titles == ("Heat", "Alien")
    shell.write("titles.csv", "item,title\n1,Heat\n2,Alien\n1,Cold\n")
    shell.refused("log.csv", "--items", "titles.csv", says="--items-keep first or last decides")
    keep = ("--items", "titles.csv", "--items-keep", "last")
    assert shell.bring("log.csv", *keep, name="b").item_titles == ("Cold", "Alien")


def test_no_suggestion_leaves_out_most_rows(shell):
    shell.write("log.csv", "user,item,rating\n" + "a,x,good\n" * 9 + "a,y,5\n")
    shell.refused("log.csv", says="(9 of 10 rows can't be used)")
    shell.write("log.csv", "user,item,rating\n" + "a,x,good\n" + "a,y,5\n" * 9)
    shell.refused("log.csv", says="(--bad-rows skip leaves out 1 of 10 rows)")


def test_splits_that_overlap_are_refused_with_a_way_on(shell):
    shell.write("d/train.csv", table(ROWS[:7]))
    for name in ("valid", "test"):
        shell.write(f"d/{name}.csv", table(ROWS[7:]))
    shell.refused(
        "d", says=("test.csv: expected no interaction of valid.csv, got the same", "--va")
    )
    says = "left out 2: validation of the source, replaced by one from train"
    dataset = shell.bring("d", "--validation", "from-train", says=says)
    assert [edges.num_edges for _, edges in dataset.splits()] == [5, 2, 2]
    shell.write("e/train.csv", table(ROWS))
    shell.write("e/test.csv", table(ROWS[7:]))
    shell.refused("e", says=("test.csv: expected no interaction of train.csv", "--splits join"))
    assert same_log(shell.bring("e", "--splits", "join", name="b"))
