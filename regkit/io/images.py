"""Images in: files, DICOM folders and objects in memory to :class:`Volume`. The way out is in outputs.py.

Whatever cannot be used is refused here, by role and name, before any work starts, and what is doubtful about
a file's place in the world is a warning. Files are placed as ITK places them, so that a result fits the same
file in ANTs or Slicer. That matters for a NIfTI whose sform and qform disagree: ITK mostly takes the qform
unless the sform has code 1, nibabel takes the sform. An object of nibabel keeps its affine.
"""

from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from nibabel.spatialimages import SpatialImage

from regkit.core.errors import InputError, RegkitError, reason
from regkit.core.geometry import Float64, Grid, transform_points
from regkit.core.intensity import is_ct
from regkit.io import contours, dicom, dicomframes, guard, nifti
from regkit.io.atomic import atomic_path
from regkit.io.headers import nrrd_fields, quirks
from regkit.io.outputs import IMAGE_SUFFIXES, check_output, save_image
from regkit.io.segments import SLICER, LayeredSegmentation, Segment, slicer_segments
from regkit.runtime.memory import check_fits_memory

__all__ = [
    "IMAGE_SUFFIXES",
    "MIN_VOXELS",
    "ImageLike",
    "LabelledVolume",
    "Volume",
    "atomic_path",
    "axis_codes",
    "check_fits_memory",
    "check_output",
    "load_grid",
    "load_image",
    "load_labelled",
    "load_labels",
    "load_mask",
    "load_segmentation",
    "load_volume",
    "looks_like_labels",
    "resample_volume",
    "save_image",
]

MIN_VOXELS = 4
"""Fewest voxels along an axis that still make a volume to register."""

# Two files of one scan may round the same header differently (a NIfTI quaternion near 180 degrees by 3e-4).
_SAME_GRID_VOXELS = 0.1
_MAX_LABELS = 1000  # the finest atlases have some 700
_MAX_WHOLE = 2**53  # up to which float64 has all whole numbers


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar 3-D image with its place in the world; how bare arrays and tensors enter regkit.

    Args:
        array: (z, y, x), real numbers; a torch tensor is converted to numpy.
        grid: where the voxels lie.
        name: shown in messages and reports.

    Raises:
        RegkitError: if the array is not 3-D, not real, or not of the grid's shape.

    Examples:
        >>> volume = regkit.Volume(np.zeros((2, 3, 4)), regkit.Grid(size=(4, 3, 2)))
        >>> volume.to_sitk().GetSize()
        (4, 3, 2)
    """

    array: npt.NDArray[Any]
    grid: Grid
    name: str = "image"

    def __post_init__(self) -> None:
        array = self.array
        if isinstance(array, torch.Tensor):
            array = array.detach().cpu()
            array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
        array = np.asarray(array)
        if array.shape != self.grid.shape:
            hint = ""
            if array.ndim == 4 and array.shape[0] == 1:
                hint = "; drop the leading channel axis: array[0]"
            elif array.shape == self.grid.size:
                hint = "; its axes are (x, y, z): pass array.transpose(2, 1, 0)"
            raise InputError(
                f"{self.name}: an array of shape {array.shape} does not fit its grid, "
                f"whose shape (z, y, x) is {self.grid.shape}{hint}"
            )
        if array.dtype.kind not in "buif":
            raise InputError(f"{self.name}: voxels must be real numbers, got an array of {array.dtype}")
        object.__setattr__(self, "array", array)

    def to_sitk(self) -> sitk.Image:
        """The same image for SimpleITK; bool becomes uint8, float16 float32, and longer floats float64."""
        dtype = self.array.dtype.newbyteorder("=")
        if dtype.kind == "b":
            dtype = np.dtype(np.uint8)
        elif dtype.kind == "f" and dtype.itemsize not in (4, 8):
            dtype = np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
        return self.grid.to_sitk(np.asarray(self.array, dtype=dtype))


@dataclass(frozen=True, eq=False)
class LabelledVolume(Volume):
    """A label map of a file that names its segments, and that may end where they do.

    Args:
        segments: what the labels mean.
    """

    segments: tuple[Segment, ...] = ()


ImageLike = str | os.PathLike[str] | dicom.DicomSeries | sitk.Image | SpatialImage | Volume


def load_image(source: ImageLike, role: str) -> Volume:
    """Load an image to register, as float32.

    Args:
        source: a file, the folder of one DICOM series, or an object of SimpleITK, nibabel or regkit.
        role: what the image is, for messages, such as "fixed image".

    Raises:
        RegkitError: if it is not a scalar 3-D image on a regular grid, or is constant or not finite.
    """
    what = _what(source, role)
    volume = _load(source, what)
    volume = _unwrapped(volume, what)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        array = np.require(volume.array, np.float32, ["C", "W"])
    _refuse_not_finite(array, what)
    if array.min() == array.max():
        raise InputError(f"{what} is constant: every voxel is {array.flat[0]:g}; give another")
    return replace(volume, array=array)


def load_volume(source: ImageLike, role: str) -> Volume:
    """A scalar 3-D image in the type of its source, whatever its values are.

    A CT that was wrapped to unsigned 16 bits gets its signed values, with a warning.

    Args:
        source: as for :func:`load_image`.
        role: what it is, for messages.

    Raises:
        RegkitError: if it is not one scalar 3-D image on a regular grid.
    """
    what = _what(source, role)
    return _unwrapped(_load(source, what), what)


def load_labels(
    source: ImageLike, role: str, grid: Grid | None = None, *, image: Grid | None = None, empty: bool = False
) -> Volume:
    """Load a label map, in the type of :func:`label_type`; a :class:`LabelledVolume` if the file has names.

    Args:
        source: as for :func:`load_image`.
        role: what the map is, for messages, such as "moving labels".
        grid: where the labels must lie, if anywhere.
        image: grid of the image that they belong to. Contours are filled on its voxels. By default ``grid``.
        empty: whether the map may have no labelled voxel.

    Raises:
        RegkitError: as for :func:`load_image`, and if a value is not whole, no voxel is labelled, or the grid
            is another one.
    """
    what = _what(source, role)
    volume = _load(source, what, labels=True, image=image or grid)
    array = volume.array
    if array.dtype.kind == "f":
        _refuse_not_finite(array, what)
        whole = np.rint(array)
        broken = np.abs(array - whole) > 1e-3  # scaled storage does not return whole numbers exactly
        if broken.any():
            raise InputError(
                f"{what} is not a label map: {int(broken.sum()):,} voxels are not whole numbers, such as "
                f"{array[broken][0]:g}; resample labels with nearest neighbour interpolation"
            )
        array = whole
    low, high = array.min(), array.max()
    if low == high == 0 and not empty:
        raise InputError(f"{what} holds no label: every voxel is 0")
    if len(np.unique(array[::2, ::2, ::2])) > _MAX_LABELS:  # of an eighth of the voxels: sorting takes time
        raise InputError(
            f"{what} is not a label map: it has more than {_MAX_LABELS:,} different values from {low:g} to "
            f"{high:g}, as an image has; give the map of its labels"
        )
    dtype = label_type(low, high)
    if dtype is None:
        raise InputError(
            f"{what} holds labels from {low:g} to {high:g}; only whole numbers below 2^63 are possible"
        )
    return _on_grid(replace(volume, array=np.require(array, dtype, ["C", "W"])), grid, what)


def names_of(labels: Volume) -> dict[int, str] | None:
    """Names of the labels that a map holds, from its file; None where that names none."""
    if not isinstance(labels, LabelledVolume) or not labels.segments:
        return None
    names = {segment.label: segment.name for segment in labels.segments}
    return {int(v): names.get(int(v), f"label {v}") for v in np.unique(labels.array) if v}


def warn_other_names(one: Volume, other: Volume) -> None:
    """Warn of labels that two files of segments give different names."""
    if not (isinstance(one, LabelledVolume) and isinstance(other, LabelledVolume)):
        return
    names = {segment.label: segment.name for segment in other.segments}
    for segment in one.segments:
        other_name = names.get(segment.label, segment.name)
        if other_name.casefold().strip() != segment.name.casefold().strip():
            warnings.warn(
                f"label {segment.label} is '{segment.name}' in '{one.name}' and '{other_name}' in "
                f"'{other.name}'; labels are compared by their numbers",
                stacklevel=3,
            )


def label_type(low: float, high: float) -> npt.DTypeLike | None:
    """The first of uint8, int16, int32, uint32 and int64 that holds ``low`` to ``high``, or None."""
    kinds = (np.uint8, np.int16, np.int32, np.uint32, np.int64)
    return next((k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max), None)


def looks_like_labels(array: npt.NDArray[Any]) -> bool:
    """Whether an image (z, y, x) is a label map: few whole values, mostly equal to their neighbours.

    An image of eight bits has few whole values, too, but noise.
    """
    few = array[::2, ::2, ::2]  # to tell most images in an eighth of the time
    if few.dtype.kind == "f" and not (few == np.rint(few)).all():
        return False
    if len(np.unique(few)) > _MAX_LABELS or array.min() < 0:
        return False
    if array.dtype.kind == "f" and not (array == np.rint(array)).all():
        return False
    here, there = array[:, :, 1:], array[:, :, :-1]
    inside = (here != 0) & (there != 0)
    return bool(inside.any() and (here == there)[inside].mean() > 0.7)


def load_labelled(
    item: object, role: str, image_role: str, labels_role: str, *, one_grid: bool
) -> tuple[Volume, Volume]:
    """An image and its label map, whose labels are 0, background, or more.

    Args:
        item: the two, as :func:`load_image` and :func:`load_labels` take them.
        role: what the pair is, for messages, such as "atlas 1".
        image_role, labels_role: what its parts are.
        one_grid: whether the labels must lie on the image's grid.

    Raises:
        RegkitError: if it is no pair, or one of them cannot be used.
    """
    source, label_source = _pair(item, role)
    image = load_image(source, image_role)
    labels = load_labels(label_source, labels_role, image.grid if one_grid else None, image=image.grid)
    low = int(labels.array.min())
    if low < 0:
        raise InputError(
            f"{labels_role}, '{labels.name}': there is a label {low}; labels must be 0 or more, so give "
            f"{low} another number"
        )
    return image, labels


def _pair(item: object, role: str) -> tuple[ImageLike, ImageLike]:
    description = f"a {type(item).__name__}"
    if isinstance(item, str | os.PathLike):
        description = f"'{os.fspath(item)}'"
    elif isinstance(item, Sequence):
        if len(item) == 2:
            return item[0], item[1]
        description += f" of {len(item)}"
    raise InputError(f"{role} must be a pair (image, label map), got {description}")


def load_mask(source: ImageLike, role: str, grid: Grid) -> Volume:
    """Load a mask, as bool: true where the value is above one half.

    A mask on other voxels is resampled on those of the image by nearest neighbour, with a warning.

    Args:
        source: as for :func:`load_image`.
        role: what the mask is, for messages, such as "fixed mask".
        grid: of the image that it masks.

    Raises:
        RegkitError: as for :func:`load_image`, and if no voxel is inside, or the mask misses its image.
    """
    what = _what(source, role)
    volume = _load(source, what, labels=True, image=grid)
    _refuse_not_finite(volume.array, what)
    inside = np.ascontiguousarray(volume.array > 0.5)
    if not inside.any():
        raise InputError(f"{what} is empty: no voxel is above 0.5; leave it out or give another")
    mask = replace(volume, array=inside)
    same = mask.grid.same_as(grid, _SAME_GRID_VOXELS)
    return replace(mask, grid=grid) if same else _taken_onto(mask, grid, what)


def load_grid(source: ImageLike, role: str) -> Grid:
    """The grid of an image whose voxels do not matter, such as an empty one to resample on.

    Args:
        source: as for :func:`load_image`.
        role: what it is, for messages, such as "reference".

    Raises:
        RegkitError: if it is not one scalar 3-D image on a regular grid.
    """
    return _load(source, _what(source, role)).grid


def load_segmentation(source: ImageLike, role: str, image: Grid | None = None) -> LayeredSegmentation | None:
    """The segments of a file that names them, each whole where they overlap; None of any other source.

    Args:
        source: as for :func:`load_image`.
        role: what it is, for messages.
        image: of the image that they belong to: contours are filled on its voxels.

    Raises:
        RegkitError: if it cannot be read.
    """
    what = _what(source, role)
    path = source.folder if isinstance(source, dicom.DicomSeries) else source
    if not isinstance(path, str | os.PathLike) or not os.path.exists(path):
        return None
    path = Path(path)
    try:
        if path.name.lower().endswith(SLICER):
            with guard.open_image([path]) as file:
                return _slicer_segmentation(file, path, what)
        if os.path.isdir(path) or dicom.is_dicom(path):
            series = _series_of(source, path, what, labels=True)
            return _dicom_segmentation(series, what, image) if series.is_labels else None
    except guard.ParserError as error:
        raise InputError(_about(what, str(error))) from error
    return None


def _what(source: object, role: str) -> str:
    if isinstance(source, dicom.DicomSeries):
        return f"{role} '{os.fspath(source.folder)}'"
    return f"{role} '{os.fspath(source)}'" if isinstance(source, str | os.PathLike) else role


def _load(source: ImageLike, what: str, *, labels: bool = False, image: Grid | None = None) -> Volume:
    """A volume of whatever type its source has, on a grid that is large enough.

    Args:
        labels: whether of a folder of DICOM the segments are meant, if it has some.
        image: that segments belong to.
    """
    if isinstance(source, Volume):
        _volume_size(source.grid.size, what)
        return source
    if isinstance(source, sitk.Image):
        grid = grid_of(source.GetSize(), source.GetSpacing(), source.GetOrigin(), source.GetDirection(), what)
        _refuse_not_scalar(source.GetPixelIDTypeAsString(), what)
        return Volume(sitk.GetArrayFromImage(source).reshape(grid.shape), grid, what)
    if isinstance(source, SpatialImage):
        return _from_nibabel(source, what)
    if not isinstance(source, str | os.PathLike | dicom.DicomSeries):
        raise InputError(
            f"{what}: cannot read an image from a {type(source).__name__}; "
            "give a file, or wrap an array as regkit.Volume(array, grid)"
        )
    path = Path(source.folder if isinstance(source, dicom.DicomSeries) else source)
    # By os.path, which takes names that no system allows for names of nothing.
    if not os.path.exists(path):
        raise InputError(f"{what} does not exist")
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{what} cannot be read more than once; save it as a file first")
    if not os.access(path, os.R_OK):
        raise InputError(f"{what} cannot be opened: no permission to read it")
    try:
        if os.path.isdir(path) or dicom.is_dicom(path):
            return _from_dicom(_series_of(source, path, what, labels), path, what, image)
        if isinstance(source, dicom.DicomSeries):
            raise InputError(f"{what} is no DICOM, of which series '{source.series}' was asked for")
        if path.name.lower().endswith(nifti.SUFFIXES):
            return _from_nifti(path, what)
        with guard.open_image([path]) as file:
            if path.name.lower().endswith(SLICER):
                return _merged(_slicer_segmentation(file, path, what), path.name, what)
            if file.header.format == "GDCMImageIO":  # without DICOM's mark
                return _from_dicom(_series_of(source, path, what, labels), path, what, image)
            return _from_itk(file, path, what)
    except guard.ParserError as error:
        text = str(error)
        if path.name.lower().endswith(".mnc") and path.read_bytes()[:3] == b"CDF":
            text = "is MINC 1, which ITK does not read; 'mincconvert -2' writes MINC 2"
        elif "ImageIO" in text and "etermine" in text:
            text = "is not an image (NIfTI, MGH, NRRD, MetaImage, DICOM or another that ITK reads)"
        raise InputError(_about(what, text)) from error


def _from_nifti(path: Path, what: str) -> Volume:
    try:
        file = nifti.open_nifti(path)
        with file as header:
            kind = np.dtype(header.voxels.dtype).kind
            vectors = len(header.shape) == 5 and header.shape[3] == 1 and header.intent[0] in (1006, 1007)
            _refuse_not_scalar("vector" if vectors else {"c": "complex", "V": "vector"}.get(kind, ""), what)
            size = _volume_size(header.shape, what)
            check_fits_memory(math.prod(size), what, 4 + _bytes_of(header.voxels.dtype))
            grid = _orthonormal(Grid.from_ras_affine(size, header.affine))
            _warn_doubts(header.doubts, what)
            array = header.read()
    except RegkitError as error:
        if str(error).startswith(what):
            raise
        raise InputError(_about(what, str(error))) from error
    return Volume(array.reshape(grid.size).transpose(2, 1, 0), grid, path.name)


def _bytes_of(dtype: Any) -> int:
    return int(np.dtype(dtype).itemsize)


def _from_itk(file: guard.ImageFile, path: Path, what: str, files: int = 1) -> Volume:
    """The volume of a file that ITK has opened, or of so many files of which it has opened the first."""
    header = file.header
    odd = quirks(path, header.format) if path.is_file() else None
    if files == 1:
        grid_of(header.size, header.spacing, header.origin, header.direction, what)
    _refuse_not_scalar(header.pixel, what)
    # Several files are slices of one step, whose stack is read as float32.
    size = math.prod(header.size) * files
    bytes_per_voxel = np.dtype(header.dtype or "f8").itemsize if files == 1 else 4
    check_fits_memory(size, what, 4 + bytes_per_voxel)
    try:
        # A slope may turn whole numbers into float64 as they are read.
        final, array = file.read(size * max(8, bytes_per_voxel))
    except guard.ParserError as error:
        raise InputError(f"{what}: its voxels cannot be read; it is truncated or damaged") from error
    origin, direction, spacing = final.origin, final.direction, final.spacing
    if header.format == "MINCImageIO":  # whose world is RAS, which ITK 5.4 takes for LPS
        axes = len(final.size)
        flip = np.diag([-1.0, -1.0] + [1.0] * (axes - 2))
        origin = tuple(flip @ origin)
        direction = tuple((flip @ np.reshape(direction, (axes, axes))).ravel())
    if odd:
        spacing, origin = (tuple(odd.scale * v for v in values) for values in (spacing, origin))
        _warn_doubts(odd.doubts, what)
    grid = grid_of(final.size, spacing, origin, direction, what)
    return Volume(array.reshape(grid.shape), grid, path.name)


def _series_of(source: ImageLike, path: Path, what: str, labels: bool) -> dicom.Series:
    """The DICOM series that is meant by a file or a folder."""
    requested = str(source.series) if isinstance(source, dicom.DicomSeries) else None
    try:
        candidates = dicom.find_series(path)
    except RegkitError as error:
        raise InputError(_about(what, str(error))) from error
    return dicom.chosen_series(candidates, requested, labels, what)


def _from_dicom(series: dicom.Series, path: Path, what: str, image: Grid | None) -> Volume:
    """The volume of a DICOM series.

    Args:
        path: the file or folder that was named.
        image: that segments belong to.
    """
    if series.is_labels:
        return _merged(_dicom_segmentation(series, what, image), path.name, what)
    first = series.slices[0].path
    if series.slices[0].frames > 1:
        if len(series.slices) > 1:
            raise InputError(
                f"{what} holds a DICOM series of {len(series.slices)} files of many frames; give one of them"
            )
        try:
            array, grid = dicomframes.read_image(first)
        except RegkitError as error:
            raise InputError(_about(what, str(error))) from error
        _volume_size(grid.size, what)
        return Volume(array, grid, path.name)
    names = dicom.stacked(series, what) if len(series.slices) > 1 else [str(first)]
    with guard.open_image(names) as file:
        volume = _from_itk(file, first if len(names) == 1 else first.parent, what, len(names))
    if series.storage == dicom.PET and (factor := dicom.suv_factor(dicom.read_header(first))):
        warnings.warn(
            f"{what}: its PET is taken in SUV of body weight, g/ml, its Bq/ml times {factor:.4g}",
            stacklevel=2,
        )
        volume = replace(volume, array=volume.array * np.float32(factor))
    return replace(volume, name=path.name)


def _dicom_segmentation(series: dicom.Series, what: str, image: Grid | None) -> LayeredSegmentation:
    if len(series.slices) > 1:
        raise InputError(
            f"{what} holds a DICOM series of {len(series.slices)} segmentations or structure sets; give the "
            "file of one"
        )
    path = series.slices[0].path
    try:
        if series.storage != dicom.STRUCTURES:
            return dicomframes.read_segmentation(path)
        dataset = dicom.read_header(path)
        try:
            return contours.rasterise(dataset, image)
        except RegkitError:
            raise
        except Exception as error:  # numbers that are none, sequences that are shorter than they should be
            raise InputError(f"cannot be read: its contours are damaged ({reason(error)})") from error
    except RegkitError as error:
        raise InputError(_about(what, str(error))) from error


def _slicer_segmentation(file: guard.ImageFile, path: Path, what: str) -> LayeredSegmentation:
    """The segments of a file of 3D Slicer's, whose layers are the numbers of a voxel."""
    header = file.header
    if header.components == 1:
        volume = _from_itk(file, path, what)
        layers, grid = [volume.array], volume.grid
    else:
        odd = quirks(path, header.format)
        size = math.prod(header.size) * header.components
        bytes_per_voxel = np.dtype(header.dtype or "f8").itemsize
        check_fits_memory(size, what, 4 + bytes_per_voxel)
        try:
            final, array = file.read(size * bytes_per_voxel)
        except guard.ParserError as error:
            raise InputError(f"{what}: its voxels cannot be read; it is truncated or damaged") from error
        spacing, origin = (tuple(odd.scale * v for v in values) for values in (final.spacing, final.origin))
        grid = grid_of(final.size, spacing, origin, final.direction, what)
        layers = [np.ascontiguousarray(array[..., k]) for k in range(header.components)]
    try:
        described = slicer_segments(nrrd_fields(path, lower=False))
    except RegkitError as error:
        raise InputError(_about(what, str(error))) from error
    if len({segment.label for _, segment in described}) == len(described):
        return LayeredSegmentation(layers, grid, tuple(segment for _, segment in described))
    # Layers number their segments each for itself; in one label map they need numbers of their own.
    numbered = [np.zeros(layer.shape, np.uint16) for layer in layers]
    segments = []
    for number, (layer, segment) in enumerate(described, start=1):
        if layer < len(layers):
            numbered[layer][layers[layer] == segment.label] = number
            segments.append(replace(segment, label=number))
    return LayeredSegmentation(numbered, grid, tuple(segments))


def _merged(segmentation: LayeredSegmentation, name: str, what: str) -> Volume:
    """One label map of segments."""
    array, shared = segmentation.merged()
    if shared:
        warnings.warn(
            f"{what}: segments overlap in {shared:,} voxels, which count for the smallest of them",
            stacklevel=2,
        )
    return LabelledVolume(array, segmentation.grid, name, segmentation.segments)


def _about(what: str, text: str) -> str:
    """A sentence about a file, of which a reader said the second half."""
    verb = text.split(" ", 1)[0]
    return f"{what} {text}" if verb in ("is", "has", "holds", "cannot") else f"{what}: {text}"


def _warn_doubts(doubts: Sequence[str], what: str) -> None:
    for doubt in doubts:
        warnings.warn(f"{what}: {doubt}", stacklevel=2)


def _unwrapped(volume: Volume, what: str) -> Volume:
    """A CT whose negative values were stored as unsigned 16 bits, -1000 as 64536, with its own values."""
    array = volume.array
    if array.dtype != np.uint16 or int(array.max()) < 61440:
        return volume
    few = array[::2, ::2, ::2]
    # Nothing lies between the densest metal and the least value that a scanner writes.
    if ((few > 30000) & (few < 61440)).any() or not is_ct(few.view(np.int16)):
        return volume
    if looks_like_labels(array):
        return volume
    warnings.warn(
        f"{what}: its values are those of a CT whose negative numbers were stored as unsigned 16 bits; "
        "they are taken as signed",
        stacklevel=3,
    )
    return replace(volume, array=array.view(np.int16))


def _from_nibabel(image: SpatialImage, what: str) -> Volume:
    size = _volume_size(image.shape, what)
    dataobj: Any = image.dataobj
    kind = np.dtype(dataobj.dtype).kind
    _refuse_not_scalar({"c": "complex", "V": "vector"}.get(kind, "scalar"), what)
    check_fits_memory(math.prod(size), what, 12)
    if image.affine is None:
        raise InputError(f"{what} has no affine, so its place in the world is unknown; give it one")
    header = image.header
    unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    affine = np.diag([{"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)] * 3 + [1.0]) @ image.affine
    try:
        grid = _orthonormal(Grid.from_ras_affine(size, affine))
    except RegkitError as error:
        raise type(error)(f"{what}: {error}") from error
    return Volume(_nibabel_array(image, grid, what), grid, what)


def _nibabel_array(image: SpatialImage, grid: Grid, what: str) -> npt.NDArray[Any]:
    """Voxels (z, y, x), scaled by the header's slope and intercept."""
    try:
        return np.asanyarray(image.dataobj).reshape(grid.size).transpose(2, 1, 0)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{what}: its voxels cannot be read; it is truncated or damaged") from error


def _volume_size(size: Sequence[int], what: str) -> tuple[int, int, int]:
    """The size (x, y, z) of a volume, without the trailing axes of one that NIfTI allows."""
    text = _by(size)
    if any(n != 1 for n in size[3:]):
        raise InputError(f"{what} has {len(size)} dimensions ({text}); give one 3-D volume of it")
    if len(size) < 3 or 1 in size[:3]:
        raise InputError(
            f"{what} is 2-D ({text}) and regkit takes volumes: for slices of one series give their folder; "
            "flat images are registered by SimpleITK, elastix (itk-elastix) or ANTs (antspyx)"
        )
    if min(size[:3]) < MIN_VOXELS:
        raise InputError(f"{what} has only {text} voxels; at least {MIN_VOXELS} along every axis are needed")
    return size[0], size[1], size[2]


def grid_of(
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: Sequence[float],
    what: str,
) -> Grid:
    """The grid of an image by what ITK says of it, of whatever dimension."""
    dimension, size = len(size), _volume_size(size, what)
    axes = np.reshape(direction, (dimension, dimension))[:3, :3]
    step = np.asarray(spacing[:3])
    # A header may run an axis backwards by negative spacing; ITK turns the direction as it reads the voxels.
    axes = axes * np.where(step < 0, -1, 1)
    try:
        return _orthonormal(Grid(size, tuple(np.abs(step)), tuple(origin[:3]), tuple(axes.ravel())))  # type: ignore[arg-type]
    except RegkitError as error:
        raise type(error)(f"{what}: {error}") from error


def _orthonormal(grid: Grid) -> Grid:
    """The grid with the nearest rotation for its direction, about the same centre.

    Grid lets a header be off by 1e-3, but inverses and ITK's own checks downstream are exact.
    """
    u, _, vt = np.linalg.svd(np.reshape(grid.direction, (3, 3)))
    if np.abs(u @ vt - np.reshape(grid.direction, (3, 3))).max() < 1e-6:
        return grid
    turned = replace(grid, direction=tuple((u @ vt).ravel()))
    shift: Float64 = grid.centre - turned.centre
    return replace(turned, origin=tuple(np.asarray(grid.origin) + shift))


def _on_grid(volume: Volume, grid: Grid | None, what: str) -> Volume:
    if grid is None:
        return volume
    if volume.grid.same_as(grid, _SAME_GRID_VOXELS):
        return replace(volume, grid=grid)
    if not isinstance(volume, LabelledVolume):
        raise InputError(
            f"{what} does not lie on the voxels of its image: it has {_describe(volume.grid)}, the image "
            f"{_difference(volume.grid, grid)}; resample it onto the image with nearest neighbour "
            "interpolation"
        )
    return _taken_onto(volume, grid, what)


def _taken_onto(volume: Volume, grid: Grid, what: str) -> Volume:
    """Labels or a mask on the voxels of their image, with a warning that they did not lie on them."""
    if (padded := _part_of(volume, grid)) is not None:
        warnings.warn(
            f"{what} covers only a part of the voxels of its image, {_by(volume.grid.size)} of "
            f"{_by(grid.size)}; the others count as 0",
            stacklevel=3,
        )
        return padded
    array = resample_volume(volume, grid, sitk.Transform(3, sitk.sitkIdentity)).astype(volume.array.dtype)
    if not array.any():
        raise InputError(f"{what} lies beside its image: they have no voxel in common")
    warnings.warn(
        f"{what} lies on other voxels than its image and is taken onto them by nearest neighbour",
        stacklevel=3,
    )
    return replace(volume, array=array, grid=grid)


def resample_volume(
    volume: Volume,
    grid: Grid,
    transform: sitk.Transform,
    interpolator: int = sitk.sitkNearestNeighbor,
    default: float = 0,
) -> npt.NDArray[Any]:
    """The voxels of a volume seen from another grid, (z, y, x) in their own type.

    ITK resamples in float64, which leaves out some of the whole numbers beyond 2^53. Where there are such,
    their places in the order of all that occur are resampled.

    Args:
        transform: from points of ``grid`` to points of the volume.
        interpolator: of ITK; of whole numbers one that makes up no others.
        default: value where the volume ends.
    """
    array = volume.array
    large = array.dtype.kind in "iu" and array.dtype.itemsize == 8
    if large and max(-int(array.min()), int(array.max())) > _MAX_WHOLE:
        values = np.unique(np.append(array, array.dtype.type(int(default))))
        places = replace(volume, array=np.searchsorted(values, array).astype(np.uint32))
        place = float(np.searchsorted(values, array.dtype.type(int(default))))
        resampled: npt.NDArray[Any] = values[resample_volume(places, grid, transform, interpolator, place)]
        return resampled
    source = volume.to_sitk()
    onto = (grid.origin, grid.spacing, grid.direction)
    seen = sitk.Resample(source, grid.size, transform, interpolator, *onto, default, source.GetPixelID())
    return sitk.GetArrayFromImage(seen)


def _part_of(volume: Volume, grid: Grid) -> Volume | None:
    """A volume filled up with 0 to a grid of which it is a part, as 3D Slicer crops; None if it is none."""
    start = transform_points(grid.world_to_index, volume.grid.origin)
    first = np.rint(start).astype(int)
    end = first + volume.grid.size
    if (first < 0).any() or (end > grid.size).any():
        return None
    if not volume.grid.same_as(grid.window(tuple(first), volume.grid.size), _SAME_GRID_VOXELS):
        return None
    array = np.zeros(grid.shape, volume.array.dtype)
    array[tuple(slice(a, b) for a, b in zip(first[::-1], end[::-1], strict=True))] = volume.array
    return replace(volume, array=array, grid=grid)


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)


def _describe(grid: Grid) -> str:
    size, spacing = (" x ".join(f"{v:.4g}" for v in values) for values in (grid.size, grid.spacing))
    centre = ", ".join(f"{v:.1f}" for v in grid.centre)
    return f"{size} voxels of {spacing} mm about ({centre}), axes {axis_codes(grid)}"


def axis_codes(grid: Grid) -> str:
    """The ends that the axes x, y and z point to, such as LPS, as ITK-SNAP and 3D Slicer name them."""
    return "".join(nibabel.aff2axcodes(grid.ras_affine))


def _difference(grid: Grid, other: Grid) -> str:
    """The other grid, beside the description of one: where that fits both, how far they are apart."""
    if _describe(grid) != _describe(other):
        return _describe(other)
    # The chord of a rotation by an angle; unlike its trace, as good for small angles.
    chord = np.linalg.norm(np.subtract(grid.direction, other.direction)) / math.sqrt(8)
    angle = math.degrees(2 * math.asin(min(1.0, float(chord))))
    if angle > 0.01:
        return f"the same, turned by {angle:.2g} degrees"
    ours, theirs = (transform_points(g.index_to_world, g.corners()) for g in (grid, other))
    return f"the same, off by up to {np.linalg.norm(ours - theirs, axis=1).max():.2g} mm"


def _refuse_not_scalar(pixel: str, what: str) -> None:
    """Refuse by the name of the pixel type, such as "vector of 8-bit unsigned integer"."""
    kinds = {
        "vector": "several values per voxel (colours or a vector field)",
        "complex": "complex voxels",
        "label": "run-length coded labels",
    }
    kind = kinds.get(pixel.partition(" ")[0])
    if kind:
        raise InputError(f"{what} has {kind}; give an image with one real number per voxel")


def _refuse_not_finite(array: npt.NDArray[Any], what: str) -> None:
    broken = array.size - int(np.count_nonzero(np.isfinite(array)))
    if broken:
        raise InputError(
            f"{what} has {broken:,} voxels that are NaN, infinite or beyond 32-bit floats; "
            "set them to the background value first, such as with numpy.nan_to_num"
        )
