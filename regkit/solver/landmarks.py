"""Pairs of landmarks as soft constraints on a displacement field.

Between the levels of the coarse stage the field is pulled towards them over their neighbourhoods, so that the
search goes on from there; in the fine stage they are a term of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from regkit.core.geometry import Float64, Grid, transform_points
from regkit.ops.sampling import sample

# Cells over which a landmark takes its surroundings along: a standard deviation.
_REACH = 4.0
# Variance of a landmark of weight 1, as a share of that of the displacements that it corrects.
_NOISE = 0.3
# What a landmark that is one cell off costs, beside squared feature differences of which 12 are a whole
# mismatch of one cell.
_COST = 100.0


@dataclass(frozen=True)
class Landmarks:
    """Where landmarks of the fixed image lie on a lattice, and the displacements that they ask for.

    Args:
        at: (3, n) float32, index coordinates of the lattice, components (x, y, z).
        displacement: (3, n) float32, in its cells.
        weight: how firmly they hold; 1 is usual.
    """

    at: torch.Tensor
    displacement: torch.Tensor
    weight: float = 1.0

    @classmethod
    def on(
        cls, grid: Grid, matrix: Float64, fixed: Float64, moving: Float64, weight: float, device: torch.device
    ) -> Landmarks:
        """Landmarks on a working grid, after a linear start.

        Args:
            matrix: 4x4, fixed LPS mm -> moving LPS mm, which the displacement goes before.
            fixed, moving: (n, 3), LPS mm.
        """
        at = transform_points(grid.world_to_index, fixed)
        goal = transform_points(grid.world_to_index @ np.linalg.inv(matrix), moving)

        def tensor(points: Float64) -> torch.Tensor:
            return torch.tensor(points.T, dtype=torch.float32, device=device)

        return cls(tensor(at), tensor(goal - at), weight)

    def pooled(self, stride: int) -> Landmarks:
        """The same on the lattice of cells of ``stride`` of these (:meth:`Grid.pooled`)."""
        return Landmarks(self._within(stride), self.displacement / stride, self.weight)

    def after(self, field: torch.Tensor) -> Landmarks:
        """What is left to ask for after a displacement field (3, Z, Y, X), cells."""
        return replace(self, displacement=self.displacement - _values(field, self.at))

    def pulled(self, field: torch.Tensor) -> torch.Tensor:
        """A displacement field that comes closer to what the landmarks ask for, smoothly so around them.

        What is missing at the landmarks is interpolated by a Gaussian process whose noise is that of the
        landmarks: where they contradict their neighbours they are not followed.

        Args:
            field: (3, Z, Y, X), cells.
        """
        apart = torch.cdist(self.at.T, self.at.T)
        covariance = (-0.5 * (apart / _REACH).square()).exp()
        covariance.diagonal().add_(_NOISE / self.weight)
        shares = torch.linalg.solve(covariance, self.after(field).displacement.T).T
        near = [
            (-0.5 * ((torch.arange(n, device=field.device)[:, None] - at) / _REACH).square()).exp()
            for n, at in zip(field.shape[:0:-1], self.at)
        ]
        return field + torch.einsum("in,xn,yn,zn->izyx", shares, *near)

    def kept(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The field ``after``, but around the landmarks what the field ``before`` was."""
        return replace(self, displacement=_values(before, self.at)).pulled(after)

    def term(self, shape: Sequence[int], stride: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
        """The cost of fields on one lattice: the weighted sum of squares of what is missing at the landmarks.

        Args:
            shape: (Z, Y, X) of the lattice, whose cells have ``stride`` of these along a side.

        Returns:
            A function of a field (3, Z, Y, X) in these cells. It interpolates as
            :func:`regkit.ops.sampling.sample` does, but makes no tensor from numbers, so that a GPU can
            repeat its steps.
        """
        at = self._within(stride)
        ends = [n - 1 for n in reversed(shape)]
        at = torch.stack([x.clamp(0, end) for x, end in zip(at, ends)])
        low = torch.stack([x.floor().clamp(0, max(end - 1, 0)) for x, end in zip(at, ends)])
        share, first = at - low, low.long()
        steps, index, weight = (1, shape[2], shape[1] * shape[2]), [], []
        for corner in product((0, 1), repeat=3):
            cells = [(f + c).clamp(max=end) * step for f, c, end, step in zip(first, corner, ends, steps)]
            index.append(sum(cells))
            weight.append(torch.stack([s if c else 1 - s for s, c in zip(share, corner)]).prod(0))
        places, shares = torch.stack(index), torch.stack(weight)

        def cost(field: torch.Tensor) -> torch.Tensor:
            displaced = (field.flatten(1)[:, places] * shares).sum(1)
            return self.weight * _COST * (self.displacement - displaced).square().sum()

        return cost

    def _within(self, stride: int) -> torch.Tensor:
        return (self.at - (stride - 1) / 2) / stride


def _values(field: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Values (3, n) of a field at index coordinates (3, n)."""
    return sample(field, at[:, :, None, None].contiguous())[:, :, 0, 0]
