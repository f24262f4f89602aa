"""Seconds from a raw log to a data set: import, k-core, split.

``python benchmarks/bench_import.py [--rows N] [--smoke]`` writes a log of N rows (user, item,
rating, timestamp; ids are strings, popularity falls off as in real logs) as CSV, as CSV with quoted
ids and as JSON lines, and prints one line per part. All files must give the same log.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmssl.data.importing import ImportOptions, import_data  # noqa: E402
from mmssl.data.log import read_log  # noqa: E402
from mmssl.data.resplit import SplitOptions, split_data  # noqa: E402
from mmssl.data.splits import k_core  # noqa: E402


def write_log_file(path: Path, rows: int, kind: str) -> None:
    """Write a file whose items and users follow a power law."""
    quote = '"' if kind == "quoted" else ""
    rng = np.random.default_rng(0)
    user = (rows / 20 * rng.random(rows) ** 2).astype(np.int64)
    item = (rows / 50 * rng.random(rows) ** 3).astype(np.int64)
    rating, moment = rng.integers(1, 6, rows), rng.integers(10**9, 2 * 10**9, rows)
    columns = zip(user.tolist(), item.tolist(), rating.tolist(), moment.tolist(), strict=True)
    with path.open("w") as file:
        if kind == "jsonl":
            file.writelines(
                f'{{"user_id": "U{u:08d}", "item_id": "B{i:08d}", "rating": {r}, '
                f'"timestamp": {t}}}\n'
                for u, i, r, t in columns
            )
            return
        file.write("user_id,item_id,rating,timestamp\n")
        file.writelines(
            f"{quote}U{u:08d}{quote},{quote}B{i:08d}{quote},{r},{t}\n" for u, i, r, t in columns
        )


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--smoke", action="store_true", help="a few rows, to see that it runs")
    arguments = parser.parse_args(argv)
    rows = 2_000 if arguments.smoke else arguments.rows
    with tempfile.TemporaryDirectory(prefix="mmssl-bench-") as scratch:
        folder = Path(scratch)
        hashes = set()
        for kind in ("plain", "quoted", "jsonl"):
            source, out = folder / f"{kind}.log", folder / kind
            write_log_file(source, rows, kind)
            spent = seconds(lambda s=source, o=out: import_data(s, o, ImportOptions(name="log")))
            log, manifest = read_log(out)
            hashes.add(manifest.log_hash)
            size = source.stat().st_size / 1e6
            print(f"  import, {kind:8s} {spent:6.2f} s ({rows:,} rows, {size:.1f} MB)")
        assert len(hashes) == 1, "the logs differ"
        spent = seconds(lambda: k_core(log.user, log.item, 5, 5))
        print(f"  5-core           {spent:6.2f} s ({log.num_edges:,} interactions)")
        options = SplitOptions(user_core=5, item_core=5)
        spent = seconds(lambda: split_data(out, folder / "split", options))
        print(f"  split with it    {spent:6.2f} s")


if __name__ == "__main__":
    main()
