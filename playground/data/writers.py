"""Rows written into data files one by one: JSONL and Parquet. A file appears under its name once it is whole, and
its owner alone may read it.
"""

import importlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from playground.data.parquet import BATCH, pyarrow
from playground.data.raw_rows import Row

PRIVATE = 0o600


class Writer(Protocol):
    """Writes a file that appears under its name once it is whole."""

    rows: int

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None: ...
    def write(self, row: Row) -> None:
        """Add a row."""


def open_private(path: Path) -> TextIO:
    """A new text file that nobody but its owner may read, opened to be written."""
    path.touch(mode=PRIVATE)
    return path.open("w", encoding="utf-8", newline="\n")


class JsonlWriter:
    """One JSON object a line, in UTF-8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._partial = path.with_name(f".{path.name}.partial")

    def __enter__(self) -> Self:
        self._file = open_private(self._partial)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        _keep(self._partial, self.path, error)

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.rows += 1


class ParquetWriter:
    """Parquet, in groups of BATCH rows. It needs pyarrow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._pyarrow = pyarrow()
        self._partial = path.with_name(f".{path.name}.partial")
        self._waiting: list[Row] = []
        self._file: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write_group()
        if self._file is not None:
            self._file.close()
            _keep(self._partial, self.path, error)

    def write(self, row: Row) -> None:
        self._waiting.append(row)
        self.rows += 1
        if len(self._waiting) == BATCH:
            self._write_group()

    def _write_group(self) -> None:
        if not self._waiting:
            return
        if self._file is None:
            schema = self._schema(self._waiting[0])
            self._partial.touch(mode=PRIVATE)
            self._file = importlib.import_module("pyarrow.parquet").ParquetWriter(self._partial, schema)
        table = self._pyarrow.Table.from_pylist([_flat(row) for row in self._waiting], schema=self._file.schema)
        self._file.write_table(table)
        self._waiting = []

    def _schema(self, first: Row) -> Any:
        """The types of the columns. They come from the names, since a column of a whole group may be empty."""
        pa = self._pyarrow
        turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        by_name = {"tags": pa.list_(pa.string()), "probability": pa.float64()}
        by_name |= dict.fromkeys(FLAGS, pa.bool_()) | dict.fromkeys(NUMBERS, pa.int64())
        by_name |= {name: turns for name in TURNS if isinstance(first.get(name), list)}
        return pa.schema([(name, by_name.get(name, pa.string())) for name in first])


TURNS = ("messages", "prompt", "completion", "chosen", "rejected")
FLAGS = ("early", "label", "left_grew", "right_grew")
NUMBERS = (
    *("vote", "demonstration", "rating", "message", "person", "conversation", "thumb", "left_tokens", "right_tokens"),
    *("version", "left_version", "right_version", "chosen_version", "rejected_version"),
)


def _flat(row: Row) -> dict[str, Any]:
    """A row with its objects as JSON texts, since those of different rows have different keys."""
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}


def _keep(partial: Path, path: Path, error: BaseException | None) -> None:
    """Give a whole file its name, and remove one that was not finished."""
    if error is None:
        partial.replace(path)
    else:
        partial.unlink(missing_ok=True)


WRITERS: dict[str, type[JsonlWriter] | type[ParquetWriter]] = {"jsonl": JsonlWriter, "parquet": ParquetWriter}
