"""`mmssl features`: make a modality of the items' texts or pictures."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mmssl.cli.common import Commands, Parser, resolve_device
from mmssl.errors import InputError

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.features.content import Content
    from mmssl.features.image import ImageEncoder
    from mmssl.features.output import Output, Written
    from mmssl.features.text import TextEncoder

SHOWN_IDS = 5


def add(commands: Commands) -> None:
    """Registers the command."""
    features = commands.add_parser("features", help="make item features of texts or pictures")
    actions = features.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    text = actions.add_parser("text", help="one row per item from its text")
    _add_text_options(text)
    _add_output_options(text, name="text")
    text.set_defaults(run=_text)
    image = actions.add_parser("image", help="one row per item from its picture")
    _add_image_options(image)
    _add_output_options(image, name="image")
    image.set_defaults(run=_image)


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


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the data set")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="pictures named by item id, such as 42.jpg; with --from: where its paths start",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="paths of the --from table (default: path or image)"
    )
    _add_table_options(parser, "paths")
    parser.add_argument(
        "--encoder",
        default="timm",
        choices=["timm", "torchvision", "open_clip", "torchscript"],
        help="default: timm",
    )
    parser.add_argument("--model", metavar="NAME", help="as the library calls it")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="safetensors or tensors only; 'random'; default: the library's, downloaded",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    parser.add_argument("--size", type=int, metavar="S", help="input size (default: the model's)")
    parser.add_argument(
        "--resize", type=int, metavar="R", help="shorter side before the central cut of --size"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help="default: the model's"
        )
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes")
    parser.add_argument(
        "--strict", action="store_true", help="stop at a picture that can't be read"
    )
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
    with _leaving_on_sigterm():
        encoder = _text_encoder(arguments)
        written = extract_text(content.cells, encoder, output, content.source)
    _print_written(written, dataset, content, "text")
    return 0


def _image(arguments: argparse.Namespace) -> int:
    from mmssl.features.image import extract_images, require_pillow

    require_pillow()
    output = _output(arguments)
    dataset = _dataset(arguments)
    content = _pictures(arguments, dataset)
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
    _print_written(extracted.written, dataset, content, "picture")
    broken = extracted.broken
    if broken:
        print(f"  {len(broken):,} of them have a picture that can't be read:")
    for item, reason in list(broken.items())[:SHOWN_IDS]:
        print(f"    {content.cells[item]}: {reason}")
    if len(broken) > SHOWN_IDS:
        print("    ...")
    return 0


def _pictures(arguments: argparse.Namespace, dataset: InteractionDataset) -> Content:
    """A path per item."""
    from mmssl.features.content import item_ids, read_content
    from mmssl.features.pictures import find_pictures

    if arguments.table is None:
        if arguments.images is None:
            raise InputError("features image: expected --images FOLDER or --from FILE, got neither")
        if arguments.column is not None or arguments.id_column is not None:
            raise InputError("--column, --id-column: expected with --from FILE")
        return find_pictures(arguments.images, item_ids(dataset))
    content = read_content(
        arguments.table,
        item_ids(dataset),
        [arguments.column] if arguments.column else [],
        defaults=("path", "image"),
        id_column=arguments.id_column,
        encoding=arguments.encoding,
        on_duplicate=arguments.on_duplicate,
    )
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
    """Options that say nothing with the others would be read as if they did."""
    if arguments.encoder == "tfidf" and arguments.model is not None:
        raise InputError("--model: expected with --encoder sentence-transformers, got tfidf")
    if arguments.encoder != "tfidf" and arguments.dim is not None:
        raise InputError(f"--dim: expected with --encoder tfidf, got {arguments.encoder} (--pca?)")
    if arguments.encoder == "minilm" and arguments.model is not None:
        raise InputError("--model: expected with --encoder sentence-transformers, got minilm")
    if arguments.table is None and arguments.id_column is not None:
        raise InputError("--id-column: expected with --from FILE")


def _text_encoder(arguments: argparse.Namespace) -> TextEncoder:
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


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves as Ctrl-C does, through the ``finally`` that removes what is half-written."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
