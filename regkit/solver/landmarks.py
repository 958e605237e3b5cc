"""Pairs of landmarks as soft constraints on a displacement field.

Between the levels of the coarse stage the field is pulled towards them over their neighbourhoods, so that the
search goes on from there; in the fine stage they are a term of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from regkit.core.geometry import Float64, Grid, sample, transform_points

# Voxels of the working grid over which a landmark takes its surroundings along: a standard deviation.
_REACH = 12.0
# Variance of a landmark of weight 1, as a share of that of the displacements that it corrects.
_NOISE = 0.1
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
        reach: cells.
    """

    at: torch.Tensor
    displacement: torch.Tensor
    weight: float = 1.0
    reach: float = _REACH

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
        return Landmarks(self._within(stride), self.displacement / stride, self.weight, self.reach / stride)

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
        covariance = (-0.5 * (apart / self.reach).square()).exp()
        covariance.diagonal().add_(_NOISE / self.weight)
        shares = torch.linalg.solve(covariance, self.after(field).displacement.T).T
        near = [
            (-0.5 * ((torch.arange(n, device=field.device)[:, None] - at) / self.reach).square()).exp()
            for n, at in zip(field.shape[:0:-1], self.at)
        ]
        return field + torch.einsum("in,xn,yn,zn->izyx", shares, *near)

    def kept(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The field ``after``, but around the landmarks what the field ``before`` was."""
        return replace(self, displacement=_values(before, self.at)).pulled(after)

    def cost(self, field: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """The weighted sum of squares of what is missing at the landmarks.

        Args:
            field: (3, Z, Y, X) in these cells, on the lattice of cells of ``stride`` of them.
        """
        missing = self.displacement - _values(field, self._within(stride))
        return self.weight * _COST * missing.square().sum()

    def _within(self, stride: int) -> torch.Tensor:
        return (self.at - (stride - 1) / 2) / stride


def _values(field: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Values (3, n) of a field at index coordinates (3, n)."""
    return sample(field, at[:, :, None, None].contiguous())[:, :, 0, 0]
