"""Memory of every process and bytes sent by LightGCN with ``--parallel sharded``, by their number.

::

    python -m benchmarks.sharded_memory --users 5000000 --items 500000 --edges 10000000 --dim 32

writes a synthetic data set, reads it and trains on it in 1, 2 and 4 processes as `mmssl train
--parallel sharded` does, measures, and compares with a prediction:

- memory of a process: what it holds before the graph, its share of what a single process needs on
  top of that, and what exists only with others: the lists of the rows sent and received, 24 and 16
  bytes each, the buffers for these rows, each as large as the larger of the two directions needs,
  and the product with received rows;
- bytes sent by a process in a step: ``4 D`` for every row that another process needs, in every hop
  forward and backward; and the rows of the batch.

Memory is the largest private resident memory (RssAnon) during the steps; at the start, while the
data are read, the model is built and the order of an epoch is drawn. ``--limit 6`` trains again
with at most 6 GB of data per process (RLIMIT_DATA: the heap and private writable mappings, whether
they are backed by memory or not), and tells which numbers of processes can. ``--plot FILE`` draws
the memory of a process by their number.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # before a process group exists, see mmssl/distributed/launch.py
import torch.distributed as dist

from mmssl.config import load_config
from mmssl.data.dataset import Interactions
from mmssl.data.manifest import write_manifest
from mmssl.data.split_files import write_records
from mmssl.distributed.dataset import read_part
from mmssl.distributed.group import Processes
from mmssl.memory import keep_freed_memory
from mmssl.models.sharded import ShardedLightGCNTask
from mmssl.plotting import BLUE, INK, MUTED, figure_to_svg

RESULTS = Path(__file__).parent / "results" / "scale" / "sharded-memory.json"
LAYERS, BATCH, STEPS = 2, 2048, 2
# How an allocation that failed ends: in PyTorch, in Python, in an operator of this package.
OUT_OF_MEMORY = ("allocate memory", "MemoryError", '"aten::new_empty"')


def make_data(users: int, items: int, edges: int, folder: Path) -> None:
    """Draw distinct edges: users uniform, items with a density that falls as a power law.

    One of 200 is a validation edge, another one a test edge.
    """
    rng = np.random.default_rng(0)
    user = rng.integers(0, users, edges)
    item = (items * rng.random(edges) ** 2).astype(np.int64)  # density ~ item^-1/2
    key = np.unique(user * items + rng.permutation(items)[item])
    label = rng.integers(0, 200, key.size)
    for split, kept in (("val", label == 0), ("test", label == 1), ("train", label > 1)):
        part = key[kept]
        write_records(folder / f"{split}.npy", Interactions(part // items, part % items))
    write_manifest(folder, {"num_users": users, "num_items": items})


class PeakMemory:
    """The largest private resident memory of this process within a block, in bytes."""

    def __enter__(self) -> PeakMemory:
        self.peak, self._stop = private_memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, private_memory())


def private_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def work(rank: int, size: int, folder: str, options: dict[str, Any]) -> None:
    """Train in one of the processes and write what it measured."""
    torch.set_num_threads(1)
    keep_freed_memory(large=False)  # as `mmssl train --parallel sharded` does
    if options["limit"]:
        limit = int(options["limit"] * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    dist.init_process_group("gloo", f"file://{folder}/store-{size}", rank=rank, world_size=size)
    group = Processes(sharded=True)
    settings = [f"model.embedding_dim={options['dim']}", f"lightgcn.batch_size={BATCH}"]
    settings += [f"lightgcn.num_layers={LAYERS}", f"training.wire={options['wire']}"]
    base = private_memory()
    with PeakMemory() as starting:
        dataset = read_part(folder, group)
        task = ShardedLightGCNTask(dataset, load_config("paper", settings=settings), "cpu", group)
        task.start_epoch(0, 0)
    task.step(0)  # creates gradients and moments
    before = group.sent
    with PeakMemory() as training:
        start = time.perf_counter()
        for number in range(1, 1 + STEPS):
            task.step(number)
        seconds = (time.perf_counter() - start) / STEPS
    partition, dim = task.partition, options["dim"]
    views = (task.sharded.ui, task.sharded.iu)
    sent, received = ([sum(getattr(v.exchange, k)) for v in views] for k in ("sent", "received"))
    row = dim * (2 if options["wire"] == "bfloat16" else 4)
    hops = 2 * LAYERS * row * sum(sent)  # forward and backward
    batch = 3 * BATCH * 8 + 2 * 3 * BATCH * dim * 4  # ids, and rows of both kinds of embeddings
    result = {
        "rank": rank,
        "users": partition.users.count(rank),
        "items": partition.items.count(rank),
        "edges": task.sharded.ui.nnz + task.sharded.iu.nnz,
        "base_bytes": base,
        "starting_bytes": starting.peak,
        "training_bytes": training.peak,
        # Numbers of rows and, to add up what comes back, their order; pointers of the edges.
        "list_bytes": 24 * sum(sent) + 16 * sum(received),
        "halo_bytes": (max(sent) + max(received)) * row
        + (max(received) * dim * 4 if options["wire"] == "bfloat16" else 0)
        + (max(v.local.num_rows for v in views) * dim * 4 if size > 1 else 0),
        "sent_bytes": (group.sent - before) / STEPS,
        "predicted_sent_bytes": hops + batch,
        "seconds_per_step": seconds,
    }
    Path(folder, f"{size}-{rank}.json").write_text(json.dumps(result))
    group.wait()  # no process leaves while another still reads from it
    dist.destroy_process_group()


def measure(size: int, folder: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Train in ``size`` processes; return what each of them measured."""
    torch.multiprocessing.spawn(work, (size, folder, options), nprocs=size)
    return [json.loads(Path(folder, f"{size}-{rank}.json").read_text()) for rank in range(size)]


def trains_within(size: int, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train in ``size`` processes with limited memory; return what happened."""
    Path(folder, f"store-{size}").unlink(missing_ok=True)
    try:
        measure(size, folder, options)
    except torch.multiprocessing.ProcessRaisedException as error:
        reason = str(error).strip().splitlines()[-1]
        if not any(text in reason for text in OUT_OF_MEMORY):
            raise
        return {"trains": False, "reason": reason}
    return {"trains": True}


def predicted_bytes(process: dict[str, Any], alone: dict[str, Any], nodes: int) -> float:
    """Return the memory of a process from that of the run in a single one."""
    own = alone["training_bytes"] - alone["base_bytes"]
    share = (process["users"] + process["items"]) / nodes
    others = process["list_bytes"] + process["halo_bytes"]
    total: float = process["base_bytes"] + share * own + others
    return total


def with_others(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Add what a file has of other numbers of processes, if it was measured with these options."""
    found = json.loads(path.read_text())
    options, others = record["options"], found["options"]
    if {**others, "processes": 0} != {**options, "processes": 0}:
        return record
    for key in ("runs", "limited"):
        both = {int(size): value for size, value in found[key].items()} | record[key]
        record[key] = dict(sorted(both.items()))
    options["processes"] = list(record["runs"])
    return record


def largest(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return max(ranks, key=lambda rank: rank["training_bytes"])


def table(record: dict[str, Any]) -> list[str]:
    """Compare every run with the prediction from the run in a single process."""
    options, runs, limited = (record[key] for key in ("options", "runs", "limited"))
    limit = f" with at most {options['limit']:g} GB" if options["limit"] else ""
    lines = [
        "| processes | memory of a process | predicted | at the start | sent in a step by one "
        "| predicted |" + (f" trains{limit} |" if limit else ""),
        "|---|---|---|---|---|---|" + ("---|" if limit else ""),
    ]
    for size, ranks in runs.items():
        worst, expected = largest(ranks), ""
        if 1 in runs:
            predicted = predicted_bytes(worst, runs[1][0], options["users"] + options["items"])
            expected = f"{predicted / 1e9:.2f} GB ({worst['training_bytes'] / predicted - 1:+.0%})"
        start, sent = (max(r[key] for r in ranks) for key in ("starting_bytes", "sent_bytes"))
        model = max(r["predicted_sent_bytes"] for r in ranks)
        line = (
            f"| {size} | {worst['training_bytes'] / 1e9:.2f} GB | {expected} "
            f"| {start / 1e9:.2f} GB | {sent / 1e6:.1f} MB "
            f"| {model / 1e6:.1f} MB ({sent / model - 1:+.1%}) |"
        )
        if limit:
            line += " yes |" if limited[size]["trains"] else " no, out of memory |"
        lines.append(line)
    return lines


def draw(figure: Any, record: dict[str, Any]) -> None:
    """Draw the memory of the largest process against the number of processes."""
    options, runs = record["options"], record["runs"]
    nodes = options["users"] + options["items"]
    worst = [largest(ranks) for ranks in runs.values()]
    axes = figure.subplots()
    places = range(len(runs))
    heights = [w["training_bytes"] / 1e9 for w in worst]
    axes.bar(places, heights, width=0.5, color=BLUE, label="measured")
    predicted = [predicted_bytes(w, runs[1][0], nodes) / 1e9 for w in worst]
    axes.plot(places, predicted, "o--", color=INK, markersize=5, label="predicted")
    if options["limit"]:
        axes.axhline(options["limit"], color=MUTED, linewidth=1)
        axes.annotate(f"limit of {options['limit']:g} GB", (0.99, options["limit"]), ha="right",
                      va="bottom", xycoords=("axes fraction", "data"), color=MUTED)  # fmt: skip
    axes.set_xticks(list(places), [str(size) for size in runs])
    axes.set_xlabel("processes")
    axes.set_ylabel("memory of the largest process, GB")
    axes.grid(axis="x", visible=False)
    axes.legend()


def main() -> None:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--wire", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--limit", type=float, default=0.0, help="GB of a process")
    parser.add_argument("--out", type=Path, help=f"such as {RESULTS.name}; keeps what it has of "
                        "other numbers of processes with these options")  # fmt: skip
    parser.add_argument("--plot", type=Path, help="an SVG file; needs --processes 1")
    options = vars(parser.parse_args())
    out, plot = options.pop("out"), options.pop("plot")
    sizes = options["processes"]
    with tempfile.TemporaryDirectory() as folder:
        make_data(options["users"], options["items"], options["edges"], Path(folder))
        runs = {size: measure(size, folder, {**options, "limit": 0}) for size in sizes}
        limited = (
            {size: trains_within(size, folder, options) for size in sizes}
            if options["limit"]
            else {}
        )
    record = {"options": options, "layers": LAYERS, "batch": BATCH, "runs": runs}
    record |= {"limited": limited, "torch": torch.__version__}
    if out is not None and out.exists():
        record = with_others(record, out)
    print("\n".join(table(record)))
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    if plot is not None:
        plot.write_text(figure_to_svg(lambda figure: draw(figure, record), 5, 3) + "\n")


if __name__ == "__main__":
    main()
