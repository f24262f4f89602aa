"""What fusing steps into the sparse products of a forward could save at most.

``MMSSL_DATA=folder python benchmarks/bench_epilogues.py`` times a forward of the model on TikTok
and Sports, and by themselves the two steps that a product could do on its way out: adding a layer
to the running sum of the layers, and the L2 normalisation of the modality embeddings. A fused step
still reads and writes the same rows once, so what is printed is more than could be saved.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmssl.config import load_config  # noqa: E402
from mmssl.data import read_dataset  # noqa: E402
from mmssl.graph import InteractionGraph  # noqa: E402
from mmssl.models.mmssl import MMSSL  # noqa: E402
from mmssl.training.memory import keep_freed_memory  # noqa: E402


def milliseconds(job: Callable[[], object], calls: int = 30) -> float:
    """Median after three calls that do not count."""
    times = []
    for _ in range(calls + 3):
        start = time.perf_counter()
        job()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


@torch.no_grad()
def measure(name: str) -> None:
    """Prints one line."""
    data = read_dataset(Path(os.environ["MMSSL_DATA"], name))
    config = load_config("paper", preset=name).model
    graph = InteractionGraph.from_edges(*data.train, data.num_users, data.num_items)
    features = {key: torch.as_tensor(value) for key, value in data.features.items()}
    if not features:  # narrow ones in their place, which make the forward shorter than it is
        features = {key: torch.randn(data.num_items, 128) for key in ("image", "text")}
    model = MMSSL(graph, features, config)
    # One graph per modality, as after structure learning.
    model.modality_graphs = [
        InteractionGraph.from_edges(*data.train, data.num_users, data.num_items) for _ in features
    ]
    forward = milliseconds(model)
    sides = [model.user_embedding.detach(), model.item_embedding.detach()]
    modal = [side.expand(len(features), -1, -1).contiguous() for side in sides]
    sums = milliseconds(lambda: [side + side for side in sides]) * config.num_layers
    norms = milliseconds(lambda: [F.normalize(side, dim=-1) for side in modal])
    propagation = milliseconds(model._propagate_ids)
    print(
        f"{name}: forward {forward:.2f} ms, of which ID propagation {propagation:.2f}; layer sums"
        f" {sums:.2f} ({100 * sums / forward:.1f} %), normalisation {norms:.2f}"
        f" ({100 * norms / forward:.1f} %)"
    )


if __name__ == "__main__":
    keep_freed_memory()
    for dataset in ("tiktok", "sports"):
        measure(dataset)
