"""What pyarrow does for the importers: plain text fast, and Parquet.

Needs ``pip install "mmssl[data]"``; without it text is read by Python's csv, Parquet not at all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data.importing.table import Column, RawTable, read_bytes
from mmssl.errors import InputError

if TYPE_CHECKING:
    import pyarrow

_BLOCK = 1 << 24  # bytes per task; a line that is longer is left to the reference


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether pyarrow is installed."""
    return importlib.util.find_spec("pyarrow") is not None


def read_plain_text(
    content: bytes, separator: str, width: int, places: Sequence[int], *, skip_first: bool
) -> tuple[Column, ...] | None:
    """Columns of a text without quotes, None when there is anything odd about it.

    Args:
        content: UTF-8.
        separator: One ASCII character.
        width: Cells of every row.
        places: Which columns, from 0.
        skip_first: The first row holds names.
    """
    import pyarrow as pa
    from pyarrow import csv

    if content.count(b"\r") != content.count(b"\r\n"):
        return None  # line ends of old Macs
    names = [f"c{place}" for place in range(width)]
    wanted = [names[place] for place in places]
    try:
        table = csv.read_csv(
            pa.BufferReader(content),
            read_options=csv.ReadOptions(column_names=names, block_size=_BLOCK),
            parse_options=csv.ParseOptions(
                delimiter=separator, quote_char=False, escape_char=False, newlines_in_values=False
            ),
            convert_options=csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=False,
            ),
        )
        if skip_first:
            table = table.slice(1)
        return tuple(_encoded(table.column(name)) for name in wanted)
    except pa.ArrowException:
        return None


class ParquetFile:
    """A Parquet file, see :class:`~mmssl.data.importing.table.TableFile`."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        """Reads the file and its schema.

        Raises:
            InputError: pyarrow is missing, or the file is no Parquet.
        """
        if not available():
            raise InputError(
                f'{path}: Parquet needs pyarrow, which is not installed: pip install "mmssl[data]"'
            )
        import pyarrow as pa
        from pyarrow import parquet

        self.path = path
        content, self.sha256 = read_bytes(path)
        try:
            self._file = parquet.ParquetFile(pa.BufferReader(content))
            self._schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"{path}: expected Parquet, got something else: {_line(error)}"
            ) from None
        self.names: tuple[str, ...] | None = tuple(self._schema.names)
        self.first: tuple[str, ...] = ()
        self.width = len(self._schema.names)

    def read(self, places: Sequence[int], *, exact: bool = True) -> RawTable:
        """The columns at ``places``."""
        import pyarrow as pa

        names = [self._schema.names[place] for place in places]
        try:
            table = self._file.read(columns=names)
            columns = tuple(_encoded(self._as_text(table.column(name), name)) for name in names)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: can't be read as Parquet: {_line(error)}") from None
        return RawTable(columns, table.num_rows, np.arange(1, table.num_rows + 1))

    def unfit_for_ids(self, place: int) -> str | None:
        """The type of a column that can't hold ids: 1.0 is none, nor is a moment."""
        from pyarrow import types

        kind: Any = self._schema.field(place).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        fits = types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)
        return None if fits else str(kind)

    def _as_text(self, column: pyarrow.ChunkedArray, name: str) -> pyarrow.ChunkedArray:
        """As strings, nothing where there is nothing."""
        import pyarrow as pa
        from pyarrow import compute, types

        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        texts = (types.is_string, types.is_large_string, types.is_integer)
        numbers = (types.is_floating, types.is_decimal, types.is_timestamp, types.is_date)
        if not any(fits(kind) for fits in texts + numbers):
            raise InputError(
                f"{self.path}: column {name!r}: expected text, numbers or times, got {column.type}"
            )
        return compute.fill_null(column.cast(pa.string()), "")


def _encoded(column: pyarrow.ChunkedArray) -> Column:
    """Codes and different values of a column of strings."""
    import pyarrow as pa

    whole = column.dictionary_encode().unify_dictionaries()
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in whole.chunks]
    values = whole.chunk(0).dictionary.to_pylist() if whole.num_chunks else []
    joined = np.concatenate(codes) if codes else np.empty(0)
    assert pa.types.is_dictionary(whole.type)
    return Column(joined.astype(np.int64), values)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
