"""Tables read by pyarrow: the cells of a text, and Parquet files.

Pyarrow comes with ``pip install "mmssl[data]"`` and is imported when a file is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmssl.data.blocks import row_numbers
from mmssl.data.importing.encode import CellColumn
from mmssl.data.importing.progress import rows_bar
from mmssl.data.importing.table import Column, RawTable
from mmssl.errors import InputError
from mmssl.extras import require
from mmssl.files import file_sha256

if TYPE_CHECKING:
    import pyarrow

_BLOCK = 1 << 24  # bytes that pyarrow parses at a time
_MAX_BLOCK = (1 << 31) - 1
_ROWS = 1 << 18  # rows of a Parquet file that are read at a time
_BUFFER = 1 << 20  # bytes of a Parquet file that are read at a time, for each column


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
    require("pyarrow", "data", f"{path}: importing tables needs pyarrow")


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
) -> tuple[list[pyarrow.ChunkedArray], list[BadRow]]:
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
    return [table.column(name) for name in wanted], bad


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
    """A Parquet file, see :class:`~mmssl.data.importing.table.TableFile`; larger than memory."""

    unit = "row"
    is_text = False

    def __init__(self, path: Path) -> None:
        """Read the schema.

        Raises:
            InputError: Pyarrow is missing, or the file is not Parquet.
        """
        require_pyarrow(path)
        import pyarrow as pa
        from pyarrow import parquet

        self.path = path
        try:
            self.sha256 = file_sha256(path)
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
        try:
            # With a buffer, pages are read one by one, not a whole row group at once.
            self._file = parquet.ParquetFile(pa.OSFile(os.fspath(path)), buffer_size=_BUFFER)
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
        total = self._file.metadata.num_rows
        try:
            readers = [_ParquetColumn(self.path, self._schema.field(at), total) for at in positions]
            batches = self._file.iter_batches(_ROWS, columns=names)
            with rows_bar(self.path, total) as bar:
                for batch in batches:
                    for name, reader in zip(names, readers, strict=True):
                        reader.add(batch.column(name))
                    bar.update(batch.num_rows)
            columns = tuple(reader.column() for reader in readers)
            del readers, batches
            pa.default_memory_pool().release_unused()
            if any(column.size != total for column in columns):
                raise InputError(f"{self.path}: expected {total} rows, as it states, got others")
        except MemoryError:
            raise InputError(
                f"{self.path}: expected columns that fit in memory, got {total:,} rows"
            ) from None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: can't be read as Parquet: {_line(error)}") from None
        return RawTable(columns, row_numbers(total))

    def unfit_for_ids(self, position: int) -> str | None:
        """Return the type of a column that can't hold ids, such as numbers with fractions."""
        from pyarrow import types

        kind: Any = self._schema.field(position).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        fits = types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)
        return None if fits else str(kind)


class _ParquetColumn:
    """A column that is read in batches: numbers as they are, all else and null as text."""

    def __init__(self, path: Path, field: pyarrow.Field, total: int) -> None:
        from pyarrow import types

        self._path, self._name = path, field.name
        self._check(field.type)
        plain = types.is_integer(field.type) or types.is_floating(field.type)
        self._plain = plain and field.type != "uint64"
        self._cells = CellColumn(total)

    def add(self, cells: pyarrow.Array) -> None:
        """Add a batch."""
        import pyarrow as pa

        if self._plain and not cells.null_count:
            self._cells.add_numbers(cells.to_numpy())
        else:
            self._cells.add_texts(cells.cast(pa.string()).fill_null(""))

    def column(self) -> Column:
        """Return the column."""
        return self._cells.column()

    def _check(self, found: Any) -> None:
        from pyarrow import types

        kind = found.value_type if types.is_dictionary(found) else found
        texts = (types.is_string, types.is_large_string, types.is_integer)
        numbers = (types.is_floating, types.is_decimal, types.is_timestamp, types.is_date)
        if not any(fits(kind) for fits in texts + numbers):
            raise InputError(
                f"{self._path}: column {self._name!r}: expected text, numbers or times, got "
                f"{str(found)[:60]}"
            )


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
