"""Tables of scores written row by row: CSV and Parquet."""

from __future__ import annotations

import csv
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from lipvae.cli._outputs import check_file, check_folder

COLUMNS = ("input", "id")


class ScoreWriter(ABC):
    """Writes rows to a file that gets its name when all of them are there.

    Until then it is called ``NAME.part``; after an error that is what remains, with the rows so
    far.
    """

    def __init__(self, path: Path | None, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.path = path
        self.part = None if path is None else path.with_name(f"{path.name}.part")

    def __enter__(self) -> ScoreWriter:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        if error is None and self.path is not None and self.part is not None:
            self.part.replace(self.path)

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def write(self, source: str, ids: Sequence[str], scores: dict[str, Tensor]) -> None:
        """Appends a row for each image.

        Args:
            source: the input that the images come from.
            ids: what each image is called there.
            scores: float64 [B] by name.
        """


class CsvWriter(ScoreWriter):
    """Comma-separated values, with as many digits as give the same doubles back."""

    _stream: IO[str]

    def _open(self) -> None:
        if self.part is None:
            self._stream = sys.stdout
        else:
            self._stream = self.part.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._stream, lineterminator="\n")
        self._rows.writerow([*COLUMNS, *self.names])

    def _close(self) -> None:
        if self.part is None:
            self._stream.flush()
        else:
            self._stream.close()

    def write(self, source: str, ids: Sequence[str], scores: dict[str, Tensor]) -> None:
        """Appends a row for each image."""
        columns = [scores[name].tolist() for name in self.names]
        self._rows.writerows(
            [source, name, *map(repr, values)] for name, *values in zip(ids, *columns, strict=True)
        )


class ParquetWriter(ScoreWriter):
    """Apache Parquet, a row group for each batch."""

    _file: Any

    def _open(self) -> None:
        self._arrow = _pyarrow()
        fields = [(name, self._arrow.string()) for name in COLUMNS]
        fields += [(name, self._arrow.float64()) for name in self.names]
        self._schema = self._arrow.schema(fields)
        self._file = self._arrow.parquet.ParquetWriter(str(self.part), self._schema)

    def _close(self) -> None:
        self._file.close()

    def write(self, source: str, ids: Sequence[str], scores: dict[str, Tensor]) -> None:
        """Appends a row for each image."""
        columns = [[source] * len(ids), list(ids), *(scores[name].numpy() for name in self.names)]
        self._file.write_table(self._arrow.table(columns, schema=self._schema))


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Parquet needs pyarrow: pip install 'lipvae[parquet]', or write a .csv"
        ) from error
    return pyarrow


def check_out(path: Path | None) -> None:
    """What :func:`open_writer` refuses, before long work."""
    if path is None:
        if sys.stdout is None:  # the shell's >&-
            raise ValueError("--out must be given where stdout is closed")
        return
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"--out must end in .csv or .parquet, got {str(path)!r}")
    check_file("--out", path)
    check_folder("--out", path.parent)  # rows go to another file there first
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def open_writer(path: Path | None, names: Sequence[str]) -> ScoreWriter:
    """The writer of a path: CSV or Parquet by its ending, CSV to stdout without one.

    Raises:
        ValueError: for another ending.
        OSError: if the file cannot be written there.
        ModuleNotFoundError: without pyarrow, for a .parquet.
    """
    if path is None:
        return CsvWriter(None, names)
    check_out(path)
    return (CsvWriter if path.suffix.lower() == ".csv" else ParquetWriter)(path, names)
