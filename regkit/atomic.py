"""Writing a file so that it is complete or absent; it needs nothing that a bare training machine has not."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from regkit.errors import RegkitError


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        RegkitError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegkitError(f"cannot make the folder '{folder}': {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, of the same ending, that replaces it if the block succeeds.

    If the block fails, the temporary file is removed and ``path`` stays as it was.

    Raises:
        RegkitError: if writing fails (OSError), such as on a full disk.
    """
    path = Path(path)
    # The last two endings: enough for .nii.gz and .mrk.json, by which a writer picks the format.
    temporary = path.with_name(f".{secrets.token_hex(6)}{''.join(path.suffixes[-2:])}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise RegkitError(f"could not write '{path}': {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
