"""What a warp does to images and points, checked against ITK and against its own definition."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates
from warp_cases import FIXED, MOVING, affine_map, blob, centre_of_mass, smooth_warp, texture

from regkit import warp as warp_module
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io.images import Volume
from regkit.ops.jacobian import jacobian_determinant
from regkit.warp import Warp, contains


def _points_inside(grid: Grid, count: int, margin: float, seed: int = 5) -> np.ndarray:
    size = np.array(grid.size)
    index = np.random.default_rng(seed).uniform(margin, size - 1 - margin, (count, 3))
    return transform_points(grid.index_to_world, index)


def _interpolated(array: np.ndarray, grid: Grid, points: np.ndarray, order: int) -> np.ndarray:
    index = transform_points(grid.world_to_index, points)
    return map_coordinates(
        array.astype(np.float64), np.moveaxis(index[..., ::-1], -1, 0), order=order, mode="nearest"
    )


# --- construction


def test_a_field_that_does_not_fit_or_is_not_finite_is_refused() -> None:
    with pytest.raises(RegkitError, match="does not fit a grid"):
        Warp(np.zeros((*FIXED.size, 3)), FIXED)
    for bad in (np.nan, np.inf, -np.inf):
        field = np.zeros((*FIXED.shape, 3), dtype=np.float32)
        field[3, 4, 5, 1] = bad
        with pytest.raises(RegkitError, match="not a number"):
            Warp(field, FIXED)


def test_a_read_only_field_does_not_reach_torch() -> None:
    field = np.ones((*FIXED.shape, 3), dtype=np.float32)
    field.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = Warp(field, FIXED).transform_points([FIXED.centre])
    np.testing.assert_allclose(moved, [FIXED.centre + 1], atol=1e-5)


# --- points


def test_points_go_where_itk_takes_them() -> None:
    warp = smooth_warp()
    points = _points_inside(FIXED, 200, 0.0)
    itk = warp.to_sitk()
    expected = [itk.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(warp.transform_points(points), expected, atol=1e-3)


def test_points_beyond_the_grid_take_the_border_displacement() -> None:
    warp = smooth_warp()
    index = np.array([[-5.0, 4, 6], [30.0, 25, 20], [25, 21, 16]])
    points = transform_points(FIXED.index_to_world, index)
    border = np.clip(index, 0, np.array(FIXED.size) - 1).astype(int)
    expected = points + warp.field[border[:, 2], border[:, 1], border[:, 0]]
    np.testing.assert_allclose(warp.transform_points(points), expected, atol=1e-3)
    np.testing.assert_array_equal(contains(FIXED, points), [False, False, True])


def test_points_keep_their_shape_in_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    warp = smooth_warp()
    points = _points_inside(FIXED, 30, 0.0)
    whole = warp.transform_points(points)
    monkeypatch.setattr(warp_module, "_BLOCK", 7)
    np.testing.assert_allclose(
        warp.transform_points(points.reshape(2, 15, 3)), whole.reshape(2, 15, 3), atol=1e-12
    )
    assert warp.transform_points(np.empty((0, 3))).shape == (0, 3)
    for bad in (3.0, np.zeros((4, 2)), [[1.0, np.nan, 2.0]]):
        with pytest.raises(RegkitError, match="points must be finite"):
            warp.transform_points(bad)


# --- images


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
def test_apply_is_the_moving_image_at_the_mapped_points(interpolation: str, order: int) -> None:
    warp, moving = smooth_warp(), texture(MOVING)
    moved = warp.apply(Volume(moving, MOVING), interpolation=interpolation)
    target = warp.transform_points(FIXED.world_points())
    expected = _interpolated(moving, MOVING, target, order)
    # Only well inside: there ITK and scipy share no border rule. Nearest may fall either way on a face.
    inside = contains(MOVING, target) & contains(MOVING, target + 2) & contains(MOVING, target - 2)
    assert moved.grid == FIXED and inside.mean() > 0.5
    differs = np.abs(moved.array - expected)[inside] > 0.05
    assert differs.mean() < (0.001 if order == 0 else 1e-9)


def test_apply_gives_back_the_kind_it_was_given(tmp_path: Path) -> None:
    warp, array = smooth_warp(), texture(MOVING)
    image = MOVING.to_sitk(array)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(image, FIXED.blank(), warp.to_sitk(), sitk.sitkLinear, float(array.min()))
    )
    from_sitk = warp.apply(image)
    assert Grid.from_sitk(from_sitk).same_as(FIXED)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(from_sitk), expected)

    sitk.WriteImage(image, str(tmp_path / "moving.nii.gz"))
    for path in (tmp_path / "moving.nii.gz", str(tmp_path / "moving.nii.gz")):
        from_path = warp.apply(path)
        assert isinstance(from_path, Volume)
        np.testing.assert_allclose(from_path.array, expected, atol=0.1)  # the header rounds to float32

    from_nibabel = warp.apply(nib.Nifti1Image(array.T, MOVING.ras_affine))
    assert isinstance(from_nibabel, nib.Nifti1Image)
    assert Grid.from_ras_affine(from_nibabel.shape, from_nibabel.affine).same_as(FIXED)
    np.testing.assert_allclose(from_nibabel.get_fdata().T, expected, atol=0.1)


def test_an_itk_image_of_whole_numbers_is_resampled_as_itk_does() -> None:
    warp = smooth_warp()
    image = sitk.Cast(MOVING.to_sitk(texture(MOVING)), sitk.sitkInt16)
    expected = sitk.Resample(image, FIXED.blank(), warp.to_sitk(), sitk.sitkBSpline, -7)
    moved = warp.apply(image, interpolation="bspline", default=-7)
    assert moved.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(expected))


def test_beyond_the_moving_image_lies_its_minimum() -> None:
    far = Warp(np.full((*FIXED.shape, 3), 500, dtype=np.float32), FIXED)
    moving = texture(MOVING)
    assert np.unique(far.apply(Volume(moving, MOVING)).array).tolist() == [moving.min()]
    labels = (moving > 0).astype(np.uint8) + 1
    assert np.unique(far.apply(Volume(labels, MOVING), interpolation="label").array).tolist() == [0]


def test_apply_on_another_reference_grid() -> None:
    warp, moving = smooth_warp(), texture(MOVING)
    reference = FIXED.working(3.0)
    moved = warp.apply(MOVING.to_sitk(moving), reference=reference)
    expected = sitk.Resample(
        MOVING.to_sitk(moving), reference.blank(), warp.to_sitk(), sitk.sitkLinear, float(moving.min())
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(expected))
    assert Grid.from_sitk(moved).same_as(reference)


def test_labels_are_the_largest_interpolated_indicator() -> None:
    warp = smooth_warp()
    # Label values far apart and unordered in space: blending values instead of indicators would show.
    labels = np.array([0, 7, 200, 3], dtype=np.uint8)[np.digitize(texture(MOVING), [-300, 0, 300])]
    moved = warp.apply(Volume(labels, MOVING), interpolation="label")
    assert moved.array.dtype == np.uint8 and set(np.unique(moved.array)) <= {0, 3, 7, 200}
    target = warp.transform_points(FIXED.world_points())
    values = np.array([0, 3, 7, 200])
    scores = np.stack([_interpolated(labels == v, MOVING, target, 1) for v in values])
    inside = contains(MOVING, target + 2) & contains(MOVING, target - 2)
    ordered = np.sort(scores, axis=0)
    clear = inside & (ordered[-1] - ordered[-2] > 1e-3)
    assert clear.sum() > 3000
    np.testing.assert_array_equal(moved.array[clear], values[scores.argmax(axis=0)][clear])


@pytest.mark.parametrize("pixel", [sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkFloat32])
def test_labels_of_itk_keep_their_pixel_type(pixel: int) -> None:
    labels = (texture(MOVING) > 0).astype(np.int32) * 300
    moved = smooth_warp().apply(sitk.Cast(MOVING.to_sitk(labels), pixel), interpolation="label")
    assert moved.GetPixelID() == pixel
    assert np.unique(sitk.GetArrayFromImage(moved)).tolist() == [0, 300]


def test_an_unknown_interpolation_is_refused() -> None:
    with pytest.raises(RegkitError, match="use one of linear, bspline, nearest, label"):
        smooth_warp().apply(Volume(texture(MOVING), MOVING), interpolation="cubic")


def test_a_constant_shift_brings_a_blob_to_its_place() -> None:
    shift = np.array([3.0, -5.0, 8.0])
    place = FIXED.centre + shift / 2
    warp = Warp(np.broadcast_to(shift, (*FIXED.shape, 3)), FIXED, MOVING)
    moved = warp.apply(Volume(blob(MOVING, place, sigma=3), MOVING))
    np.testing.assert_allclose(centre_of_mass(moved.array, FIXED), place - shift, atol=0.05)


# --- transforms in, composition, Jacobian


def test_from_transform_samples_any_itk_transform() -> None:
    euler = sitk.Euler3DTransform(FIXED.centre.tolist(), 0.2, -0.3, 0.1, (4, 5, -6))
    warp = Warp.from_transform(euler, FIXED, MOVING)
    points = _points_inside(FIXED, 50, 0)
    np.testing.assert_allclose(
        warp.transform_points(points), [euler.TransformPoint(p) for p in points.tolist()], atol=1e-3
    )
    assert warp.moving_grid == MOVING
    with pytest.raises(RegkitError, match="2-D"):
        Warp.from_transform(sitk.TranslationTransform(2), FIXED)


def test_compose_is_one_warp_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warp_module, "_BLOCK", 1000)  # two slices at a time
    first, then = smooth_warp(1), smooth_warp(2, grid=MOVING, moving=FIXED)
    both = first.compose(then)
    points = FIXED.world_points()
    expected = then.transform_points(first.transform_points(points))
    np.testing.assert_allclose(both.transform_points(points), expected, atol=1e-3)
    other_way = first.transform_points(then.transform_points(points))
    assert np.linalg.norm(other_way - expected, axis=-1).max() > 1  # so that the order shows
    assert both.grid == FIXED and both.moving_grid == FIXED


def test_jacobian_lies_on_the_fixed_grid() -> None:
    warp = smooth_warp()
    volume = warp.jacobian()
    assert volume.grid == FIXED
    np.testing.assert_array_equal(volume.array, jacobian_determinant(warp.field, FIXED))


# --- inverse


def _between_centres(grid: Grid, points: np.ndarray) -> np.ndarray:
    """Where both rules of extrapolation agree: `inverse` continues the affine part, points the border."""
    index = transform_points(grid.world_to_index, points)
    return ((index >= 0) & (index <= np.array(grid.size) - 1)).all(axis=-1)


def _round_trip_error(warp: Warp, inverse: Warp, margin: float) -> np.ndarray:
    """mm between x and T^-1(T(x)) for x inside the fixed grid whose image falls inside the inverse's grid."""
    points = _points_inside(warp.grid, 3000, margin)
    target = warp.transform_points(points)
    inside = _between_centres(inverse.grid, target)
    assert inside.mean() > 0.5
    return np.linalg.norm(inverse.transform_points(target) - points, axis=1)[inside]


def test_inverse_across_disjoint_frames_and_a_strong_rotation() -> None:
    linear = affine_map(30, (120, -150, 55))  # 200 mm away
    centre = transform_points(linear, FIXED.centre)
    apart = Grid(MOVING.size, MOVING.spacing, tuple(MOVING.origin + centre - MOVING.centre), MOVING.direction)
    warp = smooth_warp(linear=linear, mm=2, moving=apart)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inverse = warp.inverse()
    assert inverse.grid == apart and inverse.moving_grid == FIXED
    assert _round_trip_error(warp, inverse, 2).max() < 0.05


def test_inverse_solves_the_equation_at_its_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warp_module, "_BLOCK", 2000)
    warp = smooth_warp(mm=6)
    inverse = warp.inverse()
    voxels = MOVING.world_points()
    source = inverse.transform_points(voxels)
    inside = _between_centres(FIXED, source)
    assert 0.2 < inside.mean() < 1
    error = np.linalg.norm(warp.transform_points(source) - voxels, axis=-1)
    assert error[inside].max() < 5e-3


def test_inverse_of_a_strongly_compressing_warp_converges() -> None:
    # A velocity field integrated in 2^7 steps: no folds, but J from 0.3 to 4. Fixed-point iteration alone
    # leaves half a percent of the points behind here.
    grid = Grid((48, 48, 48), (1.3, 1.3, 1.3))
    noise = np.random.default_rng(0).normal(size=(*grid.shape, 3))
    velocity = gaussian_filter(noise, (6, 6, 6, 0), mode="constant")
    warp = Warp((10 / 2**7 * velocity / np.abs(velocity).max()).astype(np.float32), grid, grid)
    for _ in range(7):
        warp = warp.compose(warp)
    determinant = warp.jacobian().array
    assert 0 < determinant.min() < 0.4 and determinant.max() > 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inverse = warp.inverse()
    points = grid.world_points()
    source = inverse.transform_points(points)
    error = np.linalg.norm(warp.transform_points(source) - points, axis=-1)
    assert error[_between_centres(grid, source)].max() < 0.01


def test_inverse_of_an_affine_warp_is_exact_even_beyond_the_fixed_grid() -> None:
    linear = affine_map(25, (10, 20, -15))
    warp = smooth_warp(mm=1e-9, linear=linear)
    expected = transform_points(np.linalg.inv(linear), MOVING.world_points()) - MOVING.world_points()
    np.testing.assert_allclose(warp.inverse().field, expected, atol=2e-3)


def test_inverse_of_a_folded_warp_warns_with_the_share() -> None:
    grid = Grid((16, 16, 16))
    field = np.random.default_rng(0).normal(scale=3, size=(*grid.shape, 3)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"did not converge at [0-9.e-]+ % of the points"):
        Warp(field, grid, grid).inverse()


def test_inverse_needs_a_grid_and_a_warp_that_is_not_flat() -> None:
    with pytest.raises(RegkitError, match="does not know"):
        smooth_warp(moving=None).inverse()
    collapsed = FIXED.world_points()
    with pytest.raises(RegkitError, match="singular"):
        Warp((FIXED.centre - collapsed).astype(np.float32), FIXED).inverse(FIXED)


def test_inverse_of_a_warp_one_voxel_thick() -> None:
    grid = Grid((20, 20, 1), (1.0, 1.0, 5.0))
    warp = Warp(np.broadcast_to(np.float32([2, -1, 0.5]), (*grid.shape, 3)), grid, grid)
    np.testing.assert_allclose(
        warp.inverse().field, np.broadcast_to([-2, 1, -0.5], (*grid.shape, 3)), atol=1e-3
    )


def test_load_and_save_go_through_formats(tmp_path: Path) -> None:
    warp = smooth_warp()
    warp.save(tmp_path / "warp.nii.gz")
    warp.save(tmp_path / "warp_l2r.nii.gz", format="l2r")
    loads: list[Callable[[], Warp]] = [
        lambda: Warp.load(tmp_path / "warp.nii.gz", moving=MOVING),
        lambda: Warp.load(tmp_path / "warp_l2r.nii.gz", FIXED, MOVING),
    ]
    for load in loads:
        again = load()
        assert again.moving_grid == MOVING
        np.testing.assert_allclose(again.field, warp.field, atol=1e-3)


def test_copies_of_a_warp_are_refused_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((20, 20, 20))
    warp = Warp(np.zeros((*grid.shape, 3), np.float32), grid, grid)
    monkeypatch.setattr("regkit.runtime.memory.available_memory", lambda: 1e5)
    with pytest.raises(RegkitError, match="the warp as a transform of ITK needs"):
        warp.to_sitk()
    with pytest.raises(RegkitError, match="the inverse needs"):
        warp.inverse()
