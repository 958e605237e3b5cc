"""The results of a benchmark: ``run.json`` says what was run and how, ``results.jsonl`` has a row for each.

A row, of one case and one method, has these keys; what could not be measured is absent or null:

=================== ===================================================================================
dataset, case,      what was registered, by which method
direction, method
status, error       "ok", or "failed" and the reason
versions            regkit, commit (null outside a checkout), method, python
mean_dice           {"before": by the headers alone, "after": ...}, means over the labels
mean_hd95_mm        the same, of the 95th percentile of surface distances, mm
labels              [{"label", "name", "dice_before", "dice", "hd95_before_mm", "hd95_mm"}, ...]
folding_percent     voxels of the fixed image whose Jacobian determinant is 0 or less, unclipped
sd_log_jacobian     of the voxels that do not fold
learn2reg           {"dice", "hd95_voxels", "sdlogj"} by the challenge's own formulas, where both images
                    have one shape
tre_mm              {"before", "after"}, means over the landmarks
agreement           {"before", "after"} of the images themselves, where there are neither labels nor
                    landmarks: of MIND-SSC at low resolution, 0 is chance, 1 perfect
seconds             by stage, "total" last
peak_mb             of the process, before anything was measured
settings            what the method reports
=================== ===================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regkit.core.errors import RegkitError
from regkit.core.jsontext import to_json, without_nan
from regkit.io.atomic import atomic_path

SCHEMA = 1
RUN, ROWS = "run.json", "results.jsonl"
Row = dict[str, Any]
Key = tuple[str, str, str]


def key(row: Row) -> Key:
    """What a row is of: case, direction, method."""
    return row["case"], row["direction"], row["method"]


def read_run(folder: Path) -> dict[str, Any]:
    """What was run in a results folder.

    Raises:
        RegkitError: if there is none, or it is of another version of regkit's results.
    """
    path = folder / RUN
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RegkitError(f"'{folder}' holds no results of a benchmark: it has no {RUN}") from error
    except (OSError, ValueError) as error:
        raise RegkitError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        schema = run.get("schema") if isinstance(run, dict) else None
        raise RegkitError(
            f"'{folder}' holds results of another version of regkit (format {schema}, this one writes "
            f"{SCHEMA}); give another folder, or read it with the regkit that made it"
        )
    return run


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Say what is run in a results folder."""
    with atomic_path(folder / RUN) as temporary:
        temporary.write_text(to_json({"schema": SCHEMA, **run}) + "\n", encoding="utf-8")


def read_rows(folder: Path) -> list[Row]:
    """The rows of a results folder, in the order in which they were finished.

    A last line that was cut off, as by a kill, counts as not there.

    Raises:
        RegkitError: if a line is damaged; nothing is changed.
    """
    path = folder / ROWS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RegkitError(f"'{path}' cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            key(row)
        except (ValueError, TypeError, KeyError) as error:
            raise RegkitError(
                f"line {number} of '{path}' is damaged; delete that line to run it again"
            ) from error
        rows.append(row)
    return rows


def drop_failed(folder: Path) -> None:
    """Take the rows of failures out, so that they are run again."""
    lines = [json.dumps(row) + "\n" for row in read_rows(folder) if row["status"] == "ok"]
    with atomic_path(folder / ROWS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a results folder to this process.

    Raises:
        RegkitError: if another one is writing there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)  # of the folder: files are replaced
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RegkitError(
                f"another benchmark is writing to '{folder}'; wait for it or stop it"
            ) from error
        yield
    finally:
        os.close(descriptor)


def append_row(folder: Path, row: Row) -> None:
    """Add a row for good: it is on the disk when this returns.

    Raises:
        RegkitError: if it cannot be written.
    """
    path = folder / ROWS
    line = json.dumps(without_nan(row), allow_nan=False) + "\n"
    try:
        with path.open("a+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            if end:
                stream.seek(end - 1)
                if stream.read(1) != b"\n":  # what a killed run left of its last line
                    stream.seek(0)
                    stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise RegkitError(f"could not write '{path}': {error.strerror or error}") from error
