"""The files of a registration: all computed first, then all written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regkit.core.errors import RegkitError
from regkit.io.atomic import together
from regkit.io.formats import LINEAR_SUFFIXES, write_linear, write_warp
from regkit.io.images import LabelledVolume, load_image, load_labels
from regkit.io.outputs import is_folder, save_image, save_slicer_segmentation
from regkit.io.provenance import write_record
from regkit.io.segments import SLICER, LayeredSegmentation, named_segments
from regkit.transforms import CoarsenedWarp, coarsened

if TYPE_CHECKING:
    from regkit.io.images import ImageLike, Volume
    from regkit.registration_result import Registration


def write_results(
    result: Registration,
    files: Mapping[str, str | Path],
    fixed: ImageLike,
    fixed_labels: ImageLike | None = None,
    moving_labels: ImageLike | None = None,
    *,
    moving: ImageLike | None = None,
    label_names: Mapping[int, str] | None = None,
    record: Mapping[str, Any] | None = None,
    warp_spacing: float | None = None,
) -> dict[str, CoarsenedWarp]:
    """Write what ``files`` asks for: all of it, or nothing.

    Args:
        files: where to write any of "warp" (a linear result also as a linear transform), "inverse",
            "linear", "moved", "moved_labels", "uncertainty", "figure", "report" and "report_3d".
        fixed, fixed_labels, moving_labels: as they were registered; read again for the figure and the report.
        moving: as it was registered; named as its source by a DICOM series.
        label_names: of the moved labels, where the file has room for names.
        record: of the run (:func:`regkit.io.provenance.record_of`), to be written beside the first file
            and shown in the report.
        warp_spacing: mm, of the voxels of the warps that are written; by default those of the images.

    Returns:
        The warps that were written on larger voxels, by output.

    Raises:
        RegkitError: if a file cannot be written.
    """
    warp, inverse = result.warp, result.warp.inverse() if "inverse" in files else None
    stored: dict[str, CoarsenedWarp] = {}
    if warp_spacing is not None:
        stored["warp"] = coarsened(warp, warp_spacing)
        warp = stored["warp"].warp
        if inverse is not None:
            stored["inverse"] = coarsened(inverse, warp_spacing)
            inverse = stored["inverse"].warp
        if record is not None:
            record = {**record, "stored": {name: coarse.to_dict() for name, coarse in stored.items()}}
    volumes: dict[str, Volume] = {}
    if "moved" in files:
        volumes["moved"] = result.moved
    if "moved_labels" in files and result.moved_labels is not None:
        volumes["moved_labels"] = result.moved_labels
    if "uncertainty" in files and result.uncertainty is not None:
        volumes["uncertainty"] = result.uncertainty

    with together():
        if "warp" in files:
            if str(files["warp"]).endswith(LINEAR_SUFFIXES):
                write_linear(result.linear, files["warp"])
            else:
                write_warp(warp, files["warp"])
        if inverse is not None:
            write_warp(inverse, files["inverse"])
        if "linear" in files:
            write_linear(result.linear, files["linear"])
        for name, volume in volumes.items():
            save_volume(volume, files[name], fixed, moving, label_names)
        shows_fixed = {"figure", "report", "report_3d"} & set(files)
        fixed_image = load_image(fixed, "fixed image") if shows_fixed else None
        if "figure" in files and fixed_image is not None:
            from regkit.viz.figure import registration_figure

            registration_figure(
                fixed_image,
                result.moving,
                result.moved,
                files["figure"],
                None if fixed_labels is None else load_labels(fixed_labels, "fixed labels"),
                None if moving_labels is None else load_labels(moving_labels, "moving labels"),
                result.moved_labels,
                result.warp.jacobian(),
            )
        if "report" in files and fixed_image is not None:
            from regkit.viz.htmlreport import write_report

            write_report(result, files["report"], fixed_image, record)
        if "report_3d" in files and fixed_image is not None:
            from regkit.viz.htmlvolumes import write_report_3d

            write_report_3d(result, files["report_3d"], fixed_image)
        if record is not None:
            write_record(next(iter(files.values())), record, files)
    return stored


def save_volume(
    volume: Volume,
    path: str | Path,
    fixed: ImageLike | None = None,
    moving: ImageLike | None = None,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write an image or a label map in whatever the name asks for.

    Args:
        path: a folder (its name ends in a slash, or it is there) for a DICOM series; .dcm for a DICOM
            segmentation and .seg.nrrd for one of 3D Slicer; else an image file.
        fixed, moving: the images that belong to it, for DICOM.
        names: of labels.

    Raises:
        RegkitError: if it cannot be written.
    """
    name = str(path).lower()
    if is_folder(path):
        from regkit.io.dicomwrite import save_series

        save_series(volume, Path(path), fixed, moving)
    elif name.endswith((".dcm", SLICER[0])):
        known = volume.segments if isinstance(volume, LabelledVolume) else ()
        labels = [int(v) for v in np.unique(volume.array) if v]
        save_segments(
            LayeredSegmentation([volume.array], volume.grid, named_segments(labels, names or {}, known)),
            path,
            fixed,
        )
    else:
        save_image(volume.to_sitk(), path)


def save_segments(
    segmentation: LayeredSegmentation, path: str | Path, fixed: ImageLike | None = None
) -> None:
    """Write a segmentation as .dcm or .seg.nrrd, each segment whole.

    Args:
        fixed: the DICOM image that a .dcm refers to.

    Raises:
        RegkitError: if it cannot be written.
    """
    if str(path).lower().endswith(".dcm"):
        from regkit.io import dicomwrite

        dicomwrite.save_dicom_segmentation(segmentation, Path(path), fixed)
    else:
        save_slicer_segmentation(segmentation, path)


def check_dicom(image: str | None, labels: Path | None, fixed: ImageLike | None) -> None:
    """Check before any work that DICOM can be written where it is asked for.

    Args:
        image, labels: names of results, as of :func:`save_volume`.
        fixed: what a DICOM segmentation refers to.

    Raises:
        RegkitError: if it cannot.
    """
    if image is not None and is_folder(image):
        from regkit.io import dicom

        try:
            dicom.pydicom()
        except RegkitError as error:
            raise type(error)(f"'{image}' {error}") from error
    if labels is not None and labels.suffix.lower() == ".dcm":
        from regkit.io.dicomwrite import check_segmentation

        check_segmentation(labels, fixed)
