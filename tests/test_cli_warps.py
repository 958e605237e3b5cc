"""``regkit apply``, ``jacobian``, ``invert`` and ``convert`` against the Python interface and SimpleITK."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import error_of, run, usage_error_of
from warp_cases import FIXED, MOVING, affine_map, smooth_warp, texture

from regkit.cli.files import MATRICES, WARPS
from regkit.core.geometry import Grid, transform_points
from regkit.io.formats import write_linear, write_warp
from regkit.io.images import Volume, load_image, load_labels
from regkit.io.outputs import save_image
from regkit.io.points import read_points, write_points
from regkit.warp import Warp, contains


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a warp, its images, and labels on the moving one."""
    folder = tmp_path / "input"
    folder.mkdir()
    write_warp(smooth_warp(), folder / "warp.nii.gz")
    save_image(FIXED.to_sitk(np.zeros(FIXED.shape, dtype=np.float32)), folder / "fixed.nii.gz")  # a mere grid
    save_image(MOVING.to_sitk(texture(MOVING)), folder / "moving.nii.gz")
    save_image(MOVING.to_sitk(_labels().array), folder / "labels.nii.gz")
    return folder


def _labels() -> Volume:
    return Volume(
        np.array([0, 7, 200, 3], dtype=np.uint8)[np.digitize(texture(MOVING), [-300, 0, 300])], MOVING
    )


@pytest.mark.parametrize("interpolation", ["linear", "bspline", "nearest"])
def test_apply_to_an_image(files: Path, tmp_path: Path, interpolation: str) -> None:
    out = tmp_path / "out.nrrd"
    words = ("--interpolation", interpolation, "--default-value", "-1234.5")
    result = run("apply", files / "warp.nii.gz", files / "moving.nii.gz", "-o", out, *words)
    assert result.stdout == f"wrote {out}\n"
    expected = smooth_warp().apply(
        Volume(texture(MOVING), MOVING), interpolation=interpolation, default=-1234.5
    )
    found = load_image(out, "found")
    assert found.grid.same_as(FIXED)
    differs = np.abs(found.array - expected.array) > 0.1  # of 2000; nearest may fall either way on a face
    assert differs.mean() < (1e-3 if interpolation == "nearest" else 1e-9)
    assert (found.array == -1234.5).any()


@pytest.mark.parametrize("interpolation", ["nearest", "label"])
def test_apply_to_labels_keeps_them_whole(files: Path, tmp_path: Path, interpolation: str) -> None:
    out = tmp_path / "out.nii.gz"
    words = ("-o", out, "--interpolation", interpolation)
    run("apply", files / "warp.nii.gz", files / "labels.nii.gz", *words)
    assert sitk.ReadImage(out).GetPixelID() == sitk.sitkUInt8
    found = load_labels(out, "found")
    assert set(np.unique(found.array)) == {0, 3, 7, 200}
    expected = smooth_warp().apply(_labels(), interpolation=interpolation)
    assert (found.array != expected.array).mean() < 1e-3
    # A value that the labels' type cannot hold must not be bent into one that it can.
    words = ("-o", out, "--overwrite", "--interpolation", "nearest", "--default-value", "-1")
    run("apply", files / "warp.nii.gz", files / "labels.nii.gz", *words)
    assert load_labels(out, "found").array.min() == -1


@pytest.mark.parametrize("option", ["--reference", "--fixed"])
def test_apply_on_a_reference(files: Path, tmp_path: Path, option: str) -> None:
    grid = Grid((9, 8, 7), (2.0, 2.5, 3.0), tuple(FIXED.centre - (8, 8, 8)))
    save_image(grid.to_sitk(np.zeros(grid.shape, dtype=np.uint8)), files / "reference.nii.gz")
    words = ("-o", tmp_path / "out.nii.gz", option, files / "reference.nii.gz")
    run("apply", files / "warp.nii.gz", files / "moving.nii.gz", *words)
    expected = smooth_warp().apply(Volume(texture(MOVING), MOVING), reference=grid)
    found = load_image(tmp_path / "out.nii.gz", "found")
    assert found.grid.same_as(grid)
    np.testing.assert_allclose(found.array, expected.array, atol=0.1)


def test_apply_a_matrix_and_a_learn2reg_warp(files: Path, tmp_path: Path) -> None:
    matrix = affine_map(10, (3, 1, -4))
    write_linear(matrix, files / "linear.tfm")
    write_warp(smooth_warp(), files / "warp.npz")
    transform = sitk.ReadTransform(str(files / "linear.tfm"))
    words = (files / "moving.nii.gz", "-o", tmp_path / "out.nii.gz", "--reference", files / "fixed.nii.gz")
    run("apply", files / "linear.tfm", *words)
    moving = MOVING.to_sitk(texture(MOVING))
    expected = sitk.Resample(moving, FIXED.blank(), transform, sitk.sitkLinear, float(texture(MOVING).min()))
    difference = load_image(tmp_path / "out.nii.gz", "found").array - sitk.GetArrayFromImage(expected)
    assert (np.abs(difference) > 0.1).mean() < 1e-3  # the border of the moving image
    run("apply", files / "warp.npz", *words, "--overwrite")
    expected = smooth_warp().apply(Volume(texture(MOVING), MOVING))
    difference = load_image(tmp_path / "out.nii.gz", "found").array - expected.array
    assert (np.abs(difference) > 0.1).mean() < 1e-3


def test_apply_to_points(files: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    points = FIXED.centre + rng.uniform(-12, 12, (20, 3))
    assert contains(FIXED, points).all()
    write_points(files / "points.csv", points)
    for warp in ("warp.nii.gz", "warp.npz"):
        write_warp(smooth_warp(), files / warp)
        out = tmp_path / f"{warp}.fcsv"
        grids = (
            ("--fixed", files / "fixed.nii.gz", "--moving", files / "moving.nii.gz") if "npz" in warp else ()
        )
        result = run("apply", files / warp, "--points", files / "points.csv", "-o", out, *grids)
        assert result.stderr == ""
        np.testing.assert_allclose(read_points(out), smooth_warp().transform_points(points), atol=2e-3)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(files / "warp.nii.gz", sitk.sitkVectorFloat64))
    theirs = [transform.TransformPoint(point) for point in points]
    np.testing.assert_allclose(read_points(out), theirs, atol=2e-3)


def test_points_outside_are_counted(files: Path, tmp_path: Path) -> None:
    write_points(files / "points.csv", [FIXED.centre, FIXED.centre + (0, 500, 0), FIXED.centre - (0, 500, 0)])
    words = ("--points", files / "points.csv", "-o", tmp_path / "out.csv")
    result = run("apply", files / "warp.nii.gz", *words)
    assert result.stderr.startswith("warning: 2 of 3 points lie outside")


def test_apply_wants_one_thing(files: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out.nii.gz")
    assert "either an image or --points" in usage_error_of("apply", files / "warp.nii.gz", *out)
    words = (files / "moving.nii.gz", "--points", "points.csv")
    assert "either an image or --points" in usage_error_of("apply", files / "warp.nii.gz", *words, *out)
    words = ("--points", "points.csv", *out)
    assert "must end in .csv" in error_of("apply", files / "warp.nii.gz", *words)
    words = ("--points", "points.csv", "-o", tmp_path / "out.csv")
    assert "do not exist" in error_of("apply", files / "warp.nii.gz", *words)


def test_jacobian(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "jacobian.nii.gz"
    found = json.loads(run("jacobian", files / "warp.nii.gz", "-o", out, "--json").stdout)
    determinant = smooth_warp().jacobian().array
    np.testing.assert_allclose(load_image(out, "map").array, determinant, atol=1e-3)
    assert found["folding_percent"] == 0
    assert found["minimum"] == pytest.approx(determinant.min(), abs=1e-3)
    assert found["median"] == pytest.approx(np.median(determinant), abs=1e-3)
    assert found["maximum"] == pytest.approx(determinant.max(), abs=1e-3)
    assert found["sd_log_jacobian"] == pytest.approx(np.log(determinant).std(), abs=1e-3)
    assert found["output"] == str(out)
    text = run("jacobian", files / "warp.nii.gz").stdout
    assert "folding      0 % of the voxels" in text
    assert f"{found['median']:.3f}" in text


def test_jacobian_of_folds_within_a_mask(files: Path) -> None:
    write_warp(smooth_warp(mm=25), files / "folded.nii.gz")
    determinant = smooth_warp(mm=25).jacobian().array
    mask = np.zeros(FIXED.shape, dtype=np.uint8)
    mask[:6] = 1
    save_image(FIXED.to_sitk(mask), files / "mask.nii.gz")
    for words, values in (((), determinant), (("--mask", files / "mask.nii.gz"), determinant[:6])):
        found = json.loads(run("jacobian", files / "folded.nii.gz", "--json", *words).stdout)
        assert found["folding_percent"] > 0
        assert found["folding_percent"] == pytest.approx(100 * (values <= 0).mean(), abs=0.1)
        assert found["minimum"] == pytest.approx(values.min(), abs=1e-3)


def test_invert(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "inverse.nii.gz"
    result = run("invert", files / "warp.nii.gz", "--reference", files / "moving.nii.gz", "-o", out)
    assert result.output == f"wrote {out}\n"
    inverse = Warp.load(out)
    assert inverse.grid.same_as(MOVING)
    middle = FIXED.world_points()[6:-6, 6:-6, 6:-6]
    there = smooth_warp().transform_points(middle)
    there, middle = there[contains(MOVING, there)], middle[contains(MOVING, there)]
    assert len(middle) > 100
    assert np.linalg.norm(inverse.transform_points(there) - middle, axis=-1).max() < 0.2


def test_invert_a_matrix_exactly(files: Path, tmp_path: Path) -> None:
    matrix = affine_map(25, (3, 1, -4))
    write_linear(matrix, files / "linear.mat")
    grids = ("--moving", files / "moving.nii.gz", "--fixed", files / "fixed.nii.gz")
    run("invert", files / "linear.mat", *grids, "-o", tmp_path / "inverse.h5")
    points = MOVING.world_points()[::4, ::4, ::4]
    expected = transform_points(np.linalg.inv(matrix), points)
    np.testing.assert_allclose(
        Warp.load(tmp_path / "inverse.h5").transform_points(points), expected, atol=1e-2
    )


def test_inverting_a_folded_warp_warns(files: Path, tmp_path: Path) -> None:
    write_warp(smooth_warp(mm=25), files / "folded.nii.gz")
    words = ("--reference", files / "moving.nii.gz", "-o", tmp_path / "inverse.nii.gz")
    result = run("invert", files / "folded.nii.gz", *words)
    assert result.stderr.startswith("warning: the warp folds")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["w.nii.gz", "w.h5", "w.npz", "w.mha"])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("o.nii", ()),
        ("o.nii.gz", ("--to", "dispvect")),
        ("o.h5", ()),
        ("o.npz", ()),
        ("o.nii.gz", ("--to", "l2r")),
    ],
)
def test_convert_any_to_any(
    files: Path, tmp_path: Path, name: str, target: str, words: tuple[str, ...]
) -> None:
    write_warp(smooth_warp(), files / name)
    grids = ("--fixed", files / "fixed.nii.gz", "--moving", files / "moving.nii.gz")
    run("convert", files / name, tmp_path / target, *words, *grids)
    np.testing.assert_allclose(
        Warp.load(tmp_path / target, FIXED, MOVING).field, smooth_warp().field, atol=1e-3
    )


def test_convert_refuses(files: Path, tmp_path: Path) -> None:
    warp = files / "warp.nii.gz"
    assert "--moving" in error_of("convert", warp, tmp_path / "o.npz")
    assert "must end in .h5" in error_of("convert", warp, tmp_path / "o.nii.gz", "--to", "h5")
    assert "one of the inputs" in error_of("convert", warp, warp, "--overwrite")
    assert "fsl" in usage_error_of("convert", warp, tmp_path / "o.nii.gz", "--to", "fsl")
    assert list(tmp_path.iterdir()) == [files]


def test_the_endings_are_those_of_the_writers(tmp_path: Path) -> None:
    for suffix in WARPS:
        write_warp(smooth_warp(), tmp_path / f"warp{suffix}")
    for suffix in MATRICES:
        write_linear(np.eye(4), tmp_path / f"matrix{suffix}")
    assert len(list(tmp_path.iterdir())) == len(WARPS) + len(MATRICES)


def test_convert_a_matrix_of_fsl_to_one_of_itk(files: Path, tmp_path: Path) -> None:
    from regkit.io.formats import read_linear

    np.savetxt(files / "flirt.mat", affine_map(5, (1, 2, 3)))
    name, out = f"fsl:{files / 'flirt.mat'}", tmp_path / "start.tfm"
    assert "give both (--fixed and --moving)" in error_of("convert", name, out)
    grids = ("--fixed", files / "fixed.nii.gz", "--moving", files / "moving.nii.gz")
    run("convert", name, out, *grids)
    np.testing.assert_allclose(read_linear(out), read_linear(name, FIXED, MOVING), atol=1e-3)
    assert "fsl:FILE" in error_of("convert", files / "flirt.mat", out, "--overwrite", *grids)
