"""Landmark files: one point per row, LPS mm once read.

* ``.csv``: columns x, y, z under a header (others, such as a name, are ignored), or three bare columns; LPS.
  Tables of 3D Slicer name theirs r, a, s (or l, p, s); spreadsheets of some countries write ``5,0;6,0``.
* ``.fcsv`` and ``.mrk.json``: point lists of 3D Slicer, LPS or RAS as they say themselves.

Formats of Slicer: https://slicer.readthedocs.io/en/latest/developer_guide/modules/markups.html
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit.atomic import atomic_path
from regkit.errors import RegkitError
from regkit.outputs import check_output

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


def read_points(path: str | os.PathLike[str]) -> Float64:
    """Points of a .csv, .fcsv or .mrk.json file.

    Returns:
        (n, 3), LPS mm, n >= 1.

    Raises:
        RegkitError: if the file is missing, of another kind, without points, or holds what is no number.
    """
    path = Path(path)
    if path.name.endswith(".json"):
        return _read_json(path)
    if path.suffix not in (".csv", ".fcsv"):
        raise RegkitError(f"points '{path}': the name must end in {' or '.join(POINT_SUFFIXES)}")
    text = _read_text(path)
    if path.suffix == ".csv":
        return _read_csv(text, path)
    system = re.search(r"^#\s*CoordinateSystem\s*=\s*(\w+)", text, re.MULTILINE)
    columns = re.search(r"^#\s*columns\s*=\s*(.+)$", text, re.MULTILINE)
    if not system:
        raise RegkitError(f"points '{path}' state no system; add a line '# CoordinateSystem = LPS' (or RAS)")
    table = _read_table(text, path, ("x", "y", "z"), columns[1] if columns else _FCSV_COLUMNS)
    return _to_lps(table, system[1], path)


def read_pairs(path: str | os.PathLike[str]) -> tuple[Float64, Float64]:
    """Matching landmarks of two images, from a .csv with columns fx, fy, fz, mx, my, mz (LPS mm).

    Returns:
        Points of the fixed and of the moving image, (n, 3) each, LPS mm.

    Raises:
        RegkitError: as for :func:`read_points`.
    """
    path = Path(path)
    table = _read_table(_read_text(path), path, ("fx", "fy", "fz", "mx", "my", "mz"))
    return table[:, :3], table[:, 3:]


def write_points(path: str | os.PathLike[str], points: npt.ArrayLike) -> None:
    """Write points, LPS mm, shape (n, 3), in the format of the ending: .csv, .fcsv or .mrk.json.

    Raises:
        RegkitError: if the file cannot be written.
    """
    path = check_output(path, POINT_SUFFIXES)
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise RegkitError(f"points must have the shape (n, 3), got {array.shape}")
    # A tenth of a micrometre.
    rows = [[f"{value:.4f}" for value in point] for point in array]
    if path.suffix == ".csv":
        lines = ["x,y,z", *(",".join(row) for row in rows)]
    elif path.suffix == ".fcsv":
        lines = ["# Markups fiducial file version = 4.13", "# CoordinateSystem = LPS"]
        lines.append(f"# columns = {_FCSV_COLUMNS}")
        lines += [f"{i},{','.join(row)},0,0,0,1,1,1,0,F-{i},," for i, row in enumerate(rows, start=1)]
    else:
        markups: dict[str, Any] = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm"}
        markups["controlPoints"] = [
            {"id": str(i), "label": f"F-{i}", "position": list(map(float, row)), "positionStatus": "defined"}
            for i, row in enumerate(rows, start=1)
        ]
        lines = [json.dumps({"@schema": _SCHEMA, "markups": [markups]}, indent=1)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark first
    except FileNotFoundError as error:
        raise RegkitError(f"points '{path}' do not exist") from error
    except OSError as error:
        raise RegkitError(f"points '{path}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RegkitError(f"points '{path}' are not a text file") from error


def _read_csv(text: str, path: Path) -> Float64:
    """Points of a table, whose header may name the system of 3D Slicer's tables."""
    first = next((line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"), "")
    cells = {cell.strip().lower() for cell in re.split("[,;\t]", first)}
    for names, system in ((("r", "a", "s"), "RAS"), (("l", "p", "s"), "LPS")):
        if not cells >= set(names):
            continue
        # Slicer keeps a row for points that are only planned, and a position with it.
        if "defined" in cells:
            defined = _read_table(text, path, ("defined",))[:, 0]
            if (defined == 0).any():
                raise RegkitError(f"points '{path}': point {defined.argmin() + 1} has no defined position")
        return _to_lps(_read_table(text, path, names), system, path)
    return _read_table(text, path, ("x", "y", "z"))


def _read_table(text: str, path: Path, names: Sequence[str], header: str | None = None) -> Float64:
    """The named columns of text separated by commas, semicolons or tabs as numbers, (n, len(names)).

    Args:
        header: the line of column names where the text holds it in a comment; otherwise the first row
            that does not consist of numbers alone is the header, and without one the columns are ``names``.
    """
    lines = text.splitlines()
    first = next((line for line in lines if line.strip() and line.lstrip()[0] != "#"), "")
    separator = next((sign for sign in ";\t" if header is None and first.count(sign) > 1), ",")
    try:
        rows = [
            (number, [cell.strip() for cell in row])
            for number, row in enumerate(csv.reader(lines, delimiter=separator), start=1)
            if row and any(cell.strip() for cell in row) and not row[0].lstrip().startswith("#")
        ]
    except csv.Error as error:
        raise RegkitError(f"points '{path}' are no table of text: {error}") from error
    if separator != ",":  # then a comma is the decimal point
        rows = [(number, [re.sub(r"^([-+]?\d+),(\d+)", r"\1.\2", c) for c in row]) for number, row in rows]
    if not rows:
        raise RegkitError(f"points '{path}' are empty")
    if header is not None:
        columns = [cell.strip().lower() for cell in header.split(",")]
    elif any(_number(cell) is None for cell in rows[0][1]):
        columns = [cell.lower() for cell in rows.pop(0)[1]]
    elif len(rows[0][1]) == len(names):
        columns = list(names)
    else:
        raise RegkitError(
            f"points '{path}' have {len(rows[0][1])} columns and no header; "
            f"give the {len(names)} columns {','.join(names)} or name them in a first line"
        )
    missing = [name for name in names if name not in columns]
    if missing:
        raise RegkitError(f"points '{path}' have no column {', '.join(missing)} among {', '.join(columns)}")
    where = [columns.index(name) for name in names]
    if not rows:
        raise RegkitError(f"points '{path}' are empty below their header")
    table = np.empty((len(rows), len(names)))
    for index, (line, row) in enumerate(rows):
        for column, name in zip(where, names, strict=True):
            value = _number(row[column]) if column < len(row) else None
            if value is None or not math.isfinite(value):
                found = repr(row[column]) if column < len(row) else "nothing"
                raise RegkitError(f"points '{path}', line {line}: {found} for {name} is no finite number")
            table[index, names.index(name)] = value
    return table


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _read_json(path: Path) -> Float64:
    try:
        content: Any = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise RegkitError(f"points '{path}' are not valid JSON: {error}") from error
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or len(markups) != 1 or not isinstance(markups[0], dict):
        raise RegkitError(f"points '{path}' are not a point list of 3D Slicer with one entry in 'markups'")
    units = markups[0].get("coordinateUnits", "mm")
    if (units[:1] if isinstance(units, list) else [units]) != ["mm"]:  # a DICOM code is a list, code first
        raise RegkitError(f"points '{path}' are not in mm but in {units}; convert them")
    control = markups[0].get("controlPoints")
    if not isinstance(control, list) or not control:
        raise RegkitError(f"points '{path}' are empty: no controlPoints")
    points = np.empty((len(control), 3))
    for index, point in enumerate(control):
        try:
            points[index] = np.array(point["position"], dtype=np.float64).reshape(3)
        except (KeyError, TypeError, ValueError):
            points[index] = np.nan
        # Slicer keeps a position for points that are only planned or known to be missing.
        if not np.isfinite(points[index]).all() or point.get("positionStatus", "defined") != "defined":
            raise RegkitError(f"points '{path}': control point {index + 1} has no defined position")
    return _to_lps(points, str(markups[0].get("coordinateSystem", "LPS")), path)


def _to_lps(points: Float64, system: str, path: Path) -> Float64:
    if system.upper() not in _IS_RAS:
        raise RegkitError(f"points '{path}' are in the system '{system}'; only LPS and RAS are known")
    return points * np.array([-1.0, -1.0, 1.0]) if _IS_RAS[system.upper()] else points
