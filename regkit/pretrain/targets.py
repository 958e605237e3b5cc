"""Training targets from a label map. They do not depend on the contrast of the image.

All are on cells of ``stride`` voxels. Two kinds: *affinities*, whether a point at a given offset lies in the
same structure (what MIND guesses from intensities), and the *distance* to the nearest boundary between
structures and the direction away from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from regkit.synthesis.structures import STRUCTURES

_FARTHEST = 12  # voxels; distances beyond are not told apart
DISTANCE_CHANNELS = 6
STRUCTURE_CHANNELS = 1 + len(STRUCTURES)  # and 0 for everything else


@dataclass(frozen=True)
class Targets:
    """Targets of N volumes on their cells.

    Args:
        affinity: (N, 6 x offsets, Z, Y, X) in [0, 1]; NaN where the offset leads out of the volume.
        distance: (N, 6, Z, Y, X): exp(-d / 2), exp(-d / 5), min(d, 12) / 12, and the unit direction (x, y, z)
            away from the boundary times exp(-d / 6); d in voxels.
    """

    affinity: torch.Tensor
    distance: torch.Tensor


def targets_of(labels: torch.Tensor, offsets: Sequence[int], stride: int) -> Targets:
    """Targets of label maps (N, Z, Y, X), sides divisible by ``stride``; offsets in voxels."""
    return Targets(affinity(labels, offsets, stride), distance(labels, stride))


def affinity(labels: torch.Tensor, offsets: Sequence[int], stride: int) -> torch.Tensor:
    """Whether the label at an offset along an axis is that of the voxel itself, averaged over two voxels of
    each cell, the opposite corners; channels run over offsets, then axes (z, y, x), then (-, +).
    """
    n, *shape = labels.shape
    cells = [s // stride for s in shape]
    # int16 leaves room for -1: outside.
    margin = max(offsets, default=0)
    wide = F.pad(labels.to(torch.int16), (margin,) * 6, value=-1)
    out = labels.new_zeros((n, 6 * len(offsets), *cells), dtype=torch.float32)
    corners = sorted({0, stride - 1})
    for corner in corners:
        here = labels[:, corner::stride, corner::stride, corner::stride].to(torch.int16)
        for k, (offset, axis, sign) in enumerate(
            (o, a, s) for o in offsets for a in range(3) for s in (-1, 1)
        ):
            start = [margin + corner + (sign * offset if a == axis else 0) for a in range(3)]
            box = (slice(s, s + side - corner, stride) for s, side in zip(start, shape))
            there = wide[(slice(None), *box)]
            same = (there == here).float()
            out[:, k] += same.masked_fill_(there < 0, torch.nan)
    return out.div_(len(corners))


def distance(labels: torch.Tensor, stride: int) -> torch.Tensor:
    """The six distance channels of :class:`Targets`."""
    d = boundary_distance(labels)
    slopes = torch.stack(torch.gradient(d, dim=(3, 2, 1)), dim=1)
    # Written out: F.normalize takes ten times as long over an axis that is not the last.
    length = slopes.square().sum(1, keepdim=True).sqrt().clamp_min(1e-3)
    d = d[:, None]
    slopes = slopes / length * torch.exp(-d / 6)
    channels = torch.cat([torch.exp(-d / 2), torch.exp(-d / 5), d / _FARTHEST, slopes], dim=1)
    return F.avg_pool3d(channels, stride)


def boundary_distance(labels: torch.Tensor) -> torch.Tensor:
    """Distance in voxels from each voxel's centre to the nearest face between two labels, at most 12.

    Exact along the axes: half a voxel beside a face. Elsewhere the nearest voxel beside a face counts, plus
    that half.
    """
    far = float(_FARTHEST**2)
    square = torch.full(labels.shape, far, device=labels.device)
    for axis in (1, 2, 3):
        n = labels.shape[axis] - 1
        edge = labels.narrow(axis, 0, n) != labels.narrow(axis, 1, n)
        for start in (0, 1):
            square.narrow(axis, start, n).masked_fill_(edge, 0.0)
    # Squared Euclidean distances, one axis after another, as far as they count.
    for axis in (1, 2, 3):
        source = square.clone()
        for shift in range(1, min(_FARTHEST, labels.shape[axis])):
            n = labels.shape[axis] - shift
            moved = source + float(shift * shift)
            for to, origin in ((shift, 0), (0, shift)):
                view = square.narrow(axis, to, n)
                torch.minimum(view, moved.narrow(axis, origin, n), out=view)
    return square.sqrt_().add_(0.5).clamp_(max=float(_FARTHEST))
