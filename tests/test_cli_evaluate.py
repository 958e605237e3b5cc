"""``regkit evaluate`` and ``regkit info``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import error_of, run, usage_error_of
from warp_cases import FIXED, MOVING, affine_map, blob, smooth_warp, texture

from regkit.core.geometry import Grid
from regkit.evaluate import compare_labels
from regkit.io.formats import to_learn2reg, write_linear, write_warp
from regkit.io.images import Volume, load_labels, looks_like_labels
from regkit.io.outputs import save_image
from regkit.io.points import write_points
from regkit.ops.jacobian import learn2reg_sdlogj, sd_log_jacobian
from regkit.synthesis.phantom import torso
from regkit.warp import Warp, resample_labels


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A warp that shifts by 9 mm and bends, with labels and landmarks that it maps exactly."""
    warp = smooth_warp()
    write_warp(warp, tmp_path / "warp.nii.gz")
    moving = _two_blobs(MOVING, warp.transform_points(np.array([FIXED.centre, FIXED.centre + (9, 0, 0)])))
    save_image(MOVING.to_sitk(moving), tmp_path / "moving_labels.nii.gz")
    seen = warp.apply(Volume(moving, MOVING), interpolation="nearest").array.astype(np.uint8)
    save_image(FIXED.to_sitk(seen), tmp_path / "fixed_labels.nii.gz")
    here = FIXED.centre + rng.uniform(-10, 10, (12, 3))
    there = warp.transform_points(here)
    write_points(tmp_path / "fixed.csv", here)
    write_points(tmp_path / "moving.mrk.json", there + (0.0, 0.0, 2.0))
    rows = [",".join(map(str, (*a, *b))) for a, b in zip(here, there + (0.0, 0.0, 2.0))]
    (tmp_path / "pairs.csv").write_text("\n".join(["fx,fy,fz,mx,my,mz", *rows]))
    return tmp_path


def _two_blobs(grid: Grid, centres: np.ndarray) -> np.ndarray:
    return np.maximum(blob(grid, centres[0]) > 0.3, 2 * (blob(grid, centres[1]) > 0.3)).astype(np.uint8)


def _evaluate(*words: object) -> dict[str, Any]:
    return dict(json.loads(run("evaluate", *words, "--json").stdout))


def test_labels_through_the_warp(files: Path) -> None:
    words = (
        "--fixed-labels",
        files / "fixed_labels.nii.gz",
        "--moving-labels",
        files / "moving_labels.nii.gz",
    )
    found = _evaluate(*words, "--warp", files / "warp.nii.gz")
    assert [row["label"] for row in found["labels"]] == [1, 2]
    assert found["mean_dice"]["before"] < 0.6
    assert found["mean_dice"]["after"] > 0.99
    assert found["mean_hd95_mm"]["after"] < 0.5 < found["mean_hd95_mm"]["before"]
    for row in found["labels"]:
        assert row["dice"] > 0.99
    assert found["warp"]["sd_log_jacobian"] == pytest.approx(
        sd_log_jacobian(smooth_warp().jacobian().array), abs=1e-3
    )
    assert found["warp"]["learn2reg_sdlogj"] == pytest.approx(
        learn2reg_sdlogj(to_learn2reg(smooth_warp())), abs=1e-3
    )
    without = _evaluate(*words)
    assert without["mean_dice"] == {"before": found["mean_dice"]["before"]}
    assert "warp" not in without


def test_labels_that_are_already_moved(files: Path) -> None:
    fixed = load_labels(files / "fixed_labels.nii.gz", "fixed")
    moving = load_labels(files / "moving_labels.nii.gz", "moving")
    moved = resample_labels(moving, FIXED, sitk.Transform())
    save_image(moved.to_sitk(), files / "moved.nii.gz")
    found = _evaluate(
        "--fixed-labels", files / "fixed_labels.nii.gz", "--moved-labels", files / "moved.nii.gz"
    )
    for row, score in zip(found["labels"], compare_labels(fixed, moved), strict=True):
        assert row == {
            "label": score.label, "name": score.name,
            "dice": pytest.approx(score.dice), "hd95_mm": pytest.approx(score.hd95),
        }  # fmt: skip


def test_names_choose_the_labels_and_nan_is_null(files: Path) -> None:
    (files / "names.json").write_text('{"2": "spleen", "9": "left lung"}')
    words = (
        "--fixed-labels",
        files / "fixed_labels.nii.gz",
        "--moving-labels",
        files / "moving_labels.nii.gz",
    )
    words = (*words, "--warp", files / "warp.nii.gz", "--label-names", files / "names.json")
    result = run("evaluate", *words, "--json")
    assert "NaN" not in result.stdout
    spleen, lung = json.loads(result.stdout)["labels"]
    assert (spleen["name"], lung["name"]) == ("spleen", "left lung")
    assert spleen["dice"] > 0.99
    assert lung["dice"] is None
    lines = run("evaluate", *words).stdout.splitlines()
    assert next(line.split()[-1] for line in lines if line.startswith("left lung")) == "-"


@pytest.mark.parametrize(
    "words",
    [("--landmarks", "pairs.csv"), ("--fixed-points", "fixed.csv", "--moving-points", "moving.mrk.json")],
)
def test_landmarks(files: Path, words: tuple[str, ...]) -> None:
    full = [word if word.startswith("--") else files / word for word in words]
    before = _evaluate(*full)["landmarks"]
    assert "tre_mm" not in before
    found = _evaluate(*full, "--warp", files / "warp.nii.gz")["landmarks"]
    assert found["count"] == 12
    assert found["outside"] == 0
    assert found["tre_before_mm"] == before["tre_before_mm"]
    for value in found["tre_mm"].values():
        assert value == pytest.approx(2.0, abs=1e-2)
    text = run("evaluate", *full, "--warp", files / "warp.nii.gz").stdout
    assert "mean 2.00, median 2.00, max 2.00 mm over 12 landmarks" in text


def test_a_learn2reg_warp_takes_its_grids_from_the_labels(files: Path) -> None:
    write_warp(smooth_warp(), files / "warp.npz")
    words = (
        "--fixed-labels",
        files / "fixed_labels.nii.gz",
        "--moving-labels",
        files / "moving_labels.nii.gz",
    )
    assert _evaluate(*words, "--warp", files / "warp.npz")["mean_dice"]["after"] > 0.98
    assert "--fixed" in error_of("evaluate", "--warp", files / "warp.npz")


def test_a_field_keeps_its_own_grid(files: Path) -> None:
    """Labels on a larger grid do not make a field break off, and fold, at the border of its own."""
    wide = replace(FIXED, size=tuple(n + 12 for n in FIXED.size), origin=tuple(FIXED.origin - 6 * np.ones(3)))
    save_image(wide.to_sitk(_two_blobs(wide, np.array([FIXED.centre] * 2))), files / "wide.nii.gz")
    words = ("--fixed-labels", files / "wide.nii.gz", "--moving-labels", files / "moving_labels.nii.gz")
    assert _evaluate(*words, "--warp", files / "warp.nii.gz")["warp"]["folding_percent"] == 0


def test_points_outside_the_field_are_told(files: Path) -> None:
    write_points(files / "fixed.csv", [FIXED.centre, FIXED.centre + (0, 900, 0)])
    write_points(files / "moving.csv", [FIXED.centre, FIXED.centre + (0, 900, 0)])
    words = ("--fixed-points", files / "fixed.csv", "--moving-points", files / "moving.csv")
    result = run("evaluate", *words, "--warp", files / "warp.nii.gz", "--json")
    assert result.stderr.startswith("warning: 1 of 2 points lie outside")
    assert json.loads(result.stdout)["landmarks"]["outside"] == 1


def test_what_does_not_go_together(files: Path) -> None:
    fixed, moving = files / "fixed_labels.nii.gz", files / "moving_labels.nii.gz"
    assert "nothing to evaluate" in usage_error_of("evaluate", "--json")
    assert "go in pairs" in usage_error_of("evaluate", "--fixed-labels", fixed)
    assert "go in pairs" in usage_error_of("evaluate", "--moving-labels", moving)
    assert "go in pairs" in usage_error_of("evaluate", "--fixed-points", files / "fixed.csv")
    words = ("--fixed-labels", fixed, "--moving-labels", moving, "--moved-labels", fixed)
    assert "not both" in usage_error_of("evaluate", *words)
    words = ("--landmarks", files / "pairs.csv", "--fixed-points", "a.csv", "--moving-points", "b.csv")
    assert "not both" in usage_error_of("evaluate", *words)
    words = ("--fixed-labels", fixed, "--moved-labels", moving)
    assert "does not lie on the voxels of its image" in error_of("evaluate", *words)
    write_points(files / "one.csv", [FIXED.centre])
    words = ("--fixed-points", files / "fixed.csv", "--moving-points", files / "one.csv")
    assert "must come in pairs" in error_of("evaluate", *words)


def _info(*words: object) -> dict[str, Any]:
    return dict(json.loads(run("info", *words, "--json").stdout))


def test_info_of_images(files: Path) -> None:
    phantom = torso(0, 8.0)
    save_image(phantom.moving.to_sitk(), files / "ct.nii.gz")
    save_image(phantom.fixed.to_sitk(), files / "mr.nii.gz")
    ct, mr = _info(files / "ct.nii.gz"), _info(files / "mr.nii.gz")
    assert ct["kind"] == mr["kind"] == "image"
    assert ct["taken_as"] == "CT"
    assert ct["window"] == {"low": -450, "high": 450}
    assert mr["taken_as"].startswith("no CT")
    assert ct["orientation"] == "RAS"
    assert ct["oblique_degrees"] == 0
    assert mr["orientation"] == "LPS"
    assert 4 < mr["oblique_degrees"] < 9
    assert mr["size"] == list(phantom.fixed.grid.size)
    assert mr["spacing_mm"] == pytest.approx(phantom.fixed.grid.spacing)
    assert ct["values"]["minimum"] == phantom.moving.array.min()
    text = run("info", files / "ct.nii.gz").stdout
    assert "taken as         CT" in text
    assert "orientation      RAS" in text
    assert "values           minimum -1024  median" in text


@pytest.mark.parametrize("code", ["LPS", "RAS", "ASR", "PIL"])
def test_info_names_the_ends_of_the_axes(tmp_path: Path, code: str) -> None:
    toward = {
        "L": (1, 0, 0),
        "R": (-1, 0, 0),
        "P": (0, 1, 0),
        "A": (0, -1, 0),
        "S": (0, 0, 1),
        "I": (0, 0, -1),
    }
    direction = np.array([toward[letter] for letter in code]).T.ravel()
    grid = Grid((8, 9, 10), direction=tuple(direction))
    save_image(grid.to_sitk(texture(grid)), tmp_path / "image.nii.gz")
    assert _info(tmp_path / "image.nii.gz")["orientation"] == code


def test_info_of_labels(files: Path) -> None:
    found = _info(files / "moving_labels.nii.gz")
    array = _two_blobs(
        MOVING, smooth_warp().transform_points(np.array([FIXED.centre, FIXED.centre + (9, 0, 0)]))
    )
    assert found["kind"] == "label map"
    ml = float(np.prod(MOVING.spacing)) / 1000
    assert [(row["label"], row["voxels"]) for row in found["labels"]] == [
        (1, (array == 1).sum()),
        (2, (array == 2).sum()),
    ]
    assert found["labels"][1]["ml"] == pytest.approx((array == 2).sum() * ml)
    assert "voxels" in run("info", files / "moving_labels.nii.gz").stdout


def test_an_image_of_eight_bits_is_no_label_map(rng: np.random.Generator) -> None:
    phantom = torso(0, 8.0)
    assert looks_like_labels(phantom.fixed_labels.array)
    assert looks_like_labels(phantom.moving_labels.array == 3)
    assert not looks_like_labels(phantom.fixed.array)
    assert not looks_like_labels((phantom.fixed.array / 4).clip(0, 255).astype(np.uint8))
    assert not looks_like_labels(np.zeros((5, 5, 5)))
    assert not looks_like_labels(rng.normal(size=(5, 5, 5)))


def test_info_of_warps(files: Path) -> None:
    warp = smooth_warp()
    length = np.linalg.norm(warp.field, axis=-1)
    write_warp(warp, files / "warp.h5")
    write_warp(warp, files / "dispvect.nii.gz", "dispvect")
    write_warp(warp, files / "warp.npz")
    write_warp(warp, files / "l2r.nii.gz", "l2r")
    grids = ("--fixed", files / "fixed_labels.nii.gz", "--moving", files / "moving_labels.nii.gz")
    for name in ("warp.nii.gz", "warp.h5", "dispvect.nii.gz", "warp.npz", "l2r.nii.gz"):
        found = _info(files / name, *(grids if name in ("warp.npz", "l2r.nii.gz") else ()))
        assert found["kind"].startswith("warp")
        assert found["displacement_mm"] == pytest.approx(
            {"minimum": length.min(), "median": np.median(length), "maximum": length.max()}, abs=1e-2
        )
        assert found["folding_percent"] == 0
        assert found["size"] == list(FIXED.size)
    assert "--fixed" in error_of("info", files / "warp.npz")
    assert "give one 3-D volume" in run("info", files / "l2r.nii.gz").stdout


def test_info_of_a_matrix(files: Path) -> None:
    matrix = affine_map(10, (3, 1, -4))
    for name in ("linear.tfm", "linear.h5"):
        write_linear(matrix, files / name)
        np.testing.assert_allclose(_info(files / name)["matrix"], matrix, atol=1e-5)
    assert f"{matrix[0, 0]:.6f}" in run("info", files / "linear.tfm").stdout
    for text in ("hello", "", "1 0 0 0 0 1 0 0 0 0 1 0"):
        (files / "notes.txt").write_text(text)
        assert "notes.txt: holds no transform" in error_of("info", files / "notes.txt")
    assert "no such file" in error_of("info", files / "absent.h5")


def test_info_of_records_names_meshes_and_weights(tmp_path: Path, random_weights: Path) -> None:
    grid = Grid((6, 7, 8), (1.0, 1.5, 2.0))
    image = tmp_path / "image.nii.gz"
    save_image(grid.to_sitk(np.arange(336.0).reshape(grid.shape)), image)
    run("apply", zero_warp(tmp_path), image, "-o", tmp_path / "moved.nii.gz")
    record = tmp_path / "moved.nii.gz.json"
    found = _info(record)
    assert found["kind"] == "record of a run of regkit" and found["wrote moved"] == "moved.nii.gz  as written"
    assert found["record"]["inputs"]["image"]["file"] == str(image)
    assert "made of image" in run("info", record).stdout
    save_image(grid.to_sitk(np.ones(grid.shape)), tmp_path / "moved.nii.gz")
    assert _info(record)["wrote moved"] == "moved.nii.gz  changed"
    (tmp_path / "moved.nii.gz").unlink()
    assert _info(record)["wrote moved"] == "moved.nii.gz  missing"

    (tmp_path / "names.json").write_text('{"1": "liver", "3": "spleen"}')
    assert _info(tmp_path / "names.json")["names"] == ["1 liver", "3 spleen"]
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "is not a record of regkit" in error_of("info", tmp_path / "other.json")
    assert "does not exist" in error_of("info", tmp_path / "absent.json")

    (tmp_path / "surface.obj").write_text("v 1 2 3\nv 4 5 6\nv 7 8 0\nf 1 2 3\n")
    found = _info(tmp_path / "surface.obj")
    assert "does not say whether LPS or RAS" in found["kind"] and found["highest_mm"] == [7, 8, 6]
    (tmp_path / "surface.obj").write_text("# SPACE=RAS\nv 1 2 3\nv 4 5 6\nv 7 8 0\nf 1 2 3\n")
    assert _info(tmp_path / "surface.obj")["lowest_lps_mm"] == [-7, -8, 0]

    found = _info(random_weights)
    assert found["kind"] == "weights of a network" and found["parameters"] > 1000 and found["data"] == "none"


def zero_warp(folder: Path) -> Path:
    grid = Grid((6, 7, 8), (1.0, 1.5, 2.0))
    Warp(np.zeros((*grid.shape, 3), np.float32), grid).save(folder / "warp.nii.gz")
    return folder / "warp.nii.gz"


def test_info_describes_what_is_not_registered(tmp_path: Path) -> None:
    grid = Grid((6, 7, 8), (1.0, 1.5, 2.0))
    values = np.arange(336.0).reshape(grid.shape)
    save_image(grid.to_sitk(np.full(grid.shape, 2.5)), tmp_path / "constant.nii.gz")
    found = _info(tmp_path / "constant.nii.gz")
    assert found["kind"] == "image" and found["not_to_register"] == "every voxel has the same value"
    assert found["values"] == {"minimum": 2.5, "median": 2.5, "maximum": 2.5}
    values[1, 2, 3] = np.nan
    save_image(grid.to_sitk(values), tmp_path / "holes.nrrd")
    assert _info(tmp_path / "holes.nrrd")["not_finite_voxels"] == 1
    series = sitk.JoinSeries([grid.to_sitk(values)] * 4)
    sitk.WriteImage(series, tmp_path / "series.mha")
    found = _info(tmp_path / "series.mha")
    assert found["kind"] == "image of 4 axes" and found["size"] == [6, 7, 8, 4]
    assert "give one 3-D volume" in found["not_to_register"]
    assert found["voxel_type"] == "64-bit float" and found["spacing_mm"] == [1, 1.5, 2]
    sitk.WriteImage(sitk.Image([9, 9], sitk.sitkUInt8), tmp_path / "flat.png")
    assert _info(tmp_path / "flat.png")["kind"] == "image of 2 axes"
    write_points(tmp_path / "points.csv", [[1, 2, 3], [4, 0, 9]])
    found = _info(tmp_path / "points.csv")
    assert found["count"] == 2 and found["highest_lps_mm"] == [4, 2, 9]
