"""The determinant against ITK, closed forms and a plain double loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.ops import jacobian
from regkit.ops.jacobian import folding_percent, jacobian_determinant, learn2reg_sdlogj, sd_log_jacobian

_INNER = (slice(1, -1),) * 3


def test_affine_field_has_its_determinant_everywhere_borders_included(
    oblique_grid: Grid, rng: np.random.Generator
) -> None:
    matrix = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
    points = oblique_grid.world_points()
    field = (points @ (matrix - np.eye(3)).T + (200.0, -3.0, 7.0)).astype(np.float32)
    determinant = jacobian_determinant(field, oblique_grid)
    assert determinant.shape == oblique_grid.shape and determinant.dtype == np.float32
    np.testing.assert_allclose(determinant, np.linalg.det(matrix), atol=2e-4)


def test_quadratic_field_matches_its_closed_form(oblique_grid: Grid) -> None:
    # d(p) = v (q.(p - c))^2, so that J = 1 + 2 (q.(p - c)) (q.v); central differences of it are exact.
    q, v = np.array([0.03, -0.02, 0.05]), np.array([1.0, 2.0, -1.5])
    along = (oblique_grid.world_points() - oblique_grid.centre) @ q
    determinant = jacobian_determinant(v * along[..., None] ** 2, oblique_grid)
    expected = 1 + 2 * along * (q @ v)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(determinant[_INNER], expected[_INNER], atol=1e-5)


def test_equals_itk_inside_anisotropic_grids(oblique_grid: Grid, rng: np.random.Generator) -> None:
    # ITK's filter differentiates along the grid's axes but takes the vectors' world components as they
    # are, so it is right only without a rotation: the vectors are turned into the grid's frame for it.
    field = rng.normal(scale=0.3, size=(*oblique_grid.shape, 3))
    direction = np.reshape(oblique_grid.direction, (3, 3))
    straight = Grid(oblique_grid.size, oblique_grid.spacing)
    itk = sitk.DisplacementFieldJacobianDeterminant(straight.to_sitk(field @ direction, vector=True))
    ours = jacobian_determinant(field, oblique_grid)
    np.testing.assert_allclose(ours[_INNER], sitk.GetArrayFromImage(itk)[_INNER], atol=1e-5)


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, slices: int) -> None:
    grid = Grid((6, 7, 11), (1, 2, 3))
    field = rng.normal(scale=0.3, size=(*grid.shape, 3)).astype(np.float32)
    whole = jacobian_determinant(field, grid)
    monkeypatch.setattr(jacobian, "_SLAB_VOXELS", slices * 6 * 7)
    np.testing.assert_array_equal(jacobian_determinant(field, grid), whole)


def test_a_single_slice_counts_as_unchanging_across_it() -> None:
    grid = Grid((5, 6, 1), (2.0, 1.0, 4.0))
    field = np.zeros((*grid.shape, 3))
    field[..., 0] = 0.5 * grid.world_points()[..., 0]
    np.testing.assert_allclose(jacobian_determinant(field, grid), 1.5, rtol=1e-6)


def test_folds_are_counted_exactly(oblique_grid: Grid) -> None:
    # Along the grid's own x axis T runs to voxel 8 and back again: J is 0 at the turn and -1 after it.
    x = np.arange(14.0)
    back = np.minimum(x, 16 - x) - x
    axis = oblique_grid.index_to_world[:3, 0]
    field = np.broadcast_to(back[:, None] * axis, (*oblique_grid.shape, 3))
    determinant = jacobian_determinant(field, oblique_grid)
    np.testing.assert_allclose(determinant[..., 9:], -1, atol=1e-5)
    # The turn itself is 0 up to rounding on an oblique grid, so it is set aside here.
    mask = np.ones(oblique_grid.shape, dtype=bool)
    mask[..., 8] = False
    assert folding_percent(determinant, mask) == pytest.approx(100 * 5 / 13)
    mask[..., 9:] = False
    assert folding_percent(determinant, mask) == 0
    assert folding_percent(np.array([0.0, -2.0, 1e-12, 1.0])) == 50


def test_sd_log_jacobian_leaves_folds_out_and_clips_tiny_values() -> None:
    determinant = np.array([math.e, 1 / math.e, -5.0, 0.0, 7.0], dtype=np.float32)
    mask = np.array([1, 1, 1, 1, 0])
    assert sd_log_jacobian(determinant, mask) == pytest.approx(1, rel=1e-6)
    assert sd_log_jacobian(np.array([1e-30, 1.0])) == pytest.approx(math.log(1e9) / 2)
    assert math.isnan(sd_log_jacobian(np.array([-1.0, 0.0])))


def _official_sdlogj(displacement: np.ndarray, mask: np.ndarray | None) -> float:
    """Section by section what MDL-UzL/L2R computes, voxel by voxel in float64."""
    values = []
    for i, j, k in itertools.product(*[range(2, n - 2) for n in displacement.shape[:3]]):
        if mask is not None and not mask[i, j, k]:
            continue
        matrix = np.eye(3)
        for axis, step in enumerate(np.eye(3, dtype=int)):
            ahead, behind = np.array([i, j, k]) + step, np.array([i, j, k]) - step
            matrix[:, axis] += 0.5 * displacement[tuple(ahead)] - 0.5 * displacement[tuple(behind)]
        values.append(math.log(min(max(np.linalg.det(matrix) + 3, 1e-9), 1e9)))
    return float(np.std(values))


@pytest.mark.parametrize("scale", [0.2, 2.0])
@pytest.mark.parametrize("masked", [False, True])
def test_learn2reg_sdlogj_equals_a_double_loop(rng: np.random.Generator, scale: float, masked: bool) -> None:
    displacement = rng.normal(scale=scale, size=(9, 7, 8, 3))
    mask = rng.random((9, 7, 8)) > 0.5 if masked else None
    assert learn2reg_sdlogj(displacement, mask) == pytest.approx(
        _official_sdlogj(displacement, mask), rel=1e-5
    )


def test_unusable_input_is_refused() -> None:
    determinant = np.ones((4, 5, 6))
    with pytest.raises(RegkitError, match="does not fit a grid"):
        jacobian_determinant(np.zeros((4, 5, 6)), Grid((6, 5, 4)))
    with pytest.raises(RegkitError, match=r"mask of shape \(4, 5, 5\)"):
        folding_percent(determinant, np.ones((4, 5, 5)))
    with pytest.raises(RegkitError, match="mask is empty"):
        sd_log_jacobian(determinant, np.zeros((4, 5, 6)))
    with pytest.raises(RegkitError, match="at least 5 voxels"):
        learn2reg_sdlogj(np.zeros((9, 9, 4, 3)))
    with pytest.raises(RegkitError, match="does not fit a field"):
        learn2reg_sdlogj(np.zeros((9, 9, 9, 3)), np.ones((9, 9, 8)))
