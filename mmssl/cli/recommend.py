"""`mmssl recommend`: ranked lists of items for users."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mmssl.cli.common import (
    Commands,
    add_device_options,
    add_run_options,
    printable,
    resolve_device,
    warn_unfinished,
)
from mmssl.errors import InputError

if TYPE_CHECKING:
    from mmssl.serving import Recommender, UserRecommendations

_NEW_USER = "(new)"
_BATCH = 2048  # users ranked and written at a time


def add(commands: Commands) -> None:
    """Register the command."""
    recommend = commands.add_parser("recommend", help="print the best items for users")
    add_run_options(recommend)
    who = recommend.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", nargs="+", metavar="ID", help="user ids")
    who.add_argument("--users", type=Path, metavar="FILE", help="file with one user id per line")
    who.add_argument("--all", action="store_true", help="every user")
    who.add_argument(
        "--history",
        nargs="+",
        metavar="ITEM",
        help="items of a new user (models with item weights, such as ease)",
    )
    recommend.add_argument(
        "--top-k", type=int, default=20, metavar="K", help="length of the lists (default: 20)"
    )
    recommend.add_argument(
        "--format", choices=["text", "json", "csv"], help="output format (default: text)"
    )
    recommend.add_argument("--json", action="store_true", help="same as --format json")
    recommend.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write atomically (default: stdout)"
    )
    recommend.add_argument(
        "--keep-seen", action="store_true", help="include items that the user already has"
    )
    recommend.add_argument(
        "--seen",
        choices=["train", "all"],
        help="interactions to exclude from lists: those of train (default) or of all splits",
    )
    recommend.add_argument(
        "--cold",
        action="store_true",
        help="predict the vectors of items without train interactions from their features",
    )
    recommend.add_argument(
        "--new-items",
        type=Path,
        metavar="DIR",
        help="also rank the items of a directory with NAME_feat.npy and, optionally, items.tsv",
    )
    add_device_options(recommend)
    recommend.set_defaults(run=_recommend)


def _recommend(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mmssl.serving import Recommender

    form = "json" if arguments.json else arguments.format or "text"
    if arguments.json and arguments.format not in (None, "json"):
        raise InputError(f"--json: expected --format json or none, got {arguments.format!r}")
    if arguments.top_k < 1:
        raise InputError(f"--top-k: expected at least 1, got {arguments.top_k}")
    recommender = Recommender.load(
        arguments.run_directory,
        data=arguments.data,
        device=resolve_device(arguments),
        seen=arguments.seen,
        cold=arguments.cold,
    )
    warn_unfinished(arguments.run_directory)
    if arguments.history is not None:
        recommender = recommender.for_users({_NEW_USER: arguments.history})
    users = _users(arguments, recommender)
    if arguments.new_items is not None:
        recommender = _with_new_items(recommender, arguments.new_items)
    progress = tqdm(
        total=len(users),
        unit="user",
        disable=None if arguments.out is not None or not sys.stdout.isatty() else True,
        leave=False,
    )
    with _output(arguments.out) as out, progress:
        if form == "csv":
            out.write(_csv_line(("user", "rank", "item", "score", "title")))
        for start in range(0, len(users), _BATCH):
            batch = users[start : start + _BATCH]
            lists = recommender.in_words(
                batch, arguments.top_k, filter_seen=not arguments.keep_seen
            )
            for entry in lists:
                out.write(_FORMS[form](entry))
            progress.update(len(batch))
    if arguments.out is not None:
        print(f"lists for {len(users)} users: {arguments.out}")
    return 0


def _users(arguments: argparse.Namespace, recommender: Recommender) -> Sequence[str]:
    """Return the requested ids, after checking that all of them exist."""
    if arguments.all or arguments.history is not None:
        return [recommender.users.id(index) for index in range(recommender.users.count)]
    if arguments.user is not None:
        recommender.users.indices(arguments.user)
        return list(arguments.user)
    path = arguments.users
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, got an invalid byte at offset {error.start}"
        ) from None
    users = []
    for number, line in enumerate(lines, start=1):
        if user := line.strip():
            try:
                recommender.users.index(user)
            except InputError as error:
                raise InputError(f"{path}: line {number}: {error}") from None
            users.append(user)
    if not users:
        raise InputError(f"{path}: expected one user id per line, got none")
    return users


def _with_new_items(recommender: Recommender, folder: Path) -> Recommender:
    from mmssl.data.npy import read_features
    from mmssl.data.readers import FEATURE_SUFFIX
    from mmssl.data.tables import read_table

    fitted = recommender.tables.feature_map
    if fitted is None:
        _ = recommender.tables.vectors  # says so if the model has weights between items instead
        raise InputError(
            f"--new-items {folder}: expected a run with item features, got one without"
        )
    features = {
        name: read_features(folder / f"{name}{FEATURE_SUFFIX}") for name in fitted.modalities
    }
    count = len(next(iter(features.values())))
    table = read_table(folder / "items.tsv", "item", count)
    ids = None if table is None else table.column("id")
    return recommender.with_items(
        ids or tuple(f"new-{row}" for row in range(count)),
        features,
        None if table is None else table.column("title"),
    )


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    """Provide standard output, or a file that is renamed to ``path`` once it is complete."""
    if path is None:
        yield sys.stdout
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: can't write the file: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _text(entry: UserRecommendations) -> str:
    lines = [f"user {entry.user}", "  history: " + "; ".join(entry.history)]
    lines += [f"  {n:3d}. {score:8.4f}  {label}" for n, (label, score) in enumerate(entry.items, 1)]
    return "\n".join(map(printable, lines)) + "\n"


def _json(entry: UserRecommendations) -> str:
    return json.dumps(entry._asdict()) + "\n"


def _csv(entry: UserRecommendations) -> str:
    rows = zip(entry.item_ids, entry.items, strict=True)
    return "".join(
        _csv_line((entry.user, rank, item, f"{score:.6g}", label))
        for rank, (item, (label, score)) in enumerate(rows, 1)
    )


def _csv_line(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


_FORMS = {"text": _text, "json": _json, "csv": _csv}
