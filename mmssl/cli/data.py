"""`mmssl data`: fetch, import, split and inspect data sets."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from mmssl.cli.common import Commands, Parser
from mmssl.errors import InputError

FORMATS = (
    *("auto", "mmssl", "mmrec", "recbole"),
    *("csv", "tsv", "jsonl", "lists", "parquet", "npz"),
)
CELLS = (
    *("null_ids", "decimal", "dates", "time_unit", "ordered"),
    *("items_header", "items_keep", "all_items"),
    *("validation", "splits", "seed"),
)
SPLIT = ("protocol", "seed", "min_rating", "cold_items", "all_items", "name")
ROLES = ("user", "item", "rating", "time", "title")
PROTOCOLS = (
    *("random", "random-global", "leave-one-out", "leave-one-out-random"),
    *("temporal", "cold-item"),
)


def add(commands: Commands) -> None:
    """Register the command."""
    data = commands.add_parser("data", help="fetch, import, split or inspect a data set")
    actions = data.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    fetch = actions.add_parser("fetch", help="download a public data set and convert it")
    fetch.add_argument("name", help="ml-100k")
    fetch.add_argument("--out", type=Path, help="directory (default: data/NAME)")
    fetch.set_defaults(run=_fetch)
    _add_import(actions)
    _add_split(actions)
    inspect = actions.add_parser("inspect", help="check a data set and print its statistics")
    inspect.add_argument("directory", type=Path, metavar="DIR")
    inspect.add_argument("--json", action="store_true", help="machine-readable output")
    inspect.set_defaults(run=_inspect)


def _add_import(actions: Commands) -> None:
    parser = actions.add_parser("import", help="make a data set from files in another layout")
    parser.add_argument("source", metavar="SRC", help="file, directory, or - for standard input")
    _add_target(parser, "name of the source")
    _add_choice(
        parser, "--format", FORMATS, "lists: lines of a user and its items; jsonl: JSON lines"
    )
    parser.add_argument(
        "--items", "--titles", type=Path, metavar="FILE", help="table of items: ids, titles, more"
    )
    for role in ROLES:
        where = " of --items" if role == "title" else ""
        parser.add_argument(
            f"--{role}-col",
            metavar="COL",
            help=f"{role} column{where}: name, or number from 1 (default: found by its name)",
        )
    _add_choice(
        parser, "--keep", ["last", "first"], "which of the rows with the same user and item to keep"
    )
    _add_choice(
        parser,
        "--bad-rows",
        ["stop", "skip"],
        "stop at the first row that can't be used, or skip and count such rows",
    )
    parser.add_argument("--sep", metavar="S", help="separator: one or more characters, or tab")
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first row holds names (default: unless columns are numbered)",
    )
    parser.add_argument(
        "--quotes",
        action=argparse.BooleanOptionalAction,
        help='whether " quotes cells (default: unless the separator is a tab)',
    )
    parser.add_argument("--encoding", default="utf-8", help="encoding of text (default: utf-8)")
    _add_cells(parser)
    _add_given_splits(parser)
    parser.set_defaults(run=_import)


def _add_cells(parser: argparse.ArgumentParser) -> None:
    _add_choice(
        parser,
        "--null-ids",
        ["stop", "skip", "keep"],
        "stop at ids such as NULL or nan, leave such rows out, or keep them as ids",
    )
    _add_choice(parser, "--decimal", [".", ","], "decimal mark of numbers")
    parser.add_argument(
        "--dates",
        choices=["dmy", "mdy"],
        help="order of day and month in dates like 07/04/2017 (default: found)",
    )
    parser.add_argument(
        "--time-unit",
        choices=["mixed", "same"],
        help="read times in seconds, milliseconds, ... by their size, or take them as they are "
        "(default: stop if a file mixes units)",
    )
    parser.add_argument(
        "--ordered",
        action="store_true",
        help="rows, or the items of a list, are in order of time: positions become the times",
    )
    parser.add_argument(
        "--items-header",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the first row of --items holds names (default: yes)",
    )
    _add_choice(
        parser,
        "--items-keep",
        ["stop", "first", "last"],
        "which of different rows of an item to keep",
    )
    parser.add_argument(
        "--all-items",
        action="store_true",
        help="keep the items of --items that have no interactions, as cold items",
    )


def _add_given_splits(parser: argparse.ArgumentParser) -> None:
    _add_choice(
        parser,
        "--validation",
        ["given", "from-train"],
        "keep the validation split of the source, or draw one from train; drawn if it has none",
    )
    _add_choice(
        parser,
        "--splits",
        ["given", "join"],
        "keep the splits of the source, or join them to a log",
    )
    parser.add_argument(
        "--seed", type=int, default=2022, metavar="N", help="of a drawn validation split"
    )


def _add_split(actions: Commands) -> None:
    parser = actions.add_parser("split", help="split an imported log into train, val and test")
    parser.add_argument("directory", type=Path, metavar="DIR", help="output of `data import`")
    _add_target(parser, "name of the log")
    _add_choice(parser, "--protocol", PROTOCOLS, "random splits the interactions of each user")
    parser.add_argument("--ratio", default="8:1:1", metavar="A:B:C", help="default: 8:1:1")
    parser.add_argument("--seed", type=int, default=2022, metavar="N", help="default: 2022")
    parser.add_argument(
        "--k-core", type=int, metavar="K", help="minimum interactions of each user and item"
    )
    parser.add_argument("--user-core", type=int, metavar="K", help="minimum of each user alone")
    parser.add_argument("--item-core", type=int, metavar="K", help="minimum of each item alone")
    _add_choice(
        parser, "--cold-items", ["keep", "drop"], "whether to keep items without train interactions"
    )
    parser.add_argument(
        "--all-items",
        action="store_true",
        help="keep the items that are left without interactions, as cold items",
    )
    parser.set_defaults(run=_split)


def _add_choice(
    parser: argparse.ArgumentParser, option: str, choices: Sequence[str], text: str
) -> None:
    """Add an option whose default is its first choice."""
    default = choices[0]
    parser.add_argument(
        option, default=default, choices=choices, help=f"{text} (default: {default})"
    )


def _add_target(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new directory")
    parser.add_argument("--name", help=f"name of the data set (default: {name})")
    parser.add_argument("--min-rating", type=float, metavar="X", help="leave out lower ratings")


def _fetch(arguments: argparse.Namespace) -> int:
    from mmssl.data.catalog import fetch

    print(fetch(arguments.name, arguments.out).message)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from mmssl.data.importing import Dialect, ImportOptions, import_data

    given = {role: getattr(arguments, f"{role}_col") for role in ROLES}
    columns = {role: column for role, column in given.items() if column is not None}
    options = ImportOptions(
        format=arguments.format,
        name=arguments.name,
        columns=columns,
        header=arguments.header,
        dialect=Dialect(arguments.sep, arguments.quotes, arguments.encoding),
        items=arguments.items,
        min_rating=arguments.min_rating,
        keep=arguments.keep,
        bad_rows=arguments.bad_rows,
        **{name: getattr(arguments, name) for name in CELLS},
    )
    print("\n".join(import_data(arguments.source, arguments.out, options).lines))
    return 0


def _split(arguments: argparse.Namespace) -> int:
    from mmssl.data.resplit import SplitOptions, split_data

    core = 1 if arguments.k_core is None else arguments.k_core
    if core < 1:
        raise InputError(f"--k-core: expected at least 1, got {core}")
    options = SplitOptions(
        ratio=_ratio(arguments.ratio),
        user_core=core if arguments.user_core is None else arguments.user_core,
        item_core=core if arguments.item_core is None else arguments.item_core,
        **{name: getattr(arguments, name) for name in SPLIT},
    )
    print("\n".join(split_data(arguments.directory, arguments.out, options).lines))
    return 0


def _ratio(text: str) -> tuple[float, ...]:
    try:
        parts = tuple(map(float, text.split(":")))
    except ValueError:
        parts = ()
    if len(parts) != 3 or not all(0 < part < math.inf for part in parts):
        raise InputError(f"--ratio: expected three positive numbers like 8:1:1, got {text!r:.60}")
    return parts


def _inspect(arguments: argparse.Namespace) -> int:
    from mmssl.data.log import is_log, log_lines, read_log, summarize_log
    from mmssl.data.readers import read_dataset
    from mmssl.data.summary import passed_over, summarize, summary_lines

    if is_log(arguments.directory):
        log, manifest = read_log(arguments.directory)
        facts, lines = summarize_log(log), log_lines(log, manifest)
    else:
        dataset = read_dataset(arguments.directory)
        unread = passed_over(arguments.directory)
        facts = {**summarize(dataset), "not_read": unread}
        lines = summary_lines(dataset, unread)
    print(json.dumps(facts, indent=1) if arguments.json else "\n".join(lines))
    return 0
