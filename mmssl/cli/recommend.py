"""`mmssl recommend`: the best items of users."""

from __future__ import annotations

import argparse
import json

from mmssl.cli.common import (
    Commands,
    add_device_options,
    add_run_options,
    load_run,
    printable,
    resolve_device,
)
from mmssl.errors import InputError


def add(commands: Commands) -> None:
    """Registers the command."""
    recommend = commands.add_parser("recommend", help="print the best items of users")
    add_run_options(recommend)
    recommend.add_argument("--user", nargs="+", required=True, metavar="ID", help="user ids")
    recommend.add_argument("--top-k", type=int, default=20, metavar="K")
    recommend.add_argument("--json", action="store_true", help="machine-readable output")
    add_device_options(recommend)
    recommend.set_defaults(run=_recommend)


def _recommend(arguments: argparse.Namespace) -> int:
    from mmssl.serving.recommend import recommend_with_titles, resolve_user

    _, dataset, graph, user, item = load_run(arguments, resolve_device(arguments))
    users = [resolve_user(dataset, name) for name in arguments.user]
    if arguments.top_k < 1:
        raise InputError(f"--top-k: expected at least 1, got {arguments.top_k}")
    lists = recommend_with_titles(dataset, graph, user, item, users, arguments.top_k)
    for entry in lists:
        if arguments.json:
            print(json.dumps(entry._asdict()))
            continue
        print(f"user {printable(entry.user)}")
        print(printable("  has: " + "; ".join(entry.history)))
        for rank, (label, score) in enumerate(entry.items, 1):
            print(f"  {rank:3d}. {score:8.4f}  {printable(label)}")
    return 0
