"""Time and peak memory from a large log to a data set, each step in a fresh process.

``python -m benchmarks.import_scale [--rows N ...] [--scratch DIR]`` writes a log of N rows (user,
item, rating, time; ids are text, items by Zipf's law, users by a power law) as CSV and as Parquet,
imports both, splits the 5-core of the latter and opens the result, all of it and a quarter of the
users. What ``benchmarks/results/scale/import-scale.json`` has of the same N and step is replaced.
With ``--folder DIR --only STEP ...`` the files stay in DIR, for the other steps in later calls.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.memory import in_fresh_process, peak_mb

RESULT = Path(__file__).with_name("results") / "scale" / "import-scale.json"
KINDS = ("csv", "parquet")
WRITE = "write"
_BATCH = 1 << 20


def write_logs(folder: Path, rows: int) -> None:
    """Write a log of 20 rows per user and 50 per item on average, ids in no order."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import compute, csv, parquet

    def ids(prefix: str, rank: Any, size: int) -> pa.Array:
        number = pa.array(rank * 7_368_787 % size).cast(pa.string())  # a prime: another order
        return compute.binary_join_element_wise(prefix, number, "")

    users, items = max(rows // 20, 1), max(rows // 50, 1)
    rng = np.random.default_rng(0)
    writers: list[Any] = []
    for start in range(0, rows, _BATCH):
        count = min(_BATCH, rows - start)
        user = (users * rng.random(count) ** 2).astype(np.int64)
        item = ((items + 1) ** rng.random(count)).astype(np.int64) - 1  # p(rank) ~ 1 / rank
        table = pa.table(
            {
                "user_id": ids("U", user, users),
                "item_id": ids("B", item, items),
                "rating": rng.integers(1, 6, count).astype(np.float32),
                "timestamp": rng.integers(10**9, 2 * 10**9, count),
            }
        )
        writers = writers or [
            parquet.ParquetWriter(folder / "log.parquet", table.schema, compression="zstd"),
            csv.CSVWriter(folder / "log.csv", table.schema),
        ]
        for writer in writers:
            writer.write_table(table)
    for writer in writers:
        writer.close()


def import_step(folder: Path, suffix: str) -> dict[str, Any]:
    """Import the log."""
    from mmssl.data.importing import ImportOptions, import_data

    out = folder / f"log-{suffix}"
    report = import_data(folder / f"log.{suffix}", out, ImportOptions(name="log"))
    log = report.imported.data
    return {
        "users": log.num_users,
        "items": log.num_items,
        "edges": report.imported.source.rows_kept,
    }


def split_step(folder: Path) -> dict[str, Any]:
    """Split its 5-core."""
    from mmssl.data.resplit import SplitOptions, split_data

    dataset = split_data(
        folder / "log-parquet", folder / "split", SplitOptions(user_core=5, item_core=5)
    )
    return _sizes(dataset.dataset)


def read_step(folder: Path) -> dict[str, Any]:
    """Read all of the data set."""
    from mmssl.data import read_dataset

    return _sizes(read_dataset(folder / "split"))


def part_step(folder: Path) -> dict[str, Any]:
    """Read the train interactions of a quarter of the users."""
    from mmssl.data import DatasetReader

    data = DatasetReader(folder / "split")
    edges = data.interactions("train", users=range(data.num_users // 4))
    return {"users": data.num_users // 4, "items": data.num_items, "edges": edges.num_edges}


def _sizes(dataset: Any) -> dict[str, Any]:
    edges = sum(of_split.num_edges for _, of_split in dataset.splits())
    return {"users": dataset.num_users, "items": dataset.num_items, "edges": edges}


def write_step(folder: Path, rows: int) -> dict[str, Any]:
    """Write the log."""
    write_logs(folder, rows)
    return {"rows": rows}


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "import, CSV": partial(import_step, suffix="csv"),
    "import, Parquet": partial(import_step, suffix="parquet"),
    "split, 5-core": split_step,
    "read": read_step,
    "read train of a quarter": part_step,
}


def measure(rows: int, folder: Path, only: Sequence[str]) -> list[dict[str, Any]]:
    """Run steps on a log of N rows, which the first one writes."""
    if WRITE in only:
        in_fresh_process("import_scale", "--step", WRITE, str(folder), str(rows))
    sizes = {f"{kind}_mb": (folder / f"log.{kind}").stat().st_size / 1e6 for kind in KINDS}
    found = []
    for step in (step for step in STEPS if step in only):
        result = in_fresh_process("import_scale", "--step", step, str(folder), str(rows))
        found.append({"rows": rows, **sizes, "step": step, **result})
        print(
            f"{rows:>12,} rows  {step:24s} {result['seconds']:8.1f} s "
            f"{result['peak_mb'] / 1024:6.2f} GiB  {result['sizes']}",
            flush=True,
        )
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, or run one step in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--scratch", type=Path, default=None, help="where the files are written")
    parser.add_argument("--folder", type=Path, help="where the files of one N stay")
    parser.add_argument("--only", nargs="+", choices=[WRITE, *STEPS], default=[WRITE, *STEPS])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args(argv)
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="mmssl-bench-", dir=arguments.scratch) as scratch:
            found = measure(rows, arguments.folder or Path(scratch), arguments.only)
        known = json.loads(arguments.out.read_text())["steps"] if arguments.out.exists() else []
        new = {(entry["rows"], entry["step"]) for entry in found}
        kept = [entry for entry in known if (entry["rows"], entry["step"]) not in new]
        from benchmarks.harness.environment import environment

        order = list(STEPS)
        steps = sorted(
            [*kept, *found], key=lambda entry: (entry["rows"], order.index(entry["step"]))
        )
        content = {"suite": "import", "environment": environment(), "steps": steps}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def _one_step(step: str, folder: Path, rows: int) -> None:
    start = time.perf_counter()
    sizes = write_step(folder, rows) if step == WRITE else STEPS[step](folder)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "sizes": sizes}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        _one_step(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
