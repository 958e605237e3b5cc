"""Writing files so that each is complete or absent, and those of one run appear together.

It needs nothing that a bare training machine has not. No system renames several files at once. So what is to
be renamed is written down first, in each folder; the next run there finishes what a killed one began.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from regkit.core.errors import RegkitError

_WAITING: ContextVar[list[tuple[Path, Path]] | None] = ContextVar(
    "files to be renamed together", default=None
)
# The machine, the process and a number of its own; the machine, because a folder may be shared by several.
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_JOURNAL = ".commit"
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
    left beside it is removed as well, or finished.

    Raises:
        RegkitError: if writing fails (OSError), such as on a full disk.
    """
    path = Path(path)
    clean(path.parent)
    # The last two endings: enough for .nii.gz and .mrk.json, by which a writer picks the format.
    temporary = _hidden(path.parent, "".join(path.suffixes[-2:]))
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

    Within another such block they wait for its end.

    Raises:
        RegkitError: if a file cannot be given its name; all are as before then.
    """
    if _WAITING.get() is not None:
        yield
        return
    waiting: list[tuple[Path, Path]] = []
    token = _WAITING.set(waiting)
    try:
        yield
        _rename(waiting)
    finally:
        _WAITING.reset(token)
        for temporary, _ in waiting:
            _remove(temporary)


def waiting(path: Path) -> Path:
    """Where the content of a file of :func:`together` is until it gets its name; else the file itself."""
    return next((temporary for temporary, name in _WAITING.get() or [] if name == path), path)


def _rename(files: Sequence[tuple[Path, Path]]) -> None:
    """Give files their names: all of them, or none."""
    journals: list[Path] = []
    before: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for folder in {path.parent for _, path in files} if len(files) > 1 else ():
            names = {temporary.name: path.name for temporary, path in files if path.parent == folder}
            path = folder / next(iter(names.values()))
            draft = _hidden(folder, ".draft")
            journal = draft.with_suffix(_JOURNAL)
            journals += [draft, journal]
            draft.write_text(json.dumps(names), encoding="utf-8")
            os.replace(draft, journal)
        for temporary, path in files:
            if os.path.lexists(path):
                # Some systems replace a file only when the new one is on the disk; two renames are quick.
                old = _hidden(path.parent, ".old")
                os.replace(path, old)
                before.append((old, path))
            os.replace(temporary, path)
    except OSError as error:
        new = {path for temporary, path in files if not os.path.lexists(temporary)}
        for old, name in before:
            with contextlib.suppress(OSError):
                os.replace(old, name)
        for name in new - {name for _, name in before}:
            _remove(name)
        raise RegkitError(f"could not write '{path}': {error.strerror or error}") from error
    finally:
        for leftover in (*journals, *(old for old, _ in before)):
            _remove(leftover)


def _hidden(folder: Path, ending: str) -> Path:
    """A new name for a temporary file."""
    return folder / f".regkit-{_HOST}-{os.getpid()}-{secrets.token_hex(6)}{ending}"


def clean(folder: Path) -> None:
    """Finish in a folder what dead processes of this machine were renaming, and remove what they left."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        matches = [match for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
        dead = [match[0] for match in matches if not _is_alive(int(match[1]))]
        for name in dead:
            if name.endswith(_JOURNAL):
                _finish(folder / name, dead)
        for name in dead:
            _remove(folder / name)


def _finish(journal: Path, dead: Sequence[str]) -> None:
    """Give the files of a killed run their names; of no others, whatever the journal says."""
    try:
        names = json.loads(journal.read_text(encoding="utf-8"))
        entries = [(str(old), str(new)) for old, new in names.items()]
    except (OSError, ValueError, AttributeError):
        return
    for temporary, name in entries:
        if temporary in dead and name == os.path.basename(name) and not _TEMPORARY.fullmatch(name):
            with contextlib.suppress(OSError):
                os.replace(journal.with_name(temporary), journal.with_name(name))


def _remove(path: Path) -> None:
    """Remove a temporary file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
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
