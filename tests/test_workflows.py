"""nipype, pydra, Snakemake and Nextflow around regkit, on phantoms; each where it is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import Files, write_phantom

import regkit
from regkit.integrations.files import register_files
from regkit.io.images import load_image

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("NO_ET", "1")  # nipype and pydra ask a server whether they are new
pytestmark = pytest.mark.filterwarnings("ignore")  # of theirs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_phantom(tmp_path_factory.mktemp("phantom"), 12.0)


@pytest.fixture(scope="module")
def expected(files: Files) -> regkit.Registration:
    return regkit.register(files.fixed, files.moving, preset="linear", threads=1)


def programs() -> dict[str, str]:
    """Variables with which a workflow finds this regkit, and the program of this Python first."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "PATH": path}


def same_image(path: Path, expected: np.ndarray) -> None:
    np.testing.assert_allclose(load_image(path, "image").array, expected, atol=1e-3)


def test_files_to_files(files: Files, expected: regkit.Registration, tmp_path: Path) -> None:
    found = register_files(
        files.fixed,
        files.moving,
        moving_labels=files.moving_labels,
        preset="linear",
        threads=1,
        folder=str(tmp_path),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "moved.nii.gz", "moved_labels.nii.gz", "warp.nii.gz", "warp.nii.gz.json"
    ]  # fmt: skip
    assert found.verdict == expected.verdict.level
    same_image(found.moved, expected.moved.array)
    assert found.moved_labels is not None
    assert len(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(found.moved_labels))))) > 5
    np.testing.assert_allclose(regkit.Warp.load(found.warp).field, expected.warp.field, atol=1e-3)


def test_nipype(
    files: Files, expected: regkit.Registration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nipype", reason="nipype is not installed")
    from nipype import Node, Workflow

    from regkit.integrations.nipype import Apply, Register

    for name, value in programs().items():
        monkeypatch.setenv(name, value)
    flow = Workflow("registration", base_dir=str(tmp_path))
    flow.config["execution"] = {"remove_unnecessary_outputs": "false"}  # to look at what nothing goes on with
    register = Node(Register(preset="linear", settings=["max_voxels=500000"]), "register")
    register.inputs.fixed, register.inputs.moving = str(files.fixed), str(files.moving)
    register.inputs.fixed_labels = str(files.fixed_labels)
    register.inputs.moving_labels = str(files.moving_labels)
    apply = Node(Apply(image=str(files.moving_labels), interpolation="nearest"), "apply")
    flow.connect(register, "warp", apply, "warp")
    nodes = {node.name: node for node in flow.run().nodes}
    outputs = nodes["register"].result.outputs
    assert outputs.verdict == expected.verdict.level
    assert 0.3 < outputs.mean_dice <= 1
    assert Path(outputs.warp).parent == tmp_path / "registration" / "register"
    same_image(outputs.moved, expected.moved.array)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(nodes["apply"].result.outputs.moved))
    assert len(np.unique(labels)) > 5
    assert "--preset linear" in register.interface.cmdline
    with pytest.raises(Exception, match="fixed"):
        Register(moving=str(files.moving)).cmdline  # noqa: B018


def test_nipype_fails_as_regkit_does(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nipype", reason="nipype is not installed")
    from regkit.integrations.nipype import Register

    for name, value in programs().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.nii.gz").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"none\.nii\.gz"):
        Register(fixed=str(files.fixed), moving=str(tmp_path / "none.nii.gz"), preset="linear").run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.nii.gz"]


def test_pydra(files: Files, expected: regkit.Registration, tmp_path: Path) -> None:
    pytest.importorskip("pydra", reason="pydra is not installed")
    from regkit.integrations.pydra import register

    task = register(
        fixed=files.fixed, moving=files.moving, preset="linear", threads=1, cache_dir=tmp_path / "cache"
    )
    outputs = task().output
    assert outputs.verdict == expected.verdict.level
    same_image(Path(outputs.moved), expected.moved.array)
    assert tmp_path in Path(outputs.warp).parents
    again = register(
        fixed=files.fixed, moving=files.moving, preset="linear", threads=1, cache_dir=tmp_path / "cache"
    )
    before = Path(outputs.warp).stat().st_mtime_ns
    assert Path(again().output.warp).stat().st_mtime_ns == before  # kept


def study(files: Files, folder: Path) -> Path:
    """Two subjects, laid out as the examples have it."""
    for subject in ("sub-01", "sub-02"):
        place = folder / subject
        place.mkdir(parents=True)
        shutil.copy(files.fixed, place / "mr.nii.gz")
        shutil.copy(files.moving, place / "ct.nii.gz")
    return folder


def check_study(folder: Path, expected: regkit.Registration) -> None:
    out = folder / "derivatives" / "regkit"
    level = expected.verdict.level
    assert (out / "verdicts.tsv").read_text().splitlines() == [f"sub-01\t{level}", f"sub-02\t{level}"]
    for subject in ("sub-01", "sub-02"):
        same_image(out / subject / "moved.nii.gz", expected.moved.array)
        assert (out / subject / "report.html").stat().st_size < 3_000_000


@pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="Snakemake is not installed")
def test_snakemake(files: Files, expected: regkit.Registration, tmp_path: Path) -> None:
    folder = study(files, tmp_path / "study")
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "1",
        "-s",
        str(ROOT / "examples/snakemake/Snakefile"),
    ]
    words += ["--config", f"data={folder}", "preset=linear"]
    done = subprocess.run(words, cwd=tmp_path, env=programs(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_study(folder, expected)
    again = subprocess.run(words, cwd=tmp_path, env=programs(), capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.skipif(shutil.which("nextflow") is None, reason="Nextflow is not installed")
def test_nextflow(files: Files, expected: regkit.Registration, tmp_path: Path) -> None:
    folder = study(files, tmp_path / "study")
    words = [
        "nextflow",
        "run",
        str(ROOT / "examples/nextflow/main.nf"),
        "--data",
        str(folder),
        "--preset",
        "linear",
    ]
    done = subprocess.run(words, cwd=tmp_path, env=programs(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_study(folder, expected)
