"""DICOM folders, written here slice by slice: one even stack comes in, anything else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from regkit.dicom import series_files
from regkit.errors import RegkitError
from regkit.geometry import Grid
from regkit.images import load_image

CUBE = Grid((6, 7, 8), (1.0, 1.5, 2.0), (10.0, -20.0, 30.0))


def ramp() -> np.ndarray:
    return np.arange(6 * 7 * 8, dtype=np.float32).reshape(CUBE.shape)


def write_series(
    folder: Path, array: np.ndarray, grid: Grid, uid: str = "1.2.826.1", slope: int = 1
) -> list[Path]:
    """One DICOM file per slice of an int16 array, in a shuffled order of names."""
    folder.mkdir(exist_ok=True)
    direction = np.reshape(grid.direction, (3, 3))
    paths = []
    for k, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane[None].astype(np.int16))
        image.SetSpacing(grid.spacing)
        tags = {
            "0008|0060": "CT",
            "0020|000e": uid,
            "0020|000d": "1.2.826.0",
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in grid.blank().TransformIndexToPhysicalPoint((0, 0, k))),
            "0020|0037": "\\".join(f"{v:.9f}" for v in direction[:, :2].T.ravel()),
            "0028|1053": str(slope),
            "0028|1052": "0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        paths.append(folder / f"{uid}-{(k * 7) % 100:02d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def right_handed(grid: Grid) -> Grid:
    """DICOM has no left-handed volumes: slices follow the cross product of rows and columns."""
    direction = np.reshape(grid.direction, (3, 3)).copy()
    direction[:, 2] *= np.sign(np.linalg.det(direction))
    return replace(grid, direction=tuple(direction.ravel()))


def test_dicom_folder_comes_in_as_a_volume(
    oblique_grid: Grid, rng: np.random.Generator, tmp_path: Path
) -> None:
    grid = right_handed(oblique_grid)
    values = rng.integers(-1000, 2000, grid.shape).astype(np.float32)
    write_series(tmp_path / "series", values, grid)
    (tmp_path / "series" / "notes.txt").write_text("not a slice")
    volume = load_image(tmp_path / "series", "fixed image")
    np.testing.assert_array_equal(volume.array, values)
    assert volume.grid.same_as(grid, 1e-3)
    assert volume.name == "series"


def test_dicom_slices_are_sorted_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GDCM falls back on file names where it cannot sort, so its order is not relied on.
    names = [str(path) for path in write_series(tmp_path / "series", ramp(), CUBE)]
    shuffled = tuple(names[k] for k in (3, 0, 7, 5, 1, 6, 2, 4))
    monkeypatch.setattr(sitk.ImageSeriesReader, "GetGDCMSeriesFileNames", lambda folder, uid: shuffled)
    assert series_files(tmp_path / "series", "image") == names
    np.testing.assert_array_equal(load_image(tmp_path / "series", "image").array, ramp())


def test_dicom_slices_keep_their_own_slopes(tmp_path: Path) -> None:
    tag = b"\x28\x00\x53\x10\x02\x00\x00\x00"  # Rescale Slope, two characters, implicit VR
    for path in write_series(tmp_path / "pet", 5 * ramp(), CUBE, slope=5)[1::2]:
        content = path.read_bytes()
        assert tag + b"5 " in content
        path.write_bytes(content.replace(tag + b"5 ", tag + b".5"))
    expected = 5 * ramp()
    expected[1::2] /= 10
    np.testing.assert_array_equal(load_image(tmp_path / "pet", "image").array, expected)


def test_dicom_folders_that_are_not_one_even_stack_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.txt").write_text("no image")
    with pytest.raises(RegkitError, match=r"fixed image '.*empty' is a folder without DICOM"):
        load_image(empty, "fixed image")

    two = tmp_path / "two"
    write_series(two, ramp(), CUBE, "1.2.826.1")
    write_series(two, ramp()[:5], CUBE, "1.2.826.2")
    with pytest.raises(RegkitError, match=r"2 DICOM series.*826\.1 \(8 files\).*826\.2 \(5 files\)"):
        load_image(two, "fixed image")

    gap = tmp_path / "gap"
    write_series(gap, ramp(), CUBE)[3].unlink()
    with pytest.raises(RegkitError, match=r"7 DICOM slices do not stack evenly .*slices are missing"):
        load_image(gap, "fixed image")

    tilted = tmp_path / "tilted"
    for k in range(8):
        shifted = replace(CUBE, origin=(10.0, -20.0 + 0.7 * k, 30.0 + 2 * k))
        for path in write_series(tilted, ramp()[k : k + 1], shifted, "1.2.826.3"):
            path.rename(tilted / f"slice{k}.dcm")
    with pytest.raises(RegkitError, match="gantry was tilted"):
        load_image(tilted, "fixed image")

    repeated = tmp_path / "repeated"
    for k in range(6):
        for path in write_series(repeated, ramp()[k : k + 1], CUBE, "1.2.826.4"):
            path.rename(repeated / f"slice{k}.dcm")
    with pytest.raises(RegkitError, match="several volumes share the series"):
        load_image(repeated, "fixed image")

    mixed = tmp_path / "mixed"
    paths = write_series(mixed, ramp(), CUBE)
    turned = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    other = write_series(tmp_path / "other", ramp(), replace(CUBE, direction=tuple(turned.ravel())))
    other[2].replace(paths[2])
    with pytest.raises(RegkitError, match="differ in size or orientation"):
        load_image(mixed, "fixed image")


def test_one_dicom_slice_is_two_dimensional(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", ramp(), CUBE)
    with pytest.raises(RegkitError, match=r"2-D .*for a DICOM series, its folder"):
        load_image(paths[0], "fixed image")
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(RegkitError, match="2-D"):
        load_image(tmp_path / "series", "fixed image")
