"""Columns that are worked on in blocks give what they give in one piece, in less memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmssl.data import Interactions
from mmssl.data import blocks as blocks_module
from mmssl.data.blocks import ascending, by_users, counts, whole_users, without_gaps
from mmssl.data.dataset import overlap
from mmssl.data.importing import ImportOptions, import_data
from mmssl.data.resplit import SplitOptions, split_data
from mmssl.data.splits import PROTOCOLS
from mmssl.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def write_parquet(path: Path, rows: int = 3000, **changed: object) -> Path:
    pa = pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")
    from pyarrow import parquet

    rng = np.random.default_rng(1)
    columns = {
        "user_id": [f"u{n}" for n in (80 * rng.random(rows) ** 2).astype(int)],
        "item_id": (60 * rng.random(rows) ** 3).astype(np.int32),
        "rating": rng.integers(1, 6, rows).astype(np.float32) / 2,
        "timestamp": rng.integers(10**9, 2 * 10**9, rows),
    }
    parquet.write_table(pa.table({**columns, **changed}), path, row_group_size=700)
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_blocks(monkeypatch):
    def make(size: int) -> None:
        monkeypatch.setattr(blocks_module, "BLOCK", size)
        monkeypatch.setattr("mmssl.data.importing.arrow._ROWS", size)
        monkeypatch.setattr("mmssl.data.importing.encode._MERGE", size)

    return make


def test_files_do_not_depend_on_the_size_of_blocks(tmp_path, small_blocks):
    source = write_parquet(tmp_path / "log.parquet")

    def build(name: str) -> dict[str, str]:
        out = tmp_path / name
        import_data(source, out / "log", ImportOptions(name="log"))
        for protocol in PROTOCOLS:
            options = SplitOptions(protocol=protocol, user_core=2, item_core=3)
            split_data(out / "log", out / protocol, options)
        return hashes(out)

    whole = build("whole")
    assert len(whole) > len(PROTOCOLS) * 4
    small_blocks(37)
    assert build("blocks") == whole


def test_what_a_column_holds_after_its_first_null_is_text(tmp_path, small_blocks):
    pa = pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")
    small_blocks(100)
    times = [None if n == 2500 else 10**9 + n for n in range(3000)]
    path = write_parquet(tmp_path / "log.parquet", timestamp=pa.array(times, pa.int64()))
    with pytest.raises(InputError, match="row 2501: expected a time.*got nothing"):
        import_data(path, tmp_path / "log", ImportOptions())


def test_part_files_are_one_log(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")
    from pyarrow import parquet

    whole = write_parquet(tmp_path / "log.parquet")
    table = parquet.read_table(whole)
    (tmp_path / "parts").mkdir()
    for number in range(4):
        part = table.slice(number * 800, 800)
        parquet.write_table(part, tmp_path / "parts" / f"part-{number}.parquet")
    assert isinstance(table, pa.Table)
    for source, name in ((whole, "one"), (tmp_path / "parts", "several")):
        import_data(source, tmp_path / name, ImportOptions(name="log"))
    one, several = hashes(tmp_path / "one"), hashes(tmp_path / "several")
    assert {**one, "dataset.toml": ""} == {**several, "dataset.toml": ""}


def test_a_file_that_states_other_rows_than_it_holds_is_refused(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "log.parquet")
    from pyarrow import parquet

    read = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile, "iter_batches", lambda *a, **k: list(read(*a, **k))[:-1]
    )
    monkeypatch.setattr("mmssl.data.importing.arrow._ROWS", 500)
    with pytest.raises(InputError, match="expected 3000 rows, as it states"):
        import_data(path, tmp_path / "log", ImportOptions())


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_helpers(small_blocks, dtype):
    small_blocks(7)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, 200).astype(dtype) * 2
    assert (counts(ids, 60) == np.bincount(ids, minlength=60)).all()
    used, number = without_gaps(ids, 60)
    assert (used == np.unique(ids)).all() and (used[number] == ids).all()
    parts = list(by_users(ids))
    assert len(parts) > 3 and (np.sort(np.concatenate(parts)) == np.arange(200)).all()
    assert all(ids[a].max() < ids[b].min() for a, b in zip(parts, parts[1:], strict=False))
    ranges = list(whole_users(np.sort(ids)))
    assert [part.start for part in ranges[1:]] == [part.stop for part in ranges[:-1]]
    assert all(np.sort(ids)[p.start - 1] < np.sort(ids)[p.start] for p in ranges[1:])


def test_ascending_and_overlap(small_blocks):
    small_blocks(3)
    user, item = np.array([0, 0, 0, 1, 1, 2, 4]), np.array([0, 2, 3, 0, 9, 1, 0])
    assert ascending(user, item) and ascending(user.astype(np.uint8), item.astype(np.uint8))
    for at in range(6):  # a pair out of order, or twice, is found on both sides of a border
        swapped = np.arange(7)
        swapped[[at, at + 1]] = at + 1, at
        assert not ascending(user[swapped], item[swapped])
        assert not ascending(np.insert(user, at, user[at]), np.insert(item, at, item[at]))
    one, other = np.array([1, 4, 9, 12]), np.array([0, 4, 5, 12, 13, 20])
    assert overlap(one, other).tolist() == overlap(other, one).tolist() == [4, 12]
    assert overlap(one, np.array([20])).size == 0 and overlap(one, one[:0]).size == 0


def test_sorted_edges_are_copied_not_taken():
    user, item = np.array([0, 0, 1]), np.array([1, 2, 0])
    edges = Interactions.from_edges(user, item)
    item[0] = 0
    assert edges.item.tolist() == [1, 2, 0]


@pytest.mark.slow
def test_an_import_takes_less_memory_than_its_columns_as_objects(tmp_path):
    """Two million rows: 24 bytes each in the log; the limit is a generous one."""
    pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")
    from benchmarks.import_scale import write_logs

    peaks: dict[str, list[float]] = {"CSV": [], "Parquet": []}
    for rows in (200_000, 2_000_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        write_logs(folder, rows)
        for kind, found in peaks.items():
            command = [sys.executable, "-m", "benchmarks.import_scale", "--step", f"import, {kind}"]
            done = subprocess.run(
                [*command, folder, str(rows)], cwd=ROOT, capture_output=True, text=True, check=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    for kind, (small, large) in peaks.items():
        growth = (large - small) * 2**20 / 1_800_000
        assert growth < 250, kind  # bytes per row; 100 M rows then take far less than 24 GB
