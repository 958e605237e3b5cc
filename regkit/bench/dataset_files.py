"""Files of data sets: choose by name, read JSON, and report what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regkit.bench.dataset import Case, Request
from regkit.core.errors import RegkitError
from regkit.core.jsontext import read_json
from regkit.io.images import Volume, load_labels

MADE_UP = "MADE_UP.txt"
"""A file in the folder of an imitation, beside what a real archive has, by which its numbers are told."""


def is_made_up(data: Path | None) -> bool:
    """Whether the folder of a data set, or the archive's own folder in it, is an imitation."""
    return data is not None and any(path.exists() for path in (data / MADE_UP, *data.glob(f"*/{MADE_UP}")))


def data_folder(request: Request, title: str, source: str) -> Path:
    """The folder that the data set was downloaded to.

    Raises:
        RegkitError: if none was given, or it does not exist.
    """
    if request.data is None:
        raise RegkitError(f"{title} needs the folder of its data; get it from {source}")
    if not request.data.is_dir():
        raise RegkitError(f"the data of {title}: '{request.data}' is not a folder; get it from {source}")
    return request.data


def choose_names(names: Sequence[str], known: Sequence[str], default: int, what: str) -> list[str]:
    """The names asked for, each once, or the first ``default`` ones if none is.

    Args:
        what: what they name, for messages, such as "direction".

    Raises:
        RegkitError: if a name is unknown.
    """
    for name in names:
        if name not in known:
            listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise RegkitError(f"no {what} '{name}'; available: {listed}")
    return list(dict.fromkeys(names)) or list(known[:default])


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        what: what it is, for messages, such as "manifest".

    Raises:
        RegkitError: if it cannot be read or holds something else.
    """
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise RegkitError(f"{what} '{path}' must be a JSON object {{...}}, not a {type(content).__name__}")
    return content


def check_present(files: Sequence[Path], folder: Path, remedy: str) -> None:
    """Refuse a folder that lacks files, naming the first three.

    Args:
        remedy: what to do about it, for the message.

    Raises:
        RegkitError: if one is missing.
    """
    missing = [path for path in files if not path.is_file()]
    if missing:
        names = ", ".join(path.relative_to(folder).as_posix() for path in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise RegkitError(
            f"'{folder}' lacks {len(missing)} of {len(files)} files that are needed: {names}{more}; {remedy}"
        )


def labelled(cases: Sequence[Case], names: Mapping[int, str] | None) -> list[Case]:
    """The cases with other names of their labels; only the labels that have one are scored.

    Raises:
        RegkitError: if a label map has none of them.
    """
    if names is None:
        return list(cases)
    chosen = dict(names)
    for path in dict.fromkeys(side.labels for case in cases for side in (case.fixed, case.moving)):
        if path is not None:
            check_labelled(load_labels(path, "labels"), path, chosen)
    return [replace(case, labels=chosen) if case.labels else case for case in cases]


def check_labelled(volume: Volume, path: Path, labels: dict[int, str]) -> None:
    """Refuse a label map that has none of the labels that are scored, and warn of one that lacks some.

    Raises:
        RegkitError: if it has none.
    """
    missing = sorted(set(labels) - set(np.unique(volume.array).tolist()))
    if len(missing) == len(labels):
        present = ", ".join(str(n) for n in np.unique(volume.array)[:10])
        raise RegkitError(
            f"labels '{path}' have none of the labels {', '.join(map(str, labels))} but {present}; "
            "put the right file in its place"
        )
    if missing:
        names = ", ".join(f"{n} ({labels[n]})" if labels[n] else str(n) for n in missing)
        warnings.warn(f"labels '{path}' lack {names}, which cannot be scored in this pair", stacklevel=2)
