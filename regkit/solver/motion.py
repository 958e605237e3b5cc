"""Small rigid motion between the frames of one series, to a fraction of a voxel.

The linear start (:mod:`regkit.solver.linear`) finds a pose from far away and of any modality, which takes a
second. The frames of a series lie near each other and are of one modality, and there are hundreds of them.
They are compared by local contrast: intensities less their mean around, over their deviation there, which a
bolus or a drift of the receiver hardly changes. Gauss-Newton by inverse composition (Baker and Matthews, IJCV
2004) takes the slopes of the reference, once for all frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from regkit.core.geometry import Float64, Grid, linear_about
from regkit.ops.filters import blur
from regkit.ops.resample import Source, resample

_FACTORS = (3.0, 1.5, 1.0)  # of the spacing, from coarse to fine
_CELLS = 250_000  # of the finest grid, at most
_ROUNDS = 15
_SETTLED = 1e-3  # mm at the border of the field of view: a smaller step is the last
_MIN_OVERLAP = 0.2  # of the reference
_AROUND = 3.0  # voxels, standard deviation of the window of local contrast
_FLAT = 0.05  # of the range of intensities: what deviates less around a voxel is noise


@dataclass(frozen=True)
class Fit:
    """Where a frame lies.

    Args:
        matrix: 4x4, rigid, LPS mm of the reference to LPS mm of the frame.
        difference: mean squared difference of local contrast over the overlap.
    """

    matrix: Float64
    difference: float


class Reference:
    """What frames are compared with.

    Args:
        image: normalised to [0, 1].
    """

    def __init__(self, image: Source) -> None:
        spacing = max(
            float(np.cbrt(np.prod(image.grid.spacing))), float(np.cbrt(np.prod(image.grid.extent) / _CELLS))
        )
        self._levels = [_Level(image, factor * spacing) for factor in _FACTORS]

    def fit(self, frame: Source, start: Float64, *, near: bool = False) -> Fit:
        """The rigid map under which the frame agrees best with the reference, near ``start``.

        Args:
            frame: normalised as the reference.
            start: 4x4, reference to frame.
            near: look within a voxel alone.
        """
        matrix = start
        for level in self._levels[-1:] if near else self._levels:
            matrix, difference = level.fit(frame, matrix)
        return Fit(matrix, difference)


class _Level:
    """The reference on one grid, with its slopes."""

    def __init__(self, image: Source, spacing: float) -> None:
        self.grid = image.grid.working(spacing)
        frame, self.weight = resample(image.smoothed_for(spacing), np.eye(4), self.grid)
        self.values = _local_contrast(frame)
        # By x, y, z of the grid, per mm.
        self.slopes = torch.stack(torch.gradient(self.values, dim=(2, 1, 0))) / spacing
        self.axes = np.reshape(self.grid.direction, (3, 3))
        self.lever = _lever(self.grid, self.values.device)
        # How the value changes by each motion of the reference: shifts along and turns about its axes.
        self.changes = torch.cat([self.slopes, torch.linalg.cross(self.lever, self.slopes, dim=0)])
        self.reach = float(np.linalg.norm(self.grid.extent)) / 2

    def fit(self, frame: Source, matrix: Float64) -> tuple[Float64, float]:
        """The pose and the mean squared difference there, which is infinite where too little overlaps."""
        frame = frame.smoothed_for(self.grid.spacing[0])
        best, lowest = matrix, np.inf
        for _ in range(_ROUNDS):
            image, weight = resample(frame, matrix, self.grid)
            weight = weight * self.weight
            total = float(weight.sum())
            if total <= _MIN_OVERLAP * float(self.weight.sum()):
                break
            residual = _local_contrast(image).sub_(self.values)
            difference = float((residual.square() * weight).sum()) / total
            if difference >= lowest:
                break
            best, lowest = matrix, difference
            shift, turn = self._step(residual, weight)
            if float(np.linalg.norm(shift) + self.reach * np.linalg.norm(turn)) < _SETTLED:
                break
            matrix = matrix @ np.linalg.inv(
                linear_about(self.grid.centre, Rotation.from_rotvec(turn).as_matrix(), shift)
            )
        return best, lowest

    def _step(self, residual: torch.Tensor, weight: torch.Tensor) -> tuple[Float64, Float64]:
        """The small motion of the reference that explains the residual: a shift, mm, and a turn, radians."""
        weighted = (self.changes * weight).flatten(1)
        normal = (weighted @ self.changes.flatten(1).T).double().cpu().numpy()
        force = (weighted @ residual.flatten()).double().cpu().numpy()
        motion = np.linalg.lstsq(normal, force, rcond=1e-9)[0]
        # A turn is a pseudovector: on axes of the left hand it goes the other way round.
        return self.axes @ motion[:3], np.linalg.det(self.axes) * (self.axes @ motion[3:])


def _local_contrast(image: torch.Tensor) -> torch.Tensor:
    """(Z, Y, X) in [0, 1] to (Z, Y, X)."""
    sigmas = [_AROUND] * 3
    mean = blur(image, sigmas)
    deviation = (blur(image.square(), sigmas) - mean.square()).clamp_min_(0).add_(_FLAT**2).sqrt_()
    return (image - mean).div_(deviation)


def parameters(matrix: Float64, centre: Float64) -> Float64:
    """Shifts along and turns about x, y and z (LPS mm, degrees) of a rigid map, (6,).

    The map is a turn about x, then y, then z, all through ``centre``, and then the shift: that of ITK's
    Euler3DTransform with ComputeZYX.
    """
    turn = Rotation.from_matrix(matrix[:3, :3]).as_euler("xyz", degrees=True)
    return np.concatenate([matrix[:3, :3] @ centre + matrix[:3, 3] - centre, turn])


def _lever(grid: Grid, device: torch.device) -> torch.Tensor:
    """Where each voxel of an isotropic grid lies from the middle, mm along the grid's axes, (3, Z, Y, X)."""
    z, y, x = (
        (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) * grid.spacing[0]
        for n in grid.shape
    )
    return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1])
