"""An image brought onto a working grid, with the weight that tells where it has data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from regkit.core.geometry import Float64, Grid
from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.filters import blur
from regkit.ops.sampling import MAX_VOXELS, index_grid, map_index, sample

_CUT = 0.05  # share of a plane beyond which an image that begins there is cut, not ended
# Of the voxels: how many make filling worth a look, and how many may lie between data along a line.
_FILLING, _GAPS = 0.002, 0.002
_FLAT, _FLAT_SHARE = 0.75, 0.9  # voxels off a plane, over a quarter of a side, and how much of it is as flat
_MIN_SIDE, _SIDE = 8, 64  # voxels along a side that are looked at
_ALIKE = 1e-4  # of the range of an image: values so close are one, whatever noise of arithmetic is on them
_NEAR_FILLING = 3  # voxels beside filling in which features see it


@dataclass(frozen=True)
class Source:
    """One side of a registration: normalised intensities, the mask of usable voxels, and their grid.

    Args:
        image: (Z, Y, X) float32 in [0, 1].
        mask: (Z, Y, X) float32, 1 where a voxel counts, or None if all do.
        labels: the image holds numbers of labels. They are not interpolated, and end in 0 where it does.
    """

    image: torch.Tensor
    mask: torch.Tensor | None
    grid: Grid
    labels: bool = False

    def smoothed_for(self, spacing: float) -> Source:
        """Blurred so that sampling it at ``spacing`` mm does not alias; itself where it is coarser."""
        ratio = spacing / np.asarray(self.grid.spacing[::-1])
        sigma = 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0))
        if sigma.max() < 0.25 or self.labels:
            return self
        return Source(blur(self.image, sigma.tolist()), self.mask, self.grid)

    def without_filling(self, array: np.ndarray) -> Source:
        """Without the outer planes and the corners that hold one value alone where something is cut off.

        Resampling leaves them where it found no data. Taken for air they would be an edge that the other
        image does not have. A margin that ends gently, as around a brain without its skull, stays: where it
        ends is where the brain ends.

        Args:
            array: (Z, Y, X), the values as they were read.
        """
        bounds = []
        some = array[::4, ::4, ::4]
        alike = _ALIKE * float(some.max() - some.min())
        for axis in range(3):
            planes = np.moveaxis(array, axis, 0)
            first = _filled(planes, alike)
            last = len(planes) - _filled(planes[::-1], alike)
            bounds.append(slice(first, last) if last - first > 1 else slice(0, len(planes)))
        within = tuple(bounds)
        turned = _turned_box(array[within], alike)
        if turned is None and all(b.stop - b.start == n for b, n in zip(bounds, array.shape)):
            return self
        mask = None if self.mask is None else self.mask[within].contiguous()
        if turned is not None:
            away = _away_from(~turned).to(self.image)
            mask = away if mask is None else mask * away
        start = [b.start for b in reversed(bounds)]
        size = [b.stop - b.start for b in reversed(bounds)]
        return Source(self.image[within].contiguous(), mask, self.grid.window(tuple(start), tuple(size)))


def _away_from(filling: np.ndarray) -> torch.Tensor:
    """(Z, Y, X) float32: 0 in filling and so near it that features see it, 1 elsewhere."""
    near = torch.from_numpy(filling)[None].float()
    for axis in range(3):
        reach = [_NEAR_FILLING * (axis == k) for k in range(3)]
        near = F.max_pool3d(near, [1 + 2 * n for n in reach], stride=1, padding=reach)
    return 1 - near[0]


def _turned_box(image: np.ndarray, alike: float) -> np.ndarray | None:
    """Where an image has data, if that is a box that lies askew in its grid and one value fills the rest.

    A box is convex, so that data lie side by side along every line; and its sides are flat, which those of a
    body or of a scanner's round field of view are not. Every few voxels tell.

    Args:
        image: (Z, Y, X).
        alike: by how much values may differ that are one.

    Returns:
        (Z, Y, X) bool, or None if it is no such image.
    """
    if min(image.shape) < _MIN_SIDE:
        return None
    corners = image[np.ix_((0, -1), (0, -1), (0, -1))].ravel()
    value = float(max(corners, key=lambda one: np.count_nonzero(abs(corners - float(one)) <= alike)))
    some = tuple(slice(None, None, max(n // _SIDE, 1)) for n in image.shape)
    for passes in (0, 1):
        data = _with_data(image[some], value, alike, passes)
        if np.count_nonzero(~data) < _FILLING * data.size:
            return None
        if _is_convex(data):
            return _with_data(image, value, alike, passes) if _has_flat_sides(data) else None
    return None


def _with_data(image: np.ndarray, value: float, alike: float, passes: int) -> np.ndarray:
    """Where an image is not of one value; with a pass, of no 3^3 voxels of it: some air may have it too."""
    filling = abs(image - value) <= alike
    if passes:
        from scipy.ndimage import binary_opening  # takes 0.1 s to import, and few images need it

        filling = binary_opening(np.pad(filling, 1, mode="edge"), np.ones((3, 3, 3)))[1:-1, 1:-1, 1:-1]
    return np.asarray(~filling)


def _is_convex(data: np.ndarray) -> bool:
    """Whether hardly any voxel without data lies between two that have some, along any axis."""
    count = np.count_nonzero(data)
    lengths = (np.maximum(last - first, 0).sum() for first, last in (_ends(data, axis) for axis in range(3)))
    return all(length - count <= _GAPS * count for length in lengths)


def _has_flat_sides(data: np.ndarray) -> bool:
    """Whether the depth at which data begin or end, seen along the axes, seldom bends."""
    bends = []
    for axis, n in enumerate(data.shape):
        for depth in _ends(data, axis):
            inside = np.where((depth > 0) & (depth < n), depth, np.nan)
            for rows in (inside, inside.T):
                lag = max(len(rows) // 8, 2)
                bends.append(np.abs(rows[lag:-lag] - (rows[2 * lag :] + rows[: -2 * lag]) / 2).ravel())
    known = np.concatenate(bends)
    known = known[np.isfinite(known)]
    return known.size > 0 and float((known <= _FLAT).mean()) > _FLAT_SHARE


def _ends(data: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each line along an axis where data begin, and one past where they end; n and 0 without data."""
    some, n = data.any(axis), data.shape[axis]
    first = np.where(some, data.argmax(axis), n)
    last = np.where(some, n - np.flip(data, axis).argmax(axis), 0)
    return first, last


def _filled(planes: np.ndarray, alike: float) -> int:
    """How many of the first planes are filling: all of one value, before one of which much is not."""
    value = float(planes[0].flat[0])
    for k, plane in enumerate(planes):
        other = np.count_nonzero(abs(plane - value) > alike)
        if other:
            return k if other > _CUT * plane.size else 0
    return 0


@operation
def resample(source: Source, matrix: Float64, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """The source seen from ``grid`` through a linear map.

    Args:
        matrix: 4x4, LPS mm of ``grid``'s world to LPS mm of the source's world.

    Returns:
        image (Z, Y, X), continued by border values where the source ends, and weight (Z, Y, X): 1
        inside the source's field of view (half a voxel beyond the outer centres) and mask, else 0; of
        labels 1 everywhere.
    """
    to_source = source.grid.world_to_index @ matrix @ grid.index_to_world
    index = map_index(to_source, index_grid(grid.shape, source.image.device))
    image = sample(source.image[None], index, mode="nearest" if source.labels else "bilinear")[0]
    weight = torch.ones_like(image)
    for axis, n in enumerate(source.grid.size):
        weight *= (index[axis] >= -0.5) & (index[axis] <= n - 0.5)
    if source.mask is not None:
        weight *= sample(source.mask[None], index, mode="nearest")[0]
    return (image * weight, torch.ones_like(weight)) if source.labels else (image, weight)


@resample.kernel(
    "c",
    lambda source, matrix, grid: (
        source.mask is None
        and not source.labels
        and source.image.numel() < MAX_VOXELS
        and native.serves(source.image)
    ),
)
def _resample_by_c(source: Source, matrix: Float64, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Without a mask; no coordinates are held."""
    to_source = source.grid.world_to_index @ matrix @ grid.index_to_world
    image, weight = native.empty(*grid.shape), native.empty(*grid.shape)
    native.run(
        "resample", image=source.image.contiguous(), matrix=np.ascontiguousarray(to_source[:3]),
        resampled=image, inside=weight,
    )  # fmt: skip
    return image, weight
