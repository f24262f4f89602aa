"""Malformed run directories: config.toml, metrics.json, log.jsonl, model and checkpoint."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from mmssl.training.checkpoint import load_checkpoint, save_checkpoint
from tests.hostile.world import NO_FILES, NUM_ITEMS, NUM_USERS, Case, World, cases, naming, sparse

USES = ("evaluate", "recommend")
MODEL = "model.safetensors"
LAST = "checkpoint/last.safetensors"

Spoil = Callable[[World], object]


def _bytes(name: str, content: bytes | str) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda w: (w.run / name).write_bytes(data)


def _cut(name: str, count: int) -> Spoil:
    return lambda w: (w.run / name).write_bytes((w.run / name).read_bytes()[:count])


def _flipped(name: str, place: int) -> Spoil:
    def spoil(w: World) -> None:
        data = bytearray((w.run / name).read_bytes())
        data[place] ^= 0x40
        (w.run / name).write_bytes(data)

    return spoil


def _setting(old: str, new: str) -> Spoil:
    def spoil(w: World) -> None:
        path = w.run / "config.toml"
        text = path.read_text()
        lines = [new if line.startswith(f"{old} = ") else line for line in text.split("\n")]
        path.write_text("\n".join(lines))

    return spoil


def _without_run_section(w: World) -> None:
    path = w.run / "config.toml"
    path.write_text(path.read_text().replace("[run]", "[walk]"))


def _safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _torch_save(name: str) -> Spoil:
    """A file that torch.load would unpickle."""

    def spoil(w: World) -> None:
        from tests.hostile.world import Payload

        torch.save({"embedding.user": Payload(w.trap)}, w.run / name)

    return spoil


def _rewritten(name: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Spoil:
    """A file written by this package, with a valid hash and other content."""

    def spoil(w: World) -> None:
        tensors, state = load_checkpoint(w.run / name)
        change(tensors, state)
        save_checkpoint(w.run / name, tensors, state)

    return spoil


def _hashed(state_text: str) -> Spoil:
    """A model with a valid hash over an arbitrary state text."""

    def spoil(w: World) -> None:
        digest = hashlib.sha256(state_text.encode()).hexdigest()
        entry = json.dumps({"state": state_text, "sha256": digest})
        (w.run / MODEL).write_bytes(save({}, metadata={"mmssl": entry}))

    return spoil


def _foreign(metadata: dict[str, str] | None) -> Spoil:
    def spoil(w: World) -> None:
        save_file(load_file(w.run / MODEL), w.run / MODEL, metadata=metadata)

    return spoil


def _drop(key: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, state: tensors.pop(key)


def _put(key: str, value: torch.Tensor) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, state: tensors.update({key: value})


def _no_tensors(tensors: dict[str, Any], state: dict[str, Any]) -> None:
    tensors.clear()


def _wide(tensors: dict[str, Any], state: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if name.startswith(("model.", "embedding")):
            tensors[name] = torch.cat([tensor, tensor]) if tensor.dim() else tensor


def _at(name: str) -> Callable[[World], Path]:
    return lambda w: w.run / name


def _appended(line: str) -> Spoil:
    def spoil(w: World) -> None:
        with (w.run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)

    return spoil


def _metrics(**test: object) -> Spoil:
    def spoil(w: World) -> None:
        path = w.run / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["test"].update(test)
        path.write_text(json.dumps(metrics))

    return spoil


def _weights(rowptr: list[int], col: list[int]) -> Spoil:
    """Sparse item weights with any index."""

    def change(tensors: dict[str, Any], state: dict[str, Any]) -> None:
        tensors["weights.rowptr"] = torch.tensor(rowptr)
        tensors["weights.col"] = torch.tensor(col, dtype=torch.int32)
        tensors["weights.value"] = torch.ones(len(col))

    return _rewritten(MODEL, change)


_TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_MODEL: dict[str, tuple[Spoil, str]] = {
    "empty": (_bytes(MODEL, b""), "safetensors"),
    "a pickle": (lambda w: (w.run / MODEL).write_bytes(w.pickle()), "safetensors"),
    "what torch.save writes": (_torch_save(MODEL), "safetensors"),
    "truncated": (_cut(MODEL, -8), "safetensors"),
    "only a header": (_cut(MODEL, 100), "safetensors"),
    "a flipped bit": (_flipped(MODEL, -1), "damaged"),
    "a flipped bit in the header": (_flipped(MODEL, 20), MODEL),
    "a header of 2^60 bytes": (_bytes(MODEL, _safetensors("{}", length=2**60)), "safetensors"),
    "a header of -1 bytes": (_bytes(MODEL, _safetensors("{}", length=2**64 - 1)), "safetensors"),
    "a deep header": (_bytes(MODEL, _safetensors("[" * 50_000)), "safetensors"),
    "offsets outside": (
        _bytes(MODEL, _safetensors({"a": {**_TENSOR, "data_offsets": [0, 2**40]}}, bytes(8))),
        "safetensors",
    ),
    "offsets that overlap": (
        _bytes(MODEL, _safetensors({"a": _TENSOR, "b": _TENSOR}, bytes(8))),
        "safetensors",
    ),
    "a shape that overflows": (
        _bytes(MODEL, _safetensors({"a": {**_TENSOR, "shape": [2**62, 2**62]}}, bytes(8))),
        "safetensors",
    ),
    "an unknown type": (
        _bytes(MODEL, _safetensors({"a": {**_TENSOR, "dtype": "F7"}}, bytes(8))),
        "safetensors",
    ),
    "no metadata": (_foreign(None), "not a file of this package"),
    "metadata that is not JSON": (_foreign({"mmssl": "hello"}), "damaged"),
    "deep metadata": (_foreign({"mmssl": "[" * 50_000}), "damaged"),
    "a number for a state": (_foreign({"mmssl": '{"state": 7, "sha256": "x"}'}), "damaged"),
    "a list for metadata": (_foreign({"mmssl": "[1]"}), "damaged"),
    "a valid hash over text": (_hashed("hello"), "expected a state"),
    "a valid hash over a list": (_hashed("[]"), "expected a state"),
    "a valid hash over deep lists": (_hashed("[" * 50_000), "expected a state"),
    "no tensors": (_rewritten(MODEL, _no_tensors), "embedding.user"),
    "no item table": (_rewritten(MODEL, _drop("embedding.item")), "embedding.item"),
    "integers": (
        _rewritten(MODEL, _put("embedding.user", torch.ones(NUM_USERS, 64, dtype=torch.int64))),
        "embedding.user",
    ),
    "a vector": (_rewritten(MODEL, _put("embedding.user", torch.ones(NUM_USERS))), MODEL),
    "another width": (_rewritten(MODEL, _put("embedding.user", torch.ones(NUM_USERS, 3))), MODEL),
    "item weights of another size": (
        _rewritten(MODEL, _put("weights.dense", torch.ones(2, 2))),
        "weights.dense",
    ),
    "item weights without values": (
        _rewritten(MODEL, _put("weights.rowptr", torch.zeros(NUM_ITEMS + 1, dtype=torch.int64))),
        "weights.value",
    ),
    "item weights whose rows run backwards": (
        _weights([0, 2**40, *[1] * (NUM_ITEMS - 1)], [0]),
        "weights.rowptr",
    ),
    "item weights of an unknown item": (
        _weights([0, *[1] * NUM_ITEMS], [NUM_ITEMS]),
        "weights.col",
    ),
    "users of another data set": (
        _rewritten(MODEL, _put("embedding.user", torch.ones(NUM_USERS + 1, 64))),
        f"{NUM_USERS}",
    ),
}
_CONFIG: dict[str, tuple[Spoil, str]] = {
    "empty": (_bytes("config.toml", ""), "[run] section"),
    "no run section": (_without_run_section, "[run] section"),
    "a number for the data": (_setting("data", "data = 5"), "config.toml"),
    "a list for the model": (_setting("model", "model = ['mmssl']"), "config.toml"),
    "an unknown model": (_setting("model", "model = 'gpt'"), "run.model"),
    "a NUL in the data": (_setting("data", 'data = "a\\u0000b"'), "expected"),
    "other data": (_setting("data", "data = '/'"), "expected"),
    "another hash": (_setting("data_hash", f"data_hash = '{'0' * 64}'"), "data"),
    "a pickle": (lambda w: (w.run / "config.toml").write_bytes(w.pickle()), "config.toml"),
}
_CHECKPOINT: dict[str, Spoil] = {
    "empty": _bytes(LAST, b""),
    "a pickle": lambda w: (w.run / LAST).write_bytes(w.pickle()),
    "what torch.save writes": _torch_save(LAST),
    "truncated": _cut(LAST, -100),
    "a flipped bit": _flipped(LAST, -1),
    "no tensors": _rewritten(LAST, _no_tensors),
    "tables of another size": _rewritten(LAST, _wide),
}
_METRICS: dict[str, tuple[Spoil, str]] = {
    "empty": (_bytes("metrics.json", ""), "metrics.json"),
    "a list": (_bytes("metrics.json", "[]"), "metrics.json"),
    "deep": (_bytes("metrics.json", "[" * 50_000), "metrics.json"),
    "text for a metric": (_metrics(**{"recall@20": "best"}), "metrics.json"),
    "an object for a metric": (_metrics(**{"recall@20": {}}), "metrics.json"),
    "400 digits for a metric": (_metrics(**{"recall@20": 10**400}), "metrics.json"),
    "not UTF-8": (_bytes("metrics.json", b"\xff{}"), "UTF-8"),
}
_LOG: dict[str, tuple[Spoil, str]] = {
    "not JSON": (_appended("hello\n"), "log.jsonl"),
    "a list": (_appended("[]\n"), "log.jsonl"),
    "deep": (_appended("[" * 50_000 + "\n"), "log.jsonl"),
    "an epoch that is text": (_appended('{"event": "epoch", "epoch": "two"}\n'), "log.jsonl"),
    "an epoch of 400 digits": (
        _appended('{"event": "epoch", "epoch": 1' + "0" * 400 + ', "loss": {"bpr": 1.0}}\n'),
        "log.jsonl",
    ),
    "a loss that is text": (
        _appended('{"event": "epoch", "epoch": 2, "loss": {"bpr": "low"}}\n'),
        "log.jsonl",
    ),
    "a list of losses": (_appended('{"event": "epoch", "epoch": 2, "loss": [1]}\n'), "log.jsonl"),
    "not UTF-8": (_bytes("log.jsonl", b"\xff\xfe\n"), "UTF-8"),
}


def _no_files(name: str, reader: str) -> list[Case]:
    return [
        Case(
            f"{name}: {label}",
            lambda w, spoil=spoil: spoil(w.run / name),
            (reader,),
            # A dangling link is not a file: the run counts as unfinished.
            (name.split("/")[-1], "" if name == "metrics.json" else words),
            isolated,
        )
        for label, (spoil, words, isolated) in NO_FILES.items()
        if not (name == LAST and "symlink" in label)
    ]


def _same(spoil: Spoil) -> Spoil:
    return spoil


CASES = [
    *cases(
        MODEL,
        {name: (spoil, (word,)) for name, (spoil, word) in _MODEL.items()},
        _same,
        reader="model",
        commands=USES,
        on_command_line=("a pickle", "a flipped bit", "users of another data set"),
    ),
    *cases(
        "config.toml of a run",
        {name: (spoil, (word,)) for name, (spoil, word) in _CONFIG.items()},
        _same,
        reader="run",
        commands=(*USES, "resume"),
        on_command_line=("an unknown model", "a NUL in the data", "another hash"),
    ),
    *cases(
        "last.safetensors",
        {name: (spoil, ("last.safetensors",)) for name, spoil in _CHECKPOINT.items()},
        _same,
        reader="checkpoint",
        commands=("resume",),
        on_command_line=("what torch.save writes", "no tensors", "tables of another size"),
    ),
    *cases(
        "metrics.json",
        naming("metrics.json", _METRICS),
        _same,
        reader="record",
        commands=("report",),
        on_command_line=("text for a metric",),
    ),
    *cases(
        "log.jsonl",
        naming("log.jsonl", _LOG),
        _same,
        reader="record",
        commands=("report",),
        on_command_line=("not JSON",),
    ),
    *_no_files(MODEL, "model"),
    *_no_files(LAST, "checkpoint"),
    *_no_files("metrics.json", "record"),
    *_no_files("log.jsonl", "record"),
    *_no_files("config.toml", "run"),
    Case(
        f"{MODEL}: a sparse terabyte",
        lambda w: sparse(2**40)(w.run / MODEL),
        USES,
        (MODEL, "fits memory"),
        isolated=True,
    ),
    Case(
        "metrics.json: no metric at all",
        _bytes("metrics.json", '{"val": {}, "test": {}}'),
        ("report",),
        None,
    ),
    Case("log.jsonl: its last line cut short", _appended('{"event": "ep'), ("report",), None),
    Case(
        "metrics.json: NaN for a metric", _metrics(**{"recall@20": float("nan")}), ("report",), None
    ),
    Case(
        f"{MODEL}: NaN everywhere",
        _rewritten(MODEL, _put("embedding.user", torch.full((NUM_USERS, 64), float("nan")))),
        USES[:1],
        ("finite",),
    ),
]
