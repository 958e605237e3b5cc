"""Results say what made them: inside where the format has room, and in a record beside them."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from cli_cases import error_of, run, write_phantom

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io import provenance
from regkit.io.headers import nrrd_fields
from regkit.io.outputs import save_image
from regkit.warp import Warp

GRID = Grid((9, 8, 7))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_registration_tells_what_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/regkit", "register", "a b"])
    files = write_phantom(tmp_path)
    (tmp_path / "out").mkdir()
    warp, moved = tmp_path / "out" / "warp.nii.gz", tmp_path / "out" / "moved.nii.gz"
    words = ("register", files.fixed, files.moving, "-o", warp, "--preset", "linear", "--init", "none", "-q")
    run(
        *words, "--moved", moved, "--fixed-labels", files.fixed_labels, "--moving-labels", files.moving_labels
    )
    record = json.loads((tmp_path / "out" / "warp.nii.gz.json").read_text())
    assert record["made_by"] == provenance.version() and record["command"] == "regkit register 'a b'"
    wanted = {"fixed", "moving", "fixed_labels", "moving_labels"}
    assert {role: entry["sha256"] for role, entry in record["inputs"].items()} == {
        role: digest(getattr(files, role)) for role in wanted
    }
    assert record["settings"]["init"] == "none" and len(record["settings"]["weights"]["sha256"]) == 64
    assert record["outputs"]["warp"] == {"file": "warp.nii.gz", "sha256": digest(warp)}
    assert sorted(path.name for path in warp.parent.iterdir()) == [
        "moved.nii.gz",
        "warp.nii.gz",
        "warp.nii.gz.json",
    ]
    for path in (warp, moved):
        said = bytes(nibabel.load(path).header["descrip"])
        assert said.startswith(provenance.version().encode()[:79])
        facts = json.loads(run("info", path, "--json").stdout)
        assert facts["record"] == record and "changed" not in facts
    assert f"  {files.fixed}  sha256 {digest(files.fixed)[:16]}" in run("info", warp).stdout
    save_image(nibabel_free(GRID), moved)
    assert "yes: its content is not" in run("info", moved).stdout


def nibabel_free(grid: Grid) -> object:
    return grid.to_sitk(np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape))


def zero_warp(path: Path) -> Path:
    Warp(np.zeros((*GRID.shape, 3), np.float32), GRID).save(path)
    return path


@pytest.mark.parametrize("name", ["out.nii.gz", "out.nii", "out.nrrd", "out.mha", "dispvect.nii.gz"])
def test_files_say_inside_which_regkit_wrote_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("dispvect"):
        Warp(np.zeros((*GRID.shape, 3), np.float32), GRID).save(path, "dispvect")
    else:
        image = nibabel_free(GRID)
        save_image(image, path)
        assert not image.GetMetaDataKeys()
    if name.endswith(".nrrd"):
        assert nrrd_fields(path)["regkit"] == provenance.version()
    elif name.endswith(".mha"):
        assert f"regkit = {provenance.version()}".encode() in path.read_bytes()[:2000]
    else:
        assert json.loads(run("info", path, "--json").stdout)["made_by"] == provenance.version()


def test_commands_that_use_a_warp_leave_a_record(tmp_path: Path) -> None:
    warp = zero_warp(tmp_path / "warp.nii.gz")
    save_image(nibabel_free(GRID), tmp_path / "image.nii.gz")
    image = tmp_path / "image.nii.gz"
    (tmp_path / "p.csv").write_text("1,2,3\n")
    run("apply", warp, image, "-o", tmp_path / "moved.mha", "--then", f"inverse:{warp}")
    run("apply", warp, "--points", tmp_path / "p.csv", "-o", tmp_path / "moved.csv")
    run("invert", warp, "-o", tmp_path / "inverse.h5", "--moving", image)
    run("convert", warp, tmp_path / "again.mha")
    run("jacobian", warp, "-o", tmp_path / "det.nii.gz")
    roles = {
        "moved.mha": {"transform 1", "transform 2", "image"},
        "moved.csv": {"transform", "points"},
        "inverse.h5": {"warp", "moving"},
        "again.mha": {"transform"},
        "det.nii.gz": {"warp"},
    }
    for name, wanted in roles.items():
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert set(record["inputs"]) == wanted
        (output,) = record["outputs"].values()
        assert output == {"file": name, "sha256": digest(tmp_path / name)}
    assert "made of warp" in run("info", tmp_path / "inverse.h5").stdout


def test_a_file_that_is_no_record_is_not_overwritten(tmp_path: Path) -> None:
    warp = zero_warp(tmp_path / "warp.nii.gz")
    other = tmp_path / "out.mha.json"
    other.write_text('{"mine": 1}')
    message = error_of("convert", warp, tmp_path / "out.mha", "--overwrite")
    assert "is not a record of regkit" in message and not (tmp_path / "out.mha").exists()
    assert other.read_text() == '{"mine": 1}'
    other.unlink()
    run("convert", warp, tmp_path / "out.mha")
    first = other.read_text()
    assert "exists already" in error_of("convert", warp, tmp_path / "out.mha")
    run("convert", warp, tmp_path / "out.mha", "--overwrite", "--to", "itk")
    assert other.read_text() != first


def test_from_python_a_record_is_a_method(tmp_path: Path) -> None:
    warp = zero_warp(tmp_path / "warp.nii.gz")
    record = provenance.record_of({"fixed": warp, "moving": np.zeros(3), "mask": None}, {"seed": 1})
    assert record["inputs"] == {
        "fixed": {"file": str(warp), "sha256": digest(warp)},
        "moving": {"type": "ndarray"},
    }
    provenance.write_record(warp, record, {"warp": warp})
    found = provenance.read_record(warp)
    assert found is not None and found[1] and found[0]["settings"] == {"seed": 1}
    with pytest.raises(RegkitError, match="cannot be read"):
        provenance.record_of({"fixed": tmp_path / "none.nii"}, {})


def test_hashes_of_pairs_and_folders_are_of_all_their_files(tmp_path: Path) -> None:
    for name in ("a.hdr", "a.img", "b.hdr"):
        (tmp_path / name).write_text(name)
    both = provenance.sha256(tmp_path / "a.hdr")
    assert both == provenance.sha256(tmp_path / "a.img") != digest(tmp_path / "a.hdr")
    assert provenance.sha256(tmp_path / "b.hdr") == digest(tmp_path / "b.hdr")
    whole = provenance.sha256(tmp_path)
    (tmp_path / "b.hdr").write_text("other")
    assert provenance.sha256(tmp_path) != whole


def test_hashing_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(50 << 20))
    start = time.perf_counter()
    provenance.sha256(path)
    assert time.perf_counter() - start < 1.0
