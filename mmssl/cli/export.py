"""`mmssl export`: writes a model to a directory that serves without its data set."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from mmssl.cli.common import Commands, add_run_options, warn_unfinished
from mmssl.errors import InputError


def add(commands: Commands) -> None:
    """Register the command."""
    export = commands.add_parser("export", help="write a model for serving")
    add_run_options(export)
    export.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="a new or empty directory"
    )
    export.add_argument(
        "--formats",
        nargs="+",
        default=["npz", "safetensors"],
        metavar="NAME",
        help="npz, safetensors, faiss, torch-export, onnx (default: npz safetensors)",
    )
    export.add_argument(
        "--seen",
        choices=["train", "all"],
        default="train",
        help="interactions to exclude from lists: those of train (default) or of all splits",
    )
    export.add_argument(
        "--top-k",
        type=int,
        default=100,
        metavar="K",
        help="length of the lists of torch-export and onnx (default: 100)",
    )
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from mmssl.serving.export import FORMATS, export
    from mmssl.serving.tables import tables_of_run

    for name in arguments.formats:
        if name not in FORMATS:
            raise InputError(f"--formats: expected names among {', '.join(FORMATS)}, got {name!r}")
    if arguments.top_k < 1:
        raise InputError(f"--top-k: expected at least 1, got {arguments.top_k}")
    tables = tables_of_run(arguments.run_directory, arguments.data, seen=arguments.seen)
    warn_unfinished(arguments.run_directory)
    with warnings.catch_warnings(record=True) as found:
        manifest = export(tables, arguments.to, arguments.formats, top_k=arguments.top_k)
    for warning in found:
        print(f"warning: {warning.message}", file=sys.stderr)
    print(
        f"{manifest['model']} on {manifest['data']['name']}: {manifest['num_users']} users, "
        f"{manifest['num_items']} items, "
        + (f"{manifest['embedding_dim']} dimensions" if "embedding_dim" in manifest else "weights")
    )
    for name, entry in manifest["files"].items():
        print(f"  {name:24s} {entry['bytes']:>12,} bytes")
    print(f"export: {arguments.to}")
    return 0
