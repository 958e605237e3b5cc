"""4-D images: volumes of one grid, one after another in time."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from nibabel.spatialimages import SpatialImage

from regkit.core.errors import InputError, RegkitError
from regkit.core.geometry import Grid
from regkit.io import guard, nifti
from regkit.io.images import Volume, grid_of, looks_like_labels
from regkit.io.outputs import save_frames
from regkit.runtime.memory import check_fits_memory

_ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


@dataclass(frozen=True, eq=False)
class Frames:
    """A 4-D image.

    Args:
        array: (t, z, y, x), real numbers.
        grid: of each volume.
        step: seconds between volumes; 0 if unknown.
        name: for messages and reports.

    Raises:
        RegkitError: if the array does not fit the grid or is not real.
    """

    array: npt.NDArray[Any]
    grid: Grid
    step: float = 0.0
    name: str = "series"

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.grid.shape or not len(self.array):
            raise InputError(
                f"{self.name}: an array of shape {self.array.shape} is not a series of volumes of shape "
                f"{self.grid.shape} (z, y, x)"
            )
        if self.array.dtype.kind not in "buif":
            raise InputError(f"{self.name}: voxels must be real numbers, got an array of {self.array.dtype}")

    def __len__(self) -> int:
        return len(self.array)

    def volume(self, k: int) -> Volume:
        """The volume at place ``k``, its voxels shared with the series."""
        return Volume(self.array[k], self.grid, f"{self.name}, frame {k}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write .nii.gz or .nii, with the time between volumes."""
        save_frames(self.array, self.grid, self.step, path)


FramesLike = str | os.PathLike[str] | sitk.Image | SpatialImage | Frames


def is_series(source: object) -> TypeGuard[FramesLike]:
    """Whether a source is a 4-D image of more than one volume; its voxels are not read.

    False of what cannot be read: whoever loads it says why.
    """
    if isinstance(source, Frames):
        return True
    if isinstance(source, sitk.Image):
        return source.GetDimension() == 4 and source.GetSize()[3] > 1
    if isinstance(source, SpatialImage):
        return _times(source.shape) > 1
    if not isinstance(source, str | os.PathLike) or not os.path.isfile(source):
        return False
    name = Path(source).name.lower()
    try:
        if name.endswith(nifti.SUFFIXES):
            with nifti.open_nifti(Path(source)) as file:
                return _times(file.shape) > 1
        if name.endswith(_ITK_SUFFIXES):
            with guard.open_image([source]) as image:
                return _times(image.header.size) > 1
    except RegkitError:
        return False
    return False


def load_frames(source: FramesLike, role: str) -> Frames:
    """Load a 4-D image. The voxels keep the type of the source.

    Args:
        source: a file (NIfTI, MGH, MetaImage, NRRD), or an object of SimpleITK, nibabel or regkit.
        role: what the image is, for messages, such as "series".

    Raises:
        RegkitError: if it cannot be read, is not 4-D, or holds values that are not finite.
    """
    what = f"{role} '{os.fspath(source)}'" if isinstance(source, str | os.PathLike) else role
    if isinstance(source, Frames):
        frames = source
    elif isinstance(source, sitk.Image):
        _check(source.GetSize(), source.GetNumberOfComponentsPerPixel(), what)
        array = sitk.GetArrayFromImage(source)
        frames = _placed(array, source.GetSpacing(), source.GetOrigin(), source.GetDirection(), what, what)
    elif isinstance(source, SpatialImage):
        _check(source.shape, 1, what)
        grid = _grid(source.shape, source.affine, what)
        units = source.header.get_xyzt_units() if hasattr(source.header, "get_xyzt_units") else ("mm", "sec")
        zooms = source.header.get_zooms()
        step = float(zooms[3]) * _SECONDS.get(units[1], 1.0) if len(zooms) > 3 else 0.0
        array = np.asanyarray(source.dataobj).reshape((*grid.size, -1)).T
        frames = Frames(array, grid, step if math.isfinite(step) and step > 0 else 0.0, what)
    elif isinstance(source, str | os.PathLike):
        frames = _from_file(Path(source), what)
    else:
        raise InputError(f"{what}: cannot read a 4-D image from a {type(source).__name__}; give a file")
    if frames.array.dtype.kind == "f" and not np.isfinite(frames.array).all():
        broken = frames.array.size - int(np.count_nonzero(np.isfinite(frames.array)))
        raise InputError(
            f"{what} has {broken:,} voxels that are NaN or infinite; set them to the background value first"
        )
    return frames


def _from_file(path: Path, what: str) -> Frames:
    if os.path.isdir(path):
        raise InputError(
            f"{what} is a folder: a series of DICOM is read from a 4-D NIfTI, which dcm2niix makes of it"
        )
    if not os.path.isfile(path):
        raise InputError(f"{what} does not exist")
    name = path.name.lower()
    try:
        if name.endswith(nifti.SUFFIXES):
            with nifti.open_nifti(path) as file:
                _check(file.shape, 1, what)
                if np.dtype(file.voxels.dtype).kind not in "buif":
                    raise InputError(f"{what} has several values per voxel; give one real number per voxel")
                grid = _grid(file.shape, file.affine, what)
                check_fits_memory(math.prod(file.shape), what, int(file.voxels.dtype.itemsize) + 8)
                array = file.read()
            return Frames(array.reshape((*grid.size, -1)).T, grid, file.step, path.name)
        with guard.open_image([path]) as image:
            header = image.header
            _check(header.size, header.components, what)
            itemsize = np.dtype(header.dtype or "f8").itemsize
            check_fits_memory(math.prod(header.size), what, itemsize + 8)
            final, array = image.read(math.prod(header.size) * max(8, itemsize))
        return _placed(array, final.spacing, final.origin, final.direction, what, path.name)
    except RegkitError as error:
        if str(error).startswith(what):
            raise
        raise type(error)(f"{what}: {error}") from error


def _check(size: tuple[int, ...], components: int, what: str) -> None:
    if components != 1:
        raise InputError(f"{what} has several values per voxel; give one real number per voxel")
    if _times(size) < 2:
        text = " x ".join(map(str, size))
        raise InputError(f"{what} is one volume ({text}), not 4-D; 'regkit register' aligns two volumes")


def _times(size: tuple[int, ...]) -> int:
    """How many volumes an array of such a size (x, y, z, t, ...) holds; 0 if it is none of a series."""
    if len(size) < 4 or any(n != 1 for n in size[4:]):
        return 0
    return size[3]


def _grid(size: tuple[int, ...], ras: npt.NDArray[np.float64] | None, what: str) -> Grid:
    if ras is None:
        raise InputError(f"{what} has no affine, so its place in the world is unknown; give it one")
    one = Grid.from_ras_affine(size[:3], ras)
    return grid_of(size[:3], one.spacing, one.origin, one.direction, what)


def _placed(
    array: npt.NDArray[Any],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    direction: tuple[float, ...],
    what: str,
    name: str,
) -> Frames:
    """The series of an array (t, z, y, x) by what ITK says of its four axes."""
    axes = np.reshape(direction, (len(spacing), len(spacing)))[:3, :3].ravel()
    array = array.reshape(array.shape[-4:])
    grid = grid_of(array.shape[:0:-1], spacing[:3], origin[:3], tuple(axes), what)
    return Frames(array, grid, float(spacing[3]), name)


def interpolation_for(frames: Frames) -> Literal["label", "linear"]:
    """The interpolation that goes with a series: ``label`` for one of label maps, else ``linear``."""
    middle = frames.array[len(frames) // 2]
    return "label" if looks_like_labels(middle) and middle.min() < middle.max() else "linear"


def as_given(frames: Frames, source: object) -> Any:
    """A series as what it was given as: of SimpleITK, of nibabel, or as it is."""
    if isinstance(source, sitk.Image):
        array, dtype = frames.array, sitk.GetArrayViewFromImage(source).dtype
        if dtype.kind in "iu" and array.dtype != dtype:
            limits = np.iinfo(dtype)
            array = np.rint(array).clip(limits.min, limits.max)
        volumes = [frames.grid.to_sitk(frame.astype(dtype)) for frame in array]
        return sitk.JoinSeries(volumes, 0.0, frames.step or 1.0)
    if isinstance(source, SpatialImage):
        image = nib.Nifti1Image(frames.array.T, frames.grid.ras_affine, dtype=frames.array.dtype)
        image.header.set_zooms((*frames.grid.spacing, frames.step))
        image.header.set_xyzt_units("mm", "sec")
        return image
    return frames
