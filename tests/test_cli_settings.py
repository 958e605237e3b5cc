"""``regkit rigid``, ``regkit presets``, and --config, --set, -v and --log of ``regkit register``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import Files, error_of, run, usage_error_of, write_phantom

from regkit.cli.options import PresetName, chosen_settings
from regkit.core.settings import PRESETS
from regkit.io.formats import read_linear
from regkit.io.images import load_image
from regkit.warp import Warp


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_phantom(tmp_path_factory.mktemp("phantom"))


def test_rigid_writes_a_turn_that_itk_resamples_with(files: Files, tmp_path: Path) -> None:
    out, moved = tmp_path / "t.tfm", tmp_path / "moved.nii.gz"
    result = run("rigid", files.fixed, files.moving, "-o", out, "--moved", moved, "--threads", 1, "--json")
    found = json.loads(result.stdout)
    matrix = read_linear(out)
    np.testing.assert_allclose(matrix, found["linear"], atol=1e-9)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-6)
    assert found["settings"]["preset"] == "rigid"
    assert np.linalg.norm(matrix[:3, 3]) > 20  # mm, of 60 between the two worlds
    transform = sitk.ReadTransform(str(out))
    fixed, moving = sitk.ReadImage(str(files.fixed)), sitk.ReadImage(str(files.moving), sitk.sitkFloat32)
    lowest = float(sitk.GetArrayViewFromImage(moving).min())
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, lowest))
    ours = load_image(moved, "moved").array
    assert np.abs(ours - theirs).mean() < 1e-3 * np.ptp(theirs)


def test_rigid_takes_more_freedom_where_asked(files: Files, tmp_path: Path) -> None:
    words = ("rigid", files.fixed, files.moving, "--threads", 1, "--quiet")
    run(*words, "-o", tmp_path / "s.txt", "--model", "similarity")
    run(*words, "-o", tmp_path / "a.nii.gz", "--model", "affine")
    linear = read_linear(tmp_path / "s.txt")[:3, :3]
    scale = np.cbrt(np.linalg.det(linear))
    np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-6)
    assert Warp.load(tmp_path / "a.nii.gz").grid.same_as(load_image(files.fixed, "fixed").grid)


@pytest.mark.parametrize("preset", ["linear", "rigid"])
@pytest.mark.parametrize("name", ["t.tfm", "t.txt", "t.mat"])
def test_a_linear_result_goes_into_a_transform(files: Files, tmp_path: Path, preset: str, name: str) -> None:
    words = ("--preset", preset, "--init", "centre", "--quiet")
    run("register", files.fixed, files.moving, "-o", tmp_path / name, *words)
    centres = [load_image(path, "image").grid.centre for path in (files.fixed, files.moving)]
    np.testing.assert_allclose(read_linear(tmp_path / name)[:3, 3], centres[1] - centres[0], atol=1e-6)


def test_a_deformable_result_does_not(files: Files, tmp_path: Path) -> None:
    message = error_of("register", files.fixed, files.moving, "-o", tmp_path / "t.tfm")
    assert "can hold only a linear result" in message
    assert "--preset linear or rigid" in message
    assert not list(tmp_path.iterdir())


def test_presets_are_listed_and_shown_as_what_config_reads(tmp_path: Path) -> None:
    lines = run("presets").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS) == list(PresetName.__args__)  # type: ignore[attr-defined]
    for name in PRESETS:
        path = tmp_path / f"{name}.yaml"
        path.write_text(run("presets", "show", name).stdout)
        base, _, settings = chosen_settings(None, path, [])
        assert (base, settings) == (name, PRESETS[name])
    assert "did you mean accurate?" in error_of("presets", "show", "acurate")


def test_what_is_set_goes_before_the_preset_and_that_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("preset: fast\nsearch_range: 8\nregularisation: 2\n")
    base, _, settings = chosen_settings(None, path, ["search_range=16"])
    assert base == "fast"
    assert (settings.max_voxels, settings.search_range, settings.regularisation) == (1_000_000, 16, 2)
    base, _, settings = chosen_settings("default", path, [])
    assert (base, settings.max_voxels, settings.search_range) == ("default", PRESETS["default"].max_voxels, 8)


def test_settings_reach_the_solver_and_the_record(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("preset: fast\niterations: [3, 2]\n")
    result = run(
        "register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", "--init", "centre",
        "--features", "mind", "--config", path, "--set", "search_range=16", "--json",
    )  # fmt: skip
    settings = json.loads(result.stdout)["settings"]
    assert settings["preset"] == "fast"
    assert settings["iterations"] == [3, 2]
    assert settings["solver"]["search_range"] == 16
    record = json.loads((tmp_path / "w.nii.gz.json").read_text())
    assert record["settings"]["solver"]["iterations"] == [3, 2]
    assert record["inputs"]["config"]["sha256"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--set", "serch_range=1"), "no setting serch_range; did you mean search_range?"),
        (("--set", "search_range=0"), "search_range must be a number above 0, got 0"),
        (("--set", "search_range"), "'search_range' must have the form key=value"),
        (("--config", "nowhere.yaml"), "cannot read the configuration 'nowhere.yaml'"),
    ],
)
def test_a_wrong_setting_is_one_line(
    files: Files, tmp_path: Path, words: tuple[str, str], expected: str
) -> None:
    assert expected in error_of("register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("preset: acurate\n", "no preset named acurate; did you mean accurate?"),
        ("preset: 3\n", "no preset named 3; available"),
        ("iterations: 3\n", "iterations must be a list of 2 whole numbers of at least 0, got 3"),
    ],
)
def test_a_wrong_file_is_named(files: Files, tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    message = error_of("register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", "--config", path)
    assert f"'{path}': {expected}" in message


def test_affine_as_the_start_contradicts_a_rigid_result(files: Files, tmp_path: Path) -> None:
    words = ("--preset", "rigid", "--init", "affine", "--quiet")
    message = error_of("register", files.fixed, files.moving, "-o", tmp_path / "t.tfm", *words)
    assert "init 'affine' contradicts linear_model 'rigid'" in message


def test_the_log_has_what_verbose_says_and_warnings_and_errors(files: Files, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    words = ("register", files.fixed, files.moving, "--init", "centre", "--preset", "linear", "--log", log)
    quiet = run(*words, "-o", tmp_path / "a.tfm", "--quiet")
    assert quiet.output == ""
    first = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|DEBUG) ", line) for line in first)
    assert any("linear start: centre" in line for line in first)
    said = run(*words, "-o", tmp_path / "b.tfm", "--verbose").stderr
    second = log.read_text().splitlines()[len(first) :]
    assert [re.sub(r"^\S+ \S+ \w+ ", "", line) for line in second] == said.splitlines()[1:]
    empty = tmp_path / "empty.nii.gz"
    image = sitk.ReadImage(str(files.fixed))
    sitk.WriteImage(image * 0, str(empty))
    message = error_of(*words, "-o", tmp_path / "c.tfm", "--fixed-mask", empty, "--quiet")
    last = log.read_text().splitlines()[-1]
    assert last.split(" ERROR ")[1] == message.removeprefix("error: ")


def test_a_log_that_cannot_be_written(files: Files, tmp_path: Path) -> None:
    words = ("register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", "--log")
    assert "must end in .log" in error_of(*words, files.moving)
    assert "create it first" in error_of(*words, tmp_path / "missing" / "x.log")


def test_a_pipe_hears_of_long_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from regkit.cli import console

    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress(quiet=False) as report:
        assert report is not None
        for now in (10.0, 29.0, 31.0, 40.0, 62.0):
            report("fine", now / 100)
    assert capsys.readouterr().err.splitlines() == ["fine: 31% done", "fine: 62% done"]


def test_help_names_all(files: Files) -> None:
    assert "Method" in run("register", "--help").stdout
    assert "one of" in usage_error_of("rigid", files.fixed, files.moving, "-o", "t.tfm", "--model", "bspline")
    text: Any = run("rigid", "--help").stdout
    assert "similarity" in text
