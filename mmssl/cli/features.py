"""`mmssl features`: make a modality of the items' texts or pictures."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmssl.cli.common import Commands, Parser, resolve_device
from mmssl.errors import InputError

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.features.content import Content
    from mmssl.features.output import Output, Written

SHOWN_IDS = 5


def add(commands: Commands) -> None:
    """Registers the command."""
    features = commands.add_parser("features", help="make item features of texts or pictures")
    actions = features.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    text = actions.add_parser("text", help="one row per item from its text")
    _add_text_options(text)
    _add_output_options(text, name="text")
    text.set_defaults(run=_text)


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the data set")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="what to read; again for more, joined (default: title, or text of a --from table)",
    )
    _add_table_options(parser, "texts")
    parser.add_argument(
        "--encoder",
        default="tfidf",
        choices=["tfidf", "minilm", "sentence-transformers"],
        help="default: tfidf, words weighted and reduced by an SVD",
    )
    parser.add_argument("--model", metavar="NAME", help="sentence-transformers: folder or hub name")
    parser.add_argument("--dim", type=int, metavar="D", help="tfidf: dimensions (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="tfidf: seed of the SVD (default: 0)")
    _add_device_options(parser)


def _add_table_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--from",
        dest="table",
        type=Path,
        metavar="FILE",
        help=f"table of item ids and {what}: .csv, .tsv, .jsonl, also .gz",
    )
    parser.add_argument("--id-column", metavar="NAME", help="of the table (default: its first)")
    parser.add_argument("--encoding", default="utf-8", help="of the table (default: utf-8)")
    parser.add_argument(
        "--on-duplicate",
        default="error",
        choices=["error", "first", "join"],
        help="two different rows of one item (default: error)",
    )


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.set_defaults(ops=None)  # for resolve_device(): no op is used here


def _add_output_options(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--name", default=name, help=f"of the modality: NAME_feat.npy (default: {name})"
    )
    parser.add_argument(
        "--normalize",
        default="none",
        choices=["none", "l2", "zscore"],
        help="rows of length 1, or columns of mean 0 and variance 1, after --pca",
    )
    parser.add_argument("--pca", type=int, metavar="D", help="keep D principal components")
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32"])
    parser.add_argument("--force", action="store_true", help="replace features of this name")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _text(arguments: argparse.Namespace) -> int:
    from mmssl.features.content import item_ids, read_content, read_item_table
    from mmssl.features.text import extract_text

    _clean_up_on_sigterm()
    _check_text_options(arguments)
    output = _output(arguments)
    dataset = _dataset(arguments)
    if arguments.table is None:
        content = read_item_table(arguments.directory, dataset.num_items, arguments.column)
    else:
        content = read_content(
            arguments.table,
            item_ids(dataset),
            arguments.column,
            id_column=arguments.id_column,
            encoding=arguments.encoding,
            on_duplicate=arguments.on_duplicate,
        )
    written = extract_text(content.cells, _text_encoder(arguments), output, content.source)
    _print_written(written, dataset, content, "text")
    return 0


def _check_text_options(arguments: argparse.Namespace) -> None:
    """Options that say nothing with the others would be read as if they did."""
    if arguments.encoder == "tfidf" and arguments.model is not None:
        raise InputError("--model: expected with --encoder sentence-transformers, got tfidf")
    if arguments.encoder != "tfidf" and arguments.dim is not None:
        raise InputError(f"--dim: expected with --encoder tfidf, got {arguments.encoder} (--pca?)")
    if arguments.encoder == "minilm" and arguments.model is not None:
        raise InputError("--model: expected with --encoder sentence-transformers, got minilm")
    if arguments.table is None and arguments.id_column is not None:
        raise InputError("--id-column: expected with --from FILE")


def _text_encoder(arguments: argparse.Namespace) -> Any:
    if arguments.encoder == "tfidf":
        from mmssl.features.tfidf import TfidfEncoder

        return TfidfEncoder(arguments.dim, arguments.seed)
    from mmssl.features.sentence import SentenceEncoder

    device = resolve_device(arguments)
    return SentenceEncoder(arguments.model, arguments.batch_size, device, not arguments.quiet)


def _output(arguments: argparse.Namespace) -> Output:
    from mmssl.features.output import Output

    return Output(
        folder=arguments.directory,
        name=arguments.name,
        pca=arguments.pca,
        normalize=arguments.normalize,
        dtype=arguments.dtype,
        force=arguments.force,
    )


def _dataset(arguments: argparse.Namespace) -> InteractionDataset:
    """The data set without its features."""
    from mmssl.data.readers import read_dataset

    return read_dataset(arguments.directory, modalities=[])


def _print_written(
    written: Written, dataset: InteractionDataset, content: Content, what: str
) -> None:
    from mmssl.features.content import item_ids

    record, count = written.record, dataset.num_items
    print(
        f"{written.path}: {count:,} items, {written.shape[1]} dimensions, {record['dtype']}, "
        f"by {record['encoder']['name']}"
    )
    if written.missing.size:
        ids = item_ids(dataset)
        first = [ids[item] for item in written.missing[:SHOWN_IDS]]
        print(
            f"  {written.missing.size:,} items without {what} ({written.missing.size / count:.1%}) "
            f"have zero rows: {_listed(first, written.missing.size)}"
        )
    if content.unknown_rows:
        print(f"  {content.unknown_rows:,} rows of items that the data set doesn't have: skipped")
    if content.repeated_rows:
        print(f"  {content.repeated_rows:,} rows of items that had one before")


def _listed(names: Sequence[str], total: int) -> str:
    return ", ".join(names) + (", ..." if total > len(names) else "")


def _clean_up_on_sigterm() -> None:
    """SIGTERM leaves as Ctrl-C does, through the ``finally`` that removes what is half-written."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
