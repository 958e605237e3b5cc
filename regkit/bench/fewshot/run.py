"""Few-shot segmentation by several arms on the same draws: rows of results."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from regkit.bench.fewshot.layout import Draw, Layout
from regkit.bench.result_rows import Row, append_row, key, read_rows
from regkit.core.errors import RegkitError
from regkit.evaluate import dice, summarise
from regkit.features.weights import bundled_weights
from regkit.io.images import Volume, load_labels
from regkit.io.provenance import sha256
from regkit.propagation import propagate
from regkit.segmentation.files import Labelled
from regkit.segmentation.inference import segment
from regkit.segmentation.training import Finetuning, finetune
from regkit.training.session import Report

ARMS = ("pretrained", "random", "propagate")
"""The bundled network fine-tuned; its twin from random weights; atlases registered (regkit propagate)."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class FewShotOptions:
    """What all arms have in common.

    Args:
        steps, minutes: of a training; the same for both networks.
        weights: of the pretrained arm, by default the bundled ones.
    """

    steps: int
    minutes: float = math.inf
    weights: Path | None = None
    device: str = "auto"
    threads: int | None = None

    def in_common(self, layout: Layout, subjects: Sequence[Labelled]) -> dict[str, Any]:
        """What all rows of a results folder must share, ready for JSON."""
        files = [(c.name, c.image.stat().st_size, c.labels.stat().st_size) for c in subjects]
        weights = Path(self.weights or bundled_weights())
        return {
            "steps": self.steps,
            "minutes": None if math.isinf(self.minutes) else self.minutes,
            "weights": f"{weights.name} {sha256(weights)[:12]}",
            "threads": self.threads,
            "layout": _digest(asdict(layout)),
            "data": _digest(files),
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def run_arms(
    folder: Path,
    layout: Layout,
    names: dict[int, str],
    draws: Mapping[tuple[int, int], Draw],
    arms: Sequence[str],
    options: FewShotOptions,
    progress: Progress = lambda stage, done: None,
) -> tuple[int, int]:
    """Add a row to the results for each arm, number of volumes and seed that has none yet.

    Args:
        names: of the labels that are learnt and tested.
        draws: by number of volumes and seed.

    Returns:
        How many were run, and how many of them failed.
    """
    settings = Finetuning(
        spacing=layout.spacing,
        patch=layout.patch,
        batch=layout.batch,
        steps=options.steps,
        contrast=layout.contrast,
    )
    there = {key(row) for row in read_rows(folder)}
    todo = [
        (shots, seed, arm)
        for shots, seed in draws
        for arm in dict.fromkeys(arms)
        if (layout.name, _draw_name(shots, seed), arm) not in there
    ]
    failed = 0
    for number, (shots, seed, arm) in enumerate(todo):
        stage = f"{arm}, {_draw_name(shots, seed)}"
        progress(stage, number / len(todo))

        def report(step: int, losses: object, done: float, number: int = number, stage: str = stage) -> None:
            progress(stage, (number + done) / len(todo))

        drawn = draws[shots, seed]
        row: Row = {"case": layout.name, "direction": _draw_name(shots, seed), "method": arm}
        row |= {"shots": shots, "seed": seed, "training": [case.name for case in drawn.training]}
        try:
            row |= _run(folder / "model", settings, names, drawn, arm, seed, options, report)
            row["status"] = "ok"
        except RegkitError as error:
            row |= {"status": "failed", "error": str(error)}
            failed += 1
        append_row(folder, row)
    return len(todo), failed


def _draw_name(shots: int, seed: int) -> str:
    return f"{shots} volume{'s' if shots > 1 else ''}, draw {seed}"


def _run(
    model: Path,
    settings: Finetuning,
    names: dict[int, str],
    drawn: Draw,
    arm: str,
    seed: int,
    options: FewShotOptions,
    report: Report,
) -> dict[str, Any]:
    """Seconds of training and of segmenting, and Dice of each test volume and label."""
    training = [(case.image, case.labels) for case in drawn.training]
    row: dict[str, Any] = {"seconds": {"training": 0.0, "segmenting": 0.0}, "tests": []}
    began = time.monotonic()
    if arm != "propagate":
        shutil.rmtree(model, ignore_errors=True)  # of a run that was stopped
        init: Literal["pretrained", "random"] = "random" if arm == "random" else "pretrained"
        # Labels that the draw lacks cannot be learnt, and score 0, as they do with atlases.
        there = {int(label) for case in drawn.training for label in _labels_of(case)}
        learnt = {label: name for label, name in names.items() if label in there}
        # Nothing is held out to choose the best weights by: that would be more than the volumes learnt from.
        result = finetune(
            training, model, label_names=learnt, settings=replace(settings, init=init, seed=seed),
            weights=options.weights,
            minutes=options.minutes, device=options.device, threads=options.threads, report=report,
        )  # fmt: skip
        if not result.finished:
            raise KeyboardInterrupt
        row["steps"] = result.step
        row["seconds"]["training"] = time.monotonic() - began
    for case in drawn.test:
        began = time.monotonic()
        guess = _segmented(case, model, training, arm, options)
        row["seconds"]["segmenting"] += time.monotonic() - began
        truth = load_labels(case.labels, "test labels").array
        scores = dice(truth, guess.array, names, moving_labels=truth)
        labels = {names[label]: score for label, score in scores.items()}
        if not np.isnan(mean := summarise(scores.values())):
            row["tests"].append({"subject": case.name, "dice": mean, "labels": labels})
    shutil.rmtree(model, ignore_errors=True)
    return row


def _labels_of(case: Labelled) -> npt.NDArray[np.integer[Any]]:
    return np.unique(load_labels(case.labels, "training labels").array)


def _segmented(
    case: Labelled, model: Path, training: list[tuple[Path, Path]], arm: str, options: FewShotOptions
) -> Volume:
    if arm == "propagate":
        atlases = [(image, labels) for image, labels in training]
        return propagate(case.image, atlases, device=options.device, threads=options.threads).labels
    return segment(model, case.image, device=options.device, threads=options.threads).labels
