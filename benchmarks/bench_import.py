"""Seconds from a raw log to a data set: import, k-core, split; pyarrow compared with Python's csv.

``python benchmarks/bench_import.py [--rows N] [--smoke]`` writes a CSV of N rows (user, item,
rating, timestamp; ids are strings, popularity falls off as in real logs) and prints one line per
part. Both readers must give the same log before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmssl.data.importing import ImportOptions, arrow, import_data  # noqa: E402
from mmssl.data.log import read_log  # noqa: E402
from mmssl.data.resplit import SplitOptions, split_data  # noqa: E402
from mmssl.data.splits import k_core  # noqa: E402


def write_log_file(path: Path, rows: int) -> None:
    """A CSV whose items and users follow a power law."""
    rng = np.random.default_rng(0)
    user = (rows / 20 * rng.random(rows) ** 2).astype(np.int64)
    item = (rows / 50 * rng.random(rows) ** 3).astype(np.int64)
    rating, moment = rng.integers(1, 6, rows), rng.integers(10**9, 2 * 10**9, rows)
    with path.open("w") as file:
        file.write("user_id,item_id,rating,timestamp\n")
        file.writelines(
            f"U{u:08d},B{i:08d},{r},{t}\n"
            for u, i, r, t in zip(user.tolist(), item.tolist(), rating, moment, strict=True)
        )


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--smoke", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--only", choices=["pyarrow", "csv"], help="one of the readers")
    arguments = parser.parse_args(argv)
    rows = 2_000 if arguments.smoke else arguments.rows
    readers = [arguments.only] if arguments.only else ["pyarrow", "csv"]
    with tempfile.TemporaryDirectory(prefix="mmssl-bench-") as scratch:
        folder = Path(scratch)
        source = folder / "log.csv"
        write_log_file(source, rows)
        print(f"{rows:,} rows, {source.stat().st_size / 1e6:.1f} MB")
        hashes = set()
        for reader in readers:
            if reader == "pyarrow" and not arrow.available():
                continue
            with mock.patch.object(arrow, "available", lambda r=reader: r == "pyarrow"):
                out = folder / reader
                spent = seconds(lambda o=out: import_data(source, o, ImportOptions()))
            log, manifest = read_log(out)
            hashes.add(manifest.log_hash)
            print(f"  import, {reader:8s} {spent:6.2f} s")
        assert len(hashes) == 1, "the readers differ"
        spent = seconds(lambda: k_core(log.user, log.item, 5, 5))
        print(f"  5-core           {spent:6.2f} s ({log.num_edges:,} interactions)")
        options = SplitOptions(user_core=5, item_core=5)
        spent = seconds(lambda: split_data(out, folder / "split", options))
        print(f"  split with it    {spent:6.2f} s")


if __name__ == "__main__":
    main()
