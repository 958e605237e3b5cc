"""DICOM files of many frames: enhanced CT, MR and PET, doses and segmentations, by pydicom.

Their places, slopes and segments stand in sequences that ITK does not tell.

Functional groups: DICOM PS3.3 C.7.6.16; segmentations: PS3.3 C.8.20; doses: PS3.3 C.8.8.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import FormatError, RegkitError, reason
from regkit.core.geometry import Float64, Grid
from regkit.io.dicom import DOSE, lenient, slice_order
from regkit.io.segments import LayeredSegmentation, Packing, Segment

_MAX_EMPTY = 200  # slices of a stack to one frame of a segmentation in it


def read_image(path: Path) -> tuple[npt.NDArray[Any], Grid]:
    """The volume of one file of an image or a dose: (z, y, x), and its grid.

    Raises:
        RegkitError: if the frames make no even stack, have no place, or are damaged; without the file's name.
    """
    return _read(path, _image)


def read_segmentation(path: Path) -> LayeredSegmentation:
    """The segments of one file, on a grid that ends where they do.

    Raises:
        RegkitError: as of :func:`read_image`, and if the segments are fractions.
    """
    return _read(path, _segmentation)


def _read(path: Path, make: Callable[[Any, npt.NDArray[Any]], Any]) -> Any:
    with lenient() as library:
        try:
            dataset = library.dcmread(path)
            pixels = np.asarray(dataset.pixel_array)
        except Exception as error:  # of pydicom, as the damage or a missing decoder will have it
            raise FormatError(
                f"cannot be read: its DICOM frames are damaged or compressed ({reason(error)})"
            ) from error
        try:
            pixels = pixels if pixels.ndim == 3 else pixels[None]
            expected_shape = (
                int(dataset.get("NumberOfFrames") or 1),
                int(dataset.Rows),
                int(dataset.Columns),
            )
            if pixels.shape != expected_shape:
                raise FormatError(
                    f"is damaged: {expected_shape[0]} frames were promised, and the array is {pixels.shape}"
                )
            return make(dataset, pixels)
        except RegkitError:
            raise
        except Exception as error:  # numbers that are none, sequences that are shorter than they should be
            raise FormatError(f"cannot be read: its DICOM header is damaged ({reason(error)})") from error


class _Groups:
    """The functional groups of a file of frames."""

    def __init__(self, dataset: Any, count: int) -> None:
        self._groups = list(dataset.get("PerFrameFunctionalGroupsSequence", None) or [])
        if len(self._groups) != count:
            raise FormatError(
                f"holds {count} DICOM frames that do not say where they lie; convert it to NIfTI with a tool "
                "that knows its scanner"
            )
        self._shared = (list(dataset.get("SharedFunctionalGroupsSequence", None) or []) or [None])[0]
        self._count = count

    def values(self, sequence: str, name: str, default: Any = None) -> list[Any]:
        """What stands in a sequence for each frame, or for all of them."""
        return [self._value(k, sequence, name, default) for k in range(self._count)]

    def _value(self, k: int, sequence: str, name: str, default: Any) -> Any:
        for group in (self._groups[k], self._shared):
            items = group.get(sequence) if group is not None else None
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        if default is None:
            raise FormatError(f"does not say the {name} of frame {k + 1}; it is not a volume in space")
        return default

    def places(self) -> tuple[Float64, Float64, Float64]:
        """The position of each frame, and the axes and the pixel spacing of all."""
        positions, axes, sides = (
            np.array(self.values(sequence, name), float)
            for sequence, name in (
                ("PlanePositionSequence", "ImagePositionPatient"),
                ("PlaneOrientationSequence", "ImageOrientationPatient"),
                ("PixelMeasuresSequence", "PixelSpacing"),
            )
        )
        if np.abs(axes - axes[0]).max() > 1e-3 or np.abs(sides - sides[0]).max() > 1e-4 * sides[0].min():
            raise FormatError(
                "holds DICOM frames that differ in orientation or spacing; convert them to NIfTI first"
            )
        return positions, axes[0], sides[0]


def _image(dataset: Any, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Grid]:
    if str(dataset.SOPClassUID) == DOSE:
        return _dose(dataset, pixels)
    groups = _Groups(dataset, len(pixels))
    positions, axes, sides = groups.places()
    order, step = slice_order(positions, axes)
    transform = "PixelValueTransformationSequence"
    slopes, intercepts = (
        np.array(groups.values(transform, name, default), float)[order]
        for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    array = pixels[order]
    if (slopes != 1).any() or (intercepts != 0).any():
        array = array.astype(np.float32) * slopes[:, None, None].astype(np.float32)
        array += intercepts[:, None, None].astype(np.float32)
    return array, _grid(array, positions[order[0]], axes, sides, step)


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
    order, step = slice_order(positions, axes)
    array = pixels[order].astype(np.float32) * np.float32(dataset.DoseGridScaling)
    return array, _grid(array, positions[order[0]], axes, np.array(dataset.PixelSpacing, float), step)


def _segmentation(dataset: Any, pixels: npt.NDArray[Any]) -> LayeredSegmentation:
    """The frames of all segments, of which each has those only where it is."""
    kind = str(dataset.get("SegmentationType"))
    if kind not in ("BINARY", "LABELMAP"):
        raise FormatError(f"is a segmentation of type {kind}; only BINARY and LABELMAP are read")
    groups = _Groups(dataset, len(pixels))
    positions, axes, sides = groups.places()
    step = float(groups.values("PixelMeasuresSequence", "SpacingBetweenSlices", 0)[0] or 0)
    normal = np.cross(axes[:3], axes[3:])
    along = positions @ normal
    if step <= 0:
        gaps = np.diff(np.unique(np.round(along, 4)))
        step = float(gaps.min()) if gaps.size else 0.0
    if step <= 0:
        raise FormatError("is a segmentation of one slice, and no volume")
    place = np.rint((along - along.min()) / step).astype(int)
    first = positions[along.argmin()]
    apart = np.linalg.norm(positions - (first + place[:, None] * step * normal), axis=1).max()
    if apart > 0.2 * step:
        raise FormatError(f"is a segmentation whose slices do not stack evenly, up to {apart:.2f} mm off")
    shape = (int(place.max()) + 1, *pixels.shape[1:])
    if math.prod(shape) > _MAX_EMPTY * pixels.size:
        raise FormatError(f"is damaged: its {len(pixels)} frames lie {shape[0]} slices apart")
    segments = _described(dataset)
    if kind == "LABELMAP":
        array = np.zeros(shape, pixels.dtype)
        array[place] = pixels
        return LayeredSegmentation([array], _grid(array, first, axes, sides, step), segments)
    numbers = np.array(groups.values("SegmentIdentificationSequence", "ReferencedSegmentNumber"), int)
    packing = Packing(shape, int(numbers.max()))
    for number in np.unique(numbers):
        packing.put(int(number), [(int(place[k]), pixels[k] != 0) for k in np.flatnonzero(numbers == number)])
    layers = packing.layers
    return LayeredSegmentation(layers, _grid(layers[0], first, axes, sides, step), segments)


def _described(dataset: Any) -> tuple[Segment, ...]:
    """What the file says of its segments."""
    segments = []
    for item in dataset.get("SegmentSequence", None) or []:
        number = int(item.SegmentNumber)
        codes = tuple(
            (str(code[0].get("CodeValue", "")), str(code[0].CodingSchemeDesignator), str(code[0].CodeMeaning))
            for name in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence")
            if (code := item.get(name))
        )
        lab = item.get("RecommendedDisplayCIELabValue")
        segments.append(
            Segment(
                number,
                str(item.get("SegmentLabel") or f"segment {number}"),
                _srgb(lab) if lab is not None and len(lab) == 3 else None,
                (codes[0], codes[1]) if len(codes) == 2 else None,
            )
        )
    return tuple(segments)


def _srgb(lab: Any) -> tuple[float, float, float] | None:
    """sRGB, 0 to 1, of DICOM's CIELab values."""
    try:
        from highdicom.color import CIELabColor
    except ImportError:
        return None
    red, green, blue = (v / 255 for v in CIELabColor.from_dicom_value([int(v) for v in lab]).to_rgb())
    return red, green, blue


def _grid(array: npt.NDArray[Any], first: Float64, axes: Float64, sides: Float64, step: float) -> Grid:
    """The grid of slices (z, y, x) from the first one's position.

    Args:
        sides: mm between rows, then between columns (DICOM's PixelSpacing).
    """
    direction = np.stack([axes[:3], axes[3:], np.cross(axes[:3], axes[3:])], axis=1)
    size = (array.shape[2], array.shape[1], array.shape[0])
    return Grid(size, (float(sides[1]), float(sides[0]), step), tuple(first), tuple(direction.ravel()))
