"""Tables read by pyarrow: the cells of a text, and Parquet files.

Pyarrow comes with ``pip install "mmssl[data]"`` and is imported when a file is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmssl.data.importing.table import Column, Numbers, RawTable, read_bytes
from mmssl.errors import InputError

if TYPE_CHECKING:
    import pyarrow

_BLOCK = 1 << 24  # bytes that pyarrow parses at a time
_MAX_BLOCK = (1 << 31) - 1


class BadRow(NamedTuple):
    """A row of another width than the others."""

    number: int
    """From 0, counted over the rows that are not empty lines."""
    width: int


def require_pyarrow(path: Path) -> None:
    """Check that pyarrow can be imported to read a file.

    Raises:
        InputError: It is not installed; the message names the command that installs it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path}: importing tables needs pyarrow: expected it installed "
            f'(pip install "mmssl[data]"), got {error}'
        ) from None


def read_row(row: bytes, separator: str, *, quoted: bool) -> list[str]:
    """Return the cells of one row, however many."""
    from pyarrow import csv

    possible = [f"f{number}" for number in range(row.count(separator.encode()) + 1)]
    table = _read(
        row,
        separator,
        quoted,
        csv.ReadOptions(autogenerate_column_names=True, block_size=_block_size(len(row))),
        _as_strings(possible),
    )
    return [column[0].as_py() for column in table.columns]


def read_cells(
    content: bytes,
    separator: str,
    width: int,
    positions: Sequence[int],
    *,
    quoted: bool,
    skip_first: bool,
    longest: int,
) -> tuple[tuple[Column, ...], list[BadRow]]:
    """Read columns of a text as strings.

    Args:
        content: UTF-8 text of whole rows; where it is quoted, it is well-formed.
        separator: One ASCII character.
        width: Number of cells of a row.
        positions: Columns to read, from 0.
        quoted: Whether ``"`` quotes cells.
        skip_first: Whether the first row holds names.
        longest: Number of bytes of the longest row.

    Returns:
        The columns of the rows that have ``width`` cells, and the other rows.
    """
    from pyarrow import csv

    names = [f"c{position}" for position in range(width)]
    wanted = [names[position] for position in positions]
    bad: list[BadRow] = []

    def skip(row: Any) -> str:
        bad.append(BadRow(row.number - 1, row.actual_columns))
        return "skip"

    table = _read(
        content,
        separator,
        quoted,
        # Rows are numbered for `skip` on a single thread only; dictionaries take longer anyway.
        csv.ReadOptions(column_names=names, block_size=_block_size(longest), use_threads=False),
        _as_strings(wanted, wanted),
        skip,
    )
    table = table.slice(1 if skip_first else 0)
    return tuple(_encoded(table.column(name)) for name in wanted), bad


def _as_strings(names: Sequence[str], included: Sequence[str] = ()) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    return csv.ConvertOptions(
        include_columns=included,
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=False,
    )


def _read(
    content: bytes, separator: str, quoted: bool, read: Any, convert: Any, skip: Any = None
) -> pyarrow.Table:
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(
        delimiter=separator,
        quote_char='"' if quoted else False,
        newlines_in_values=quoted,
        invalid_row_handler=skip,
    )
    return csv.read_csv(pa.BufferReader(content), read, parse, convert)


def _block_size(longest: int) -> int:
    """Return the bytes to parse at a time: a row may cross one border of blocks, not two."""
    if longest >= _MAX_BLOCK:
        raise InputError(f"expected rows of less than 2 GiB, got one of {longest:,} bytes")
    return max(_BLOCK, longest + 1)


class ParquetFile:
    """A Parquet file, see :class:`~mmssl.data.importing.table.TableFile`."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        """Read the file and its schema.

        Raises:
            InputError: Pyarrow is missing, or the file is not Parquet.
        """
        require_pyarrow(path)
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

    def read(self, positions: Sequence[int]) -> RawTable:
        """Read the columns at ``positions``."""
        import pyarrow as pa

        names = [self._schema.names[position] for position in positions]
        try:
            table = self._file.read(columns=names)
            columns = tuple(self._column(table.column(name), name) for name in names)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: can't be read as Parquet: {_line(error)}") from None
        return RawTable(columns, np.arange(1, table.num_rows + 1))

    def unfit_for_ids(self, position: int) -> str | None:
        """Return the type of a column that can't hold ids, such as numbers with fractions."""
        from pyarrow import types

        kind: Any = self._schema.field(position).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        fits = types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)
        return None if fits else str(kind)

    def _column(self, column: pyarrow.ChunkedArray, name: str) -> Column:
        from pyarrow import types

        plain = types.is_integer(column.type) or types.is_floating(column.type)
        if plain and not column.null_count and column.type != "uint64":
            array = column.to_numpy()
            whole = array.astype(np.int64 if types.is_integer(column.type) else np.float64)
            return Column(np.arange(whole.size), Numbers(whole))
        return _encoded(self._as_text(column, name))

    def _as_text(self, column: pyarrow.ChunkedArray, name: str) -> pyarrow.ChunkedArray:
        """Return the cells as strings, null as the empty one."""
        import pyarrow as pa
        from pyarrow import compute, types

        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        texts = (types.is_string, types.is_large_string, types.is_integer)
        numbers = (types.is_floating, types.is_decimal, types.is_timestamp, types.is_date)
        if not any(fits(kind) for fits in texts + numbers):
            raise InputError(
                f"{self.path}: column {name!r}: expected text, numbers or times, got "
                f"{str(column.type)[:60]}"
            )
        return compute.fill_null(column.cast(pa.string()), "")


def _encoded(column: pyarrow.ChunkedArray) -> Column:
    """Return the codes and the distinct values of a column of strings."""
    whole = column.dictionary_encode().unify_dictionaries()
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in whole.chunks]
    values = whole.chunk(0).dictionary.to_pylist() if whole.num_chunks else []
    joined = np.concatenate(codes) if codes else np.empty(0)
    return Column(joined.astype(np.int64), values)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
