"""Several warps and linear transforms, each as it is or inverted, as one map of points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, slab_index, slabs, transform_points
from regkit.io.foreign import split_convention
from regkit.io.formats import NotLinearError, is_transform, read_linear, read_warp
from regkit.warp import Inverter, Warp, contains

INVERSE = "inverse:"
"""Before the name of a file: its inverse is meant."""


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
            warp = read_warp(file, None, own_moving)
        except RegkitError:
            if own_fixed is None:
                raise
            warp = read_warp(file, own_fixed, own_moving)
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
