"""Parquet, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import HeadraceError
from producers.formats.base import BadRow, ReadOptions, Row

_BATCH = 2_000


class ParquetTable:
    """An opened Parquet file."""

    def __init__(self, file: IO[bytes], name: str, options: ReadOptions) -> None:
        try:
            self._file = pq.ParquetFile(file, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise HeadraceError(
                f"{name} is no whole Parquet file ({_line(error)}): it may be truncated, and "
                "without its end nothing of it can be read; fetch it again"
            ) from None
        self._name = name
        meta = self._file.metadata
        self.rows: int = meta.num_rows
        self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)
        self.done = 0
        largest = max(
            (meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)), default=0
        )
        if largest > options.max_load_bytes:
            raise HeadraceError(
                f"{name} has a row group of {largest:,} bytes, more than {options.max_load_bytes:,}"
                ": write it with smaller row groups"
            )

    def __iter__(self) -> Iterator[Row | BadRow]:
        number = 0
        try:
            for batch in self._file.iter_batches(batch_size=_BATCH, use_threads=False):
                for value in _values(batch):
                    number += 1
                    self.done = number
                    yield Row(number, value)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise HeadraceError(
                f"{self._name} is damaged behind row {number:,} ({_line(error)}). "
                "What came before was read; fetch the file again for the rest"
            ) from None

    def fraction(self) -> float | None:
        return self.done / self.rows if self.rows else 1.0


def _values(batch: Any) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    columns = [_column(column) for column in batch.columns]
    for cells in zip(*columns, strict=True):
        yield dict(zip(names, cells, strict=True))


def _column(column: Any) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # Python's datetime ends at microseconds
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    values: list[Any] = column.to_pylist()
    return values


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
