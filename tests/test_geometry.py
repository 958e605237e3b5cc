"""Every conversion of geometry.py against SimpleITK, nibabel and scipy, on grids where a mix-up shows."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, linear_about, transform_points
from regkit.ops.sampling import index_grid, map_index, resize, sample


def random_grid(seed: int) -> Grid:
    """Any size, spacing and origin; any rotation, with or without a reflection."""
    rng = np.random.default_rng(seed)
    direction = Rotation.random(random_state=seed).as_matrix()
    direction[:, rng.integers(3)] *= rng.choice([-1, 1])
    size, spacing, origin = rng.integers(4, 13, 3), rng.uniform(0.3, 4, 3), rng.uniform(-300, 300, 3)
    return Grid(tuple(size), tuple(spacing), tuple(origin), tuple(direction.ravel()))


@pytest.fixture(params=range(8))
def grid(request: pytest.FixtureRequest) -> Grid:
    return random_grid(request.param)


def smooth(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(rng.normal(size=shape), 1.5).astype(np.float32)


def test_index_to_world_is_that_of_sitk(grid: Grid, rng: np.random.Generator) -> None:
    image = grid.blank()
    points = rng.uniform(-5, 20, (20, 3))
    expected = [image.TransformContinuousIndexToPhysicalPoint(p) for p in points]
    np.testing.assert_allclose(transform_points(grid.index_to_world, points), expected, atol=1e-9)


def test_world_to_index_is_that_of_sitk(grid: Grid, rng: np.random.Generator) -> None:
    image = grid.blank()
    points = rng.uniform(-300, 300, (20, 3))
    expected = [image.TransformPhysicalPointToContinuousIndex(p) for p in points]
    np.testing.assert_allclose(transform_points(grid.world_to_index, points), expected, atol=1e-8)


def test_transform_points_keeps_leading_axes(rng: np.random.Generator) -> None:
    matrix, points = rng.normal(size=(4, 4)), rng.normal(size=(2, 3, 4, 3))
    expected = matrix[:3, :3] @ points[1, 2, 3] + matrix[:3, 3]
    np.testing.assert_allclose(transform_points(matrix, points)[1, 2, 3], expected, atol=1e-12)


def test_grid_survives_sitk(grid: Grid) -> None:
    assert Grid.from_sitk(grid.blank()) == grid
    assert grid.blank(sitk.sitkInt16).GetPixelID() == sitk.sitkInt16


def test_to_sitk_puts_every_voxel_where_the_array_has_it(grid: Grid, rng: np.random.Generator) -> None:
    array = rng.normal(size=grid.shape).astype(np.float32)
    z, y, x = (n // 2 - 1 for n in grid.shape)
    image = grid.to_sitk(array)
    assert image[x, y, z] == array[z, y, x]
    assert Grid.from_sitk(image) == grid
    vectors = rng.normal(size=(*grid.shape, 3))
    assert grid.to_sitk(vectors, vector=True)[x, y, z] == tuple(vectors[z, y, x])


def test_to_sitk_refuses_another_shape(grid: Grid) -> None:
    with pytest.raises(RegkitError, match="does not fit"):
        grid.to_sitk(np.zeros((3, 4, 5)))


@pytest.mark.parametrize("writer", ["nibabel", "sitk"])
def test_nibabel_and_sitk_read_one_grid_from_one_file(
    grid: Grid, writer: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "image.nii"
    array = rng.normal(size=grid.shape).astype(np.float32)
    if writer == "sitk":
        sitk.WriteImage(grid.to_sitk(array), path)
    else:
        nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), grid.ras_affine), path)
    image: Any = nibabel.load(path)
    from_nibabel = Grid.from_ras_affine(image.shape, image.affine)
    assert from_nibabel.same_as(Grid.from_sitk(sitk.ReadImage(path)), 1e-3)
    assert from_nibabel.same_as(grid, 1e-3)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), array)


def test_ras_affine_round_trip(grid: Grid) -> None:
    back = Grid.from_ras_affine(grid.size, grid.ras_affine)
    assert back.same_as(grid, 1e-9)
    np.testing.assert_allclose(back.spacing, grid.spacing, rtol=1e-12)
    np.testing.assert_allclose(back.direction, grid.direction, atol=1e-12)


def test_ras_is_lps_with_x_and_y_turned(grid: Grid) -> None:
    index = np.array([1.0, 2.0, 3.0])
    lps = transform_points(grid.index_to_world, index)
    np.testing.assert_allclose(transform_points(grid.ras_affine, index), lps * [-1, -1, 1], atol=1e-9)


def test_world_points_are_those_of_each_voxel(oblique_grid: Grid) -> None:
    points = oblique_grid.world_points()
    assert points.shape == (*oblique_grid.shape, 3)
    expected = oblique_grid.blank().TransformIndexToPhysicalPoint((5, 7, 2))
    np.testing.assert_allclose(points[2, 7, 5], expected, atol=1e-9)


def test_centre_and_extent_reach_the_outer_faces(grid: Grid) -> None:
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.size])).reshape(3, -1).T
    world = transform_points(grid.index_to_world, corners)
    np.testing.assert_allclose(world.mean(axis=0), grid.centre, atol=1e-9)
    along_axes = (world - grid.centre) @ np.reshape(grid.direction, (3, 3))
    np.testing.assert_allclose(np.ptp(along_axes, axis=0), grid.extent, atol=1e-9)


@pytest.mark.parametrize("multiple", [1, 4])
def test_working_grid_covers_the_field_of_view(grid: Grid, multiple: int) -> None:
    spacing = 1.7
    working = grid.working(spacing, multiple)
    assert working.spacing == (spacing,) * 3
    # The same axes, but in the order and with the signs that bring them nearest to L, P and S.
    own, ordered = np.reshape(grid.direction, (3, 3)), np.reshape(working.direction, (3, 3))
    between = own.T @ ordered
    np.testing.assert_allclose(np.abs(between), np.abs(between).round(), atol=1e-9)
    assert np.trace(ordered) == pytest.approx(
        max(np.abs(own[range(3), list(axes)]).sum() for axes in permutations(range(3)))
    )
    assert all(n % multiple == 0 for n in working.size)
    inside = transform_points(working.world_to_index @ grid.index_to_world, grid.corners())
    before, after = inside.min(0) + 0.5, np.asarray(working.size) - 0.5 - inside.max(0)  # to spare, in voxels
    np.testing.assert_allclose(before, before.round(), atol=1e-6)
    assert (after >= -1e-5).all()
    assert (before + after < multiple).all()
    assert (abs(after - before) < 2).all()


@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_working_grid_keeps_the_voxels_of_a_grid_of_its_spacing(multiple: int) -> None:
    tilt = Rotation.from_euler("xyz", (7, -12, 20), degrees=True).as_matrix() * (-1, 1, 1)
    grid = Grid((7, 11, 14), (1.5, 1.5, 1.5), (5, 6, 7), tuple(tilt.ravel()))
    at = transform_points(grid.working(1.5, multiple).world_to_index, grid.world_points())
    np.testing.assert_allclose(at, at.round(), atol=1e-6)


def test_working_grid_of_the_same_spacing_is_the_grid() -> None:
    # 7 * 0.3 / 0.3 is 7.000000000000001 in floats, which must not add a slice.
    tilt = Rotation.from_euler("xyz", (7, -12, 20), degrees=True).as_matrix()
    grid = Grid((7, 11, 14), (0.3, 0.3, 0.3), (5, 6, 7), tuple(tilt.ravel()))
    assert grid.working(0.3).same_as(grid, 1e-9)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((-1, 1), repeat=3)))
def test_working_grids_of_one_field_of_view_are_one(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """However a file stores a volume, and as SimpleITK reorders it."""
    tilt = Rotation.from_euler("xyz", (7, -12, 20), degrees=True).as_matrix()
    plain = Grid((12, 10, 14), (1.5, 2.0, 1.0), (5, 6, 7), tuple(tilt.ravel()))
    image = sitk.Flip(sitk.PermuteAxes(plain.blank(), axes), [sign < 0 for sign in signs])
    assert Grid.from_sitk(image).working(2.5, 2).same_as(plain.working(2.5, 2), 1e-9)


def test_pooled_cells_are_centred_on_their_voxels(oblique_grid: Grid) -> None:
    pooled = oblique_grid.pooled(2)
    assert pooled.size == (7, 9, 6)
    np.testing.assert_allclose(pooled.extent, oblique_grid.extent)
    points = oblique_grid.world_points()
    cells = points.reshape(6, 2, 9, 2, 7, 2, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(pooled.world_points(), cells, atol=1e-9)


def test_pooled_refuses_a_remainder(oblique_grid: Grid) -> None:
    with pytest.raises(ValueError, match="not divisible"):
        oblique_grid.pooled(4)


def test_same_as_measures_at_the_corners(oblique_grid: Grid) -> None:
    g = oblique_grid
    tilt = Rotation.from_euler("z", 0.02).as_matrix() @ np.reshape(g.direction, (3, 3))

    def shifted(mm: float) -> Grid:
        return Grid(g.size, g.spacing, (g.origin[0] + mm, *g.origin[1:]), g.direction)

    assert g.same_as(shifted(0.009 * min(g.spacing)))
    assert not g.same_as(shifted(0.011 * min(g.spacing)))
    assert g.same_as(shifted(0.09 * min(g.spacing)), tolerance_voxels=0.1)
    assert not g.same_as(Grid(g.size, g.spacing, g.origin, tuple(tilt.ravel())))
    assert not g.same_as(Grid((g.size[0] + 1, *g.size[1:]), g.spacing, g.origin, g.direction))
    assert not g.same_as(Grid(g.size, (g.spacing[0] * 1.01, *g.spacing[1:]), g.origin, g.direction))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": (0, 5, 5)}, "positive whole sizes"),
        ({"size": (5, 5)}, "positive whole sizes"),
        ({"size": (5.5, 5, 5)}, "positive whole sizes"),
        ({"spacing": (1, 0, 1)}, "three positive numbers of mm"),
        ({"spacing": tuple(np.array([1.5, 0, 1]))}, r"got \(1.5, 0.0, 1.0\)"),
        ({"spacing": (1, -1, 1)}, "three positive numbers of mm"),
        ({"spacing": (1, math.nan, 1)}, "three positive numbers of mm"),
        ({"origin": (0, math.inf, 0)}, "three finite numbers of mm"),
        ({"direction": (1, 0, 0, 0, 1, 0, 0, 0, 0)}, "not orthonormal"),
        ({"direction": (1, 0.01, 0, 0, 1, 0, 0, 0, 1)}, "not orthonormal"),
        ({"direction": (math.nan,) * 9}, "not orthonormal"),
        ({"direction": (1, 0, 0, 1)}, "not orthonormal"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(bad: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        Grid(**{"size": (5, 5, 5), **bad})  # type: ignore[arg-type]


def test_an_affine_that_cannot_be_is_refused() -> None:
    with pytest.raises(RegkitError, match="singular"):
        Grid.from_ras_affine((5, 5, 5), np.diag([1.0, 0.0, 1.0, 1.0]))
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    with pytest.raises(RegkitError, match="sheared"):
        Grid.from_ras_affine((5, 5, 5), sheared)


def test_index_grid_and_map_index_give_world_points(oblique_grid: Grid) -> None:
    coordinates = index_grid(oblique_grid.shape)
    assert coordinates.dtype == torch.float32
    np.testing.assert_array_equal(coordinates[:, 2, 7, 5], [5, 7, 2])
    world = map_index(oblique_grid.index_to_world, coordinates)
    np.testing.assert_allclose(world.movedim(0, -1), oblique_grid.world_points(), atol=1e-3)


def test_sample_is_linear_resampling_of_sitk(oblique_grid: Grid, rng: np.random.Generator) -> None:
    turn = Rotation.from_euler("xyz", (3, -5, 8), degrees=True).as_matrix()
    turn = turn @ np.reshape(oblique_grid.direction, (3, 3))
    moving = Grid((20, 16, 13), (0.9, 1.1, 1.6), direction=tuple(turn.ravel()))
    moving = replace(moving, origin=tuple(oblique_grid.centre - moving.centre))
    array = smooth(moving.shape, rng)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(moving.to_sitk(array), oblique_grid.blank(), sitk.Transform(), sitk.sitkLinear, 0.0)
    )
    matrix = moving.world_to_index @ oblique_grid.index_to_world
    coordinates = map_index(matrix, index_grid(oblique_grid.shape))
    found = sample(torch.from_numpy(array)[None], coordinates)[0].numpy()
    last = torch.tensor(moving.size).view(3, 1, 1, 1) - 1
    inside = ((coordinates > 0.01) & (coordinates < last - 0.01)).all(dim=0).numpy()
    assert inside.sum() > 200
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-5)


@pytest.mark.parametrize(("outside", "scipy_mode"), [("border", "nearest"), ("zeros", "grid-constant")])
@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_sample_is_map_coordinates(
    mode: str, order: int, outside: str, scipy_mode: str, rng: np.random.Generator
) -> None:
    volume = smooth((2, 7, 9, 11), rng)
    coordinates = rng.uniform(-3, 13, (3, 6, 5, 8)).astype(np.float32)
    found = sample(torch.from_numpy(volume), torch.from_numpy(coordinates), mode=mode, outside=outside)
    zyx = coordinates[::-1]
    expected = [ndimage.map_coordinates(v, zyx, order=order, mode=scipy_mode, cval=0.0) for v in volume]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sample_at_the_voxels_gives_the_volume(rng: np.random.Generator) -> None:
    for shape in ((5, 6, 7), (1, 6, 7)):
        volume = torch.from_numpy(smooth((1, *shape), rng))
        torch.testing.assert_close(sample(volume, index_grid(shape)), volume, atol=1e-6, rtol=0)


def test_sample_is_differentiable_in_both(rng: np.random.Generator) -> None:
    volume = torch.from_numpy(rng.normal(size=(1, 4, 5, 6))).requires_grad_()
    # Away from the voxel planes, where the slope of a linear interpolation jumps.
    whole, part = rng.integers(0, 3, (3, 2, 2, 2)), rng.uniform(0.2, 0.8, (3, 2, 2, 2))
    coordinates = torch.from_numpy(whole + part).requires_grad_()
    assert torch.autograd.gradcheck(sample, (volume, coordinates))


def test_resize_samples_between_grid_and_pooled_grid(oblique_grid: Grid, rng: np.random.Generator) -> None:
    pooled = oblique_grid.pooled(2)
    for source, target in ((pooled, oblique_grid), (oblique_grid, pooled)):
        volume = torch.from_numpy(smooth((2, *source.shape), rng))
        coordinates = map_index(source.world_to_index @ target.index_to_world, index_grid(target.shape))
        expected = sample(volume, coordinates)
        torch.testing.assert_close(resize(volume, target.shape), expected, atol=2e-5, rtol=0)


def test_a_linear_map_about_a_centre(rng: np.random.Generator) -> None:
    centre, shift, linear = rng.normal(size=3), rng.normal(size=3), rng.normal(size=(3, 3))
    points = rng.normal(size=(5, 3))
    expected = [centre + linear @ (point - centre) + shift for point in points]
    np.testing.assert_allclose(transform_points(linear_about(centre, linear, shift), points), expected)
    np.testing.assert_allclose(transform_points(linear_about(centre, linear), centre), centre)
