"""DICOM out: what is written lies where it should by SimpleITK and pydicom, and names where it comes from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_cases import STORAGE, edit, write_series

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io import dicomwrite
from regkit.io.dicomwrite import save_dicom_segmentation, save_series
from regkit.io.images import Volume, load_image, load_labels, load_segmentation
from regkit.io.segments import LayeredSegmentation, Segment
from regkit.result_files import save_segments, save_volume

pydicom = pytest.importorskip("pydicom")
FRAME = {"FrameOfReferenceUID": "1.2.9", "PatientName": "Doe^Jane", "PatientID": "7", "StudyID": "s"}


def rest(grid: Grid) -> Grid:
    """A grid that DICOM can have: right-handed."""
    direction = np.reshape(grid.direction, (3, 3)).copy()
    direction[:, 2] *= np.sign(np.linalg.det(direction))
    return replace(grid, direction=tuple(direction.ravel()))


def sampled(folder: Path, points: np.ndarray) -> np.ndarray:
    """Values of a series at voxel centres, LPS mm (n, 3), as SimpleITK reads it."""
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)), sitk.sitkFloat32)
    where = [image.TransformPhysicalPointToIndex(point.tolist()) for point in points]
    return np.array([image.GetPixel(*index) for index in where])


def test_a_series_lies_on_any_grid(oblique_grid: Grid, rng: np.random.Generator, tmp_path: Path) -> None:
    # Left-handed ones as well: their slices are written against their order.
    values = rng.normal(size=oblique_grid.shape) * 1e-3
    save_series(Volume(values, oblique_grid), tmp_path / "out")
    index = rng.integers(0, oblique_grid.size, (50, 3))
    points = oblique_grid.world_points()[tuple(index[:, ::-1].T)]
    wanted = values[tuple(index[:, ::-1].T)]
    np.testing.assert_allclose(sampled(tmp_path / "out", points), wanted, atol=np.abs(values).max() / 32767)
    volume = load_image(tmp_path / "out", "image")
    at = np.rint(transform_points(volume.grid.world_to_index, points)).astype(int)
    np.testing.assert_allclose(volume.array[tuple(at[:, ::-1].T)], wanted, atol=1e-6)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())][:2] == ["0001.dcm", "0002.dcm"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_series_belongs_to_the_fixed_image_and_names_the_moving_one(
    oblique_grid: Grid, rng: np.random.Generator, tmp_path: Path
) -> None:
    grid = rest(oblique_grid)
    edit(
        write_series(tmp_path / "fixed", rng.integers(-9, 9, grid.shape), grid, "1.2.826.1", modality="MR"),
        **FRAME,
    )
    moving = write_series(tmp_path / "moving", rng.integers(-1000, 1000, grid.shape), grid, "1.2.826.2")
    edit(moving, PatientName="Other", KVP="120", SeriesDescription="thorax")
    values = rng.uniform(-1000, 1000, grid.shape)
    save_series(Volume(values, grid), tmp_path / "out", tmp_path / "fixed", tmp_path / "moving")
    found = load_image(tmp_path / "out", "image")
    assert found.grid.same_as(grid, 1e-4)
    np.testing.assert_array_equal(found.array, np.rint(values))  # HU are whole
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    uids = {s.SOPInstanceUID for s in slices} | {slices[0].SeriesInstanceUID}
    assert len(uids) == len(slices) + 1 and len({s.SeriesInstanceUID for s in slices}) == 1
    one = slices[3]
    assert (one.PatientName, one.PatientID, one.StudyInstanceUID) == ("Doe^Jane", "7", "1.2.826.0")
    assert (one.FrameOfReferenceUID, one.Modality, one.SOPClassUID) == ("1.2.9", "CT", f"{STORAGE}2")
    assert (one.KVP, one.SeriesDescription) == (120, "thorax (moved by regkit)")
    assert list(one.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert "regkit" in one.DerivationDescription
    assert one.ContributingEquipmentSequence[0].SoftwareVersions.startswith("regkit ")
    sources = {s.ReferencedSOPInstanceUID for s in one.SourceImageSequence}
    assert sources == {f"1.2.826.2.{k + 1}" for k in range(grid.size[2])}
    (last,) = one.ReferencedSeriesSequence[-1].ReferencedInstanceSequence
    fixed = next(
        p
        for p in (tmp_path / "fixed").iterdir()
        if pydicom.dcmread(p).SOPInstanceUID == last.ReferencedSOPInstanceUID
    )
    np.testing.assert_allclose(
        pydicom.dcmread(fixed).ImagePositionPatient, one.ImagePositionPatient, atol=1e-4
    )


@pytest.mark.parametrize(("modality", "storage"), [("MR", "4"), ("PT", "128"), ("US", "7")])
def test_a_series_has_the_modality_of_the_moving_image(modality: str, storage: str, tmp_path: Path) -> None:
    grid = Grid((8, 7, 6), (2.0, 2.0, 3.0))
    values = np.random.default_rng(0).uniform(0, 100, grid.shape)
    paths = write_series(tmp_path / "moving", values, grid, modality=modality)
    more = {"Units": "BQML", "DecayCorrection": "START", "PatientWeight": "70"} if modality == "PT" else {}
    edit(paths, SOPClassUID=f"{STORAGE}{storage}", Modality=modality, **more)
    save_series(Volume(values, grid), tmp_path / "out", moving=tmp_path / "moving")
    one = pydicom.dcmread(tmp_path / "out" / "0001.dcm")
    assert (one.Modality, one.SOPClassUID) == (modality, f"{STORAGE}{storage}")
    if modality == "PT":
        assert (one.Units, one.NumberOfSlices, one.ImageIndex) == ("BQML", 6, 1)
    np.testing.assert_allclose(load_image(tmp_path / "out", "image").array, values, atol=100 / 32767)


@pytest.mark.parametrize("values", ["whole", "large", "constant"])
def test_values_keep_16_bits(values: str, tmp_path: Path) -> None:
    grid = Grid((5, 6, 7))
    ramp = np.arange(210.0).reshape(grid.shape)
    array = {"whole": ramp - 100, "large": ramp * 1e6, "constant": 0 * ramp}[values]
    save_series(Volume(array, grid), tmp_path / "out")
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    found = np.array([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    np.testing.assert_allclose(found, array, atol=array.max() / 32767 if values == "large" else 0)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((5, 6, 7))
    volume = Volume(np.arange(210.0).reshape(grid.shape), grid)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "note.txt").write_text("mine")
    with pytest.raises(RegkitError, match="there is something in it"):
        save_volume(volume, f"{tmp_path / 'kept'}/")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["note.txt"]
    real = dicomwrite._save

    def full(one: object, sources: bytes, path: Path) -> None:
        if path.name == "0004.dcm":
            raise OSError(28, "No space left on device")
        real(one, sources, path)

    monkeypatch.setattr(dicomwrite, "_save", full)
    with pytest.raises(RegkitError, match=r"could not write '.*out': No space left on device"):
        save_volume(volume, f"{tmp_path / 'out'}/")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]


def labels_on(grid: Grid) -> np.ndarray:
    array = np.zeros(grid.shape, np.uint16)
    array[1:4, 2:6, 3:7] = 7
    array[5:6, 8:12, 3:9] = 500
    return array


def test_segments_lie_on_any_grid_and_keep_their_names(oblique_grid: Grid, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    edit(write_series(tmp_path / "fixed", np.zeros(oblique_grid.shape), rest(oblique_grid)), **FRAME)
    array = labels_on(oblique_grid)
    segments = (
        Segment(7, "liver", (0.8, 0.4, 0.2), (("85756007", "SCT", "Tissue"), ("10200004", "SCT", "Liver"))),
    )
    path = tmp_path / "labels.dcm"
    save_dicom_segmentation(LayeredSegmentation([array], oblique_grid, segments), path, tmp_path / "fixed")
    written = pydicom.dcmread(path)
    assert (written.PatientID, written.FrameOfReferenceUID) == ("7", "1.2.9")
    assert written.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"

    found = load_segmentation(path, "labels")
    assert found is not None
    assert [(s.label, s.name) for s in found.segments] == [(1, "liver"), (2, "label 500")]
    assert found.segments[0].codes == segments[0].codes
    np.testing.assert_allclose(found.segments[0].colour or (), (0.8, 0.4, 0.2), atol=0.02)
    wanted = np.where(array == 7, 1, np.where(array == 500, 2, 0))
    with pytest.warns(UserWarning, match="covers only a part|by nearest neighbour"):
        labels = load_labels(path, "labels", oblique_grid)
    np.testing.assert_array_equal(labels.array, wanted)


def test_segments_that_overlap_stay_whole(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    grid = Grid((12, 13, 8), (2.0, 2.0, 3.0))
    write_series(tmp_path / "fixed", np.zeros(grid.shape), grid)
    lower, upper = labels_on(grid), np.zeros(grid.shape, np.uint16)
    upper[2:6, 4:9, 5:9] = 9
    segmentation = LayeredSegmentation([lower, upper], grid, (Segment(9, "ring"),))
    for name in ("both.dcm", "both.seg.nrrd"):
        save_segments(segmentation, tmp_path / name, tmp_path / "fixed")
        found = load_segmentation(tmp_path / name, "labels")
        assert found is not None and len(found.layers) == 2
        counts = sorted(int((layer == v).sum()) for layer in found.layers for v in np.unique(layer) if v)
        assert counts == sorted([(lower == 7).sum(), (lower == 500).sum(), (upper == 9).sum()])
        assert "ring" in {s.name for s in found.segments}


def test_segments_need_the_dicom_of_the_fixed_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((12, 13, 8))
    volume = Volume(labels_on(grid), grid)
    sitk.WriteImage(volume.to_sitk(), str(tmp_path / "fixed.nii.gz"))
    with pytest.raises(RegkitError, match="refers to the DICOM of the fixed image"):
        save_volume(volume, tmp_path / "a.dcm", tmp_path / "fixed.nii.gz")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(RegkitError, match=r'need highdicom: pip install "regkit-imaging\[dicom\]"'):
        save_volume(volume, tmp_path / "a.dcm", tmp_path / "fixed.nii.gz")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(RegkitError, match=r'pip install "regkit-imaging\[dicom\]"'):
        save_volume(volume, f"{tmp_path / 'out'}/")
    assert [p.name for p in tmp_path.iterdir()] == ["fixed.nii.gz"]
