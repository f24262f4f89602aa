"""`mmssl data`: fetch and inspect data sets."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmssl.cli.common import Commands, Parser


def add(commands: Commands) -> None:
    """Registers the command."""
    data = commands.add_parser("data", help="fetch or inspect a data set")
    actions = data.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    fetch = actions.add_parser("fetch", help="download a public data set and convert it")
    fetch.add_argument("name", help="ml-100k")
    fetch.add_argument("--out", type=Path, help="directory (default: data/NAME)")
    fetch.set_defaults(run=_fetch)
    inspect = actions.add_parser("inspect", help="check a data set and say what is in it")
    inspect.add_argument("directory", type=Path, metavar="DIR")
    inspect.add_argument("--json", action="store_true", help="machine-readable output")
    inspect.set_defaults(run=_inspect)


def _fetch(arguments: argparse.Namespace) -> int:
    from mmssl.data.catalog import fetch

    print(fetch(arguments.name, arguments.out).message)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from mmssl.data.readers import read_dataset
    from mmssl.data.summary import summarise, summary_lines

    dataset = read_dataset(arguments.directory)
    if arguments.json:
        print(json.dumps(summarise(dataset), indent=1))
    else:
        print("\n".join(summary_lines(dataset)))
    return 0
