"""Report what was built, what is installed, and the backend of each op on this machine."""

from __future__ import annotations

import importlib.util
import platform
import sys

import torch

import mmssl
from mmssl import _extension, ops

# Optional package -> feature that is unavailable without it.
_OPTIONAL = {
    "sklearn": "text features, `mmssl data fetch` (pip install 'mmssl[text]')",
    "PIL": "features of pictures, pictures in reports (pip install 'mmssl[image]')",
    "sentence_transformers": "text features by a language model (pip install 'mmssl[sentence]')",
    "faiss": "export of a FAISS index (pip install 'mmssl[ann]')",
    "onnx": "export to ONNX (pip install 'mmssl[onnx]')",
}


def report_lines() -> list[str]:
    """Return the report of ``mmssl doctor``, line by line."""
    lines = [
        f"mmssl {mmssl.__version__}, Python {platform.python_version()} ({sys.executable})",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"CPU {torch.backends.cpu.get_cpu_capability()}, {_cuda()}",
        "",
        "built",
        *(f"  {n:10s} {_extension.missing.get(n, 'loaded')}" for n in ("_C", "_host", "_C_cuda")),
        "",
        "optional packages",
    ]
    for name, purpose in _OPTIONAL.items():
        found = importlib.util.find_spec(name) is not None
        lines.append(f"  {name:21s} {'installed' if found else 'missing: no ' + purpose}")
    lines += ["", f"ops (backend requested: {ops.requested_backend()})"]
    rows = [("op", "device", "dtypes", "backend", "reason")]
    for s in ops.status():
        rows.append((s.op, s.device, ", ".join(s.dtypes), s.backend, s.reason))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append(f"  {'  '.join(cells)}  {row[4]}".rstrip())
    return lines


def _cuda() -> str:
    if torch.cuda.is_available():
        return f"CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}"
    if torch.version.cuda is None:
        return "no CUDA (a CPU build of torch)"
    return f"CUDA {torch.version.cuda}, but no usable device"
