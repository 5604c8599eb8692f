"""Whether results can be written, told before the work that leads to them."""

from __future__ import annotations

import os
from pathlib import Path


def check_file(option: str, path: Path | None) -> None:
    """Before long work whose result goes there.

    Raises:
        FileNotFoundError: if the folder of a file to be written does not exist.
        IsADirectoryError: if a folder has that name.
        PermissionError: if neither the file nor one in its folder can be written.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{option} must be a file, got the folder {str(path)!r}")
    # A device is written where it is; what is not there yet needs its folder.
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{option}: {str(path)!r} cannot be written")


def check_folder(option: str, path: Path) -> None:
    """Before long work whose results go into a folder that may be made.

    Raises:
        NotADirectoryError: if it, or a part of its path, is a file.
        PermissionError: if nothing can be written there.
    """
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{option} must be a folder, got the file {str(there)!r}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{option}: the folder {str(there)!r} cannot be written")
