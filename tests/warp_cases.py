"""A fixed and a moving grid that agree in nothing, and warps and images on them, for the tests of warps."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regkit.core.geometry import Grid
from regkit.warp import Warp


def _grid(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    degrees: tuple[float, float, float],
    backwards: list[int],
    centre: tuple[float, float, float],
) -> Grid:
    direction = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    direction[:, backwards] *= -1
    origin = np.array(centre) - direction * spacing @ ((np.array(size) - 1) / 2)
    return Grid(size, spacing, tuple(origin), tuple(direction.ravel()))


FIXED = _grid((26, 22, 17), (1.4, 1.9, 2.6), (20, -35, 50), [1], (30, -80, 210))
MOVING = _grid((24, 29, 31), (2.3, 1.7, 1.5), (-15, 160, 5), [0, 1, 2], (33, -76, 205))


def affine_map(degrees: float, translation: tuple[float, float, float]) -> np.ndarray:
    """4x4: a rotation about the centre of FIXED, then a translation in mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(
        np.array([1, 2, -1]) / np.sqrt(6) * degrees, degrees=True
    ).as_matrix()
    matrix[:3, 3] = FIXED.centre - matrix[:3, :3] @ FIXED.centre + translation
    return matrix


def smooth_warp(
    seed: int = 0,
    *,
    mm: float = 3.0,
    linear: np.ndarray | None = None,
    grid: Grid = FIXED,
    moving: Grid | None = MOVING,
) -> Warp:
    """A smooth random field of at most ``mm`` per component, after which the linear map acts."""
    noise = np.random.default_rng(seed).normal(size=(*grid.shape, 3))
    field = gaussian_filter(noise, (*(10 / np.array(grid.spacing[::-1])), 0), mode="nearest")
    field *= mm / np.abs(field).max()
    linear = affine_map(8, (2, -3, 1)) if linear is None else linear
    points = grid.world_points()
    target = (points + field) @ linear[:3, :3].T + linear[:3, 3]
    return Warp((target - points).astype(np.float32), grid, moving)


def texture(grid: Grid, seed: int = 1) -> np.ndarray:
    """A random image of float32 with detail of about two voxels, in [-1000, 1000]."""
    image = gaussian_filter(np.random.default_rng(seed).normal(size=grid.shape), 1.5)
    return (1000 * image / np.abs(image).max()).astype(np.float32)


def blob(grid: Grid, centre: np.ndarray, sigma: float = 4.0) -> np.ndarray:
    """A Gaussian of ``sigma`` mm about a point in LPS mm."""
    squared = ((grid.world_points() - centre) ** 2).sum(axis=-1)
    return np.exp(-squared / (2 * sigma**2)).astype(np.float32)


def centre_of_mass(array: np.ndarray, grid: Grid) -> np.ndarray:
    """LPS mm, by the voxels' own weights."""
    return np.einsum("zyx,zyxc->c", array.astype(np.float64), grid.world_points()) / array.sum(
        dtype=np.float64
    )
