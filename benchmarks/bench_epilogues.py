"""Upper bound on what fusing steps into the sparse products of a forward could save.

``MMSSL_DATA=folder python -m benchmarks.bench_epilogues`` times a forward of the model on TikTok
and Sports, and, separately, the two steps that could be fused into a product: adding a layer
to the running sum of the layers, and the L2 normalization of the modality embeddings. A fused step
still reads and writes the same rows once, so the printed figures overestimate the saving.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.harness.clock import Work, clock_of, take_turns
from benchmarks.harness.record import Timing
from mmssl.config import load_config
from mmssl.data import read_dataset
from mmssl.graph import InteractionGraph
from mmssl.memory import keep_freed_memory
from mmssl.models.mmssl.model import MMSSL


def milliseconds(jobs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the medians of ten interleaved rounds."""
    works = {name: Work(job) for name, job in jobs.items()}
    rounds = take_turns(works, clock_of("cpu"), seconds=0, turns=10, most_calls=3)
    return {
        name: Timing.of([call.full for turn in found for call in turn]).median_ms
        for name, found in rounds.items()
    }


@torch.no_grad()
def measure(name: str) -> None:
    """Measure one data set and print one line."""
    data = read_dataset(Path(os.environ["MMSSL_DATA"], name))
    config = load_config("paper", preset=name).model
    graph = InteractionGraph.from_edges(*data.train, data.num_users, data.num_items)
    features = {key: torch.as_tensor(value) for key, value in data.features.items()}
    if not features:  # narrow random ones instead, which make the forward cheaper than it is
        features = {key: torch.randn(data.num_items, 128) for key in ("image", "text")}
    model = MMSSL(graph, features, config)
    # One graph per modality, as after structure learning.
    model.modality_graphs = [
        InteractionGraph.from_edges(*data.train, data.num_users, data.num_items) for _ in features
    ]
    sides = [model.user_embedding.detach(), model.item_embedding.detach()]
    modal = [side.expand(len(features), -1, -1).contiguous() for side in sides]
    found = milliseconds(
        {
            "forward": model,
            "sums": lambda: [side + side for side in sides],
            "norms": lambda: [F.normalize(side, dim=-1) for side in modal],
            "propagation": model._propagate_ids,
        }
    )
    forward, sums = found["forward"], found["sums"] * config.num_layers
    norms, propagation = found["norms"], found["propagation"]
    print(
        f"{name}: forward {forward:.2f} ms, of which ID propagation {propagation:.2f}; layer sums"
        f" {sums:.2f} ({100 * sums / forward:.1f} %), normalization {norms:.2f}"
        f" ({100 * norms / forward:.1f} %)"
    )


if __name__ == "__main__":
    keep_freed_memory()
    for dataset in ("tiktok", "sports"):
        measure(dataset)
