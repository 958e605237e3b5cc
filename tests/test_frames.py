"""4-D images: read, written and moved as SimpleITK and nibabel have them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import error_of, run
from warp_cases import FIXED, MOVING, smooth_warp, texture

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io.frames import Frames, is_series, load_frames


def _frames(grid: Grid = MOVING, count: int = 3, step: float = 0.72) -> Frames:
    return Frames(np.stack([texture(grid, k) for k in range(count)]).astype(np.int16), grid, step)


def test_a_written_series_is_what_itk_and_nibabel_read(oblique_grid: Grid, tmp_path: Path) -> None:
    frames = _frames(oblique_grid)
    frames.save(tmp_path / "series.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "series.nii.gz"))
    assert image.GetSize() == (*oblique_grid.size, 3)
    np.testing.assert_allclose(image.GetSpacing(), (*oblique_grid.spacing, 0.72), rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin()[:3], oblique_grid.origin, atol=1e-4)
    axes = np.reshape(image.GetDirection(), (4, 4))[:3, :3]
    np.testing.assert_allclose(axes, np.reshape(oblique_grid.direction, (3, 3)), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), frames.array)
    same = nib.load(tmp_path / "series.nii.gz")
    assert same.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(same.affine, oblique_grid.ras_affine, atol=1e-3)
    np.testing.assert_array_equal(same.get_fdata().T, frames.array)


@pytest.mark.parametrize("name", ["series.nii.gz", "series.nrrd", "series.mha"])
def test_files_of_itk_are_read(name: str, tmp_path: Path) -> None:
    frames = _frames()
    image = sitk.JoinSeries([frames.grid.to_sitk(frame) for frame in frames.array], 0.0, 0.72)
    sitk.WriteImage(image, str(tmp_path / name))
    assert is_series(tmp_path / name)
    for source in (tmp_path / name, image):
        found = load_frames(source, "series")
        assert found.grid.same_as(frames.grid)
        assert found.step == pytest.approx(0.72)
        np.testing.assert_array_equal(found.array, frames.array)


def test_milliseconds_of_a_header_become_seconds(tmp_path: Path) -> None:
    frames = _frames()
    image = nib.Nifti1Image(frames.array.T, frames.grid.ras_affine)
    image.header.set_zooms((*frames.grid.spacing, 720.0))
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "series.nii")
    for source in (image, tmp_path / "series.nii"):
        assert load_frames(source, "series").step == pytest.approx(0.72)


def test_every_volume_moves_as_simpleitk_moves_it(tmp_path: Path) -> None:
    warp, frames = smooth_warp(), _frames()
    moved = warp.apply(frames)
    transform = warp.to_sitk()
    for frame, found in zip(frames.array, moved.array, strict=True):
        source = frames.grid.to_sitk(frame.astype(np.float32))
        right = sitk.Resample(source, FIXED.blank(), transform, sitk.sitkLinear, float(frames.array.min()))
        np.testing.assert_allclose(found, sitk.GetArrayFromImage(right), atol=1e-3)
    assert moved.step == frames.step

    warp.save(tmp_path / "warp.nii.gz")
    frames.save(tmp_path / "series.nii.gz")
    run("apply", tmp_path / "warp.nii.gz", tmp_path / "series.nii.gz", "-o", tmp_path / "moved.nii.gz")
    written = load_frames(tmp_path / "moved.nii.gz", "moved")
    np.testing.assert_allclose(written.array, moved.array, atol=0.01)
    assert written.step == pytest.approx(0.72)


def test_objects_come_back_as_they_were_given() -> None:
    warp, frames = smooth_warp(), _frames()
    image = nib.Nifti1Image(frames.array.T, frames.grid.ras_affine)
    image.header.set_zooms((*frames.grid.spacing, 0.72))
    moved = warp.apply(image, interpolation="nearest")
    assert isinstance(moved, nib.Nifti1Image)
    assert moved.shape == (*FIXED.size, 3)
    assert moved.header.get_zooms()[3] == pytest.approx(0.72)
    joined = sitk.JoinSeries([frames.grid.to_sitk(frame) for frame in frames.array], 0.0, 0.72)
    again = warp.apply(joined, interpolation="nearest")
    assert again.GetPixelID() == joined.GetPixelID()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), np.asanyarray(moved.dataobj).T)


def test_label_maps_in_time_stay_label_maps(tmp_path: Path) -> None:
    warp = smooth_warp()
    labels = (texture(MOVING) > 100).astype(np.uint8) * 7
    Frames(np.stack([labels, labels]), MOVING, 1.0).save(tmp_path / "labels.nii.gz")
    warp.save(tmp_path / "warp.nii.gz")
    run("apply", tmp_path / "warp.nii.gz", tmp_path / "labels.nii.gz", "-o", tmp_path / "moved.nii.gz")
    assert set(np.unique(load_frames(tmp_path / "moved.nii.gz", "moved").array)) == {0, 7}


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(MOVING.to_sitk(texture(MOVING)), str(tmp_path / "volume.nii.gz"))
    with pytest.raises(RegkitError, match="one volume"):
        load_frames(tmp_path / "volume.nii.gz", "series")
    with pytest.raises(RegkitError, match="does not exist"):
        load_frames(tmp_path / "none.nii.gz", "series")
    with pytest.raises(RegkitError, match="not a series of volumes"):
        Frames(np.zeros((2, 3, 4, 5)), MOVING)
    broken = _frames().array.astype(np.float32)
    broken[1, 2, 3, 4] = np.nan
    with pytest.raises(RegkitError, match="1 voxels that are NaN"):
        load_frames(Frames(broken, MOVING), "series")
    smooth_warp().save(tmp_path / "warp.nii.gz")
    _frames().save(tmp_path / "series.nii.gz")
    said = error_of(
        "apply", tmp_path / "warp.nii.gz", tmp_path / "series.nii.gz", "-o", tmp_path / "out.nrrd"
    )
    assert "must end in .nii.gz or .nii" in said
    assert not (tmp_path / "out.nrrd").exists()
