"""What a part of the features is worth on a pair: how well its costs tell a match from a near miss there.

The numbers below were chosen on the pairs that choose, and on images beside copies of themselves in another
contrast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from regkit.features.featuremap import FeatureMap
from regkit.ops.filters import box_sum, smooth
from regkit.ops.sampling import index_grid, resize

_NEAR_MISS = 2  # cells
# A part whose match costs this share of a near miss, or more, tells nothing.
_WORTHLESS = 0.95
# A reference below this leaves too little doubt about matches for others to mend.
_CLEAR = 0.5
# Below this share of its weight a part is left out, above the other it counts no more.
_MIN_SHARE, _MAX_SHARE = 0.1, 1.25
# Cells. The multiple was chosen so that of what is said to be within a voxel, 95 % are.
_DOUBT, _MIN_DOUBT, MAX_DOUBT = 0.5, 0.05, 8.0
_DOUBT_PASSES = 4
_DOUBT_TAKEN, _TAKEN, _TAKEN_PASSES = 0.8, 2.0, 6
# A displacement is kept where the difference falls to this share of what it is without, and the features
# correlate at least so much.
_BORNE_OUT, _CORRELATED = 0.95, 0.3
_AROUND_PASSES, _BLEND_PASSES = 8, 4
_ONE_MODALITY, _ONE_MODALITY_LOCAL = 0.57, 0.62
_BLOCK = 8  # cells along each side of what a correlation is taken over
_MIN_POWER = 0.05  # of the mean of all blocks, below which there is nothing that differs
_AIR = 0.08  # share of the brightest below which there is nothing
_OUTLYING = 4.0  # root mean squares of what differs, beyond which it is no copy
_MAX_GAIN = 2.0


def differences_near(
    fixed: FeatureMap, moving: FeatureMap, offset: torch.Tensor, displacement: torch.Tensor
) -> Callable[[tuple[int, int, int]], tuple[torch.Tensor, torch.Tensor]]:
    """The squared differences, mean over the channels, under a displacement and any shift (x, y, z) of it.

    Args:
        fixed, moving, offset, displacement: as for :func:`blur_of_match`.

    Returns:
        A function of the shift, cells: differences and weights of every second cell along each axis, both
        (1, Z / 2, Y / 2, X / 2).
    """
    every_second = (slice(None), *(slice(None, None, 2),) * 3)
    coordinates = (index_grid(displacement.shape[1:], displacement.device) + displacement)[every_second]
    coordinates = coordinates + offset.to(coordinates).view(3, 1, 1, 1)
    values, weight = fixed.values[every_second], fixed.weight[every_second]

    def differences(shift: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        moved = moving.at(coordinates + coordinates.new_tensor(shift).view(3, 1, 1, 1))
        return moved.values.sub_(values).square_().mean(0, keepdim=True), weight * moved.weight

    return differences


def blur_of_match(
    fixed: FeatureMap, moving: FeatureMap, offset: torch.Tensor, displacement: torch.Tensor
) -> float:
    """Mean cost of a displacement, divided by its mean when the moving features are shifted by two cells.

    0 where every cell is told from its neighbours, 1 where a near miss is as good as a match. Of every second
    cell along each axis.

    Args:
        fixed: map on the grid of the displacement.
        moving: map on a lattice of the same spacing and axes.
        offset: (x, y, z), the index in ``moving`` of the cell that lies on the fixed cell (0, 0, 0).
        displacement: (3, Z, Y, X) in cells.
    """
    differences = differences_near(fixed, moving, offset, displacement)

    def cost(shift: tuple[int, int, int]) -> float:
        difference, known = differences(shift)
        return float((difference * known).sum() / known.sum().clamp_min(1e-6))

    steps = [
        tuple(sign * _NEAR_MISS * (axis == k) for k in range(3)) for axis in range(3) for sign in (-1, 1)
    ]
    misses = [cost(step) for step in steps]  # type: ignore[arg-type]
    return cost((0, 0, 0)) / max(sum(misses) / len(misses), 1e-9)


def resel_volume(
    fixed: FeatureMap, moving: FeatureMap, offset: torch.Tensor, displacement: torch.Tensor
) -> float:
    """How many cells go together in what still differs under a displacement: its resolution element, cells.

    Features of blurred images differ alike over many cells, and so do those of images that do not show the
    same: as many cells are one observation and not many (the virtual decimation of Simpson et al., 2012). The
    correlation of neighbours along an axis, rho = exp(-1 / (4 s^2)), gives the full width at half maximum
    2.355 s (Forman et al., 1995); the volume is the product of the three, its median over blocks of cells.

    Args:
        fixed, moving, offset, displacement: as for :func:`blur_of_match`.

    Returns:
        About 3 to 7 for pairs whose details agree, above 8 for images smoothed by 8 mm at cells of 4 mm.
    """
    if min(displacement.shape[1:]) < 2:  # a cell without a neighbour
        return 1.0
    coordinates = index_grid(displacement.shape[1:], displacement.device) + displacement
    moved = moving.at(coordinates + offset.to(coordinates).view(3, 1, 1, 1))
    known = fixed.weight * moved.weight
    differences = moved.values.sub_(fixed.values).mul_(known.sqrt())
    side = [min(_BLOCK, n - 1) for n in known.shape[1:]]

    def means(volume: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(volume[None], side, ceil_mode=True, count_include_pad=False)[0]

    here = differences[:, :-1, :-1, :-1]
    power = means(here.square().mean(0, keepdim=True))
    volume = torch.ones_like(power)
    for axis in (1, 2, 3):
        next_ones = tuple(slice(1, None) if k == axis else slice(-1) for k in (1, 2, 3))
        product = here * differences[(slice(None), *next_ones)]
        correlation = means(product.mean(0, keepdim=True)) / power.clamp_min(1e-12)
        volume *= 2.355 / (-4 * correlation.clamp_(0.05, 0.97).log_()).sqrt_()
    counted = (means(known[:, :-1, :-1, :-1]) > 0.5) & (power > _MIN_POWER * power.mean())
    return float(volume[counted].median()) if counted.any() else 1.0


def doubt(
    fixed: FeatureMap, moving: FeatureMap, offset: torch.Tensor, displacement: torch.Tensor
) -> torch.Tensor:
    """How far off a displacement may be, cells, (Z / 2, Y / 2, X / 2): of every second cell along each axis.

    About a minimum of the cost of curvature h, noise that leaves a cost c there moves it by a multiple of
    sqrt(c / h). The curvature is taken from the costs one cell away, both are averaged over the cells around.
    Where a near miss costs no more, or nothing is known, it is as much as ``MAX_DOUBT``.

    Args:
        fixed, moving, offset, displacement: as for :func:`blur_of_match`.
    """
    differences = differences_near(fixed, moving, offset, displacement)

    def costs(shift: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        difference, known = differences(shift)
        return smooth(difference * known, _DOUBT_PASSES), smooth(known, _DOUBT_PASSES)

    here, known = costs((0, 0, 0))
    rise, lowest = torch.zeros_like(here), known
    for axis in range(3):
        for sign in (-1, 1):
            there, overlap = costs(tuple(sign * (axis == k) for k in range(3)))  # type: ignore[arg-type]
            rise += (there / overlap.clamp_min(1e-6) - here / known.clamp_min(1e-6)) / 6
            lowest = torch.minimum(lowest, overlap)
    doubts = _DOUBT * (here / known.clamp_min(1e-6) / rise.clamp_min(1e-9)).sqrt_() + _MIN_DOUBT
    doubts = torch.where((rise > 0) & (lowest > 0.25), doubts, torch.full_like(doubts, MAX_DOUBT))
    return doubts.clamp_(max=MAX_DOUBT)[0]


def taken_back(displacement: torch.Tensor, doubt: torch.Tensor) -> torch.Tensor:
    """A displacement less what the features cannot tell from none, (3, Z, Y, X) in cells.

    Up to ``_DOUBT_TAKEN`` cells of doubt nothing is taken back. Beyond, the displacement d keeps the share
    |d|^2 / (|d|^2 + e^2), with e in proportion to the doubt that is too much, as in a Wiener filter: where
    the features are as flat as those of images smoothed by 8 mm, only what is large beside the doubt stays.

    Args:
        displacement: from the linear start, (3, Z, Y, X) in cells.
        doubt: of :func:`doubt`, (Z / 2, Y / 2, X / 2); where it is ``MAX_DOUBT``, which tells nothing of the
            images, that of the cells around counts.
    """
    known = (doubt < MAX_DOUBT)[None].to(doubt)
    near = smooth(known, _DOUBT_PASSES)
    around = torch.where(near > 1e-3, smooth(doubt * known, _DOUBT_PASSES) / near.clamp_min(1e-3), 0.0)
    excess = _TAKEN * (resize(around, displacement.shape[1:]) - _DOUBT_TAKEN).clamp_min_(0)
    squares = smooth(displacement.square().sum(0, keepdim=True), _TAKEN_PASSES)
    share = squares / (squares + excess.square()).clamp_min_(1e-9)
    # What is 0 stays 0, whatever its share.
    share = torch.where(excess > 0, share, 1.0)
    return displacement * smooth(share, _TAKEN_PASSES)


def borne_out(
    fixed: FeatureMap, moving: FeatureMap, offset: torch.Tensor, displacement: torch.Tensor
) -> torch.Tensor:
    """A displacement where it makes the features around a cell agree better than none does, 0 elsewhere.

    Noise agrees with noise best at some displacement, whichever it is, and better still with what is flat.
    Where there is structure around, it agrees best where it lies, and correlates there.

    Args:
        fixed, moving, offset, displacement: as for :func:`blur_of_match`.

    Returns:
        (3, Z, Y, X) in cells, smooth from one to the other.
    """
    ours, theirs = (_mean_over(part) for part in (fixed, moving))
    centred = fixed.values - ours

    def agreement(tried: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared difference and correlation around each cell, (1, Z, Y, X)."""
        coordinates = index_grid(tried.shape[1:], tried.device) + tried
        moved = moving.at(coordinates + offset.to(coordinates).view(3, 1, 1, 1))
        known, other = fixed.weight * moved.weight, moved.values - theirs

        def around(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            return smooth((one * two).mean(0, keepdim=True) * known, _AROUND_PASSES)

        spread = (around(centred, centred) * around(other, other)).clamp_min(1e-12).sqrt_()
        correlation = around(centred, other) / spread
        left = moved.values.sub_(fixed.values)
        return around(left, left) / smooth(known, _AROUND_PASSES).clamp_min(1e-6), correlation

    difference, correlation = agreement(displacement)
    without, correlation_without = agreement(torch.zeros_like(displacement))
    better = (difference < _BORNE_OUT * without) & (correlation > correlation_without.clamp_min_(_CORRELATED))
    return displacement * smooth(better.to(displacement), _BLEND_PASSES)


def _mean_over(part: FeatureMap) -> torch.Tensor:
    """Of each channel over what has data, (C, 1, 1, 1)."""
    total = part.weight.sum().clamp_min(1e-6)
    return (part.values * part.weight).sum((1, 2, 3), keepdim=True) / total


def leaves_doubt(reference: float) -> bool:
    """Whether a reference of this blur leaves so much doubt about matches that other parts can mend some."""
    return reference >= _CLEAR


def share_of(blur: float, reference: float) -> float:
    """The share of its weight that a part keeps beside a reference, given both of their blurs.

    ((1 - blur) / (1 - reference))^8, as measured on real pairs and on copies in another contrast: a part that
    tells matches less well than the reference gains nowhere, whatever it recognises. Where the reference
    tells them well there is nothing left to add.
    """
    if blur >= _WORTHLESS or not leaves_doubt(reference):
        return 0.0
    share = min(((1 - blur) / max(1 - reference, 1e-3)) ** 8, _MAX_SHARE)
    return share if share >= _MIN_SHARE else 0.0


def may_be_one_modality(blur: float) -> bool:
    """Whether intensities of this blur are worth a look at their local contrast."""
    return blur < _ONE_MODALITY


def share_of_intensities(blur: float, local_blur: float) -> float:
    """1 where both images are of one modality, so that their intensities can be compared as they are, else 0.

    Bright air or skull correlates across modalities as well, but contrast within the neighbourhood does not:
    both blurs must be small.

    Args:
        blur: of the intensities.
        local_blur: of their :func:`local_contrast`.
    """
    return float(may_be_one_modality(blur) and local_blur < _ONE_MODALITY_LOCAL)


def gain_between(
    fixed: FeatureMap, moving: FeatureMap, offset: torch.Tensor, displacement: torch.Tensor
) -> float:
    """What the moving intensities are to be multiplied by to be those of the fixed image, from 1/2 to 2.

    Both are scaled to percentiles of their own, which noise, blur and another field of view change. It is the
    ratio of their root mean squares where both are known, without what differs most. 0, which is air, stays
    0: a shift would differ all over it, and :func:`resel_volume` would take that for details that disagree.

    Args:
        fixed, moving, offset, displacement: as for :func:`blur_of_match`, of one channel.
    """
    every_second = (slice(None), *(slice(None, None, 2),) * 3)
    coordinates = (index_grid(displacement.shape[1:], displacement.device) + displacement)[every_second]
    moved = moving.at(coordinates + offset.to(coordinates).view(3, 1, 1, 1))
    known = (fixed.weight[every_second] * moved.weight > 0.5)[0]
    one, other, gain = fixed.values[every_second][0][known], moved.values[0][known], 1.0
    for _ in range(3):
        gain = float((one.square().sum() / other.square().sum().clamp_min(1e-9)).sqrt())
        squares = (one - gain * other).square()
        inliers = squares <= _OUTLYING**2 * squares.mean()
        one, other = one[inliers], other[inliers]
    return min(max(gain, 1 / _MAX_GAIN), _MAX_GAIN) if len(one) else 1.0


def local_contrast(intensities: FeatureMap, radius: int = 2) -> FeatureMap:
    """Intensities less their mean over a box of (2 radius + 1)^3 cells, over their deviation there.

    Air, which lies around the body in any modality, weighs nothing.
    """

    def mean(volume: torch.Tensor) -> torch.Tensor:
        padded = F.pad(volume[None], (radius,) * 6, mode="replicate")[0]
        return box_sum(padded, radius).div_((2 * radius + 1) ** 3)

    values, weight = intensities.values, intensities.weight
    known = mean(weight).clamp_min_(1e-3)
    centre = mean(values * weight) / known
    deviation = (mean(values.square() * weight) / known - centre.square()).clamp_min_(0).sqrt_()
    contrast = (values - centre) / (deviation + 0.1 * deviation.mean()).clamp_min_(1e-6)
    return FeatureMap(contrast, weight * (values > _AIR * values.max()))
