"""Fits, the search over all translations, and the linear start as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regkit.features import mind_ssc
from regkit.geometry import Grid, slab_index, transform_points
from regkit.linear import align, fit_affine, fit_rigid, least_trimmed_squares, search_translation
from regkit.resample import Source, resample


def _matrix(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def test_rigid_and_affine_fits_recover_what_made_the_points(rng: np.random.Generator) -> None:
    points = rng.normal(size=(50, 3)) * 40 + 100
    rigid = _matrix((10, -25, 170), (3, -80, 12))
    np.testing.assert_allclose(fit_rigid(points, transform_points(rigid, points)), rigid, atol=1e-9)
    affine = rigid @ np.diag([1.1, 0.9, 1.05, 1])
    error = transform_points(fit_affine(points, transform_points(affine, points)), points) - transform_points(
        affine, points
    )
    assert np.abs(error).max() < 1.0  # the ridge holds back a little of the scaling


def test_a_thin_slab_is_not_scaled_along_its_normal(rng: np.random.Generator) -> None:
    points = rng.normal(size=(500, 3)) * (50, 50, 1)
    targets = points + rng.normal(size=(500, 3))
    assert abs(fit_affine(points, targets)[2, 2] - 1) < 0.02


def test_trimming_ignores_two_fifths_of_gross_errors(rng: np.random.Generator) -> None:
    points = rng.normal(size=(200, 3)) * 30
    truth = _matrix((5, 8, -4), (10, 0, -6))
    targets = transform_points(truth, points)
    targets[:80] += rng.normal(size=(80, 3)) * 60
    assert np.abs(fit_rigid(points, targets) - truth).max() > 0.5
    np.testing.assert_allclose(least_trimmed_squares(fit_rigid, points, targets), truth, atol=1e-6)


def _texture(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float = 2.0) -> np.ndarray:
    smooth = gaussian_filter(rng.normal(size=shape), sigma)
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def test_the_search_is_what_trying_every_shift_gives(rng: np.random.Generator) -> None:
    """Mean squared difference over the overlap, with what does not overlap counted as the median."""
    fixed = Source(torch.from_numpy(_texture(rng, (6, 7, 5), 1)), None, Grid((5, 7, 6)))
    moving = Source(
        torch.from_numpy(_texture(rng, (7, 5, 8), 1)), None, Grid((8, 5, 7), origin=(30.0, -9.0, 4.0))
    )

    def identity(image: torch.Tensor) -> torch.Tensor:
        return image[None]

    a, b = fixed.image.numpy(), moving.image.numpy()
    scores, means = {}, []
    for z in range(-5, 7):
        for y in range(-6, 5):
            for x in range(-4, 8):
                low = np.maximum(0, (-z, -y, -x))
                high = np.minimum(a.shape, np.array(b.shape) - (z, y, x))
                size = int(np.prod(np.maximum(high - low, 0)))
                if size < 0.2 * min(a.size, b.size):
                    continue
                here = tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))
                there = tuple(slice(lo + s, hi + s) for lo, hi, s in zip(low, high, (z, y, x), strict=True))
                scores[x, y, z] = (((a[here] - b[there]) ** 2).sum(), size)
                means.append(scores[x, y, z][0] / size)
    shifts, mismatch = search_translation(fixed, moving, 1.0, identity, count=1)
    assert mismatch == pytest.approx(np.sort(means)[(len(means) - 1) // 2], rel=1e-3)
    full = min(a.size, b.size)
    best = min(scores, key=lambda shift: scores[shift][0] + max(full - scores[shift][1], 0) * mismatch)
    np.testing.assert_allclose(shifts[0], np.add(best, (30.0, -9.0, 4.0)), atol=1e-6)


def _pair(rng: np.random.Generator, truth: np.ndarray, cut: int = 0) -> tuple[Source, Source]:
    """A textured image and what a scanner in another frame, with other contrast, makes of it."""
    fixed_grid = Grid((48, 44, 40), (2.0, 2.0, 2.0), (-10.0, 40.0, 5.0))
    world = Source(
        torch.from_numpy(_texture(rng, (90, 94, 98), 3)),
        None,
        Grid((98, 94, 90), (2.0,) * 3, (-60.0, -10.0, -45.0)),
    )
    image, _ = resample(world, np.eye(4), fixed_grid)
    # Another lattice over the moved anatomy, turned and away from the fixed frame.
    direction = np.diag([-1.0, -1.0, 1.0])
    size = np.array((50, 46, 42 - cut))
    middle = transform_points(truth, fixed_grid.centre)
    origin = middle - direction @ (2.0 * (size - 1) / 2)
    moving_grid = Grid(tuple(size), (2.0,) * 3, tuple(origin), tuple(direction.ravel()))
    moved, _ = resample(world, np.linalg.inv(truth), moving_grid)
    return Source(image, None, fixed_grid), Source((1 - moved) ** 2, None, moving_grid)


@pytest.mark.parametrize("cut", [0, 20])
def test_a_pair_in_unrelated_frames_is_brought_together(rng: np.random.Generator, cut: int) -> None:
    truth = _matrix((6, -8, 10), (150, -90, 60))
    fixed, moving = _pair(rng, truth, cut)
    found = align(fixed, moving, 2.0, mind_ssc, models=("rigid",))
    points = transform_points(fixed.grid.index_to_world, slab_index(fixed.grid, 10, 30)[::5, 8:36:4, 8:40:4])
    error = np.linalg.norm(transform_points(found.matrix, points) - transform_points(truth, points), axis=-1)
    assert error.max() < 2.0  # mm, a voxel
    assert found.origin != "header"
    assert found.similarity > 0.5


def test_exchanging_the_images_inverts_the_start(rng: np.random.Generator) -> None:
    fixed, moving = _pair(rng, _matrix((3, 4, -5), (60, 20, -30)), cut=8)
    forward, back = align(fixed, moving, 2.0, mind_ssc), align(moving, fixed, 2.0, mind_ssc)
    np.testing.assert_allclose(forward.matrix @ back.matrix, np.eye(4), atol=1e-6)


def test_images_of_one_session_stay_where_their_headers_put_them(rng: np.random.Generator) -> None:
    fixed, _ = _pair(rng, np.eye(4))
    found = align(fixed, Source((1 - fixed.image) ** 2, None, fixed.grid), 2.0, mind_ssc)
    assert found.origin == "header"
    np.testing.assert_allclose(found.matrix, np.eye(4), atol=0.1)
