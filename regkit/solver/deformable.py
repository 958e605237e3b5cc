"""The deformable stages: working grid, pyramids of features, coarse matching, fine optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, transform_points
from regkit.core.settings import FINE_MM, Settings
from regkit.features.featuremap import FeatureMap
from regkit.features.maps import GUIDE, Part, feature_maps
from regkit.ops.resample import Source, resample
from regkit.ops.sampling import index_grid, resize, sample
from regkit.solver.coarse import match
from regkit.solver.evidence import (
    blur_of_match,
    borne_out,
    differences_near,
    doubt,
    gain_between,
    leaves_doubt,
    local_contrast,
    may_be_one_modality,
    share_of,
    share_of_intensities,
)
from regkit.solver.fine import refine
from regkit.solver.landmarks import Landmarks

STRIDE = 2  # voxels of the working grid per cell of the final displacement grid
_COARSEST = (4, 8)
_MAX_RADIUS = 4
_FINER_RADIUS = 2
_TELLING = 0.5  # a blur of a match below this tells it well


@dataclass(frozen=True)
class Plan:
    """The working grid of a pair and the levels of its coarse stage.

    Args:
        grid: isotropic, over the fixed field of view, sizes a multiple of the coarsest stride.
        levels: (stride in voxels, search radius in cells), coarsest first, the last at ``STRIDE``.
    """

    grid: Grid
    levels: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> int:
        """Voxels that the coarse stage can displace, each way."""
        return sum(stride * radius for stride, radius in self.levels)


@dataclass(frozen=True)
class Pyramid:
    """Feature maps by stride on a lattice that continues the working grid.

    Args:
        maps: stride -> map.
        start: index (x, y, z) in the working grid of the lattice's first voxel, a multiple of every
            stride.
        channels: of each part, in their order.
    """

    maps: dict[int, FeatureMap]
    start: tuple[int, int, int]
    channels: tuple[int, ...] = ()

    def weighted(self, shares: Sequence[float], gains: Sequence[float] = ()) -> Pyramid:
        """With each part at a share of its weight, its values times a gain; those of share 0 are left out."""
        gains = gains or (1.0,) * len(shares)
        positive = [k for k, share in enumerate(shares) if share > 0]
        channels = tuple(self.channels[k] for k in positive)
        # The mean over fewer channels stays the sum over the parts.
        lost = math.sqrt(sum(channels) / sum(self.channels))
        maps = {}
        for stride, level in self.maps.items():
            parts = level.values.split(self.channels)
            values = torch.cat([parts[k] * (lost * math.sqrt(shares[k]) * gains[k]) for k in positive])
            maps[stride] = FeatureMap(values, level.weight)
        return Pyramid(maps, self.start, channels)

    def joined(self, other: Pyramid) -> Pyramid:
        """With the parts of another one of the same lattice behind its own."""
        channels = self.channels + other.channels
        # The mean over more channels stays the sum over the parts.
        ours, theirs = (math.sqrt(sum(channels) / sum(p.channels)) for p in (self, other))
        maps = {
            stride: FeatureMap(
                torch.cat([level.values * ours, other.maps[stride].values * theirs]), level.weight
            )
            for stride, level in self.maps.items()
        }
        return Pyramid(maps, self.start, channels)

    def offset(self, stride: int) -> torch.Tensor:
        """Cells (x, y, z) from the lattice's first cell to that of the working grid."""
        return torch.tensor([-s // stride for s in self.start], dtype=torch.float32)

    def seen_through(self, field: torch.Tensor, stride: int, margin: int) -> FeatureMap:
        """The map at ``stride`` sampled at x + field(x), with ``margin`` cells more on every side.

        Args:
            field: (3, Z, Y, X) displacement in cells; in the margin it goes on as at the border.
        """
        wide = F.pad(field[None], (margin,) * 6, mode="replicate")[0]
        shift = self.offset(stride).to(field.device) - margin
        coordinates = index_grid(wide.shape[1:], field.device) + wide + shift.view(3, 1, 1, 1)
        return self.maps[stride].at(coordinates)


def plan(fixed: Grid, moving: Grid, settings: Settings) -> Plan:
    """The working grid and levels for a pair.

    The spacing is the share that the settings name of that of the coarser image (the cube root of its voxel
    volume), or what keeps the grid within ``settings.max_voxels``.
    """
    coarser = max(float(np.cbrt(np.prod(grid.spacing))) for grid in (fixed, moving))
    share = settings.spacing_share[coarser > FINE_MM]
    spacing = max(share * coarser, float(np.cbrt(np.prod(fixed.extent) / settings.max_voxels)))
    reach = min(settings.search_range, 0.5 * float(fixed.extent.min()))
    stride = next((s for s in _COARSEST if reach <= _MAX_RADIUS * s * spacing), _COARSEST[-1])
    levels = [(stride, max(1, math.ceil(reach / (stride * spacing) - 1e-6)))]
    while stride > STRIDE:
        stride //= 2
        levels.append((stride, _FINER_RADIUS))
    return Plan(fixed.working(spacing, levels[0][0]), tuple(levels))


@dataclass(frozen=True)
class View:
    """Images of one side on a lattice that continues the working grid, for features to be taken of.

    Args:
        images: (Z, Y, X) in [0, 1] each.
        weight: (1, Z, Y, X), 1 where all of them have data.
        spacing: of the voxels, mm.
        start: of the lattice, as of a :class:`Pyramid`.
    """

    images: tuple[torch.Tensor, ...]
    weight: torch.Tensor
    spacing: float
    start: tuple[int, int, int]

    def features(self, work: Plan, parts: Sequence[Part]) -> Pyramid:
        """Of the cells of all levels."""
        strides = [stride for stride, _ in work.levels]
        first, *more = self.images
        maps, channels = feature_maps(first, self.weight, self.spacing, parts, strides, more)
        return Pyramid(maps, self.start, channels)


def fixed_view(fixed: Source, work: Plan, more: Sequence[Source] = ()) -> View:
    """The fixed image, and more images of it, on the working grid."""
    return _view((fixed, *more), np.eye(4), work, (0, 0, 0), work.grid.size)


def moving_view(moving: Source, matrix: Float64, work: Plan, more: Sequence[Source] = ()) -> View:
    """The moving image, seen through the linear start, as far as displacements reach.

    Beyond the working grid the lattice goes on by the search range, where the moving image has data:
    structures that lie outside the fixed field of view at the start can still be found.

    Raises:
        RegkitError: if the moving image does not reach the fixed one under ``matrix``.
    """
    to_index = work.grid.world_to_index @ np.linalg.inv(matrix) @ moving.grid.index_to_world
    corners = transform_points(to_index, moving.grid.corners())
    multiple = work.levels[0][0]
    first = np.maximum(corners.min(0), -work.reach)
    last = np.minimum(corners.max(0), np.asarray(work.grid.size) - 1 + work.reach)
    start = np.floor(first / multiple).astype(int) * multiple
    size = np.ceil((last + 1 - start) / multiple).astype(int) * multiple
    if (size <= 0).any():
        raise RegkitError(
            "the images do not overlap after the linear start; let --init auto search for one, or give "
            "a transform that brings them together"
        )
    return _view((moving, *more), matrix, work, tuple(start.tolist()), tuple(size.tolist()))


@dataclass(frozen=True)
class Believed:
    """The coarse field, and what of the features the pair itself bears out.

    Args:
        field: (3, Z, Y, X) in cells of ``STRIDE`` voxels.
        fixed, moving: the features with each part at its share of its weight.
        shares: of the parts that were asked, by name.
        blurs: of the same, :func:`regkit.solver.evidence.blur_of_match`.
    """

    field: torch.Tensor
    fixed: Pyramid
    moving: Pyramid
    shares: dict[str, float]
    blurs: dict[str, float]


def believed_field(
    features: Callable[[Sequence[Part]], tuple[Pyramid, Pyramid]],
    parts: Sequence[Part],
    work: Plan,
    on_step: Callable[[], None],
    landmarks: Landmarks | None = None,
) -> Believed:
    """The field of the coarse levels, in which each part counts for as much as it can tell on this pair.

    MIND is compared alone first. Where it leaves no doubt, parts that take long are not asked; where no other
    part tells a match from a near miss, the field is MIND's; else all that do are compared together. Labels
    that guide count in full from the first. If one of the parts tells matches well, what explains no more
    than the linear start does is left out, but for what landmarks ask for.

    Args:
        features: of some parts, fixed and moving.
        parts: the first is the reference where none is named "mind".
        landmarks: on the working grid.
    """
    reference = "mind" if any(part.name == "mind" for part in parts) else parts[0].name
    further = [part for part in parts if part.in_doubt and part.name != reference]
    names = [part.name for part in parts if part not in further]
    always_on = {reference, GUIDE}
    fixed, moving = features([part for part in parts if part not in further])
    some = tuple(one.weighted([float(name in always_on) for name in names]) for one in (fixed, moving))
    field = coarse_field(some[0], some[1], work, on_step, landmarks)
    offset = moving.offset(STRIDE)

    def apart(name: str) -> tuple[FeatureMap, FeatureMap]:
        """The finest map of one part alone, of both images."""
        only = [float(name == other) for other in names]
        finest = (Pyramid({STRIDE: p.maps[STRIDE]}, p.start, p.channels) for p in (fixed, moving))
        one, other = (pyramid.weighted(only).maps[STRIDE] for pyramid in finest)
        return one, other

    blurs = {name: blur_of_match(*apart(name), offset, field) for name in names}
    if further and leaves_doubt(blurs[reference]):
        fixed, moving = (one.joined(other) for one, other in zip((fixed, moving), features(further)))
        names += [part.name for part in further]
        blurs |= {part.name: blur_of_match(*apart(part.name), offset, field) for part in further}
    shares = {name: 1.0 if name in always_on else share_of(blurs[name], blurs[reference]) for name in names}
    gains = dict.fromkeys(names, 1.0)
    if "intensity" in names:
        one, other = apart("intensity")
        shares["intensity"] = 0.0
        if may_be_one_modality(blurs["intensity"]):
            local = blur_of_match(local_contrast(one), local_contrast(other), offset, field)
            shares["intensity"] = share_of_intensities(blurs["intensity"], local)
        if shares["intensity"]:
            gains["intensity"] = gain_between(one, other, offset, field)
        del one, other
    if any(share for name, share in shares.items() if name not in always_on):
        kept = [shares[name] for name in names]
        some = fixed.weighted(kept), moving.weighted(kept, [gains[name] for name in names])
        field = coarse_field(some[0], some[1], work, on_step, landmarks)
    if min(blurs[name] for name, share in shares.items() if share > 0) < _TELLING:
        borne = borne_out(some[0].maps[STRIDE], some[1].maps[STRIDE], offset, field)
        field = _with_landmarks(field, borne, landmarks)
    return Believed(field, some[0], some[1], shares, blurs)


def _with_landmarks(before: torch.Tensor, after: torch.Tensor, landmarks: Landmarks | None) -> torch.Tensor:
    """``after``, but around landmarks what the field was before; both in cells of ``STRIDE`` voxels."""
    return after if landmarks is None else landmarks.pooled(STRIDE).kept(before, after)


def coarse_field(
    fixed: Pyramid,
    moving: Pyramid,
    work: Plan,
    on_step: Callable[[], None],
    landmarks: Landmarks | None = None,
) -> torch.Tensor:
    """The displacement field of the coarse levels, (3, Z, Y, X) in cells of ``STRIDE`` voxels.

    Args:
        landmarks: on the working grid; before and after each level the field is pulled towards them.
    """
    stride = work.levels[0][0]
    weight = fixed.maps[stride].weight
    field = weight.new_zeros((3, *weight.shape[1:]))
    for stride, radius in work.levels:
        fixed_map = fixed.maps[stride]
        shape = fixed_map.weight.shape[1:]
        field = resize(field, shape) * (shape[0] / field.shape[1])
        there = None if landmarks is None else landmarks.pooled(stride)
        field = field if there is None else there.pulled(field)
        step = match(fixed_map, moving.seen_through(field, stride, radius), radius)
        field = step + sample(field, index_grid(shape, field.device) + step)
        field = field if there is None else there.pulled(field)
        on_step()
    return field


def fine_field(
    fixed: Pyramid,
    moving: Pyramid,
    start: torch.Tensor,
    settings: Settings,
    on_step: Callable[[], None],
    landmarks: Landmarks | None = None,
) -> torch.Tensor:
    """The field after Adam, (3, Z, Y, X) in cells of ``STRIDE`` voxels, free of folds.

    Args:
        landmarks: on the working grid.
    """
    offset = moving.offset(STRIDE).to(start.device)
    there = None if landmarks is None else landmarks.pooled(STRIDE)
    return refine(fixed.maps[STRIDE], moving.maps[STRIDE], offset, start, settings, on_step, there)


def displacement_doubt(fixed: Pyramid, moving: Pyramid, displacement: torch.Tensor) -> torch.Tensor:
    """:func:`regkit.solver.evidence.doubt` of a displacement (3, Z, Y, X) in cells of ``STRIDE`` voxels."""
    return doubt(fixed.maps[STRIDE], moving.maps[STRIDE], moving.offset(STRIDE), displacement)


def feature_difference(fixed: Pyramid, moving: Pyramid, displacement: torch.Tensor) -> float:
    """Mean squared feature difference over the overlap, of every second cell along each axis.

    Args:
        displacement: (3, Z, Y, X) in cells of ``STRIDE`` voxels.
    """
    maps = fixed.maps[STRIDE], moving.maps[STRIDE]
    difference, weight = differences_near(*maps, moving.offset(STRIDE), displacement)((0, 0, 0))
    return float((difference * weight).sum() / weight.sum().clamp_min(1e-6))


def _view(
    sources: Sequence[Source],
    matrix: Float64,
    work: Plan,
    start: tuple[int, int, int],
    size: tuple[int, int, int],
) -> View:
    lattice = work.grid.window(start, size)
    resampled = [resample(source.smoothed_for(lattice.spacing[0]), matrix, lattice) for source in sources]
    weight = resampled[0][1]
    for _, other in resampled[1:]:
        weight = weight * other
    if len(resampled) > 1 and not weight.any():
        raise RegkitError("the images of one side do not overlap: all of them need the same world")
    return View(tuple(image for image, _ in resampled), weight[None], lattice.spacing[0], start)
