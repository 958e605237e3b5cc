"""Landmark files: one point per row, LPS mm once read; and such files with their points moved.

* ``.csv``: columns x, y, z under a header (others, such as a name, are ignored), or three bare columns; LPS.
  Tables of 3D Slicer name theirs r, a, s (or l, p, s); spreadsheets of some countries write ``5,0;6,0``.
* ``.fcsv`` and ``.mrk.json``: point lists of 3D Slicer, LPS or RAS as they say themselves.

Formats of Slicer: https://slicer.readthedocs.io/en/latest/developer_guide/modules/markups.html
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import FormatError
from regkit.io.atomic import atomic_path
from regkit.io.outputs import check_output

Float64 = npt.NDArray[np.float64]
POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json")
"""Endings of the landmark files regkit reads and writes."""

# Slicer writes the name; old versions wrote a number in .fcsv. True where x and y change sign to become LPS.
_IS_RAS = {"0": True, "RAS": True, "1": False, "LPS": False}
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


@dataclass(frozen=True, eq=False)
class PointFile:
    """A landmark file, of which the points can be moved and all else stays as it is.

    Args:
        points: (n, 3), LPS mm; of a file of Slicer's those of all its lists, without those that have no
            defined position.
        labels: a name for each, or "" where the file has none.
        suffix: of the file, one of :data:`POINT_SUFFIXES`.
        text: its text with other points, (n, 3), LPS mm, in their place.
    """

    points: Float64
    labels: tuple[str, ...]
    suffix: str
    text: Callable[[Float64], str]

    def save(self, path: str | os.PathLike[str], points: npt.ArrayLike) -> None:
        """Write the file with other points in place of its own; in another format, with their labels.

        Raises:
            RegkitError: if it cannot be written.
        """
        path = check_output(path, POINT_SUFFIXES)
        array = np.asarray(points, dtype=np.float64).reshape(self.points.shape)
        if not path.name.endswith(self.suffix):
            write_points(path, array, self.labels)
            return
        with atomic_path(path) as temporary:
            temporary.write_text(self.text(array), encoding="utf-8", newline="")


def open_points(path: str | os.PathLike[str]) -> PointFile:
    """A .csv, .fcsv or .mrk.json file, to move its points.

    Raises:
        RegkitError: as of :func:`read_points`; of a plane or a box of Slicer's, which are no points.
    """
    path = Path(path)
    if path.name.endswith(".json"):
        return _open_json(path)
    table, names, system = _table(path)
    which = table.defined(path)
    sign = _sign(system, path)

    def text(points: Float64) -> str:
        return table.replaced(names, points * sign, which)

    points = table.numbers(names, path, which) * sign
    return PointFile(points, table.labels(which), path.suffix, text)


def read_points(path: str | os.PathLike[str]) -> Float64:
    """Read the points of a .csv, .fcsv or .mrk.json file.

    Returns:
        (n, 3), LPS mm, n >= 1.

    Raises:
        RegkitError: if the file is missing, of another kind or without points, or a coordinate is not a
            number.
    """
    path = Path(path)
    if path.name.endswith(".json"):
        return _read_json(path)
    table, names, system = _table(path)
    # Slicer keeps a row for points that are only planned, and a position with it.
    missing = [k for k in range(len(table.rows)) if k not in set(table.defined(path))]
    if missing:
        raise FormatError(f"points '{path}': point {missing[0] + 1} has no defined position")
    return table.numbers(names, path) * _sign(system, path)


def read_pairs(path: str | os.PathLike[str]) -> tuple[Float64, Float64]:
    """Read matching landmarks of two images from a .csv with the columns fx, fy, fz, mx, my, mz (LPS mm).

    Returns:
        Points of the fixed and of the moving image, (n, 3) each, LPS mm.

    Raises:
        RegkitError: as for :func:`read_points`.
    """
    path = Path(path)
    names = ("fx", "fy", "fz", "mx", "my", "mz")
    table = _Table.of(_read_text(path), path, names).numbers(names, path)
    return table[:, :3], table[:, 3:]


def write_points(path: str | os.PathLike[str], points: npt.ArrayLike, labels: Sequence[str] = ()) -> None:
    """Write points (n, 3), LPS mm, in the format of the ending: .csv, .fcsv or .mrk.json.

    Args:
        labels: a name for each point. By default .fcsv and .mrk.json number them, and .csv has none. In a
            table, what ends a line is a blank in them.

    Raises:
        RegkitError: if the file cannot be written.
    """
    path = check_output(path, POINT_SUFFIXES)
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise FormatError(f"points must have the shape (n, 3), got {array.shape}")
    rows = [[_decimal(value) for value in point] for point in array]
    has_labels = any(labels)
    names = [name or f"F-{i}" for i, name in enumerate(labels or [""] * len(rows), start=1)]
    if path.suffix == ".csv":
        lines = ["x,y,z,label" if has_labels else "x,y,z"]
        lines += [",".join([*row, _quoted(name)] if has_labels else row) for row, name in zip(rows, names)]
    elif path.suffix == ".fcsv":
        lines = ["# Markups fiducial file version = 4.13", "# CoordinateSystem = LPS"]
        lines.append(f"# columns = {_FCSV_COLUMNS}")
        lines += [
            f"{i},{','.join(row)},0,0,0,1,1,1,0,{_quoted(name)},,"
            for i, (row, name) in enumerate(zip(rows, names), start=1)
        ]
    else:
        markups: dict[str, Any] = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm"}
        markups["controlPoints"] = [
            {"id": str(i), "label": name, "position": list(map(float, row)), "positionStatus": "defined"}
            for i, (row, name) in enumerate(zip(rows, names), start=1)
        ]
        lines = [json.dumps({"@schema": _SCHEMA, "markups": [markups]}, indent=1)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _decimal(value: float) -> str:
    """To a tenth of a micrometre."""
    return f"{value:.4f}"


def _quoted(name: str) -> str:
    """A cell of a table, on one line whatever a reader takes for the end of one."""
    name = " ".join(name.split())
    quoted = name.replace('"', '""')
    return f'"{quoted}"' if quoted != name or any(sign in name for sign in ",;") else name


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark first
            return file.read()
    except FileNotFoundError as error:
        raise FormatError(f"points '{path}' do not exist") from error
    except OSError as error:
        raise FormatError(f"points '{path}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"points '{path}' are not a text file") from error


@dataclass(frozen=True, eq=False)
class _Table:
    """Text separated by commas, semicolons or tabs.

    Args:
        lines: with their ends.
        columns: their names, in lower case.
        rows: which line each is, and its cells as they stand there.
    """

    lines: list[str]
    separator: str
    columns: list[str]
    rows: list[tuple[int, list[str]]]

    @classmethod
    def of(cls, text: str, path: Path, names: Sequence[str], header: str | None = None) -> _Table:
        """The table that has columns of these names.

        Args:
            header: the line of column names where the text holds it in a comment; otherwise the first row
                that does not consist of numbers alone is the header; without one the columns are ``names``.
        """
        lines = text.splitlines(keepends=True)
        first = next((line for line in lines if line.strip() and line.lstrip()[0] != "#"), "")
        separator = next((sign for sign in ";\t" if header is None and first.count(sign) > 1), ",")
        rows = [
            (k, _cells(line.rstrip("\r\n"), separator))
            for k, line in enumerate(lines)
            if line.strip(f" {separator}\r\n\t") and not line.lstrip().startswith("#")
        ]
        if not rows:
            raise FormatError(f"points '{path}' are empty")
        table = cls(lines, separator, [], rows)
        start = [table.value(cell) for cell in rows[0][1]]
        if header is not None:
            columns = [cell.strip().lower() for cell in header.split(",")]
        elif any(_number(cell) is None for cell in start):
            columns = [cell.lower() for cell in start]
            rows = rows[1:]
        elif len(start) == len(names):
            columns = list(names)
        else:
            raise FormatError(
                f"points '{path}' have {len(start)} columns and no header; "
                f"give the {len(names)} columns {','.join(names)} or name them in a first line"
            )
        missing = [name for name in names if name not in columns]
        if missing:
            raise FormatError(
                f"points '{path}' have no column {', '.join(missing)} among {', '.join(columns)}"
            )
        if not rows:
            raise FormatError(f"points '{path}' are empty below their header")
        return cls(lines, separator, columns, rows)

    def value(self, cell: str) -> str:
        """What a cell says, without quotes and with a decimal point."""
        text = cell.strip()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1].replace('""', '"').strip()
        return text if self.separator == "," else re.sub(r"^([-+]?\d+),(\d+)", r"\1.\2", text)

    def numbers(self, names: Sequence[str], path: Path, which: Sequence[int] | None = None) -> Float64:
        """The named columns of some rows, by default all, (n, len(names))."""
        positions = [self.columns.index(name) for name in names]
        which = range(len(self.rows)) if which is None else which
        table = np.empty((len(which), len(names)))
        for k, row in enumerate(which):
            line, cells = self.rows[row]
            for axis, (column, name) in enumerate(zip(positions, names, strict=True)):
                cell = self.value(cells[column]) if column < len(cells) else None
                value = None if cell is None else _number(cell)
                if value is None or not math.isfinite(value):
                    text = "nothing" if cell is None else repr(cell)
                    raise FormatError(
                        f"points '{path}', line {line + 1}: {text} for {name} is not a finite number"
                    )
                table[k, axis] = value
        return table

    def defined(self, path: Path) -> list[int]:
        """The rows whose position counts, as Slicer's tables say."""
        every = list(range(len(self.rows)))
        if "defined" not in self.columns or "label" not in self.columns:
            return every
        counts = self.numbers(("defined",), path)[:, 0]
        return [k for k in every if counts[k] != 0]

    def labels(self, which: Sequence[int]) -> tuple[str, ...]:
        column = next((self.columns.index(name) for name in ("label", "name") if name in self.columns), None)
        if column is None:
            return ("",) * len(which)
        cells = [self.rows[row][1] for row in which]
        return tuple(self.value(row[column]) if column < len(row) else "" for row in cells)

    def replaced(self, names: Sequence[str], values: Float64, which: Sequence[int]) -> str:
        """The text with other numbers in the named columns of some rows."""
        lines = list(self.lines)
        for k, row in enumerate(which):
            line, cells = self.rows[row]
            cells = list(cells)
            for name, value in zip(names, values[k], strict=True):
                column = self.columns.index(name)
                comma = self.separator != "," and "," in cells[column]
                cells[column] = _decimal(value).replace(".", ",") if comma else _decimal(value)
            end = lines[line][len(lines[line].rstrip("\r\n")) :]
            lines[line] = self.separator.join(cells) + end
        return "".join(lines)


def _cells(line: str, separator: str) -> list[str]:
    """The cells of a line as they stand there; a separator between quotes is none."""
    sign = re.escape(separator)
    cell = rf'(?:\s*"(?:[^"]|"")*"[^{sign}]*|[^{sign}]*)'
    return [match[0] for match in re.finditer(rf"(?:(?<={sign})|^){cell}", line)]


def _table(path: Path) -> tuple[_Table, tuple[str, str, str], str]:
    """The table of a .csv or .fcsv, its columns of coordinates, and their system."""
    if path.suffix not in (".csv", ".fcsv"):
        raise FormatError(f"points '{path}': the name must end in {' or '.join(POINT_SUFFIXES)}")
    text = _read_text(path)
    if path.suffix == ".fcsv":
        system = re.search(r"^#\s*CoordinateSystem\s*=\s*(\w+)", text, re.MULTILINE)
        columns = re.search(r"^#\s*columns\s*=\s*(.+)$", text, re.MULTILINE)
        if not system:
            raise FormatError(
                f"points '{path}' state no system; add a line '# CoordinateSystem = LPS' (or RAS)"
            )
        names = ("x", "y", "z")
        return _Table.of(text, path, names, columns[1] if columns else _FCSV_COLUMNS), names, system[1]
    first = next((line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"), "")
    cells = {cell.strip().lower() for cell in re.split("[,;\t]", first)}
    for names, name in ((("r", "a", "s"), "RAS"), (("l", "p", "s"), "LPS")):
        if cells >= set(names):
            return _Table.of(text, path, names), names, name
    return _Table.of(text, path, ("x", "y", "z")), ("x", "y", "z"), "LPS"


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _markups(path: Path, limit: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of a file of Slicer's, and its lists of points."""
    try:
        content: Any = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"points '{path}' are not valid JSON: {error}") from error
    markups: Any = content.get("markups") if isinstance(content, dict) else None
    sound = isinstance(markups, list) and markups and all(isinstance(one, dict) for one in markups)
    if not sound or (limit and len(markups) > limit):
        count = "one entry" if limit else "entries"
        raise FormatError(f"points '{path}' are not a point list of 3D Slicer with {count} in 'markups'")
    for one in markups:
        units = one.get("coordinateUnits", "mm")
        if (units[:1] if isinstance(units, list) else [units]) != [
            "mm"
        ]:  # a DICOM code is a list, code first
            raise FormatError(f"points '{path}' are not in mm but in {units}; convert them")
        if not isinstance(one.get("controlPoints"), list) or not one["controlPoints"]:
            raise FormatError(f"points '{path}' are empty: no controlPoints")
    return content, markups


def _position(point: Any) -> Float64 | None:
    """Of a control point; None where it is not defined."""
    try:
        position = np.array(point["position"], dtype=np.float64).reshape(3)
    except (KeyError, TypeError, ValueError):
        return None
    # Slicer keeps a position for points that are only planned or known to be missing.
    if not np.isfinite(position).all() or point.get("positionStatus", "defined") != "defined":
        return None
    return position


def _read_json(path: Path) -> Float64:
    _, markups = _markups(path, limit=1)
    points = []
    for number, point in enumerate(markups[0]["controlPoints"], start=1):
        position = _position(point)
        if position is None:
            raise FormatError(f"points '{path}': control point {number} has no defined position")
        points.append(position)
    return np.array(points) * _sign(_system(markups[0]), path)


def _open_json(path: Path) -> PointFile:
    content, markups = _markups(path)
    places, points, labels = [], [], []
    for one in markups:
        if one.get("type") in ("ROI", "Plane"):
            raise FormatError(
                f"points '{path}' hold a {one['type']} of 3D Slicer's, which no warp keeps flat; export its "
                "corners as a point list"
            )
        for point in one["controlPoints"]:
            position = _position(point)
            if position is not None:
                places.append((one, point))
                points.append(position * _sign(_system(one), path))
                labels.append(str(point.get("label", "")))
    if not points:
        raise FormatError(f"points '{path}': no control point has a defined position")

    def text(moved: Float64) -> str:
        for (one, point), new in zip(places, moved, strict=True):
            point["position"] = [float(_decimal(value)) for value in new * _sign(_system(one), path)]
        for one in markups:  # lengths and angles as they were before; Slicer measures again as it loads
            for measurement in one.get("measurements") or []:
                if isinstance(measurement, dict):
                    measurement.pop("value", None)
        return json.dumps(content, indent=4, ensure_ascii=False) + "\n"

    return PointFile(np.array(points), tuple(labels), ".mrk.json", text)


def _system(markups: dict[str, Any]) -> str:
    return str(markups.get("coordinateSystem", "LPS"))


def _sign(system: str, path: Path) -> Float64:
    """What coordinates in a system are multiplied by to be LPS, and LPS ones to be in the system."""
    if system.upper() not in _IS_RAS:
        raise FormatError(f"points '{path}' are in the system '{system}'; only LPS and RAS are known")
    return np.array([-1.0, -1.0, 1.0] if _IS_RAS[system.upper()] else [1.0, 1.0, 1.0])
