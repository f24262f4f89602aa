"""`mmssl features`: computes item features from texts or pictures."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmssl.cli.common import Commands, Parser, resolve_device
from mmssl.errors import InputError

if TYPE_CHECKING:
    from mmssl.features.content import Content, Items
    from mmssl.features.image import ImageEncoder
    from mmssl.features.output import Output, Written

SHOWN_IDS = 5


def add(commands: Commands) -> None:
    """Register the command."""
    features = commands.add_parser("features", help="compute item features from texts or pictures")
    actions = features.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    text = actions.add_parser("text", help="compute one row per item from its text")
    _add_text_options(text)
    _add_output_options(text, name="text")
    text.set_defaults(run=_text)
    image = actions.add_parser("image", help="compute one row per item from its picture")
    _add_image_options(image)
    _add_output_options(image, name="image")
    image.set_defaults(run=_image)


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="column to read; repeat to join several (default: title, or text of a --from table)",
    )
    _add_input_options(parser, "texts")
    encoders = ["tfidf", "minilm", "sentence-transformers"]
    parser.add_argument(
        "--encoder", default="tfidf", choices=encoders, help="text encoder (default: tfidf)"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="sentence-transformers: folder or Hugging Face Hub name"
    )
    parser.add_argument("--dim", type=int, metavar="D", help="tfidf: dimensions (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="tfidf: seed of the SVD (default: 0)")
    for option, text in (
        ("--save", "tfidf: write the words and the projection, for --load"),
        ("--load", "tfidf: read the words and the projection of a data set, for new items"),
    ):
        parser.add_argument(option, type=Path, metavar="FILE", help=text)
    _add_device_options(parser)


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="pictures named by item id, such as 42.jpg; with --from, the base of its paths",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="column with the paths in the --from table (default: path or image)",
    )
    _add_input_options(parser, "paths")
    libraries = ["timm", "torchvision", "open_clip", "torchscript"]
    parser.add_argument(
        "--encoder", default="timm", choices=libraries, help="source of the encoder (default: timm)"
    )
    parser.add_argument("--model", metavar="NAME", help="name of the model in the library")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="safetensors or torch.save of tensors only, or 'random' (default: download the "
        "library's weights)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of random weights (default: 0)"
    )
    parser.add_argument(
        "--size", type=int, metavar="S", help="input size in pixels (default: the model's)"
    )
    parser.add_argument(
        "--resize",
        type=int,
        metavar="R",
        help="length of the shorter side before the central crop to --size (default: the model's)",
    )
    for name, words in (("mean", "mean"), ("std", "standard deviation")):
        text = f"{words} of the color channels (default: the model's)"
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help=text)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of decoding processes (default: one per core, at most 8)",
    )
    parser.add_argument("--strict", action="store_true", help="fail if a picture can't be read")
    _add_device_options(parser)


def _add_input_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "directory",
        type=Path,
        metavar="DIR",
        help="directory of the data set, or of new items with an items.tsv only",
    )
    parser.add_argument(
        "--from",
        dest="table",
        type=Path,
        metavar="FILE",
        help=f"table of item ids and {what}: .csv, .tsv, .jsonl or .json, compressed or not",
    )
    parser.add_argument(
        "--id-column", metavar="NAME", help="column with the item id (default: found)"
    )
    parser.add_argument(
        "--encoding", default="utf-8", help="text encoding of the table (default: utf-8)"
    )
    parser.add_argument(
        "--on-duplicate",
        default="error",
        choices=["error", "first", "join"],
        help="handling of different rows for the same item (default: error)",
    )


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="items per batch (default: 64)"
    )
    devices = ["auto", "cpu", "cuda"]
    parser.add_argument("--device", default="auto", choices=devices, help="device of the encoder")
    parser.set_defaults(ops=None)  # resolve_device() reads it, but this command uses no op


def _add_output_options(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--name",
        default=name,
        help=f"name of the modality, stored in NAME_feat.npy (default: {name})",
    )
    parser.add_argument(
        "--normalize",
        default="none",
        choices=["none", "l2", "zscore"],
        help="l2: rows of length 1; zscore: columns of mean 0 and variance 1 (default: none)",
    )
    parser.add_argument(
        "--pca", type=int, metavar="D", help="keep D principal components, before --normalize"
    )
    types = ["float16", "float32"]
    parser.add_argument(
        "--dtype", default="float16", choices=types, help="type in the file (default: float16)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace existing features of this name"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def _text(arguments: argparse.Namespace) -> int:
    from mmssl.features.content import read_item_table, read_items
    from mmssl.features.text import extract_text

    _check_text_options(arguments)
    output = _output(arguments)
    items = read_items(arguments.directory)
    if items.is_new and arguments.encoder == "tfidf" and arguments.load is None:
        raise InputError(
            f"{arguments.directory}: expected --load FILE for new items, the words and projection "
            "that `mmssl features text DATASET --save FILE` has kept, got none"
        )
    if arguments.table is None:
        content = read_item_table(arguments.directory, items.num_items, arguments.column)
    else:
        content = _table(arguments, items, arguments.column)
    with _leaving_on_sigterm():
        encoder = _text_encoder(arguments)
        written = extract_text(content.cells, encoder, output, content.source)
        if arguments.save is not None:
            encoder.fitted.save(arguments.save)
    _print_written(written, items, content, "text")
    if arguments.save is not None:
        print(f"  words and projection, for --load: {arguments.save}")
    return 0


def _image(arguments: argparse.Namespace) -> int:
    from mmssl.features.content import read_items
    from mmssl.features.image import extract_images, require_pillow

    require_pillow()
    output = _output(arguments)
    items = read_items(arguments.directory)
    content = _pictures(arguments, items)
    with _leaving_on_sigterm():
        extracted = extract_images(
            content.cells,
            _image_encoder(arguments),
            output,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            device=resolve_device(arguments),
            strict=arguments.strict,
            show_progress=not arguments.quiet,
            source=content.source,
        )
    _print_written(extracted.written, items, content, "picture")
    broken = extracted.broken
    if broken:
        print(f"  {len(broken):,} of these have a picture that can't be read:")
    for item, reason in list(broken.items())[:SHOWN_IDS]:
        print(f"    {content.cells[item]}: {reason}")
    if len(broken) > SHOWN_IDS:
        print("    ...")
    return 0


def _table(
    arguments: argparse.Namespace, items: Items, columns: Sequence[str], **options: Any
) -> Content:
    """Read the columns of the ``--from`` table."""
    from mmssl.features.content import read_content

    names = ("id_column", "encoding", "on_duplicate")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    return read_content(arguments.table, items.ids, columns, **given, **options)


def _pictures(arguments: argparse.Namespace, items: Items) -> Content:
    """Return the path of each item's picture."""
    from mmssl.features.pictures import find_pictures

    if arguments.table is None:
        if arguments.images is None:
            raise InputError("features image: expected --images FOLDER or --from FILE, got neither")
        if arguments.column is not None or arguments.id_column is not None:
            raise InputError("--column, --id-column: expected --from FILE, got none")
        return find_pictures(arguments.images, items.ids)
    columns = [arguments.column] if arguments.column else []
    content = _table(arguments, items, columns, defaults=("path", "image"))
    start = arguments.images or arguments.table.parent
    return content._replace(
        cells=tuple(str(start / cell) if cell else "" for cell in content.cells)
    )


def _image_encoder(arguments: argparse.Namespace) -> ImageEncoder:
    from mmssl.features.encoders import load_encoder

    return load_encoder(
        arguments.encoder,
        arguments.model,
        arguments.weights,
        seed=arguments.seed,
        size=arguments.size,
        resize=arguments.resize,
        mean=None if arguments.mean is None else tuple(arguments.mean),
        std=None if arguments.std is None else tuple(arguments.std),
    )


def _check_text_options(arguments: argparse.Namespace) -> None:
    """Reject options that the other options would silently disable."""
    if arguments.encoder != "sentence-transformers" and arguments.model is not None:
        raise InputError(
            f"--model: expected --encoder sentence-transformers, got {arguments.encoder}"
        )
    if arguments.encoder != "tfidf" and arguments.dim is not None:
        raise InputError(
            f"--dim: expected --encoder tfidf, got {arguments.encoder}; --pca reduces its features"
        )
    if arguments.table is None and arguments.id_column is not None:
        raise InputError("--id-column: expected --from FILE, got none")
    for option in ("save", "load"):
        if getattr(arguments, option) is None:
            continue
        if arguments.encoder != "tfidf":
            raise InputError(f"--{option}: expected --encoder tfidf, got {arguments.encoder}")
        if arguments.pca is not None or arguments.normalize == "zscore":
            raise InputError(
                f"--{option}: expected no --pca or --normalize zscore, which are fitted to the "
                "items of a data set"
            )
    if arguments.load is not None and (arguments.save is not None or arguments.dim is not None):
        raise InputError("--load: expected no --save or --dim, which fit words and a projection")


def _text_encoder(arguments: argparse.Namespace) -> Any:
    if arguments.encoder == "tfidf":
        from mmssl.features.tfidf import FittedTfidf, TfidfEncoder

        if arguments.load is not None:
            return FittedTfidf.load(arguments.load)
        return TfidfEncoder(arguments.dim, arguments.seed)
    from mmssl.features.sentence import SentenceEncoder

    device = resolve_device(arguments)
    return SentenceEncoder(arguments.model, arguments.batch_size, device, not arguments.quiet)


def _output(arguments: argparse.Namespace) -> Output:
    from mmssl.features.output import Output

    fields = ("name", "pca", "normalize", "dtype", "force")
    return Output(folder=arguments.directory, **{name: getattr(arguments, name) for name in fields})


def _print_written(written: Written, items: Items, content: Content, what: str) -> None:
    record, count = written.record, items.num_items
    print(
        f"{written.path}: {count:,} items, {written.shape[1]} dimensions, {record['dtype']}, "
        f"by {record['encoder']['name']}"
    )
    if written.missing.size:
        first = [items.ids[item] for item in written.missing[:SHOWN_IDS]]
        print(
            f"  {written.missing.size:,} items without {what} ({written.missing.size / count:.1%}) "
            f"have zero rows: {_listed(first, written.missing.size)}"
        )
    if content.unknown_rows:
        print(f"  skipped {content.unknown_rows:,} rows of items that are not in the data set")
    if content.repeated_rows:
        print(f"  {content.repeated_rows:,} rows repeat an item of an earlier row")


def _listed(names: Sequence[str], total: int) -> str:
    return ", ".join(names) + (", ..." if total > len(names) else "")


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that ``finally`` blocks remove incomplete files."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
