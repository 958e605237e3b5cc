"""What the user of a training run sees: its progress, and an end that waits for a checkpoint."""

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

Report = Callable[[int, Mapping[str, float], float], None]
"""Called with a step, its losses, and the share of the run that is done, by its steps or its minutes."""

_SAME_SIGNAL = 1.0  # seconds
_LINE_EVERY = 60.0  # seconds, where there is no terminal


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT put their numbers into, instead of ending the process.

    In another thread than the main one, which alone may say what signals do, it stays empty.

    Raises:
        KeyboardInterrupt: in the block, at another SIGINT a second later: who asks twice does not want to
            wait. Sooner it is the same one, which torchrun passes on to processes that the terminal has told.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    noted = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if number == signal.SIGINT and time.monotonic() > noted + _SAME_SIGNAL:
            raise KeyboardInterrupt
        received.append(number)
        noted = min(noted, time.monotonic())

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def step_progress(steps: int, quiet: bool = False) -> Iterator[Report]:
    """What to report steps to: a bar on stderr in a terminal, else a line a minute.

    Args:
        steps: of the whole run.
        quiet: show nothing.
    """
    if quiet:
        yield lambda step, losses, done: None
        return
    first: list[tuple[float, float]] = []  # the share done at the first report, and when

    def remaining(done: float) -> str:
        now = time.monotonic()
        first.append((done, now))
        advanced, seconds = done - first[0][0], now - first[0][1]
        return f"{_clock(seconds / advanced * max(1 - done, 0.0))} left" if advanced > 0 else ""

    if not sys.stderr.isatty():
        spoken = -math.inf

        def line(step: int, losses: Mapping[str, float], done: float) -> None:
            nonlocal spoken
            left = remaining(done)
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
        yield lambda step, losses, done: bar.update(
            task, completed=step, left=remaining(done), losses=_numbers(losses)
        )


def _numbers(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "gradient")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
