"""ITK's parsers in a child process: what they read arrives as it is, and what they die of is one line."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io import guard
from regkit.io.formats import write_linear
from regkit.io.images import load_image
from regkit.runtime.process import SWITCH

DAMAGED = r"cannot be read|is damaged"
GRID = Grid((6, 7, 8), (1.0, 1.5, 2.0), (10.0, -20.0, 30.0))


def array(dtype: str = "f4") -> np.ndarray:
    return np.arange(6 * 7 * 8).reshape(GRID.shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_voxels_arrive_in_their_type(dtype: str, tmp_path: Path) -> None:
    sitk.WriteImage(GRID.to_sitk(array(dtype)), tmp_path / "image.nrrd")
    with guard.open_image([tmp_path / "image.nrrd"]) as file:
        assert file.header.size == (6, 7, 8) and file.header.format == "NrrdImageIO"
        final, found = file.read(1 << 20)
    assert found.dtype == np.dtype(dtype) and final.spacing == GRID.spacing
    np.testing.assert_array_equal(found, array(dtype))


def test_they_arrive_without_the_trick_that_starts_the_parser_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "none")
    test_voxels_arrive_in_their_type("i2", tmp_path)
    test_vectors_and_transforms_arrive(tmp_path)


def test_vectors_and_transforms_arrive(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(*GRID.shape, 3))
    sitk.WriteImage(GRID.to_sitk(vectors, vector=True), tmp_path / "field.mha")
    with guard.open_image([tmp_path / "field.mha"]) as file:
        assert file.header.pixel == "vector of 64-bit float" and file.header.components == 3
        np.testing.assert_array_equal(file.read(1 << 20)[1], vectors)

    field = sitk.DisplacementFieldTransform(GRID.to_sitk(vectors, vector=True))
    affine = sitk.AffineTransform([1.1, 0.2, 0, 0, 1, 0, 0, 0.3, 0.9], (1.0, 2.0, 3.0), (50.0, 0.0, 7.0))
    sitk.WriteTransform(sitk.CompositeTransform([affine, field]), str(tmp_path / "both.h5"))
    first, second = guard.read_transform(tmp_path / "both.h5")
    assert (first.name, second.name) == ("AffineTransform", "DisplacementFieldTransform")
    assert first.matrix is not None and second.values is not None
    point = (13.0, -4.0, 60.0)
    np.testing.assert_allclose(
        first.matrix[:3, :3] @ point + first.matrix[:3, 3], affine.TransformPoint(point)
    )
    np.testing.assert_array_equal(second.values, vectors)


@pytest.mark.parametrize("dimensions", [-1, 0, 11, 2**31 - 1])
def test_a_number_of_dimensions_that_crashes_itk(dimensions: int, tmp_path: Path) -> None:
    sitk.WriteImage(GRID.to_sitk(array()), tmp_path / "image.mha")
    content = (tmp_path / "image.mha").read_bytes()
    (tmp_path / "image.mha").write_bytes(content.replace(b"NDims = 3", b"NDims = %d" % dimensions))
    with pytest.raises(RegkitError, match=r"^fixed image '.*image\.mha'"):
        load_image(tmp_path / "image.mha", "fixed image")


def test_text_transforms_that_crash_itk(tmp_path: Path) -> None:
    write_linear(np.eye(4), tmp_path / "good.tfm")
    text = (tmp_path / "good.tfm").read_text()
    for old, new in (("Parameters: 1 0", "Parameters: one 0"), ("3_3", "3_"), ("Parameters:", "")):
        (tmp_path / "bad.tfm").write_text(text.replace(old, new))
        with pytest.raises(guard.ParserError, match=DAMAGED):
            guard.read_transform(tmp_path / "bad.tfm")


def test_matlab_transforms_that_crash_itk(tmp_path: Path) -> None:
    write_linear(np.eye(4), tmp_path / "good.mat")
    content = bytearray((tmp_path / "good.mat").read_bytes())
    for length in (-1, 2**31 - 1):
        content[16:20] = struct.pack("<i", length)
        (tmp_path / "bad.mat").write_bytes(content)
        with pytest.raises(guard.ParserError, match=DAMAGED):
            guard.read_transform(tmp_path / "bad.mat")


def test_the_files_that_killed_itk(shared_dir: Path) -> None:
    for name in ("abort.mat", "hang.mat", "bad.h5", "bad2.h5"):
        start = time.monotonic()
        with pytest.raises(guard.ParserError, match=DAMAGED):
            guard.read_transform(shared_dir / "data" / "cases" / name)
        assert time.monotonic() - start < 10


def test_a_reader_without_an_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A child that says nothing, whatever it is asked.
    (tmp_path / "itkchild.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "guard.py"))
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.2)
    with pytest.raises(guard.ParserError, match="no end after 0 s"), guard.open_image([tmp_path / "any.mha"]):
        pass


@pytest.mark.parametrize("ready", [True, False])
def test_a_reader_that_gets_no_processor_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    """On a busy machine any time can pass before the reader has begun; one that sleeps has no excuse."""
    header = {
        "size": [2, 2, 2],
        "spacing": [1, 1, 1],
        "origin": [0, 0, 0],
        "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "pixel": "8-bit unsigned integer",
        "components": 1,
    }
    (tmp_path / "itkchild.py").write_text(f"import time\ntime.sleep(1)\nprint({json.dumps(header)!r})\n")
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "guard.py"))
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(guard, "_STARVED", 300)
    monkeypatch.setattr(guard, "_state", lambda pid: guard._State(0.0, ready))
    if ready:
        with guard.open_image([tmp_path / "any.mha"]) as image:
            assert image.header.size == (2, 2, 2)
    else:
        with pytest.raises(guard.ParserError, match="no end"), guard.open_image([tmp_path / "any.mha"]):
            pass


def test_a_reader_that_works_without_an_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "itkchild.py").write_text("while True:\n    pass\n")
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "guard.py"))
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.2)
    with pytest.raises(guard.ParserError, match="no end after 0 s"), guard.open_image([tmp_path / "any.mha"]):
        pass


def test_waiting_for_a_processor_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "itkchild.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "guard.py"))
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(guard, "_STARVED", 3)
    monkeypatch.setattr(guard, "_state", lambda pid: guard._State(0.0, True))
    with pytest.raises(guard.ParserError, match="no end"), guard.open_image([tmp_path / "any.mha"]):
        pass


def test_a_child_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "itkchild.py").write_text("import os\nos.abort()\n")
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "guard.py"))
    with (
        pytest.raises(guard.ParserError, match="its reader crashed"),
        guard.open_image([tmp_path / "any.mha"]),
    ):
        pass
