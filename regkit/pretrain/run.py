"""A training run from a configuration file to weights: what ``regkit pretrain`` does.

Its twin without typer, ``python -m regkit.pretrain``, is for a GPU machine with a checkout and torch.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regkit.core.errors import RegkitError
from regkit.features.weights import load_network
from regkit.io.atomic import make_folder
from regkit.io.provenance import sha256
from regkit.pretrain.config import load_config
from regkit.pretrain.initial_weights import initial_network
from regkit.pretrain.train import DistributedContext, PretrainTrainer, distributed_context, export, train
from regkit.pretrain.validation import Validation, load_validation_maps
from regkit.synthesis.mixture import anatomies as whole_maps
from regkit.synthesis.mixture import mixture, readers_needed
from regkit.training.checkpoint import checkpoints
from regkit.training.log import read_table, write_table
from regkit.training.plot import plot_losses
from regkit.training.session import step_progress

_MAX_WORKERS = 16  # unless more are asked for: each takes most of a gigabyte


@dataclass(frozen=True)
class PretrainingResult:
    """What a run left.

    Args:
        step: steps done, of ``steps``.
        weights: for ``regkit register --weights``.
        picture: of the losses, if one was drawn.
        interrupted: whether a signal ended it before its steps and minutes did.
    """

    step: int
    steps: int
    weights: Path
    picture: Path | None
    interrupted: bool = False

    def lines(self) -> list[str]:
        """What to tell the user."""
        words = [f"wrote {path}" for path in (self.weights, self.picture) if path]
        if self.picture is None:
            words.append("no loss.png: matplotlib is not installed, or the run is too short for one")
        if self.step < self.steps:
            words.append(
                f"stopped after step {self.step} of {self.steps}; run the same command again to resume"
            )
        return words


def pretrain(
    config: Path,
    run: Path,
    *,
    templates: Sequence[Path] = (),
    anatomies: Sequence[Path] = (),
    minutes: float = math.inf,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    weights: Path | None = None,
    start: Path | None = None,
    validation: Path | None = None,
) -> PretrainingResult | None:
    """Train, or go on with, the run in a folder, and export the network.

    Training ends with the configured steps, with ``minutes``, or with SIGTERM or Ctrl-C; in each case with a
    checkpoint and weights. Progress goes to stderr: a bar in a terminal, else a line a minute.

    Args:
        config: the file of the configuration; the weights are named after it.
        run: made if missing.
        templates: archives (.npz) and folders of label maps.
        anatomies: folders of whole label maps and what their labels are (:mod:`regkit.synthesis.label_maps`).
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        threads: CPU threads; by default as many as torch uses.
        workers: processes that draw the anatomies, beside this one; by default all cores but two, at most 16,
            where a GPU trains, and none (but a thread) where a CPU does.
        weights: where to export to instead of ``run``, a .safetensors file.
        start: weights of the same architecture that a new run begins with; they may know fewer structures.
        validation: a folder of label maps that the network is scored on after each checkpoint, as
            :mod:`regkit.pretrain.validation` says; the best is kept in ``run`` as ``best.safetensors``.

    Returns:
        What was written; None in all processes of torchrun but the first.

    Raises:
        RegkitError: if an input cannot be used, the folder holds another run, or something cannot be written.
    """
    if not minutes > 0:
        raise RegkitError(f"minutes must be above 0, got {minutes:g}")
    settings = load_config(config)
    target = weights or run / f"{config.stem}.safetensors"
    _prepare(run, target)
    begin, new = (None, []) if start is None else initial_network(*load_network(start), settings)
    sources = mixture(settings.procedural, settings.templates, templates)
    bodies = whole_maps(settings.pairs.anatomies, anatomies)
    maps = []
    if validation is not None:
        with readers_needed(validation):
            maps = load_validation_maps(validation)
    if threads is not None:
        torch.set_num_threads(threads)
    origin = {
        "templates": [path.name for path in templates],
        "anatomies": [
            {"folder": path.name, "maps": len(label_maps.maps), "source": label_maps.legend.source}
            for path, label_maps in zip(anatomies, bodies)
        ],
        "start": None if start is None else {"file": start.name, "sha256": sha256(start), "new": new},
    }
    with distributed_context(device) as context:
        if new and context.first and not checkpoints(run):
            words = f"{len(new)} structures that '{start}' does not know begin at random: {', '.join(new)}"
            print(words, file=sys.stderr, flush=True)
        watch = None
        if maps and context.first:
            scored = Validation(maps, settings.stride, context.device)
            watch = _BestWeights(run, scored, config.stem, origin)
        try:
            with step_progress(settings.steps, quiet=not context.first) as report:
                trainer = train(
                    settings,
                    sources,
                    run,
                    context=context,
                    start=begin,
                    maps=bodies,
                    minutes=minutes,
                    workers=spare_cores(context) if workers is None else workers,
                    report=report,
                    on_save=watch or (lambda trainer: None),
                )
        except torch.OutOfMemoryError as error:
            raise RegkitError(
                "out of memory on the GPU: take a smaller batch, width or pairs.size in the configuration"
            ) from error
        if not context.first:
            return None
        export(trainer, target, config.stem, origin)
    picture = run / "loss.png"
    drawn = plot_losses(run / "log.csv", picture)
    label_maps = picture if drawn else None
    return PretrainingResult(trainer.step, settings.steps, target, label_maps, trainer.interrupted)


def spare_cores(context: DistributedContext) -> int:
    """How many processes draw anatomies for this one, whose two threads keep a core each, if a GPU trains."""
    if context.device.type == "cpu":
        return 0
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_WORKERS, max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 2))


class _BestWeights:
    """Scores the network after each checkpoint: ``validation.csv``, and ``best.safetensors``."""

    def __init__(self, run: Path, validation: Validation, name: str, origin: dict[str, Any]) -> None:
        self.run, self.validation, self.name, self.origin = run, validation, name, origin
        self.log = run / "validation.csv"
        self.scores = {int(step): float(score) for step, score in read_table(self.log)[1:]}

    def __call__(self, trainer: PretrainTrainer) -> None:
        network, reading = trainer.average, trainer.config.reading
        # What an interrupted run scored beyond the step that it goes on from is scored again.
        before = {step: score for step, score in self.scores.items() if step < trainer.step}
        score = self.validation.score(lambda images: reading.read(network(images)))
        self.scores = {**before, trainer.step: score}
        if score > max(before.values(), default=-math.inf):
            export(trainer, self.run / "best.safetensors", self.name, self.origin)
        write_table(self.log, [("step", "retrieval"), *self.scores.items()])


def _prepare(run: Path, weights: Path) -> None:
    """The folder of the run, and the certainty that both can be written, before any work."""
    make_folder(run)
    if weights.suffix != ".safetensors" or weights.is_dir():
        raise RegkitError(f"cannot write '{weights}': give the name of a file that ends in .safetensors")
    for folder in (run, weights.parent):
        if not folder.is_dir():
            raise RegkitError(f"cannot write '{weights}': '{folder}' is not a folder; create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise RegkitError(f"no permission to write in the folder '{folder}'")
