"""``regkit finetune`` and ``regkit segment`` from end to end, on phantoms and with a tiny network."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import error_of, run, run_program, usage_error_of
from segmentation_cases import labelled, tiny_weights, write_labelled

import regkit
from regkit.cli import finetune, segment
from regkit.core.errors import RegkitError
from regkit.io.images import load_image, load_labels
from regkit.io.labelnames import read_label_names
from regkit.io.outputs import save_image
from regkit.segmentation.files import labelled_files, split
from regkit.segmentation.model import Segmenter
from regkit.segmentation.training import INITS, FinetuneTrainer, Finetuning
from regkit.training.checkpoint import checkpoints


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled volumes, names of labels as nnU-Net has them, and weights."""
    folder = tmp_path_factory.mktemp("data")
    write_labelled(folder / "images", folder / "labels", 5)
    names = {"labels": {"background": 0, "outer": 2, "inner": 7}}
    (folder / "dataset.json").write_text(json.dumps(names))
    tiny_weights(folder / "tiny.safetensors")
    return folder


@pytest.fixture
def words(data: Path) -> tuple[object, ...]:
    """The command, but for the folder of the model."""
    return (
        "finetune", "--images", data / "images", "--labels", data / "labels", "--shots", 3,
        "--label-names", data / "dataset.json", "--weights", data / "tiny.safetensors", "--steps", 20,
        "--batch", 1, "--patch", 16, "--learning-rate", 0.01, "--device", "cpu", "--threads", 1,
    )  # fmt: skip


def test_as_programs(data: Path, words: tuple[object, ...], tmp_path: Path) -> None:
    image, labels = data / "images" / "case0_0000.nii.gz", data / "labels" / "case0.nii.gz"
    found, moved = tmp_path / "found.nii.gz", tmp_path / "moved.nii.gz"
    run_program(*words, "--steps", 1, "-o", tmp_path / "model")
    run_program("segment", tmp_path / "model", image, "-o", found)
    run_program("propagate", "--atlas", image, "--atlas-labels", labels, image, "-o", moved)
    for path in (found, moved):
        assert load_labels(path, "labels").grid == load_image(image, "image").grid


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command of the issue leaves, in few steps."""
    folder = tmp_path_factory.mktemp("run") / "model"
    regkit.finetune(
        [(data / "images" / f"case{k}_0000.nii.gz", data / "labels" / f"case{k}.nii.gz") for k in range(3)],
        folder, label_names={2: "outer", 7: "inner"}, weights=data / "tiny.safetensors", device="cpu",
        threads=1, settings=Finetuning(patch=16, batch=1, steps=2),
    )  # fmt: skip
    return folder


def test_from_labelled_volumes_to_the_labels_of_another(
    data: Path, words: tuple[object, ...], tmp_path: Path
) -> None:
    """Which Python finds the same."""
    folder = tmp_path / "model"
    result = run(*words, "-o", folder, "--json")
    chosen, held = split(labelled_files(data / "images", data / "labels"), 3, None, 0)
    assert result.stderr.splitlines()[:2] == [
        f"train on: {', '.join(case.name for case in chosen)}",
        f"validate on: {', '.join(case.name for case in held)}",
    ]
    assert "step 10 of 20" in result.stderr
    assert "warning" not in result.stderr
    found = json.loads(result.stdout)
    assert (found["step"], found["steps"], found["finished"]) == (20, 20, True)
    assert found["best"]["labels"].keys() == {"outer", "inner"}
    assert found["model"] == str(folder / "model.safetensors")
    assert found["picture"] == str(folder / "loss.png")
    assert {path.name for path in folder.iterdir()} >= {
        "model.safetensors",
        "loss.png",
        "log.csv",
        "config.json",
    }

    image, out, sure = (
        data / "images" / f"{held[0].name}_0000.nii.gz",
        tmp_path / "out.nii.gz",
        tmp_path / "c.mha",
    )
    result = run(
        "segment", folder, image, "-o", out, "--confidence", sure, "--json", "--device", "cpu", "--threads", 1
    )
    assert result.stderr == ""
    told = json.loads(result.stdout)
    assert told["image"] == str(image)
    assert told["outputs"] == {"labels": str(out), "confidence": str(sure)}
    grid = load_image(image, "image").grid
    labels = load_labels(out, "labels", grid, empty=True).array
    for row, (label, name) in zip(told["labels"], ((2, "outer"), (7, "inner")), strict=True):
        count = int((labels == label).sum())
        assert row == {"label": label, "name": name, "voxels": count, "ml": pytest.approx(count * 0.008)}

    expected = regkit.segment(folder, image, device="cpu", threads=1)
    np.testing.assert_array_equal(labels, expected.labels.array)
    np.testing.assert_array_equal(load_image(sure, "confidence").array, expected.confidence.array)


def test_a_run_that_was_stopped_and_the_tables(
    words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a model however early it was, and no success whatever is printed; the same command goes on."""
    plain = FinetuneTrainer.advance

    def advance(self: FinetuneTrainer, done: float) -> Any:
        if self.step in (0, 1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, done)

    monkeypatch.setattr(FinetuneTrainer, "advance", advance)
    folder = tmp_path / "model"
    result = run(*words, "-o", folder, code=130)
    stopped = "stopped after step {} of 20; run the same command again to resume"
    assert result.stdout.splitlines() == [f"wrote {folder / 'model.safetensors'}"]
    assert result.stderr.splitlines()[-1] == stopped.format(1)
    assert checkpoints(folder)
    assert Segmenter.load(folder).task.names == ("outer", "inner")
    result = run(*words, "-o", folder, "--json", "-q", code=130)
    told = json.loads(result.stdout)
    assert (told["step"], told["finished"], told["before"]) == (2, False, 1)
    assert result.stderr == stopped.format(2) + "\n"
    result = run(*words, "-o", folder, "-q", code=130)
    assert (result.stdout, result.stderr) == ("", stopped.format(3) + "\n")
    lines = run(*words, "-o", folder).stdout.splitlines()
    assert lines[0].split()[:3] == ["label", "Dice,", "step"]
    assert [line.split()[0] for line in lines[1:4]] == ["outer", "inner", "mean"]
    assert lines[4:] == [f"wrote {folder / 'model.safetensors'}", f"wrote {folder / 'loss.png'}"]
    again = run(*words, "-o", folder).stdout.splitlines()  # there is nothing left to do
    assert again == [*lines[:4], f"finished already, at step 20 of 20: {folder / 'model.safetensors'}"]
    assert run(*words, "-o", folder, "-q").output == ""
    changed = error_of(*words, "-o", folder, "-q", "--seed", 1)
    assert "is of another configuration: " in changed
    assert "settings.seed" in changed


def test_without_validation_there_is_a_warning(words: tuple[object, ...], tmp_path: Path) -> None:
    result = run(*words, "--validation", 0, "--steps", 1, "-o", tmp_path / "model", "--init", "random")
    assert "validate on: nothing" in result.stderr
    assert "warning: no volume is held out: the last weights are kept" in result.stderr
    assert result.stdout == f"wrote {tmp_path / 'model' / 'model.safetensors'}\n"


def test_every_argument_reaches_finetune(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(training: Any, output: Path, validation: Any, **options: Any) -> None:
        given.update(options, training=training, output=output, validation=validation)
        raise KeyboardInterrupt

    monkeypatch.setattr("regkit.segmentation.training.finetune", record, raising=False)
    (tmp_path / "names.json").write_text('{"0": "background", "7": "inner"}')
    run(
        "finetune", "--images", data / "images", "--labels", data / "labels", "--output", tmp_path / "model",
        "--shots", 2, "--validation", 1, "--label-names", tmp_path / "names.json", "--init", "random",
        "--weights", data / "tiny.safetensors", "--steps", 7, "--minutes", 2.5, "--spacing", 1.5,
        "--patch", 48, "--batch", 3, "--learning-rate", 0.5, "--device", "cpu", "--threads", 2,
        "--seed", 9, "--contrast", "any", "-q", code=130,
    )  # fmt: skip
    chosen, held = (
        [(case.image, case.labels) for case in cases]
        for cases in split(labelled_files(data / "images", data / "labels"), 2, 1, 9)
    )
    report = given.pop("report")
    assert report(1, {}, 0.1) is None
    assert given == {
        "training": chosen, "output": tmp_path / "model", "validation": held, "label_names": {7: "inner"},
        "settings": Finetuning("random", 1.5, 48, 3, 7, 0.5, "any", 9), "weights": data / "tiny.safetensors",
        "minutes": 2.5, "device": "cpu", "threads": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        {"2": "outer", "7": "inner"},
        {"name": "Task09", "labels": {"0": "background", "2": "outer", "7": "inner"}},  # the Decathlon's
        {"channel_names": {}, "labels": {"background": 0, "outer": 2, "inner": 7}},  # of nnU-Net
    ],
)
def test_names_of_labels_as_data_sets_have_them(tmp_path: Path, content: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert read_label_names(tmp_path / "dataset.json") == {2: "outer", 7: "inner"}


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    for content in ({"1": "liver", "2": ""}, {"1": "liver", "2": "  "}, {"labels": {"": 2, "liver": 1}}):
        path.write_text(json.dumps(content))
        with pytest.raises(RegkitError, match=f"label names '{path}': the name of label 2 is empty"):
            read_label_names(path)
    path.write_text('{"0": "", "1": "liver"}')  # background
    assert read_label_names(path) == {1: "liver"}


def test_the_defaults_are_those_of_python() -> None:
    ours = signature(finetune.command).parameters
    for field in fields(Finetuning):
        assert ours[field.name].default == field.default
    for function, command in ((regkit.finetune, finetune.command), (regkit.segment, segment.command)):
        theirs = signature(command).parameters
        for name, parameter in signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in ("settings", "report", "progress"):
                assert theirs[name].default == parameter.default
    assert ours["init"].default == INITS[0]


def test_the_help_tells_of_both() -> None:
    listed = run("--help").stdout
    assert "finetune" in listed
    assert "segment" in listed
    for command in (finetune.command, segment.command):
        text = run(command.__module__.rsplit(".", 1)[-1], "--help").stdout
        for name in signature(command).parameters:
            option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
            assert option in text or f" {name.upper()} " in text


def test_wrong_command_lines(data: Path, words: tuple[object, ...], tmp_path: Path) -> None:
    out = ("-o", tmp_path / "model")
    assert "--output" in usage_error_of(*words)
    assert "--labels" in usage_error_of("finetune", "--images", data / "images", *out)
    assert "zeros" in usage_error_of(*words, *out, "--init", "zeros")
    for option in ("--shots", "--steps", "--batch", "--patch"):
        assert option in usage_error_of(*words, *out, option, 0)
    assert "--validation" in usage_error_of(*words, *out, "--validation", -1)
    assert "--output" in usage_error_of("segment", data, data / "images" / "case0_0000.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_used(
    data: Path, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, nothing written; what is named last counts."""
    images, maps, out = tmp_path / "images", tmp_path / "labels", ("-o", tmp_path / "model", "-q")
    write_labelled(images, maps, 3)
    here = (*words, "--images", images, "--labels", maps, "--shots", 2, *out)
    grid = load_image(images / "case0_0000.nii.gz", "image").grid
    labels = {k: load_labels(maps / f"case{k}.nii.gz", "labels") for k in range(3)}
    chosen, held = split(labelled_files(images, maps), 2, None, 0)
    first, last = chosen[0].labels, held[0].labels
    kept = {path: path.read_bytes() for path in (first, last)}
    far = replace(labels[0], grid=replace(grid, origin=(9.0, 9.0, 9.0)))
    ones = replace(labels[0], array=np.full_like(labels[0].array, 7))
    partly = replace(labels[0], array=np.where(labels[0].array == 7, 2, labels[0].array))
    for path, content, message in (
        (first, far, f"labels of training image 1 '{first}' does not lie on the voxels of its image"),
        (first, ones, f"labels of training image 1, '{first.name}': every voxel is 7"),
        (last, partly, "'inner' (label 7) is in no volume to validate on"),
    ):
        save_image(content.to_sitk(), path)
        assert message in error_of(*here)
        path.write_bytes(kept[path])
    (maps / "case1.nii.gz").rename(maps / "case11.nii.gz")
    assert "1 of 3 images have no label map" in error_of(*here)
    assert "does not exist" in error_of(*here, "--images", tmp_path / "no")
    assert "too few for 9 to train on" in error_of(*words, *out, "--shots", 9)
    assert "minutes must be above 0" in error_of(*words, *out, "--minutes", 0)
    assert "spacing must be a positive" in error_of(*words, *out, "--spacing", 0)
    assert "learning rate must be positive" in error_of(*words, *out, "--learning-rate", -1)
    assert "patch must be at least" in error_of(*words, *out, "--patch", 15)
    (tmp_path / "names.json").write_text('{"whole": [2, 7]}')
    assert "must be a JSON object" in error_of(*words, *out, "--label-names", tmp_path / "names.json")
    monkeypatch.setattr("regkit.segmentation.monai_parts.find_spec", lambda name: None)
    assert "segmentation needs MONAI, which is not installed: pip install" in error_of(*words, *out)
    assert not (tmp_path / "model").exists()


def test_the_table_of_a_segmentation(data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.nrrd"
    given = ("segment", model, data / "images" / "case4_0000.nii.gz", "-o", out, "--device", "cpu")
    lines = run(*given).stdout.splitlines()
    assert lines[0].split() == ["label", "number", "voxels", "ml"]
    assert [line.split()[:2] for line in lines[1:3]] == [["outer", "2"], ["inner", "7"]]
    count = int((load_labels(out, "labels", empty=True).array == 2).sum())
    assert lines[1].split()[2:] == [str(count), f"{count * 0.008:.1f}"]
    assert lines[3:] == [f"wrote {out}"]
    assert run(*given, "--overwrite", "-q").output == ""


def test_outputs_are_checked_first(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "regkit.segmentation.inference.segment", lambda *_, **__: pytest.fail("it began"), raising=False
    )
    old, new = tmp_path / "old.nii.gz", tmp_path / "new.nii.gz"
    old.write_text("old")
    image = data / "images" / "case4_0000.nii.gz"
    assert "exists already; add --overwrite" in error_of("segment", model, image, "-o", old)
    assert "exists already" in error_of("segment", model, image, "-o", new, "--confidence", old)
    assert "twice" in error_of("segment", model, image, "-o", new, "--confidence", new)
    assert "must end in .nii.gz" in error_of("segment", model, image, "-o", tmp_path / "labels.png")
    assert "it is one of the inputs" in error_of("segment", model, image, "-o", image, "--overwrite")
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_models_and_images_that_cannot_be_used(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, out = data / "images" / "case4_0000.nii.gz", ("-o", tmp_path / "labels.nii.gz")
    assert f"the model '{tmp_path / 'no'}' does not exist" in error_of(
        "segment", tmp_path / "no", image, *out
    )
    assert f"no model in '{data}'" in error_of("segment", data, image, *out)
    told = error_of("segment", data / "tiny.safetensors", image, *out)
    assert "holds a network that does not segment" in told
    assert "does not exist" in error_of("segment", model, tmp_path / "no.nii.gz", *out)
    told = error_of(
        "register",
        image,
        image,
        "-o",
        tmp_path / "warp.nii.gz",
        "--weights",
        model / "model.safetensors",
        "-q",
    )
    assert "is a model of regkit finetune" in told
    monkeypatch.setattr("regkit.segmentation.monai_parts.find_spec", lambda name: None)
    assert "segmentation needs MONAI" in error_of("segment", model, image, *out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_on_a_terminal(
    data: Path, model: Path, tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regkit.cli.console._is_terminal", lambda: terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    image, _ = labelled(7)
    save_image(image.to_sitk(), tmp_path / "image.nii")
    result = run(
        "segment", model, tmp_path / "image.nii", "-o", tmp_path / "out.nii", "--device", "cpu", "--json"
    )
    assert json.loads(result.stdout)["outputs"]
    assert ("segmentation" in result.stderr) is terminal
