"""Fine-tuning: the whole network of a registration, on a few labelled volumes."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from regkit.core.errors import RegkitError
from regkit.core.intensity import default_ct_window, is_ct
from regkit.core.jsontext import read_json
from regkit.evaluate import dice, summarise
from regkit.features.unet import UNet, in_bfloat16, shuffled
from regkit.features.weights import bundled_weights, load_network, reading
from regkit.io.atomic import atomic_path, make_folder
from regkit.io.images import ImageLike, Volume, load_labelled
from regkit.io.provenance import commit, sha256
from regkit.ops.sampling import index_grid, map_index, sample
from regkit.runtime.device import reproducible, torch_device
from regkit.runtime.memory import check_fits_memory
from regkit.segmentation.inference import apply
from regkit.segmentation.model import FILE, Segmenter, Task, new_network
from regkit.segmentation.monai_parts import check_installed, dice_loss
from regkit.segmentation.patches import Patches, PreparedVolume
from regkit.training.checkpoint import (
    check_same_run,
    checkpoints,
    grouped,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
    ungrouped,
)
from regkit.training.log import Log, finite, read_table, write_table
from regkit.training.plot import plot_losses
from regkit.training.session import Report, stop_signals

Pair = tuple[ImageLike, ImageLike]
INITS = ("pretrained", "random")
CONTRASTS = ("same", "any")
_FINEST = 1.0  # mm: voxels that are finer are resampled to it, unless the spacing is given
_WARMUP = 0.03  # share of the run
_FIRST = 0.001  # share of the run that its first step counts as
_CLIP = 1.0
_VALIDATIONS = 10  # in a run
_SAVE_EVERY = 300.0  # seconds, between checkpoints
_REPORT_EVERY = 10  # steps
_MAX_LABELS = 255  # classes are bytes
_BYTES_PER_VOXEL = 64  # of the working grid, while the labels are brought onto it
_CONFIG, _LOG, _SCORES, _PICTURE = "config.json", "log.csv", "validation.csv", "loss.png"


@dataclass(frozen=True)
class Finetuning:
    """Settings of a fine-tuning.

    Args:
        init: ``pretrained`` starts from the weights, ``random`` from random ones of the same architecture.
        spacing: mm, of the isotropic grid that the network sees. By default the median over the training
            images of the cube root of a voxel, at least 1 mm.
        patch: side of a patch in voxels, at most. If all volumes are smaller, it is their size.
        batch: patches per step.
        steps: of the optimiser. The learning rate follows a half cosine over them.
        learning_rate: the highest one.
        contrast: of the images to segment: the ``same`` as in training, or ``any``, such as MR after CT. With
            ``any``, most patches are shown in random contrasts, and learning takes more steps.
        seed: of the random numbers.
    """

    init: Literal["pretrained", "random"] = "pretrained"
    spacing: float | None = None
    patch: int = 64
    batch: int = 2
    steps: int = 500
    learning_rate: float = 2e-3
    contrast: Literal["same", "any"] = "same"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("init", INITS), ("contrast", CONTRASTS)):
            if getattr(self, name) not in known:
                raise RegkitError(f"no {name} named {getattr(self, name)!r}; available: {', '.join(known)}")
        for name in ("patch", "batch", "steps"):
            if getattr(self, name) < 1:
                raise RegkitError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise RegkitError(f"seed must be at least 0, got {self.seed}")
        if self.spacing is not None and not 0 < self.spacing < math.inf:
            raise RegkitError(f"spacing must be a positive number of mm, got {self.spacing:g}")
        if not 0 < self.learning_rate < math.inf:
            raise RegkitError(f"the learning rate must be positive, got {self.learning_rate:g}")


@dataclass(frozen=True)
class Score:
    """Of the volumes held out, after a step.

    Args:
        dice: the mean over the labels of the means over the volumes.
        labels: name -> mean Dice over the volumes that have the label.
    """

    step: int
    dice: float
    labels: dict[str, float]


@dataclass(frozen=True)
class Finetuned:
    """The result of :func:`finetune`.

    Args:
        model: the file of the segmenter. :func:`regkit.segment` takes its folder as well.
        step: steps done, of ``steps``.
        finished: whether all steps, or the minutes, are over. If not, the same call resumes.
        best: the score of the weights that were kept. Without validation it is None, and the last are kept.
        picture: of the losses, if one was drawn.
        before: steps that were done when the call began; all of them if the run was finished.
    """

    model: Path
    step: int
    steps: int
    finished: bool
    best: Score | None
    picture: Path | None
    before: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = asdict(self)
        return values | {"model": str(self.model), "picture": self.picture and str(self.picture)}


def finetune(
    training: Sequence[Pair],
    output: str | PathLike[str],
    validation: Sequence[Pair] = (),
    *,
    label_names: Mapping[int, str] | Mapping[str, str] | None = None,
    settings: Finetuning = Finetuning(),
    weights: str | PathLike[str] | None = None,
    minutes: float = math.inf,
    device: str = "auto",
    threads: int | None = None,
    report: Report = lambda step, losses, done: None,
) -> Finetuned:
    """Train a segmenter on a few labelled volumes, or resume the run in a folder.

    The loss is the soft Dice of the labels plus the cross-entropy. Ten times in a run, the volumes that are
    held out are segmented, and the weights with the best mean Dice are kept. The run ends after the steps or
    the minutes, or by SIGTERM or Ctrl-C, always with a checkpoint, from which the same call resumes. On a CPU
    and without ``minutes``, the result is then exactly that of a run that was not stopped.

    Args:
        training: pairs of an image and its label map on the same grid; anything that :func:`regkit.register`
            takes. Labels are 0, background, or more.
        output: a folder, made if missing: ``model.safetensors``, ``log.csv``, ``validation.csv``,
            ``loss.png``, ``config.json`` and checkpoints.
        validation: pairs that choose the best weights; none of those trained on.
        label_names: the labels to learn, with their names; others count as background. By default all.
            Numbers may be strings, as in JSON.
        weights: initial weights, by default the bundled ones. A random network has their architecture.
        minutes: time limit of the whole run. The learning rate follows the steps or the minutes, whichever
            are further along, so that it reaches its end in either case.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        threads: CPU threads; by default as many as torch uses.
        report: called with the step, the losses and the share of the run that is done, every ten steps.

    Raises:
        RegkitError: if an input cannot be used, the folder holds another run, or something cannot be written.
    """
    check_installed()
    if not minutes > 0:
        raise RegkitError(f"minutes must be above 0, got {minutes:g}")
    names_by_label = None if label_names is None else _by_number(label_names)
    run = Path(output)
    path = Path(bundled_weights() if weights is None else weights)
    start, provenance = load_network(path)
    learnt, held = _loaded(training, "training"), _loaded(validation, "validation")
    names = _chosen(learnt, held, names_by_label)
    compute_device = torch_device(device)
    with reproducible(threads, settings.seed):
        network_input = reading(provenance, start.architecture.out_channels).input
        task = task_for(learnt, names, settings, start, network_input)
        origin = {
            "weights": {"file": path.name, "sha256": sha256(path)},
            "training": [_identity(*pair) for pair in learnt],
            "validation": [_identity(*pair) for pair in held],
        }
        _check_held_out(origin["training"], origin["validation"])
        prepared = [prepare_volume(*pair, task) for pair in learnt]
        del learnt  # of full resolution
        _check_kept(prepared, task)
        trainer = FinetuneTrainer(settings, task, start, prepared, compute_device, origin)
        _begin(trainer, run)
        before = trainer.step
        finished = _train(trainer, run, held, minutes, report)
    picture = run / _PICTURE
    drawn = plot_losses(run / _LOG, picture, ("dice",))
    loss_picture = picture if drawn else None
    return Finetuned(run / FILE, trainer.step, settings.steps, finished, trainer.best, loss_picture, before)


class FinetuneTrainer:
    """The state of a run: network, optimiser, the number of the next step, and what was best.

    Everything random in a step comes from its number, so that this state is all that a run depends on.

    Args:
        start: a network of the architecture, whose weights are kept if the settings say so.
        volumes: to train on.
        origin: what the weights come from, for the record.
    """

    def __init__(
        self,
        settings: Finetuning,
        task: Task,
        start: UNet,
        volumes: Sequence[PreparedVolume],
        device: torch.device,
        origin: Mapping[str, Any],
    ) -> None:
        self.settings, self.task, self.device, self.origin = settings, task, device, dict(origin)
        torch.manual_seed(settings.seed)
        network = new_network(start, 1 + len(task.labels), settings.init == "pretrained")
        self.network = network.to(device)
        self.network.to(memory_format=start.architecture.memory_format)  # type: ignore[call-overload]
        self.patches = Patches(volumes, task.patch, settings.contrast, settings.seed)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.learning_rate)
        self.overlap = dice_loss()
        self.step, self.seconds = 0, 0.0
        self.best: Score | None = None

    @property
    def segmenter(self) -> Segmenter:
        """As it is now."""
        provenance = {
            "config": json.dumps(self.config()),
            "step": str(self.step),
            "commit": commit() or "unknown",
            "torch": torch.__version__,
        }
        return Segmenter(self.network, self.task, provenance)

    def config(self) -> dict[str, Any]:
        """What the run is, ready for JSON."""
        content: dict[str, Any] = json.loads(
            json.dumps({"settings": asdict(self.settings), "task": asdict(self.task), "origin": self.origin})
        )
        return content

    def advance(self, done: float) -> dict[str, torch.Tensor]:
        """One step, at a share ``done`` of the run; the losses stay on the device."""
        count = self.settings.batch
        drawn = [self.patches.draw(number) for number in range(self.step * count, (self.step + 1) * count)]
        images = torch.stack([patch.image for patch in drawn])[:, None].to(self.device)
        labels = torch.stack([patch.labels for patch in drawn]).long().to(self.device)
        self.network.train()
        with in_bfloat16(self.device):
            cells = self.network(images.to(memory_format=self.network.architecture.memory_format))
        scores = shuffled(cells, self.network.architecture.stride).float()
        losses = {
            "dice_loss": self.overlap(scores, labels[:, None]),
            "cross_entropy": F.cross_entropy(scores, labels),
        }
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_share(done)
        self.optimiser.step()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()} | {"gradient": norm.detach()}

    def save(self, run: Path) -> None:
        """A checkpoint of the whole state."""
        tensors = grouped(network=self.network.state_dict(), optimiser=optimiser_tensors(self.optimiser))
        best = None if self.best is None else asdict(self.best)
        state = {"step": self.step, "seconds": self.seconds, "best": best, "config": self.config()}
        save_checkpoint(run, self.step, tensors, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of a run of the same configuration."""
        tensors, state = load_checkpoint(path)
        check_same_run(path, state.get("config", {}), self.config())
        try:
            network, optimiser = ungrouped(tensors, "network", "optimiser")
            self.network.load_state_dict(network)
            restore_optimiser(self.optimiser, optimiser)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.best = None if state["best"] is None else Score(**state["best"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RegkitError(f"the checkpoint '{path}' is not of this version of regkit: {error}") from error


def learning_rate_share(done: float) -> float:
    """Share of the learning rate at a share of the run: a linear rise, not from 0, then half a cosine."""
    return min(1.0, max(done, _FIRST) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _begin(trainer: FinetuneTrainer, run: Path) -> None:
    """Go on with the run in a folder, or make the folder of a new one.

    Raises:
        RegkitError: if it holds another run, or what a run would overwrite.
    """
    make_folder(run)
    config = run / _CONFIG
    if saved := checkpoints(run):
        trainer.load(saved[-1])
    elif (run / FILE).exists() or not _is_begun(run, trainer.config()):
        raise RegkitError(
            f"'{run}' holds a model or something else, and no checkpoint to go on from; give another folder"
        )
    with atomic_path(config) as temporary:
        temporary.write_text(json.dumps(trainer.config(), indent=1), encoding="utf-8")
    # What an interrupted run scored beyond the step that it goes on from is scored again.
    log = run / _SCORES
    if rows := read_table(log):
        rows_before = [row for row in rows[1:] if int(row[0]) <= trainer.step]
        write_table(log, [rows[0], *rows_before])


def _is_begun(run: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder holds no more than a run without a checkpoint may have left there."""
    if (run / _CONFIG).exists():
        return bool(read_json(run / _CONFIG, "the file") == config)
    return not any((run / name).exists() for name in (_LOG, _SCORES, _PICTURE))  # written after it


def _train(
    trainer: FinetuneTrainer, run: Path, held: Sequence[tuple[Volume, Volume]], minutes: float, report: Report
) -> bool:
    """Train until the steps or the minutes are over, or a signal comes; whether it was not a signal."""
    steps = trainer.settings.steps
    began, before, first = time.monotonic(), trainer.seconds, trainer.step
    saved, saved_step = began, trainer.step

    def done() -> float:
        trainer.seconds = before + time.monotonic() - began
        return max(trainer.step / steps, trainer.seconds / (60 * minutes))

    with stop_signals() as stopped, Log(run / _LOG, trainer.step) as log:
        logged = trainer.step

        def note(losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
            nonlocal logged
            numbers, logged = finite(losses, trainer.step), trainer.step
            seconds = (time.monotonic() - began) / (trainer.step - first)
            log.write(trainer.step, numbers, trainer.optimiser.param_groups[0]["lr"], seconds)
            return numbers

        share = done()
        while share < 1 and not stopped:
            losses = trainer.advance(share)
            if trainer.step % _REPORT_EVERY == 0:
                report(trainer.step, note(losses), done())
            elif trainer.step == 1:
                note(losses)
            marks, share = int(_VALIDATIONS * share), done()
            to_validate = int(_VALIDATIONS * share) > marks
            if not to_validate and time.monotonic() - saved < _SAVE_EVERY:
                continue
            finite(losses, trainer.step)  # a checkpoint is something to go on from
            if to_validate:
                _keep(trainer, run, held)
                share = done()
            trainer.save(run)
            saved, saved_step = time.monotonic(), trainer.step
        if share >= 1 and trainer.step > logged:  # the last step, at which the minutes may have ended the run
            note(losses)
        if trainer.step > saved_step:  # a signal came
            finite(losses, trainer.step)
            if not (run / FILE).exists():
                trainer.segmenter.save(run / FILE)
            trainer.save(run)
    return share >= 1


def _keep(trainer: FinetuneTrainer, run: Path, held: Sequence[tuple[Volume, Volume]]) -> None:
    """Write the model if it is the best so far, or cannot be validated."""
    if not held:
        trainer.segmenter.save(run / FILE)
        return
    score = validate(trainer, held)
    if trainer.best is None or score.dice > trainer.best.dice:
        trainer.segmenter.save(run / FILE)
        trainer.best = score
    log = run / _SCORES
    values = (f"{value:.4f}" for value in (score.dice, *score.labels.values()))
    before = read_table(log) or [["step", "dice", *score.labels]]
    write_table(log, [*before, [score.step, *values]])


def validate(trainer: FinetuneTrainer, held: Sequence[tuple[Volume, Volume]]) -> Score:
    task, segmenter = trainer.task, trainer.segmenter
    scores = []
    for image, labels in held:
        guess = apply(segmenter, image, trainer.device).labels.array
        scores.append(dice(labels.array, guess, task.labels, moving_labels=labels.array))
    means = {name: summarise(row[label] for row in scores) for label, name in zip(task.labels, task.names)}
    return Score(trainer.step, summarise(means.values()), means)


def _loaded(pairs: Sequence[Pair], role: str) -> list[tuple[Volume, Volume]]:
    """Images and their label maps, on one grid each."""
    volumes = []
    for number, item in enumerate(pairs, 1):
        roles = f"{role} item {number}", f"{role} image {number}", f"labels of {role} image {number}"
        volumes.append(load_labelled(item, *roles, one_grid=True))
        if len(np.unique(volumes[-1][1].array)) == 1:
            raise RegkitError(
                f"labels of {role} image {number}, '{volumes[-1][1].name}': every voxel is "
                f"{volumes[-1][1].array.flat[0]}; there must be background (0) as well"
            )
    return volumes


def _identity(image: Volume, labels: Volume) -> str:
    """By which a run knows a volume again: its name and its voxels."""
    digest = hashlib.sha256(image.array.data)
    digest.update(labels.array.data)
    return f"{image.name} {digest.hexdigest()[:12]}"


def _by_number(names: object) -> dict[int, str]:
    """The names of labels as they were given, their keys as numbers, which JSON has as strings."""
    like = "such as {1: 'liver', 2: 'spleen'}"
    if not isinstance(names, Mapping):
        raise RegkitError(f"label names must be a dict {like}, got a {type(names).__name__}")
    by_number: dict[int, str] = {}
    for key, name in names.items():
        whole = int(key) if isinstance(key, float) and key.is_integer() else key
        text = str(whole).strip()
        if not text.isdecimal():
            raise RegkitError(
                f"label names must be a dict {like}: the key {key!r} is not a whole number from 0 on"
            )
        label = int(text)
        if label in by_number:
            raise RegkitError(
                f"label names: {label} is there twice, as a number and as a string; name it once"
            )
        if label and not (isinstance(name, str) and name.strip()):
            raise RegkitError(f"label names: label {label} must have a name, got {name!r}")
        by_number[label] = name
    return by_number


def _chosen(
    learnt: Sequence[tuple[Volume, Volume]],
    held: Sequence[tuple[Volume, Volume]],
    names: Mapping[int, str] | None,
) -> dict[int, str]:
    """The labels to learn and their names: each in some volume to train on, and in some to validate on."""
    if not learnt:
        raise RegkitError("there is no labelled volume to train on")
    there, judged = (
        {int(v) for _, labels in pairs for v in np.unique(labels.array)} for pairs in (learnt, held)
    )
    if names is None:
        names = {label: f"label {label}" for label in sorted((there | judged) - {0})}
    names = {label: names[label] for label in sorted(names) if label}
    if not names:
        raise RegkitError("there is no label to learn: name at least one other than 0")
    if len(names) > _MAX_LABELS:
        raise RegkitError(
            f"{len(names)} labels are too many to learn, at most {_MAX_LABELS}; choose some by name"
        )
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise RegkitError(f"two labels are named '{twice[0]}'; give each a name of its own")
    remedy = "give more volumes or another seed, or leave the label out of the label names"
    for label, name in names.items():
        if label not in there:
            raise RegkitError(f"'{name}' (label {label}) is in no volume to train on; {remedy}")
        if held and label not in judged:
            raise RegkitError(f"'{name}' (label {label}) is in no volume to validate on; {remedy}")
    return names


def _check_held_out(learnt: Iterable[str], held: Iterable[str]) -> None:
    """Refuse a volume that is trained and validated on, whatever it is named; by :func:`_identity`."""
    names = {digest: name for name, _, digest in (identity.rpartition(" ") for identity in learnt)}
    for identity in held:
        name, _, digest = identity.rpartition(" ")
        if digest in names:
            raise RegkitError(
                f"'{names[digest]}' and '{name}' hold the same voxels, and would be both trained and "
                "validated on; hold out another"
            )


def _check_kept(prepared: Sequence[PreparedVolume], task: Task) -> None:
    """Refuse a label that is so small that no voxel of the working grid has it."""
    for number, (label, name) in enumerate(zip(task.labels, task.names), 1):
        if not any((volume.labels == number).any() for volume in prepared):
            raise RegkitError(
                f"'{name}' (label {label}) has no voxel left at a spacing of {task.spacing:g} mm; give a "
                "finer spacing, or leave the label out of the label names"
            )


def task_for(
    learnt: Sequence[tuple[Volume, Volume]],
    names: Mapping[int, str],
    settings: Finetuning,
    start: UNet,
    network_input: str,
) -> Task:
    spacing = settings.spacing
    if spacing is None:
        voxels = [float(np.prod(image.grid.spacing)) ** (1 / 3) for image, _ in learnt]
        spacing = max(_FINEST, round(float(np.median(voxels)), 2))
    step = start.architecture.multiple
    minimum = 2 * step  # reflection, and a norm over each volume, need two cells at the lowest level
    if settings.patch < minimum:
        raise RegkitError(f"patch must be at least {minimum} voxels for this network, got {settings.patch}")
    largest = np.max([image.grid.working(spacing).shape for image, _ in learnt], axis=0)
    z, y, x = (
        max(minimum, min(settings.patch // step, math.ceil(side / step)) * step) for side in largest.tolist()
    )
    window = default_ct_window(is_ct(image.array) for image, _ in learnt)
    return Task(tuple(names), tuple(names.values()), spacing, (z, y, x), window, network_input)


def prepare_volume(image: Volume, labels: Volume, task: Task) -> PreparedVolume:
    """A labelled volume on the working grid, its labels as classes."""
    voxels = math.prod(image.grid.working(task.spacing).size)
    check_fits_memory(voxels, f"training on '{image.name}'", _BYTES_PER_VOXEL)
    picture, grid = task.network_input(image)
    classes = np.zeros(labels.array.shape, np.float32)
    for number, label in enumerate(task.labels, 1):
        classes[labels.array == label] = number
    index = map_index(labels.grid.world_to_index @ grid.index_to_world, index_grid(grid.shape))
    class_map = sample(torch.from_numpy(classes)[None], index, mode="nearest")[0]
    return PreparedVolume(picture, class_map.to(torch.uint8))
