"""Several transforms in a row against one after the other, and ``regkit apply`` of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import error_of, run
from warp_cases import FIXED, MOVING, affine_map, smooth_warp, texture

from regkit.core.geometry import transform_points
from regkit.io.formats import write_linear, write_warp
from regkit.io.images import Volume, load_image, load_volume
from regkit.io.outputs import save_image
from regkit.io.points import read_points, write_points
from regkit.transforms import compose, read_chain, through
from regkit.warp import Warp, contains

MATRIX = affine_map(6, (2, -3, 1))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    write_warp(smooth_warp(), folder / "warp.nii.gz")
    write_warp(smooth_warp(5, mm=2), folder / "second.h5")
    write_linear(MATRIX, folder / "affine.tfm")
    save_image(FIXED.to_sitk(np.zeros(FIXED.shape, np.float32)), folder / "fixed.nii.gz")
    save_image(MOVING.to_sitk(texture(MOVING)), folder / "moving.nii.gz")
    return folder


def test_a_chain_maps_points_one_step_after_the_other(files: Path) -> None:
    points = FIXED.world_points()[4:-4:3, 4:-4:3, 4:-4:3].reshape(-1, 3)
    one, two = smooth_warp(), smooth_warp(5, mm=2)
    names = [files / "warp.nii.gz", files / "affine.tfm", files / "second.h5"]
    wanted = two.transform_points(transform_points(MATRIX, one.transform_points(points)))
    np.testing.assert_allclose(through(read_chain(names, None, None), points), wanted, atol=1e-3)

    back = [Path(f"inverse:{name}") for name in reversed(names)]
    inside = contains(FIXED, one.transform_points(points)) & contains(FIXED, wanted)
    returned = through(read_chain(back, None, None), wanted)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(returned[inside], points[inside], atol=0.02)


def test_apply_a_chain_interpolates_once(files: Path, tmp_path: Path) -> None:
    words = ("apply", files / "warp.nii.gz", files / "moving.nii.gz", "-o", tmp_path / "out.nii.gz")
    run(*words, "--then", files / "affine.tfm", "--then", f"inverse:{files / 'affine.tfm'}")
    found = load_image(tmp_path / "out.nii.gz", "found").array
    once = smooth_warp().apply(Volume(texture(MOVING), MOVING)).array
    assert np.median(np.abs(found - once)) < 0.01 and (np.abs(found - once) < 5).mean() > 0.97  # of 2000


def test_apply_the_inverse_of_a_warp(files: Path, tmp_path: Path) -> None:
    name = f"inverse:{files / 'warp.nii.gz'}"
    words = (
        "apply",
        name,
        files / "fixed.nii.gz",
        "-o",
        tmp_path / "out.nii.gz",
        "--interpolation",
        "nearest",
    )
    assert "give the fixed image too (--reference)" in error_of(*words)
    save_image(FIXED.to_sitk(texture(FIXED)), files / "fixed.nii.gz")
    words = ("apply", name, files / "fixed.nii.gz", "-o", tmp_path / "out.nii.gz")
    run(*words, "--reference", files / "moving.nii.gz")
    wanted = smooth_warp().inverse(MOVING).apply(Volume(texture(FIXED), FIXED)).array
    assert np.median(np.abs(load_image(tmp_path / "out.nii.gz", "found").array - wanted)) < 0.1


def test_apply_a_chain_to_points(files: Path, tmp_path: Path) -> None:
    points = FIXED.centre + np.random.default_rng(0).uniform(-5, 5, (20, 3))
    write_points(tmp_path / "points.csv", points)
    words = ("apply", files / "warp.nii.gz", "--points", tmp_path / "points.csv", "-o", tmp_path / "out.csv")
    run(*words, "--then", f"inverse:{files / 'affine.tfm'}")
    wanted = transform_points(np.linalg.inv(MATRIX), smooth_warp().transform_points(points))
    np.testing.assert_allclose(read_points(tmp_path / "out.csv"), wanted, atol=1e-3)
    # A chain that begins with a matrix needs no grid for points.
    words = ("apply", files / "affine.tfm", "--points", tmp_path / "points.csv", "-o", tmp_path / "other.csv")
    run(*words)
    np.testing.assert_allclose(
        read_points(tmp_path / "other.csv"), transform_points(MATRIX, points), atol=1e-3
    )


def test_an_inverse_that_does_not_converge_is_said(files: Path) -> None:
    field = smooth_warp().field.copy()
    field[..., 0] += 12 * np.sin(np.indices(FIXED.shape)[2])
    write_warp(Warp(field, FIXED), files / "folded.nii.gz")
    steps = read_chain([Path(f"inverse:{files / 'folded.nii.gz'}")], MOVING, None)
    with pytest.warns(UserWarning, match="did not converge"):
        compose(steps, MOVING, None)


def test_inputs_of_a_chain_are_not_overwritten(files: Path, tmp_path: Path) -> None:
    words = ("apply", f"inverse:{files / 'warp.nii.gz'}", files / "moving.nii.gz", "--overwrite")
    assert "one of the inputs" in error_of(*words, "-o", files / "warp.nii.gz")


# --- apply: labels by themselves, and results with nothing in them


def ids() -> np.ndarray:
    """A map of large ids in patches on the moving grid."""
    some = np.array([0, 16777217, 182305689, 312782550, 3000000001], np.int64)
    return some[np.digitize(texture(MOVING), [-400, -100, 200, 500])]


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("interpolation", ["auto", "label", "nearest"])
def test_ids_of_any_size_are_kept(files: Path, tmp_path: Path, suffix: str, interpolation: str) -> None:
    sitk.WriteImage(MOVING.to_sitk(ids().astype(np.uint32)), files / f"ids.{suffix}")
    out = tmp_path / f"out.{suffix}"
    words = ("apply", files / "warp.nii.gz", files / f"ids.{suffix}", "-o", out)
    said = run(*words, "--interpolation", interpolation).stderr
    assert ("label map by its values" in said) == (interpolation == "auto")
    found = load_volume(out, "found").array
    assert found.dtype.kind in "iu"
    assert set(np.unique(found)) == set(np.unique(ids()))
    itk = sitk.Resample(
        MOVING.to_sitk(ids()), FIXED.blank(), smooth_warp().to_sitk(), sitk.sitkNearestNeighbor, 0.0
    )
    assert (found == sitk.GetArrayFromImage(itk)).mean() > (0.999 if interpolation == "nearest" else 0.9)


def test_ids_are_kept_in_python(files: Path) -> None:
    import nibabel

    warp = smooth_warp()
    sources = [
        Volume(ids(), MOVING),
        MOVING.to_sitk(ids()),
        nibabel.Nifti1Image(ids().T, MOVING.ras_affine, dtype=np.int64),
    ]
    for source in sources:
        for interpolation in ("nearest", "label"):
            moved = warp.apply(source, interpolation=interpolation)
            array = load_volume(moved, "moved").array
            assert set(np.unique(array)) == set(np.unique(ids()))


def test_an_image_moves_linearly_by_itself(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    result = run("apply", files / "warp.nii.gz", files / "moving.nii.gz", "-o", out)
    assert result.stderr == ""
    wanted = smooth_warp().apply(Volume(texture(MOVING), MOVING)).array
    np.testing.assert_allclose(load_image(out, "found").array, wanted, atol=0.1)


def test_a_default_that_whole_numbers_do_not_hold(tmp_path: Path) -> None:
    moved = smooth_warp().apply(Volume(ids(), MOVING), interpolation="nearest", default=-0.5)
    assert moved.array.min() == -0.5 and 16777217 in moved.array


def test_a_result_with_nothing_in_it_is_said(files: Path, tmp_path: Path) -> None:
    away = Volume(texture(MOVING), MOVING.window((900, 0, 0), MOVING.size))
    save_image(away.to_sitk(), files / "away.nii.gz")
    out = tmp_path / "out.nii.gz"
    said = run("apply", files / "warp.nii.gz", files / "away.nii.gz", "-o", out).stderr
    assert "warning: the result holds nothing of the image" in said
    assert out.exists()


def test_a_reference_beyond_the_field_is_said(files: Path, tmp_path: Path) -> None:
    other = FIXED.window((20, 0, 0), FIXED.size)
    save_image(other.to_sitk(np.zeros(other.shape, np.float32)), files / "other.nii.gz")
    words = ("apply", files / "warp.nii.gz", files / "moving.nii.gz", "-o", tmp_path / "out.nii.gz")
    said = run(*words, "--reference", files / "other.nii.gz").stderr
    assert "% of the reference lies in the warp's field" in said
