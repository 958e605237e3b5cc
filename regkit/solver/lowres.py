"""Two images compared at low resolution under any map of points, beside what chance gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from regkit.core.geometry import Float64, Grid, transform_points
from regkit.features.maps import mind_ssc
from regkit.ops.resample import Source, resample
from regkit.ops.sampling import sample

Points = Callable[[Float64], Float64]
"""From fixed LPS mm (..., 3) to moving LPS mm."""

EMPTY = 0.04  # normalised intensity of air, below which there is nothing to compare


@dataclass(frozen=True)
class Seen:
    """An image on a grid.

    Args:
        features: MIND-SSC, (12, Z, Y, X).
        weight: (Z, Y, X), 1 where the image has data.
    """

    features: torch.Tensor
    weight: torch.Tensor


class LowRes:
    """The fixed image at low resolution, and the moving one as any map brings it there.

    Args:
        fixed, moving: as they are registered.
        spacing: mm, of the grid that they are compared on, over the fixed field of view.
    """

    def __init__(self, fixed: Source, moving: Source, spacing: float) -> None:
        self._look(fixed.smoothed_for(spacing), moving.smoothed_for(spacing), spacing)

    def _look(self, fixed: Source, moving: Source, spacing: float) -> None:
        """At images that are smoothed already."""
        self._smooth, self.moving, self._spacing = fixed, moving, spacing
        self.grid: Grid = fixed.grid.working(spacing)
        self.image, weight = resample(fixed, np.eye(4), self.grid)
        self.fixed = Seen(mind_ssc(self.image), weight)
        self.content = content(self.image, weight)

    def exchanged(self) -> LowRes:
        """The fixed image in the place of the moving one, and the reverse."""
        other = LowRes.__new__(LowRes)
        other._look(self.moving, self._smooth, self._spacing)
        return other

    def through(self, points: Points) -> Seen:
        """The moving image as a map brings it onto the grid."""
        targets = transform_points(self.moving.grid.world_to_index, points(self.grid.world_points()))
        size = np.asarray(self.moving.grid.size)
        inside = np.all((targets >= -0.5) & (targets <= size - 0.5), axis=-1)
        # What lies far beyond would not be whole numbers any more.
        index = torch.from_numpy(np.clip(targets, -1, size).astype(np.float32)).movedim(-1, 0).contiguous()
        index = index.to(self.moving.image.device)
        image = sample(self.moving.image[None], index)[0]
        weight = torch.from_numpy(inside.astype(np.float32)).to(image)
        if self.moving.mask is not None:
            weight *= sample(self.moving.mask[None], index, mode="nearest")[0]
        return Seen(mind_ssc(image), weight)

    def difference(self, moved: Seen) -> torch.Tensor:
        """The mean squared difference of the features in each cell, (Z, Y, X)."""
        return (moved.features - self.fixed.features).square().mean(0)

    def chance(self, moved: Seen) -> float:
        """The mean squared difference of cells paired at random, of those that both images show."""
        shown = (self.content * moved.weight).flatten() > 0.5
        if int(shown.sum()) < 2:
            return float("nan")
        one = self.fixed.features.flatten(1)[:, shown]
        other = one if moved is self.fixed else moved.features.flatten(1)[:, shown]
        # Mean of |a - b|^2 over all pairs, from the moments.
        squares = one.square().mean(1) + other.square().mean(1) - 2 * one.mean(1) * other.mean(1)
        return float(squares.mean())

    def covered(self, moved: Seen) -> float:
        """The share of what the fixed image shows that has a place in the moving one."""
        return float((self.content * moved.weight).sum() / self.content.sum().clamp_min(1))


def content(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """1 where an image (Z, Y, X) shows something or does so beside it, times the weight: air is no match."""
    shown = ((image > EMPTY) & (weight > 0)).float()
    return weight * F.max_pool3d(shown[None, None], 3, 1, 1)[0, 0]
