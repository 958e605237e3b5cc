"""``regkit demo``, on a phantom of coarse voxels."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import error_of, run
from typer.testing import Result

from regkit.demo import FILES
from regkit.io.images import load_image, load_labels
from regkit.io.points import read_pairs
from regkit.synthesis.phantom import torso
from regkit.warp import Warp


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a demo whose phantom has 8 mm voxels, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regkit.demo.torso", lambda seed: torso(seed, 8.0))
        return folder, run("demo", "-o", folder, "--seed", 3, "--preset", "fast")


def _metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def test_it_writes_what_it_says(demo: tuple[Path, Result]) -> None:
    folder, _ = demo
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES.values())
    phantom = torso(3, 8.0)
    for name in ("fixed", "moving"):
        assert (load_image(folder / FILES[name], name).array == getattr(phantom, name).array).all()
        labels = load_labels(folder / FILES[f"{name}_labels"], name)
        assert (labels.array == getattr(phantom, f"{name}_labels").array).all()
    here, there = read_pairs(folder / "landmarks.csv")
    np.testing.assert_allclose(here, phantom.landmarks_fixed, atol=1e-4)
    np.testing.assert_allclose(there, phantom.landmarks_moving, atol=1e-4)
    assert (folder / "demo.png").stat().st_size > 50_000


def test_the_registration_is_good(demo: tuple[Path, Result]) -> None:
    found = _metrics(demo[0])
    assert found["metrics"]["folding_percent"] == 0
    dice = found["metrics"]["mean_dice"]
    assert dice["after"] > dice["before"] + 0.4
    assert found["landmarks"]["count"] == len(torso(3, 12).landmarks_fixed)
    assert found["landmarks"]["tre_before_mm"]["mean"] > 30
    assert found["landmarks"]["tre_mm"]["mean"] < 8  # one voxel


def test_the_table(demo: tuple[Path, Result]) -> None:
    folder, result = demo
    found, lines = _metrics(folder), result.stdout.splitlines()
    assert result.stderr == ""
    liver = next(line.split() for line in lines if line.startswith("liver"))
    row = found["metrics"]["labels"][0]
    assert liver[1:4] == [f"{row[key]:.3f}" for key in ("dice_before", "dice_linear", "dice")]
    for name in ("mean", "TRE before", "TRE after", "folding", "time", "memory"):
        assert any(line.startswith(name) for line in lines)
    assert f"{found['landmarks']['tre_mm']['mean']:.2f} mm" in result.stdout
    assert str(folder / "demo.png") in result.stdout


def test_the_command_repeats_it(demo: tuple[Path, Result]) -> None:
    folder, result = demo
    command = result.stdout.splitlines()[-1]
    assert command == _metrics(folder)["command"]
    before = {name: (folder / FILES[name]).read_bytes() for name in ("warp", "moved", "moved_labels")}
    warp = Warp.load(folder / "warp.nii.gz").field
    program, *words = shlex.split(command)
    assert program == "regkit"
    run(*words)
    assert (Warp.load(folder / "warp.nii.gz").field == warp).all()
    for name in ("moved", "moved_labels"):
        assert (folder / FILES[name]).read_bytes() == before[name]


def test_evaluate_finds_the_same(demo: tuple[Path, Result]) -> None:
    folder, _ = demo
    words = ("--warp", folder / "warp.nii.gz", "--landmarks", folder / "landmarks.csv", "--json")
    labels = (
        "--fixed-labels",
        folder / "fixed_labels.nii.gz",
        "--moving-labels",
        folder / "moving_labels.nii.gz",
    )
    found = json.loads(run("evaluate", *words, *labels, "--label-names", folder / "label_names.json").stdout)
    expected = _metrics(folder)
    assert found["landmarks"]["tre_mm"] == pytest.approx(expected["landmarks"]["tre_mm"], abs=1e-2)
    for state in ("before", "after"):
        assert found["mean_dice"][state] == pytest.approx(expected["metrics"]["mean_dice"][state], abs=1e-3)
        assert found["mean_hd95_mm"][state] == pytest.approx(
            expected["metrics"]["mean_hd95_mm"][state], abs=0.1
        )
    assert found["warp"]["sd_log_jacobian"] == pytest.approx(expected["metrics"]["sd_log_jacobian"], abs=1e-3)


def test_json_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regkit.demo.torso", lambda seed: torso(seed, 12.0))
    words = ("demo", "-o", tmp_path / "out", "--preset", "linear")
    found = json.loads(run(*words, "--json").stdout)
    assert found == _metrics(tmp_path / "out") | {
        "seconds": found["seconds"],
        "memory_mb": found["memory_mb"],
    }
    assert run(*words, "--overwrite", "--quiet").output == ""


def test_it_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> None:
        raise AssertionError("the demo began")

    monkeypatch.setattr("regkit.demo.torso", fail)
    (tmp_path / "moved.nii.gz").write_text("mine")
    assert "exists already; add --overwrite" in error_of("demo", "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["moved.nii.gz"]
    assert (tmp_path / "moved.nii.gz").read_text() == "mine"
    assert "cannot make the folder" in error_of("demo", "-o", tmp_path / "moved.nii.gz")
    assert f"create '{tmp_path / 'absent'}' first" in error_of("demo", "-o", tmp_path / "absent" / "out")
