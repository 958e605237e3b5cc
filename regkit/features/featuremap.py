"""Features on a grid, with the share of each cell that has data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.sampling import MOST_VOXELS, sample

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
        return _seen_at(self, where)

    def sampled(self, where: torch.Tensor) -> torch.Tensor:
        """Weighted values and, as the last channel, the weights at ``where``, (C + 1, Z', Y', X')."""
        return sample(self._weighted, where, outside="zeros")

    @cached_property
    def _weighted(self) -> torch.Tensor:
        return torch.cat([self.values * self.weight, self.weight])


@operation
def _seen_at(one: FeatureMap, where: torch.Tensor) -> FeatureMap:
    """:meth:`FeatureMap.at`."""
    found = one.sampled(where)
    return FeatureMap(found[:-1] / found[-1:].clamp_min(LEAST_WEIGHT), found[-1:])


@_seen_at.kernel(
    "c",
    lambda one, where: (
        one.weight.numel() < MOST_VOXELS
        and not where.requires_grad
        and native.serves(one.values, one.weight, where)
    ),
)
def _seen_at_by_c(one: FeatureMap, where: torch.Tensor) -> FeatureMap:
    shape = where.shape[1:]
    seen = FeatureMap(native.empty(len(one.values), *shape), native.empty(1, *shape))
    native.run(
        "sample_known", volume=one.values.contiguous(), weight=one.weight.contiguous(),
        places=where.contiguous(), least_weight=LEAST_WEIGHT, sampled=seen.values, sampled_weight=seen.weight,
    )  # fmt: skip
    return seen
