"""Memory of every process and bytes sent by LightGCN with ``--parallel sharded``, by their number.

::

    python -m benchmarks.sharded_memory --users 5000000 --items 500000 --edges 25000000 --dim 32

trains on a synthetic graph in 1, 2 and 4 processes, measures, and compares with a prediction:

- memory of a process: what it holds before the graph, its share of what a single process needs on
  top of that, and what exists only with others: the buffers of the rows sent and received, each as
  large as the larger of the two directions needs, and the product with received rows;
- bytes sent by a process in a step: ``4 D`` for every row that another process needs, in every hop
  forward and backward; and the rows of the batch.

Memory is the largest private resident memory (RssAnon) during the steps. With ``--limit-gb`` every
process may allocate only so much.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch._dynamo  # before a process group exists, see mmssl/distributed/launch.py
import torch.distributed as dist

from mmssl.config import load_config
from mmssl.data.dataset import Interactions
from mmssl.distributed.group import Processes
from mmssl.memory import keep_freed_memory
from mmssl.models.sharded import ShardedLightGCNTask

RESULTS = Path(__file__).parent / "results" / "scale" / "sharded-memory.json"
LAYERS, BATCH, STEPS = 2, 2048, 2


def make_edges(users: int, items: int, edges: int, folder: Path) -> None:
    """Draw distinct edges: users uniform, items with a density that falls as a power law."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, users, edges)
    item = (items * rng.random(edges) ** 2).astype(np.int64)  # density ~ item^-1/2
    key = np.unique(user * items + rng.permutation(items)[item])
    np.save(folder / "user.npy", key // items)
    np.save(folder / "item.npy", key % items)


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
    keep_freed_memory()
    if options["limit_gb"]:
        limit = int(options["limit_gb"] * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    dist.init_process_group("gloo", f"file://{folder}/store-{size}", rank=rank, world_size=size)
    group = Processes(sharded=True)
    user, item = (np.load(f"{folder}/{name}.npy", mmap_mode="c") for name in ("user", "item"))
    settings = [f"model.embedding_dim={options['dim']}", f"lightgcn.batch_size={BATCH}"]
    settings += [f"lightgcn.num_layers={LAYERS}", f"training.wire={options['wire']}"]
    dataset: Any = SimpleNamespace(
        num_users=options["users"], num_items=options["items"], train=Interactions(user, item)
    )
    base = private_memory()
    with PeakMemory() as building:
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
        "building_bytes": building.peak,
        "training_bytes": training.peak,
        "halo_bytes": (max(sent) + max(received)) * row
        + (max(received) * dim * 4 if options["wire"] == "bfloat16" else 0)
        + (max(v.local.num_rows for v in views) * dim * 4 if size > 1 else 0),
        "sent_bytes": (group.sent - before) / STEPS,
        "predicted_sent_bytes": hops + batch,
        "seconds_per_step": seconds,
    }
    Path(folder, f"{size}-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def measure(size: int, folder: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Train in ``size`` processes; return what each of them measured."""
    torch.multiprocessing.spawn(work, (size, folder, options), nprocs=size)
    return [json.loads(Path(folder, f"{size}-{rank}.json").read_text()) for rank in range(size)]


def table(runs: dict[int, list[dict[str, Any]]], options: dict[str, Any]) -> list[str]:
    """Compare every run with the prediction from the run in a single process."""
    nodes = options["users"] + options["items"]
    lines = [
        "| processes | memory of a process | predicted | sent in a step by one | predicted |",
        "|---|---|---|---|---|",
    ]
    alone = runs.get(1)
    for size, ranks in runs.items():
        worst = max(ranks, key=lambda r: r["training_bytes"])
        expected = ""
        if alone is not None:
            own = alone[0]["training_bytes"] - alone[0]["base_bytes"]
            share = (worst["users"] + worst["items"]) / nodes
            predicted = worst["base_bytes"] + share * own + worst["halo_bytes"]
            expected = f"{predicted / 1e9:.2f} GB ({worst['training_bytes'] / predicted - 1:+.0%})"
        sent = max(r["sent_bytes"] for r in ranks)
        model = max(r["predicted_sent_bytes"] for r in ranks)
        lines.append(
            f"| {size} | {worst['training_bytes'] / 1e9:.2f} GB | {expected} | {sent / 1e6:.1f} MB "
            f"| {model / 1e6:.1f} MB ({sent / model - 1:+.1%}) |"
        )
    return lines


def main() -> None:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--wire", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--limit-gb", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help=f"for example {RESULTS.name}")
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        make_edges(options["users"], options["items"], options["edges"], Path(folder))
        runs = {size: measure(size, folder, options) for size in options["processes"]}
    print("\n".join(table(runs, options)))
    out = options.pop("out")
    if out is not None:
        record = {"options": options, "layers": LAYERS, "batch": BATCH, "runs": runs}
        out.write_text(json.dumps({**record, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
