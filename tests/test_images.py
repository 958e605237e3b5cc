"""Every source of an image arrives where it lies, and every unusable one is refused by role and name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io.images import (
    IMAGE_SUFFIXES,
    Volume,
    load_image,
    load_labels,
    load_mask,
    load_volume,
    resample_volume,
)
from regkit.runtime import memory
from regkit.runtime.memory import check_fits_memory

CUBE = Grid((6, 7, 8), (1.0, 1.5, 2.0), (10.0, -20.0, 30.0))


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    """Voxels for ``oblique_grid``: whole numbers that an int16 file holds exactly."""
    return rng.integers(-1000, 2000, (12, 18, 14)).astype(np.float32)


def ramp(shape: tuple[int, ...] = CUBE.shape, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# ---- the way in


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".mhd", ".nhdr"])
def test_files_come_back_where_they_were(
    suffix: str, oblique_grid: Grid, values: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / f"head.v2{suffix}"
    sitk.WriteImage(oblique_grid.to_sitk(values.astype(np.int16)), path)
    volume = load_image(path, "fixed image")
    assert volume.grid.same_as(oblique_grid, 1e-3)
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    assert volume.name == path.name
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_array_equal(load_image(str(path), "fixed image").array, values)


def test_objects_in_memory_come_in_alike(oblique_grid: Grid, values: np.ndarray) -> None:
    sources: list[Any] = [
        oblique_grid.to_sitk(values),
        nibabel.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), oblique_grid.ras_affine),
        nibabel.MGHImage(values.transpose(2, 1, 0), oblique_grid.ras_affine),
        Volume(values, oblique_grid),
        Volume(torch.from_numpy(values).requires_grad_(), oblique_grid),  # type: ignore[arg-type]
        Volume(values.astype(">f8"), oblique_grid),
    ]
    for source in sources:
        volume = load_image(source, "moving image")
        np.testing.assert_array_equal(volume.array, values)
        assert volume.array.dtype == np.float32
        assert volume.array.flags.c_contiguous
        assert volume.array.flags.writeable
        assert volume.grid.same_as(oblique_grid, 1e-3)
    assert load_image(Volume(values, oblique_grid, "scan"), "moving image").name == "scan"


def test_to_sitk_round_trip(oblique_grid: Grid, values: np.ndarray) -> None:
    for dtype in (np.float32, np.int16, np.uint8, bool, np.float16):
        array = values.astype(dtype)
        image = Volume(array, oblique_grid).to_sitk()
        assert Grid.from_sitk(image) == oblique_grid
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)


def test_bfloat16_tensor_is_accepted() -> None:
    assert Volume(torch.ones(CUBE.shape, dtype=torch.bfloat16), CUBE).array.dtype == np.float32  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_slope_and_intercept_are_applied(suffix: str, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ramp(CUBE.size, np.int16), CUBE.ras_affine)
    image.header.set_slope_inter(0.25, -3)
    path = tmp_path / f"scaled{suffix}"
    image.to_filename(path)
    loaded: Any = nibabel.load(path)
    expected = loaded.get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(load_image(path, "image").array, expected)
    np.testing.assert_allclose(load_image(loaded, "image").array, expected)
    np.testing.assert_allclose(load_image(sitk.ReadImage(path), "image").array, expected, rtol=1e-6)


@pytest.mark.parametrize("unit", ["meter", "micron", "mm"])
def test_nifti_units_become_mm(unit: str, tmp_path: Path) -> None:
    scale = {"meter": 1000.0, "micron": 0.001, "mm": 1.0}[unit]
    image = nibabel.Nifti1Image(ramp(CUBE.size), CUBE.ras_affine)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "image.nii")
    for source in (tmp_path / "image.nii", image):
        grid = load_image(source, "image").grid
        np.testing.assert_allclose(grid.spacing, np.multiply(CUBE.spacing, scale), rtol=1e-5)
        np.testing.assert_allclose(grid.origin, np.multiply(CUBE.origin, scale), rtol=1e-5)


def test_a_nifti_lies_where_itk_puts_it(oblique_grid: Grid, values: np.ndarray, tmp_path: Path) -> None:
    # A scaled sform beside the scanner's qform is common, and both readers have their own preference.
    aligned = np.diag([1.0, 1.05, 1.0, 1.0]) @ np.diag([*oblique_grid.spacing, 1.0])
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), aligned)
    image.header.set_sform(aligned, 2)
    image.header.set_qform(oblique_grid.ras_affine, 1)
    image.to_filename(tmp_path / "image.nii")
    in_file, in_memory = load_image(tmp_path / "image.nii", "image"), load_image(image, "image")
    assert in_file.grid.same_as(Grid.from_sitk(sitk.ReadImage(tmp_path / "image.nii")), 1e-3)
    assert in_memory.grid.same_as(Grid.from_ras_affine(oblique_grid.size, aligned), 1e-3)


def test_trailing_axes_of_one_are_dropped(oblique_grid: Grid, values: np.ndarray, tmp_path: Path) -> None:
    array = values.transpose(2, 1, 0)[..., None]
    image = nibabel.Nifti1Image(array, oblique_grid.ras_affine)
    image.to_filename(tmp_path / "image.nii.gz")
    four = sitk.JoinSeries(oblique_grid.to_sitk(values))
    assert four.GetDimension() == 4
    sitk.WriteImage(four, tmp_path / "image.mha")
    for source in (image, four, tmp_path / "image.nii.gz", tmp_path / "image.mha"):
        volume = load_image(source, "image")
        np.testing.assert_array_equal(volume.array, values)
        assert volume.grid.same_as(oblique_grid, 1e-3)


def test_negative_spacing_runs_the_axis_backwards(tmp_path: Path) -> None:
    path = tmp_path / "image.mha"
    sitk.WriteImage(CUBE.to_sitk(ramp()), path)
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 ", b"ElementSpacing = -1 "))
    assert load_image(path, "image").grid == Grid.from_sitk(sitk.ReadImage(path))
    assert load_image(path, "image").grid.direction[0] == -1


@pytest.mark.parametrize("off", [2e-4, 8e-4])
def test_a_slightly_sheared_header_is_straightened(off: float, oblique_grid: Grid, tmp_path: Path) -> None:
    affine = oblique_grid.ras_affine.copy()
    affine[:3, 1] += off * affine[:3, 0] * oblique_grid.spacing[1] / oblique_grid.spacing[0]
    image = nibabel.Nifti1Image(ramp(oblique_grid.size), affine)
    image.header["qform_code"] = 0
    image.to_filename(tmp_path / "image.nii.gz")
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(tmp_path / "image.nii.gz")
    volume = load_image(tmp_path / "image.nii.gz", "image")
    direction = np.reshape(volume.grid.direction, (3, 3))
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
    assert volume.grid.same_as(oblique_grid, 0.05)
    centre = Grid.from_ras_affine(oblique_grid.size, affine).centre
    np.testing.assert_allclose(volume.grid.centre, centre, atol=1e-4)
    np.testing.assert_array_equal(volume.array, ramp(oblique_grid.size).transpose(2, 1, 0))
    assert volume.name == "image.nii.gz"


# ---- what is refused


def as_nifti(array_xyz: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(array_xyz, np.eye(4) if affine is None else affine)
    image.header["qform_code"] = 0
    image.to_filename(path)
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    sitk.WriteImage(CUBE.to_sitk(ramp()), path)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def cut(path: Path) -> Path:
    sitk.WriteImage(CUBE.to_sitk(np.random.default_rng(0).normal(size=CUBE.shape)), path, True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def overwritten(path: Path, at: int, values: np.ndarray) -> Path:
    """A NIfTI-1 file with a field of its header replaced: dim[1:4] at 42, pixdim[1] at 80, srow_x at 280."""
    content = bytearray(as_nifti(ramp(CUBE.size), path).read_bytes())
    content[at : at + values.nbytes] = values.tobytes()
    path.write_bytes(content)
    return path


def broken_text(path: Path) -> Path:
    path.write_text("this is no image\n" * 50)
    return path


def sheared() -> np.ndarray:
    affine = np.eye(4)
    affine[0, 1] = 0.2
    return affine


def coloured(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*CUBE.shape, 3), np.uint8), isVector=True), path)
    return path


def holes(path: Path) -> Path:
    array = ramp(CUBE.size)
    array[1, 2, :3] = [np.nan, np.inf, -np.inf]
    return as_nifti(array, path)


_COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("a.nii.gz", lambda p: p, "does not exist"),
    "text": ("a.txt", broken_text, "is not an image"),
    "text named nifti": ("a.nii", broken_text, "is not an image"),
    "text named gzip": ("a.nii.gz", broken_text, "is not an image"),
    "cut nifti": ("a.nii", cut, "truncated or damaged"),
    "cut gzip": ("a.nii.gz", cut, "truncated or damaged"),
    "cut nrrd": ("a.nrrd", cut, "truncated or damaged"),
    "cut mha": ("a.mha", cut, "truncated or damaged"),
    "flat": ("a.png", lambda p: sitk.WriteImage(sitk.Image([9, 9], sitk.sitkUInt8), p), r"2-D \(9 x 9\)"),
    "one slice": ("a.nii", lambda p: as_nifti(ramp((9, 9, 1)), p), r"2-D \(9 x 9 x 1\)"),
    "three slices": ("a.nii", lambda p: as_nifti(ramp((9, 9, 3)), p), "only 9 x 9 x 3 voxels; at least 4"),
    "time series": ("a.nii", lambda p: as_nifti(ramp((6, 6, 6, 5)), p), r"4 dimensions \(6 x 6 x 6 x 5\)"),
    "warp without intent": ("a.nii", lambda p: as_nifti(ramp((6, 6, 6, 1, 3)), p), "5 dimensions"),
    "colour mha": ("a.mha", coloured, "several values per voxel"),
    "colour nifti": ("a.nii", lambda p: as_nifti(np.zeros((6, 6, 6), _COLOUR), p), "several values per"),
    "complex": ("a.nii", lambda p: as_nifti(ramp((6, 6, 6), np.complex64), p), "complex voxels"),
    "not finite": ("a.nii.gz", holes, "has 3 voxels that are NaN, infinite.*nan_to_num"),
    "too large for float32": ("a.nii", lambda p: as_nifti(ramp((6, 6, 6), float) * 1e38, p), "beyond 32-bit"),
    "constant": ("a.nii", lambda p: as_nifti(np.full((6, 6, 6), 7.0), p), "is constant: every voxel is 7"),
    "sheared nifti": ("a.nii.gz", lambda p: as_nifti(ramp((6, 6, 6)), p, sheared()), "sheared.*resample"),
    "singular nifti": ("a.nii", lambda p: overwritten(p, 280, np.zeros(12, "f4")), "singular"),
    "no spacing nifti": ("a.nii", lambda p: overwritten(p, 80, np.zeros(1, "f4")), r"spacing is \(0.0, 1"),
    "two spacings": ("a.nii", lambda p: overwritten(p, 80, np.full(1, 1.5, "f4")), r"two things.*\[1\.5,"),
    "no spacing mha": ("a.mha", lambda p: patched(p, b"Spacing = 1 ", b"Spacing = 0 "), "spacing must be"),
    "singular mha": ("a.mha", lambda p: patched(p, b"Matrix = 1 0 0", b"Matrix = 0 1 0"), "not orthonormal"),
    "sheared mha": ("a.mha", lambda p: patched(p, b"Matrix = 1 0 0", b"Matrix = 1 .3 0"), "not orthonormal"),
    "singular nrrd": ("a.nrrd", lambda p: patched(p, b"(1,0,0)", b"(0,0,0)"), "spacing must be three"),
    "huge mha": ("a.mha", lambda p: patched(p, b"6 7 8", b"90000 90000 90000"), "GiB of memory.*available"),
    "huge nifti": ("a.nii", lambda p: overwritten(p, 42, np.full(3, 30000, "i2")), "GiB of memory"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused_by_role_and_name(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, make, message = BAD_FILES[case]
    path = tmp_path / name
    make(path)
    capfd.readouterr()
    with pytest.raises(RegkitError, match=message) as caught:
        load_image(path, "moving image")
    assert str(caught.value).startswith(f"moving image '{path}'")
    assert "\n" not in str(caught.value)
    assert "WARNING" not in capfd.readouterr().err


def test_warnings_of_itk_are_kept_off_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path))
    assert "No Series were found" in capfd.readouterr().err
    with pytest.raises(RegkitError, match="folder without DICOM"):
        load_image(tmp_path, "image")
    assert capfd.readouterr().err == ""
    sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path))
    assert "No Series were found" in capfd.readouterr().err


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path = as_nifti(ramp(CUBE.size), tmp_path / "image.nii")
    path.chmod(0)
    with pytest.raises(RegkitError, match="no permission to read"):
        load_image(path, "fixed image")


def test_objects_in_memory_are_refused_by_role() -> None:
    flat = sitk.Image([6, 6], sitk.sitkFloat32)
    cases: list[tuple[Any, str]] = [
        (flat, "2-D"),
        (sitk.Image([6, 6, 6], sitk.sitkVectorFloat32, 3), "several values per voxel"),
        (sitk.Image([6, 6, 6], sitk.sitkComplexFloat32), "complex"),
        (sitk.Image([6, 6, 6], sitk.sitkLabelUInt8), "run-length"),
        (sitk.Image([6, 6, 6], sitk.sitkFloat32), "constant"),
        (nibabel.Nifti1Image(ramp((6, 6, 6, 4)), np.eye(4)), "4 dimensions"),
        (nibabel.Nifti1Image(np.zeros((6, 6, 6), _COLOUR), np.eye(4)), "several values per voxel"),
        (nibabel.Nifti1Image(ramp((6, 6, 6), np.complex64), np.eye(4)), "complex"),
        (nibabel.Nifti1Image(ramp((6, 6, 6)), sheared()), "sheared"),
        (nibabel.spatialimages.SpatialImage(ramp((6, 6, 6)), np.diag([1, 1, 0, 1.0])), "singular"),
        (nibabel.spatialimages.SpatialImage(ramp((6, 6, 6)), None), "no affine"),
        (Volume(ramp((6, 6, 2)), Grid((2, 6, 6))), "only 2 x 6 x 6 voxels"),
        (ramp((6, 6, 6)), r"from a ndarray; .*regkit\.Volume\(array, grid\)"),
        (torch.zeros(6, 6, 6), r"from a Tensor; .*regkit\.Volume\(array, grid\)"),
        (None, "from a NoneType"),
    ]
    for source, message in cases:
        with pytest.raises(RegkitError, match=f"^fixed image.*{message}"):
            load_image(source, "fixed image")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((6, 7, 8)), r"its axes are \(x, y, z\): pass array.transpose\(2, 1, 0\)"),
        (np.zeros((1, 8, 7, 6)), r"drop the leading channel axis: array\[0\]"),
        (np.zeros((8, 7)), r"shape \(8, 7\) does not fit"),
        (np.zeros((8, 7, 6), complex), "real numbers, got an array of complex128"),
        (np.zeros((8, 7, 6), object), "real numbers"),
    ],
)
def test_a_volume_must_fit_its_grid(array: np.ndarray, message: str) -> None:
    with pytest.raises(RegkitError, match=f"^scan.*{message}"):
        Volume(array, CUBE, "scan")


def test_memory_is_checked_against_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2.0**30)
    check_fits_memory(2**27, "the volume")
    with pytest.raises(RegkitError, match=r"the volume needs 1\.5 GiB .* 134,217,728 voxels.* 1\.0 GiB"):
        check_fits_memory(2**27, "the volume", 12)
    monkeypatch.setattr(memory, "resident_memory", lambda: 0.4e9)
    with (
        memory.capped(0.5e9),
        pytest.raises(RegkitError, match=r"0\.16 GB .* beside 0\.4 GB .* 0\.5 GB in all"),
    ):
        check_fits_memory(20_000_000, "the volume")
    monkeypatch.undo()
    assert 2**26 < memory.available_memory() < 2**50


def test_nibabel_header_is_checked_before_its_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000.0)
    with pytest.raises(RegkitError, match=r"^fixed image needs .* GiB"):
        load_image(nibabel.Nifti1Image(ramp(CUBE.size), np.eye(4)), "fixed image")


# ---- labels and masks


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([0, 255], np.uint8),
        ([0, 256], np.int16),
        ([-1, 3], np.int16),
        ([0, 70000], np.int32),
        ([0, 16777217, 3000000001], np.uint32),
        ([0, -1, 3000000001], np.int64),
        ([0, 10**12 + 1], np.int64),
    ],
)
@pytest.mark.parametrize("stored", [np.float64, np.int64])
def test_labels_take_the_smallest_type(labels: list[int], dtype: type, stored: type) -> None:
    array: np.ndarray = np.resize(labels, CUBE.shape).astype(stored)
    volume = load_labels(Volume(array, CUBE), "fixed labels", CUBE)
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, array)


def test_labels_stored_with_a_slope_are_whole_again(tmp_path: Path) -> None:
    labels = np.resize([0, 1, 2, 3], CUBE.size).astype(np.float32)
    image = nibabel.Nifti1Image(labels, CUBE.ras_affine)
    image.set_data_dtype(np.int16)
    image.to_filename(tmp_path / "labels.nii.gz")
    stored: Any = nibabel.load(tmp_path / "labels.nii.gz")
    assert stored.header["scl_slope"] != 1
    assert (np.asarray(stored.dataobj) != labels).any(), "the file must not hold exact labels for this test"
    volume = load_labels(tmp_path / "labels.nii.gz", "fixed labels")
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array, labels.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            ramp() / 2,
            r"is not a label map: 168 voxels are not whole numbers, such as 0\.5; resample .* nearest",
        ),
        (ramp() * np.nan, "336 voxels that are NaN"),
        (np.zeros(CUBE.shape), "holds no label: every voxel is 0"),
        (ramp(dtype=np.uint64) * 10**17, "only whole numbers below 2"),
    ],
)
def test_what_is_no_label_map_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(RegkitError, match=f"^fixed labels.*{message}"):
        load_labels(Volume(array, CUBE), "fixed labels")


def test_mask_is_true_above_one_half(tmp_path: Path) -> None:
    for array in (ramp() / ramp().max(), (ramp() > 99).astype(np.uint8) * 255, ramp() > 99):
        mask = load_mask(Volume(array, CUBE), "fixed mask", CUBE)
        assert mask.array.dtype == bool
        np.testing.assert_array_equal(mask.array, array > 0.5)
    with pytest.raises(RegkitError, match=r"^fixed mask is empty: no voxel is above 0\.5"):
        load_mask(Volume(np.full(CUBE.shape, 0.4), CUBE), "fixed mask", CUBE)
    with pytest.raises(RegkitError, match=r"^fixed mask has 1 voxels that are NaN"):
        load_mask(Volume(np.where(ramp() == 5, np.nan, 1), CUBE), "fixed mask", CUBE)


@pytest.mark.parametrize(
    "other",
    [
        Grid((6, 7, 9), CUBE.spacing, CUBE.origin),
        Grid(CUBE.size, (1.0, 1.5, 2.1), CUBE.origin),
        Grid(CUBE.size, CUBE.spacing, (10.2, -20.0, 30.0)),
        Grid(CUBE.size, CUBE.spacing, CUBE.origin, (-1, 0, 0, 0, -1, 0, 0, 0, 1)),
    ],
)
def test_a_label_map_on_another_grid_is_refused(other: Grid) -> None:
    volume = Volume(ramp(other.shape), other)
    message = r"does not lie on the voxels of its image: it has 6 x 7 x \d voxels of 1 x 1\.5 x .* nearest"
    with pytest.raises(RegkitError, match=f"^moving labels {message}"):
        load_labels(volume, "moving labels", CUBE)
    assert load_labels(volume, "moving labels").grid == other


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (np.diag((-1.0, -1.0, 1.0)), r"(.*), axes RAS, the image \1, axes LPS; resample"),
        (
            Rotation.from_euler("z", 9, degrees=True).as_matrix(),
            r"(.*), axes LPS, the image the same, turned by 9 deg",
        ),
        (
            Rotation.from_euler("x", 3.5, degrees=True).as_matrix(),
            r".*, axes LPS, the image the same, turned by 3\.5 degrees",
        ),
    ],
)
def test_what_differs_in_grids_of_the_same_size_spacing_and_centre(turn: np.ndarray, message: str) -> None:
    about = replace(CUBE, direction=tuple((turn @ np.reshape(CUBE.direction, (3, 3))).ravel()))
    other = replace(about, origin=tuple(np.add(about.origin, CUBE.centre - about.centre)))
    with pytest.raises(RegkitError, match=f"it has {message}"):
        load_labels(Volume(ramp(), other), "labels", CUBE)


def test_a_grid_that_is_hardly_off_is_told_by_how_much() -> None:
    fine = replace(CUBE, spacing=(0.1, 0.1, 0.1), origin=(0.01, 0.0, 0.0))
    other = replace(fine, origin=(0.022, 0.0, 0.0))
    with pytest.raises(RegkitError, match=r"the image the same, off by up to 0\.012 mm; resample"):
        load_labels(Volume(ramp(), other), "labels", fine)


def test_a_mask_off_by_rounding_takes_the_grid_of_its_image() -> None:
    nearly = replace(CUBE, origin=(10.05, -20.0, 30.0))
    assert load_mask(Volume(ramp(), nearly), "mask", CUBE).grid == CUBE
    assert load_labels(Volume(ramp(), nearly), "labels", CUBE).grid == CUBE


def test_real_pairs_load_with_their_labels_and_masks(shared_dir: Path) -> None:
    pairs = shared_dir / "data" / "pairs"
    for folder, image, labels in (("cord-t1-t2", "t1", "t1_labels"), ("cord-t2-t2s", "t2s", "t2s_labels")):
        volume = load_image(pairs / folder / f"{image}.nii.gz", "fixed image")
        assert load_labels(pairs / folder / f"{labels}.nii.gz", "labels", volume.grid).array.max() > 0
    lung = load_image(pairs / "lung-ct-ct" / "baseline.mha", "fixed image")
    mask = load_mask(pairs / "lung-ct-ct" / "baseline_mask.mha", "fixed mask", lung.grid)
    assert lung.array[mask.array].max() > lung.array[mask.array].min()
    assert 0.05 < mask.array.mean() < 0.95


# ---- what is doubtful, and what ITK passes over


def test_headers_without_spacing_are_named(tmp_path: Path) -> None:
    image = CUBE.to_sitk(ramp())
    for suffix in ("tif", "nhdr", "mhd", "vtk"):
        sitk.WriteImage(image, tmp_path / f"full.{suffix}", False)
    lines = (tmp_path / "full.mhd").read_text().splitlines(True)
    (tmp_path / "bare.mhd").write_text("".join(line for line in lines if "Spacing" not in line))
    header = (tmp_path / "full.nhdr").read_text()
    (tmp_path / "bare.nhdr").write_text(re.sub(r"(space directions|space origin|space): .*\n", "", header))
    (tmp_path / "nowhere.nhdr").write_text(header.replace("left-posterior-superior", "3D-right-handed"))
    for name, message in (
        ("bare.mhd", "no ElementSpacing; 1 mm is taken"),
        ("bare.nhdr", "no spacing; 1 mm is taken"),
        ("nowhere.nhdr", "no anatomical space"),
        ("full.tif", "neither the step between slices nor"),
        ("full.vtk", "which side is left"),
    ):
        with pytest.warns(UserWarning, match=f"image '.*{name}': its .*{message}"):
            np.testing.assert_array_equal(load_image(tmp_path / name, "image").array, ramp())
    for name in ("full.mhd", "full.nhdr"):  # where a warning would be an error
        assert load_image(tmp_path / name, "image").grid == CUBE


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1.0), ("cm", 10.0), ("um", 0.001), ("m", 1000.0), ("", 1.0)])
def test_units_of_nrrd_become_mm(unit: str, mm: float, tmp_path: Path) -> None:
    sitk.WriteImage(CUBE.to_sitk(ramp()), tmp_path / "image.nhdr")
    text = (tmp_path / "image.nhdr").read_text()
    (tmp_path / "image.nhdr").write_text(
        text.replace("superior\n", f'superior\nspace units: "{unit}" "{unit}" "{unit}"\n', 1)
    )
    grid = load_image(tmp_path / "image.nhdr", "image").grid
    np.testing.assert_allclose(grid.spacing, np.multiply(CUBE.spacing, mm))
    np.testing.assert_allclose(grid.origin, np.multiply(CUBE.origin, mm))


def test_an_unknown_unit_of_nrrd_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(CUBE.to_sitk(ramp()), tmp_path / "image.nhdr")
    text = (tmp_path / "image.nhdr").read_text()
    (tmp_path / "image.nhdr").write_text(
        text.replace("superior\n", 'superior\nspace units: "inch" "inch" "inch"\n')
    )
    with pytest.raises(RegkitError, match="lengths in inch, not in one known unit"):
        load_image(tmp_path / "image.nhdr", "image")


@pytest.mark.parametrize("name", ["small.mnc", "minc2_1_scale.mnc", "minc2-no-att.mnc"])
def test_minc_lies_where_nibabel_puts_it(name: str) -> None:
    """Files of nibabel's own tests; the world of MINC is RAS, which ITK 5.4 takes for LPS."""
    pytest.importorskip("h5py", reason="nibabel reads MINC 2 by h5py")
    path = Path(nibabel.__file__).parent / "tests" / "data" / name
    if not path.is_file():
        pytest.skip("nibabel came without the data of its tests")
    wanted: Any = nibabel.load(path)
    volume = load_image(path, "image")
    # nibabel keeps the file's order of axes, ITK puts x first.
    order = np.abs(wanted.affine[:3, :3]).argmax(axis=1)
    grid = Grid.from_ras_affine(tuple(np.array(wanted.shape)[order]), wanted.affine[:, [*order, 3]])
    assert volume.grid.same_as(grid, 1e-3)
    values = np.asarray(wanted.dataobj).transpose(order)
    np.testing.assert_allclose(volume.array, values.T, rtol=1e-5, atol=1e-5)


def test_written_minc_comes_back_where_its_ras_world_puts_it(tmp_path: Path) -> None:
    path = tmp_path / "image.mnc"
    sitk.WriteImage(CUBE.to_sitk(ramp()), path)
    volume = load_image(path, "image")
    # ITK writes its LPS numbers as they are, into a file whose world is RAS.
    np.testing.assert_allclose(volume.grid.origin, (-10, 20, 30), atol=1e-6)
    np.testing.assert_allclose(volume.grid.ras_affine[:3, :3], np.diag(CUBE.spacing), atol=1e-6)
    np.testing.assert_allclose(volume.array, ramp(), atol=0.01)


def test_a_ct_wrapped_to_unsigned_is_unwrapped(rng: np.random.Generator) -> None:
    grid = Grid((20, 20, 20))
    ct = rng.normal(0, 80, grid.shape)
    ct[:, :8] = -1000
    ct[5:9, 12:15] = 900
    ct = ct.astype(np.int16)
    with pytest.warns(UserWarning, match="fixed image: .* taken as signed"):
        volume = load_image(Volume(ct.view(np.uint16), grid), "fixed image")
    np.testing.assert_array_equal(volume.array, ct)
    for other in (rng.integers(0, 65536, grid.shape), 60000 + rng.integers(0, 5000, grid.shape)):
        image = load_image(Volume(other.astype(np.uint16), grid), "fixed image")
        np.testing.assert_array_equal(image.array, other)
    with pytest.warns(UserWarning, match="image: .* taken as signed"):
        np.testing.assert_array_equal(load_volume(Volume(ct.view(np.uint16), grid), "image").array, ct)
    labels = np.zeros(grid.shape, np.uint16)  # of which the percentiles are those of a CT
    labels[:, :8], labels[5:9, 12:15] = 64000, 900
    assert load_volume(Volume(labels, grid), "labels").array.max() == 64000


def test_minc_1_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "old.mnc").write_bytes(b"CDF\x01" + bytes(200))
    with pytest.raises(RegkitError, match=r"old\.mnc' is MINC 1, .* 'mincconvert -2'"):
        load_image(tmp_path / "old.mnc", "fixed image")


@pytest.mark.parametrize("ids", [(2**53 + 1, 2**62 + 3), (-(2**60) - 1, 5)])
def test_ids_that_float64_has_not_are_kept(ids: tuple[int, int], tmp_path: Path) -> None:
    grid = Grid((9, 8, 7))
    labels = np.zeros(grid.shape, np.int64)
    labels[1:4, 2:6, 2:7], labels[4:6, 2:6, 2:7] = ids
    volume = Volume(labels, grid)
    still = sitk.Transform(3, sitk.sitkIdentity)
    larger = Grid((11, 8, 7), origin=(-1.0, 0.0, 0.0))
    for how in (sitk.sitkNearestNeighbor, sitk.sitkLabelLinear):
        seen = resample_volume(volume, larger, still, how)
        assert seen.dtype == np.int64 and (seen[:, :, [0, 10]] == 0).all()
        np.testing.assert_array_equal(seen[:, :, 1:10], labels)
    assert (resample_volume(volume, larger, still, default=7)[:, :, 0] == 7).all()


def test_a_mask_cropped_to_what_it_holds_is_filled_up(oblique_grid: Grid, tmp_path: Path) -> None:
    part = oblique_grid.window((3, 4, 2), (6, 8, 5))
    labels = np.ones(part.shape, np.uint8)
    sitk.WriteImage(part.to_sitk(labels), tmp_path / "organ.seg.nrrd")
    wanted = np.zeros(oblique_grid.shape, bool)
    wanted[2:7, 4:12, 3:9] = True
    message = r"organ\.seg\.nrrd' covers only a part .* 6 x 8 x 5 of 14 x 18 x 12; the others count as 0"
    with pytest.warns(UserWarning, match=message):
        mask = load_mask(tmp_path / "organ.seg.nrrd", "fixed mask", oblique_grid)
    np.testing.assert_array_equal(mask.array, wanted)
    assert mask.grid == oblique_grid
    with pytest.warns(UserWarning, match=message):
        found = load_labels(tmp_path / "organ.seg.nrrd", "fixed labels", oblique_grid)
    np.testing.assert_array_equal(found.array, wanted)
    for start in ((3, 4, 8), (-1, 0, 0), (3.5, 4, 2)):  # beyond the end, before the start, between voxels
        with pytest.raises(RegkitError, match="does not lie on the voxels of its image"):
            load_labels(Volume(labels, oblique_grid.window(start, part.size)), "labels", oblique_grid)


def test_a_mask_on_any_grid_is_taken_onto_its_image(oblique_grid: Grid, rng: np.random.Generator) -> None:
    turn = Rotation.from_euler("xyz", (25, -10, 40), degrees=True).as_matrix()
    other = Grid((30, 34, 40), (0.9, 1.2, 0.8), tuple(oblique_grid.centre - 15), tuple(turn.ravel()))
    array = rng.random(other.shape) > 0.6
    with pytest.warns(UserWarning, match="^fixed mask lies on other voxels than its image"):
        mask = load_mask(Volume(array, other), "fixed mask", oblique_grid)
    at = np.rint(transform_points(other.world_to_index, oblique_grid.world_points())).astype(int)
    inside = ((at >= 0) & (at < other.size)).all(-1)
    wanted = np.zeros(oblique_grid.shape, bool)
    x, y, z = at[inside].T
    wanted[inside] = array[z, y, x]
    assert mask.grid == oblique_grid
    assert 0.05 < wanted.mean() < 0.6
    assert (mask.array != wanted).mean() < 1e-3  # where a point lies half-way between two voxels
    far = replace(other, origin=(1e4, 0.0, 0.0))
    with pytest.raises(RegkitError, match=r"^fixed mask lies beside its image"):
        load_mask(Volume(array, far), "fixed mask", oblique_grid)


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">f8", ">u4", "longdouble"])
def test_volumes_of_any_byte_order_become_images(dtype: str) -> None:
    image = Volume(ramp().astype(dtype), CUBE).to_sitk()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), ramp())
