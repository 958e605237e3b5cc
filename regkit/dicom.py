"""The slices of a DICOM folder: of one series, in order, and evenly stacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from regkit.errors import RegkitError

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"


def series_files(folder: Path, what: str) -> list[str]:
    """Files of the only series in a folder, sorted along the normal of the slices.

    Args:
        what: the folder's role and name, for messages.

    Raises:
        RegkitError: if there is no series, or several, or its slices make no even stack.
    """
    found = {
        uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    if not found:
        raise RegkitError(f"{what} is a folder without DICOM images; give a file or the folder of one series")
    if len(found) > 1:
        counts = ", ".join(f"{uid} ({len(names)} files)" for uid, names in found.items())
        raise RegkitError(f"{what} holds {len(found)} DICOM series; give a folder with one of them: {counts}")
    (names,) = found.values()
    return _stacked(names, what) if len(names) > 1 else list(names)


def _stacked(names: Sequence[str], what: str) -> list[str]:
    """Slices sorted along their normal, each within a fifth of a step of its place in an even stack."""
    headers = [_header(name, what) for name in names]
    positions, axes = (
        np.array([[float(v) for v in h.GetMetaData(tag).split("\\")] for h in headers])
        for tag in (_POSITION, _ORIENTATION)
    )
    if len({h.GetSize() for h in headers}) > 1 or np.abs(axes - axes[0]).max() > 1e-3:
        raise RegkitError(f"{what}: the slices of its DICOM series differ in size or orientation")
    normal = np.cross(axes[0, :3], axes[0, 3:])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    length = float((positions[-1] - positions[0]) @ normal)
    step = length / (len(names) - 1)
    even = positions[0] + np.linspace(0, length, len(names))[:, None] * normal
    apart = float(np.linalg.norm(positions - even, axis=1).max())
    if step == 0 or apart > 0.2 * step:
        raise RegkitError(
            f"{what}: its {len(names)} DICOM slices do not stack evenly (up to {apart:.2f} mm off a step of "
            f"{step:.2f} mm): slices are missing, several volumes share the series or the gantry was tilted; "
            "select or resample the slices and convert them to NIfTI first"
        )
    return [names[i] for i in order]


def _header(name: str, what: str) -> sitk.ImageFileReader:
    header = sitk.ImageFileReader()
    header.SetFileName(name)
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise RegkitError(f"{what}: cannot read the DICOM slice '{name}'") from error
    if not (header.HasMetaDataKey(_POSITION) and header.HasMetaDataKey(_ORIENTATION)):
        raise RegkitError(f"{what}: the DICOM slice '{name}' says nothing of its position or orientation")
    return header
