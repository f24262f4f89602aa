"""What the closed-form part of `plus` is worth, by its settings, on validation.

``python -m benchmarks.mix RUN [RUN ...]`` takes runs of ``plus`` with ``plus.mix = 0``, adds the
scores of CEASE with every combination in `SETTINGS` and prints validation Recall@20 and NDCG@20 by
share. Nothing is trained, and the test split is never read.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.plus.mix import SHARES, history_vectors, mixed
from mmssl.training.run import RunDirectory

SETTINGS = tuple(
    {"mix_reg": reg, "mix_content": content, "mix_rank": rank}
    for reg, content, rank in (
        (100.0, 100.0, 256),
        (100.0, 100.0, 64),
        (100.0, 100.0, 512),
        (100.0, 10.0, 256),
        (100.0, 0.0, 256),
        (30.0, 30.0, 256),
        (300.0, 100.0, 256),
    )
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    runs = parser.parse_args().runs
    print("| data | reg | content | rank |", " | ".join(f"{share}" for share in SHARES), "|")
    print("|---" * (4 + len(SHARES)) + "|")
    for path in runs:
        run = RunDirectory.open(path)
        dataset = run.read_data()
        learned = run.load_embeddings(dataset)
        graph = InteractionGraph.from_edges(
            *dataset.train, dataset.num_users, dataset.num_items, normalization="sym"
        )
        evaluator = Evaluator(dataset, "val", graph)
        for settings in SETTINGS:
            config = dataclasses.replace(run.config.plus, **settings)
            history = history_vectors(dataset, graph, config, run.config.training.seed)
            cells = []
            for share in SHARES:
                found = evaluator.evaluate(mixed(learned, history, share))
                cells.append(f"{found['recall@20']:.4f} / {found['ndcg@20']:.4f}")
            names = " | ".join(f"{value:g}" for value in settings.values())
            print(f"| {dataset.name} | {names} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
