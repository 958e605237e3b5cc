"""Whether an image fits another better than its mirror image does: are its left and right what they seem?

Bodies are much the same on both sides, and a mirrored image is registered as well as the image itself. What
tells them apart is what is not the same on both sides. The planes that one image is most alike on both sides
of are found in that image alone, wherever they lie: an animal's need not be its grid's. Through each of them
both images are mirrored, and what that changes in the one is compared with what it changes in the other.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from regkit.core.geometry import Float64, transform_points
from regkit.features.featuremap import FeatureMap
from regkit.features.maps import mind_ssc
from regkit.ops.resample import Source, resample
from regkit.solver.linear import block_match, fit_rigid, least_trimmed_squares
from regkit.solver.lowres import LowRes

_RADII = (3, 2, 2)  # cells that the rounds of block matching look around
_MIN_BLOCKS, _MIN_CELLS = 32, 100
_PLANES, _SAME = 2, 0.7  # how many are compared; the cosine between the normals of what is one plane
_MIN = 0.05  # of what chance gives: images that differ less from their mirror images tell nothing
_BLOCK = 5  # cells along each side of what is one observation


def handedness(look: LowRes, close: LowRes, matrix: Float64) -> float:
    """How surely an image fits another better than its mirror image does, in standard errors.

    With f and m the features of both images on the grid of the fixed one, and f' and m' those of both
    mirrored, the sum of |f - m'|^2 + |f' - m|^2 - |f - m|^2 - |f' - m'|^2 is twice that of (f - f')(m - m'):
    what is not alike on both sides agrees where it is positive. It is summed over blocks of cells, and given
    over the root of the sum of their squares.

    Args:
        look: at both images, to find the planes by.
        close: at the same images, to compare them by.
        matrix: 4x4, the linear start, from fixed LPS mm to moving LPS mm.

    Returns:
        The least over the planes. NaN where no plane tells against the image and by one of them nothing is
        told, as either image hardly differs from its mirror image; or where there is nothing to compare.
    """
    sides = _Sides(close, matrix)
    agreements = [sides.agreement(plane) for plane in mirror_planes(look)]
    known = [one for one in agreements if not np.isnan(one)]
    return min(known) if known and (len(known) == len(agreements) or min(known) < 0) else float("nan")


def mirror_planes(look: LowRes) -> list[Float64]:
    """The reflections, 4x4 in LPS mm, under which the fixed image is most like itself.

    The normal of a mirror plane is a principal axis of what is on both of its sides, so that those are tried
    as well as the axes of the grid. The best are refined by rigid block matching.
    """
    cells = np.argwhere(look.content.cpu().numpy() > 0.5)[:, ::-1]
    if len(cells) < _MIN_CELLS:
        return []
    points = transform_points(look.grid.index_to_world, cells)
    centre = points.mean(0)
    principal = np.linalg.eigh(np.cov((points - centre).T))[1]
    self = _Itself(look)
    tried = [
        (self.symmetry(seen), plane, normal, seen)
        for normal in (*np.reshape(look.grid.direction, (3, 3)).T, *principal.T)
        for plane in [_reflection(normal, centre)]
        for seen in [self.mirrored(plane)]
    ]
    distinct: list[tuple[float, Float64, Float64, FeatureMap]] = []
    for one in sorted(tried, key=lambda one: -one[0]):
        if len(distinct) < _PLANES and all(abs(one[2] @ other[2]) < _SAME for other in distinct):
            distinct.append(one)
    return [self.refined(symmetry, plane, mirrored, centre) for symmetry, plane, _, mirrored in distinct]


class _Itself:
    """The fixed image beside its own mirror images."""

    def __init__(self, look: LowRes) -> None:
        self.grid, self.content = look.grid, look.content
        self.source = Source(look.image, None, look.grid)
        self.fixed = FeatureMap(look.fixed.features, look.content[None])
        self.chance = max(look.chance(look.fixed), 1e-9)

    def mirrored(self, plane: Float64) -> FeatureMap:
        image, weight = resample(self.source, plane, self.grid)
        return FeatureMap(mind_ssc(image), weight[None])

    def symmetry(self, mirrored: FeatureMap) -> float:
        """0 where it is no more alike on both sides than chance has it, 1 where it is all the same."""
        weight = self.content * mirrored.weight[0]
        difference = (mirrored.values - self.fixed.values).square().mean(0)
        total = self.content.sum()
        return 1 - float(((difference * weight).sum() / self.chance + total - weight.sum()) / total)

    def refined(self, symmetry: float, plane: Float64, mirrored_map: FeatureMap, centre: Float64) -> Float64:
        """The plane after rigid block matching of the image and its mirror image.

        Args:
            symmetry, mirrored_map: of the image under the plane.
        """
        for radius in _RADII:
            blocks, matches = block_match(self.fixed, mirrored_map, radius)
            if blocks.shape[1] < _MIN_BLOCKS:
                break
            step = least_trimmed_squares(fit_rigid, blocks, matches)
            reflection = _nearest_reflection(
                plane @ self.grid.index_to_world @ step @ self.grid.world_to_index, centre
            )
            there = self.mirrored(reflection)
            better = self.symmetry(there)
            if better <= symmetry:
                break
            symmetry, plane, mirrored_map = better, reflection, there
        return plane


def _reflection(normal: Float64, point: Float64) -> Float64:
    """4x4, through a point, with a normal of length 1."""
    matrix = np.eye(4)
    matrix[:3, :3] -= 2 * np.outer(normal, normal)
    matrix[:3, 3] = 2 * (normal @ point) * normal
    return matrix


def _nearest_reflection(matrix: Float64, centre: Float64) -> Float64:
    """Of an improper rigid map: through half the way from a point to where it goes."""
    values, vectors = np.linalg.eig(matrix[:3, :3])
    normal = np.real(vectors[:, np.argmin(np.abs(values + 1))])
    return _reflection(normal / np.linalg.norm(normal), (centre + transform_points(matrix, centre)) / 2)


class _Sides:
    """Both images, to be compared with what mirroring makes of them."""

    def __init__(self, look: LowRes, matrix: Float64) -> None:
        self.grid = look.grid
        self.chance = look.chance(look.fixed)
        # What is seen of each without mirroring.
        self.fixed = self._resampled(Source(look.image, look.content, look.grid), np.eye(4))
        self.moving = self._resampled(look.moving, matrix)

    def _resampled(
        self, source: Source, matrix: Float64
    ) -> tuple[Source, Float64, torch.Tensor, torch.Tensor]:
        image, weight = resample(source, matrix, self.grid)
        return source, matrix, mind_ssc(image), weight

    def _change(
        self, image: tuple[Source, Float64, torch.Tensor, torch.Tensor], plane: Float64
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What mirroring changes in the features of an image, and where that is known."""
        source, matrix, features, weight = image
        mirrored, there = resample(source, matrix @ plane, self.grid)
        return features - mind_ssc(mirrored), weight * there

    def agreement(self, plane: Float64) -> float:
        """:func:`handedness` by one plane; NaN where it tells nothing."""
        in_fixed, known = self._change(self.fixed, plane)
        in_moving, weight = self._change(self.moving, plane)
        weight *= known
        count = float(weight.sum())
        if count < _MIN_CELLS or not self.chance > 0:
            return float("nan")
        smallest = min(float((one.square().mean(0) * weight).sum()) for one in (in_fixed, in_moving)) / count
        if smallest < _MIN * self.chance:
            return float("nan")
        products = (in_fixed * in_moving).mean(0) * weight
        side = [min(_BLOCK, n) for n in products.shape]
        sums = F.avg_pool3d(products[None, None], side, ceil_mode=True, count_include_pad=False)
        return float(sums.sum() / sums.square().sum().sqrt().clamp_min(1e-12))
