"""One row for each pair, in a file that is written with its results, so that a killed run can resume.

A row has these keys; what was not measured is absent:

=============== =======================================================================================
pair            its name
status          "begun", "ok" or "failed"; of a pair without a row :func:`read_row` says "pending"
key             of the inputs and settings (:func:`regkit.cohort.pair_job.key_of`)
fixed, moving   the files
outputs         kind of result -> place, relative to the cohort's folder
error           of a failed pair, a line
warnings        lines
verdict         level and gates, as of :class:`regkit.Verdict`
metrics         as of :class:`regkit.Registration`
landmarks       {"count", "tre_before_mm", "tre_mm"}, as of ``regkit demo``
seconds         by stage, "total" last
peak_mb         of the process
made_by, host   regkit's version; the machine
=============== =======================================================================================
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from regkit.core.jsontext import to_json
from regkit.io.atomic import atomic_path

STATE = ".regkit"
"""The folder of rows and thumbnails, in that of the cohort."""
BEGUN, OK, FAILED, PENDING = "begun", "ok", "failed", "pending"
Row = dict[str, Any]


def row_path(folder: Path, name: str) -> Path:
    """The file of a pair's row."""
    return folder / STATE / f"{name}.json"


def thumbnail_path(folder: Path, name: str) -> Path:
    """The file of a pair's picture in the report."""
    return folder / STATE / f"{name}.jpg"


def read_row(folder: Path, name: str) -> Row:
    """The row of a pair; one that says "pending" where there is none that can be read."""
    try:
        row = json.loads(row_path(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        row = None
    known = isinstance(row, dict) and row.get("pair") == name
    return row if known else {"pair": name, "status": PENDING}


def write_row(folder: Path, row: Row) -> None:
    """Write the row of a pair, in place of the one before.

    Raises:
        RegkitError: if it cannot be written.
    """
    with atomic_path(row_path(folder, row["pair"])) as temporary:
        temporary.write_text(to_json(row) + "\n", encoding="utf-8")


def is_complete(folder: Path, row: Row) -> bool:
    """Whether all results that a row names are there."""
    return all(os.path.exists(folder / place) for place in row.get("outputs", {}).values())
