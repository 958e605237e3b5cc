"""Features on a grid, with the share of each cell that has data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from regkit.ops import native
from regkit.ops.sampling import MOST_VOXELS, POINTS, sample

# Below this a weight is none: its cell's values are not divided by it.
LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class FeatureMap:
    """Features on a grid, with the share of each cell that has data.

    Args:
        values: (C, Z, Y, X).
        weight: (1, Z, Y, X) in [0, 1]; a cell of weight 0 carries no cost.
    """

    values: torch.Tensor
    weight: torch.Tensor

    def padded(self, cells: int) -> FeatureMap:
        """With ``cells`` more on every side, all of weight 0."""
        pad = (cells,) * 6
        return FeatureMap(F.pad(self.values, pad), F.pad(self.weight, pad))

    def cropped(self, cells: int) -> FeatureMap:
        """With ``cells`` fewer on every side."""
        inner = (slice(None), *(slice(cells, n - cells) for n in self.weight.shape[1:]))
        return FeatureMap(self.values[inner], self.weight[inner])

    def at(self, where: torch.Tensor) -> FeatureMap:
        """The map at index coordinates (3, Z', Y', X') of it, components (x, y, z).

        Neighbours count by their weights: what a cell without data holds does not leak into the
        interpolation beside it, where it would push displacements away from the ends of the image.
        """
        small = self.weight.numel() < MOST_VOXELS and not where.requires_grad
        if small and native.serves(self.values, self.weight, where):
            return self._at_by_kernel(where.contiguous())
        found = self.sampled(where)
        weight = found[-1:]
        return FeatureMap(found[:-1] / weight.clamp_min(LEAST_WEIGHT), weight)

    def _at_by_kernel(self, where: torch.Tensor) -> FeatureMap:
        channels, *size = self.values.shape
        shape = where.shape[1:]
        seen = FeatureMap(native.empty(channels, *shape), native.empty(1, *shape))
        maps = self.values.contiguous(), self.weight.contiguous()
        count = shape.numel()
        native.run(
            "sample_known", -(-count // POINTS), *maps, channels, *size, where, count, LEAST_WEIGHT,
            seen.values, seen.weight,
        )  # fmt: skip
        return seen

    def sampled(self, where: torch.Tensor) -> torch.Tensor:
        """Weighted values and, as the last channel, the weights at ``where``, (C + 1, Z', Y', X')."""
        return sample(self._weighted, where, outside="zeros")

    @cached_property
    def _weighted(self) -> torch.Tensor:
        return torch.cat([self.values * self.weight, self.weight])
