"""Fine-tuning: it learns, goes on exactly where it was stopped, keeps the best, says what it cannot use."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from segmentation_cases import GRID, labelled, task, tiny_network, tiny_weights

import regkit
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.evaluate import dice
from regkit.io.images import Volume
from regkit.io.outputs import save_image
from regkit.segmentation import training
from regkit.segmentation.model import FILE, Segmenter, new_network
from regkit.segmentation.training import (
    Finetuned,
    FinetuneTrainer,
    Finetuning,
    Score,
    finetune,
    learning_rate_share,
)
from regkit.training.checkpoint import checkpoints, load_checkpoint

SETTINGS = Finetuning(patch=16, batch=1, steps=24, learning_rate=0.01)
LEARNT, HELD = [labelled(seed) for seed in (0, 1)], [labelled(2)]
CPU: dict[str, Any] = {"device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def train(weights: Path) -> Callable[..., Finetuned]:
    """Fine-tune the tiny network on two phantoms, a third held out."""

    def train(run: Path, settings: Finetuning = SETTINGS, **given: Any) -> Finetuned:
        words: dict[str, Any] = {"training": LEARNT, "validation": HELD, "weights": weights, **CPU, **given}
        return finetune(output=run, settings=settings, **words)

    return train


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Has this process sent a signal in the middle of a step."""
    plain = FinetuneTrainer.advance

    def stop_at(step: int, number: int) -> None:
        def advance(self: FinetuneTrainer, done: float) -> dict[str, torch.Tensor]:
            if self.step == step:
                os.kill(os.getpid(), number)
            return plain(self, done)

        monkeypatch.setattr(FinetuneTrainer, "advance", advance)

    return stop_at


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, dict[str, torch.Tensor]]]:
    """Has validations give these scores in turn; returns the weights that there were, by step."""

    def scored(*values: float) -> dict[int, dict[str, torch.Tensor]]:
        coming, seen = iter(values), {}

        def score(trainer: FinetuneTrainer, held: object) -> Score:
            seen[trainer.step] = {k: v.clone() for k, v in trainer.network.state_dict().items()}
            value = next(coming)
            return Score(trainer.step, value, {"label 2": value, "label 7": value})

        monkeypatch.setattr(training, "validate", score)
        return seen

    return scored


def _assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row.pop("seconds_per_step", None)
    return rows


def test_it_learns_a_phantom_from_nothing(tmp_path: Path, train: Callable[..., Finetuned]) -> None:
    """And applies what it learnt to an image that it has not seen, on another grid."""
    settings = replace(SETTINGS, init="random", batch=2, steps=80, spacing=2.0)
    result = train(tmp_path, settings, training=[labelled(seed) for seed in (0, 1, 3)])
    assert result.finished
    assert result.best is not None
    assert result.best.dice > 0.6

    grid = Grid((15, 20, 18), (2.4, 1.7, 1.9), (7.0, -40.0, 90.0), (-1, 0, 0, 0, 0.8, 0.6, 0, -0.6, 0.8))
    image, truth = labelled(9, grid)

    def score(model: Segmenter | Path) -> float:
        return float(np.mean([*dice(truth.array, regkit.segment(model, image, **CPU).labels.array).values()]))

    assert score(tmp_path) > 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unlearnt = Segmenter(new_network(tiny_network(), 3, False), Segmenter.load(tmp_path).task, {})
    assert not score(unlearnt) > 0.3  # NaN where a label is nowhere


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, train: Callable[..., Finetuned]) -> None:
    """And leaves the caller's generators, threads and gradients as they were."""
    before = torch.get_num_threads(), torch.random.get_rng_state()
    settings = replace(SETTINGS, steps=6, init="random")
    with torch.no_grad():
        train(tmp_path / "one", settings)
        assert not torch.is_grad_enabled()
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    torch.rand(1)
    train(tmp_path / "two", settings)
    train(tmp_path / "other", replace(settings, seed=1))
    one, two, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "other"))
    _assert_equal(one, two)
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].dim() == 5)


def test_it_runs_beside_the_main_thread(tmp_path: Path, train: Callable[..., Finetuned]) -> None:
    """Where Python takes no signals, such as in the worker of a window."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(train, tmp_path, replace(SETTINGS, steps=1), validation=()).result()
    assert result.finished


def test_the_whole_network_is_trained_from_the_weights(
    tmp_path: Path, train: Callable[..., Finetuned], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    plain = FinetuneTrainer.advance

    def advance(self: FinetuneTrainer, done: float) -> dict[str, torch.Tensor]:
        if not self.step:
            begun.append({k: v.clone() for k, v in self.network.state_dict().items()})
        return plain(self, done)

    monkeypatch.setattr(FinetuneTrainer, "advance", advance)
    train(tmp_path, replace(SETTINGS, steps=4), validation=())
    found = load_file(tmp_path / "model.safetensors")
    assert not any(torch.equal(found[name], tensor) for name, tensor in begun[0].items())
    for name, tensor in load_file(weights).items():
        if found[name].shape == tensor.shape:  # all layers but the last begin with what was learnt
            alike = F.cosine_similarity(begun[0][name].flatten(), tensor.flatten(), dim=0)
            assert alike > 0.9999 or not tensor.any()


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path,
    train: Callable[..., Finetuned],
    stop_at: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, moments, log and scores, bit for bit, after two signals in the middle of a step."""
    monkeypatch.setattr(training, "_VALIDATIONS", 4)  # which take the time
    whole = train(tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for step, number in ((12, signal.SIGTERM), (16, signal.SIGINT)):
        stop_at(step, number)
        stopped = train(tmp_path / "cut")
        assert (stopped.step, stopped.finished) == (step + 1, False)
        assert checkpoints(tmp_path / "cut")[-1].name == f"step-{step + 1:08d}"
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    cut = train(tmp_path / "cut")
    assert whole.step == cut.step == SETTINGS.steps
    assert whole.finished and cut.finished
    assert whole.best == cut.best
    files = [tmp_path / name for name in ("whole", "cut")]
    _assert_equal(*(load_file(run / "model.safetensors") for run in files))
    _assert_equal(*(load_checkpoint(checkpoints(run)[-1])[0] for run in files))
    for name in ("log.csv", "validation.csv"):
        assert _table(files[0] / name) == _table(files[1] / name)
    assert [row["step"] for row in _table(files[0] / "log.csv")] == ["1", "10", "20", "24"]

    before = {path: path.stat().st_mtime_ns for path in files[1].glob("**/*.safetensors")}
    again = train(tmp_path / "cut")  # what is done stays as it is
    assert (again.step, again.finished, again.best) == (cut.step, True, cut.best)
    assert (whole.before, cut.before, again.before) == (0, 17, cut.step)
    assert _table(files[0] / "log.csv") == _table(files[1] / "log.csv")
    assert {path: path.stat().st_mtime_ns for path in files[1].glob("**/*.safetensors")} == before


def test_what_a_run_leaves(tmp_path: Path, train: Callable[..., Finetuned], weights: Path) -> None:
    reported: list[tuple[int, list[str]]] = []
    result = train(
        tmp_path / "deeper" / "run",
        label_names={7: "inner", 2: "outer"},
        report=lambda step, losses, done: reported.append((step, list(losses))),
    )
    run = tmp_path / "deeper" / "run"
    losses = ["dice_loss", "cross_entropy", "gradient"]
    assert reported == [(10, losses), (20, losses)]
    names = {path.name for path in run.iterdir()} - {path.name for path in checkpoints(run)}
    assert names == {"config.json", "log.csv", "validation.csv", "loss.png", "model.safetensors"}
    with (run / "log.csv").open() as stream:
        assert next(csv.reader(stream)) == ["step", *losses, "learning_rate", "seconds_per_step"]
    rows = _table(run / "validation.csv")
    assert list(rows[0]) == ["step", "dice", "outer", "inner"]
    assert len(rows) == 10
    assert rows[-1]["step"] == "24"
    for row in rows:
        assert float(row["dice"]) == pytest.approx((float(row["outer"]) + float(row["inner"])) / 2, abs=2e-4)
    assert max(float(row["dice"]) for row in rows) == pytest.approx(result.best.dice, abs=1e-4)
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["steps"] == 24
    assert config["task"]["labels"] == [2, 7]
    assert config["origin"]["weights"]["file"] == weights.name
    (held,) = config["origin"]["validation"]
    assert re.fullmatch("image 2 [0-9a-f]{12}", held)
    assert result.picture == run / "loss.png"
    assert result.model == run / "model.safetensors"
    told = json.loads(json.dumps(result.to_dict()))
    assert told["best"]["labels"].keys() == {"outer", "inner"}
    model = Segmenter.load(run)
    assert model.task.names == ("outer", "inner")
    assert model.provenance["step"] == str(result.best.step)


def test_the_score_is_that_of_the_model_on_what_is_held_out(
    tmp_path: Path, train: Callable[..., Finetuned]
) -> None:
    """A label is scored in the volumes that have it."""
    image, labels = labelled(3)
    held = [*HELD, (image, replace(labels, array=np.where(labels.array == 7, 2, labels.array)))]
    result = train(tmp_path, replace(SETTINGS, steps=6), validation=held)
    expected: dict[str, list[float]] = {"label 2": [], "label 7": []}
    for image, truth in held:
        found = regkit.segment(tmp_path, image, **CPU).labels.array
        for label in np.unique(truth.array)[1:]:
            one, other = found == label, truth.array == label
            expected[f"label {label}"].append(2 * (one & other).sum() / (one.sum() + other.sum()))
    assert [len(values) for values in expected.values()] == [2, 1]
    means = {name: float(np.mean(values)) for name, values in expected.items()}
    assert result.best.labels == pytest.approx(means, abs=1e-6)
    assert result.best.dice == pytest.approx(np.mean([*means.values()]), abs=1e-6)


def test_the_best_weights_are_kept(
    tmp_path: Path,
    train: Callable[..., Finetuned],
    scored: Callable[..., dict[int, dict[str, torch.Tensor]]],
    stop_at: Callable[[int, int], None],
) -> None:
    """Also where a run is stopped behind them; of equal ones the first."""
    settings = replace(SETTINGS, steps=10)
    stop_at(5, signal.SIGTERM)
    seen = scored(0.1, 0.3, 0.2, 0.6, 0.6, 0.1)
    assert train(tmp_path, settings).best == Score(4, 0.6, {"label 2": 0.6, "label 7": 0.6})
    seen |= scored(0.2, 0.59, 0.3, 0.5)
    result = train(tmp_path, settings)
    assert result.finished
    assert result.best.step == 4
    _assert_equal(load_file(tmp_path / "model.safetensors"), seen[4])
    assert [row["step"] for row in _table(tmp_path / "validation.csv")] == [str(k) for k in range(1, 11)]
    assert [float(row["dice"]) for row in _table(tmp_path / "validation.csv")][3:8] == [
        0.6,
        0.6,
        0.1,
        0.2,
        0.59,
    ]


def test_without_validation_the_last_weights_are_kept(
    tmp_path: Path, train: Callable[..., Finetuned]
) -> None:
    result = train(tmp_path, replace(SETTINGS, steps=12), validation=())
    assert result.best is None
    assert not (tmp_path / "validation.csv").exists()
    state, _ = load_checkpoint(checkpoints(tmp_path)[-1])
    _assert_equal(
        load_file(tmp_path / "model.safetensors"),
        {name[len("network.") :]: value for name, value in state.items() if name.startswith("network.")},
    )
    assert Segmenter.load(tmp_path).provenance["step"] == "12"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes a second."""
    now = iter(range(10**6))
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


@pytest.mark.usefixtures("clock")
def test_minutes_end_a_run_with_the_rate_come_down(
    tmp_path: Path, train: Callable[..., Finetuned], stop_at: Callable[[int, int], None]
) -> None:
    """They count the whole run, however often it is stopped."""
    settings = replace(SETTINGS, steps=10**6)
    whole = train(tmp_path / "whole", settings, minutes=1.2, validation=())
    assert whole.finished
    assert 20 < whole.step < 72
    assert Segmenter.load(tmp_path / "whole").task.labels == (2, 7)
    first, *rows = _table(tmp_path / "whole" / "log.csv")
    assert (first["step"], rows[-1]["step"]) == ("1", str(whole.step))
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert load_checkpoint(checkpoints(tmp_path / "whole")[-1])[1]["seconds"] >= 72
    assert rates[0] > 0.3 * settings.learning_rate
    assert rates[-1] < 0.3 * settings.learning_rate

    stop_at(15, signal.SIGTERM)
    assert not train(tmp_path / "cut", settings, minutes=1.2, validation=()).finished
    cut = train(tmp_path / "cut", settings, minutes=1.2, validation=())
    assert cut.finished
    assert 16 < cut.step <= whole.step + 2


def test_another_configuration_is_refused(
    tmp_path: Path, train: Callable[..., Finetuned], stop_at: Callable[[int, int], None]
) -> None:
    stop_at(1, signal.SIGTERM)
    run = tmp_path / "run"
    train(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = tiny_weights(tmp_path / "other.safetensors", seed=1)
    deeper = tiny_weights(tmp_path / "tiny.safetensors", width=6)
    for change, message in (
        (
            {"settings": replace(SETTINGS, batch=2, learning_rate=0.1)},
            "settings.batch, settings.learning_rate",
        ),
        ({"weights": other}, "origin.weights.file, origin.weights.sha256 differ"),
        ({"weights": deeper}, "origin.weights.sha256 differ"),
        ({"training": LEARNT[:1]}, "origin.training differ"),
        ({"label_names": {7: "label 7"}}, "task.labels, task.names differ"),
    ):
        with pytest.raises(RegkitError, match=rf"'{run}/step-\d+' is of another configuration: {message}"):
            train(run, **change)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, train: Callable[..., Finetuned], stop_at: Callable[[int, int], None]
) -> None:
    stop_at(1, signal.SIGTERM)
    train(tmp_path)
    path = checkpoints(tmp_path)[-1]
    state = json.loads((path / "state.json").read_text())
    for change in ({"step": "three"}, {"seconds": None}, {"best": {"dice": 1}}, {"parts": 0}):
        (path / "state.json").write_text(json.dumps({**state, **change}))
        with pytest.raises(RegkitError, match=path.name):
            train(tmp_path)
    part = path / "part-00.safetensors"
    part.write_bytes(part.read_bytes()[:-9])
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(RegkitError, match=r"cannot read the checkpoint.*delete it to go on"):
        train(tmp_path)


def test_losses_that_are_no_numbers_end_a_run(
    tmp_path: Path, train: Callable[..., Finetuned], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FinetuneTrainer.advance

    def advance(self: FinetuneTrainer, done: float) -> dict[str, torch.Tensor]:
        losses = plain(self, done)
        return losses | {"dice_loss": losses["dice_loss"] * (math.nan if self.step > 4 else 1)}

    monkeypatch.setattr(FinetuneTrainer, "advance", advance)
    with pytest.raises(RegkitError, match=r"losses of step \d+ are not finite.*dice_loss nan"):
        train(tmp_path)
    assert Segmenter.load(tmp_path).provenance["step"] < "5"


def _changed(labels: Volume, **values: int) -> Volume:
    """A label map with ``was2=4``: 4 in place of 2; with ``spot=5``, 5 in one voxel of a corner."""
    array = labels.array.copy()
    for name, value in values.items():
        if name == "spot":
            array[0, 0, 0] = value
            continue
        array[labels.array == int(name.removeprefix("was"))] = value
    return replace(labels, array=array)


def _negative(labels: Volume) -> Volume:
    """A label map with -1 in place of 7."""
    return replace(labels, array=np.where(labels.array == 7, -1, labels.array.astype(np.int16)))


_IMAGE, _MAP = LEARNT[1]
_SHIFTED = replace(_MAP, grid=replace(GRID, origin=(-25.0, 12.0, 5.0)))
_SPOT = {"training": [(_IMAGE, _changed(_MAP, spot=5))], "validation": ()}
_MANY = {label: f"label {label}" for label in range(1, 257)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training": []}, "there is no labelled volume to train on"),
        (
            {"training": [LEARNT[0], (_IMAGE, _SHIFTED)]},
            "labels of training image 2 does not lie on the voxels",
        ),
        ({"validation": [(_IMAGE, _SHIFTED)]}, "labels of validation image 1 does not lie on the voxels"),
        (
            {"training": [LEARNT[0], (_IMAGE, _changed(_MAP, was2=0, was7=0))]},
            "labels of training image 2 holds no label",
        ),
        (
            {"training": [LEARNT[0], (_IMAGE, _changed(_MAP, was0=4, was2=4, was7=4))]},
            "labels of training image 2, 'labels 1': every voxel is 4; there must be background",
        ),
        (
            {"validation": [(_IMAGE, _changed(_MAP, was7=2))]},
            r"'label 7' \(label 7\) is in no volume to validate on; give more volumes or another seed",
        ),
        ({"validation": [(_IMAGE, _changed(_MAP, was7=3))]}, r"\(label 3\) is in no volume to train on"),
        ({"label_names": {2: "a", 5: "spleen"}}, r"'spleen' \(label 5\) is in no volume to train on"),
        ({"label_names": {0: "background"}}, "there is no label to learn"),
        ({"label_names": {2: "kidney", 7: "kidney"}}, "two labels are named 'kidney'"),
        ({"label_names": _MANY}, "256 labels are too many to learn, at most 255"),
        ({"training": [(replace(_IMAGE, array=_IMAGE.array * 0), _MAP)]}, "training image 1 is constant"),
        ({"training": [("no.nii", _MAP)]}, "training image 1 'no.nii' does not exist"),
        (
            {"training": [LEARNT[0], (_IMAGE, _negative(_MAP))]},
            "labels of training image 2, 'labels 1': there is a label -1; labels must be 0 or more, so give ",
        ),
        (
            {"validation": [(_IMAGE, _negative(_MAP))]},
            "labels of validation image 1, 'labels 1': there is a ",
        ),
        (
            {"settings": replace(SETTINGS, spacing=8.0), "label_names": {5: "spot"}, **_SPOT},
            r"'spot' \(label 5\) has no voxel left at a spacing of 8 mm; give a finer spacing, or leave",
        ),
        (
            {"validation": [*HELD, (replace(_IMAGE, name="copy"), _MAP)]},
            "'image 1' and 'copy' hold the same voxels, and would be both trained and validated on",
        ),
        (
            {"training": [LEARNT[0], "a.nii"]},
            r"training item 2 must be a pair \(image, label map\), got 'a.nii'",
        ),
        ({"training": LEARNT[0]}, "training item 1 must be a pair .*, got a Volume"),
        ({"validation": [[_IMAGE]]}, "validation item 1 must be a pair .*, got a list of 1"),
        ({"label_names": ["a", "b"]}, "label names must be a dict such as .*, got a list"),
        ({"label_names": {"outer": 2}}, "the key 'outer' is not a whole number from 0 on"),
        ({"label_names": {2.5: "outer"}}, r"the key 2\.5 is not a whole number"),
        ({"label_names": {-1: "outer"}}, "the key -1 is not a whole number from 0 on"),
        ({"label_names": {2: "outer", "2": "inner"}}, "label names: 2 is there twice"),
        ({"label_names": {2: ""}}, "label names: label 2 must have a name, got ''"),
        ({"label_names": {2: None}}, "label names: label 2 must have a name, got None"),
        ({"minutes": 0}, "minutes must be above 0, got 0"),
        ({"minutes": math.nan}, "minutes must be above 0"),
        ({"device": "tpu"}, "no device named 'tpu'"),
        ({"weights": "no.safetensors"}, "'no.safetensors'.*no such file"),
        (
            {"settings": replace(SETTINGS, patch=15)},
            "patch must be at least 16 voxels for this network, got 15",
        ),
    ],
)
def test_inputs_that_cannot_be_used(
    tmp_path: Path, train: Callable[..., Finetuned], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RegkitError, match=message):
        train(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, train: Callable[..., Finetuned], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz"
    save_image(_IMAGE.to_sitk(), files[0])
    save_image(_SHIFTED.to_sitk(), files[1])
    with pytest.raises(
        RegkitError, match=f"labels of training image 1 '{files[1]}' does not lie on the voxels"
    ):
        train(tmp_path / "run", training=[files])
    state = tiny_network(7, width=16, levels=1).state_dict()
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(RegkitError, match=f"'{tmp_path / 'other.pth'}': another architecture"):
        train(tmp_path / "run", weights=tmp_path / "other.pth")
    (tmp_path / "file").touch()
    with pytest.raises(RegkitError, match=f"'{tmp_path / 'file'}'"):
        train(tmp_path / "file")
    monkeypatch.setattr("regkit.segmentation.monai_parts.find_spec", lambda name: None)
    with pytest.raises(RegkitError, match=r"needs MONAI.*pip install"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "zeros"}, "no init named 'zeros'; available: pretrained, random"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"batch": -1}, "batch must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"spacing": 0.0}, "spacing must be a positive number of mm, got 0"),
        ({"spacing": math.inf}, "spacing must be a positive"),
        ({"learning_rate": 0.0}, "the learning rate must be positive"),
        ({"learning_rate": math.nan}, "the learning rate must be positive"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_run(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        Finetuning(**given)


def test_the_rate_rises_and_follows_half_a_cosine() -> None:
    at = np.linspace(0, 1, 1001)
    rates = np.array([learning_rate_share(share) for share in at])
    top = int(rates.argmax())
    assert rates[0] > 0  # the first step is one
    assert 0 < top < 200
    assert (np.diff(rates[1 : top + 1]) > 0).all()
    np.testing.assert_allclose(rates[top:], 0.5 * (1 + np.cos(math.pi * at[top:])), atol=1e-12)
    assert rates[-1] == learning_rate_share(1.7) == 0


def test_the_rate_of_a_step_is_that_of_its_share() -> None:
    seen = [training.prepare_volume(*pair, task()) for pair in LEARNT]
    trainer = FinetuneTrainer(SETTINGS, task(), tiny_network(), seen, torch.device("cpu"), {})
    for share in (0.0, 0.01, 0.5, 0.99):
        trainer.advance(share)
        expected = SETTINGS.learning_rate * learning_rate_share(share)
        assert trainer.optimiser.param_groups[0]["lr"] == pytest.approx(expected)
    assert trainer.step == 4


def _of(size: tuple[int, int, int], spacing: tuple[float, float, float], ct: bool = False) -> Any:
    """An image of this grid, and no label map: none is looked at."""
    grid = Grid(size, spacing)
    low, high = (-1000, 600) if ct else (0, 900)
    return Volume(np.resize(np.linspace(low, high, 97, dtype=np.float32), grid.shape), grid), None


def _task_of(*pairs: Any, start: dict[str, Any] | None = None, **given: Any) -> Any:
    network = tiny_network(**(start or {}))
    return training.task_for(pairs, {2: "a", 7: "b"}, Finetuning(**given), network, "window")


def test_the_spacing_is_that_of_the_images() -> None:
    """The median of their isotropic ones, and no less than 1 mm, unless it is given."""
    images = [_of((20, 20, 20), spacing) for spacing in ((1.0, 1.0, 8.0), (1.5, 1.5, 1.5), (4.0, 4.0, 4.0))]
    assert _task_of(*images).spacing == pytest.approx(2.0)
    assert _task_of(*images[1:], _of((20, 20, 20), (3.0, 3.0, 3.0))).spacing == pytest.approx(3.0)
    assert _task_of(*images, spacing=0.7).spacing == 0.7
    fine = _of((20, 20, 20), (0.4, 0.4, 0.9))
    assert _task_of(fine).spacing == 1.0
    assert _task_of(fine, spacing=0.5).spacing == 0.5


def test_the_patch_is_no_larger_than_the_images() -> None:
    """A multiple of what the network takes, 8, and twice that at least; (Z, Y, X)."""
    image = _of((100, 33, 20), (2.0, 2.0, 2.0))
    assert _task_of(image, patch=64).patch == (24, 40, 64)
    assert _task_of(image, patch=71).patch == (24, 40, 64)
    assert _task_of(image, patch=16).patch == (16, 16, 16)
    assert _task_of(image, _of((8, 8, 60), (2.0, 2.0, 2.0)), patch=64).patch == (64, 40, 64)
    assert _task_of(_of((8, 8, 8), (2.0, 2.0, 2.0))).patch == (16, 16, 16)
    assert _task_of(image, patch=64, start={"levels": 3}).patch == (32, 48, 64)
    with pytest.raises(RegkitError, match="patch must be at least 32 voxels for this network, got 31"):
        _task_of(image, patch=31, start={"levels": 3, "padding": "reflect", "norm": "batch"})


def test_the_window_of_ct_has_the_lungs_where_all_images_are_ct() -> None:
    ct, mr = _of((20, 20, 20), (2.0, 2.0, 2.0), ct=True), _of((20, 20, 20), (2.0, 2.0, 2.0))
    assert _task_of(ct, ct).ct_window == (-950.0, 450.0)
    assert _task_of(ct, mr).ct_window == (-450.0, 450.0)
    found = _task_of(ct)
    assert (found.labels, found.names, found.input) == ((2, 7), ("a", "b"), "window")


def test_what_the_weights_were_given_is_given_on(tmp_path: Path, train: Callable[..., Finetuned]) -> None:
    path = tiny_weights(tmp_path / "ranks.safetensors", entries={"input": "equalised"})
    train(tmp_path / "run", replace(SETTINGS, steps=1), weights=path, validation=())
    assert Segmenter.load(tmp_path / "run").task.input == "equalised"


def test_labels_are_seen_where_their_image_is(oblique_grid: Grid) -> None:
    """As classes, of the nearest voxel; labels that are not learnt are background."""
    rng = np.random.default_rng(0)
    image = Volume(rng.random(oblique_grid.shape, np.float32), oblique_grid)
    labels = Volume(rng.choice(np.array([0, 2, 7, 30], np.uint8), oblique_grid.shape), oblique_grid)
    given = task(spacing=1.3)
    found = training.prepare_volume(image, labels, given)
    picture, grid = given.network_input(image)
    assert torch.equal(found.image, picture)
    classes = np.select([labels.array == 2, labels.array == 7], [1, 2], 0).astype(np.uint8)
    expected = sitk.GetArrayFromImage(sitk.Resample(
        oblique_grid.to_sitk(classes), grid.blank(), sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8, True,
    ))  # fmt: skip
    assert found.labels.dtype == torch.uint8
    assert (found.labels.numpy() == expected).mean() > 0.99  # but for places between two voxels
    assert set(np.unique(found.labels)) == {0, 1, 2}


def test_a_model_without_its_checkpoints_is_not_overwritten(
    tmp_path: Path, train: Callable[..., Finetuned]
) -> None:
    short = replace(SETTINGS, steps=1)
    train(tmp_path, short)
    before = (tmp_path / FILE).read_bytes()
    for folder in checkpoints(tmp_path):
        shutil.rmtree(folder)
    with pytest.raises(RegkitError, match="holds a model or something else, and no checkpoint"):
        train(tmp_path, short)
    assert (tmp_path / FILE).read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"mine": true}')
    with pytest.raises(RegkitError, match="holds a model or something else"):
        train(other, short)
    assert (other / "config.json").read_text() == '{"mine": true}'


def test_other_voxels_under_the_same_names_are_another_run(
    tmp_path: Path, train: Callable[..., Finetuned]
) -> None:
    short = replace(SETTINGS, steps=1)
    train(tmp_path, short)
    (image, labels), *rest = LEARNT
    changed = Volume(image.array[::-1].copy(), image.grid, image.name)
    with pytest.raises(RegkitError, match=r"another configuration: origin\.training differ"):
        train(tmp_path, short, training=[(changed, labels), *rest])


@pytest.mark.parametrize("name", ["log.csv", "validation.csv", "loss.png"])
def test_files_of_ones_own_are_not_overwritten(
    tmp_path: Path, train: Callable[..., Finetuned], name: str
) -> None:
    (tmp_path / name).write_text("step,mine\n1,2\n")
    with pytest.raises(RegkitError, match="holds a model or something else, and no checkpoint"):
        train(tmp_path, replace(SETTINGS, steps=1))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "step,mine\n1,2\n"


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    tmp_path: Path, train: Callable[..., Finetuned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves is its configuration, and a part of its log."""

    def killed(self: FinetuneTrainer, run: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    (tmp_path / FILE).unlink()  # which is written just before
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "log.csv", "validation.csv"}
    assert train(tmp_path).finished


def test_numbers_of_labels_may_be_strings(tmp_path: Path, train: Callable[..., Finetuned]) -> None:
    """As json.load gives them, or numpy's."""
    for number, names in enumerate(
        ({"7": "inner", " 2": "outer"}, {np.int64(7): "inner", 2.0: "outer", "0": ""})
    ):
        run = tmp_path / str(number)
        train(run, replace(SETTINGS, steps=1), label_names=names, validation=())
        assert Segmenter.load(run).task.labels == (2, 7)
        assert Segmenter.load(run).task.names == ("outer", "inner")
