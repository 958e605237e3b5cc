"""The result of a registration: a dense displacement field that knows its grid.

T(p) = p + d(p) takes a point p of the fixed image to the point of the moving image that belongs there,
both in LPS mm. That is the transform that resamples the moving image; points of the *moving* image go the
other way, through :meth:`Warp.inverse`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from nibabel.spatialimages import SpatialImage

from regkit.core.choices import Interpolation
from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, slab_index, slabs, transform_points
from regkit.io.dicom import DicomSeries
from regkit.io.displacement import DisplacementField
from regkit.io.formats import NotLinearError, linear_of, read_warp, write_warp
from regkit.io.frames import Frames, as_given, is_series, load_frames
from regkit.io.images import ImageLike, Volume, load_image, load_labels, load_volume, resample_volume
from regkit.ops.jacobian import jacobian_determinant
from regkit.ops.sampling import sample
from regkit.runtime.memory import check_fits_memory

_BLOCK = 1 << 20  # points handled at a time: bounds the float64 temporaries to some tens of MB
INTERPOLATORS: dict[Interpolation, int] = {
    "linear": sitk.sitkLinear,
    "bspline": sitk.sitkBSpline,
    "nearest": sitk.sitkNearestNeighbor,
    "label": sitk.sitkLabelLinear,
}


@dataclass(frozen=True, eq=False)
class Warp(DisplacementField):
    """A displacement field on the fixed image's grid.

    Args:
        field: (z, y, x, 3) float32, LPS mm, components (x, y, z).
        grid: the fixed image's grid, on which the field lies.
        moving_grid: the grid of the moving image the warp was made for, or None where it is not known:
            no file format holds it.

    Raises:
        RegkitError: if the field does not fit the grid or is not finite.

    Examples:
        >>> grid = regkit.Grid(size=(4, 4, 4))
        >>> field = np.zeros((4, 4, 4, 3), dtype=np.float32)
        >>> field[..., 0] = 1.0  # the moving image lies 1 mm further to the patient's left
        >>> warp = regkit.Warp(field, grid)
        >>> warp.transform_points([[1.0, 2.0, 3.0]]).tolist()
        [[2.0, 2.0, 3.0]]
    """

    @classmethod
    def load(cls, path: str | Path, fixed: Grid | None = None, moving: Grid | None = None) -> Warp:
        """Read a warp file; see :func:`regkit.io.formats.read_warp`."""
        return cls.of(read_warp(path, fixed, moving))

    @classmethod
    def of(cls, displacement: DisplacementField) -> Warp:
        """A warp that shares the memory of a displacement field."""
        return cls(displacement.field, displacement.grid, displacement.moving_grid)

    def save(self, path: str | Path, format: str | None = None) -> None:
        """Write a warp file; see :func:`regkit.io.formats.write_warp`."""
        write_warp(self, path, format)

    # SimpleITK carries no types, so that its overload, which takes anything to a checker, comes last.
    @overload
    def apply(
        self,
        image: Volume,
        *,
        interpolation: Interpolation = ...,
        reference: Grid | None = ...,
        default: float | None = ...,
    ) -> Volume: ...
    @overload
    def apply(
        self,
        image: Frames,
        *,
        interpolation: Interpolation = ...,
        reference: Grid | None = ...,
        default: float | None = ...,
    ) -> Frames: ...
    @overload
    def apply(
        self,
        image: SpatialImage,
        *,
        interpolation: Interpolation = ...,
        reference: Grid | None = ...,
        default: float | None = ...,
    ) -> nib.Nifti1Image: ...
    @overload
    def apply(
        self,
        image: str | os.PathLike[str] | DicomSeries,
        *,
        interpolation: Interpolation = ...,
        reference: Grid | None = ...,
        default: float | None = ...,
    ) -> Volume | Frames: ...
    @overload
    def apply(
        self,
        image: sitk.Image,
        *,
        interpolation: Interpolation = ...,
        reference: Grid | None = ...,
        default: float | None = ...,
    ) -> sitk.Image: ...
    def apply(
        self,
        image: ImageLike | Frames,
        *,
        interpolation: Interpolation = "linear",
        reference: Grid | None = None,
        default: float | None = None,
    ) -> Volume | Frames | SpatialImage | sitk.Image:
        """Resample the moving image, or its labels, on the fixed grid, by SimpleITK.

        Args:
            image: in the world of the moving image, on any grid. All volumes of a 4-D image move alike.
            interpolation: ``linear``, ``bspline`` (cubic), ``nearest``, or ``label``: the label whose
                linearly interpolated indicator is largest, which keeps outlines smooth and labels whole.
            reference: a grid to resample on, in place of the fixed one. ITK does not move points beyond the
                fixed grid.
            default: value outside the moving image; by default 0 for labels, else the minimum of the image.

        Returns:
            The type that was given: a SimpleITK image (of the same pixel type), a NIfTI image of nibabel, a
            Volume, or Frames. For a file it is a Volume, or Frames if the file is 4-D. All but SimpleITK
            images are float32, or with ``nearest`` of the type of the image, or with ``label`` of the
            smallest integer type that fits.

        Raises:
            RegkitError: if the image cannot be used or the interpolation is unknown.
        """
        if interpolation not in INTERPOLATORS:
            raise RegkitError(
                f"interpolation '{interpolation}' is unknown: use one of {', '.join(INTERPOLATORS)}"
            )
        if is_series(image):
            frames = apply_to_frames(
                self, load_frames(image, "image to warp"), interpolation, reference, default
            )
            return as_given(frames, image)
        assert not isinstance(image, Frames)
        labels, whole = interpolation == "label", interpolation in ("label", "nearest")
        # The nearest voxel's value makes up none, so that it keeps its type, which ids above 2^24 need.
        load = {"label": load_labels, "nearest": load_volume}.get(interpolation, load_image)
        volume = load(image, "image to warp")
        if (
            default is not None
            and volume.array.dtype.kind in "iu"
            and not _holds(volume.array.dtype, default)
        ):
            volume = replace(volume, array=volume.array.astype(np.float64))
        if default is None:
            default = 0 if labels else volume.array.min().item()
        grid = reference or self.grid
        transform, how = self.to_sitk(), INTERPOLATORS[interpolation]
        if isinstance(image, sitk.Image) and image.GetDimension() == 3 and not whole:
            # ITK rounds in its own way to whole numbers: an image of ITK's is left to it as it is.
            onto = (grid.origin, grid.spacing, grid.direction)
            return sitk.Resample(image, grid.size, transform, how, *onto, default, image.GetPixelID())
        array = resample_volume(volume, grid, transform, how, default)
        if isinstance(image, sitk.Image):
            return sitk.Cast(grid.to_sitk(array), image.GetPixelID())
        if isinstance(image, SpatialImage):
            return nib.Nifti1Image(array.T, grid.ras_affine, dtype=array.dtype)
        return replace(volume, array=array, grid=grid)

    def transform_points(self, points: npt.ArrayLike) -> Float64:
        """Map points of the fixed image to the moving image, LPS mm, shape (..., 3).

        The field is interpolated linearly. A point beyond the grid moves like the nearest voxel at the
        border, where ITK would silently leave it in place. :func:`contains` tells which points lie inside.
        """
        points = np.asarray(points, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != 3 or not np.isfinite(points).all():
            raise RegkitError(f"points must be finite and of shape (..., 3), got shape {points.shape}")
        flat = points.reshape(-1, 3)
        moved = flat.copy()
        for first in range(0, len(flat), _BLOCK):
            index = transform_points(self.grid.world_to_index, flat[first : first + _BLOCK])
            moved[first : first + _BLOCK] += _sample(torch.from_numpy(self.field), _tensor(index)).numpy()
        return moved.reshape(points.shape)

    def compose(self, then: Warp | sitk.Transform | npt.ArrayLike) -> Warp:
        """The warp p -> then(self(p)), on the grid of this one.

        Args:
            then: applied to the points that this warp returns: a warp, a 4x4 matrix (LPS mm), or a 3-D
                transform of SimpleITK. The moving grid of the result is that of ``then`` if it is a warp,
                else unknown.

        Raises:
            RegkitError: if it is none of these.
        """
        go_on = point_map(then)
        field = np.empty_like(self.field)
        for first, last in slabs(self.grid):
            start = transform_points(self.grid.index_to_world, slab_index(self.grid, first, last))
            field[first:last] = go_on(start + self.field[first:last]) - start
        return Warp(field, self.grid, then.moving_grid if isinstance(then, Warp) else None)

    def inverse(self, grid: Grid | None = None) -> Warp:
        """The warp from the moving image to the fixed one: for every voxel y, the x with T(x) = y.

        T is split into its least-squares affine part, which is inverted exactly, and a residual, which is
        inverted by iteration to 0.1 % of the smallest voxel side. Beyond the outer voxel centres the residual
        continues as at the border. The inverse has that precision at the voxels and is interpolated between
        them. Where T folds there is no inverse, or there are several. A warning then gives the share of the
        points inside the fixed image that did not converge; they keep the best value found.

        Args:
            grid: where to compute it; by default the grid of the moving image.

        Raises:
            RegkitError: if no grid is known, or the affine part is singular.
        """
        grid = grid or self.moving_grid
        if grid is None:
            raise RegkitError(
                "the inverse lies on the moving image's grid, which this warp does not know: give it"
            )
        # The residual and the inverse.
        check_fits_memory(self.field[..., 0].size + int(np.prod(grid.size)), "the inverse", 12)
        inverter = Inverter(self)
        field = np.empty((*grid.shape, 3), dtype=np.float32)
        for first, last in slabs(grid):
            here = transform_points(grid.index_to_world, slab_index(grid, first, last))
            field[first:last] = inverter(here) - here
        inverter.warn()
        return Warp(field, grid, self.grid)

    def jacobian(self) -> Volume:
        """The Jacobian determinant of T; see :func:`regkit.ops.jacobian.jacobian_determinant`."""
        return Volume(jacobian_determinant(self.field, self.grid), self.grid, "jacobian")

    def affine_part(self) -> Float64:
        """The 4x4 LPS matrix nearest to T in least squares, over about 16 samples a side."""
        z, y, x = (np.arange(0, n, max(1, n // 16)) for n in self.grid.shape)
        index = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
        points = transform_points(self.grid.index_to_world, index)
        centre = points.mean(axis=0)
        displacement = self.field[index[:, 2], index[:, 1], index[:, 0]].astype(np.float64)
        design = np.concatenate([points - centre, np.ones((len(points), 1))], axis=1)
        # Displacements, not targets, are fitted: along an axis of one voxel the least norm is then identity.
        fit = np.linalg.lstsq(design, displacement, rcond=None)[0]
        matrix = np.eye(4)
        matrix[:3, :3] += fit[:3].T
        matrix[:3, 3] = fit[3] - fit[:3].T @ centre
        return matrix

    def _residual(self, affine: Float64) -> torch.Tensor:
        """affine^-1(T(p)) - p in voxels of the grid, (Z, Y, X, 3) float32."""
        residual = np.empty_like(self.field)
        back = self.grid.world_to_index @ np.linalg.inv(affine)
        for first, last in slabs(self.grid):
            index = slab_index(self.grid, first, last)
            moved = transform_points(self.grid.index_to_world, index) + self.field[first:last]
            residual[first:last] = transform_points(back, moved) - index
        return torch.from_numpy(residual)


class Inverter:
    """The inverse of a warp at any points: see :meth:`Warp.inverse`.

    Raises:
        RegkitError: if the affine part of the warp is singular.
    """

    def __init__(self, warp: Warp) -> None:
        affine = warp.affine_part()
        if np.linalg.svd(affine[:3, :3], compute_uv=False)[-1] < 1e-4:
            raise RegkitError("the warp flattens the image (its affine part is singular) and has no inverse")
        self._grid = warp.grid
        self._residual = warp._residual(affine)
        # In index coordinates u of the fixed grid: u + residual(u) = target, target affine in y.
        self._to_target = warp.grid.world_to_index @ np.linalg.inv(affine)
        self._inside = self._failed = 0

    def __call__(self, points: Float64) -> Float64:
        """For points y of the moving image, LPS mm (..., 3), the x with T(x) = y."""
        flat = points.reshape(-1, 3)
        inverse = np.empty_like(flat)
        spacing = torch.tensor(self._grid.spacing)
        for first in range(0, len(flat), _BLOCK):
            target = _tensor(transform_points(self._to_target, flat[first : first + _BLOCK]))
            index, converged = _solve(self._residual, target, spacing, 1e-3 * min(self._grid.spacing))
            source = transform_points(self._grid.index_to_world, index.numpy())
            inverse[first : first + _BLOCK] = source
            here = contains(self._grid, source)
            self._inside += int(here.sum())
            self._failed += int((here & ~converged.numpy()).sum())
        return inverse.reshape(points.shape)

    def warn(self) -> None:
        """Warn if some of the points inside the fixed image did not converge."""
        if self._failed:
            warnings.warn(
                "the warp folds or nearly so: its inverse did not converge at "
                f"{100 * self._failed / self._inside:.3g} % of the points inside the fixed image",
                stacklevel=3,
            )


def resample_labels(labels: Volume, grid: Grid, transform: sitk.Transform) -> Volume:
    """Labels on ``grid`` through a transform (fixed point -> moving point), by nearest neighbour.

    The type is kept, and a label map that fills its whole grid is allowed.
    """
    return replace(labels, array=resample_volume(labels, grid, transform), grid=grid)


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a type of voxels has a value; those of fractions have all."""
    if dtype.kind not in "iu":
        return True
    limits = np.iinfo(dtype)
    return bool(value == round(value) and limits.min <= value <= limits.max)


def contains(grid: Grid, points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points, LPS mm (..., 3), lie inside a grid, whose border is half a voxel beyond the centres."""
    index = transform_points(grid.world_to_index, points)
    return np.all((index >= -0.5) & (index <= np.asarray(grid.size) - 0.5), axis=-1)


def _tensor(points: Float64) -> torch.Tensor:
    return torch.from_numpy(points.astype(np.float32))


def _sample(field: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Values of a field (Z, Y, X, C) at index coordinates (n, 3): (n, C)."""
    return sample(field.movedim(-1, 0), index.T[:, None, None, :])[:, 0, 0].T


def _solve(
    residual: torch.Tensor, target: torch.Tensor, spacing: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve u + residual(u) = target for every point, with a step length of its own for each.

    Eight rounds of damped fixed-point iteration settle nearly all points of an ordinary warp; the rest, where
    T compresses strongly, follow by damped Newton steps. A step counts only where it lowers the error.

    Args:
        residual: (Z, Y, X, 3), voxels.
        target: (n, 3), index coordinates.
        spacing: mm, to measure the error in.
        tolerance: mm.

    Returns:
        u, (n, 3), and which points converged, (n,).
    """

    def error_at(u: torch.Tensor, goal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error = u + _sample(residual, u) - goal
        return error, (error * spacing).norm(dim=1)

    solution = target.clone()
    error, size = error_at(solution, target)
    length = torch.ones_like(size)
    for round_ in range(100):
        active = (size > tolerance).nonzero()[:, 0]
        if not len(active):
            break
        step = error[active]
        if round_ == 8:
            length[:] = 1
        if round_ >= 8:
            step = torch.linalg.solve_ex(_derivative(residual, solution[active]), step[:, :, None])[0][
                :, :, 0
            ]
        trial = solution[active] - length[active, None] * step
        trial_error, trial_size = error_at(trial, target[active])
        better = trial_size < size[active]  # False for the NaN of a singular derivative
        taken = active[better]
        solution[taken], error[taken], size[taken] = trial[better], trial_error[better], trial_size[better]
        length[active] = torch.where(better, (2 * length[active]).clamp(max=1), length[active] / 2)
    return solution, size <= tolerance


def _derivative(residual: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """d(u + residual(u))/du by differences over a tenth of a voxel, (n, 3, 3)."""
    shifts = 0.05 * torch.eye(3)
    columns = [(_sample(residual, u + s) - _sample(residual, u - s)) / 0.1 for s in shifts]
    return torch.stack(columns, dim=-1) + torch.eye(3)


def point_map(transform: object, name: str = "the transform") -> Callable[[Float64], Float64]:
    """A transform as a function of points, LPS mm (..., 3), to points.

    Args:
        transform: a warp, a 4x4 matrix, or a 3-D transform of SimpleITK.

    Raises:
        RegkitError: if it is none of these.
    """
    if isinstance(transform, Warp):
        return transform.transform_points
    try:
        return partial(transform_points, linear_of(transform, name))
    except NotLinearError:
        return partial(_through_itk, transform)


def _through_itk(transform: Any, points: Float64) -> Float64:
    flat = points.reshape(-1, 3)
    moved = [transform.TransformPoint(point) for point in flat.tolist()]  # SimpleITK takes one at a time
    return np.array(moved, dtype=np.float64).reshape(points.shape)


def apply_to_frames(
    warp: Warp,
    frames: Frames,
    interpolation: Interpolation = "linear",
    reference: Grid | None = None,
    default: float | None = None,
) -> Frames:
    """Every volume of a series through one warp, as :meth:`regkit.Warp.apply` does it.

    Args:
        interpolation: ``linear``, ``bspline``, ``nearest`` or ``label``.
        reference: the grid to resample on instead of the warp's.
        default: value where the volumes end; by itself 0 for labels, else the minimum of the series.

    Returns:
        float32; of ``nearest`` and ``label`` the type of the series.

    Raises:
        RegkitError: if the interpolation is unknown.
    """
    if interpolation not in INTERPOLATORS:
        raise RegkitError(
            f"interpolation '{interpolation}' is unknown: use one of {', '.join(INTERPOLATORS)}"
        )
    whole = interpolation in ("nearest", "label")
    dtype = (
        np.dtype(np.uint8 if frames.array.dtype.kind == "b" else frames.array.dtype)
        if whole
        else np.dtype("f4")
    )
    if default is None:
        default = 0.0 if interpolation == "label" else float(frames.array.min())
    grid = reference or warp.grid
    check_fits_memory(len(frames) * math.prod(grid.size), "the moved series", dtype.itemsize)
    transform, how = warp.to_sitk(), INTERPOLATORS[interpolation]
    moved = np.empty((len(frames), *grid.shape), dtype)
    for k, frame in enumerate(frames.array):
        source = Volume(np.ascontiguousarray(frame, dtype=dtype), frames.grid)
        moved[k] = resample_volume(source, grid, transform, how, default)
    return replace(frames, array=moved, grid=grid)
