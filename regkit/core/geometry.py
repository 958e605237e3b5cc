"""The coordinate convention of regkit, stated once, and every conversion between its frames.

* **World** is LPS millimetres, as in ITK, SimpleITK, ANTs and DICOM. RAS exists only at the edge,
  in :func:`ras_affine` and :meth:`Grid.from_ras_affine` (nibabel).
* **Arrays** have axes (z, y, x), as ``SimpleITK.GetArrayFromImage`` gives them; channels come first.
* **Vectors and points** have components (x, y, z), whether in voxels of a grid or in world mm, and
  whichever axis holds them. That is also the order of ``torch.nn.functional.grid_sample``.
* **Index coordinates** are continuous; voxel centres are whole numbers.
* **A displacement pulls**: ``moved(p) = moving(p + d(p))`` for a point p of the fixed image.

No other module spells a direction matrix or a half-voxel shift, but that torch counts from the corners of
voxels or from their centres (``align_corners``) stands in :mod:`regkit.ops.sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from regkit.core.errors import InputError

Float64 = npt.NDArray[np.float64]
_FLIP_XY = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """The voxel lattice of a 3-D image: where each of its voxels lies in the world.

    Args:
        size: voxels along (x, y, z).
        spacing: mm between voxel centres along (x, y, z).
        origin: LPS mm of the centre of voxel (0, 0, 0).
        direction: 3x3 orthonormal matrix, row-major; column j is the world direction of axis j.

    Raises:
        RegkitError: if a size or spacing is not positive, or the direction is not orthonormal.

    Examples:
        >>> grid = regkit.Grid(size=(4, 3, 2), spacing=(1.0, 1.0, 2.5), origin=(-10.0, 0.0, 5.0))
        >>> grid.shape  # of an array: z, y, x
        (2, 3, 4)
        >>> (grid.index_to_world @ [3, 2, 1, 1])[:3].tolist()  # LPS mm of the last voxel
        [-7.0, 2.0, 7.5]
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        size, spacing, origin, direction = (
            np.asarray(v, dtype=np.float64).ravel()
            for v in (self.size, self.spacing, self.origin, self.direction)
        )
        if size.shape != (3,) or (size < 1).any() or (size != np.round(size)).any():
            raise InputError(f"a grid needs three positive whole sizes, got {tuple(size.tolist())}")
        if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
            raise InputError(
                f"voxel spacing must be three positive numbers of mm, got {tuple(spacing.tolist())}"
            )
        if origin.shape != (3,) or not np.isfinite(origin).all():
            raise InputError(f"the origin must be three finite numbers of mm, got {tuple(origin.tolist())}")
        matrix = direction.reshape(3, 3) if direction.shape == (9,) else np.full((3, 3), np.nan)
        if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3):
            raise InputError(
                "the direction matrix is not orthonormal (sheared, singular or not a number); "
                "resample the image onto a regular grid first"
            )
        object.__setattr__(self, "size", tuple(int(v) for v in size))
        object.__setattr__(self, "spacing", tuple(float(v) for v in spacing))
        object.__setattr__(self, "origin", tuple(float(v) for v in origin))
        object.__setattr__(self, "direction", tuple(float(v) for v in direction))

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Grid:
        """The grid of a 3-D SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_ras_affine(cls, shape_xyz: tuple[int, ...], affine: npt.ArrayLike) -> Grid:
        """The grid of a NIfTI-style affine: index (i, j, k) -> RAS mm, 4x4.

        Args:
            shape_xyz: array shape in nibabel's order (x, y, z).

        Raises:
            RegkitError: if the affine is singular or sheared.
        """
        lps = _FLIP_XY @ np.asarray(affine, dtype=np.float64)
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        if not np.isfinite(lps).all() or (spacing == 0).any():
            raise InputError("the affine is singular: a voxel has no extent along some axis")
        direction = lps[:3, :3] / spacing
        return cls(tuple(shape_xyz[:3]), tuple(spacing), tuple(lps[:3, 3]), tuple(direction.ravel()))  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (z, y, x), the reverse of ``size``."""
        return self.size[2], self.size[1], self.size[0]

    @cached_property
    def index_to_world(self) -> Float64:
        """4x4 matrix from index (x, y, z) to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        matrix[:3, 3] = self.origin
        return matrix

    @cached_property
    def world_to_index(self) -> Float64:
        """4x4 matrix from LPS mm to index (x, y, z)."""
        return np.asarray(np.linalg.inv(self.index_to_world), dtype=np.float64)

    @property
    def extent(self) -> Float64:
        """Field of view in mm along the grid's own axes (x, y, z), outer voxel faces included."""
        return np.asarray(self.size) * np.asarray(self.spacing)

    @property
    def centre(self) -> Float64:
        """LPS mm of the middle of the field of view."""
        return transform_points(self.index_to_world, (np.asarray(self.size) - 1) / 2)

    @property
    def ras_affine(self) -> Float64:
        """4x4 NIfTI affine: index (x, y, z) -> RAS mm."""
        return _FLIP_XY @ self.index_to_world

    def blank(self, pixel_id: int = sitk.sitkFloat32) -> sitk.Image:
        """An image of zeros on this grid."""
        image = sitk.Image(self.size, pixel_id)
        return self._stamp(image)

    def to_sitk(self, array: np.ndarray, *, vector: bool = False) -> sitk.Image:
        """A SimpleITK image of ``array`` (z, y, x), or (z, y, x, c) where ``vector``."""
        if array.shape[:3] != self.shape:
            raise InputError(f"array of shape {array.shape} does not fit a grid of shape {self.shape}")
        return self._stamp(sitk.GetImageFromArray(array, isVector=vector))

    def _stamp(self, image: sitk.Image) -> sitk.Image:
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def same_as(self, other: Grid, tolerance_voxels: float = 1e-2) -> bool:
        """Whether both lattices coincide: equal size, and no corner apart by more than the tolerance."""
        if self.size != other.size:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.size])).reshape(3, -1).T
        apart = transform_points(self.index_to_world, corners) - transform_points(
            other.index_to_world, corners
        )
        return bool(np.abs(apart).max() <= tolerance_voxels * min(self.spacing))

    def working(self, spacing: float, multiple: int = 1) -> Grid:
        """An isotropic grid over the same field of view, with its axes in a standard order.

        Whatever the order and signs of this grid's axes, those of the working grid point, as nearly as
        possible, to the patient's left, back and head (LPS), so that a network that knows anatomy sees it
        upright. What the working grid has to spare is split evenly between both sides, in whole voxels. If
        the spacing is the same, its voxels are those of this grid, and resampling does not blur.

        Args:
            spacing: mm.
            multiple: sizes are rounded up to a multiple of it, so that pooling divides them exactly.
        """
        # The small allowance keeps a field of view that fits exactly from gaining a slice by rounding.
        own = np.reshape(self.direction, (3, 3))
        axes = max(permutations(range(3)), key=lambda axes: sum(abs(own[k, a]) for k, a in enumerate(axes)))
        signs = np.where([own[k, a] < 0 for k, a in enumerate(axes)], -1.0, 1.0)
        extent = self.extent[list(axes)]
        size = [max(1, math.ceil(e / spacing / multiple - 1e-6)) * multiple for e in extent]
        before = np.floor((np.multiply(size, spacing) - extent) / spacing / 2 + 1e-6)
        direction = own[:, axes] * signs
        origin = self.centre + direction @ ((0.5 - before) * spacing - extent / 2)
        return Grid(tuple(size), (spacing,) * 3, tuple(origin), tuple(direction.ravel()))

    def pooled(self, stride: int) -> Grid:
        """The grid of cells of ``stride``^3 voxels; the size must be divisible."""
        if any(n % stride for n in self.size):
            raise ValueError(f"size {self.size} is not divisible by {stride}")
        size, spacing = [n // stride for n in self.size], [s * stride for s in self.spacing]
        origin = transform_points(self.index_to_world, [(stride - 1) / 2] * 3)
        return Grid(tuple(size), tuple(spacing), tuple(origin), self.direction)  # type: ignore[arg-type]

    def window(self, start: tuple[int, ...], size: tuple[int, ...]) -> Grid:
        """The part of this lattice, or of its continuation, that begins at index ``start`` (x, y, z)."""
        origin = transform_points(self.index_to_world, start)
        return Grid(tuple(size), self.spacing, tuple(origin), self.direction)  # type: ignore[arg-type]

    def corners(self) -> Float64:
        """Index coordinates (8, 3) of the outer corners of the field of view, half a voxel out."""
        ends = [(-0.5, n - 0.5) for n in self.size]
        return np.stack(np.meshgrid(*ends), axis=-1).reshape(8, 3)

    def world_points(self) -> Float64:
        """LPS mm of every voxel centre, shape (z, y, x, 3)."""
        return transform_points(self.index_to_world, slab_index(self, 0, self.shape[0]))


def transform_points(matrix: npt.ArrayLike, points: npt.ArrayLike) -> Float64:
    """Apply a 4x4 matrix to points of shape (..., 3)."""
    matrix, points = np.asarray(matrix, dtype=np.float64), np.asarray(points, dtype=np.float64)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def linear_about(
    centre: npt.ArrayLike, linear: npt.ArrayLike, shift: npt.ArrayLike = (0.0, 0.0, 0.0)
) -> Float64:
    """The 4x4 matrix of p -> centre + linear (p - centre) + shift.

    Args:
        centre: (3,), the point that stays but for the shift.
        linear: 3x3.
        shift: (3,).
    """
    linear, matrix = np.asarray(linear, dtype=np.float64), np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.add(centre, shift) - linear @ centre
    return matrix


def affine_transform(matrix: npt.ArrayLike) -> sitk.AffineTransform:
    """A 4x4 matrix, fixed point -> moving point in LPS mm, as an ITK transform."""
    matrix = np.asarray(matrix, dtype=np.float64)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def slabs(grid: Grid, points: int = 1 << 20) -> Iterator[tuple[int, int]]:
    """Ranges of slices (first, last + 1) that hold about ``points`` voxels each, at least one slice."""
    step = max(1, points // (grid.shape[1] * grid.shape[2]))
    for first in range(0, grid.shape[0], step):
        yield first, min(first + step, grid.shape[0])


def slab_index(grid: Grid, first: int, last: int) -> Float64:
    """Index coordinates (x, y, z) of the slices ``first`` to ``last`` - 1, shape (last - first, y, x, 3)."""
    index = np.empty((last - first, *grid.shape[1:], 3))
    index[..., 0] = np.arange(grid.size[0])
    index[..., 1] = np.arange(grid.size[1])[:, None]
    index[..., 2] = np.arange(first, last)[:, None, None]
    return index
