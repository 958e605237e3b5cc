"""``regkit register`` from end to end, on a phantom of coarse voxels."""

from __future__ import annotations

import json
import re
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import Files, error_of, run, usage_error_of, write_phantom

import regkit.cli.register as cli_register
import regkit.registration
from regkit.core.choices import DEFAULT_FEATURES
from regkit.core.errors import RegkitError
from regkit.io.formats import read_linear
from regkit.io.images import load_image, load_labels
from regkit.io.outputs import save_image
from regkit.warp import Warp


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def results(files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a registration with every output, and the JSON it printed."""
    folder = tmp_path_factory.mktemp("results")
    result = run(
        "register", files.fixed, files.moving,
        "-o", folder / "warp.nii.gz", "--moved", folder / "moved.nii.gz",
        "--inverse", folder / "inverse.nii.gz", "--linear", folder / "linear.tfm",
        "--moved-labels", folder / "moved_labels.nii.gz", "--uncertainty", folder / "mm.nii.gz",
        "--figure", folder / "figure.png", "--fixed-labels", files.fixed_labels,
        "--moving-labels", files.moving_labels, "--label-names", files.names, "--threads", 1, "--json",
    )  # fmt: skip
    first, second = result.stderr.splitlines()
    assert first == f"fixed={files.fixed} moving={files.moving}"
    assert re.fullmatch(r"needs about [\d.]+ GB of memory", second)
    return folder, json.loads(result.stdout)


def test_the_measures(files: Files, results: tuple[Path, dict[str, Any]]) -> None:
    folder, found = results
    assert found["fixed"] == str(files.fixed)
    assert found["moving"] == str(files.moving)
    dice = found["metrics"]["mean_dice"]
    assert dice["before"] < 0.2
    assert dice["after"] > 0.7
    assert found["metrics"]["folding_percent"] == 0
    assert {row["name"] for row in found["metrics"]["labels"]} >= {"liver", "spleen"}
    assert found["settings"]["threads"] == 1
    stages = [seconds for stage, seconds in found["seconds"].items() if stage != "total"]
    assert sum(stages) == pytest.approx(found["seconds"]["total"])
    assert list(found["seconds"])[-2:] == ["write", "total"] and found["seconds"]["write"] > 0.01
    memory = found["memory_mb"]
    assert memory["peak"] >= memory["write"] >= memory["load"] > 100
    assert found["verdict"]["level"] == "PASS"
    assert {gate["name"] for gate in found["verdict"]["gates"]} >= {"copies", "side", "doubt", "labels"}
    names = ["warp", "moved", "moved_labels", "inverse", "linear", "uncertainty", "figure"]
    assert list(found["outputs"]) == names
    written = [Path(path).name for path in found["outputs"].values()]
    record = f"{Path(found['outputs']['warp']).name}.json"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*written, record])


def test_itk_resamples_through_the_files_as_regkit_did(
    files: Files, results: tuple[Path, dict[str, Any]]
) -> None:
    folder, _ = results
    field = sitk.ReadImage(str(folder / "warp.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    fixed, moving = sitk.ReadImage(str(files.fixed)), sitk.ReadImage(str(files.moving), sitk.sitkFloat32)
    lowest = float(sitk.GetArrayViewFromImage(moving).min())
    theirs = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, lowest)
    ours = sitk.ReadImage(str(folder / "moved.nii.gz"))
    assert ours.GetSize() == fixed.GetSize()
    difference = sitk.GetArrayFromImage(ours) - sitk.GetArrayFromImage(theirs)
    assert np.abs(difference).max() <= 1e-4 * np.ptp(sitk.GetArrayViewFromImage(moving))

    labels = sitk.ReadImage(str(files.moving_labels))
    theirs = sitk.Resample(labels, fixed, transform, sitk.sitkNearestNeighbor, 0)
    ours = sitk.ReadImage(str(folder / "moved_labels.nii.gz"))
    assert ours.GetPixelID() == sitk.sitkUInt8
    assert (sitk.GetArrayViewFromImage(ours) != sitk.GetArrayViewFromImage(theirs)).mean() < 1e-4


def test_the_other_files(files: Files, results: tuple[Path, dict[str, Any]]) -> None:
    folder, found = results
    warp, inverse = Warp.load(folder / "warp.nii.gz"), Warp.load(folder / "inverse.nii.gz")
    assert inverse.grid.same_as(load_image(files.moving, "moving").grid)
    inside = warp.grid.world_points()[8:-8, 8:-8, 8:-8]
    error = inverse.transform_points(warp.transform_points(inside)) - inside
    assert np.median(np.linalg.norm(error, axis=-1)) < 0.5  # mm, of voxels of 8
    np.testing.assert_allclose(read_linear(folder / "linear.tfm"), found["linear"], atol=1e-6)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    doubt = load_image(folder / "mm.nii.gz", "doubt")
    assert doubt.grid.same_as(warp.grid)
    assert 0 < doubt.array.min() < np.median(doubt.array) < 128  # mm: 8 cells of two voxels of 8


def test_noise_fails_and_strict_says_so_after_all_is_written(files: Files, tmp_path: Path) -> None:
    noise = load_image(files.moving, "moving")
    noise.array[:] = np.random.default_rng(0).standard_normal(noise.array.shape)
    save_image(noise.to_sitk(), tmp_path / "noise.nii.gz")
    words = ("-o", tmp_path / "warp.nii.gz", "--preset", "linear", "--init", "none", "--overwrite")
    failed = run("register", files.fixed, tmp_path / "noise.nii.gz", *words, "--strict", code=3)
    lines = failed.stdout.splitlines()
    assert any(line.startswith("FAIL copies: ") for line in lines)
    assert lines[-1] == "verdict  FAIL"
    assert Warp.load(tmp_path / "warp.nii.gz").grid.same_as(load_image(files.fixed, "fixed").grid)
    run("register", files.fixed, tmp_path / "noise.nii.gz", *words, "--quiet")  # FAIL is no error by itself
    run("register", files.fixed, files.fixed, *words, "--strict", "--quiet")


def test_a_linear_start_says_nothing_of_doubt(files: Files, tmp_path: Path) -> None:
    result = run(
        "register", files.fixed, files.moving, "-o", tmp_path / "warp.nii.gz", "--preset", "linear",
        "--uncertainty", tmp_path / "mm.nii.gz", code=2,
    )  # fmt: skip
    assert "--uncertainty" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_tables(files: Files, tmp_path: Path) -> None:
    result = run(
        "register", files.fixed, files.moving, "-o", tmp_path / "warp.nii.gz", "--preset", "linear",
        "--fixed-labels", files.fixed_labels, "--moving-labels", files.moving_labels,
        "--label-names", files.names,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    liver = next(line.split() for line in lines if line.startswith("liver"))
    assert len(liver) == 6
    assert float(liver[3]) > float(liver[1])  # Dice after and before
    assert any(line.startswith("mean") for line in lines)
    assert any(line.startswith("folding") and "0.00 %" in line for line in lines)
    assert any(line.startswith("time") and "linear" in line for line in lines)
    assert f"wrote {tmp_path / 'warp.nii.gz'}" in lines
    assert [line.split()[0] for line in lines if line.endswith(" PASS")][:5] == [
        "copies", "inside", "side", "turn", "place"
    ]  # fmt: skip
    assert any(line.startswith("labels") for line in lines)  # the gate that only labels give
    assert lines[-1] == "verdict  PASS"


def test_quiet_prints_nothing(files: Files, tmp_path: Path) -> None:
    words = ("--init", "none", "--preset", "linear", "--quiet")
    result = run("register", files.fixed, files.moving, "-o", tmp_path / "warp.h5", *words)
    assert result.output == ""
    assert (Warp.load(tmp_path / "warp.h5").field == 0).all()


def test_a_transform_file_as_the_start(
    files: Files, results: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, found = results
    words = ("--init", folder / "linear.tfm", "--preset", "linear", "--json")
    result = run("register", files.fixed, files.moving, "-o", tmp_path / "warp.mha", *words)
    np.testing.assert_allclose(json.loads(result.stdout)["linear"], found["linear"], atol=1e-6)
    warp = Warp.load(tmp_path / "warp.mha")
    start = warp.grid.world_points()[::5, ::5, ::5]
    matrix = np.array(found["linear"])
    np.testing.assert_allclose(
        warp.transform_points(start), start @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-3
    )


def test_every_argument_reaches_register(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def record(fixed: Path, moving: Path, **options: Any) -> None:
        given.update(options, fixed=fixed, moving=moving)
        raise KeyboardInterrupt

    monkeypatch.setattr("regkit.registration.register", record, raising=False)
    run(
        "register", files.fixed, files.moving, "-o", tmp_path / "w.npz",
        "--fixed-mask", files.fixed_labels, "--moving-mask", files.moving_labels,
        "--fixed-labels", files.fixed_labels, "--moving-labels", files.moving_labels,
        "--label-names", files.names, "--init", "centre", "--features", "network", "--preset", "accurate",
        "--set", "search_range=16.0",
        "--weights", files.names,
        "--ct-window", "-200", "300",
        "--device", "cpu", "--threads", 2, "--seed", 7,
        code=130,
    )  # fmt: skip
    names = given.pop("label_names")
    assert names[1] == "liver"
    assert callable(given.pop("progress"))
    assert given == {
        "fixed": [files.fixed], "moving": [files.moving],
        "fixed_landmarks": None, "moving_landmarks": None, "guide_labels": None,
        "fixed_mask": files.fixed_labels, "moving_mask": files.moving_labels,
        "fixed_labels": files.fixed_labels, "moving_labels": files.moving_labels,
        "init": "centre", "features": "network", "preset": "accurate",
        "settings": {"search_range": 16.0}, "ct_window": (-200.0, 300.0),
        "weights": files.names,
        "device": "cpu", "threads": 2, "seed": 7,
        "memory": None, "outputs": [],
    }  # fmt: skip


def test_the_command_compares_what_the_function_does() -> None:
    assert signature(cli_register.command).parameters["features"].default == DEFAULT_FEATURES


@pytest.mark.parametrize(
    ("spacing", "moving", "told"),
    [
        (1.2, 0, "MIND and intensities: the network does not know voxels as fine as 1.2 mm"),
        (2.0, 0, "MIND and intensities: they leave no doubt in this pair, so the network was not asked"),
        (2.0, 1, "MIND alone: the network recognises nothing in this pair"),
    ],
)
def test_a_network_that_is_left_out_is_told(tmp_path: Path, spacing: float, moving: int, told: str) -> None:
    files = [tmp_path / f"{seed}.nii.gz" for seed in (0, 1)]
    for seed, file in enumerate(files):
        image = sitk.GetImageFromArray(np.random.default_rng(seed).random((24, 24, 24), np.float32))
        image.SetSpacing((spacing,) * 3)
        sitk.WriteImage(image, file)
    result = run(
        "register", files[0], files[moving], "--init", "none", "--preset", "fast", "-o", tmp_path / "w.nii.gz"
    )
    output = " ".join(result.stdout.split())
    assert told in output


def test_weights_bring_the_network_in(files: Files, random_weights: Path, tmp_path: Path) -> None:
    words = ("register", files.fixed, files.moving, "--init", "centre", "--preset", "fast", "--threads", 1)
    result = run(*words, "-o", tmp_path / "w.nii.gz", "--weights", random_weights, "--json")
    settings = json.loads(result.stdout)["settings"]
    assert settings["features"] == "network+mind"
    assert settings["weights"]["file"] == "random.safetensors"
    assert len(settings["weights"]["sha256"]) == 64
    assert json.loads(result.stdout)["metrics"]["folding_percent"] == 0


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a registration begins."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the registration began")

    monkeypatch.setattr(regkit.registration, "register", fail)
    monkeypatch.setattr("regkit.registration.register", fail, raising=False)


@pytest.mark.usefixtures("no_work")
class TestOutputsAreCheckedFirst:
    def test_existing_files_stay(self, files: Files, tmp_path: Path) -> None:
        for option, name in (("-o", "a.nii.gz"), ("--moved", "b.nii.gz"), ("--figure", "c.png")):
            (tmp_path / name).write_text("old")
            words = () if option == "-o" else ("-o", tmp_path / "new.nii.gz")
            message = error_of("register", files.fixed, files.moving, *words, option, tmp_path / name)
            assert "exists already; add --overwrite" in message
            assert name in message
            assert (tmp_path / name).read_text() == "old"

    def test_inputs_stay_even_with_overwrite(self, files: Files, tmp_path: Path) -> None:
        before = files.moving.read_bytes()
        link = tmp_path / "link.nii.gz"
        link.symlink_to(files.moving)
        for path in (
            files.moving,
            files.moving.parent / ".." / files.moving.parent.name / files.moving.name,
            link,
        ):
            message = error_of("register", files.fixed, files.moving, "-o", path, "--overwrite")
            assert "it is one of the inputs" in message
        assert files.moving.read_bytes() == before

    def test_outputs_do_not_coincide(self, files: Files, tmp_path: Path) -> None:
        same = tmp_path / "x.nii.gz"
        assert "twice" in error_of("register", files.fixed, files.moving, "-o", same, "--moved", same)

    @pytest.mark.parametrize(
        ("option", "name", "expected"),
        [
            ("-o", "warp.png", "must end in .nii.gz"),
            ("-o", "missing/warp.nii.gz", "create it first"),
            ("--moved", "moved.png", "must end in .nii.gz"),
            ("--linear", "linear.nii.gz", "must end in .tfm"),
            ("--figure", "figure.jpg", "must end in .png"),
        ],
    )
    def test_names_that_cannot_be_written(
        self, files: Files, tmp_path: Path, option: str, name: str, expected: str
    ) -> None:
        words = () if option == "-o" else ("-o", tmp_path / "warp.nii.gz")
        assert expected in error_of("register", files.fixed, files.moving, *words, option, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_written(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
        assert "no permission" in error_of("register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz")

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("--init", "best"), "'best' is none of auto"),
            (("--preset", "best"), "best"),
            (("--device", "tpu"), "tpu"),
            (("--threads", "0"), "threads"),
            (("--seed", "-1"), "seed"),
            (("--ct-window", "5"), "ct-window"),
            (("--moved-labels", "x.nii.gz"), "needs --moving-labels"),
            (("--fixed-labels", "x.nii.gz"), "needs --moving-labels"),
            (("--moving-labels", "x.nii.gz"), "needs --fixed-labels or --moved-labels"),
            (("--label-names", "x.json"), "needs --fixed-labels"),
            (("--nonsense",), "nonsense"),
        ],
    )
    def test_wrong_command_lines(
        self, files: Files, tmp_path: Path, words: tuple[str, ...], expected: str
    ) -> None:
        assert expected in usage_error_of(
            "register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", *words
        )

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("{", "not valid JSON"),
            ('["liver"]', "must be a JSON object"),
            ('{"liver": 1}', "must be a JSON object"),
            ('{"1": 2}', "must be a JSON object"),
            ("{}", "must be a JSON object"),
            (None, "cannot be read"),
        ],
    )
    def test_label_names(self, files: Files, tmp_path: Path, content: str | None, expected: str) -> None:
        names = tmp_path / "names.json"
        if content is not None:
            names.write_text(content)
        message = error_of(
            "register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", "--label-names", names,
            "--fixed-labels", files.fixed_labels, "--moving-labels", files.moving_labels,
        )  # fmt: skip
        assert expected in message
        assert str(names) in message


def test_a_missing_argument_is_a_usage_error(files: Files) -> None:
    assert "MOVING" in usage_error_of("register", files.fixed)
    assert "--output" in usage_error_of("register", files.fixed, files.moving)


def test_overwrite_replaces(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "warp.nii.gz"
    path.write_text("old")
    run(
        "register",
        files.fixed,
        files.moving,
        "-o",
        path,
        "--init",
        "none",
        "--preset",
        "linear",
        "--overwrite",
    )
    assert Warp.load(path).grid.same_as(load_image(files.fixed, "fixed").grid)


def test_labels_of_the_moving_image_alone(files: Files, tmp_path: Path) -> None:
    run(
        "register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz",
        "--init", "none", "--preset", "linear",
        "--moving-labels", files.moving_labels, "--moved-labels", tmp_path / "l.nii.gz",
    )  # fmt: skip
    moved = load_labels(tmp_path / "l.nii.gz", "moved labels", load_image(files.fixed, "fixed").grid)
    assert (moved.array == 1).any()


def test_the_bar_on_a_terminal(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages and their share of the whole appear on stderr, and stdout stays machine-readable."""
    monkeypatch.setattr("regkit.cli.console._is_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    words = ("--init", "none", "--preset", "linear", "--json")
    result = run("register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", *words)
    assert json.loads(result.stdout)["outputs"]
    assert "verdict" in result.stderr
    assert "%" in result.stderr
    monkeypatch.undo()
    result = run("register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", *words, "--overwrite")
    first, second = result.stderr.splitlines()
    assert first == f"fixed={files.fixed} moving={files.moving}"
    assert re.fullmatch(r"needs about [\d.]+ GB of memory", second)


def test_outputs_appear_together_or_not_at_all(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure comes last; where it cannot be drawn, an old warp stays beside its old moved image."""

    def fail(*_: object) -> None:
        raise RegkitError("the disk is full")

    monkeypatch.setattr("regkit.viz.figure.registration_figure", fail)
    (tmp_path / "warp.nii.gz").write_text("of an earlier run")
    words = ("register", files.fixed, files.moving, "-o", tmp_path / "warp.nii.gz", "--overwrite", "-q")
    more = ("--moved", tmp_path / "moved.nii.gz", "--figure", tmp_path / "f.png", "--preset", "linear")
    assert "the disk is full" in error_of(*words, *more, "--threads", 1, "--init", "none")
    assert [path.name for path in tmp_path.iterdir()] == ["warp.nii.gz"]
    assert (tmp_path / "warp.nii.gz").read_text() == "of an earlier run"
