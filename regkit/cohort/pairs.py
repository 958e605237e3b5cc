"""Which images a cohort pairs: a table, two folders, or what a Python program lists."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from regkit.core.configuration import read_assignments, unknown_name
from regkit.core.errors import RegkitError
from regkit.core.settings import Settings, changed_settings
from regkit.io.foreign import split_convention

FILES = ("fixed_mask", "moving_mask", "fixed_labels", "moving_labels", "landmarks")
COLUMNS = ("fixed", "moving", "name", *FILES, "start", "settings")
"""What a table may say of a pair; the first two it must."""
OUTPUTS = {
    "warp": "warp.nii.gz",
    "moved": "moved.nii.gz",
    "moved_labels": "moved_labels.nii.gz",
    "inverse": "inverse.nii.gz",
    "linear": "linear.tfm",
    "uncertainty": "uncertainty.nii.gz",
    "figure": "figure.png",
    "report": "report.html",
}
"""Results that can be written of a pair, and their files in the pair's folder."""

SUMMARY, REPORT = "summary.csv", "report.html"
"""What tells of all pairs, in the cohort's folder."""

_IMAGES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".dcm")
_MAX_SHOWN = 5  # of the problems that one message lists
_MAX_PARENTS = 6  # folders that a name may be made of


@dataclass(frozen=True)
class Pair:
    """One registration of a cohort.

    Args:
        name: unique in its cohort; its files lie in a folder of this name.
        fixed, moving: the images: files, or folders of one DICOM series.
        fixed_mask, moving_mask: where each image counts.
        fixed_labels, moving_labels: label maps, to measure the result.
        landmarks: a table of matching points (columns fx,fy,fz,mx,my,mz, LPS mm), to measure the result.
        start: as ``init`` of :func:`regkit.register`, a word or a file; None for that of the cohort.
        settings: that differ from those of the cohort, of :data:`SETTINGS`, and under
            "settings" those of the solver.
        places: where results go, relative to the cohort's folder, by the keys of :data:`OUTPUTS`; of those
            that are not told, the pair's own folder.
    """

    name: str
    fixed: Path
    moving: Path
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    landmarks: Path | None = None
    start: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    def place(self, output: str) -> str:
        """Where a result goes, relative to the cohort's folder."""
        return self.places.get(output) or f"{self.name}/{OUTPUTS[output]}"

    def arguments(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of :func:`regkit.register` beside the images: those of the cohort, and the pair's own."""
        own = dict(self.settings) | ({} if self.start is None else {"init": self.start})
        solver = {**(common.get("settings") or {}), **own.get("settings", {})}
        return {**common, **own, "settings": solver}

    @property
    def files(self) -> dict[str, Path]:
        """All files that are read, by their roles."""
        paths = {role: getattr(self, role) for role in ("fixed", "moving", *FILES)}
        return {role: path for role, path in paths.items() if path is not None}


def read_pairs_table(path: Path) -> tuple[list[Pair], list[str]]:
    """The pairs of a table (.csv, separated by commas, semicolons or tabs).

    Paths are relative to the table's folder.

    Returns:
        The pairs, and the names of columns that mean nothing here.

    Raises:
        RegkitError: if it cannot be read, lacks a column, or a row cannot be used.
    """
    text = _text(path)
    heading = next((line for line in text.splitlines() if line.strip()), "")
    if not heading:
        raise RegkitError(f"'{path}' is empty; its first line must name the columns: fixed,moving")
    separator = max(",;\t", key=heading.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise RegkitError(f"'{path}' is not a table: {error}") from error
    columns = [cell.strip().lower() for cell in rows[0][1]]
    if missing := [name for name in COLUMNS[:2] if name not in columns]:
        raise RegkitError(
            f"'{path}' has no column {' and no column '.join(map(repr, missing))}; its first line must name "
            f"the columns, such as fixed,moving, and it is: {heading.strip()[:80]}"
        )
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise RegkitError(f"'{path}' has the column {twice[0]!r} twice; leave one out")
    if len(rows) == 1:
        raise RegkitError(f"'{path}' lists no pairs: there is nothing below its first line")
    entries = []
    for number, row in rows[1:]:
        if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
            raise RegkitError(
                f"line {number} of '{path}' has {len(row)} cells, but there are {len(columns)} columns"
            )
        cells = {name: cell.strip() for name, cell in zip(columns, row) if cell.strip()}
        entries.append((f"line {number} of '{path}'", cells))
    unknown = [name for name in columns if name and name not in COLUMNS]
    return _pairs(entries, path.parent), unknown


def listed_pairs(entries: Iterable[object]) -> list[Pair]:
    """The pairs that a Python program lists: Pairs, (fixed, moving), or mappings as rows of a table.

    Raises:
        RegkitError: if one is none of these, or cannot be used.
    """
    pairs: list[Pair] = []
    rows: list[tuple[str, dict[str, Any]]] = []
    for k, entry in enumerate(entries, start=1):
        if isinstance(entry, Pair):
            pairs.append(entry)
        elif isinstance(entry, Mapping):
            known = {str(key): value for key, value in entry.items() if value is not None}
            rows.append((f"pair {k}", known))
        elif isinstance(entry, list | tuple) and len(entry) == 2:
            rows.append((f"pair {k}", dict(zip(COLUMNS, entry))))
        else:
            raise RegkitError(
                f"pair {k} is a {type(entry).__name__}; give (fixed, moving), or a mapping with the keys "
                f"{', '.join(COLUMNS)}"
            )
    if pairs and rows:
        raise RegkitError("some pairs are regkit.Pair and some are not; list one kind")
    return checked(pairs) if pairs else _pairs(rows, Path())


def matched_folders(fixed: Path, moving: Path) -> list[Pair]:
    """Images of two folders that have the same name, whatever their endings.

    Raises:
        RegkitError: if a folder cannot be read, or an image has no partner, or several.
    """
    sides = {}
    for side, folder in (("fixed", fixed), ("moving", moving)):
        by_name = defaultdict(list)
        try:
            for path in sorted(folder.iterdir()):
                stem = _stem(path)
                if not path.name.startswith(".") and (path.is_dir() or stem != path.name):
                    by_name[stem].append(path)
        except OSError as error:
            raise RegkitError(f"'{folder}' cannot be read: {error.strerror or error}") from error
        if not by_name:
            raise RegkitError(f"'{folder}' holds no images (files {' '.join(_IMAGES)}, or folders of DICOM)")
        if several := next((paths for paths in by_name.values() if len(paths) > 1), None):
            raise RegkitError(f"'{several[0]}' and '{several[1]}' have one name; leave one of them")
        sides[side] = {stem: paths[0] for stem, paths in by_name.items()}
    if alone := sorted(sides["fixed"].keys() ^ sides["moving"].keys()):
        others = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
        folder_of, lacking = (fixed, moving) if alone[0] in sides["fixed"] else (moving, fixed)
        raise RegkitError(
            f"'{alone[0]}'{others} of '{folder_of}' has no partner of its name in '{lacking}'; list the "
            "pairs in a table, with columns fixed,moving"
        )
    return checked(
        [Pair(_folder_name(stem), path, sides["moving"][stem]) for stem, path in sides["fixed"].items()]
    )


def checked(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, if all can be begun.

    Raises:
        RegkitError: if there are none, two write one file, or a file is missing.
    """
    if not pairs:
        raise RegkitError("there are no pairs to register")
    counts: dict[str, int] = {}
    for number, pair in enumerate(pairs, start=1):
        if not re.fullmatch(r"\w[\w.+-]*", pair.name) or pair.name in (SUMMARY, REPORT):
            raise RegkitError(
                f"the name '{pair.name}' cannot be that of a folder here; use letters, digits, . - and _"
            )
        # Some systems take names that differ in case for the same.
        for place in {pair.name, *pair.places.values()}:
            other = counts.setdefault(os.path.normpath(place).casefold(), number)
            if other != number:
                raise RegkitError(
                    f"pairs {other} and {number} would both write '{place}'; give each pair a name of its "
                    "own in a column 'name'"
                )
    missing = [
        f"{role} of '{pair.name}': '{path}'"
        for pair in pairs
        for role, path in pair.files.items()
        if not os.path.exists(path)
    ]
    if missing:
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        count = "a file does" if len(missing) == 1 else f"{len(missing)} files do"
        raise RegkitError(f"{count} not exist: {', '.join(missing[:_MAX_SHOWN])}{more}")
    return list(pairs)


def _pairs(entries: Sequence[tuple[str, Mapping[str, Any]]], root: Path) -> list[Pair]:
    """Pairs of rows, each with where it stands for messages."""
    made = []
    for location, row in entries:
        for name in COLUMNS[:2]:
            if not row.get(name):
                raise RegkitError(f"{location} names no {name} image")
        paths = {role: root / row[role] for role in ("fixed", "moving", *FILES) if row.get(role)}
        start = _start(row["start"], root, location) if row.get("start") else None
        settings = _settings(row.get("settings") or {}, root, location)
        labels = [role for role in ("fixed_labels", "moving_labels") if role in paths]
        if labels == ["fixed_labels"]:
            raise RegkitError(f"{location} has fixed_labels, which need moving_labels to be compared with")
        made.append((str(row.get("name", "")), paths, start, settings))
    has_name = [bool(name) for name, *_ in made]
    if any(has_name) and not all(has_name):
        raise RegkitError(f"{entries[has_name.index(False)][0]} has no name, but other pairs have one")
    names = [name for name, *_ in made]
    if not any(has_name):
        names = _names([(paths["fixed"], paths["moving"]) for _, paths, *_ in made])
    return checked(
        [
            Pair(name, start=start, settings=settings, **paths)
            for name, (_, paths, start, settings) in zip(names, made)
        ]
    )


def _names(images: Sequence[tuple[Path, Path]]) -> list[str]:
    """A name for each pair by those of its images, with as many of their folders as tell all apart."""
    names: list[str] = []
    for parents in range(_MAX_PARENTS):
        names = [f"{_short(moving, parents)}_to_{_short(fixed, parents)}" for fixed, moving in images]
        if len({name.casefold() for name in names}) == len(names):
            break
    return names


def _short(path: Path, parents: int) -> str:
    """The name of an image without its ending, and of so many folders above it, as a name for a folder."""
    folders = path.absolute().parts[1:-1]
    return _folder_name("-".join((*folders[max(0, len(folders) - parents) :], _stem(path))))


def _stem(path: Path) -> str:
    """The name of an image without its ending; of any other file, all of it."""
    ending = next((e for e in _IMAGES if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def _folder_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "pair"


def _start(value: object, root: Path, location: str) -> str:
    """A word of ``--init``, or a file that is there, as an absolute name."""
    from regkit.core.choices import STARTS

    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if text in STARTS:
        return text
    convention, file = split_convention(Path(text))
    if not os.path.isfile(root / file):
        raise RegkitError(f"{location}: the start '{text}' is none of {', '.join(STARTS)}, and no file")
    return f"{convention}:{root / file}" if convention else str(root / file)


def _settings(value: object, root: Path, location: str) -> dict[str, Any]:
    """Settings of one pair: ``preset=fast; search_range=16; ct_window=-450 450``, or a mapping.

    Those of the solver go under "settings", as :func:`regkit.register` takes them.
    """
    settings: dict[str, Any] = {}
    try:
        if isinstance(value, Mapping):
            items = {str(key): item for key, item in value.items()}
        else:
            items = read_assignments([part for part in str(value).split(";") if part.strip()])
        for key, item in items.items():
            if key in SETTINGS:
                settings[key] = SETTINGS[key](item, root)
            elif key in SOLVER:
                settings.setdefault("settings", {})[key] = item
            else:
                raise unknown_name(key, [*SETTINGS, *SOLVER], "setting")
        changed_settings(settings.get("preset", "default"), settings.get("settings"))
    except RegkitError as error:
        raise type(error)(f"{location}: {error}") from error
    except (TypeError, ValueError) as error:
        raise RegkitError(f"{location}: '{item}' cannot be the setting '{key}'") from error
    return settings


def _preset(value: Any, root: Path) -> str:
    return str(value)


def _features(value: Any, root: Path) -> str:
    from regkit.core.choices import FEATURE_SETS

    if value not in FEATURE_SETS:
        raise RegkitError(f"no features named {value!r}; available: {', '.join(FEATURE_SETS)}")
    return str(value)


def _weights(value: Any, root: Path) -> str:
    path = root / os.fspath(value)
    if not path.is_file():
        raise RegkitError(f"the weights '{path}' are not a file")
    return str(path)


def _window(value: Any, root: Path) -> tuple[float, float]:
    low, high = value.replace(",", " ").split() if isinstance(value, str) else value
    return float(low), float(high)


def _seed(value: Any, root: Path) -> int:
    return int(value)


SETTINGS: dict[str, Callable[[Any, Path], Any]] = {
    "preset": _preset,
    "features": _features,
    "weights": _weights,
    "ct_window": _window,
    "seed": _seed,
}
"""Settings that may differ from pair to pair beside :data:`SOLVER`, and how each is read."""
SOLVER = tuple(field.name for field in fields(Settings))
"""Settings of the solver."""


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RegkitError(f"'{path}' cannot be read: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RegkitError(f"'{path}' is not UTF-8 text; save the table as CSV in UTF-8") from error
