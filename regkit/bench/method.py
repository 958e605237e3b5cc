"""The interface of a registration method: the same inputs for all, a warp as the output."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from regkit.bench.dataset import Case
from regkit.core.geometry import Float64
from regkit.warp import Warp


@dataclass(frozen=True)
class Inputs:
    """What every method is given.

    Args:
        case: the files. Labels and landmarks are not for the method.
        start: 4x4, fixed LPS mm -> moving LPS mm, to begin from; None if the method finds its own.
        threads: CPU threads that it may use.
        device: "auto", "cpu" or "cuda", for the methods that know a GPU.
        seed: of its random numbers, if it has any.
        folder: an empty folder for files on the way.
    """

    case: Case
    start: Float64 | None
    threads: int
    device: str
    seed: int
    folder: Path


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What a method found.

    Args:
        warp: on the fixed image's grid, the start included.
        seconds: by stage; from files to a warp in memory, their sum is the whole.
        settings: what the run depended on.
    """

    warp: Warp
    seconds: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """A method by its name.

    ``note`` says what it was given to be fair (windows, resampling, its own linear stage), in one line.
    """

    @property
    def name(self) -> str: ...

    @property
    def note(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot be run here and what to install, or None if it can."""

    def version(self) -> str:
        """Name and version of the software."""

    def register(self, inputs: Inputs) -> MethodResult:
        """Register; any exception is recorded as a failure of the method."""
