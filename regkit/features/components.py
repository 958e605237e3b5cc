"""The network's features of several images on their common principal components."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from regkit.core.geometry import Grid
from regkit.core.intensity import default_ct_window, is_ct, normalise, window_of
from regkit.features.maps import Extractor
from regkit.io.images import Volume
from regkit.ops.resample import Source, resample
from regkit.runtime.memory import check_fits_memory

FINEST = 2.0
"""mm: voxels that features see are no finer, unless they say that they know finer ones."""
_MAX_VOXELS = 6_000_000
_BYTES_PER_VOXEL = 60
_SAMPLE = 200_000  # cells of each image that the components are found on
_DARK = 0.03  # normalised intensity; darker cells are air or padding, and have no say in the components
_PERCENTILES = (1.0, 99.0)  # of each component, which become no and full colour


def principal_components(
    volumes: Sequence[Volume], extract: Extractor, stride: int, finest: float = FINEST
) -> list[list[Volume]]:
    """The first three principal components of all images' features together, each scaled to [0, 1].

    Args:
        extract: the features, on cells of ``stride`` voxels.
        finest: voxels that they see are no finer, mm.

    Returns:
        For each image three volumes, on the isotropic grid of its cells.
    """
    # One spacing for all, as in a registration: what is seen at two scales need not look alike.
    spacing = max(finest, *(_own_spacing(volume.grid) for volume in volumes))
    ct = [is_ct(volume.array) for volume in volumes]
    windows = [default_ct_window(ct) if is_one else None for is_one in ct]
    found = [cell_features(v, extract, stride, spacing, window) for v, window in zip(volumes, windows)]
    vectors = torch.cat([_counted(features, image) for features, image, _ in found]).double()
    mean = vectors.mean(0)
    _, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean))
    axes = directions.flip(1)[:, :3]
    axes = F.pad(axes, (0, 3 - axes.shape[1]))  # no component where there are too few channels
    # An axis has no sign of its own: the largest entry is made positive, so that colours are reproducible.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    projected = ((vectors - mean) @ axes).numpy()
    low, high = np.percentile(projected, _PERCENTILES, axis=0)
    components = []
    for features, _, grid in found:
        values = torch.einsum("czyx,ck->kzyx", features - mean.float().view(-1, 1, 1, 1), axes.float())
        scaled = (values.numpy().T - low) / np.maximum(high - low, 1e-9)
        channels = np.clip(scaled, 0, 1).T.astype(np.float32)
        components.append([Volume(channel, grid) for channel in channels])
    return components


def cell_features(
    volume: Volume, extract: Extractor, stride: int, spacing: float, ct_window: tuple[float, float] | None
) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    """Features (C, Z, Y, X), normalised intensities (Z, Y, X) and grid of an image's cells.

    Args:
        stride: voxels of ``spacing`` mm per cell.
    """
    array = volume.array
    image = normalise(array, window_of(array, ct_window))
    source = Source(torch.from_numpy(image), None, volume.grid)
    grid = volume.grid.working(spacing, stride)
    check_fits_memory(int(np.prod(grid.size)), "the features", _BYTES_PER_VOXEL)
    resampled, _ = resample(source.smoothed_for(spacing), np.eye(4), grid)
    cells = F.avg_pool3d(resampled[None], stride)[0]
    return extract(resampled, spacing), cells, grid.pooled(stride)


def _own_spacing(grid: Grid) -> float:
    """mm: the cube root of the voxel volume, or what keeps the working grid small enough."""
    return max(float(np.cbrt(np.prod(grid.spacing))), float(np.cbrt(np.prod(grid.extent) / _MAX_VOXELS)))


def _counted(features: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Vectors (M, C) of the cells that are not dark, thinned; of all if every cell is."""
    counted = torch.nonzero(image.flatten() > _DARK)[:, 0]
    if len(counted) < 4:
        counted = torch.arange(image.numel())
    return features.flatten(1)[:, counted[:: max(1, len(counted) // _SAMPLE)]].T
