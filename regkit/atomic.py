"""Writing files so that each is complete or absent; it needs nothing that a bare training machine has not."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from regkit.errors import RegkitError

_WAITING: ContextVar[list[tuple[Path, Path]] | None] = ContextVar(
    "files to be renamed together", default=None
)
# The machine, the process and a number of its own; the machine, because a folder may be shared by several.
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_TEMPORARY = re.compile(rf"\.regkit-{_HOST}-(\d+)-[0-9a-f]{{12}}(\..*)?")


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

    If the block fails, the temporary file is removed and ``path`` stays as it was. What runs that were killed
    left beside it is removed as well.

    Raises:
        RegkitError: if writing fails (OSError), such as on a full disk.
    """
    path = Path(path)
    _remove_left_over(path.parent)
    # The last two endings: enough for .nii.gz and .mrk.json, by which a writer picks the format.
    ending = "".join(path.suffixes[-2:])
    temporary = path.with_name(f".regkit-{_HOST}-{os.getpid()}-{secrets.token_hex(6)}{ending}")
    waiting = _WAITING.get()
    done = False
    try:
        yield temporary
        if waiting is None:
            os.replace(temporary, path)
        else:
            waiting.append((temporary, path))
        done = True
    except OSError as error:
        raise RegkitError(f"could not write '{path}': {error.strerror or error}") from error
    finally:
        if not (done and waiting is not None):
            _remove(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside ``path`` that gets this name if the block succeeds, like :func:`atomic_path`.

    Raises:
        RegkitError: if writing fails (OSError), or there is a folder of this name that is not empty.
    """
    with atomic_path(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Files of :func:`atomic_path` in the block get their names when all of them are written, or none does.

    Raises:
        RegkitError: if a file cannot be given its name.
    """
    waiting: list[tuple[Path, Path]] = []
    token = _WAITING.set(waiting)
    try:
        yield
        while waiting:
            temporary, path = waiting[0]
            try:
                os.replace(temporary, path)
            except OSError as error:
                raise RegkitError(f"could not write '{path}': {error.strerror or error}") from error
            del waiting[0]
    finally:
        _WAITING.reset(token)
        for temporary, _ in waiting:
            _remove(temporary)


def waiting(path: Path) -> Path:
    """Where the content of a file of :func:`together` is until it gets its name; else the file itself."""
    return next((temporary for temporary, name in _WAITING.get() or [] if name == path), path)


def _remove_left_over(folder: Path) -> None:
    """Remove temporary files of processes of this machine that are no more."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _TEMPORARY.fullmatch(entry.name)]
        for name in names:
            found = _TEMPORARY.fullmatch(name)
            if found and not _is_alive(int(found[1])):
                _remove(folder / name)


def _remove(path: Path) -> None:
    """Remove a temporary file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
