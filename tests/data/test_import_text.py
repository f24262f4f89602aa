"""Text against Python's csv: the same cells and lines, and no quote is left open unnoticed."""

from __future__ import annotations

import csv
import gzip
import io
import re
import shutil
import subprocess
import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmssl.data.importing import Dialect, ImportOptions, arrow, decode, import_data, text
from mmssl.data.importing.text import TextFile
from mmssl.data.log import read_log
from mmssl.errors import InputError

pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")

NASTY = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0"), min_size=1, max_size=6
).filter(lambda text: text == text.strip())
CELL = NASTY | st.sampled_from(
    ['"', ",", '""', "a,b", "'", "é", "a\u2028b", "a\x1fb", "::", "NULL", "[1, 2]", "01"]
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=12), quoting=st.sampled_from([0, 1])
)
def test_any_ids_survive_a_csv(tmp_path, rows, quoting):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with open(tmp_path / "log.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=quoting)
        writer.writerow(["user", "item"])
        writer.writerows(rows)
    options = ImportOptions(dialect=Dialect(","), format="csv", null_ids="keep")
    import_data(tmp_path / "log.csv", tmp_path / "out", options)
    log, _ = read_log(tmp_path / "out")
    found = {(log.user_ids[u], log.item_ids[i]) for u, i in zip(log.user, log.item, strict=True)}
    assert found == set(rows) and log.num_edges == len(set(rows))


PIECES = st.lists(
    st.sampled_from(["a", "b,c", ",", '"', '""', '"x"', '"x\ny"', "\n", " ", "\r\n", "\r", "é"]),
    max_size=14,
)


def _by_csv(text: str) -> tuple[list[tuple[int, list[str]]], int | None]:
    """(line, cells) of the rows as Python's csv reads them; the line of a row it can't read."""
    reader, rows, end = csv.reader(io.StringIO(text, newline=""), strict=True), [], 0
    try:
        for row in reader:
            rows += [(end + 1, row)] if row else []
            end = reader.line_num
    except csv.Error:
        return rows, end + 1
    return rows, None


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pieces=PIECES,
    block=st.sampled_from([1, 7, 1 << 22]),
    read=st.sampled_from([1, 3, 11, 1 << 24]),
)
def test_rows_lines_and_quotes_are_those_of_pythons_csv(tmp_path, pieces, block, read):
    text = "user,item\n" + "".join(pieces)
    (tmp_path / "log.csv").write_bytes(text.encode())
    rows, malformed = _by_csv(text)
    with (
        mock.patch("mmssl.data.importing.lines._BLOCK", block),
        mock.patch("mmssl.data.importing.decode.BLOCK", read),
    ):
        if malformed is not None:
            with pytest.raises(InputError, match="expected cells with closed quotes") as caught:
                TextFile(tmp_path / "log.csv", Dialect(",")).read([1, 0])
            line = int(re.search(r"line (\d+):", str(caught.value))[1])
            assert malformed <= line <= text.count("\n") + text.count("\r") + 1
            return
        table = TextFile(tmp_path / "log.csv", Dialect(",")).read([1, 0])
    good = [(line, row) for line, row in rows[1:] if len(row) == 2]
    assert table.locations.tolist() == [line for line, _ in good]
    cells = [[column.values[code] for code in column.codes] for column in table.columns]
    plain = [[cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row] for _, row in good]
    assert cells == [[row[1] for row in plain], [row[0] for row in plain]]
    bad = [(line, f"expected 2 cells, got {len(row)}") for line, row in rows[1:] if len(row) != 2]
    assert [(fault.location, fault.message) for fault in table.faults] == bad


def test_rows_longer_than_a_block_and_lines_after_them(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "_BLOCK", 64)
    long = "x" * 1000
    (tmp_path / "log.csv").write_text(f'user,item\n{long},a\n"b\n{long}",\nc,\n')
    table = TextFile(tmp_path / "log.csv", Dialect()).read([0])
    assert table.columns[0].values == [long, f"b\n{long}", "c"]
    assert table.locations.tolist() == [2, 3, 5]


def test_bad_rows_are_named_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "_BLOCK", 64)
    rows = [f"u{n},i\n" for n in range(500)]
    rows[333] = "\nu,i,x\n"
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(rows))
    with pytest.raises(InputError, match="line 336: expected 2 cells, got 3 "):
        import_data(tmp_path / "log.csv", tmp_path / "out", ImportOptions())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings_in_small_blocks(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(decode, "BLOCK", 5)
    rows = [(f"é{n}", f"i{n % 3}") for n in range(20)]
    content = "user,item\r\n" + "".join(f"{user},{item}\r\n" for user, item in rows)
    (tmp_path / "log.csv").write_bytes(content.encode(encoding))
    table = TextFile(tmp_path / "log.csv", Dialect(encoding=encoding)).read([0, 1])
    cells = [[column.values[code] for code in column.codes] for column in table.columns]
    assert list(zip(*cells, strict=True)) == rows
    assert table.locations.tolist() == list(range(2, 22))


def test_bytes_of_another_encoding_are_named_by_line_in_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "BLOCK", 5)
    (tmp_path / "log.csv").write_bytes(b"user,item\n" + b"1,a\n" * 40 + b"1,\xe9\n")
    with pytest.raises(InputError, match="line 42: expected utf-8, got byte 0xe9"):
        TextFile(tmp_path / "log.csv", Dialect()).read([0])
    (tmp_path / "log.csv").write_bytes("user,item\n1,a\n".encode("utf-16")[:-1])
    with pytest.raises(InputError, match=r"line 2: expected utf-16, got byte 0x0a"):
        TextFile(tmp_path / "log.csv", Dialect(encoding="utf-16")).read([0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"' + "x\n" * 500, "line 3: expected cells with closed quotes, got '\"x'"),
        ("x" * 1000, "line 3: expected at most 256 bytes, got more"),
    ],
)
def test_a_row_without_end_is_not_read_into_memory(tmp_path, monkeypatch, row, message):
    for module in (decode, text):
        monkeypatch.setattr(module, "MAX_ROW", 256)
    monkeypatch.setattr(decode, "BLOCK", 64)
    (tmp_path / "log.csv").write_text(f"user,item\n1,a\n1,{row}\n")
    with pytest.raises(InputError, match=re.escape(message)):
        TextFile(tmp_path / "log.csv", Dialect()).read([0])


def test_integers_are_held_as_numbers_until_a_cell_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "BLOCK", 64)
    rows = [f"{n},{n},{n}\n" for n in range(-50, 50)] + ["007,+1,9223372036854775807\n"]
    (tmp_path / "log.csv").write_text("a,b,c\n" + "".join(rows))
    one, two, three = TextFile(tmp_path / "log.csv", Dialect()).read([0, 1, 2]).columns
    for column, last in ((one, "007"), (two, "+1"), (three, str(2**63 - 1))):
        cells = [column.values[code] for code in column.codes]
        assert cells == [*map(str, range(-50, 50)), last]
    assert three.at is None and one.at is not None


def _peak_of_import(path) -> int:
    """Import a file in a process of its own; return its peak memory in bytes."""
    code = (
        "import resource, sys; from mmssl.data.importing import *; "
        "import_data(sys.argv[1], sys.argv[1] + '.log', ImportOptions()); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in KiB on Linux")
def test_the_memory_of_an_import_does_not_grow_with_the_text(tmp_path):
    peaks = []
    for size in (10, 10_000):  # 400 kB and 400 MB of text of the same ids
        path = tmp_path / f"{size}.csv.gz"
        with gzip.open(path, "wt", compresslevel=1) as file:
            file.write("user,item,comment\n")
            for row in range(0, 10_000, 10):
                pairs = [f"{at % 100},{at // 100}," for at in range(row, row + 10)]
                file.write("".join(f"{pair}{'x' * 4 * size}\n" for pair in pairs))
        peaks.append(_peak_of_import(path))
    assert peaks[1] - peaks[0] < 150e6, peaks
