"""What the property tests draw: grids, warps and names that nobody would think of."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regkit.core.geometry import Float64, Grid, transform_points
from regkit.warp import Warp


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


@st.composite
def grids(draw: st.DrawFn, least: int = 1, most: int = 7, right_handed: bool = False) -> Grid:
    """Any size, spacing and origin; turned by any angles, with any axes running backwards."""
    size = draw(st.tuples(*[st.integers(least, most)] * 3))
    spacing = draw(st.tuples(*[_floats(0.2, 6)] * 3))
    origin = draw(st.tuples(*[_floats(-400, 400)] * 3))
    degrees = draw(st.tuples(*[_floats(-180, 180)] * 3))
    backwards = draw(st.tuples(*[st.booleans()] * 3))
    direction = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    direction[:, list(backwards)] *= -1
    if right_handed:
        direction[:, 2] *= np.sign(np.linalg.det(direction))
    return Grid(size, spacing, origin, tuple(direction.ravel()))


@st.composite
def matrices(draw: st.DrawFn) -> Float64:
    """4x4, mm: a turn, sizes of 0.6 to 1.6 along axes that are turned in their turn, and a shift."""
    turns = [draw(st.tuples(*[_floats(-180, 180)] * 3)) for _ in range(2)]
    sizes = draw(st.tuples(*[_floats(0.6, 1.6)] * 3))
    first, second = (Rotation.from_euler("xyz", turn, degrees=True).as_matrix() for turn in turns)
    matrix = np.eye(4)
    matrix[:3, :3] = first @ np.diag(sizes) @ second
    matrix[:3, 3] = draw(st.tuples(*[_floats(-300, 300)] * 3))
    return matrix


def affine_warp(grid: Grid, matrix: Float64, moving: Grid | None = None) -> Warp:
    """The warp of a matrix, which between voxels is exact: what is linear is interpolated to itself."""
    points = grid.world_points()
    return Warp((transform_points(matrix, points) - points).astype(np.float32), grid, moving)


@st.composite
def bent_warps(draw: st.DrawFn, steepest: float = 0.4) -> Warp:
    """A smooth random field whose differences from voxel to voxel are at most a share of the voxel."""
    grid = draw(grids(5, 9))
    noise = np.random.default_rng(draw(st.integers(0, 999))).normal(size=(*grid.shape, 3))
    cells = gaussian_filter(noise, (1.5, 1.5, 1.5, 0), mode="nearest")
    # Along each axis, so that in every direction it is below the root of 3 of them.
    largest = max(np.linalg.norm(np.diff(cells, axis=axis), axis=-1).max() for axis in range(3))
    cells *= draw(_floats(0, steepest)) / np.sqrt(3) / largest
    return Warp((cells @ grid.index_to_world[:3, :3].T).astype(np.float32), grid)
