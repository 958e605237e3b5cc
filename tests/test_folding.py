"""Jacobians of a displacement lattice at its corners, and the removal of folds."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from warp_cases import FIXED, affine_map

from regkit.core.geometry import transform_points
from regkit.ops.filters import smooth
from regkit.ops.folding import CORNERS, corner_jacobian, folded_points, unfold
from regkit.ops.jacobian import jacobian_determinant, unfolded_warp

SHAPE = (7, 6, 8)


def test_corner_jacobians_are_determinants_of_edge_differences(rng: np.random.Generator) -> None:
    field = rng.normal(size=(3, *SHAPE))
    for corner in CORNERS:
        found = corner_jacobian(torch.from_numpy(field), corner).numpy()
        for cell in np.ndindex(found.shape):
            at = np.array(cell) + corner
            gradient = np.empty((3, 3))
            for column, axis in enumerate((2, 1, 0)):  # along x, y, z of array axes (z, y, x)
                low, high = at.copy(), at.copy()
                low[axis], high[axis] = cell[axis], cell[axis] + 1
                gradient[:, column] = field[(slice(None), *high)] - field[(slice(None), *low)]
            np.testing.assert_allclose(found[cell], np.linalg.det(np.eye(3) + gradient), atol=1e-10)


def test_unfold_removes_folds_and_leaves_the_rest(rng: np.random.Generator) -> None:
    field = 5 + 0.05 * torch.from_numpy(rng.random((3, 24, 24, 24)))
    field[:, 8:12, 8:12, 8:12] += torch.from_numpy(rng.normal(size=(3, 4, 4, 4)) * 3)
    assert folded_points(field).any()
    flat = unfold(field)
    assert not folded_points(flat).any()
    assert torch.equal(flat[:, :, :, 20:], field[:, :, :, 20:])


def test_unfold_returns_a_field_without_folds_as_it_is(rng: np.random.Generator) -> None:
    field = torch.from_numpy(0.1 * rng.random((3, *SHAPE)))
    assert unfold(field) is field


def test_a_field_that_is_all_folds_ends_without_any(rng: np.random.Generator) -> None:
    field = torch.from_numpy(rng.normal(size=(3, 12, 12, 12)) * 20)
    for rounds in (200, 1):  # one round is not enough, and what is left must go nevertheless
        assert not folded_points(unfold(field, rounds)).any()


def test_folded_points_are_those_beside_a_corner_that_folds(rng: np.random.Generator) -> None:
    field = torch.from_numpy(0.4 * rng.normal(size=(3, *SHAPE)))
    found = folded_points(field)
    for point in np.ndindex(SHAPE):
        folds = False
        for corner in CORNERS:
            cell = tuple(np.subtract(point, corner))
            if all(0 <= c < n - 1 for c, n in zip(cell, SHAPE, strict=True)):
                folds |= bool(corner_jacobian(field, corner)[cell] <= 0)
        assert bool(found[point]) == folds
    assert 0 < found.mean() < 1


def test_every_point_of_a_cell_without_corner_folds_is_free_of_them(rng: np.random.Generator) -> None:
    """Between the corners too, as the determinant of a trilinear map mostly lies between theirs."""
    field = unfold(smooth(torch.from_numpy(rng.normal(size=(3, 8, 8, 8)) * 6), 2))
    corners = {c: field[(slice(None), *(slice(k, k + 7) for k in c))] for c in product((0, 1), repeat=3)}
    least = np.inf
    for point in rng.random((40, 3)):  # z, y, x within the cell
        columns = []
        for axis in (2, 1, 0):
            column = torch.zeros(3, 7, 7, 7, dtype=torch.float64)
            for corner, value in corners.items():
                rest = [point[k] if corner[k] else 1 - point[k] for k in range(3) if k != axis]
                column += (1 if corner[axis] else -1) * float(np.prod(rest)) * value
            columns.append(column)
        gradient = torch.stack(columns).permute(2, 3, 4, 1, 0) + torch.eye(3, dtype=torch.float64)
        least = min(least, float(torch.linalg.det(gradient).min()))
    assert least > 0


def test_a_field_without_corner_folds_has_none_by_central_differences(rng: np.random.Generator) -> None:
    """On an oblique grid in mm, border included: what folding_percent counts."""
    noise = torch.from_numpy(rng.normal(size=(3, *FIXED.shape)) * 5)
    flat = unfold(smooth(noise, 2))
    for field, folds in ((smooth(noise, 2), True), (flat, False)):
        millimetres = field.movedim(0, -1).numpy() @ FIXED.index_to_world[:3, :3].T
        assert bool((jacobian_determinant(millimetres, FIXED) <= 0).any()) == folds
    assert float(flat.abs().mean()) > 0.1  # not by giving the field up


def test_a_fold_at_the_border_goes_as_well() -> None:
    for component, face in ((0, (slice(None), slice(None), 0)), (2, (-1,)), (1, (slice(None), -1))):
        field = torch.zeros(3, 10, 10, 10)
        field[(component, *face)] = 3 if face[-1] == 0 else -3
        assert folded_points(field)[face].all()
        assert not folded_points(unfold(field)).any()


def _wave(millimetres: float) -> tuple[np.ndarray, np.ndarray]:
    """A field on FIXED: a wave across the voxels that shears and folds nowhere, in one half of the image, and
    then a linear map, which is returned too.

    Across the wave nothing is pressed together, but its length is that of a few voxels, whose sides differ:
    by differences between them it folds.
    """
    index = np.moveaxis(np.indices(FIXED.shape)[::-1], 0, -1)
    along = index * FIXED.spacing
    across = millimetres * np.sin(2 * np.pi * (along[..., 0] + along[..., 1]) / 10) * (index[..., 2] < 6)
    points = FIXED.world_points()
    shift = np.stack([across, -across, 0 * across], -1) @ np.reshape(FIXED.direction, (3, 3)).T
    matrix = affine_map(8, (2, -3, 1))
    return (transform_points(matrix, points + shift) - points).astype(np.float32), matrix


def test_a_warp_that_folds_between_voxels_is_smoothed_there_alone() -> None:
    field, matrix = _wave(4)
    folded = jacobian_determinant(field, FIXED) <= 0
    assert 0.005 < folded.mean() < 0.2
    flat, determinant = unfolded_warp(field, FIXED, matrix)
    assert determinant.min() > 0
    np.testing.assert_array_equal(determinant, jacobian_determinant(flat, FIXED))
    points = FIXED.world_points()
    linear = transform_points(matrix, points) - points
    np.testing.assert_allclose(flat[9:], linear[9:], atol=1e-4)  # there was nothing but the linear map
    # What is smoothed is not given up, and what it is smoothed to is the linear map.
    wave, left = (np.linalg.norm(one[:6] - linear[:6], axis=-1) for one in (field, flat))
    assert 0.05 * wave.mean() < left.mean() < wave.mean()
    assert left.max() <= wave.max() + 1e-4


def test_a_warp_without_folds_is_left_as_it_is() -> None:
    field, matrix = _wave(0.5)
    flat, determinant = unfolded_warp(field, FIXED, matrix)
    assert flat is field
    assert determinant.min() > 0
