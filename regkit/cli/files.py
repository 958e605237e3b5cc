"""Files that several commands name: checked before any work, read when needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regkit.cli.console import warn
from regkit.core.errors import RegkitError, UsageError

if TYPE_CHECKING:
    from regkit.core.geometry import Float64, Grid
    from regkit.io.dicom import DicomSeries
    from regkit.warp import Warp

IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
SERIES = (*IMAGES, "/")  # or a folder for a DICOM series
LABELS = (*IMAGES, ".dcm")  # or a DICOM segmentation
WARPS = (*IMAGES, ".h5", ".npz")
MATRICES = (".tfm", ".txt", ".mat", ".h5")
PICTURES = (".png",)
REPORTS = (".html",)


def check_outputs(
    outputs: Iterable[tuple[Path | str | None, Sequence[str]]],
    inputs: Iterable[Path | str | None],
    overwrite: bool,
    recorded: Path | str | None = None,
) -> None:
    """Check before any work that all results can be written, and that nothing would be lost by it.

    Args:
        outputs: each with the endings allowed; None where it is not asked for.
        inputs: what is read.
        overwrite: whether files that exist already may be replaced.
        recorded: the output that a record is written beside.

    Raises:
        RegkitError: if one cannot be written, exists, is an input, or is named twice.
    """
    from regkit.io.outputs import check_output, is_folder

    read = {Path(path).resolve() for path in inputs if path is not None}
    places: set[Path] = set()
    for path, suffixes in outputs:
        if path is None:
            continue
        place = check_output(path, suffixes).resolve()
        if place in read:
            raise UsageError(f"cannot write '{path}': it is one of the inputs; give another name")
        if place in places:
            raise UsageError(f"cannot write '{path}' twice: two outputs have this name; give another")
        if is_folder(path):
            if above := read & set(place.parents):
                raise UsageError(f"cannot write '{path}': it lies in '{above.pop()}', which is an input")
        elif os.path.exists(place) and not overwrite:
            raise UsageError(f"'{path}' exists already; add --overwrite to replace it, or give another name")
        places.add(place)
    if recorded is not None:
        from regkit.io.provenance import check_record

        check_record(recorded)


def check_log(path: Path | None) -> None:
    """Check that a log can be written; it is appended to, so that it may exist."""
    from regkit.io.outputs import check_output

    if path is not None:
        check_output(path, (".log",))


@contextlib.contextmanager
def recorded(
    outputs: Mapping[str, Path | str | None], inputs: Mapping[str, object], **settings: object
) -> Iterator[None]:
    """Files written in the block appear together, with the record of the run beside the first of them.

    Args:
        outputs, inputs: by their roles; None where there is none.
        settings: all else that the results depend on.
    """
    from regkit.io.atomic import together
    from regkit.io.provenance import command_line, record_of, write_record

    files = {role: path for role, path in outputs.items() if path is not None}
    with together():
        yield
        write_record(next(iter(files.values())), record_of(inputs, settings, command_line()), files)


def in_series(path: Path, series: str | None) -> Path | DicomSeries:
    """A file or folder, or the series of it that an option names."""
    if series is None:
        return path
    from regkit.io.dicom import DicomSeries

    return DicomSeries(path, series)


def optional_grid(path: Path | DicomSeries | None, role: str) -> Grid | None:
    """The grid of an image, whatever its voxels hold; None without one."""
    from regkit.io.images import load_grid

    return None if path is None else load_grid(path, role)


def load_warp(path: Path, fixed: Grid | None, moving: Grid | None) -> Warp:
    """A warp on the grid of its file; on ``fixed`` only where the file has none.

    Sampled on a larger grid, a field would break off at the border of its own.

    Raises:
        RegkitError: if it cannot be read, or not without a grid that was not given.
    """
    from regkit.warp import Warp

    try:
        return Warp.load(path, None, moving)
    except RegkitError:
        if fixed is None:
            raise
    return Warp.load(path, fixed, moving)


def warn_outside(points: Float64, grid: Grid, effect: str) -> int:
    """Count the points, LPS mm (n, 3), beyond a grid, with a warning if there are any."""
    from regkit.warp import contains

    outside = len(points) - int(contains(grid, points).sum())
    if outside:
        warn(f"{outside} of {len(points)} points lie outside the warp's field; {effect}")
    return outside
