"""``regkit pretrain`` from a configuration to a registration, and all that can go wrong on the way."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_cases import error_of, run, usage_error_of, write_phantom

from regkit.features.unet import Architecture, UNet
from regkit.features.weights import Channels, Reading, load_network, save_weights
from regkit.pretrain import run as running
from regkit.pretrain import train as training
from regkit.pretrain.validation import Validation
from regkit.synthesis.structures import HEAD, NECK, STRUCTURES
from regkit.training import plot, session
from regkit.training.checkpoint import checkpoints, load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
TINY = """\
# As small as a run can be.
width: 2
levels: 2
steps: 40
batch: 1
warmup: 2
pairs.size: 16
pairs.offset: 4
pairs.ensembles.size: 32
pairs.ensembles.details: 4
loss.anchors: 16
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One template: a box of 6 x 6 x 6 voxels, its faces empty."""
    mask = np.zeros((8, 8, 8), bool)
    mask[1:-1, 1:-1, 1:-1] = True
    bits = np.packbits(mask)
    path = tmp_path / "templates.npz"
    np.savez(
        path, bits=bits, offsets=np.array([0, len(bits)]), shapes=np.array([[8, 8, 8]]),
        names=np.array(["box"]), sources=np.array(["test"]),
    )  # fmt: skip
    return path


def _stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM, as if it came from outside, in this step."""
    advance = training.PretrainTrainer.advance

    def stopping(self: training.PretrainTrainer, *args: object) -> dict[str, torch.Tensor]:
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(training.PretrainTrainer, "advance", stopping)


def test_a_run_is_stopped_gone_on_with_and_registers(
    config: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(TINY + "templates: 0.5\n")
    folder = tmp_path / "runs" / "tiny"
    words = ("pretrain", "--config", config, "-o", folder, "--templates", archive, "--device", "cpu")
    with monkeypatch.context() as patch:
        _stop_after(patch, 25)
        stopped = run(*words, "--threads", 1, code=130)
    weights = folder / "tiny.safetensors"
    assert stopped.stdout.splitlines() == [
        f"wrote {weights}",
        f"wrote {folder / 'loss.png'}",
        "stopped after step 25 of 40; run the same command again to resume",
    ]
    assert stopped.stderr.startswith("step 10 of 40  affinity ")
    assert [path.name for path in checkpoints(folder)] == ["step-00000025"]
    assert load_network(weights)[1]["step"] == "25"

    done = run(*words)
    assert done.stdout == f"wrote {weights}\nwrote {folder / 'loss.png'}\n"
    with (folder / "log.csv").open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["10", "20", "30", "40"]
    network, provenance = load_network(weights)
    assert network.architecture.width == 2
    assert provenance["name"] == "tiny"
    assert provenance["step"] == "40"
    origin = {"templates": ["templates.npz"], "anatomies": [], "start": None}
    assert json.loads(provenance["origin"]) == origin
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]

    files = write_phantom(tmp_path, spacing=10.0)
    result = run(
        "register", files.fixed, files.moving, "-o", tmp_path / "warp.nii.gz", "--weights", weights,
        "--features", "network", "--preset", "fast", "--threads", 1, "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["settings"]["weights"]["provenance"]["step"] == "40"


def test_a_validated_run_keeps_its_scores_and_its_best(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 2:9] = 7
    maps = tmp_path / "maps"
    maps.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(maps / "one.nii.gz"))
    folder = tmp_path / "run"
    words = ("pretrain", "--config", config, "-o", folder, "--validation", maps)
    scores = iter([0.5, 0.25])
    monkeypatch.setattr(Validation, "score", lambda self, features: next(scores))
    with monkeypatch.context() as patch:
        _stop_after(patch, 25)
        run(*words, code=130)
    run(*words)
    assert (folder / "validation.csv").read_text().splitlines() == ["step,retrieval", "25,0.5", "40,0.25"]
    assert load_network(folder / "best.safetensors")[1]["step"] == "25"
    assert load_network(folder / "tiny.safetensors")[1]["step"] == "40"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no label map" in error_of("pretrain", "--config", config, "-o", folder, "--validation", empty)


def test_a_signal_in_the_last_step_leaves_a_finished_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(TINY.replace("steps: 40", "steps: 2"))
    _stop_after(monkeypatch, 2)
    assert "stopped" not in run("pretrain", "--config", config, "-o", tmp_path / "run").stdout


def test_minutes_end_a_run_and_export_says_where(config: Path, tmp_path: Path) -> None:
    config.write_text(TINY.replace("steps: 40", "steps: 100000"))
    folder, weights = tmp_path / "run", tmp_path / "w.safetensors"
    result = run("pretrain", "--config", config, "-o", folder, "--minutes", 0.01, "--export", weights)
    assert f"wrote {weights}\n" in result.stdout
    assert "of 100000; run the same command again to resume" in result.stdout
    assert not list(folder.glob("*.safetensors"))
    step = int(checkpoints(folder)[-1].name[5:])
    assert load_network(weights)[1]["step"] == str(step)


def test_without_matplotlib_there_is_one_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    result = run("pretrain", "--config", config, "-o", tmp_path / "run")
    assert result.stdout.splitlines()[1].startswith("no loss.png: matplotlib is not installed")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps, time left and losses; rich is asked for what it would draw."""
    drawn: list[dict[str, object]] = []
    update = session.Progress.update

    def record(self: session.Progress, task: object, **fields: object) -> None:
        drawn.append(fields)
        update(self, task, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(session.Progress, "update", record)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    clock = iter([100.0, 160.0])
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with session.step_progress(24) as report:
        report(10, {"affinity": 0.5, "gradient": 3.0}, 0.4)
        report(20, {"affinity": 0.25, "gradient": 3.0}, 0.6)
    assert [fields["completed"] for fields in drawn] == [10, 20]
    assert drawn[0]["left"] == ""  # nothing is known yet
    assert drawn[1]["left"] == "0:02:00 left"  # a fifth of the run took a minute
    assert drawn[1]["losses"] == "affinity 0.250"


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with session.step_progress(24, quiet=True) as report:
        report(10, {"affinity": 0.5}, 0.4)
    assert capsys.readouterr() == ("", "")


def _bare(*words: object, **environment: str) -> subprocess.Popen[str]:
    """``python -m regkit.pretrain`` without what a bare GPU machine lacks."""
    code = (
        "import runpy, sys\n"
        "for name in ('SimpleITK', 'nibabel', 'scipy', 'typer', 'matplotlib'): sys.modules[name] = None\n"
        f"sys.argv[1:] = {[str(word) for word in words]!r}\n"
        "runpy.run_module('regkit.pretrain', run_name='__main__')"
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=variables, stdout=-1, stderr=-1, encoding="utf-8"
    )


def test_the_twin_without_typer_survives_a_signal(config: Path, tmp_path: Path) -> None:
    config.write_text(TINY.replace("steps: 40", "steps: 100000"))
    folder = tmp_path / "run"
    process = _bare("--config", config, "-o", folder, "--threads", 1)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("step 10 of 100000")
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert error == ""
    lines = out.splitlines()
    assert lines[0] == f"wrote {folder / 'tiny.safetensors'}"
    assert lines[-1].endswith("of 100000; run the same command again to resume")
    assert len(checkpoints(folder)) == 1


def test_the_twin_fails_in_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "subject.nii.gz").write_bytes(b"")
    config.write_text(TINY + "templates: 1\n")
    words = ("--config", config, "-o", tmp_path / "run", "--templates", tmp_path / "labels")
    process = _bare(*words)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "install SimpleITK, nibabel and scipy, or give an .npz archive" in error
    assert error.count("\n") == 1
    config.write_text(TINY)
    process = _bare("--config", config, "-o", tmp_path / "other", "--validation", tmp_path / "labels")
    assert "install SimpleITK, nibabel and scipy" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
    process = _bare("--config", config, "-o", tmp_path / "run", "--threads", 0)
    assert "--threads must be at least 1" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def test_unusable_templates(config: Path, archive: Path, tmp_path: Path) -> None:
    words = ("pretrain", "--config", config, "-o", tmp_path / "run", "--templates")
    assert "draws no templates" in error_of(*words, archive)
    config.write_text(TINY + "templates: 1\n")
    assert "give them with --templates PATH" in error_of(*words[:-1])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"no template in '{empty}'" in error_of(*words, empty)
    assert "no archive of templates" in error_of(*words, tmp_path / "nowhere.npz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert f"cannot read the templates in '{archive}'" in error_of(*words, archive)
    archive.write_bytes(b"hello")
    assert str(archive) in error_of(*words, archive)
    assert not list((tmp_path / "run").iterdir())


def test_unusable_configurations(config: Path, tmp_path: Path) -> None:
    words = ("pretrain", "--config", config, "-o", tmp_path / "run")
    config.write_text("width = 2\n")
    assert f"'{config}' must hold lines of the form 'key: value'" in error_of(*words)
    config.write_text("widht: 2\n")
    assert "widht" in error_of(*words)
    config.write_text("pairs.size: 65\n")
    assert "pairs.size must be a multiple of" in error_of(*words)
    assert "cannot read the configuration" in error_of(*words[:2], tmp_path / "no.yaml", *words[3:])
    assert "minutes must be above 0" in error_of(*words, "--minutes", 0)
    assert "--config" in usage_error_of("pretrain", "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config.write_text(TINY.replace("steps: 40", "steps: 3"))
    run("pretrain", "--config", config, "-o", folder)
    before = {path.name: path.read_bytes() for path in checkpoints(folder)[-1].iterdir()}
    config.write_text(TINY.replace("width: 2", "width: 4"))
    message = error_of("pretrain", "--config", config, "-o", folder)
    assert "is of another configuration" in message
    assert "width" in message
    assert {path.name: path.read_bytes() for path in checkpoints(folder)[-1].iterdir()} == before


def test_outputs_that_cannot_be_written(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("pretrain", "--config", config, "-o")
    taken = tmp_path / "taken"
    taken.write_text("hello")
    assert f"cannot make the folder '{taken}'" in error_of(*words, taken)
    assert f"cannot make the folder '{taken / 'run'}'" in error_of(*words, taken / "run")
    run_words = (*words, tmp_path / "run", "--export")
    assert "ends in .safetensors" in error_of(*run_words, tmp_path / "weights.pth")
    assert "is not a folder" in error_of(*run_words, tmp_path / "nowhere" / "w.safetensors")
    monkeypatch.setattr(running.os, "access", lambda path, mode: mode == os.R_OK)
    assert "no permission to write" in error_of(*words, tmp_path / "run")


@pytest.mark.parametrize("when", ["log", "checkpoint", "weights"])
def test_a_full_disk_loses_no_checkpoint(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder = tmp_path / "run"
    words = ("pretrain", "--config", config, "-o", folder)
    with monkeypatch.context() as patch:
        _stop_after(patch, 15)
        run(*words, code=130)
    weights = (folder / "tiny.safetensors").read_bytes()
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        if when == "log":
            patch.setattr(Path, "write_text", full)
        elif when == "checkpoint":
            patch.setattr("regkit.training.checkpoint.save_file", full)
        else:
            patch.setattr("regkit.features.weights.os.replace", full)
        error = run(*words, code=1).stderr.splitlines()[-1]  # the lines before are of the progress
        assert error.startswith("error: ")
        assert "No space left on device" in error
    assert load_checkpoint(checkpoints(folder)[-1])[1]["step"] == (40 if when == "weights" else 15)
    assert (folder / "tiny.safetensors").read_bytes() == weights
    assert not list(folder.glob(".*"))
    assert "wrote" in run(*words).stdout


def test_memory_of_the_gpu_runs_out(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(running, "train", fail)
    assert "take a smaller batch" in error_of("pretrain", "--config", config, "-o", tmp_path / "run")


def test_a_pickle_is_refused_as_weights(tmp_path: Path) -> None:
    files = write_phantom(tmp_path, spacing=12.0)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"run": os.getcwd}))
    words = (files.fixed, files.moving, "-o", tmp_path / "w.nii.gz", "-q")
    message = error_of("register", *words, "--weights", tmp_path / "bad.pth")
    assert "refused" in message


def test_a_run_starts_from_the_weights_of_another(config: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    run("pretrain", "--config", config, "-o", tmp_path / "a", "--export", first)
    still = tmp_path / "still.yaml"
    still.write_text(TINY.replace("steps: 40", "steps: 1") + "learning_rate: 1e-12\nema: 0.0\n")
    run("pretrain", "--config", still, "-o", tmp_path / "b", "--start", first)
    begun = load_network(first)[0].state_dict()
    found = load_network(tmp_path / "b" / "still.safetensors")[0].state_dict()
    for name, tensor in begun.items():
        torch.testing.assert_close(found[name], tensor, msg=name)
    wide = tmp_path / "wide.yaml"
    wide.write_text(TINY.replace("width: 2", "width: 4"))
    assert "another architecture: width differ" in error_of(
        "pretrain", "--config", wide, "-o", tmp_path / "c", "--start", first
    )


NAMES = """\
loss.affinity: 0.0
loss.distance: 0.0
loss.local: 0.0
loss.label: 0.0
loss.structure: 1.0
pairs.anatomies: 0.7
"""


@pytest.fixture
def anatomies(tmp_path: Path) -> Path:
    """A folder of one label map and what its labels are."""
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[4:20, 4:20, 4:20] = 1
    labels[8:16, 8:16, 8:16] = 2
    folder = tmp_path / "anatomies"
    folder.mkdir()
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((4.0, 4.0, 4.0))
    sitk.WriteImage(image, str(folder / "one.nii.gz"))
    named = {"1": {"tissue": "fat"}, "2": {"structure": "liver", "tissue": "liver"}}
    (folder / "anatomies.json").write_text(json.dumps({"source": "nobody, CC0", "labels": named}))
    return folder


def test_a_run_on_label_maps_names_them_and_what_was_new_to_its_start(
    config: Path, anatomies: Path, tmp_path: Path
) -> None:
    """It begins with weights of the trunk's structures alone, as the bundled ones are."""
    config.write_text(TINY.replace("steps: 40", "steps: 4") + NAMES)
    first = UNet(
        Architecture(out_channels=31, width=2, levels=2, stride=2, padding="replicate", norm="instance")
    )
    reading = Reading("equalised", (Channels("structure", 31, "softmax"),))
    start = tmp_path / "trunk.safetensors"
    save_weights(start, first, reading.to_metadata())
    folder = tmp_path / "run"
    words = ("pretrain", "--config", config, "-o", folder, "--anatomies", anatomies)
    result = run(*words, "--start", start)
    count = len(HEAD | NECK)
    line = f"{count} structures that '{start}' does not know begin at random: left cerebral white matter, "
    assert result.stderr.startswith(line)
    network, provenance = load_network(folder / "tiny.safetensors")
    assert network.architecture.out_channels == 1 + len(STRUCTURES)
    assert json.loads(provenance["structures"]) == list(STRUCTURES.values())
    origin = json.loads(provenance["origin"])
    assert origin["anatomies"] == [{"folder": "anatomies", "maps": 1, "source": "nobody, CC0"}]
    assert origin["start"]["file"] == start.name
    assert origin["start"]["new"] == list((HEAD | NECK).values())
    assert result.stderr.count("begin at random") == 1
    assert (
        "begin at random" not in run(*words, "--start", start).stderr
    )  # it is done, and goes on with itself
    process = _bare("--config", config, "-o", tmp_path / "bare", "--anatomies", anatomies)
    assert "install SimpleITK, nibabel and scipy" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


def test_unusable_anatomies(config: Path, anatomies: Path, tmp_path: Path) -> None:
    words = ("pretrain", "--config", config, "-o", tmp_path / "run")
    assert "leave --anatomies out" in error_of(*words, "--anatomies", anatomies)
    config.write_text(TINY + NAMES)
    assert "give them with --anatomies FOLDER" in error_of(*words)
    assert "no folder of label maps" in error_of(*words, "--anatomies", tmp_path / "nowhere")
    whole = (anatomies / "one.nii.gz").read_bytes()
    (anatomies / "one.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert "one.nii.gz" in error_of(*words, "--anatomies", anatomies)
    (anatomies / "one.nii.gz").write_bytes(whole)
    (anatomies / "anatomies.json").write_text('{"source": "nobody", "labels": {"1": {"tissue": "fat"}}}')
    assert "does not name: 2" in error_of(*words, "--anatomies", anatomies)
    assert not list((tmp_path / "run").iterdir())
