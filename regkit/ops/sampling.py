"""Values of volumes between their voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regkit.ops import native
from regkit.ops.dispatch import operation

MOST_VOXELS = 2**31  # fewer than these the kernels take, which count them in 32 bits


@operation
def sample(
    volume: torch.Tensor, coordinates: torch.Tensor, *, mode: str = "bilinear", outside: str = "border"
) -> torch.Tensor:
    """Values of a volume at index coordinates, by trilinear or nearest interpolation.

    Args:
        volume: (C, Z, Y, X).
        coordinates: (3, Z', Y', X'), index coordinates of ``volume``, components (x, y, z).
        outside: ``"border"`` repeats the nearest voxel, ``"zeros"`` gives 0 from one voxel outside on.

    Returns:
        (C, Z', Y', X'), differentiable in both arguments.
    """
    last = torch.tensor(
        [max(n - 1, 1) for n in volume.shape[:0:-1]], dtype=coordinates.dtype, device=coordinates.device
    )
    where = coordinates.movedim(0, -1) * (2 / last) - 1
    return F.grid_sample(volume[None], where[None], mode=mode, padding_mode=outside, align_corners=True)[0]


def _sampled_by_c(
    volume: torch.Tensor, coordinates: torch.Tensor, *, mode: str = "bilinear", outside: str = "border"
) -> bool:
    graph = torch.is_grad_enabled() and (volume.requires_grad or coordinates.requires_grad)
    # To copy a volume that lies in another order would cost more than the kernel saves at a few places.
    usable = volume.is_contiguous() and volume[0].numel() < MOST_VOXELS
    return mode == "bilinear" and not graph and usable and native.serves(volume, coordinates)


@sample.kernel("c", _sampled_by_c)
def _sample_by_c(
    volume: torch.Tensor, coordinates: torch.Tensor, *, mode: str = "bilinear", outside: str = "border"
) -> torch.Tensor:
    coordinates = coordinates.contiguous()
    out = volume.new_empty((len(volume), *coordinates.shape[1:]))
    native.run("sample", volume=volume, places=coordinates, zeros=int(outside == "zeros"), sampled=out)
    return out
