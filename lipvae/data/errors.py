"""Errors of the data sets: each says which file, which source, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class CorruptFileError(ValueError):
    """A file is there but is not what it should be: truncated, altered or of another format."""


class SourceError(RuntimeError):
    """A source cannot give what it was asked for; the text says why."""


class CorruptFileWarning(UserWarning):
    """A damaged file was passed over and another source is used in its place."""


@dataclass(frozen=True)
class Attempt:
    """One thing that was tried: the source, the file (or files) and why it failed."""

    source: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.what}: {self.reason}"


class DataUnavailableError(RuntimeError):
    """No source gives the data set.

    Attributes:
        name: the data set.
        missing: names of the files that are missing.
        attempts: what was tried, in order.
    """

    def __init__(
        self, name: str, missing: Sequence[str], attempts: Sequence[Attempt], advice: str
    ) -> None:
        self.name = name
        self.missing = tuple(missing)
        self.attempts = tuple(attempts)
        tried = "\n".join(f"  - {a}" for a in attempts) or "  - nothing: no source is enabled"
        super().__init__(
            f"data set {name!r} is not available: no source gives {', '.join(missing)}.\n"
            f"Tried:\n{tried}\n{advice}"
        )
