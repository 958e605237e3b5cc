"""DICOM folders, written here slice by slice: one even stack comes in, anything else is refused."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_cases import (
    DOSE,
    STACK,
    STORAGE,
    edit,
    item,
    write_enhanced,
    write_frames,
    write_segments,
    write_series,
)
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io.dicom import DicomSeries, chosen_series, find_series, stacked
from regkit.io.images import load_image, load_labels

CUBE = Grid((6, 7, 8), (1.0, 1.5, 2.0), (10.0, -20.0, 30.0))


def ramp() -> np.ndarray:
    return np.arange(6 * 7 * 8, dtype=np.float32).reshape(CUBE.shape)


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


def test_dicom_slices_are_sorted_by_position(tmp_path: Path) -> None:
    names = [str(path) for path in write_series(tmp_path / "series", ramp(), CUBE)]
    series = chosen_series(find_series(tmp_path / "series"), None, False, "image")
    shuffled = replace(series, slices=tuple(series.slices[k] for k in (3, 0, 7, 5, 1, 6, 2, 4)))
    assert stacked(shuffled, "image") == names
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
    with pytest.raises(RegkitError, match=r"2 DICOM series.*826\.1 \(CT, 8 slices\).*\.2 \(CT, 5 slices\)"):
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
    with pytest.raises(RegkitError, match="differ in size, spacing or orientation"):
        load_image(mixed, "fixed image")


def test_one_dicom_slice_is_two_dimensional(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", ramp(), CUBE)
    with pytest.raises(RegkitError, match=r"2-D .*for slices of one series give their folder"):
        load_image(paths[0], "fixed image")
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(RegkitError, match="2-D"):
        load_image(tmp_path / "series", "fixed image")


# ---- the series of a folder


def test_folders_are_searched_through_and_a_series_is_chosen(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_series(study / "a" / "deep", ramp(), CUBE, "1.2.826.1", number="3", description="T1 axial")
    write_series(study / "b", ramp()[:5] + 1, CUBE, "1.2.826.2", number="12", modality="MR")
    (study / "b" / "notes.txt").write_text("no image")
    listed = r"2 DICOM series; choose one .*: 3 \('T1 axial', CT, 8 slices\), 12 \(MR, 5 slices\)$"
    with pytest.raises(RegkitError, match=listed):
        load_image(study, "fixed image")
    for series in ("3", "1.2.826.1"):
        np.testing.assert_array_equal(load_image(DicomSeries(study, series), "image").array, ramp())
    assert load_image(DicomSeries(study, "12"), "image").array.max() == ramp()[:5].max() + 1
    with pytest.raises(RegkitError, match=r"holds no DICOM series '4'; choose one .*: 3 "):
        load_image(DicomSeries(study, "4"), "fixed image")
    with pytest.raises(RegkitError, match=r"fixed image '.*txt' is no DICOM, of which series '4'"):
        load_image(DicomSeries(study / "b" / "notes.txt", "4"), "fixed image")


def test_what_accompanies_a_series_is_passed_over(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_series(study, ramp(), CUBE, "1.2.826.1")
    scout = write_series(study, ramp()[:1], CUBE, "1.2.826.9")  # within the series, as some scanners have it
    edit(scout, SeriesInstanceUID="1.2.826.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    other = write_series(study, ramp()[:3], CUBE, "1.2.826.3")
    edit(other, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(study, ramp()[:1], CUBE, "1.2.826.4")  # one slice is not a volume
    masks = np.ones((1, *STACK.shape), np.uint8)
    write_segments(study / "seg.dcm", masks)
    write_frames(study / "dose.dcm", np.ones((4, 5, 6), np.uint16), DOSE, SeriesInstanceUID="1.2.6")
    np.testing.assert_array_equal(load_image(study, "image").array, ramp())
    assert load_labels(study, "labels").array.shape == STACK.shape

    for path in (study / "seg.dcm", study / "dose.dcm", *study.glob("1.2.826.1*"), *study.glob("1.2.826.4*")):
        path.unlink()
    with pytest.raises(RegkitError, match="holds scouts"):
        load_image(study, "image")


PET = {
    "Units": "BQML",
    "DecayCorrection": "START",
    "CorrectedImage": ["ATTN", "DECY"],
    "PatientWeight": "70",
    "SeriesDate": "20260101",
    "AcquisitionDate": "20260101",
    "SeriesTime": "110000",
    "AcquisitionTime": "110500.5",
}


def radiopharmaceutical(**values: str) -> list[object]:
    entries = {
        "RadionuclideTotalDose": "3.5e8",
        "RadionuclideHalfLife": "6586.2",
        "RadiopharmaceuticalStartTime": "100000",
    }
    return [item(**(entries | values))]


def write_pet(folder: Path, **values: object) -> Path:
    elements = PET | {"SOPClassUID": f"{STORAGE}128", "Modality": "PT"}
    elements["RadiopharmaceuticalInformationSequence"] = radiopharmaceutical()
    edit(write_series(folder, 5 * ramp(), CUBE, slope=5), **(elements | values))
    return folder


def test_pet_is_in_suv_where_its_header_tells_all(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"taken in SUV of body weight, g/ml"):
        volume = load_image(write_pet(tmp_path / "pet"), "image")
    decayed = 3.5e8 * 0.5 ** (3600 / 6586.2)
    np.testing.assert_allclose(volume.array, 5 * ramp() * 70e3 / decayed, rtol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"Units": "CNTS"},
        {"DecayCorrection": "ADMIN"},
        {"PatientWeight": ""},
        {"CorrectedImage": ["DECY"]},
        {"SeriesTime": "120000"},
        {"RadiopharmaceuticalInformationSequence": []},
        {"RadiopharmaceuticalInformationSequence": radiopharmaceutical(RadionuclideTotalDose="")},
        {"RadiopharmaceuticalInformationSequence": radiopharmaceutical(RadiopharmaceuticalStartTime="12")},
    ],
)
def test_pet_stays_as_stored_where_it_does_not(values: dict[str, object], tmp_path: Path) -> None:
    volume = load_image(write_pet(tmp_path / "pet", **values), "image")
    np.testing.assert_array_equal(volume.array, 5 * ramp())


def test_a_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    path = write_series(tmp_path / "series", ramp(), CUBE)[0]
    path.write_bytes(path.read_bytes()[:140] + b"\xff" * 60)
    with pytest.raises(RegkitError, match=rf"series': '{path.name}' cannot be read: its DICOM header"):
        load_image(tmp_path / "series", "fixed image")


# ---- files of many frames


def stack() -> tuple[np.ndarray, np.ndarray]:
    """Frames, and the place of each."""
    pixels = np.random.default_rng(0).integers(-1000, 1000, STACK.shape).astype(np.int16)
    return pixels, STACK.world_points()[:, 0, 0]


@pytest.mark.parametrize("order", ["even", "reversed", "shuffled"])
def test_frames_are_sorted_by_place(order: str, tmp_path: Path) -> None:
    pixels, places = stack()
    frames = {"even": np.arange(12), "reversed": np.arange(12)[::-1]}.get(
        order, np.random.default_rng(1).permutation(12)
    )
    path = write_enhanced(tmp_path / "ct.dcm", pixels[frames], places[frames])
    volume = load_image(path, "fixed image")
    assert volume.grid.same_as(STACK, 1e-5)
    np.testing.assert_array_equal(volume.array, pixels - 1)


def test_a_folder_with_one_file_of_frames(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    pixels, places = stack()
    write_enhanced(tmp_path / "scan" / "ct.dcm", pixels, places)
    np.testing.assert_array_equal(load_image(tmp_path / "scan", "fixed image").array, pixels - 1)


def test_frames_have_slopes_of_their_own(tmp_path: Path) -> None:
    pixels, places = stack()
    slopes = [1.5, 3.0] * 6
    path = write_enhanced(tmp_path / "ct.dcm", pixels[::-1], places[::-1], slopes)
    wanted = (pixels.astype(np.float32) - 1) * np.float32(slopes[::-1])[:, None, None]
    np.testing.assert_allclose(load_image(path, "fixed image").array, wanted, rtol=1e-6)


def test_frames_that_are_not_one_even_stack_are_refused(tmp_path: Path) -> None:
    pixels, places = stack()
    some = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    twice = np.r_[places, places]
    tilted = places + np.outer(np.arange(12), [0, 0.8, 0])
    for name, frames, where in (
        ("gap", pixels[some], places[some]),
        ("two", np.r_[pixels, pixels], twice),
        ("tilted", pixels, tilted),
    ):
        path = write_enhanced(tmp_path / f"{name}.dcm", frames, where)
        with pytest.raises(RegkitError, match=rf"^fixed image '.*{name}\.dcm'.* do not stack evenly"):
            load_image(path, "fixed image")
    with pytest.raises(RegkitError, match="12 DICOM frames that do not say where they lie"):
        load_image(write_frames(tmp_path / "bare.dcm", pixels), "fixed image")


def test_frames_with_damaged_numbers_are_refused(tmp_path: Path) -> None:
    pixels, places = stack()
    path = write_enhanced(tmp_path / "ct.dcm", pixels, places)
    content = path.read_bytes()
    for old, new in ((b"-10.0\\-20.0\\36.0", b"-10.0\\-20.0\\3T.0"), (b"2.5\\2.0", b"2.5T2.0")):
        assert old in content
        path.write_bytes(content.replace(old, new))
        with pytest.raises(RegkitError, match=r"ct\.dcm' (is|cannot)"):
            load_image(path, "fixed image")
    path.write_bytes(content[:-1000])
    with pytest.raises(RegkitError, match=r"ct\.dcm'"):
        load_image(path, "fixed image")


def test_without_pydicom_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_enhanced(tmp_path / "ct.dcm", *stack())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(RegkitError, match=r'pip install "regkit-imaging\[dicom\]"'):
        load_image(path, "fixed image")


def test_segments_become_labels_at_their_place(tmp_path: Path) -> None:
    masks = np.zeros((2, *STACK.shape), np.uint8)
    masks[0, 2:6, 3:8, 3:8] = 1
    masks[1, 7:10, 5:9, 8:13] = 1  # no frame holds slice 6
    path = write_segments(tmp_path / "seg.dcm", masks)
    wanted = masks[0] + 2 * masks[1]
    with pytest.warns(UserWarning, match="covers only a part"):
        labels = load_labels(path, "fixed labels", STACK)
    np.testing.assert_array_equal(labels.array, wanted)
    np.testing.assert_array_equal(load_labels(path, "labels").array, wanted[2:10])

    masks[1, 4, 4, 4] = 1
    with pytest.warns(UserWarning, match="overlap in 1 voxels, which count for the smallest"):
        both = load_labels(write_segments(tmp_path / "both.dcm", masks), "labels")
    wanted[4, 4, 4] = 2 if masks[1].sum() < masks[0].sum() else 1
    np.testing.assert_array_equal(both.array, wanted[2:10])
    with pytest.raises(RegkitError, match="of type FRACTIONAL; only BINARY and LABELMAP"):
        load_labels(write_segments(tmp_path / "share.dcm", masks, "FRACTIONAL"), "labels")


@pytest.mark.parametrize("absolute", [False, True])
def test_doses_come_in_their_units(absolute: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, STACK.shape).astype(np.uint16)
    offsets = [30.0 * absolute + 3.0 * k for k in range(12)]
    path = write_frames(
        tmp_path / "dose.dcm", pixels, DOSE, DoseGridScaling=0.001, GridFrameOffsetVector=offsets,
        ImagePositionPatient=[-10.0, -20.0, 30.0], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[2.5, 2.0],
    )  # fmt: skip
    volume = load_image(path, "dose")
    assert volume.grid.same_as(STACK, 1e-5)
    np.testing.assert_allclose(volume.array, pixels * 0.001, rtol=1e-5)


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("481.3", r"a structure set \(RTSTRUCT\) without closed planar contours"),
        ("88.33", "a 'Comprehensive SR Storage', which regkit does not read"),
        ("11.1", "a 'Grayscale Softcopy Presentation State Storage', which"),
        ("6.1", "an 'Ultrasound Image Storage', which regkit does not read"),
    ],
)
def test_what_holds_no_volume_is_refused_by_name(uid: str, name: str, tmp_path: Path) -> None:
    path = write_frames(
        tmp_path / "other.dcm", np.zeros((1, 2, 2), np.int16), f"1.2.840.10008.5.1.4.1.1.{uid}"
    )
    dataset = pytest.importorskip("pydicom").dcmread(path)
    for element in ("PixelData", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"):
        delattr(dataset, element)
    dataset.save_as(path)
    with pytest.raises(RegkitError, match=rf"^fixed image '.*other\.dcm' is {name}"):
        load_image(path, "fixed image")
    write_series(tmp_path / "folder", ramp(), CUBE)
    path.rename(tmp_path / "folder" / "other.dcm")
    np.testing.assert_array_equal(load_image(tmp_path / "folder", "image").array, ramp())


def test_a_position_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path / "series", ramp(), CUBE)[2]
    content = path.read_bytes()
    place = re.search(rb"\x20\x00\x32\x00....(10)", content, re.DOTALL)
    assert place
    path.write_bytes(content[: place.start(1)] + b"0T" + content[place.end(1) :])
    with pytest.raises(RegkitError, match=r"image '.*series'"):
        load_image(tmp_path / "series", "image")


def test_a_pixel_spacing_of_three_numbers_is_refused(tmp_path: Path) -> None:
    edit(write_series(tmp_path / "series", ramp(), CUBE)[2:3], PixelSpacing=[1.5, 1.0, 1.0])
    with pytest.raises(RegkitError, match=r"image '.*series'.*two numbers"):
        load_image(tmp_path / "series", "image")
