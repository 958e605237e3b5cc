"""The training loop: one process, or several under torchrun; it resumes exactly where it stopped."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from regkit.core.errors import RegkitError
from regkit.features.unet import Architecture, UNet
from regkit.features.weights import save_weights
from regkit.io.provenance import commit
from regkit.pretrain.batch_loader import batches
from regkit.pretrain.config import Config
from regkit.pretrain.forward_backward import forward_backward_for
from regkit.pretrain.step import Batch, Student, collate
from regkit.synthesis.label_maps import LabelMaps
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Synthesiser
from regkit.synthesis.shape_sources import ShapeSource
from regkit.synthesis.structures import STRUCTURES
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
from regkit.training.log import Log, finite
from regkit.training.session import Report, stop_signals


@dataclass(frozen=True)
class DistributedContext:
    """Which of how many processes this is, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


@contextmanager
def distributed_context(device: str = "auto") -> Iterator[DistributedContext]:
    """The context of this process. Under torchrun it joins the process group, and leaves it at the end."""
    if device not in ("auto", "cpu", "cuda"):
        raise RegkitError(f"no device named {device!r}; available: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RegkitError("torch finds no CUDA device here; use --device cpu or auto")
    cuda = torch.cuda.is_available() and device != "cpu"
    if "RANK" not in os.environ:
        yield DistributedContext(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


# A GPU is done with the kernels of a pair before they are launched, and with those of eight hardly later.
_PAIRS_AT_ONCE = 8


class PretrainTrainer:
    """The state of a run: student, averaged network, optimiser and the number of the next step.

    Everything random in a step comes from the step's number, so that this state is all that a run depends on.

    Args:
        config: of the run.
        sources: of shapes, and their weights.
        context: of this process.
        start: a network to begin with, in place of random weights.
        maps: whole label maps.

    Raises:
        RegkitError: if the batch does not divide among the processes, or ``start`` has another architecture.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[tuple[ShapeSource, float]],
        context: DistributedContext,
        start: UNet | None = None,
        maps: Sequence[LabelMaps] = (),
    ) -> None:
        if config.batch % context.world:
            raise RegkitError(
                f"a batch of {config.batch} pairs does not divide among {context.world} processes"
            )
        self.config, self.context = config, context
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.student = Student(config)
        if start is not None:
            check_same(start.architecture, config.architecture)
            self.student.network.load_state_dict(start.state_dict())
        self.student.to(context.device)
        self.student.network.to(memory_format=config.architecture.memory_format)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.student.network).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.student.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=context.device.type == "cuda",  # one launch
        )
        self.passes = forward_backward_for(self.student.train())
        self.synthesiser = Synthesiser(config.pairs, sources, config.seed, context.device, maps=maps)
        self.step = 0
        self.interrupted = False  # by a signal, of which train() says here that it ended the run

    @property
    def device(self) -> torch.device:
        """What this process computes on."""
        return self.context.device

    def pairs_of(self, step: int) -> tuple[range, tuple[int, ...]]:
        """The numbers of this process's share of the pairs of a step, and the shape of their volumes."""
        share = self.config.batch // self.context.world
        first = step * self.config.batch + self.context.rank * share
        # Those that are drawn at once have one shape: they lie in one tensor.
        shape = self.config.pairs.shape(Rng.of(self.config.seed, 3, step // self.together))
        return range(first, first + share), shape

    @property
    def together(self) -> int:
        """Steps whose pairs have one shape: from a multiple of so many on."""
        return max(1, _PAIRS_AT_ONCE // self.config.batch)

    def batch(self, step: int, synthesiser: Synthesiser | None = None) -> Batch:
        """This process's share of the pairs of a step, drawn by its own synthesiser or a given one."""
        return self.batches(range(step, step + 1), synthesiser)[0]

    def batches(self, steps: range, synthesiser: Synthesiser | None = None) -> list[Batch]:
        """The same of several steps of one shape, drawn at once."""
        shares, shapes = zip(*map(self.pairs_of, steps))
        numbers = [number for share in shares for number in share]
        drawn = collate((synthesiser or self.synthesiser).draw(numbers, shapes[0]), self.config.stride)
        return drawn.split(len(steps))

    def advance(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One optimiser step; the losses stay on the device."""
        config = self.config
        rng = Rng.of(config.seed, 2, self.step, self.context.rank, device=self.context.device)
        losses = self.passes(batch, rng)
        _average_over_processes(
            [p.grad for p in self.student.parameters() if p.grad is not None], self.context
        )
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_share(self.step, config)
        self.optimiser.step()
        # A short memory at first, so that the random start is forgotten.
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averaged: list[torch.Tensor] = list(self.average.parameters())
            new: list[torch.Tensor] = list(self.student.network.parameters())
            torch._foreach_lerp_(averaged, new, 1 - keep)
        self.step += 1
        return losses | {"gradient": norm.detach()}

    def save(self, run: Path) -> None:
        """A checkpoint of the whole state."""
        tensors = grouped(
            student=self.student.state_dict(),
            average=self.average.state_dict(),
            optimiser=optimiser_tensors(self.optimiser),
        )
        save_checkpoint(run, self.step, tensors, {"step": self.step, "config": self.config.to_dict()})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of a run of the same configuration."""
        tensors, state = load_checkpoint(path)
        ours = json.loads(json.dumps(self.config.to_dict()))
        # What the parts cost in a registration is chosen after training.
        check_same_run(path, state.get("config", {}), ours, apart=("cost.",))
        try:
            student, average, optimiser = ungrouped(tensors, "student", "average", "optimiser")
            self.student.load_state_dict(student)
            self.average.load_state_dict(average)
            restore_optimiser(self.optimiser, optimiser)
            self.step = int(state["step"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise RegkitError(f"the checkpoint '{path}' is not of this version of regkit: {error}") from error


def check_same(theirs: Architecture, ours: Architecture) -> None:
    """RegkitError if a run cannot begin with weights of an architecture."""
    differs = [k for k, v in ours.to_dict().items() if theirs.to_dict()[k] != v]
    if differs:
        raise RegkitError(
            f"the weights to start from are of another architecture: {', '.join(differs)} differ from the "
            "configuration's"
        )


def learning_rate_share(step: int, config: Config) -> float:
    """Share of the learning rate: a linear rise over the warm-up, then half a cosine."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))


def _average_over_processes(gradients: list[torch.Tensor], context: DistributedContext) -> None:
    if context.world == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= context.world
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def train(
    config: Config,
    sources: Sequence[tuple[ShapeSource, float]],
    run: Path,
    *,
    context: DistributedContext,
    start: UNet | None = None,
    maps: Sequence[LabelMaps] = (),
    minutes: float = math.inf,
    workers: int = 0,
    save_every: float = 5.0,
    report: Report = lambda step, losses, done: None,
    on_save: Callable[[PretrainTrainer], None] = lambda trainer: None,
) -> PretrainTrainer:
    """Train until the configured steps are done, ``minutes`` are over, or SIGTERM or SIGINT comes.

    Args:
        start: a network that a new run begins with; a run that is gone on with has its own.
        maps: whole label maps.
        run: folder of the run: checkpoints, ``log.csv``, ``config.json``; gone on with if it has any.
        workers: processes that draw the anatomies of the pairs; with 0 a thread of this one does.
        save_every: minutes between checkpoints.
        report: called with the step, the losses and the share of the run that is done, every ten steps.
        on_save: called in the first process after each checkpoint.

    Raises:
        RegkitError: if the folder holds another run, or cannot be written.
    """
    trainer = PretrainTrainer(config, sources, context, start, maps)
    existing = checkpoints(run)
    if existing:
        trainer.load(existing[-1])
    if context.first:
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / "config.json").write_text(json.dumps(config.to_dict(), indent=1), encoding="utf-8")
        except OSError as error:
            raise RegkitError(f"cannot make the folder '{run}': {error.strerror}") from error
    began = saved = time.monotonic()
    first = trainer.step
    with (
        stop_signals() as stopped,
        batches(trainer, workers) as feed,
        Log(run / "log.csv", trainer.step, context.first) as log,
    ):
        for batch in feed:
            losses = trainer.advance(batch)
            now = time.monotonic()
            if trainer.step % 10 == 0:
                numbers = finite(losses, trainer.step)
                seconds = (now - began) / (trainer.step - first)
                log.write(trainer.step, numbers, trainer.optimiser.param_groups[0]["lr"], seconds)
                done = (now - began) / (60 * minutes) if minutes else 1.0
                report(trainer.step, numbers, max(trainer.step / config.steps, done))
            late = now - began > 60 * minutes
            over = _agreed(bool(stopped) or late, context)
            if context.first and (over or now - saved > 60 * save_every or trainer.step == config.steps):
                finite(losses, trainer.step)  # a checkpoint is something to go on from
                trainer.save(run)
                on_save(trainer)
                saved = time.monotonic()
            if over:
                trainer.interrupted = bool(stopped) and not late and trainer.step < config.steps
                break
    return trainer


def export(trainer: PretrainTrainer, path: Path, name: str, origin: Mapping[str, Any] | None = None) -> None:
    """Write the averaged network as weights that ``regkit register`` reads, with what made it.

    Args:
        origin: what else it came from, such as the templates and the weights it began with.
    """
    provenance = {
        "name": name,
        "step": str(trainer.step),
        "config": json.dumps(trainer.config.to_dict()),
        "origin": json.dumps(dict(origin or {})),
        **trainer.config.reading.to_metadata(),
        "structures": json.dumps(list(STRUCTURES.values())),
        "commit": commit() or "unknown",
        "torch": torch.__version__,
    }
    save_weights(path, trainer.average, provenance)


def _agreed(stop: bool, context: DistributedContext) -> bool:
    """Whether any process wants to stop: all must do it after the same step."""
    if context.world == 1:
        return stop
    flag = torch.tensor(float(stop), device=context.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
