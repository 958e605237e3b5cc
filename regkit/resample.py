"""An image brought onto a working grid, with the weight that tells where it has data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from regkit import native
from regkit.filters import blur
from regkit.geometry import MOST_VOXELS, Float64, Grid, index_grid, map_index, sample

_CUT = 0.05  # share of a plane beyond which an image that begins there is cut, not ended


@dataclass(frozen=True)
class Source:
    """One side of a registration: normalised intensities, the mask of usable voxels, and their grid.

    Args:
        image: (Z, Y, X) float32 in [0, 1].
        mask: (Z, Y, X) float32, 1 where a voxel counts, or None if all do.
    """

    image: torch.Tensor
    mask: torch.Tensor | None
    grid: Grid

    def smoothed_for(self, spacing: float) -> Source:
        """Blurred so that sampling it at ``spacing`` mm does not alias; itself where it is coarser."""
        ratio = spacing / np.asarray(self.grid.spacing[::-1])
        sigma = 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0))
        if sigma.max() < 0.25:
            return self
        return Source(blur(self.image, sigma.tolist()), self.mask, self.grid)

    def without_filling(self, array: np.ndarray) -> Source:
        """Without the outer planes that hold one value alone next to one that cuts through something.

        Resampling leaves such planes where it found no data. Taken for air they would be an edge that the
        other image does not have. Planes of a margin that ends gently, as around a brain without its skull,
        stay: where they end is where the brain ends.

        Args:
            array: (Z, Y, X), the values as they were read.
        """
        bounds = []
        for axis in range(3):
            planes = np.moveaxis(array, axis, 0)
            first = _filled(planes)
            last = len(planes) - _filled(planes[::-1])
            bounds.append(slice(first, last) if last - first > 1 else slice(0, len(planes)))
        if all(b.stop - b.start == n for b, n in zip(bounds, array.shape)):
            return self
        start = [b.start for b in reversed(bounds)]
        size = [b.stop - b.start for b in reversed(bounds)]
        inside = tuple(bounds)
        mask = None if self.mask is None else self.mask[inside].contiguous()
        return Source(self.image[inside].contiguous(), mask, self.grid.window(tuple(start), tuple(size)))


def _filled(planes: np.ndarray) -> int:
    """How many of the first planes are filling: all of one value, before one of which much is not."""
    value = planes[0].flat[0]
    for k, plane in enumerate(planes):
        other = np.count_nonzero(plane != value)
        if other:
            return k if other > _CUT * plane.size else 0
    return 0


def resample(source: Source, matrix: Float64, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """The source seen from ``grid`` through a linear map.

    Args:
        matrix: 4x4, LPS mm of ``grid``'s world to LPS mm of the source's world.

    Returns:
        image (Z, Y, X), continued by border values where the source ends, and weight (Z, Y, X): 1
        inside the source's field of view (half a voxel beyond the outer centres) and mask, else 0.
    """
    to_source = source.grid.world_to_index @ matrix @ grid.index_to_world
    if source.mask is None and source.image.numel() < MOST_VOXELS and native.serves(source.image):
        return _native_resample(source, to_source, grid)
    where = map_index(to_source, index_grid(grid.shape, source.image.device))
    image = sample(source.image[None], where)[0]
    weight = torch.ones_like(image)
    for axis, n in enumerate(source.grid.size):
        weight *= (where[axis] >= -0.5) & (where[axis] <= n - 0.5)
    if source.mask is not None:
        weight *= sample(source.mask[None], where, mode="nearest")[0]
    return image, weight


def _native_resample(source: Source, to_source: Float64, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`resample` without a mask; no coordinates are held."""
    image, weight = native.empty(*grid.shape), native.empty(*grid.shape)
    source_image, matrix = source.image.contiguous(), np.ascontiguousarray(to_source[:3])
    native.run(
        "resample", grid.shape[0], source_image, *source_image.shape, matrix, *grid.shape[1:], image, weight
    )
    return image, weight
