"""Transforms of any kind: map points through them, chain, invert, average and coarsen them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, slab_index, slabs, transform_points
from regkit.io.foreign import split_convention
from regkit.io.formats import NotLinearError, is_transform, linear_of, read_linear
from regkit.warp import Inverter, Warp, contains, point_map

Transform = Warp | sitk.Transform | npt.NDArray[Any] | torch.Tensor
"""A warp, a 3-D transform of SimpleITK, or a 4x4 matrix; fixed point -> moving point, LPS mm."""
INVERSE = "inverse:"
"""Before the name of a file: its inverse is meant."""


def as_warp(transform: object, grid: Grid, moving: Grid | None = None, name: str = "the transform") -> Warp:
    """Any transform in memory as a warp; one that is a warp already stays on its own grid.

    Raises:
        RegkitError: as :func:`point_map`.
    """
    if isinstance(transform, Warp):
        return transform
    if isinstance(transform, sitk.Transform) and transform.GetDimension() == 3:
        return Warp.from_transform(transform, grid, moving)
    field = np.zeros((*grid.shape, 3), np.float32)
    return Warp(field, grid).compose(linear_of(transform, name))


def chain(
    transforms: Sequence[Transform | str | os.PathLike[str]],
    *,
    reference: Grid | None = None,
    moving: Grid | None = None,
) -> Warp:
    """Combine several transforms into one warp, so that an image is interpolated only once.

    Args:
        transforms: in the order in which they act on a point of the fixed image; each a warp, a 4x4 matrix
            (LPS mm), a transform of SimpleITK, or a file as ``regkit apply`` takes it (also
            ``inverse:FILE``).
        reference: the grid of the result; by default that of the first transform, if it is a warp.
        moving: grid of the image at the end, for the inverse and for files in its voxels.

    Raises:
        RegkitError: if there is no transform, one cannot be used, or no grid is known.
    """
    if not len(transforms):
        raise RegkitError("a chain needs one transform at least")
    steps: list[Step] = []
    last = len(transforms) - 1
    for k, one in enumerate(transforms):
        if isinstance(one, str | os.PathLike):
            steps += read_chain([Path(one)], reference if k == 0 else None, moving if k == last else None)
            continue
        grid = one.grid if isinstance(one, Warp) else None
        steps.append(Step(Path(f"transform {k + 1}"), point_map(one, f"transform {k + 1}"), grid))
    return compose(steps, reference, moving)


def average(warps: Sequence[Warp], weights: Sequence[float] | None = None) -> Warp:
    """The warp whose displacement at each voxel is the mean of the displacements of several warps.

    Args:
        warps: at least one. All are sampled on the grid of the first.
        weights: one for each; by default all are equal.

    Raises:
        RegkitError: if there is no warp, or the weights do not fit.
    """
    if not len(warps):
        raise RegkitError("an average needs one warp at least")
    shares = np.ones(len(warps)) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(warps),) or not np.isfinite(shares).all() or shares.min() < 0 or not shares.any():
        raise RegkitError(f"weights must be {len(warps)} numbers of 0 or more, not all 0")
    grid = warps[0].grid
    still = Warp(np.zeros((*grid.shape, 3), np.float32), grid)
    total = np.zeros((*grid.shape, 3))
    for warp, share in zip(warps, shares / shares.sum()):
        total += share * (warp if warp.grid.same_as(grid) else still.compose(warp)).field
    return Warp(total.astype(np.float32), grid)


@dataclass(frozen=True)
class Step:
    """One transform of a chain.

    Args:
        file: its name without ``inverse:``.
        map: points, LPS mm (..., 3), to points.
        grid: of a warp that is not inverted, beyond which it is continued; else None.
    """

    file: Path
    map: Callable[[Float64], Float64]
    grid: Grid | None = None


def is_chain(files: Sequence[Path]) -> bool:
    """Whether there is more to do than to apply one warp as it is."""
    return len(files) > 1 or str(files[0]).startswith(INVERSE)


def existing(file: Path) -> Path:
    """The file that is named, without ``inverse:`` and the convention of a matrix."""
    return split_convention(Path(str(file).removeprefix(INVERSE)))[1]


def read_chain(files: Sequence[Path], fixed: Grid | None, moving: Grid | None) -> list[Step]:
    """The transforms of files, in the order in which they act on a point of the fixed image.

    Args:
        files: of warps and linear transforms; a name may begin with ``inverse:``.
        fixed, moving: of the images at the ends, for files that count in their voxels.

    Raises:
        RegkitError: if one cannot be read, or not be inverted.
    """
    steps = []
    for k, name in enumerate(files):
        inverse = str(name).startswith(INVERSE)
        file = Path(str(name).removeprefix(INVERSE))
        # What an inverted file calls fixed comes after it.
        before, after = (fixed if k == 0 else None), (moving if k == len(files) - 1 else None)
        own_fixed, own_moving = (after, before) if inverse else (before, after)
        if is_transform(file):
            try:
                matrix = read_linear(file, own_fixed, own_moving)
            except NotLinearError:
                pass
            else:
                if inverse:
                    matrix = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
                steps.append(Step(file, _linear(matrix)))
                continue
        try:
            warp = Warp.load(file, None, own_moving)
        except RegkitError:
            if own_fixed is None:
                raise
            warp = Warp.load(file, own_fixed, own_moving)
        steps.append(Step(file, Inverter(warp)) if inverse else Step(file, warp.transform_points, warp.grid))
    return steps


def compose(steps: Sequence[Step], grid: Grid | None, moving: Grid | None) -> Warp:
    """The chain as one warp.

    Args:
        grid: where to compute it; by itself that of the first step, if it is a warp as it is.

    Raises:
        RegkitError: if there is no grid.
    """
    grid = grid or steps[0].grid
    if grid is None:
        raise RegkitError(
            f"'{steps[0].file}' comes first and gives no voxels to resample on: give the fixed image too "
            "(--reference)"
        )
    field = np.empty((*grid.shape, 3), dtype=np.float32)
    for first, last in slabs(grid):
        here = transform_points(grid.index_to_world, slab_index(grid, first, last))
        field[first:last] = through(steps, here) - here
    for step in steps:
        if isinstance(step.map, Inverter):
            step.map.warn()
    return Warp(field, grid, moving)


def through(steps: Sequence[Step], points: Float64) -> Float64:
    """Points of the fixed image, LPS mm (..., 3), through all steps."""
    for step in steps:
        points = step.map(points)
    return points


def outside(steps: Sequence[Step], points: Float64) -> int:
    """How many points (n, 3) leave the grid of some warp on their way."""
    left = np.zeros(len(points), bool)
    for step in steps:
        if step.grid is not None:
            left |= ~contains(step.grid, points)
        points = step.map(points)
    return int(left.sum())


def _linear(matrix: Float64) -> Callable[[Float64], Float64]:
    return lambda points: transform_points(matrix, points)


@dataclass(frozen=True, eq=False)
class CoarsenedWarp:
    """A warp on larger voxels, and what that costs.

    Args:
        warp: on a grid whose outer voxel centres are those of the other's.
        mean_mm, max_mm: distance of the two, over the voxels of the other's.
    """

    warp: Warp
    mean_mm: float
    max_mm: float

    def to_dict(self) -> dict[str, Any]:
        """Spacing and distances, for JSON."""
        return {"spacing_mm": list(self.warp.grid.spacing), "mean_mm": self.mean_mm, "max_mm": self.max_mm}


def coarsened(warp: Warp, spacing: float) -> CoarsenedWarp:
    """A warp with voxels of at most ``spacing`` mm, unless its own are larger: a smaller file of its kind.

    ITK interpolates between its voxels, so that images are resampled through it on their own.

    Raises:
        RegkitError: if the spacing is not positive.
    """
    if not spacing > 0:
        raise RegkitError(f"the spacing of a warp must be positive, got {spacing:g} mm")
    old = warp.grid
    spans = [(n - 1) * s for n, s in zip(old.size, old.spacing)]
    size = [
        n if s >= spacing else max(2, int(np.ceil(span / spacing - 1e-6)) + 1)
        for n, s, span in zip(old.size, old.spacing, spans)
    ]
    sides = [span / (n - 1) if n > 1 else s for span, n, s in zip(spans, size, old.spacing)]
    grid = Grid(tuple(size), tuple(sides), old.origin, old.direction)  # type: ignore[arg-type]
    still = Warp(np.zeros((*grid.shape, 3), np.float32), grid)
    warp_on_grid = Warp(still.compose(warp).field, grid, warp.moving_grid)
    total, largest = 0.0, 0.0
    for first, last in slabs(old):
        here = transform_points(old.index_to_world, slab_index(old, first, last))
        off = warp_on_grid.transform_points(here) - here - warp.field[first:last]
        distance = np.linalg.norm(off, axis=-1)
        total, largest = total + float(distance.sum()), max(largest, float(distance.max()))
    return CoarsenedWarp(warp_on_grid, total / warp.field[..., 0].size, largest)
