"""DICOM through the commands: series chosen, results as series and segmentations, or one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_cases import error_of, run
from dicom_cases import STORAGE, edit, write_file, write_series, write_structures
from test_contours import box

from regkit.core.geometry import Grid
from regkit.io.images import load_image, load_segmentation
from regkit.io.outputs import save_image
from regkit.warp import Warp

pydicom = pytest.importorskip("pydicom")
GRID = Grid((24, 22, 20), (4.0, 4.0, 5.0), (-10.0, -20.0, 30.0))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two series of one body, the second of them shifted by one voxel, and its regions."""
    folder = tmp_path_factory.mktemp("dicom") / "study"
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:20, :22, :24]
    body = 900.0 * (((x - 12) / 9) ** 2 + ((y - 11) / 8) ** 2 + ((z - 10) / 8) ** 2 < 1)
    body += rng.normal(0, 20, x.shape)
    for number, values in (("2", body), ("3", np.roll(body, 1, axis=2))):
        paths = write_series(folder / number, values, GRID, f"1.2.826.{number}", number=number, modality="MR")
        edit(paths, PatientID="77", FrameOfReferenceUID="1.2.3", SeriesDescription=f"T{number}")
    organ = [box((4.5, 5.5), (12.5, 14.5), k, GRID) for k in range(5, 15)]
    inner = [box((6.5, 7.5), (9.5, 10.5), k, GRID) for k in range(7, 10)]
    write_structures(folder / "rt.dcm", {"organ": organ, "inner": inner})
    return folder


def test_info_lists_the_series_of_a_folder(study: Path) -> None:
    shown = run("info", study).stdout
    assert "folder of 3 DICOM series" in shown and "2 T2" in shown
    listed = json.loads(run("info", study, "--json").stdout)["series"]
    assert [(one["number"], one["slices"], one["read_as"]) for one in listed] == [
        ("", 1, "labels"),
        ("2", 20, "image"),
        ("3", 20, "image"),
    ]
    assert json.loads(run("info", study, "--series", "3", "--json").stdout)["size"] == [24, 22, 20]
    names = json.loads(run("info", study / "rt.dcm", "--json").stdout)["labels"]
    assert [row["name"] for row in names] == ["organ", "inner"]


def test_register_writes_series_and_segments(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    words = (
        "register",
        study,
        study,
        "--fixed-series",
        "2",
        "--moving-series",
        "3",
        "--preset",
        "linear",
        "-q",
    )
    words = (*words, "--init", "none", "-o", tmp_path / "warp.nii.gz", "--moved", f"{tmp_path / 'moved'}/")
    words = (*words, "--moving-labels", study / "rt.dcm", "--moved-labels", tmp_path / "labels.dcm")
    words = (*words, "--fixed-labels", study / "rt.dcm", "--memory", "100", "--json")
    result = run(*words, "--report", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "warp.nii.gz.json").read_text())
    assert set(record["outputs"]) == {"warp", "moved", "moved_labels", "report"}
    for entry in (record["inputs"][role] for role in ("fixed", "moving")):
        assert f"{study}, series {entry['series']}" in page and entry["sha256"] in page
    assert "overlap in 27 voxels" in result.stderr
    rows = json.loads(result.stdout)["metrics"]["labels"]
    assert [(row["name"], row["dice_before"]) for row in rows] == [("organ", 1.0), ("inner", 1.0)]
    moved = load_image(tmp_path / "moved", "image")
    assert moved.grid.same_as(GRID, 1e-4)
    one = pydicom.dcmread(next((tmp_path / "moved").iterdir()))
    assert (one.PatientID, one.FrameOfReferenceUID, one.Modality) == ("77", "1.2.3", "MR")
    labels = load_segmentation(tmp_path / "labels.dcm", "labels")
    assert labels is not None and [s.name for s in labels.segments] == ["organ", "inner"]
    assert (labels.layers[0] == 2).sum() == 27


def test_apply_moves_regions_whole(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    field = np.zeros((*GRID.shape, 3), np.float32)
    field[..., 0] = 4.0
    Warp(field, GRID).save(tmp_path / "warp.nii.gz")
    to_fixed = ("--reference", study, "--fixed-series", "2", "-o")
    run("apply", tmp_path / "warp.nii.gz", study / "rt.dcm", *to_fixed, tmp_path / "labels.dcm")
    found = load_segmentation(tmp_path / "labels.dcm", "labels")
    assert found is not None and len(found.layers) == 2
    assert int((found.layers[0] == 1).sum()) == pytest.approx(8 * 9 * 10, rel=0.15)
    words = ("apply", tmp_path / "warp.nii.gz", study, "--moving-series", "3")
    run(*words, *to_fixed, f"{tmp_path / 'moved'}/")
    there, here = (load_image(path, "image").array for path in (study / "3", tmp_path / "moved"))
    np.testing.assert_allclose(here[:, :, :-1], there[:, :, 1:], atol=1)


def test_what_cannot_be_written_is_refused_before_any_work(study: Path, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.nii.gz"
    save_image(load_image(study / "2", "image").to_sitk(), fixed)
    start = ("register", fixed, study / "3", "-o", tmp_path / "warp.nii.gz")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("")
    assert "there is something in it" in error_of(*start, "--moved", tmp_path / "full")
    inside = error_of(*start[:2], study, *start[3:], "--moving-series", "3", "--moved", f"{study / 'out'}/")
    assert "which is an input" in inside
    labels = ("--moving-labels", study / "rt.dcm", "--moved-labels", tmp_path / "a.dcm")
    message = run(*start, *labels, "-q", code=1).stderr
    assert "a DICOM segmentation refers to the DICOM of the fixed image" in message
    assert "choose one by its number or UID" in error_of(*start[:2], study, *start[3:], "-q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.nii.gz", "full"]


def test_info_describes_what_makes_no_volume(study: Path, tmp_path: Path) -> None:
    one = next((study / "2").iterdir())
    facts = json.loads(run("info", one, "--json").stdout)
    assert (facts["slices"], facts["modality"], facts["description"]) == (1, "MR", "T2")
    assert "2-D" in facts["not_to_register"]
    report = write_file(tmp_path / "report.dcm", f"{STORAGE}88.33", Modality="SR")
    assert "DICOM, Comprehensive SR Storage" in run("info", report).stdout
    shutil.copytree(study / "2", tmp_path / "gap")
    sorted((tmp_path / "gap").iterdir())[7].unlink()
    assert "do not stack evenly" in error_of("info", tmp_path / "gap")
    (tmp_path / "broken.dcm").write_bytes(one.read_bytes()[:140] + b"\xff" * 60)
    assert "broken.dcm'" in error_of("info", tmp_path / "broken.dcm")
