"""A training run as those who started it see it: its progress, and an end that waits for a checkpoint."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Report = Callable[[int, Mapping[str, float]], None]
"""Called with a step and its losses."""

_LINE_EVERY = 60.0  # seconds, where there is no terminal


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT put their numbers into, instead of ending the process.

    In another thread than the main one, which alone may say what signals do, it stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def step_progress(steps: int, minutes: float = math.inf, quiet: bool = False) -> Iterator[Report]:
    """What to report steps to: a bar on stderr in a terminal, else a line a minute.

    Args:
        steps, minutes: after which the run ends.
        quiet: show nothing.
    """
    if quiet:
        yield lambda step, losses: None
        return
    began = time.monotonic()
    first: list[tuple[int, float]] = []  # the first step reported, and when

    def remaining(step: int) -> str:
        now = time.monotonic()
        first.append((step, now))
        done, seconds = step - first[0][0], now - first[0][1]
        left = 60 * minutes - (now - began)
        if done:
            left = min(left, seconds / done * (steps - step))
        return "" if math.isinf(left) else f"{_clock(max(left, 0.0))} left"

    if not sys.stderr.isatty():
        spoken = -math.inf

        def line(step: int, losses: Mapping[str, float]) -> None:
            nonlocal spoken
            left = remaining(step)
            if time.monotonic() - spoken < _LINE_EVERY:
                return
            spoken = time.monotonic()
            words = (f"step {step} of {steps}", _numbers(losses), left)
            print("  ".join(word for word in words if word), file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(30),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[losses]}", style="dim"),
    )
    # Twice a second is often enough, and no burden to the training.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("training", total=steps, left="", losses="starting")
        yield lambda step, losses: bar.update(
            task, completed=step, left=remaining(step), losses=_numbers(losses)
        )


def _numbers(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "gradient")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
