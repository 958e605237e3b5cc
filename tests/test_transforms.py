"""Warps, matrices and transforms of SimpleITK, in a row and on average."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_cases import run, usage_error_of, write_phantom
from warp_cases import FIXED, MOVING, affine_map, smooth_warp

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, affine_transform, transform_points
from regkit.io.formats import NotLinearError, linear_of, write_linear
from regkit.transforms import as_warp, average, chain, coarsened
from regkit.warp import Warp, point_map

MATRIX = affine_map(5, (1, 2, -3))


def _euler() -> sitk.Euler3DTransform:
    euler = sitk.Euler3DTransform((3.0, -8.0, 20.0), 0.1, -0.2, 0.3, (4.0, 5.0, -6.0))
    euler.SetComputeZYX(True)
    return euler


@pytest.mark.parametrize(
    "transform",
    [
        affine_transform(MATRIX),
        _euler(),
        sitk.VersorRigid3DTransform((0.0, 0.1, 0.2, 0.97), (3.0, 4.0, 5.0), (9.0, 8.0, 7.0)),
        sitk.CompositeTransform([affine_transform(MATRIX), _euler()]),
        sitk.Transform(3, sitk.sitkIdentity),
    ],
)
def test_linear_transforms_of_itk_are_their_matrix(
    transform: sitk.Transform, rng: np.random.Generator
) -> None:
    points = rng.normal(size=(20, 3)) * 100
    right = [transform.TransformPoint(point) for point in points.tolist()]
    np.testing.assert_allclose(transform_points(linear_of(transform), points), right, atol=1e-9)


def test_a_map_of_points_goes_as_itk_does(rng: np.random.Generator) -> None:
    warp = smooth_warp()
    inner = rng.uniform(3, np.array(FIXED.size) - 4, (30, 3))
    points = transform_points(FIXED.index_to_world, inner)
    composite = sitk.CompositeTransform([affine_transform(MATRIX), warp.to_sitk()])  # the last acts first
    right = [composite.TransformPoint(point) for point in points.tolist()]
    np.testing.assert_allclose(point_map(composite)(points), right)
    np.testing.assert_allclose(warp.compose(MATRIX).transform_points(points), right, atol=0.05)
    for then in (MATRIX, torch.from_numpy(MATRIX), affine_transform(MATRIX), MATRIX.tolist()):
        found = warp.compose(then)
        right = transform_points(MATRIX, FIXED.world_points() + warp.field) - FIXED.world_points()
        np.testing.assert_allclose(found.field, right, atol=1e-4)


def test_a_chain_is_its_parts_in_their_order(tmp_path: Path) -> None:
    warp = smooth_warp()
    write_linear(np.linalg.inv(MATRIX), tmp_path / "back.tfm")
    there = chain([warp, MATRIX, f"inverse:{tmp_path / 'back.tfm'}", tmp_path / "back.tfm"])
    right = transform_points(MATRIX, FIXED.world_points() + warp.field)
    np.testing.assert_allclose(there.field + FIXED.world_points(), right, atol=1e-3)
    first = chain([MATRIX, _euler()], reference=FIXED, moving=MOVING)
    points = transform_points(linear_of(_euler()) @ MATRIX, FIXED.world_points())
    np.testing.assert_allclose(first.field + FIXED.world_points(), points, atol=1e-3)
    assert first.moving_grid == MOVING
    with pytest.raises(RegkitError, match="'transform 1' comes first and gives no voxels"):
        chain([MATRIX])
    with pytest.raises(RegkitError, match="one transform at least"):
        chain([])


def test_the_average_is_of_displacements() -> None:
    one, other = smooth_warp(1), smooth_warp(2)
    np.testing.assert_allclose(average([one, other]).field, (one.field + other.field) / 2, atol=1e-5)
    np.testing.assert_allclose(
        average([one, other], [3, 1]).field, (3 * one.field + other.field) / 4, atol=1e-5
    )
    # A warp of a linear map is the same on every grid.
    elsewhere = as_warp(MATRIX, MOVING)
    here = as_warp(affine_transform(MATRIX), FIXED)
    inside = average([here, here]).field - average([here, Warp(here.field, FIXED)]).field
    assert np.abs(inside).max() == 0
    wide = as_warp(MATRIX, FIXED.window((-3, -3, -3), tuple(n + 6 for n in FIXED.size)))
    np.testing.assert_allclose(average([here, wide]).field, here.field, atol=1e-3)
    assert elsewhere.grid == MOVING
    for wrong in ([], [1.0], [-1, 2], [0, 0], [np.nan, 1]):
        with pytest.raises(RegkitError):
            average([one, other] if wrong else [], wrong or None)


def test_what_is_no_transform_is_refused() -> None:
    for wrong in ("warp", None, 3, np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan), [["a"] * 4] * 4):
        with pytest.raises(RegkitError):
            smooth_warp().compose(wrong)  # type: ignore[arg-type]
    with pytest.raises(RegkitError, match="2-D"):
        linear_of(sitk.AffineTransform(2))
    with pytest.raises(NotLinearError):
        linear_of(smooth_warp().to_sitk())


def test_a_warp_pickles() -> None:
    warp = smooth_warp()
    again = pickle.loads(pickle.dumps(warp))
    np.testing.assert_array_equal(again.field, warp.field)
    assert again.grid == warp.grid and again.moving_grid == warp.moving_grid


def test_a_warp_on_larger_voxels_is_told_what_it_costs(tmp_path: Path) -> None:
    warp = smooth_warp()
    found = coarsened(warp, 4.0)
    assert max(found.warp.grid.spacing) <= 4.0 + 1e-9
    assert found.warp.field.size < 0.25 * warp.field.size
    points = FIXED.world_points()
    transform = found.warp.to_sitk()
    # ITK resamples the whole fixed grid through it, as the loss says, its outer voxels as well.
    itk = np.array(
        [transform.TransformPoint(point) for point in points[::3, ::3, ::3].reshape(-1, 3).tolist()]
    )
    off = np.linalg.norm(itk - (points + warp.field)[::3, ::3, ::3].reshape(-1, 3), axis=1)
    assert off.max() <= found.max_mm + 1e-3 and 0 < off.mean() < 2 * found.mean_mm < 0.5
    same = coarsened(warp, 0.5)
    assert same.warp.grid.same_as(FIXED) and same.max_mm < 1e-4
    np.testing.assert_allclose(coarsened(as_warp(MATRIX, FIXED), 8.0).max_mm, 0, atol=1e-3)
    with pytest.raises(RegkitError, match="must be positive"):
        coarsened(warp, 0)

    warp.save(tmp_path / "warp.nii.gz")
    result = run("convert", tmp_path / "warp.nii.gz", tmp_path / "small.nii.gz", "--warp-spacing", 4)
    assert f"{found.mean_mm:.3f} mm on average and {found.max_mm:.2f} mm at most" in result.stdout
    read = Warp.load(tmp_path / "small.nii.gz")
    np.testing.assert_allclose(read.field, found.warp.field, atol=1e-3)
    said = usage_error_of("convert", tmp_path / "warp.nii.gz", tmp_path / "w.npz", "--warp-spacing", 4)
    assert "voxels of their own" in said


def test_register_writes_its_warps_on_larger_voxels(tmp_path: Path) -> None:
    files = write_phantom(tmp_path)
    words = ["register", files.fixed, files.moving, "--preset", "linear", "--init", "centre", "--json"]
    words += ["-o", tmp_path / "warp.nii.gz", "--inverse", tmp_path / "inverse.nii.gz", "--warp-spacing", 16]
    told = json.loads(run(*words).stdout)["stored"]
    for name, image in (("warp", files.fixed), ("inverse", files.moving)):
        assert max(told[name]["spacing_mm"]) <= 16 and told[name]["max_mm"] < 1e-3  # a shift costs nothing
        assert (
            Warp.load(tmp_path / f"{name}.nii.gz").grid.size < Grid.from_sitk(sitk.ReadImage(str(image))).size
        )
    record = json.loads((tmp_path / "warp.nii.gz.json").read_text())
    assert record["stored"]["warp"] == told["warp"]
    moved = ["apply", tmp_path / "warp.nii.gz", files.moving, "-o", tmp_path / "moved.nii.gz"]
    run(*moved, "--reference", files.fixed)
    assert (
        sitk.ReadImage(str(tmp_path / "moved.nii.gz")).GetSize() == sitk.ReadImage(str(files.fixed)).GetSize()
    )
    said = usage_error_of(*words[:-4], "--warp-spacing", 4, "--overwrite", "-o", tmp_path / "warp.npz")
    assert "Learn2Reg" in said
