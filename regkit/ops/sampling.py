"""Interpolation of volumes at index coordinates: where align_corners and its half voxels are spelt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from regkit.ops import native
from regkit.ops.dispatch import operation

MAX_VOXELS = 2**31  # fewer than these the kernels take, which count them in 32 bits


def index_grid(shape: tuple[int, ...], device: torch.device | str = "cpu") -> torch.Tensor:
    """Index coordinates of every voxel, shape (3, Z, Y, X), components (x, y, z), float32."""
    z, y, x = torch.meshgrid(
        *[torch.arange(n, dtype=torch.float32, device=device) for n in shape], indexing="ij"
    )
    return torch.stack([x, y, z])


def map_index(matrix: npt.ArrayLike, coordinates: torch.Tensor) -> torch.Tensor:
    """Apply a 4x4 matrix to coordinates of shape (3, Z, Y, X), components (x, y, z)."""
    m = torch.as_tensor(np.asarray(matrix), dtype=coordinates.dtype, device=coordinates.device)
    return torch.einsum("ij,jzyx->izyx", m[:3, :3], coordinates) + m[:3, 3].view(3, 1, 1, 1)


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
    normalised = coordinates.movedim(0, -1) * (2 / last) - 1
    return F.grid_sample(volume[None], normalised[None], mode=mode, padding_mode=outside, align_corners=True)[
        0
    ]


def _sampled_by_c(
    volume: torch.Tensor, coordinates: torch.Tensor, *, mode: str = "bilinear", outside: str = "border"
) -> bool:
    graph = torch.is_grad_enabled() and (volume.requires_grad or coordinates.requires_grad)
    # To copy a volume that lies in another order would cost more than the kernel saves at a few places.
    usable = volume.is_contiguous() and volume[0].numel() < MAX_VOXELS
    return mode == "bilinear" and not graph and usable and native.serves(volume, coordinates)


@sample.kernel("c", _sampled_by_c)
def _sample_by_c(
    volume: torch.Tensor, coordinates: torch.Tensor, *, mode: str = "bilinear", outside: str = "border"
) -> torch.Tensor:
    coordinates = coordinates.contiguous()
    out = volume.new_empty((len(volume), *coordinates.shape[1:]))
    native.run("sample", volume=volume, places=coordinates, zeros=int(outside == "zeros"), sampled=out)
    return out


def resize(volume: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Trilinear resampling between two grids that share their field of view (:meth:`Grid.pooled`).

    Args:
        volume: (C, Z, Y, X).
        shape: (Z', Y', X').
    """
    return F.interpolate(volume[None], size=tuple(shape), mode="trilinear", align_corners=False)[0]
