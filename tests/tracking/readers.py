"""Reading of logged values with each tracker's own library: name -> [(step, value)]."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path


def read_tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def read_wandb(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all parts of an offline run, in the order in which `wandb sync` uploads them."""
    import json

    from wandb.proto import wandb_internal_pb2

    series: dict[str, list[tuple[int, float]]] = {}
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime)
    assert len({file.name for file in files}) == 1  # one run
    for file in files:
        for data in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                if not key.startswith("_"):
                    value = json.loads(item.value_json)
                    series.setdefault(key, []).append((record.history.step.num, value))
    return series


def _records(content: bytes) -> Iterator[bytes]:
    """Read the records of a `.wandb` file: 7 bytes, then LevelDB's log format in 32 KiB blocks."""
    assert content[:4] == b":W&B"
    position, parts = 7, []
    while position + 7 <= len(content):
        remaining = 32768 - position % 32768
        if remaining < 7:
            position += remaining
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += 7
        if kind == 0:  # the rest of the block is padding
            position += remaining - 7
            continue
        parts.append(content[position : position + length])
        position += length
        if kind in (1, 4):  # a complete record, or its last part
            yield b"".join(parts)
            parts = []


def read_mlflow(store: str) -> tuple[dict[str, list[tuple[int, float]]], object]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("mmssl")
    (run,) = client.search_runs([experiment.experiment_id])
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }, run
