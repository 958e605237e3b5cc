"""PASS, WARN or FAIL: whether a registration can be believed, by gates that need no labels.

Both images are compared once more at low resolution (:mod:`regkit.solver.lowres`). What counts as a good
agreement differs from pair to pair, so the pair says itself what chance gives: the moving image turned back
to front and upside down gets the same search for a place and the same rigid fit as the image itself. Where
the right one fits no better than its wrong copies, the two images have nothing to tell each other. Left and
right are told by what is not alike on both sides (:mod:`regkit.solver.handedness`).

The thresholds were chosen on half of the pairs of ``benchmarks/verdict.py`` and hold on the other half as
``benchmarks/results/verdict.md`` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from regkit.core.geometry import Float64, Grid, transform_points
from regkit.features.featuremap import FeatureMap
from regkit.features.maps import mind_ssc
from regkit.ops.resample import Source, resample
from regkit.solver.evidence import MAX_DOUBT, doubt
from regkit.solver.handedness import handedness
from regkit.solver.linear import block_match, fit_rigid, least_trimmed_squares
from regkit.solver.lowres import EMPTY, LowRes, Points, Seen, content
from regkit.solver.shifts import Shifts

PASS, WARN, FAIL = LEVELS = ("PASS", "WARN", "FAIL")

_MIN_WARNINGS = 3  # gates that warn are a FAIL together, of which those that see the same thing count once
_ALIKE = {"inside": "copies"}
# Cells of the low resolution over the smaller and over the larger field of view.
_CELLS, _MAX_CELLS = 15_000, 75_000
_CLOSE, _MAX_CLOSE = 100_000, 500_000  # the same where sides are told
_MIN_SPACING_VOXELS = 1.5  # of the coarser image along a low-resolution cell
_RADII = (3, 2, 2)  # cells that the rounds of block matching look around
_MIN_BLOCKS = 32
_REACH, _MIN_INSIDE = 2, 100  # cells from an outline that its features reach, and too few of them
_MIN_OVERLAP = 0.2  # of what is to see in the smaller image
# Axes of the array (z, y, x) that the copies of the moving image are turned over along. The grid's axes point
# to the patient's left, back and head, as nearly as they can.
_COPIES: dict[str, tuple[int, ...]] = {
    "itself": (),
    "back to front": (1,),
    "upside down": (0,),
}


@dataclass(frozen=True)
class Gate:
    """One check of a registration: a measured value and what it means.

    Args:
        name: a short name.
        value: the measured value; NaN if it cannot be measured on this pair.
        unit: of the value, or "".
        warn, fail: thresholds; NaN if the gate never warns or fails.
        above: whether values above the thresholds are bad, or values below them.
        level: "PASS", "WARN" or "FAIL".
        says: what the value means, in one sentence.
    """

    name: str
    value: float
    unit: str
    warn: float
    fail: float
    above: bool
    level: str
    says: str


@dataclass(frozen=True)
class Verdict:
    """The result of all gates: the worst level among them, and FAIL if several of them warn.

    Args:
        level: "PASS", "WARN" or "FAIL".
        gates: everything that was measured.
    """

    level: str
    gates: tuple[Gate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON but for NaN."""
        return {"level": self.level, "gates": [asdict(gate) for gate in self.gates]}


@dataclass(frozen=True)
class _Rule:
    """Where a gate warns and fails, and what it then says."""

    unit: str
    warn: float
    fail: float
    above: bool
    good: str
    bad: str
    unknown: str = "It cannot be measured on this pair."


RULES: dict[str, _Rule] = {
    "copies": _Rule(
        "", 0.91, 0.96, True,
        "The moving image fits better than copies that are turned the wrong way: the match is not by chance.",
        "The moving image fits hardly better than copies that are turned upside down or back to front. It "
        "may show something other than the fixed image, or its header may have a wrong orientation.",
    ),
    "inside": _Rule(
        "", 0.91, 1.05, True,
        "Inside its outline, too, the moving image fits better than copies that are turned the wrong way.",
        "Away from the outlines the moving image fits hardly better than copies that are turned upside down "
        "or back to front: only the outlines agree.",
    ),
    "side": _Rule(
        "errors", 4.0, -6.0, False,
        "The moving image fits better than its mirror image.",
        "The images do not tell left from right, or, below 0, fit better mirrored: check the sides by other "
        "means.",
        "One of the images is symmetric, and cannot tell whether left and right are exchanged.",
    ),
    "turn": _Rule(
        "degrees", 90.0, math.nan, True,
        "By their headers, both images have about the same orientation.",
        "The images agree when one of them is turned around: its header may have a wrong orientation.",
    ),
    "place": _Rule(
        "cells", 3.0, math.nan, True,
        "The linear start lies where the images agree best.",
        "Without the given start, the images agree better in another place: let --init auto search for it.",
    ),
    "overlap": _Rule(
        "%", 50, 5, False,
        "Most of what the fixed image shows lies inside the moving one.",
        "Most of what the fixed image shows lies outside the moving one: there the warp is a guess.",
    ),
    "doubt": _Rule(
        "% of body", 10.0, math.nan, True,
        "The features tell a match from its neighbours.",
        "The features hardly tell a match from its neighbours: look at --uncertainty.",
    ),
    "size": _Rule(
        "times", 4.0, 8.0, True,
        "Both images are of similar size.",
        "One image is many times as large as the other: the unit of one of them may not be mm.",
    ),
    "scale": _Rule(
        "times", 1.35, math.nan, True,
        "The linear start scales by no more than people differ.",
        "The linear start scales by more than people differ.",
    ),
    "folding": _Rule(
        "%", 0.0, 1.0, True,
        "The warp folds nowhere.",
        "The warp folds: it turns tissue inside out.",
    ),
    "labels": _Rule(
        "Dice", 0.0, -0.1, False,
        "The labels agree better than by the headers alone.",
        "The labels agree worse than by the headers alone.",
    ),
}  # fmt: skip
"""By the names of the gates."""


def verdict_of(values: Mapping[str, float]) -> Verdict:
    """The verdict by the measured values of gates, in the order of :data:`RULES`."""
    gates = []
    for name, rule in RULES.items():
        if name not in values:
            continue
        value, level = values[name], PASS
        for threshold, worse in ((rule.warn, WARN), (rule.fail, FAIL)):
            if (value > threshold) if rule.above else (value < threshold):
                level = worse
        says = rule.good if level == PASS else rule.bad
        if math.isnan(value):
            says = rule.unknown
        gates.append(Gate(name, value, rule.unit, rule.warn, rule.fail, rule.above, level, says))
    levels = [gate.level for gate in gates]
    many = len({_ALIKE.get(gate.name, gate.name) for gate in gates if gate.level != PASS}) >= _MIN_WARNINGS
    return Verdict(FAIL if many else max(levels, key=LEVELS.index), tuple(gates))


def measured(fixed: Source, moving: Source, matrix: Float64, points: Points) -> dict[str, float]:
    """The values of the gates that the images themselves give.

    Args:
        fixed, moving: as they were registered.
        matrix: 4x4, the linear start, fixed LPS mm -> moving LPS mm.
        points: the warp as a function, fixed LPS mm (..., 3) to moving LPS mm.

    Returns:
        Name of the gate to value.
    """
    # The voxels of the coarser image.
    voxel = max(float(np.prod(source.grid.spacing)) for source in (fixed, moving)) ** (1 / 3)
    spacing = max(_spacing(fixed, moving, _CELLS, _MAX_CELLS), _MIN_SPACING_VOXELS * voxel)
    look = LowRes(fixed, moving, spacing)
    moved = look.through(points)
    sides = [float(source.grid.extent.max()) for source in (fixed, moving)]
    left, scales, right = np.linalg.svd(np.asarray(matrix)[:3, :3])
    values = {
        "overlap": 100 * look.covered(moved),
        "size": max(sides) / min(sides),
        "scale": float(max(scales.max(), 1 / scales.min())),
        "turn": float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1)))),
        "doubt": _doubt(look, moved),
    }
    # What follows says the same whichever image is fixed, and faster where that is the smaller one.
    if np.prod(moving.grid.extent) < np.prod(fixed.grid.extent):
        fixed, moving, matrix = moving, fixed, np.asarray(np.linalg.inv(matrix), np.float64)
        look = look.exchanged()
    close = LowRes(fixed, moving, max(_spacing(fixed, moving, _CLOSE, _MAX_CLOSE), voxel))
    return values | _against_copies(look, matrix) | {"side": handedness(look, close, matrix)}


def _spacing(fixed: Source, moving: Source, cells: int, max_cells: int) -> float:
    """mm, for so many cells over the smaller field of view, and at most so many over the larger."""
    small, large = sorted(float(np.prod(source.grid.extent)) for source in (fixed, moving))
    return max((small / cells) ** (1 / 3), (large / max_cells) ** (1 / 3))


def _doubt(look: LowRes, moved_image: Seen) -> float:
    """Median of how far off the warp may be, as far as the features at low resolution tell: % of the body."""
    fixed = FeatureMap(look.fixed.features, look.content[None])
    moved = FeatureMap(moved_image.features, moved_image.weight[None])
    nowhere = torch.zeros(3, *look.content.shape).to(look.content)
    doubts = doubt(fixed, moved, nowhere[:, 0, 0, 0], nowhere)
    some = look.content[::2, ::2, ::2] * moved_image.weight[::2, ::2, ::2]
    known = doubts[(some > 0.5) & (doubts < MAX_DOUBT)]
    body = float(look.content.sum()) ** (1 / 3)
    return 100 * float(known.median()) / body if len(known) else math.nan


@dataclass(frozen=True)
class CopyFit:
    """Where a copy of the moving image fits best.

    Args:
        similarity: 0 where the overlap is no better than at a random place, 1 where it is perfect.
        away: cells from where it was to where it fits best, of the middle of the fixed image.
        inside: mean squared difference of the features away from the outlines of both; NaN where hardly
            anything is.
    """

    similarity: float
    away: float
    inside: float


def _against_copies(look: LowRes, matrix: Float64) -> dict[str, float]:
    """How the moving image fits beside its copies, and beside itself where the linear start puts it."""
    fits, start = fits_of_copies(look, matrix)
    if not fits:
        return dict.fromkeys(("copies", "inside", "place"), math.nan)
    itself, *wrong = (fits[name] for name in _COPIES)
    inside = [one.inside for one in wrong if not math.isnan(one.inside)]
    gained = (1 - start) / max(1 - itself.similarity, 1e-6)
    return {
        "copies": (1 - itself.similarity) / max(1 - max(one.similarity for one in wrong), 1e-6),
        "inside": itself.inside / max(min(inside), 1e-9) if inside else math.nan,
        "place": itself.away if gained > 1 / 0.95 else 0.0,
    }


def fits_of_copies(look: LowRes, matrix: Float64) -> tuple[dict[str, CopyFit], float]:
    """Where the moving image and its copies fit best after the same search and the same rigid fit of each.

    Args:
        look: at both images.
        matrix: 4x4, the linear start; the copies are turned over after it, within their field of view.

    Returns:
        The fits by name, none where there is nothing to compare, and the similarity under the linear start.
    """
    lattice = _lattice(look.moving.grid, matrix, look.grid)
    moving_image, weight = resample(look.moving, matrix, lattice)
    shown = content(moving_image, weight)
    search = _Search(look, float(shown.sum()), lattice)
    fits: dict[str, CopyFit] = {}
    start, judge = math.nan, None
    for name, axes in _COPIES.items():
        turned = Source(moving_image.flip(axes).contiguous(), shown.flip(axes).contiguous(), lattice)
        shift = search(turned)
        if shift is None:
            return {}, math.nan
        if judge is None:
            judge = _Judge(look, turned, search.mismatch)
            start = judge.similarity(judge.moved_features(turned, np.eye(4)))
        fits[name] = judge.fitted(turned, shift)
    return fits, start


class _Judge:
    """How well copies of the moving image fit, as by :class:`regkit.solver.linear.Judge`.

    What the smaller of the images shows and the other does not reach counts as much as a random shift gives.

    Args:
        look: at both images.
        itself: the moving image, as the linear start places it.
        mismatch: mean squared difference of a random shift.
    """

    def __init__(self, look: LowRes, itself: Source, mismatch: float) -> None:
        self.grid = look.grid
        self.mismatch = mismatch
        self.fixed = FeatureMap(look.fixed.features, look.content[None])
        self.content = look.content * (look.image > EMPTY)
        mask = torch.ones_like(itself.image) if itself.mask is None else itself.mask
        shown = float((itself.image > EMPTY).float().mean() * mask.sum())
        self.full = max(min(float(self.content.sum()), shown), 1.0)
        self.inner = _inner(look.content)

    def moved_features(self, copy: Source, matrix: Float64) -> FeatureMap:
        image, weight = resample(copy, matrix, self.grid)
        return FeatureMap(mind_ssc(image), weight[None])

    def differences(self, moved: FeatureMap) -> torch.Tensor:
        """Mean squared differences of the features, (Z, Y, X)."""
        return (moved.values - self.fixed.values).square_().mean(0)

    def similarity(self, moved: FeatureMap) -> float:
        """0 where the overlap is no better than at a random shift, 1 where it is perfect."""
        weight = (self.fixed.weight * moved.weight)[0]
        overlap, covered = float(weight.sum()), float((self.content * moved.weight[0]).sum())
        if covered <= _MIN_OVERLAP * self.full:
            return -math.inf
        difference = float((self.differences(moved) * weight).sum())
        missing = max(self.full - covered, 0.0)
        return 1 - (difference + missing * self.mismatch) / (self.mismatch * (overlap + missing))

    def fitted(self, copy: Source, shift: Float64) -> CopyFit:
        """After rigid block matching from a shift, LPS mm."""
        matrix = np.eye(4)
        matrix[:3, 3] = shift
        moved = self.moved_features(copy, matrix)
        best, grid = self.similarity(moved), self.grid
        for radius in _RADII:
            blocks, matches = block_match(self.fixed, moved, radius)
            if blocks.shape[1] < _MIN_BLOCKS:
                break
            step = least_trimmed_squares(fit_rigid, blocks, matches)
            candidate = matrix @ grid.index_to_world @ step @ grid.world_to_index
            there = self.moved_features(copy, candidate)
            similarity = self.similarity(there)
            if similarity <= best:
                break
            matrix, moved, best = candidate, there, similarity
        away = np.linalg.norm(transform_points(matrix, grid.centre) - grid.centre) / grid.spacing[0]
        inside = self.inner * _inner(moved.weight[0])
        count = float(inside.sum())
        within = float((self.differences(moved) * inside).sum()) / count if count >= _MIN_INSIDE else math.nan
        return CopyFit(best, float(away), within)


def _inner(shown: torch.Tensor) -> torch.Tensor:
    """Cells (Z, Y, X) around which everything is shown, as far as the features reach."""
    return -F.max_pool3d(-shown[None, None], 2 * _REACH + 1, 1, _REACH)[0, 0]


def _lattice(grid: Grid, matrix: Float64, like: Grid) -> Grid:
    """A lattice that continues ``like`` over a field of view under a map, at most one ``like`` further."""
    corners = transform_points(np.linalg.inv(matrix) @ grid.index_to_world, grid.corners())
    index, size = transform_points(like.world_to_index, corners), np.asarray(like.size)
    first = np.floor(np.clip(index.min(0), -size, 2 * size - 4) + 0.5).astype(int)
    last = np.maximum(np.ceil(np.clip(index.max(0), -size, 2 * size) - 0.5).astype(int), first + 3)
    return like.window(tuple(first.tolist()), tuple((last - first + 1).tolist()))


class _Search:
    """The best of all shifts of whole cells, of copies of the moving image.

    Args:
        look: at both images.
        shown: cells in which the moving image shows something.
        lattice: of the copies.
    """

    def __init__(self, look: LowRes, shown: float, lattice: Grid) -> None:
        self.origin = np.asarray(look.grid.origin)
        self.shifts = Shifts(FeatureMap(look.fixed.features, look.content[None]), lattice.shape)
        self.full = min(float(look.content.sum()), shown)
        self.mismatch = math.nan

    def __call__(self, copy: Source) -> Float64 | None:
        """The shift, LPS mm; None where there is nothing to compare."""
        if self.full < 1 or copy.mask is None:
            return None
        difference, overlap = self.shifts(FeatureMap(mind_ssc(copy.image), copy.mask[None]))
        possible = overlap >= _MIN_OVERLAP * self.full
        if not possible.any():
            return None
        if math.isnan(self.mismatch):  # of the image itself, which comes first
            self.mismatch = float((difference / overlap.clamp_min(1))[possible].median())
        score = difference + (self.full - overlap).clamp_min(0) * self.mismatch
        score[~possible] = torch.inf
        peak = np.unravel_index(int(score.argmin()), score.shape)
        cell = self.shifts.cell([int(k) for k in peak])
        return transform_points(copy.grid.index_to_world, cell) - self.origin
