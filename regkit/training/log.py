"""The tables of a training run: ``log.csv``, written line by line, and small ones that are rewritten."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from regkit.core.errors import RegkitError
from regkit.io.atomic import atomic_path


class Log:
    """A table of steps; lines beyond the step that a run goes on from are dropped.

    Args:
        path: of the file.
        step: that the run goes on from.
        active: whether to write at all.
    """

    def __init__(self, path: Path, step: int, active: bool = True) -> None:
        self.path, self.step, self.active = path, step, active

    def __enter__(self) -> Log:
        if self.active:
            before = self._before()
            with self._errors():
                self.stream = self.path.open("w", encoding="utf-8", newline="")
                csv.writer(self.stream).writerows(before)
                self.stream.flush()
            self.headed = bool(before)
        return self

    def _before(self) -> list[list[str]]:
        """Header and lines up to the step, but for what a crash left of a line."""
        if not self.path.exists():
            return []
        with self._errors(), self.path.open(encoding="utf-8", errors="replace", newline="") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
        if header[:1] != ["step"]:
            return []
        whole = [row for row in rows if len(row) == len(header) and row[0].isdecimal()]
        return [header] + [row for row in whole if int(row[0]) <= self.step]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegkitError(f"cannot write '{self.path}': {error.strerror}") from error

    def write(self, step: int, losses: Mapping[str, float], rate: float, seconds: float) -> None:
        """A line: the losses of a step, its learning rate, and seconds per step so far."""
        if not self.active:
            return
        table = csv.writer(self.stream)
        with self._errors():
            if not self.headed:
                table.writerow(["step", *losses, "learning_rate", "seconds_per_step"])
                self.headed = True
            table.writerow([step, *(f"{v:.5f}" for v in losses.values()), f"{rate:.3e}", f"{seconds:.3f}"])
            self.stream.flush()

    def __exit__(self, *error: Any) -> None:
        if self.active:
            with self._errors():
                self.stream.close()


def read_table(path: Path) -> list[list[str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.reader(stream) if row]


def write_table(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file, complete or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def finite(losses: Mapping[str, torch.Tensor], step: int) -> dict[str, float]:
    """The losses of a step as numbers.

    Raises:
        RegkitError: if one is not finite.
    """
    numbers = {name: float(value) for name, value in losses.items()}
    if not all(map(math.isfinite, numbers.values())):
        text = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
        raise RegkitError(
            f"the losses of step {step} are not finite ({text}); earlier checkpoints are kept; start "
            "another run with a lower learning rate"
        )
    return numbers
