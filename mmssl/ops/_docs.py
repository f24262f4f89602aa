"""The tables of ops in README.md and docs/ops/index.md, generated from the declarations.

``python -m mmssl.ops._docs`` prints them; ``python -m mmssl.ops._docs FILE...`` rewrites the lines
between ``<!-- ops: NAME -->`` and ``<!-- /ops -->`` in the files. ``tests/ops/test_registry.py``
compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import mmssl.ops  # noqa: F401  (declares the ops)
from mmssl.ops._registry import CPU_DTYPES, OPS, Op, Words

_MARK = re.compile(r"(<!-- ops: (\w+) -->\n).*?(<!-- /ops -->)", re.DOTALL)


def _dtypes(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _public() -> list[tuple[Op, Words]]:
    # Not in the order of declaration, which is that of the imports.
    ops = sorted(OPS.values(), key=lambda op: op.name)
    return [(op, op.words) for op in ops if op.words is not None]


def _link(op: Op, words: Words, folder: str) -> str:
    return f"[`{op.name}`]({folder}{words.page or op.name}.md)"


def _cell(op: Op, note: str, device: str) -> str:
    """Describe what runs on a device."""
    if device not in op.dtypes or not op.operators:
        return note or "plain PyTorch"
    if device == "cuda":
        return "kernels compiled, not run on a GPU yet"
    parts = ["native: AVX-512, AVX2, portable" if op.dtypes[device] == CPU_DTYPES else "native"]
    if op.dtypes[device] == CPU_DTYPES:
        parts.append(_dtypes(op.dtypes[device]))
    return "; ".join([*parts, note] if note else parts)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(line) + " |\n" for line in (header, *rows)]
    return "".join([lines[0], "|---" * len(header) + "|\n", *lines[1:]])


def readme() -> str:
    """Return the table of README.md: the op and what runs on each device."""
    rows = [
        (
            _link(op, words, "docs/ops/"),
            *(_cell(op, words.notes.get(device, ""), device) for device in ("cpu", "cuda")),
        )
        for op, words in _public()
    ]
    return _table(("op", "CPU", "CUDA"), rows)


def index() -> str:
    """Return the table of docs/ops/index.md: what an op computes and what it never holds."""
    rows = [(_link(op, words, ""), words.equals, words.avoids) for op, words in _public()]
    return _table(("op", "equals", "never holds"), rows)


_TABLES: dict[str, Callable[[], str]] = {"readme": readme, "index": index}


def filled(text: str) -> str:
    """Return a page with its marked tables rebuilt from the declarations."""
    return _MARK.sub(lambda m: m[1] + _TABLES[m[2]]() + m[3], text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    if len(sys.argv) == 1:
        print(readme(), index(), sep="\n")
