"""Fits, the search over all translations, and the linear start as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regkit.core.geometry import Grid, slab_index, transform_points
from regkit.features.maps import mind_ssc
from regkit.ops.resample import Source, resample
from regkit.solver.linear import (
    _AFFINE_RIDGE,
    Moments,
    align,
    fit_affine,
    fit_rigid,
    fit_similarity,
    improved,
    least_trimmed_squares,
    search_translation,
)


def _matrix(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def _moments(points: np.ndarray, targets: np.ndarray) -> Moments:
    own = np.concatenate([np.ones_like(points[:, :1]), points], axis=1)
    return Moments.of(np.concatenate([own, targets], axis=1).T @ own)


def _rigid(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return fit_rigid(_moments(points, targets))


def _affine(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return fit_affine(_moments(points, targets))


def test_rigid_and_affine_fits_recover_what_made_the_points(rng: np.random.Generator) -> None:
    points = rng.normal(size=(50, 3)) * 40 + 100
    rigid = _matrix((10, -25, 170), (3, -80, 12))
    np.testing.assert_allclose(_rigid(points, transform_points(rigid, points)), rigid, atol=1e-9)
    affine = rigid @ np.diag([1.1, 0.9, 1.05, 1])
    error = transform_points(_affine(points, transform_points(affine, points)), points) - transform_points(
        affine, points
    )
    assert np.abs(error).max() < 1.0  # the ridge holds back a little of the scaling


def test_the_similarity_fit_has_the_least_squared_error(rng: np.random.Generator) -> None:
    points = rng.normal(size=(50, 3)) * (40, 40, 5) + 100
    exact = _matrix((10, -25, 170), (3, -80, 12)) @ np.diag([0.8, 0.8, 0.8, 1])
    np.testing.assert_allclose(
        fit_similarity(_moments(points, transform_points(exact, points))), exact, atol=1e-9
    )
    targets = transform_points(exact, points) + rng.normal(size=(50, 3)) * 3
    found = fit_similarity(_moments(points, targets))

    def cost(matrix: np.ndarray) -> float:
        return float(((transform_points(matrix, points) - targets) ** 2).sum())

    middle = np.eye(4)
    middle[:3, 3] = points.mean(0)
    for _ in range(50):
        turn = _matrix(tuple(rng.normal(size=3) * 0.05), tuple(rng.normal(size=3) * 0.05))  # type: ignore[arg-type]
        turn[:3, :3] *= 1 + 1e-3 * rng.normal()
        assert cost(found @ middle @ turn @ np.linalg.inv(middle)) > cost(found)


def test_the_affine_fit_is_a_ridge_regression_about_the_rigid_one(rng: np.random.Generator) -> None:
    """The minimum of |A p - t|^2 + r |A - R|^2 over all matrices A about the points' centre."""
    points = rng.normal(size=(80, 3)) * (30, 20, 4) + (10, -40, 300)
    targets = points @ np.array([[1.1, 0.2, 0], [-0.1, 0.9, 0.05], [0.1, 0, 1.3]]) + rng.normal(size=(80, 3))
    found, rigid = _affine(points, targets), _rigid(points, targets)
    spread = points - points.mean(0)
    ridge = _AFFINE_RIDGE * (spread**2).sum() / 3

    def cost(linear: np.ndarray) -> float:
        error = spread @ linear.T - (targets - targets.mean(0))
        return float((error**2).sum() + ridge * ((linear - rigid[:3, :3]) ** 2).sum())

    least = cost(found[:3, :3])
    assert all(cost(found[:3, :3] + 1e-3 * rng.normal(size=(3, 3))) > least for _ in range(50))
    np.testing.assert_allclose(transform_points(found, points.mean(0)), targets.mean(0), atol=1e-9)


def test_a_reflection_is_never_taken_for_a_rotation(rng: np.random.Generator) -> None:
    points = rng.normal(size=(30, 3)) * (20, 20, 2)
    found = _rigid(points, points * (1, 1, -1))
    assert np.linalg.det(found[:3, :3]) == pytest.approx(1)


def test_a_thin_slab_is_not_scaled_along_its_normal(rng: np.random.Generator) -> None:
    points = rng.normal(size=(500, 3)) * (50, 50, 1)
    targets = points + rng.normal(size=(500, 3))
    assert abs(_affine(points, targets)[2, 2] - 1) < 0.02


def test_trimming_ignores_two_fifths_of_gross_errors(rng: np.random.Generator) -> None:
    points = rng.normal(size=(200, 3)) * 30
    truth = _matrix((5, 8, -4), (10, 0, -6))
    targets = transform_points(truth, points)
    targets[:80] += rng.normal(size=(80, 3)) * 60
    assert np.abs(_rigid(points, targets) - truth).max() > 0.5
    found = least_trimmed_squares(fit_rigid, *(torch.from_numpy(p.T) for p in (points, targets)))
    np.testing.assert_allclose(found, truth, atol=1e-6)


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
    shifts, _, mismatch = search_translation(fixed, moving, 1.0, identity, count=1)
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


@pytest.mark.parametrize("degrees", [(20, 0, 0), (0, -20, 0), (-10, 10, 14)])
def test_a_rotation_by_twenty_degrees_is_found(
    rng: np.random.Generator, degrees: tuple[float, float, float]
) -> None:
    truth = _matrix(degrees, (-150, 0, 20))
    fixed, moving = _pair(rng, truth, cut=10)
    found = align(fixed, moving, 2.0, mind_ssc, models=("rigid",))
    turned = Rotation.from_matrix(found.matrix[:3, :3] @ truth[:3, :3].T).magnitude()
    assert np.degrees(turned) < 1
    points = transform_points(
        fixed.grid.index_to_world, slab_index(fixed.grid, 12, 28)[::5, 12:32:4, 12:36:4]
    )
    apart = transform_points(found.matrix, points) - transform_points(truth, points)
    assert np.linalg.norm(apart, axis=-1).max() < 1.0


def test_masks_say_what_is_searched_for(rng: np.random.Generator) -> None:
    """With all but a box around one part masked out, that part is found where it is shown."""
    truth = _matrix((0, 0, 0), (90, 40, -25))
    fixed, moving = _pair(rng, truth)
    lure = torch.from_numpy(_texture(rng, tuple(fixed.image.shape), 3))
    mask = torch.zeros_like(fixed.image)
    mask[:, :, :24] = 1
    spoilt = torch.where(mask > 0, fixed.image, lure)
    found = align(Source(spoilt, mask, fixed.grid), moving, 2.0, mind_ssc, models=("rigid",))
    points = transform_points(fixed.grid.index_to_world, slab_index(fixed.grid, 10, 30)[::5, 8:36:4, 4:20:4])
    apart = transform_points(found.matrix, points) - transform_points(truth, points)
    assert np.linalg.norm(apart, axis=-1).max() < 2.0


def test_an_affine_start_finds_a_scaling_that_a_rigid_one_cannot(rng: np.random.Generator) -> None:
    truth = _matrix((0, 0, 5), (60, 20, -30)) @ np.diag([1.08, 0.93, 1.05, 1.0])
    fixed, moving = _pair(rng, truth)
    points = transform_points(fixed.grid.index_to_world, slab_index(fixed.grid, 10, 30)[::5, 8:36:4, 8:40:4])
    wanted = transform_points(truth, points)
    rigid, affine = (
        align(fixed, moving, 2.0, mind_ssc, models) for models in (("rigid",), ("rigid", "affine"))
    )
    assert np.linalg.norm(transform_points(rigid.matrix, points) - wanted, axis=-1).max() > 2.5
    assert np.linalg.norm(transform_points(affine.matrix, points) - wanted, axis=-1).max() < 1.0
    assert (rigid.model, affine.model) == ("rigid", "affine")
    assert affine.similarity > rigid.similarity


@pytest.mark.parametrize("size", [0.7, 1.4])
def test_a_change_of_size_is_found(rng: np.random.Generator, size: float) -> None:
    truth = _matrix((5, 0, -8), (20, -10, 15)) @ np.diag([size, size, size, 1])
    fixed, moving = _pair(rng, truth)
    found = align(fixed, moving, 2.0, mind_ssc)
    assert found.origin == "resized" and found.model == "affine"
    points = transform_points(
        fixed.grid.index_to_world, slab_index(fixed.grid, 12, 28)[::5, 10:34:4, 12:36:4]
    )
    error = np.linalg.norm(transform_points(found.matrix, points) - transform_points(truth, points), axis=-1)
    assert error.max() < 2.5, error.max()


@pytest.mark.parametrize("cut", [0, 20])  # with the second the moving image is the smaller
def test_a_given_start_is_improved_and_keeps_its_size(rng: np.random.Generator, cut: int) -> None:
    truth = _matrix((6, -8, 10), (150, -90, 60))
    fixed, moving = _pair(rng, truth, cut)
    off = truth @ _matrix((1.5, -1, 1), (2, 1, -2)) @ np.diag([1.01, 1, 1, 1])
    found = improved(fixed, moving, off, 2.0, mind_ssc)
    points = transform_points(fixed.grid.index_to_world, slab_index(fixed.grid, 10, 30)[::5, 8:36:4, 8:40:4])

    def error(matrix: np.ndarray) -> float:
        return float(
            np.linalg.norm(transform_points(matrix, points) - transform_points(truth, points), axis=-1).mean()
        )

    assert error(found.matrix) < 0.4 * error(off)
    before, after = (np.linalg.svd(one[:3, :3], compute_uv=False) for one in (off, found.matrix))
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert found.model == "given"


def test_exchanging_the_images_inverts_the_start(rng: np.random.Generator) -> None:
    fixed, moving = _pair(rng, _matrix((3, 4, -5), (60, 20, -30)), cut=8)
    forward, back = align(fixed, moving, 2.0, mind_ssc), align(moving, fixed, 2.0, mind_ssc)
    np.testing.assert_allclose(forward.matrix @ back.matrix, np.eye(4), atol=1e-6)


def test_images_of_one_session_stay_where_their_headers_put_them(rng: np.random.Generator) -> None:
    fixed, _ = _pair(rng, np.eye(4))
    found = align(fixed, Source((1 - fixed.image) ** 2, None, fixed.grid), 2.0, mind_ssc)
    assert found.origin == "header"
    np.testing.assert_allclose(found.matrix, np.eye(4), atol=0.1)
