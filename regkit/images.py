"""Images in: files, DICOM folders and objects in memory to :class:`Volume`. The way out is in outputs.py.

Whatever cannot be used is refused here, by role and name, before any work starts. Files are placed as ITK
places them, so that a result fits the same file in ANTs or Slicer. That matters for a NIfTI whose sform and
qform disagree: ITK mostly takes the qform unless the sform has code 1, nibabel takes the sform. An object of
nibabel keeps its affine.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from regkit.atomic import atomic_path
from regkit.dicom import series_files
from regkit.errors import RegkitError
from regkit.geometry import Float64, Grid, transform_points
from regkit.outputs import IMAGE_SUFFIXES, NIFTI_SUFFIXES, check_output, save_image

__all__ = [
    "IMAGE_SUFFIXES",
    "MIN_VOXELS",
    "ImageLike",
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
    "save_image",
]

MIN_VOXELS = 4
"""Fewest voxels along an axis that still make a volume to register."""

# Two files of one scan may round the same header differently (a NIfTI quaternion near 180 degrees by 3e-4).
_SAME_GRID_VOXELS = 0.1
_MOST_LABELS = 1000  # the finest atlases have some 700
_MM = {"meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar 3-D image with its place in the world; how bare arrays and tensors enter regkit.

    Args:
        array: (z, y, x), real numbers; a torch tensor is converted to numpy.
        grid: where the voxels lie.
        name: shown in messages and reports.

    Raises:
        RegkitError: if the array is not 3-D, not real, or not of the grid's shape.
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
            raise RegkitError(
                f"{self.name}: an array of shape {array.shape} does not fit its grid, "
                f"whose shape (z, y, x) is {self.grid.shape}{hint}"
            )
        if array.dtype.kind not in "buif":
            raise RegkitError(f"{self.name}: voxels must be real numbers, got an array of {array.dtype}")
        object.__setattr__(self, "array", array)

    def to_sitk(self) -> sitk.Image:
        """The same image for SimpleITK; bool becomes uint8, float16 becomes float32."""
        wider = {"bool": np.uint8, "float16": np.float32}.get(self.array.dtype.name, self.array.dtype)
        return self.grid.to_sitk(np.asarray(self.array, dtype=wider))


ImageLike = str | os.PathLike[str] | sitk.Image | SpatialImage | Volume


def load_image(source: ImageLike, role: str) -> Volume:
    """An image to register, as float32.

    Args:
        source: a file, the folder of one DICOM series, or an object of SimpleITK, nibabel or regkit.
        role: what it is, for messages, such as "fixed image".

    Raises:
        RegkitError: if it is not one finite, scalar, not constant 3-D image on a regular grid.
    """
    what = _what(source, role)
    volume = _load(source, what)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        array = np.require(volume.array, np.float32, ["C", "W"])
    _refuse_not_finite(array, what)
    if array.min() == array.max():
        raise RegkitError(f"{what} is constant: every voxel is {array.flat[0]:g}; give another")
    return replace(volume, array=array)


def load_labels(source: ImageLike, role: str, grid: Grid | None = None, *, empty: bool = False) -> Volume:
    """A label map, as the smallest of uint8, int16 and int32 that holds its labels.

    Args:
        source: as for :func:`load_image`.
        role: what it is, for messages, such as "moving labels".
        grid: where the labels must lie, if they must.
        empty: whether it may be that no voxel is labelled.

    Raises:
        RegkitError: also if a value is not whole, no voxel is labelled, or the grid is another.
    """
    what = _what(source, role)
    volume = _load(source, what)
    array = volume.array
    if array.dtype.kind == "f":
        _refuse_not_finite(array, what)
        whole = np.rint(array)
        broken = np.abs(array - whole) > 1e-3  # scaled storage does not return whole numbers exactly
        if broken.any():
            raise RegkitError(
                f"{what} is no label map: {int(broken.sum()):,} voxels are not whole numbers, such as "
                f"{array[broken][0]:g}; resample labels with nearest neighbour interpolation"
            )
        array = whole
    low, high = array.min(), array.max()
    if low == high == 0 and not empty:
        raise RegkitError(f"{what} holds no label: every voxel is 0")
    if len(np.unique(array[::2, ::2, ::2])) > _MOST_LABELS:  # of an eighth of the voxels: sorting takes time
        raise RegkitError(
            f"{what} is no label map: it has more than {_MOST_LABELS:,} different values from {low:g} to "
            f"{high:g}, as an image has; give the map of its labels"
        )
    dtype = label_type(low, high)
    if dtype is None:
        raise RegkitError(
            f"{what} holds labels from {low:g} to {high:g}; only 32-bit whole numbers are possible"
        )
    return _on_grid(replace(volume, array=np.require(array, dtype, ["C", "W"])), grid, what)


def label_type(low: float, high: float) -> npt.DTypeLike | None:
    """The smallest of uint8, int16 and int32 that holds labels from ``low`` to ``high``, if any does."""
    kinds = (np.uint8, np.int16, np.int32)
    return next((k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max), None)


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
    labels = load_labels(label_source, labels_role, image.grid if one_grid else None)
    low = int(labels.array.min())
    if low < 0:
        raise RegkitError(
            f"{labels_role}, '{labels.name}': there is a label {low}; labels must be 0 or more, so give "
            f"{low} another number"
        )
    return image, labels


def _pair(item: object, role: str) -> tuple[ImageLike, ImageLike]:
    found = f"a {type(item).__name__}"
    if isinstance(item, str | os.PathLike):
        found = f"'{os.fspath(item)}'"
    elif isinstance(item, Sequence):
        if len(item) == 2:
            return item[0], item[1]
        found += f" of {len(item)}"
    raise RegkitError(f"{role} must be a pair (image, label map), got {found}")


def load_mask(source: ImageLike, role: str, grid: Grid) -> Volume:
    """A mask, as bool: true where the value is above one half.

    Args:
        source: as for :func:`load_image`.
        role: what it is, for messages, such as "fixed mask".
        grid: of the image that it masks.

    Raises:
        RegkitError: also if no voxel is inside, or the grid is another.
    """
    what = _what(source, role)
    volume = _load(source, what)
    _refuse_not_finite(volume.array, what)
    inside = np.ascontiguousarray(volume.array > 0.5)
    if not inside.any():
        raise RegkitError(f"{what} is empty: no voxel is above 0.5; leave it out or give another")
    return _on_grid(replace(volume, array=inside), grid, what)


def load_grid(source: ImageLike, role: str) -> Grid:
    """The grid of an image whose voxels do not matter, such as an empty one to resample on.

    Args:
        source: as for :func:`load_image`.
        role: what it is, for messages, such as "reference".

    Raises:
        RegkitError: if it is not one scalar 3-D image on a regular grid.
    """
    return _load(source, _what(source, role)).grid


def check_fits_memory(voxels: int, what: str, bytes_per_voxel: int = 8) -> None:
    """Raise RegkitError if so many voxels need more memory than the machine has available."""
    needed, available = voxels * bytes_per_voxel, _available_memory()
    if needed > available:
        raise RegkitError(
            f"{what} needs {needed / 2**30:,.1f} GiB of memory for its {voxels:,} voxels, but only "
            f"{available / 2**30:,.1f} GiB are available; crop it or resample it to larger voxels"
        )


def _what(source: object, role: str) -> str:
    return f"{role} '{os.fspath(source)}'" if isinstance(source, str | os.PathLike) else role


def _load(source: ImageLike, what: str) -> Volume:
    """A volume of whatever type its source has, on a grid that is large enough."""
    if isinstance(source, Volume):
        _volume_size(source.grid.size, what)
        return source
    if isinstance(source, sitk.Image):
        grid = _grid_of(source, what)
        _refuse_not_scalar(source.GetPixelIDTypeAsString(), what)
        return Volume(sitk.GetArrayFromImage(source).reshape(grid.shape), grid, what)
    if isinstance(source, SpatialImage):
        return _from_nibabel(source, what)
    if not isinstance(source, str | os.PathLike):
        raise RegkitError(
            f"{what}: cannot read an image from a {type(source).__name__}; "
            "give a file, or wrap an array as regkit.Volume(array, grid)"
        )
    path = Path(source)
    if not path.exists():
        raise RegkitError(f"{what} does not exist")
    return _from_series(path, what) if path.is_dir() else _from_file(path, what)


def _from_file(path: Path, what: str) -> Volume:
    if not os.access(path, os.R_OK):
        raise RegkitError(f"{what} cannot be opened: no permission to read it")
    is_nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _quiet:
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if is_nifti and "orthonormal" in str(error):
                # ITK refuses a direction that is off by 1e-4; nibabel reads it, and Grid judges it.
                return replace(_from_nibabel(_open_nifti(path, what), what), name=path.name)
            raise RegkitError(f"{what} is not an image (NIfTI, NRRD, MetaImage or DICOM)") from error
        grid = _grid_of(reader, what)
        _refuse_not_scalar(sitk.GetPixelIDValueAsString(reader.GetPixelID()), what)
        pixel_bytes = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
        check_fits_memory(math.prod(grid.size), what, 4 + pixel_bytes)
        if is_nifti:
            # ITK fills the missing end of a truncated NIfTI without a word; nibabel refuses it.
            image = _open_nifti(path, what)
            _check_spacing(path, image, what)
            return Volume(_nibabel_array(image, grid, what), grid, path.name)
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise RegkitError(f"{what}: its voxels cannot be read; it is truncated or damaged") from error
    return Volume(array.reshape(grid.shape), grid, path.name)


def _from_series(folder: Path, what: str) -> Volume:
    """The volume of a folder that holds exactly one DICOM series."""
    with _quiet:
        names = series_files(folder, what)
        if len(names) == 1:
            return _from_file(Path(names[0]), what)
        first = sitk.ImageFileReader()
        first.SetFileName(names[0])
        first.ReadImageInformation()
        _refuse_not_scalar(sitk.GetPixelIDValueAsString(first.GetPixelID()), what)
        check_fits_memory(math.prod(first.GetSize()) * len(names), what)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        # Each slice has its own slope and intercept; the type of the first may not hold the others.
        reader.SetOutputPixelType(sitk.sitkFloat32)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise RegkitError(f"{what}: its DICOM slices cannot be read as one volume") from error
    grid = _grid_of(image, what)
    return Volume(sitk.GetArrayFromImage(image), grid, folder.name)


def _from_nibabel(image: SpatialImage, what: str) -> Volume:
    size = _volume_size(image.shape, what)
    dataobj: Any = image.dataobj
    kind = np.dtype(dataobj.dtype).kind
    _refuse_not_scalar({"c": "complex", "V": "vector"}.get(kind, "scalar"), what)
    check_fits_memory(math.prod(size), what, 12)
    if image.affine is None:
        raise RegkitError(f"{what} has no affine, so its place in the world is unknown; give it one")
    header = image.header
    unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    affine = np.diag([_MM.get(unit, 1.0)] * 3 + [1.0]) @ image.affine
    try:
        grid = _orthonormal(Grid.from_ras_affine(size, affine))
    except RegkitError as error:
        raise RegkitError(f"{what}: {error}") from error
    return Volume(_nibabel_array(image, grid, what), grid, what)


def _open_nifti(path: Path, what: str) -> SpatialImage:
    try:
        image = nibabel.load(path)
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError) as error:
        raise RegkitError(f"{what} is not a NIfTI image that can be read ({error})") from error
    if not isinstance(image, SpatialImage):
        raise RegkitError(f"{what} is a {type(image).__name__}, which holds no volume")
    return image


def _nibabel_array(image: SpatialImage, grid: Grid, what: str) -> npt.NDArray[Any]:
    """Voxels (z, y, x), scaled by the header's slope and intercept."""
    try:
        return np.asanyarray(image.dataobj).reshape(grid.size).transpose(2, 1, 0)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RegkitError(f"{what}: its voxels cannot be read; it is truncated or damaged") from error


def _check_spacing(path: Path, image: Any, what: str) -> None:
    """Refuse a NIfTI without spacing, which ITK and nibabel replace by 1 mm, or with two.

    ITK takes the spacing of pixdim even where it takes the direction of the sform.
    """
    with nibabel.openers.ImageOpener(str(path)) as stream:
        spacing = type(image.header).from_fileobj(stream, check=False)["pixdim"][1:4]
    if not np.isfinite(spacing).all() or (spacing == 0).any():
        raise RegkitError(f"{what}: its voxel spacing is {tuple(map(float, spacing))} mm; correct the header")
    sform, qform = image.header["sform_code"], image.header["qform_code"]
    lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
    if (sform == 1 or (sform and not qform)) and not np.allclose(lengths, np.abs(spacing), rtol=0.01):
        raise RegkitError(
            f"{what}: its header says two things: spacing of {np.abs(spacing).round(4).tolist()} in pixdim, "
            f"of {lengths.round(4).tolist()} in the sform; correct the header"
        )


def _volume_size(size: Sequence[int], what: str) -> tuple[int, int, int]:
    """The size (x, y, z) of a volume, without the trailing axes of one that NIfTI allows."""
    text = " x ".join(str(n) for n in size)
    if any(n != 1 for n in size[3:]):
        raise RegkitError(f"{what} has {len(size)} dimensions ({text}); give one 3-D volume of it")
    if len(size) < 3 or 1 in size[:3]:
        raise RegkitError(f"{what} is 2-D ({text}); give a volume (for a DICOM series, its folder)")
    if min(size[:3]) < MIN_VOXELS:
        raise RegkitError(f"{what} has only {text} voxels; at least {MIN_VOXELS} along every axis are needed")
    return size[0], size[1], size[2]


def _grid_of(image: sitk.Image | sitk.ImageFileReader, what: str) -> Grid:
    """The grid of an image or of a header that was read."""
    dimension = image.GetDimension()
    size = _volume_size(image.GetSize(), what)
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
    spacing = np.asarray(image.GetSpacing()[:3])
    # A header may run an axis backwards by negative spacing; ITK turns the direction as it reads the voxels.
    direction = direction * np.where(spacing < 0, -1, 1)
    try:
        grid = Grid(size, tuple(np.abs(spacing)), image.GetOrigin()[:3], tuple(direction.ravel()))
        return _orthonormal(grid)
    except RegkitError as error:
        raise RegkitError(f"{what}: {error}") from error


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
    if not volume.grid.same_as(grid, _SAME_GRID_VOXELS):
        raise RegkitError(
            f"{what} does not lie on the voxels of its image: it has {_describe(volume.grid)}, the image "
            f"{_difference(volume.grid, grid)}; resample it onto the image with nearest neighbour "
            "interpolation"
        )
    return replace(volume, grid=grid)


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
        raise RegkitError(f"{what} has {kind}; give an image with one real number per voxel")


def _refuse_not_finite(array: npt.NDArray[Any], what: str) -> None:
    broken = array.size - int(np.count_nonzero(np.isfinite(array)))
    if broken:
        raise RegkitError(
            f"{what} has {broken:,} voxels that are NaN, infinite or beyond 32-bit floats; "
            "set them to the background value first, such as with numpy.nan_to_num"
        )


def _available_memory() -> float:
    """Bytes; infinite where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo") as stream:
        return 1024.0 * next(int(line.split()[1]) for line in stream if line.startswith("MemAvailable"))
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


class _Quiet:
    """Keeps the warnings of ITK and nibabel off the screen while any thread reads: what matters of them is
    raised here.
    """

    def __init__(self) -> None:
        self._lock, self._readers, self._before = Lock(), 0, (True, 0)

    def __enter__(self) -> None:
        logger = nibabel.imageglobals.logger
        with self._lock:
            if not self._readers:
                self._before = sitk.ProcessObject.GetGlobalWarningDisplay(), logger.level
            self._readers += 1
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            logger.setLevel(logging.CRITICAL + 1)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                sitk.ProcessObject.SetGlobalWarningDisplay(self._before[0])
                nibabel.imageglobals.logger.setLevel(self._before[1])


_quiet = _Quiet()
