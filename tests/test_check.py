"""``regkit check``: every wrong convention made on purpose, on an oblique anisotropic pair, is named."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from cli_cases import error_of, run
from scipy.spatial.transform import Rotation

import regkit
from regkit.core.geometry import Float64, Grid, affine_transform, transform_points
from regkit.io.foreign import fsl_matrix
from regkit.io.formats import to_learn2reg, write_linear
from regkit.io.outputs import save_image
from regkit.synthesis.phantom import torso

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
_RAS = np.array([-1.0, -1.0, 1.0])


@lru_cache(maxsize=1)
def images() -> tuple[regkit.Volume, regkit.Volume, regkit.Warp, Float64]:
    """Fixed on an oblique anisotropic grid, moving on one with RAS axes, the true warp, its linear part."""
    phantom = torso(3, 8.0)
    turn = Rotation.from_euler("xyz", (15, -20, 25), degrees=True).as_matrix()
    grid = phantom.fixed.grid
    spacing = (7.0, 8.0, 10.0)
    size = tuple(int(n * s / t) for n, s, t in zip(grid.size, grid.spacing, spacing))
    origin = grid.centre - (turn * spacing) @ ((np.array(size) - 1) / 2)
    oblique = Grid(size, spacing, tuple(origin), tuple(turn.ravel()))  # type: ignore[arg-type]
    seen = sitk.Resample(
        phantom.fixed.to_sitk(), oblique.blank(), affine_transform(np.eye(4)), sitk.sitkLinear, 0.0,
        sitk.sitkFloat32,
    )  # fmt: skip
    points = oblique.world_points()
    field = (phantom.truth(points) - points).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = phantom.truth.rotation, phantom.truth.translation
    moving = phantom.moving
    return (
        regkit.Volume(sitk.GetArrayFromImage(seen), oblique),
        moving,
        regkit.Warp(field, oblique, moving.grid),
        matrix,
    )


def saved(vectors: npt.ArrayLike, path: Path, intent: int = 1007) -> Path:
    """Vectors (z, y, x, 3) as they are in a NIfTI of an intent, on the fixed grid."""
    grid = images()[0].grid
    array = np.ascontiguousarray(np.asarray(vectors, np.float32).transpose(2, 1, 0, 3))[:, :, :, None]
    image = nib.Nifti1Image(array, grid.ras_affine)
    image.set_sform(grid.ras_affine, 1)
    image.set_qform(grid.ras_affine, 1)
    image.header["intent_code"] = intent
    nib.save(image, path)
    return path


def wrong_vectors() -> dict[str, Float64]:
    """By the name of the reading that is right for them."""
    fixed, moving, warp, _ = images()
    vectors = warp.field.astype(np.float64)
    turn, spacing = np.reshape(fixed.grid.direction, (3, 3)), np.asarray(fixed.grid.spacing)
    targets = fixed.grid.world_points() + vectors
    voxels = vectors @ turn / spacing
    return {
        "RAS mm": vectors * _RAS,
        "voxels": voxels,
        "voxels, reversed": voxels[..., ::-1],
        "mm, reversed": vectors[..., ::-1],
        "mm of the grid": vectors @ turn,
        "LPS positions": targets,
        "RAS positions": targets * _RAS,
        "voxel positions": transform_points(moving.grid.world_to_index, targets),
    }


@pytest.mark.parametrize("kind", [".nii.gz", ".mha", ".h5", ".npz", "1006"])
def test_a_right_field_is_right(kind: str, tmp_path: Path) -> None:
    fixed, moving, warp, _ = images()
    path = tmp_path / ("warp.nii.gz" if kind == "1006" else f"warp{kind}")
    warp.save(path, "dispvect" if kind == "1006" else None)
    found = regkit.check_warp(path, fixed, moving)
    assert found.right
    assert found.stated is found.best
    assert found.best.agreement > found.header + 0.2
    assert found.folding_percent == 0
    assert found.in_field == 1
    assert len(found.answer) == 1
    assert "brings the moving image onto the fixed one" in found.answer[0]


@pytest.mark.parametrize("name", [
    "RAS mm", "voxels", "voxels, reversed", "mm, reversed", "mm of the grid", "LPS positions",
    "RAS positions", "voxel positions",
])  # fmt: skip
def test_vectors_in_another_convention_are_named(name: str, tmp_path: Path) -> None:
    fixed, moving, _, _ = images()
    found = regkit.check_warp(saved(wrong_vectors()[name], tmp_path / "warp.nii.gz"), fixed, moving)
    assert not found.right
    assert found.best.name == name
    assert found.best.text in found.answer[0]
    assert found.best.advice == found.answer[1]


def test_ras_vectors_that_say_lps_and_the_other_way_round(tmp_path: Path) -> None:
    fixed, moving, warp, _ = images()
    found = regkit.check_warp(saved(warp.field, tmp_path / "warp.nii.gz", intent=1006), fixed, moving)
    assert (found.right, found.best.name) == (False, "RAS mm")


@pytest.mark.parametrize("grid", ["moving", "fixed"])
def test_a_warp_the_other_way_is_named(grid: str, tmp_path: Path) -> None:
    fixed, moving, warp, _ = images()
    inverse = warp.inverse(fixed.grid if grid == "fixed" else None)
    inverse.save(tmp_path / "warp.mha")
    found = regkit.check_warp(tmp_path / "warp.mha", fixed, moving)
    assert not found.right
    assert found.best.name == "inverse of LPS mm"
    assert "regkit invert" in found.best.advice
    assert any("voxels of the moving image" in one for one in found.answer) == (grid == "moving")
    assert regkit.check_warp(tmp_path / "warp.mha", moving, fixed).right


def test_learn2reg_components_in_the_other_order_are_named(tmp_path: Path) -> None:
    fixed, moving, warp, _ = images()
    np.savez(tmp_path / "warp.npz", to_learn2reg(warp)[..., ::-1])
    found = regkit.check_warp(tmp_path / "warp.npz", fixed, moving)
    assert (found.right, found.best.name) == (False, "Learn2Reg, reversed")


@pytest.mark.parametrize(
    ("name", "right"),
    [("as read", True), ("inverse of as read", False), ("ras", False), ("inverse of ras", False),
     ("voxels", False), ("inverse of voxels", False)],
)  # fmt: skip
def test_matrices_are_named(name: str, right: bool, tmp_path: Path) -> None:
    fixed, moving, _, matrix = images()
    wrong = {
        "as read": matrix,
        "inverse of as read": np.linalg.inv(matrix),
        "ras": _FLIP @ matrix @ _FLIP,
        "inverse of ras": _FLIP @ np.linalg.inv(matrix) @ _FLIP,
        "voxels": moving.grid.world_to_index @ matrix @ fixed.grid.index_to_world,
        "inverse of voxels": fixed.grid.world_to_index @ np.linalg.inv(matrix) @ moving.grid.index_to_world,
    }[name]
    write_linear(wrong, tmp_path / "linear.tfm")
    found = regkit.check_warp(tmp_path / "linear.tfm", fixed, moving)
    assert (found.kind, found.right, found.best.name) == ("linear", right, name)
    assert found.folding_percent is None


@pytest.mark.parametrize("name", ["lps", "ras", "fsl"])
def test_a_plain_matrix_is_given_its_name(name: str, tmp_path: Path) -> None:
    fixed, moving, _, matrix = images()
    flirt = (
        fsl_matrix(fixed.grid) @ fixed.grid.world_to_index @ np.linalg.inv(matrix)
        @ moving.grid.index_to_world @ np.linalg.inv(fsl_matrix(moving.grid))
    )  # fmt: skip
    path = tmp_path / "matrix.txt"
    np.savetxt(path, {"lps": matrix, "ras": _FLIP @ matrix @ _FLIP, "fsl": flirt}[name])
    found = regkit.check_warp(path, fixed, moving)
    assert (found.stated, found.best.name, found.right) == (None, name, False)
    assert f"{name}:FILE" in found.answer[1]
    named = regkit.check_warp(f"{name}:{path}", fixed, moving)
    assert named.right
    other = "ras" if name != "ras" else "lps"
    assert regkit.check_warp(f"{other}:{path}", fixed, moving).best.name == name


def test_a_warp_of_other_images_fits_by_no_reading(tmp_path: Path) -> None:
    fixed, moving, warp, _ = images()
    noise = np.random.default_rng(0).standard_normal(moving.array.shape).astype(np.float32)
    warp.save(tmp_path / "warp.nii.gz")
    found = regkit.check_warp(tmp_path / "warp.nii.gz", fixed, regkit.Volume(noise, moving.grid))
    assert not found.right
    assert "belongs to other images" in found.answer[0]


def test_a_warp_that_does_harm_is_told(tmp_path: Path) -> None:
    fixed = images()[0]
    shift = np.full((*fixed.grid.shape, 3), 45.0, np.float32)
    found = regkit.check_warp(saved(shift, tmp_path / "warp.nii.gz"), fixed, fixed)
    assert not found.right
    assert "does harm" in found.answer[0]


def test_a_fold_and_a_field_that_ends_early_are_told(tmp_path: Path) -> None:
    fixed, moving, warp, _ = images()
    field = warp.field.copy()
    field[4:7, 4:7, 4:7] = (
        field[4:7, 4:7, 4:7][:, :, ::-1] + np.array([60.0, 0, 0]) * np.arange(3)[::-1, None]
    )
    half = warp.grid.window((0, 0, 0), (*warp.grid.size[:2], warp.grid.size[2] // 2))
    regkit.Warp(field[: warp.grid.size[2] // 2], half).save(tmp_path / "warp.nii.gz")
    found = regkit.check_warp(tmp_path / "warp.nii.gz", fixed, moving)
    assert found.folding_percent
    assert found.in_field == pytest.approx(0.5, abs=0.05)
    assert any("folds" in one for one in found.answer)
    assert any("field covers" in one for one in found.answer)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    fixed, moving, warp, _ = images()
    for name, volume in (("fixed", fixed), ("moving", moving)):
        save_image(volume.to_sitk(), tmp_path / f"{name}.nii.gz")
    warp.save(tmp_path / "warp.nii.gz")
    return tmp_path / "warp.nii.gz", tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"


def test_the_command_line(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    found = run("check", *files, "--strict")
    assert "right    yes" in found.stdout
    told = json.loads(run("check", *files, "--json").stdout)
    assert (told["right"], told["best"]["name"], told["kind"]) == (True, "LPS mm", "field")
    wrong = saved(wrong_vectors()["RAS mm"], tmp_path / "ras.nii.gz")
    assert "RAS mm for LPS mm" in run("check", wrong, *files[1:]).stdout
    assert json.loads(run("check", wrong, *files[1:], "--json", "--strict", code=3).stdout)["right"] is False


def test_a_file_that_is_no_warp_is_an_error(files: tuple[Path, Path, Path]) -> None:
    assert "no such file" in error_of("check", "nothing.nii.gz", *files[1:])
    assert "not a warp" in error_of("check", files[1], *files[1:])
