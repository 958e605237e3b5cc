"""Time, memory and progress of the stages of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from regkit.runtime.memory import peak_mb

_LOG = logging.getLogger("regkit.registration")
Progress = Callable[[str, float], None]
"""Called with the stage and the share of the whole run that is done, 0 to 1."""


@dataclass(frozen=True)
class Timings(Mapping[str, float]):
    """Seconds by stage, in the order of the stages; "total", the last key, is their sum.

    Args:
        stages: without the total.
    """

    stages: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.stages.values())

    def __getitem__(self, stage: str) -> float:
        return self.total if stage == "total" else self.stages[stage]

    def __iter__(self) -> Iterator[str]:
        yield from self.stages
        yield "total"

    def __len__(self) -> int:
        return len(self.stages) + 1

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON."""
        return dict(self)


class StageRecorder:
    """Records seconds and peak memory by stage, and reports the share of the run that is done.

    Args:
        progress: what to report to.
        device: that the stages compute on.
        shares: of the whole run, by stage.
    """

    def __init__(self, progress: Progress | None, device: torch.device, shares: Mapping[str, float]) -> None:
        self.progress = progress or (lambda stage, done: None)
        self.device = device
        self.shares = {stage: share / sum(shares.values()) for stage, share in shares.items()}
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self.done = 0.0
        self.stage = ""
        self.elsewhere = 0.0  # seconds of the stage that count as another's

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.stage = stage
        self.progress(stage, self.done)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start - self.elsewhere
        self.elsewhere = 0.0
        self.memory[stage] = peak_mb()
        _LOG.debug("%s: %.2f s, %.0f MB at most", stage, self.seconds[stage], self.memory[stage])
        self.done += self.shares[stage]
        self.progress(stage, min(self.done, 1.0))

    @contextmanager
    def counted(self, stage: str) -> Iterator[None]:
        """A block whose time counts as that of an earlier stage, not of the one that it is in."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = time.perf_counter() - start
        self.seconds[stage] += spent
        self.elsewhere += spent

    def stepper(self, steps: int) -> Callable[[], None]:
        """A function to call after each of ``steps`` equal parts of the current stage."""
        count = 0

        def step() -> None:
            nonlocal count
            count = min(count + 1, steps)
            self.progress(self.stage, self.done + self.shares[self.stage] * count / steps)

        return step
