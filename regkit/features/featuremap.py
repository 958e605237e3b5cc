"""Features on a grid, with the share of each cell that has data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.sampling import MAX_VOXELS, sample

# Below this a weight is none: its cell's values are not divided by it.
MIN_WEIGHT = 1e-6


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

    def at(self, coordinates: torch.Tensor) -> FeatureMap:
        """The map at index coordinates (3, Z', Y', X') of it, components (x, y, z).

        Neighbours count by their weights: what a cell without data holds does not leak into the
        interpolation beside it, where it would push displacements away from the ends of the image.
        """
        return _seen_at(self, coordinates)

    def sampled(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Weighted values and, as the last channel, the weights at ``coordinates``, (C + 1, Z', Y', X')."""
        return sample(self._weighted, coordinates, outside="zeros")

    @cached_property
    def _weighted(self) -> torch.Tensor:
        return torch.cat([self.values * self.weight, self.weight])


@operation
def _seen_at(one: FeatureMap, coordinates: torch.Tensor) -> FeatureMap:
    """:meth:`FeatureMap.at`."""
    sampled = one.sampled(coordinates)
    return FeatureMap(sampled[:-1] / sampled[-1:].clamp_min(MIN_WEIGHT), sampled[-1:])


@_seen_at.kernel(
    "c",
    lambda one, coordinates: (
        one.weight.numel() < MAX_VOXELS
        and not coordinates.requires_grad
        and native.serves(one.values, one.weight, coordinates)
    ),
)
def _seen_at_by_c(one: FeatureMap, coordinates: torch.Tensor) -> FeatureMap:
    shape = coordinates.shape[1:]
    moved = FeatureMap(native.empty(len(one.values), *shape), native.empty(1, *shape))
    native.run(
        "sample_known", volume=one.values.contiguous(), weight=one.weight.contiguous(),
        places=coordinates.contiguous(), least_weight=MIN_WEIGHT, sampled=moved.values,
        sampled_weight=moved.weight,
    )  # fmt: skip
    return moved
