"""An anatomy: a label map, and what is needed to draw images from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from regkit.synthesis.appearance import Grain, Palette, draw_grain, random_palette
from regkit.synthesis.ensemble import Stray
from regkit.synthesis.noise import Rng


@dataclass(frozen=True)
class Anatomy:
    """A label map and what its labels are.

    Args:
        labels: (Z, Y, X) uint8.
        grain: fine structure of it, if any.
        structures: (256,) uint8, for each label the number of the structure that it is part of, 0 if of none;
            by default they are parts of none.
        palette: draws the mean and deviation of every label in one image.
        spacing: mm, of its voxels, if its axes are the patient's, towards head, back and left: views are then
            not flipped, keep their axes, and are of random spacing.
        views: smallest and largest spacing of the views of such a one, mm; by default those of the settings.
        strays: details that single views may have besides.
    """

    labels: torch.Tensor
    grain: Grain | None = None
    structures: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(256, np.uint8))
    palette: Callable[[Rng], Palette] = random_palette
    spacing: float | None = None
    views: tuple[float, float] | None = None
    strays: tuple[Stray, ...] = ()

    def with_grain(self, rng: Rng) -> Anatomy:
        """The same with a grain, on the device of the generator: it is ten times as large as all else."""
        labels = self.labels.to(rng.device)
        return replace(self, labels=labels, grain=draw_grain(tuple(labels.shape), rng))
