"""DICOM: the slices of a folder and the frames of a file, in order, and evenly stacked.

Classic slices are read by ITK's GDCM. Files of many frames, whose places, slopes and segments stand in
sequences that ITK does not tell, are read by pydicom, of the extra ``regkit[dicom]``.

Functional groups: DICOM PS3.3 C.7.6.16; segmentations: PS3.3 C.8.20; doses: PS3.3 C.8.8.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit import guard
from regkit.errors import RegkitError, reason
from regkit.geometry import Float64, Grid

_CLASS, _POSITION, _ORIENTATION, _FRAMES = "0008|0016", "0020|0032", "0020|0037", "0028|0008"
_SEGMENTATION, _DOSE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2"
# What holds no voxels, by the beginnings of its SOP class below 1.2.840.10008.5.1.4.1.1.
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NO_IMAGE = {
    "481.3": "a structure set (RTSTRUCT)",
    "481.5": "a treatment plan (RTPLAN)",
    "481.8": "a treatment plan (RTPLAN)",
    "88.59": "a selection of key objects",
    "88": "a structured report",
    "11": "a presentation state",
    "104": "an encapsulated document",
    "66.1": "a spatial registration",
    "66.3": "a deformable spatial registration",
    "66.5": "a surface segmentation",
    "66": "raw data",
    "4.2": "a spectroscopy",
    "9": "a waveform",
}
_HEADERS_AT_ONCE = 500


def series_files(folder: Path, what: str) -> list[str]:
    """Files of the only series of images in a folder, sorted along the normal of the slices.

    Args:
        what: the folder's role and name, for messages.

    Raises:
        RegkitError: if there is no series, or several, or its slices make no even stack.
    """
    found = guard.list_series(folder)
    images = {uid: names for uid, names in found.items() if not no_image(Path(names[0]))}
    if not images:
        raise RegkitError(f"{what} is a folder without DICOM images; give a file or the folder of one series")
    if len(images) > 1:
        counts = ", ".join(f"{uid} ({len(names)} files)" for uid, names in images.items())
        raise RegkitError(
            f"{what} holds {len(images)} DICOM series; give a folder with one of them: {counts}"
        )
    (names,) = images.values()
    return _stacked(names, what) if len(names) > 1 else list(names)


def no_image(path: Path) -> str | None:
    """What a DICOM file is by its SOP class if that holds no voxels, such as "a structured report"."""
    with path.open("rb") as file:
        head = file.read(4096)
    # The class stands in the file's own header, which is little endian with explicit types in all files.
    found = (
        re.search(rb"\x02\x00\x02\x00UI..([0-9.]+)", head, re.DOTALL) if head[128:132] == b"DICM" else None
    )
    rest = found[1].decode().removeprefix(_STORAGE) if found else ""
    return next(
        (name for part, name in _NO_IMAGE.items() if rest == part or rest.startswith(part + ".")), None
    )


def has_frames(tags: dict[str, str]) -> bool:
    """Whether a file is for :func:`read_frames`, by its tags (:class:`regkit.guard.Header`)."""
    count = tags.get(_FRAMES, "").strip()
    return tags.get(_CLASS, "").strip("\0 ") == _SEGMENTATION or (count.isdecimal() and int(count) > 1)


def read_frames(path: Path) -> tuple[npt.NDArray[Any], Grid, bool]:
    """The volume of one file of many frames: enhanced CT, MR and PET, doses, and segmentations.

    Returns:
        (z, y, x), its grid, and whether it is a segmentation: then the numbers of its segments, 0 where there
        is none, on a grid that ends where they do.

    Raises:
        RegkitError: without pydicom, if the frames make no even stack, have no place, or are damaged, and
            if segments overlap or are fractions; without the file's name.
    """
    try:
        import pydicom
    except ImportError:
        raise RegkitError(
            "holds DICOM frames, whose places pydicom reads: pip install 'regkit[dicom]', "
            "or convert it to NIfTI"
        ) from None
    try:
        dataset = pydicom.dcmread(path)
        pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # of pydicom, as the damage or a missing decoder will have it
        raise RegkitError(
            f"cannot be read: its DICOM frames are damaged or compressed ({reason(error)})"
        ) from error
    try:
        array, grid = _frames(dataset, pixels if pixels.ndim == 3 else pixels[None])
        return array, grid, str(dataset.SOPClassUID) == _SEGMENTATION
    except RegkitError:
        raise
    except Exception as error:  # numbers that are none, sequences that are shorter than they should be
        raise RegkitError(f"cannot be read: its DICOM header is damaged ({reason(error)})") from error


def _frames(dataset: Any, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Grid]:
    count = int(dataset.NumberOfFrames)
    if pixels.shape != (count, int(dataset.Rows), int(dataset.Columns)):
        raise RegkitError(f"is damaged: {count} frames were promised, and the array is {pixels.shape}")
    if str(dataset.SOPClassUID) == _DOSE:
        return _dose(dataset, pixels)
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence", []))
    if len(groups) != count:
        raise RegkitError(
            f"holds {count} DICOM frames that do not say where they lie; convert it to NIfTI with a tool "
            "that knows its scanner"
        )
    shared = (list(dataset.get("SharedFunctionalGroupsSequence", [])) or [None])[0]

    def value(k: int, sequence: str, name: str, default: Any = None) -> Any:
        for group in (groups[k], shared):
            items = group.get(sequence) if group is not None else None
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        if default is None:
            raise RegkitError(f"does not say the {name} of frame {k + 1}; it is no volume in space")
        return default

    frames = range(count)
    positions = np.array([value(k, "PlanePositionSequence", "ImagePositionPatient") for k in frames], float)
    axes = np.array([value(k, "PlaneOrientationSequence", "ImageOrientationPatient") for k in frames], float)
    sides = np.array([value(k, "PixelMeasuresSequence", "PixelSpacing") for k in frames], float)
    if np.abs(axes - axes[0]).max() > 1e-3 or np.abs(sides - sides[0]).max() > 1e-4 * sides[0].min():
        raise RegkitError(
            "holds DICOM frames that differ in orientation or spacing; convert them to NIfTI first"
        )
    if str(dataset.SOPClassUID) == _SEGMENTATION:
        step = float(value(0, "PixelMeasuresSequence", "SpacingBetweenSlices", 0) or 0)
        numbers = [int(value(k, "SegmentIdentificationSequence", "ReferencedSegmentNumber")) for k in frames]
        if dataset.get("SegmentationType") != "BINARY":
            raise RegkitError(
                f"is a segmentation of type {dataset.get('SegmentationType')}; only BINARY is read"
            )
        return _segments(pixels, numbers, positions, axes[0], sides[0], step)
    order, step = _order(positions, axes[0])
    transform = "PixelValueTransformationSequence"
    slopes, intercepts = (
        np.array([value(k, transform, name, default) for k in order], float)
        for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    array = pixels[order]
    if (slopes != 1).any() or (intercepts != 0).any():
        array = array.astype(np.float32) * slopes[:, None, None].astype(np.float32)
        array += intercepts[:, None, None].astype(np.float32)
    return array, _grid(array, positions[order[0]], axes[0], sides[0], step)


def _dose(dataset: Any, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Grid]:
    """A dose in its units, its planes by their offsets."""
    axes = np.array(dataset.ImageOrientationPatient, float)
    offsets = np.array(dataset.GridFrameOffsetVector, float)
    normal = np.cross(axes[:3], axes[3:])
    first = np.array(dataset.ImagePositionPatient, float)
    # Offsets are from the first plane where the first of them is 0, else they are coordinates.
    if offsets[0] != 0:
        first = first + normal * (offsets[0] - first @ normal)
        offsets = offsets - offsets[0]
    positions = first + offsets[:, None] * normal
    order, step = _order(positions, axes)
    array = pixels[order].astype(np.float32) * np.float32(dataset.DoseGridScaling)
    return array, _grid(array, positions[order[0]], axes, np.array(dataset.PixelSpacing, float), step)


def _segments(
    pixels: npt.NDArray[Any],
    numbers: Sequence[int],
    positions: Float64,
    axes: Float64,
    sides: Float64,
    step: float,
) -> tuple[npt.NDArray[Any], Grid]:
    """The frames of all segments, of which each has those only where it is, as one label map."""
    normal = np.cross(axes[:3], axes[3:])
    along = positions @ normal
    if step <= 0:
        gaps = np.diff(np.unique(np.round(along, 4)))
        step = float(gaps.min()) if gaps.size else 0.0
    if step <= 0:
        raise RegkitError("is a segmentation of one slice, and no volume")
    place = np.rint((along - along.min()) / step).astype(int)
    first = positions[along.argmin()]
    apart = np.linalg.norm(positions - (first + place[:, None] * step * normal), axis=1).max()
    if apart > 0.2 * step:
        raise RegkitError(f"is a segmentation whose slices do not stack evenly, up to {apart:.2f} mm off")
    array = np.zeros((place.max() + 1, *pixels.shape[1:]), np.uint16)
    for frame, number, k in zip(pixels, numbers, place, strict=True):
        inside = frame != 0
        if (array[k][inside] != 0).any():
            raise RegkitError("is a segmentation whose segments overlap; a label map has one label a voxel")
        array[k][inside] = number
    return array, _grid(array, first, axes, sides, step)


def _grid(array: npt.NDArray[Any], first: Float64, axes: Float64, sides: Float64, step: float) -> Grid:
    """The grid of slices (z, y, x) from the first one's position.

    Args:
        sides: mm between rows, then between columns (DICOM's PixelSpacing).
    """
    direction = np.stack([axes[:3], axes[3:], np.cross(axes[:3], axes[3:])], axis=1)
    size = (array.shape[2], array.shape[1], array.shape[0])
    return Grid(size, (float(sides[1]), float(sides[0]), step), tuple(first), tuple(direction.ravel()))


def _stacked(names: Sequence[str], what: str) -> list[str]:
    """Slices sorted along their normal."""
    headers = []
    for k in range(0, len(names), _HEADERS_AT_ONCE):
        headers += guard.read_headers(names[k : k + _HEADERS_AT_ONCE])
    positions, axes = (
        np.array([_numbers(tags.get(tag, ""), count, name, what) for name, (_, tags) in zip(names, headers)])
        for tag, count in ((_POSITION, 3), (_ORIENTATION, 6))
    )
    if len({size for size, _ in headers}) > 1 or np.abs(axes - axes[0]).max() > 1e-3:
        raise RegkitError(f"{what}: the slices of its DICOM series differ in size or orientation")
    try:
        order, _ = _order(positions, axes[0])
    except RegkitError as error:
        raise RegkitError(f"{what}: {error}") from None
    return [names[k] for k in order]


def _numbers(text: str, count: int, name: str, what: str) -> list[float]:
    """The numbers of a DICOM tag."""
    if not text.strip("\0 "):
        raise RegkitError(f"{what}: the DICOM slice '{name}' says nothing of its position or orientation")
    try:
        numbers = [float(value) for value in text.strip("\0 ").split("\\")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise RegkitError(
            f"{what}: the DICOM slice '{name}' has '{text.strip()[:60]}' for its position or axes"
        )
    return numbers


def _order(positions: Float64, axes: Float64) -> tuple[npt.NDArray[np.int64], float]:
    """The order of slices along their normal and the step, mm, if each is within a fifth of it in its place.

    Raises:
        RegkitError: if they do not stack evenly; without the file's name.
    """
    normal = np.cross(axes[:3], axes[3:])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    if len(order) < 2:
        return order, 1.0
    length = float((positions[-1] - positions[0]) @ normal)
    step = length / (len(order) - 1)
    even = positions[0] + np.linspace(0, length, len(order))[:, None] * normal
    apart = float(np.linalg.norm(positions - even, axis=1).max())
    if step == 0 or not apart <= 0.2 * step:
        raise RegkitError(
            f"its {len(order)} DICOM slices do not stack evenly (up to {apart:.2f} mm off a step of "
            f"{step:.2f} mm): slices are missing, several volumes share the series or the gantry was tilted; "
            "select or resample the slices and convert them to NIfTI first"
        )
    return order, step
