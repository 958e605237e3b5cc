"""Left and right: mirror planes wherever they lie, and whether two images have the same handedness."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import regkit
from regkit.core.geometry import Float64, transform_points
from regkit.ops.resample import Source
from regkit.solver.handedness import handedness, mirror_planes
from regkit.solver.lowres import LowRes

GRID = regkit.Grid((40, 36, 32), (2.0, 2.0, 2.0), (-20.0, 15.0, 40.0))


@lru_cache(maxsize=1)
def texture() -> np.ndarray:
    """Smooth noise."""
    return gaussian_filter(np.random.default_rng(5).standard_normal((80, 80, 80)), 4.0) * 20


def body(turn: Float64, asymmetry: float, noise: int = 0) -> Source:
    """An ellipsoid, turned, whose content is alike on both sides of its middle plane but for a share."""
    points = GRID.world_points() - GRID.centre
    across, along, up = np.moveaxis(points @ turn, -1, 0)

    def at(x: Float64) -> Float64:
        where = np.stack([x, along, up]) / 2 + 40
        return texture()[tuple(np.clip(where.round().astype(int), 0, 79))]

    both = (at(across) + at(-across)) / 2 + asymmetry * (at(across) - at(-across)) / 2
    inside = (across / 22) ** 2 + (along / 31) ** 2 + (up / 26) ** 2 < 1
    both = gaussian_filter(np.where(inside, 0.5 + 0.2 * both, 0.0), 0.5)
    if noise:
        both += 0.02 * np.random.default_rng(noise).standard_normal(both.shape) * inside
    return Source(torch.from_numpy(np.clip(both, 0, 1).astype(np.float32)), None, GRID)


def turned(degrees: float) -> Float64:
    return Rotation.from_rotvec(np.radians([0.3 * degrees, -0.5 * degrees, degrees])).as_matrix()


def sides(fixed: Source, moving: Source, matrix: Float64 | None = None) -> float:
    matrix = np.eye(4) if matrix is None else matrix
    return handedness(LowRes(fixed, moving, 3.0), LowRes(fixed, moving, 2.0), matrix)


@pytest.mark.parametrize("degrees", [0.0, 10.0, 35.0])
def test_the_plane_of_symmetry_is_found_wherever_it_lies(degrees: float) -> None:
    turn = turned(degrees)
    found = mirror_planes(LowRes(body(turn, 0.0), body(turn, 0.0), 2.5))[0]
    assert np.linalg.det(found[:3, :3]) == pytest.approx(-1)
    np.testing.assert_allclose(found @ found, np.eye(4), atol=1e-9)
    normal = np.linalg.eigh(found[:3, :3])[1][:, 0]
    assert abs(normal @ turn[:, 0]) > math.cos(math.radians(3))
    assert np.linalg.norm(transform_points(found, GRID.centre) - GRID.centre) < 2.5


@pytest.mark.parametrize("degrees", [0.0, 35.0])
def test_sides_are_told_by_what_is_not_alike(degrees: float) -> None:
    turn = turned(degrees)
    fixed, moving = body(turn, 0.6, noise=1), body(turn, 0.6, noise=2)
    assert sides(fixed, moving) > 4
    # The other way round: the sides exchanged, in the same place.
    assert sides(fixed, body(turn, -0.6, noise=2)) < -4


def test_images_alike_on_both_sides_tell_nothing() -> None:
    turn = turned(10)
    assert math.isnan(sides(body(turn, 0.0), body(turn, 0.0)))
    assert math.isnan(sides(body(turn, 0.0), body(turn, 0.6)))


def test_either_image_can_be_the_fixed_one() -> None:
    turn = turned(10)
    fixed, moving = body(turn, 0.6, noise=1), body(turn, 0.6, noise=2)
    matrix = np.eye(4)
    matrix[:3, 3] = (12.0, -8.0, 4.0)
    grid = replace(GRID, origin=tuple(np.asarray(GRID.origin) + matrix[:3, 3]))
    moved = replace(moving, grid=grid)
    assert sides(fixed, moved, matrix) == pytest.approx(sides(fixed, moving))
    assert sides(moved, fixed, np.linalg.inv(matrix)) == pytest.approx(sides(fixed, moved, matrix), rel=0.3)


def test_air_tells_nothing() -> None:
    air = replace(body(np.eye(3), 0.0), image=torch.zeros(GRID.shape))
    assert math.isnan(sides(air, air))


def test_few_planes_are_no_hindrance() -> None:
    """A slab thinner than a block of cells."""
    grid = replace(GRID, size=(40, 36, 4))
    slab = Source(body(np.eye(3), 0.6).image[14:18].contiguous(), None, grid)
    assert math.isfinite(sides(slab, slab))
