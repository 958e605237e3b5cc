"""Every unusable input: exit code 1, one line that names it and says what to do, and no file left behind."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import error_of, run
from warp_cases import FIXED, MOVING, smooth_warp, texture

import regkit
from regkit.core.errors import is_out_of_memory
from regkit.core.geometry import Grid
from regkit.io.formats import write_linear, write_warp
from regkit.io.outputs import save_image


def _nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)


def _with(value: float) -> np.ndarray:
    array = texture(MOVING).T.copy()
    array[3, 4, 5] = value
    return array


def _sheared(path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.5
    image = nibabel.Nifti1Image(texture(MOVING).T, None)
    image.set_sform(affine, 1)
    image.to_filename(path)


def _singular(path: Path) -> None:
    affine = np.eye(4)
    affine[:3, 2] = affine[:3, 1]
    image = nibabel.Nifti1Image(texture(MOVING).T, None)
    image.set_sform(affine, 1)
    image.to_filename(path)


def _header_bytes(path: Path, at: int, content: bytes) -> None:
    """Change bytes of the header of a .nii.gz."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[at : at + len(content)] = content
    path.write_bytes(gzip.compress(bytes(data)))


def _zero_spacing(path: Path) -> None:
    _nifti(path, texture(MOVING).T)
    _header_bytes(path, 76 + 4, struct.pack("<3f", 0, 1, 1))


def _enormous(path: Path) -> None:
    _nifti(path, texture(MOVING).T)
    _header_bytes(path, 40 + 2, struct.pack("<3h", 30000, 30000, 30000))


BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "not an image": (lambda path: path.write_text("hello"), "not an image"),
    "2-D": (lambda path: _nifti(path, np.ones((9, 9))), "2-D (9 x 9"),
    "one slice": (lambda path: _nifti(path, np.ones((9, 9, 1))), "2-D"),
    "4-D": (lambda path: _nifti(path, np.ones((9, 9, 9, 5))), "4 dimensions (9 x 9 x 9 x 5); give one 3-D"),
    "colours": (
        lambda path: sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkVectorUInt8, 3), path),
        "several values per voxel",
    ),
    "NaN": (lambda path: _nifti(path, _with(np.nan)), "1 voxels that are NaN"),
    "Inf": (lambda path: _nifti(path, _with(np.inf)), "1 voxels that are NaN, infinite"),
    "constant": (lambda path: _nifti(path, np.full((9, 9, 9), 3.0)), "constant: every voxel is 3"),
    "sheared": (_sheared, "not orthonormal"),
    "singular": (_singular, "not orthonormal"),
    "zero spacing": (_zero_spacing, "spacing is (0.0, 1.0, 1.0) mm"),
    "enormous": (_enormous, "GiB of memory"),
    "truncated": (
        lambda path: (_nifti(path, texture(MOVING).T), path.write_bytes(path.read_bytes()[:-2000])),
        "truncated or damaged",
    ),
}


# What can be opened is described, though there is nothing in it to register.
DESCRIBED = {
    "2-D": "image of 2 axes",
    "one slice": "9  9  1",
    "4-D": "image of 4 axes",
    "colours": "image of 5 axes",
    "NaN": "not finite voxels  1",
    "Inf": "not finite voxels  1",
    "constant": "every voxel has the same value",
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    save_image(FIXED.to_sitk(texture(FIXED)), folder / "fixed.nii.gz")
    save_image(MOVING.to_sitk(texture(MOVING)), folder / "moving.nii.gz")
    write_warp(smooth_warp(), folder / "warp.nii.gz")
    save_image(MOVING.to_sitk(np.ones(MOVING.shape, np.uint8)), folder / "labels.nii.gz")
    return folder


@pytest.mark.parametrize("case", BAD_IMAGES)
@pytest.mark.parametrize("role", ["fixed", "moving", "target", "atlas", "apply", "info"])
def test_bad_images(good: Path, tmp_path: Path, case: str, role: str) -> None:
    make, expected = BAD_IMAGES[case]
    bad, out = good / "bad.nii.gz", tmp_path / "out.nii.gz"
    make(bad)
    if role == "apply" and case == "4-D":
        run("apply", good / "warp.nii.gz", bad, "-o", out)  # frame by frame
        return
    if role == "info" and case in DESCRIBED:
        assert DESCRIBED[case] in run("info", bad).stdout
        return
    labels = ("--atlas-labels", good / "labels.nii.gz")
    words: tuple[object, ...] = {
        "fixed": ("register", bad, good / "moving.nii.gz", "-o", out, "-q"),
        "moving": ("register", good / "fixed.nii.gz", bad, "-o", out, "-q"),
        "target": ("propagate", bad, "--atlas", good / "moving.nii.gz", *labels, "-o", out, "-q"),
        "atlas": ("propagate", good / "fixed.nii.gz", "--atlas", bad, *labels, "-o", out, "-q"),
        "apply": ("apply", good / "warp.nii.gz", bad, "-o", out),
        "info": ("info", bad),
    }[role]
    message = error_of(*words)
    assert expected in message
    assert str(bad) in message
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


BAD_EXTRAS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no mask": ("--fixed-mask", lambda path: None, "fixed mask"),
    "empty mask": ("--fixed-mask", lambda path: _save(path, np.zeros(FIXED.shape), FIXED), "is empty"),
    "mask elsewhere": (
        "--moving-mask",
        lambda path: _save(path, np.ones(FIXED.shape), replace(FIXED, origin=(0.0, 0.0, 9e3))),
        "lies beside its image",
    ),
    "NaN in a mask": ("--fixed-mask", lambda path: _save(path, np.full(FIXED.shape, np.nan), FIXED), "NaN"),
    "no label file": ("--fixed-labels", lambda path: None, "does not exist"),
    "no moving labels": ("--moving-labels", lambda path: None, "does not exist"),
    "not a label file": ("--moving-labels", lambda path: path.write_text("1 liver"), "not an image"),
    "labels of fractions": (
        "--fixed-labels",
        lambda path: _save(path, np.full(FIXED.shape, 0.5), FIXED),
        "is not a label map",
    ),
    "labels elsewhere": (
        "--fixed-labels",
        lambda path: _save(path, np.ones(MOVING.shape), MOVING),
        "does not lie on the voxels of its image",
    ),
    "an image for labels": (
        "--fixed-labels",
        lambda path: _save(path, np.arange(np.prod(FIXED.shape)).reshape(FIXED.shape), FIXED),
        "is not a label map: it has more than 1,000 different values",
    ),
    "no label": (
        "--moving-labels",
        lambda path: _save(path, np.zeros(MOVING.shape), MOVING),
        "holds no label",
    ),
    "start that is not a transform": ("--init", lambda path: path.write_text("hello"), "bad"),
}


def _save(path: Path, array: np.ndarray, grid: Grid) -> None:
    save_image(grid.to_sitk(array.astype(np.float32)), path)


@pytest.mark.parametrize("case", BAD_EXTRAS)
def test_bad_masks_labels_and_starts(good: Path, tmp_path: Path, case: str) -> None:
    option, make, expected = BAD_EXTRAS[case]
    bad = good / "bad.nii.gz"
    make(bad)
    extras = {option: bad}
    if "labels" in option:  # they come in pairs
        extras = {option: bad, "--moving-labels": good / "labels.nii.gz"} | extras
        if option == "--moving-labels":
            extras["--moved-labels"] = tmp_path / "moved.nii.gz"
    words = (good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "warp.nii.gz", "-q")
    message = error_of("register", *words, *(word for pair in extras.items() for word in pair))
    assert expected in message
    assert str(bad) in message
    assert "0x" not in message  # ITK names the object in memory that complains
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


def test_a_start_that_is_singular(good: Path, tmp_path: Path) -> None:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([1, 0, 0, 0, 1, 0, 0, 0, 1e-12])
    sitk.WriteTransform(transform, good / "flat.tfm")
    words = (good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "w.nii.gz", "-q")
    assert "singular" in error_of("register", *words, "--init", good / "flat.tfm")
    assert "mind, network, network+mind" in error_of("register", *words, "--features", "best")
    assert "window" in error_of("register", *words, "--ct-window", "450", "-450")


def test_weights_that_cannot_be_used(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("register", good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "w.nii.gz", "-q")
    assert "no such file" in error_of(*words, "--weights", tmp_path / "nowhere.safetensors")
    damaged = good / "damaged.safetensors"
    damaged.write_bytes(b"\x10")
    assert "damaged" in error_of(*words, "--weights", damaged)
    assert "use no weights" in error_of(*words, "--weights", damaged, "--features", "mind")
    monkeypatch.setattr("regkit.features.weights._MODELS", (tmp_path / "models",))
    assert "missing from this installation" in error_of(*words, "--features", "network")


BAD_WARPS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("bad.nii.gz", lambda path: None, "no such file"),
    "not a warp": ("bad.nii.gz", lambda path: _nifti(path, texture(FIXED).T), "not a warp"),
    "text": ("bad.h5", lambda path: path.write_text("hello"), "cannot be read"),
    "unknown ending": ("bad.dat", lambda path: path.write_text("hello"), "is not a suffix of a warp"),
    "no grid": ("bad.tfm", lambda path: write_linear(np.eye(4), path), "give the fixed image too"),
    "no geometry": ("bad.npz", lambda path: write_warp(smooth_warp(), path), "--fixed"),
    "no intent": (
        "bad.nii.gz",
        lambda path: _nifti(path, np.zeros((9, 9, 9, 1, 3), dtype=np.float32)),
        "intent code 0",
    ),
}


@pytest.mark.parametrize("case", BAD_WARPS)
@pytest.mark.parametrize("command", ["apply", "points", "jacobian", "invert", "convert", "evaluate"])
def test_bad_warps(good: Path, tmp_path: Path, case: str, command: str) -> None:
    if (command, case) == ("points", "no grid"):
        pytest.skip("a matrix moves points without a grid")
    name, make, expected = BAD_WARPS[case]
    bad, out, moving = good / name, tmp_path / "out.nii.gz", good / "moving.nii.gz"
    make(bad)
    (good / "points.csv").write_text("x,y,z\n1,2,3\n")
    words: tuple[object, ...] = {
        "apply": ("apply", bad, moving, "-o", out),
        "points": ("apply", bad, "--points", good / "points.csv", "-o", tmp_path / "out.csv"),
        "jacobian": ("jacobian", bad, "-o", out),
        "invert": ("invert", bad, "--reference", moving, "-o", out),
        "convert": ("convert", bad, out),
        "evaluate": ("evaluate", "--warp", bad),
    }[command]
    message = error_of(*words)
    assert expected in message
    assert str(bad) in message
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


def _in_a_process(code: str, *words: object) -> list[str]:
    """Lines on stderr of a run that fails, what C libraries write there included."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(regkit.__file__).parents[1]),
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-c", code, *map(str, words)]
    result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert result.returncode == 1
    assert result.stdout == ""
    return result.stderr.splitlines()


def test_one_line_is_all_there_is_on_stderr(tmp_path: Path) -> None:
    """MetaImage, ITK's NIfTI reader and nibabel print complaints of their own about these."""
    sitk.WriteImage(FIXED.to_sitk(texture(FIXED)), tmp_path / "short.mha")
    (tmp_path / "short.mha").write_bytes((tmp_path / "short.mha").read_bytes()[:-1000])
    _zero_spacing(tmp_path / "flat.nii.gz")
    _sheared(tmp_path / "sheared.nii.gz")
    code = "import runpy; runpy.run_module('regkit', run_name='__main__')"
    for name, expected in (("short.mha", "damaged"), ("flat.nii.gz", "spacing"), ("sheared.nii.gz", "ortho")):
        (line,) = _in_a_process(code, "info", tmp_path / name)
        assert line.startswith(f"error: file '{tmp_path / name}'")
        assert expected in line


def test_a_bug_shows_what_libraries_said(good: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, regkit.cli, regkit.registration\n"
        "def fail(*_, **__):\n"
        "    os.write(2, b'a C library speaks\\n')\n"
        "    print('and Python', file=sys.stderr)\n"
        "    raise ValueError('a bug')\n"
        "regkit.registration.register = fail\n"
        "regkit.cli.app()"
    )
    words = ("register", good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "w.nii.gz", "-q")
    lines = _in_a_process(code, *words)
    assert lines[:3] == ["and Python", "a C library speaks", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: a bug"


@pytest.fixture
def register_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make the registration raise the given error."""

    def arrange(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("regkit.registration.register", fail, raising=False)

    return arrange


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory: 8 GB"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("Exception thrown in SimpleITK Resample: Failed to allocate memory for image."),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_runs_out(
    good: Path, tmp_path: Path, register_fails: Callable[[BaseException], None], error: Exception
) -> None:
    register_fails(error)
    words = (good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "w.nii.gz", "-q")
    assert "out of memory: try --preset fast" in error_of("register", *words)


def test_real_allocation_failures_are_recognised() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        sitk.Image([1 << 20, 1 << 20, 1 << 18], sitk.sitkUInt8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("The size of tensor a must match"))


def test_an_interrupt(good: Path, tmp_path: Path, register_fails: Callable[[BaseException], None]) -> None:
    register_fails(KeyboardInterrupt())
    words = (good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "w.nii.gz", "-q")
    result = run("register", *words, code=130)
    assert result.stderr == "error: interrupted; nothing was left half-written\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), AssertionError()])
def test_a_bug_keeps_its_traceback(
    good: Path, tmp_path: Path, register_fails: Callable[[BaseException], None], error: Exception
) -> None:
    register_fails(error)
    words = (good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "w.nii.gz", "-q")
    assert run("register", *words, code=1).exception is error


def test_a_warning_is_one_line(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object, **__: object) -> None:
        warnings.warn("this is\nodd", stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("regkit.registration.register", warn, raising=False)
    words = (good / "fixed.nii.gz", good / "moving.nii.gz", "-o", tmp_path / "w.nii.gz", "-q")
    assert run("register", *words, code=130).stderr.splitlines()[0] == "warning: this is odd"


def test_a_full_disk_leaves_nothing(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every writer fails on the way; the temporary files must go as well."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    for command, name in (("jacobian", "j.nii.gz"), ("convert", "w.h5"), ("convert", "w.nii.gz")):
        words = ("-o", tmp_path / name) if command == "jacobian" else (tmp_path / name,)
        assert "No space left" in error_of(command, good / "warp.nii.gz", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("words", [("--version",), ("info", "moving.nii.gz", "--json")])
def test_a_full_stdout_is_one_line(good: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "regkit", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(regkit.__file__).parents[1])}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=good
        )
    assert done.returncode == 1
    assert done.stderr == "error: could not write the output: No space left on device\n"


@pytest.mark.parametrize("option", ["--json", ""])
def test_a_closed_stdout_is_one_line(good: Path, option: str) -> None:
    words = f"{sys.executable} -m regkit info {good / 'moving.nii.gz'} {option} >&-"
    environment = os.environ | {"PYTHONPATH": str(Path(regkit.__file__).parents[1])}
    done = subprocess.run(["sh", "-c", words], stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr == "error: could not write the output: Bad file descriptor\n"


@pytest.mark.parametrize("suffix", ["nii.gz", "mha", "h5", "tfm", "npz", "csv"])
def test_names_that_no_system_allows(good: Path, tmp_path: Path, suffix: str) -> None:
    name = tmp_path / f"{'a' * 300}.{suffix}"
    moving, warp, out = good / "moving.nii.gz", good / "warp.nii.gz", tmp_path / "out.nii.gz"
    assert "a" * 300 in error_of("info", name)
    assert "a" * 300 in error_of("apply", warp if suffix == "csv" else name, moving, "-o", name)
    if suffix != "csv":
        assert "a" * 300 in error_of("apply", name, moving, "-o", out)
    else:
        assert "a" * 300 in error_of("apply", warp, "--points", name, "-o", tmp_path / "out.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_for_an_image(good: Path, tmp_path: Path) -> None:
    for name in ("pipe.nii", "pipe.mha"):
        os.mkfifo(good / name)
        assert "save it as a file first" in error_of(
            "apply", good / "warp.nii.gz", good / name, "-o", tmp_path / "o.nii"
        )
