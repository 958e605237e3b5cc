"""Provenance: which code made a file, from what and how. Needs only what a bare training machine has.

The main result of a run has a record beside it, ``warp.nii.gz.json`` of ``warp.nii.gz``, that names the other
results; NIfTI, NRRD and MetaImage files also say inside which regkit wrote them.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from regkit.core.errors import RegkitError
from regkit.core.jsontext import to_json
from regkit.core.version import __version__
from regkit.io.atomic import atomic_path, waiting

ROOT = Path(__file__).resolve().parents[2]
"""Where this regkit is imported from: a checkout, or the packages of an environment."""
KEY = "regkit"
"""The entry of a NRRD or MetaImage header that tells the version."""

_MADE_BY = "made_by"
_MAX_BYTES, _MAX_RECORDS = 1 << 20, 500  # of a record, and in a folder to look at
_PAIRS = {".hdr": ".img", ".img": ".hdr"}


def commit(*paths: str) -> str | None:
    """The commit of the checkout that this is, with "-dirty" if its files differ; None if it is installed.

    Args:
        paths: which of the files that git tracks count, as git takes them; by default all.
    """
    if not (ROOT / ".git").exists():
        return None
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *paths])
    except OSError:  # without git
        return None
    return None if name.returncode else name.stdout.strip() + ("-dirty" if changed.returncode else "")


@cache
def version() -> str:
    """Name, version and commit: "regkit 0.1.0, commit abc1234"."""
    name = commit("regkit", "models")
    return f"regkit {__version__}" + (f", commit {name}" if name else "")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal; of a folder that of the hashes of its files, by their names.

    Of one half of a pair (.hdr and .img) it is that of both, as of a folder.

    Raises:
        RegkitError: if a file cannot be read.
    """
    path = Path(path)
    if os.path.isdir(path):
        return _together(sorted(one for one in path.rglob("*") if one.is_file()))
    other = path.with_suffix(_PAIRS.get(path.suffix, path.suffix))
    return _together(sorted({path, other}) if os.path.isfile(other) else [path])


def _together(files: Sequence[Path]) -> str:
    """The hash of a file, or of the hashes of several."""
    digests = []
    for one in files:
        try:
            with one.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise RegkitError(f"'{one}' cannot be read: {error.strerror or error}") from error
    return digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def record_of(
    inputs: Mapping[str, object], settings: Mapping[str, Any], command: str | None = None
) -> dict[str, Any]:
    """What made a result.

    Args:
        inputs: files, folders and series by their roles; others, such as images in memory, go by their type.
        settings: all else that it depended on, as far as JSON has it.
        command: the line that was typed.

    Raises:
        RegkitError: if an input cannot be read.
    """
    read: dict[str, Any] = {}
    for role, source in inputs.items():
        several = source if isinstance(source, list | tuple) else [source]
        for k, one in enumerate(several, start=1):
            if one is not None:
                read[f"{role} {k}" if len(several) > 1 else role] = _input(one)
    made = {_MADE_BY: version(), "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    return made | ({"command": command} if command else {}) | {"inputs": read, "settings": dict(settings)}


def _input(source: object) -> dict[str, str]:
    """A source of images, or another file, and the hash of what is read of it."""
    place = getattr(source, "folder", source)
    if not isinstance(place, str | os.PathLike):
        return {"type": type(source).__name__}
    if os.path.isdir(place):
        from regkit.io import dicom

        with contextlib.suppress(RegkitError):
            if series := dicom.series_of(source):
                digest = _together(sorted(one.path for one in series.slices))
                return {"file": os.fspath(place), "series": series.uid, "sha256": digest}
    return {"file": os.fspath(place), "sha256": sha256(place)}


def command_line() -> str:
    """The command that runs, as it could be typed again."""
    return shlex.join(["regkit", *sys.argv[1:]])


def record_path(path: str | os.PathLike[str]) -> Path:
    """Where the record of a file or folder lies: beside it, under its name and ``.json``."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def check_record(path: str | os.PathLike[str]) -> None:
    """Check before any work that the record of a result can be written, and that nothing would be lost by it.

    Raises:
        RegkitError: if there is another file of its name.
    """
    place = record_path(path)
    if os.path.lexists(place) and record_at(place) is None:
        raise RegkitError(
            f"'{place}' is not a record of regkit, but '{path}' would have its record there; give another "
            "name"
        )


def write_record(
    path: str | os.PathLike[str], record: Mapping[str, Any], outputs: Mapping[str, str | os.PathLike[str]]
) -> None:
    """Write the record of a run beside its main result, with the hashes of all results.

    Args:
        path: the main result.
        outputs: all files; they may still wait for their names (:func:`regkit.io.atomic.together`).

    Raises:
        RegkitError: if it cannot be written.
    """
    place = record_path(path)
    paths = {role: Path(name) for role, name in outputs.items()}
    written = {role: {"file": one.name, "sha256": sha256(waiting(one))} for role, one in paths.items()}
    with atomic_path(place) as temporary:
        temporary.write_text(to_json(dict(record) | {"outputs": written}) + "\n", encoding="utf-8")


def read_record(path: str | os.PathLike[str]) -> tuple[dict[str, Any], bool] | None:
    """The record of a file or folder, and whether it is of this very content; None if there is none.

    It is the one beside it, or one in the same folder that names it.
    """
    path = Path(path)
    near = itertools.islice(sorted(path.parent.glob("*.json")), _MAX_RECORDS)
    for place in (record_path(path), *near):
        record = record_at(place)
        outputs = record.get("outputs") if record else None
        for entry in outputs.values() if isinstance(outputs, dict) else ():
            if record and isinstance(entry, dict) and entry.get("file") == path.name:
                return record, entry.get("sha256") == sha256(path)
    return None


def same_outputs(place: Path, record: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The files that a record tells of, by their roles: each with "as written", "changed" or "missing".

    Args:
        place: of the record, beside which they lie.
        record: of :func:`record_at`.
    """
    outputs, states = record.get("outputs"), {}
    for role, entry in outputs.items() if isinstance(outputs, dict) else ():
        if not isinstance(entry, dict):
            continue
        name = os.path.basename(str(entry.get("file", "")))
        path = place.with_name(name) if name else place
        state = "missing"
        if name and os.path.exists(path):
            state = "as written" if sha256(path) == entry.get("sha256") else "changed"
        states[str(role)] = (name, state)
    return states


def record_at(place: Path) -> dict[str, Any] | None:
    """The record that a file is, or None of any other file."""
    try:
        if place.stat().st_size > _MAX_BYTES:
            return None
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(content, dict) and str(content.get(_MADE_BY, "")).startswith("regkit ")
    return content if known else None
