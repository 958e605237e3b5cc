"""How a warp changes volume: the Jacobian determinant of T(p) = p + d(p), the numbers drawn from it, and the
removal of folds from a warp.

J = 1 keeps volume, J < 1 shrinks, J <= 0 turns a neighbourhood inside out (a fold).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, slab_index, transform_points
from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.folding import unfold

_SLAB_VOXELS = 1 << 19  # 0.5 M voxels x 9 doubles = 38 MB at a time, whatever the size of the volume


def jacobian_determinant(field: np.ndarray, grid: Grid) -> npt.NDArray[np.float32]:
    """Determinant of dT/dp in physical space, so that oblique, flipped and anisotropic grids are right.

    With W the matrix from index to world and G the derivative of d along the index axes,
    det(I + G W^-1) = det(W + G) / det(W). Derivatives are central differences, and one-sided ones at
    the border. ITK's DisplacementFieldJacobianDeterminantFilter (5.4) halves those at the border and
    ignores the grid's direction, so that it is wrong on oblique and flipped grids.

    Args:
        field: displacement (z, y, x, 3), LPS mm, components (x, y, z).
        grid: the grid of the field.

    Returns:
        (z, y, x).

    Raises:
        RegkitError: if the field does not fit the grid.
    """
    if field.shape != (*grid.shape, 3):
        raise RegkitError(f"a field of shape {field.shape} does not fit a grid of shape {grid.shape}")
    return _determinants(field, grid.index_to_world[:3, :3])


@operation
def _determinants(field: np.ndarray, matrix: Float64) -> npt.NDArray[np.float32]:
    """det(matrix + G) / det(matrix) with G the derivatives of a field (z, y, x, 3) along the index axes."""
    volume = np.linalg.det(matrix)
    result = np.empty(field.shape[:3], dtype=np.float32)
    depth = len(field)
    step = max(1, _SLAB_VOXELS // (field.shape[1] * field.shape[2]))
    for first in range(0, depth, step):
        last = min(first + step, depth)
        low, high = max(first - 1, 0), min(last + 1, depth)  # one slice more, for the differences along z
        slab = field[low:high].astype(np.float64)
        columns = [
            _difference(slab, axis)[first - low : last - low] + matrix[:, 2 - axis] for axis in (2, 1, 0)
        ]
        result[first:last] = triple_product(*columns) / volume
    return result


def _plain(field: np.ndarray, matrix: Float64) -> bool:
    in_order = field.dtype == np.float32 and field.flags.c_contiguous and field.flags.aligned
    return bool(in_order) and native.serves()


@_determinants.kernel("c", _plain)
def _determinants_by_c(field: np.ndarray, matrix: Float64) -> npt.NDArray[np.float32]:
    result, volume = np.empty(field.shape[:3], dtype=np.float32), float(np.linalg.det(matrix))
    matrix = np.ascontiguousarray(matrix)
    native.run("jacobian", field=field, matrix=matrix, volume=volume, determinant=result)
    return result


def _difference(values: np.ndarray, axis: int) -> np.ndarray:
    # A single slice says nothing about change across it: the field counts as constant there.
    return np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values)


def triple_product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """det [a b c] of column vectors (..., 3)."""
    return (
        a[..., 0] * (b[..., 1] * c[..., 2] - b[..., 2] * c[..., 1])
        - a[..., 1] * (b[..., 0] * c[..., 2] - b[..., 2] * c[..., 0])
        + a[..., 2] * (b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0])
    )


@dataclass(frozen=True)
class Smoothness:
    """How regular a warp is.

    Args:
        folding_percent: :func:`folding_percent` of its Jacobian determinant.
        sd_log_jacobian: :func:`sd_log_jacobian`.
    """

    folding_percent: float
    sd_log_jacobian: float

    @classmethod
    def of(cls, determinant: np.ndarray, mask: np.ndarray | None = None) -> Smoothness:
        """The smoothness of a warp by its Jacobian determinant (Z, Y, X), inside ``mask`` where given.

        Raises:
            RegkitError: if the mask has another shape or no voxel.
        """
        return cls(folding_percent(determinant, mask), sd_log_jacobian(determinant, mask))

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON but for NaN."""
        return asdict(self)


def folding_percent(determinant: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Percentage of voxels (inside ``mask`` where given) with J <= 0, counted without any clipping.

    Raises:
        RegkitError: if the mask has another shape or no voxel.
    """
    return 100.0 * float(np.mean(_inside(determinant, mask) <= 0))


def sd_log_jacobian(determinant: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Standard deviation of log J over the voxels with J > 0 (inside ``mask`` where given).

    J below 1e-9 counts as 1e-9. Folds are not in it: see :func:`folding_percent`. NaN if all voxels fold.

    Raises:
        RegkitError: if the mask has another shape or no voxel.
    """
    values = _inside(determinant, mask)
    values = values[values > 0]
    return float(np.log(np.maximum(values, 1e-9)).std(dtype=np.float64)) if values.size else float("nan")


def learn2reg_sdlogj(displacement_voxels: np.ndarray, mask: np.ndarray | None = None) -> float:
    """SDlogJ as the Learn2Reg challenge counts it, to compare with its published numbers only.

    std of log(clip(J + 3, 1e-9, 1e9)) with J = det(I + grad d) in voxels by central differences, two
    voxels cropped on each side (MDL-UzL/L2R, ``evaluation.py`` and ``utils.py``). The official code adds
    3 to the finished determinant: the logarithm then exists down to J = -3, so that folds pass for
    smooth, and values come out some four times below :func:`sd_log_jacobian` (log(4 + e) ~ log 4 + e/4).

    Args:
        displacement_voxels: (x, y, z, 3); component 0 moves along array axis 0.
        mask: (x, y, z); voxels that are not 0 count.

    Raises:
        RegkitError: if the field is too small to be cropped, or the mask has another shape or no voxel.
    """
    shape = displacement_voxels.shape
    if len(shape) != 4 or shape[3] != 3 or min(shape[:3]) < 5:
        raise RegkitError(f"SDlogJ needs a field (x, y, z, 3) of at least 5 voxels a side, got shape {shape}")
    if mask is not None and mask.shape != shape[:3]:
        raise RegkitError(f"mask of shape {mask.shape} does not fit a field of shape {shape[:3]}")
    determinant = jacobian_determinant(displacement_voxels.transpose(2, 1, 0, 3), Grid(shape[:3])).T
    crop = (slice(2, -2),) * 3
    values = _inside(determinant[crop], None if mask is None else mask[crop])
    return float(np.log(np.clip(values.astype(np.float64) + 3, 1e-9, 1e9)).std())


def _inside(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return values
    if mask.shape != values.shape:
        raise RegkitError(f"mask of shape {mask.shape} does not fit a map of shape {values.shape}")
    if not np.any(mask):
        raise RegkitError("the mask is empty: no voxel of it is different from 0")
    return values[mask != 0]


def unfolded_warp(
    field: npt.NDArray[np.float32], grid: Grid, matrix: Float64
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A warp whose Jacobian determinant is positive at every voxel.

    Where it folds, what it does before the linear part is smoothed.

    Args:
        field: displacements (z, y, x, 3), LPS mm.
        matrix: the linear part, 4x4, LPS mm, whose determinant is positive.

    Returns:
        The field, which is the one given where nothing folds, and its Jacobian determinant, (z, y, x).
    """
    determinant = jacobian_determinant(field, grid)
    if (determinant > 0).all():
        return field, determinant
    index = slab_index(grid, 0, grid.shape[0])
    points = transform_points(grid.index_to_world, index)
    in_voxels = transform_points(grid.world_to_index @ np.linalg.inv(matrix), points + field) - index
    flat = unfold(torch.from_numpy(in_voxels.astype(np.float32)).movedim(-1, 0)).movedim(0, -1).numpy()
    field = (transform_points(matrix @ grid.index_to_world, index + flat) - points).astype(np.float32)
    return field, jacobian_determinant(field, grid)
