"""The tables and the page that tell of all pairs: ``summary.csv`` and ``report.html``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regkit.cohort.html_page import page_of
from regkit.cohort.pairs import REPORT, SUMMARY
from regkit.cohort.result_rows import Row, read_row
from regkit.io.atomic import atomic_path, together

_ROUNDS = 5  # of writing, while others write as well
_FIRST = ("pair", "status", "verdict")
_LAST = ("seconds", "peak_mb", "host", "made_by", "fixed", "moving", "warp", "warnings", "error")


def write_summary(folder: Path, names: Sequence[str]) -> list[Row]:
    """Write the table and the page of a cohort, as far as its pairs are done.

    Several parts of one cohort may end at a time, each of which writes them. So the rows are read again after
    that: whoever writes last has seen all that was done before.

    Args:
        names: of all pairs, in the order of the table.

    Returns:
        The rows of all pairs.

    Raises:
        RegkitError: if they cannot be written.
    """
    rows = [read_row(folder, name) for name in names]
    for _ in range(_ROUNDS):
        values = [measures(row) for row in rows]
        texts = {SUMMARY: table_of(rows, values), REPORT: page_of(folder, rows, values)}
        with together():
            for name, text in texts.items():
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        written, rows = rows, [read_row(folder, name) for name in names]
        if rows == written:
            break
    return rows


def measures(row: Row) -> dict[str, float]:
    """What was measured of a pair, by the names of the table's columns; what was not is left out.

    The gates of the verdict have their own names, and all else a name with its unit.
    """
    metrics, landmarks = row.get("metrics", {}), row.get("landmarks", {})
    columns = {f"gate_{gate['name']}": gate["value"] for gate in row.get("verdict", {}).get("gates", ())}
    for name in ("mean_dice", "mean_hd95_mm"):
        values = metrics.get(name, {})
        columns |= {f"{name}_before": values.get("before"), name: values.get("after")}
    columns["landmarks"] = landmarks.get("count")
    for name in ("tre_before_mm", "tre_mm"):
        values = landmarks.get(name, {})
        columns |= {name: values.get("mean"), f"{name}_max": values.get("max")}
    columns |= {name: metrics.get(name) for name in ("folding_percent", "sd_log_jacobian")}
    return {name: value for name, value in columns.items() if value is not None and math.isfinite(value)}


def table_of(rows: Sequence[Row], measured: Sequence[Mapping[str, float]]) -> str:
    """The rows as CSV, a line a pair; what was not measured is empty."""
    columns = list(dict.fromkeys(name for one in measured for name in one))
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow([*_FIRST, *columns, *_LAST])
    for row, values in zip(rows, measured):
        cells: Mapping[str, Any] = row | {
            "verdict": row.get("verdict", {}).get("level"),
            "seconds": row.get("seconds", {}).get("total"),
            "warp": row.get("outputs", {}).get("warp"),
            "warnings": "; ".join(row.get("warnings", ())),
        }
        table.writerow([_cell(cells.get(name)) for name in _FIRST]
                       + [_cell(values.get(name)) for name in columns]
                       + [_cell(cells.get(name)) for name in _LAST])  # fmt: skip
    return stream.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
