"""``regkit propagate`` from end to end, on phantoms of coarse voxels."""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import Files, error_of, run, usage_error_of, write_phantom

import regkit
from regkit.cli import propagate, register
from regkit.io.images import load_image, load_labels
from regkit.io.outputs import save_image
from regkit.propagation import FUSIONS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_phantom(tmp_path_factory.mktemp("phantom"), 10.0)


@pytest.fixture
def atlases(files: Files) -> tuple[object, ...]:
    """The phantom's CT as the atlas of its MR, and the MR as its own."""
    return (
        "--atlas", files.moving, "--atlas-labels", files.moving_labels,
        "--atlas", files.fixed, "--atlas-labels", files.fixed_labels,
    )  # fmt: skip


QUICK = ("--preset", "linear", "--threads", 1)


def test_verbose_and_the_log_say_what_each_stage_found(
    files: Files, atlases: tuple[object, ...], tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    words = ("propagate", files.fixed, *atlases[:4], *QUICK)
    said = run(*words, "-o", tmp_path / "a.nii.gz", "-v", "--log", log).stderr
    lines = said.splitlines()
    assert any(line.startswith("linear start: ") for line in lines)
    assert "linear start: " in log.read_text() and " DEBUG " in log.read_text()
    before = len(log.read_text().splitlines())
    said = run(*words, "-o", tmp_path / "b.nii.gz", "--log", log).stderr
    assert "linear start: " not in said
    assert len(log.read_text().splitlines()) == 2 * before  # it is appended to
    assert "must end in .log" in error_of(*words, "-o", tmp_path / "c.nii.gz", "--log", tmp_path / "run.txt")


def test_the_outputs_and_the_json(files: Files, atlases: tuple[object, ...], tmp_path: Path) -> None:
    out, share = tmp_path / "labels.nii.gz", tmp_path / "share.mha"
    result = run("propagate", files.fixed, *atlases, "-o", out, "--confidence", share, "--json", *QUICK)
    assert result.stderr == f"target={files.fixed} atlases={files.moving},{files.fixed}\n"
    found = json.loads(result.stdout)
    assert found["target"] == str(files.fixed)
    assert found["fusion"] == "similarity"
    assert found["outputs"] == {"labels": str(out), "confidence": str(share)}
    assert [atlas["image"] for atlas in found["atlases"]] == ["moving.nii.gz", "fixed.nii.gz"]
    assert [atlas["labels"] for atlas in found["atlases"]] == ["moving_labels.nii.gz", "fixed_labels.nii.gz"]
    assert found["atlases"][1]["votes"] > 0.9  # the target itself
    assert found["atlases"][0]["metrics"]["folding_percent"] == 0
    assert found["atlases"][0]["settings"]["threads"] == 1
    assert sorted(tmp_path.iterdir()) == [out, out.with_name(f"{out.name}.json"), share]

    expected = regkit.propagate(
        files.fixed, [(files.moving, files.moving_labels), (files.fixed, files.fixed_labels)],
        preset="linear", threads=1,
    )  # fmt: skip
    grid = load_image(files.fixed, "target").grid
    labels = load_labels(out, "labels", grid)
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, expected.labels.array)
    np.testing.assert_array_equal(load_image(share, "share").array, expected.confidence.array)
    assert (labels.array == load_labels(files.fixed_labels, "truth").array).mean() > 0.99


def test_the_table(files: Files, atlases: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "labels.nii.gz"
    words = ("--fusion", "majority", "--init", "none", *QUICK)
    lines = run("propagate", files.fixed, *atlases, "-o", out, *words).stdout.splitlines()
    assert lines[0].split() == ["atlas", "votes,", "%", "difference", "time,", "s", "verdict"]
    assert lines[1].startswith("moving.nii.gz")
    assert lines[2].startswith("fixed.nii.gz")
    assert sum(float(line.split()[1]) for line in lines[1:3]) == pytest.approx(100, abs=0.2)
    assert lines[-1] == f"wrote {out}"
    assert run("propagate", files.fixed, *atlases, "-o", out, *words, "--overwrite", "-q").output == ""


def test_every_argument_reaches_propagate(
    files: Files, atlases: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def record(target: Path, atlases: list[tuple[Path, Path]], **options: Any) -> None:
        given.update(options, target=target, atlases=atlases)
        assert callable(given.pop("progress"))  # which tells a log from time to time
        raise KeyboardInterrupt

    monkeypatch.setattr("regkit.propagation.propagate", record, raising=False)
    run(
        "propagate", files.fixed, *atlases, "-o", tmp_path / "labels.nii.gz", "--fusion", "majority",
        "--init", "centre", "--features", "network", "--preset", "accurate", "--weights", files.names,
        "--ct-window", "-200", "300", "--device", "cpu", "--threads", 2, "--seed", 7,
        code=130,
    )  # fmt: skip
    assert given == {
        "target": files.fixed,
        "atlases": [(files.moving, files.moving_labels), (files.fixed, files.fixed_labels)],
        "fusion": "majority", "init": "centre", "features": "network", "preset": "accurate",
        "weights": files.names, "ct_window": (-200.0, 300.0), "device": "cpu", "threads": 2, "seed": 7,
    }  # fmt: skip


def test_the_defaults_are_those_of_register_and_of_python() -> None:
    ours = signature(propagate.command).parameters
    # The preset of register may come from a file of settings as well.
    for shared in signature(register.command).parameters.keys() & ours.keys() - {"output", "preset"}:
        assert ours[shared].default == signature(register.command).parameters[shared].default
    for name, parameter in signature(regkit.propagate).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name != "progress":
            assert ours[name].default == parameter.default
    assert ours["fusion"].default == FUSIONS[0]


def test_wrong_command_lines(files: Files, atlases: tuple[object, ...], tmp_path: Path) -> None:
    out = ("-o", tmp_path / "labels.nii.gz")
    message = usage_error_of("propagate", files.fixed, *atlases, "--atlas", files.fixed, *out)
    assert "every --atlas needs its --atlas-labels, but there are 3 and 2" in message
    assert "--atlas" in usage_error_of("propagate", files.fixed, *out)
    assert "--output" in usage_error_of("propagate", files.fixed, *atlases)
    assert "'best' is none of" in usage_error_of("propagate", files.fixed, *atlases, *out, "--init", "best")
    assert "staple" in usage_error_of("propagate", files.fixed, *atlases, *out, "--fusion", "staple")
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_checked_first(
    files: Files, atlases: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "regkit.propagation.propagate", lambda *_, **__: pytest.fail("it began"), raising=False
    )
    old = tmp_path / "old.nii.gz"
    old.write_text("old")
    words = ("propagate", files.fixed, *atlases)
    assert "exists already; add --overwrite" in error_of(*words, "-o", old)
    new = ("-o", tmp_path / "new.nii.gz")
    assert "exists already; add --overwrite" in error_of(*words, *new, "--confidence", old)
    assert "must end in .nii.gz" in error_of(*words, "-o", tmp_path / "labels.png")
    assert "twice" in error_of(*words, *new, "--confidence", new[1])
    for path in (files.fixed, files.moving, files.moving_labels):
        assert "it is one of the inputs" in error_of(*words, "-o", path, "--overwrite")
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_labels_that_cannot_be_used(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    labels = load_labels(files.moving_labels, "labels")
    empty, far, broken = (folder / f"{name}.nii.gz" for name in ("empty", "far", "broken"))
    save_image(replace(labels, array=0 * labels.array).to_sitk(), empty)
    save_image(replace(labels, grid=replace(labels.grid, origin=(9e3, 0.0, 0.0))).to_sitk(), far)
    save_image(replace(labels, array=labels.array + np.float32(0.5)).to_sitk(), broken)
    first = ("--atlas", files.fixed, "--atlas-labels", files.fixed_labels)
    for bad, expected in (
        (empty, f"labels of atlas 2 '{empty}' holds no label"),
        (far, "labels of atlas 2, 'far.nii.gz': none lies inside the atlas' image 'moving.nii.gz'"),
        (folder / "no.nii.gz", f"labels of atlas 2 '{folder / 'no.nii.gz'}' does not exist"),
        (broken, f"labels of atlas 2 '{broken}' is not a label map"),
    ):
        words = (*first, "--atlas", files.moving, "--atlas-labels", bad, "-o", tmp_path / "out.nii.gz", "-q")
        assert expected in error_of("propagate", files.fixed, *words, *QUICK)
    assert list(tmp_path.iterdir()) == [folder]


def test_an_atlas_that_cannot_be_registered_leaves_nothing(
    files: Files, atlases: tuple[object, ...], tmp_path: Path
) -> None:
    words = ("--preset", "fast", "--init", files.names, "-o", tmp_path / "out.nii.gz", "-q")
    assert "atlas 1 of 2, 'moving.nii.gz': " in error_of("propagate", files.fixed, *atlases, *words)
    assert list(tmp_path.iterdir()) == []


def test_the_bar_on_a_terminal(
    files: Files, atlases: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regkit.cli.console._is_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    words = ("-o", tmp_path / "labels.nii.gz", "--init", "none", "--json", *QUICK)
    result = run("propagate", files.fixed, *atlases, *words)
    assert json.loads(result.stdout)["outputs"]
    assert "fusion" in result.stderr
    assert "%" in result.stderr
