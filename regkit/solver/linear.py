"""Linear start without labels: where to begin, then rigid and affine by robust block matching.

The features are always MIND-SSC, whatever the deformable stages compare: they cost little at each of the many
poses that are tried, and know no spacing, where a network is trained at a finer one.

All matrices are 4x4 and map LPS mm of the fixed world to LPS mm of the moving world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, linear_about, transform_points
from regkit.features.featuremap import FeatureMap
from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.resample import Source, resample
from regkit.ops.sampling import index_grid
from regkit.solver import gauss_newton
from regkit.solver.costvolume import best_steps, known_slab
from regkit.solver.lowres import EMPTY
from regkit.solver.shifts import Shifts

# Cells of the coarse search grid over the smaller image; the fine one has half its spacing.
_CELLS = 40_000
_MIN_OVERLAP = 0.2  # of the smaller image
_APART = 3  # cells between two translations that are tried
_HEADER_BONUS = 0.97
# Images that agree as well as this do not lie the other way round: their turns are not searched. Air agrees
# with air however they lie, so that what they show has to agree as well.
_UPRIGHT, _SHOWN_UPRIGHT = 0.6, 0.53
_RESIZED_UPRIGHT = 0.7  # as an affine map makes wrong turns agree better, too
# A turn or a size is taken where the disagreement falls to this share of it.
_POSE_BONUS = 0.97
_POSES_TRIED, _TURN_SPACING = 8, 2.0
# Of turned starts, in each round of block matching: how many are matched, and what their disagreement may
# be of that of the upright start, which was matched before.
_TURNS_KEPT = ((8, 1.3), (4, 1.2), (2, 1.15))
_LAST_TURNS = 1.15  # the same on the fine grid
_SIZES = (0.75, 1.33)  # of lengths
# Cells along the diagonals of both fields of view in that search; what it takes goes with the cube of it.
_TURN_SIDE = 64
_ROUGH_SIDE, _SHORTLIST = 40, 16  # of a first look at all turns, and how many are looked at again
_AFFINE_RIDGE = 0.05
# Blocks are taken from slabs of so many planes, with so many cells in all.
_SLAB, _MAX_CELLS = 8, 150_000
_RADIUS = 3  # cells that blocks are looked for
_SCALES = (0.67, 1.5)

Fit = Callable[["Moments"], Float64]
Descriptor = Callable[[torch.Tensor], torch.Tensor]
"""From an image (Z, Y, X) in [0, 1] to channels (C, Z, Y, X)."""


@dataclass(frozen=True)
class LinearStart:
    """A linear alignment and how well the features agree under it.

    Args:
        matrix: 4x4, fixed LPS mm -> moving LPS mm.
        similarity: 0 where the overlap is no better than a random shift, 1 where it is perfect.
        origin: which start won: "header", "centre", "search", "resized", "turned" or "landmarks".
        model: "translation", "rigid", "similarity" or "affine"; "identity" if nothing was better than the
            headers.
        runner_up: origin and similarity of the best pose that lies otherwise turned, as it was before the
            last fits; None where turns were not searched.
    """

    matrix: Float64
    similarity: float
    origin: str
    model: str
    runner_up: tuple[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the matrix, ready for JSON but for NaN."""
        other = self.runner_up and {"origin": self.runner_up[0], "similarity": self.runner_up[1]}
        return {
            "origin": self.origin, "model": self.model, "similarity": self.similarity, "runner_up": other
        }  # fmt: skip


class Judge:
    """Feature similarity of two images over their overlap, for any linear map between them.

    The mean squared difference counts over the overlap. What is in the image and does not overlap counts as
    much as a random shift would give, so that shrinking the overlap buys nothing. An empty margin may leave
    the field of view for free, or a head could neither be turned nor shrunk.

    Args:
        fixed, moving: smoothed for ``spacing``.
    """

    def __init__(
        self, fixed: Source, moving: Source, spacing: float, extract: Descriptor, mismatch: float
    ) -> None:
        self.grid = fixed.grid.working(spacing)
        self.moving = moving
        self.extract = extract
        self.mismatch = mismatch
        self.fixed_map = feature_map(fixed, np.eye(4), self.grid, extract)
        image, weight = resample(fixed, np.eye(4), self.grid)
        self.content = (weight * (image > EMPTY))[None]
        moving_content = float((moving.image > EMPTY).float().mean()) * _covered_mm3(moving) / spacing**3
        self.full = max(min(float(self.content.sum()), moving_content), 1.0)

    def moving_map(self, matrix: Float64) -> FeatureMap:
        return feature_map(self.moving, matrix, self.grid, self.extract)

    def similarity(self, matrix: Float64) -> float:
        return self.compare(matrix)[1]

    def compare(self, matrix: Float64) -> tuple[FeatureMap, float]:
        """The moving features on the fixed grid, and their similarity."""
        moved = self.moving_map(matrix)
        weight = self.fixed_map.weight * moved.weight
        overlap, covered = float(weight.sum()), float((self.content * moved.weight).sum())
        if covered <= _MIN_OVERLAP * self.full:
            return moved, -np.inf
        squares = (moved.values - self.fixed_map.values).square_()
        difference = float((squares.mean(0) * weight).sum())
        missing = max(self.full - covered, 0)
        return moved, 1 - (difference + missing * self.mismatch) / (self.mismatch * (overlap + missing))

    def agreement_of_content(self, matrix: Float64) -> float:
        """Like :meth:`similarity`, over what either image shows: 0 where features are unrelated there.

        Unrelated features differ by the sum of their variances.
        """
        image, weight = resample(self.moving, matrix, self.grid)
        moved, fixed = self.extract(image), self.fixed_map.values
        shown = (self.content > 0) | (image > EMPTY)
        counted = self.fixed_map.weight * weight * shown
        total = counted.sum().clamp_min(1e-6)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return (values * counted).sum((1, 2, 3), keepdim=True) / total

        difference = mean((moved - fixed).square()).mean()
        spread = sum(mean((values - mean(values)).square()).mean() for values in (moved, fixed))
        return 1 - float(difference / spread) if float(spread) else 1.0


def feature_map(source: Source, matrix: Float64, grid: Grid, extract: Descriptor) -> FeatureMap:
    """Features of a source resampled on ``grid`` through a linear map."""
    image, weight = resample(source, matrix, grid)
    return FeatureMap(extract(image), weight[None])


def align(
    fixed: Source,
    moving: Source,
    spacing: float,
    extract: Descriptor,
    models: tuple[str, ...] = ("rigid", "affine"),
    on_step: Callable[[], None] = lambda: None,
) -> LinearStart:
    """The best linear start: headers, centres or a search over all overlaps, then block matching.

    The smaller field of view is the one that blocks are taken from, whichever side it is on, so that
    exchanging the images inverts the result.

    Args:
        spacing: mm, the finest worth looking at; large images are searched on a coarser grid.
        models: the fits to try, in order.
        on_step: called STEPS times.

    Returns:
        The start whose features agree best over the overlap.
    """
    if _covered_mm3(moving) < _covered_mm3(fixed):
        start = align(moving, fixed, spacing, extract, models, on_step)
        inverse = np.asarray(np.linalg.inv(start.matrix), dtype=np.float64)
        return replace(start, matrix=inverse)

    coarse, fine, shifts = _judges(fixed, moving, spacing, extract)
    coarse_spacing = coarse.grid.spacing[0]
    on_step()

    starts = [("header", np.eye(4)), ("centre", _translation(moving.grid.centre - fixed.grid.centre))]
    starts += [("search", _translation(shift)) for shift in shifts]
    candidates: list[LinearStart] = []
    for origin, matrix in starts:
        near = [c for c in candidates if np.linalg.norm((c.matrix - matrix)[:3, 3]) < coarse_spacing]
        similarity = fine.similarity(matrix)
        if similarity == -np.inf or near:
            continue
        model = "identity" if origin == "header" else "translation"
        candidates.append(LinearStart(matrix, similarity, origin, model))
    candidates = [_matched(c, coarse, fine, "rigid") for c in candidates]
    if not candidates:
        raise RegkitError(
            "the images cannot be laid onto each other: wherever they are placed, less than a fifth of the "
            "smaller field of view (or mask) overlaps; enlarge the masks, or give --init a transform"
        )
    # Images of one session share a frame: another start has to be clearly better than the header's.
    best = min(candidates, key=lambda c: (1 - c.similarity) * (_HEADER_BONUS if c.origin == "header" else 1))
    upright = best.similarity >= _UPRIGHT and fine.agreement_of_content(best.matrix) >= _SHOWN_UPRIGHT
    if not upright and models[-1] != "rigid":
        # Block matching finds sizes of some 3/4 to 4/3. Beyond them the size has to be looked for as well.
        sized = models[-1]
        plain = _matched(best, coarse, fine, sized)
        resized = search_poses(fixed, moving, coarse, extract, "resized", [k * np.eye(3) for k in _SIZES])
        resized = [_judged(_matched(one, coarse, coarse, sized), fine) for one in resized]
        rival = max(resized, key=lambda one: one.similarity, default=plain)
        rival = _matched(rival, coarse, fine, sized)
        if 1 - rival.similarity < (1 - plain.similarity) * _POSE_BONUS:
            best, upright = rival, rival.similarity >= _RESIZED_UPRIGHT
    rivals: list[LinearStart] = []
    if not upright:
        # Block matching finds turns of some 45 degrees. Beyond them the pose has to be looked for.
        turned = search_poses(fixed, moving, coarse, extract, "turned", _turns())
        rival = _best_turn(turned, best, coarse, fine)
        if 1 - rival.similarity < (1 - best.similarity) / _POSE_BONUS:
            rivals = [replace(rival, runner_up=(best.origin, best.similarity))]
        best = replace(best, runner_up=(rival.origin, rival.similarity))
    on_step()

    for model in models:
        best, *rivals = (_fitted(one, coarse, fine, model) for one in (best, *rivals))
        on_step()
    # The headers' orientation wins a near tie.
    return min(
        (best, *rivals), key=lambda one: (1 - one.similarity) * (1 if one is best else 1 / _POSE_BONUS)
    )


def align_landmarks(
    fixed: Source,
    moving: Source,
    points: Float64,
    targets: Float64,
    spacing: float,
    extract: Descriptor,
    models: tuple[str, ...] = ("rigid", "affine"),
    on_step: Callable[[], None] = lambda: None,
) -> LinearStart:
    """The linear start where landmarks lie on each other, improved as in :func:`align`; nothing is searched.

    Where landmarks lie so close to each other that an error of a cell would turn the image, it turns less.

    Args:
        points, targets: (n, 3), LPS mm of the fixed and of the moving image.
        spacing, extract, models, on_step: as for :func:`align`.

    Raises:
        RegkitError: if the images hardly overlap there.
    """
    if _covered_mm3(moving) < _covered_mm3(fixed):
        start = align_landmarks(moving, fixed, targets, points, spacing, extract, models, on_step)
        return replace(start, matrix=np.asarray(np.linalg.inv(start.matrix), dtype=np.float64))
    coarse, fine, _ = _judges(fixed, moving, spacing, extract)
    on_step()
    own = np.column_stack([np.ones(len(points)), points])
    moments = Moments.of(np.column_stack([own, targets]).T @ own)
    matrix = fit_rigid(replace(moments, cross=moments.cross + coarse.grid.spacing[0] ** 2 * np.eye(3)))
    start = LinearStart(matrix, fine.similarity(matrix), "landmarks", "rigid")
    if start.similarity == -np.inf:
        raise RegkitError(
            "where the landmarks lie on each other, less than a fifth of the smaller field of view (or mask) "
            "overlaps; check that they are in LPS mm and in the same order"
        )
    on_step()
    for model in models:
        start = _fitted(start, coarse, fine, model)
        on_step()
    return start


def improved(
    fixed: Source, moving: Source, matrix: Float64, spacing: float, extract: Descriptor
) -> LinearStart:
    """A given linear start, turned and moved to where the features near it agree best.

    Args:
        matrix: 4x4, fixed LPS mm -> moving LPS mm; its lengths and angles stay.
        spacing: as for :func:`align`.
    """
    if _covered_mm3(moving) < _covered_mm3(fixed):
        start = improved(moving, fixed, np.asarray(np.linalg.inv(matrix)), spacing, extract)
        return replace(start, matrix=np.asarray(np.linalg.inv(start.matrix)))
    coarse, fine, _ = _judges(fixed, moving, spacing, extract)
    start = LinearStart(matrix, fine.similarity(matrix), "given", "affine")  # for all that is known of it
    return replace(_fitted(start, coarse, fine, "rigid"), model="given")


def _judges(
    fixed: Source, moving: Source, spacing: float, extract: Descriptor
) -> tuple[Judge, Judge, list[Float64]]:
    """On the coarse grid and the fine one, and the best translations."""
    coarse_spacing = max(2 * spacing, float((_covered_mm3(fixed) / _CELLS) ** (1 / 3)))
    fine_spacing = coarse_spacing / 2
    f, m = fixed.smoothed_for(coarse_spacing), moving.smoothed_for(coarse_spacing)
    shifts, _, mismatch = search_translation(f, m, coarse_spacing, extract)
    coarse = Judge(f, m, coarse_spacing, extract, mismatch)
    f, m = fixed.smoothed_for(fine_spacing), moving.smoothed_for(fine_spacing)
    return coarse, Judge(f, m, fine_spacing, extract, mismatch), shifts


def _best_turn(turned: list[LinearStart], upright: LinearStart, coarse: Judge, fine: Judge) -> LinearStart:
    """The most similar of some turned starts, which are matched as long as they may pass the upright one.

    Args:
        turned: by their similarity on the coarse grid, best first.
    """
    to_pass = 1 - coarse.similarity(upright.matrix)
    settled: set[int] = set()  # the starts that matching leaves where they are
    for count, within in _TURNS_KEPT:
        close = [one for one in turned[:count] if 1 - one.similarity < within * to_pass]
        if not close:
            return _judged(turned[0], fine) if turned else upright
        matched = [one if id(one) in settled else _matched(one, coarse, coarse, "rigid") for one in close]
        settled |= {id(one) for one, before in zip(matched, close, strict=True) if one is before}
        turned = sorted(matched, key=lambda one: -one.similarity)
    turned = [_judged(one, fine) for one in turned]
    close = [one for one in turned if 1 - one.similarity < _LAST_TURNS * (1 - upright.similarity)]
    if not close:
        return max(turned, key=lambda one: one.similarity)
    close = [_matched(one, coarse, fine, "rigid") for one in close]
    return _refined(max(close, key=lambda one: one.similarity), fine, "rigid")


def _fitted(start: LinearStart, coarse: Judge, fine: Judge, model: str) -> LinearStart:
    """A round of block matching on the coarse grid, then Gauss-Newton on the fine one."""
    return _refined(_matched(start, coarse, fine, model), fine, model)


STEPS = 4


def _turns() -> list[Float64]:
    """59 rotations, 3x3; none is more than 45 degrees from all of them and the identity."""
    from scipy.spatial.transform import Rotation  # takes 0.2 s to import, and few pairs need it

    turns = Rotation.create_group("I").as_matrix()
    return [turn for turn in turns if not np.allclose(turn, np.eye(3))]


def search_poses(
    fixed: Source, moving: Source, judge: Judge, extract: Descriptor, origin: str, poses: list[Float64]
) -> list[LinearStart]:
    """The most similar of some turns or sizes, each at its best translation.

    The translations are searched on a coarser grid than the judge's, the best poses compared on his.

    Args:
        origin: of the starts.
        poses: 3x3, a rotation times a size each.

    Returns:
        Up to ``_POSES_TRIED`` starts, best first; their similarity is the judge's.
    """
    both = float(np.linalg.norm(fixed.grid.extent) + np.linalg.norm(moving.grid.extent))
    spacing = max(_TURN_SPACING * judge.grid.spacing[0], both / _TURN_SIDE)
    if len(poses) > _SHORTLIST:
        rough = _placed(fixed, moving, extract, max(spacing, both / _ROUGH_SIDE), poses)
        poses = [pose for _, pose, _ in rough[:_SHORTLIST]]
    starts = [
        LinearStart(matrix, judge.similarity(matrix), origin, "translation")
        for _, _, matrix in _placed(fixed, moving, extract, spacing, poses)[: 2 * _POSES_TRIED]
    ]
    starts.sort(key=lambda start: -start.similarity)
    return [start for start in starts[:_POSES_TRIED] if start.similarity > -np.inf]


def _placed(
    fixed: Source, moving: Source, extract: Descriptor, spacing: float, poses: list[Float64]
) -> list[tuple[float, Float64, Float64]]:
    """Disagreement, pose and matrix of some poses, each at its best translation; best first."""
    f, m = fixed.smoothed_for(spacing), moving.smoothed_for(spacing)
    grid, centre, placed = moving.grid, moving.grid.centre, []
    for pose in poses:
        about = linear_about(centre, pose)
        # The moving image posed the other way: its world is brought to the moving one by the pose.
        size = float(np.cbrt(np.linalg.det(pose)))
        posed = Grid(
            grid.size,
            (grid.spacing[0] / size, grid.spacing[1] / size, grid.spacing[2] / size),
            tuple(transform_points(np.linalg.inv(about), grid.origin)),
            tuple((pose.T / size @ np.reshape(grid.direction, (3, 3))).ravel()),
        )
        shifts, scores, _ = search_translation(f, Source(m.image, m.mask, posed), spacing, extract, count=1)
        placed += [(score, pose, about @ _translation(shift)) for shift, score in zip(shifts, scores)]
    return sorted(placed, key=lambda one: one[0])


def search_translation(
    fixed: Source, moving: Source, spacing: float, extract: Descriptor, count: int = 3
) -> tuple[list[Float64], list[float], float]:
    """The translations under which the features agree best, over every overlap there can be.

    Args:
        fixed, moving: smoothed for ``spacing``.

    Returns:
        Up to ``count`` shifts in LPS mm (fixed point -> moving point), best first and more than
        ``_APART`` cells apart; of each the squared difference, with what does not overlap, as a share of what
        random shifts give; and the median mean squared difference over the shifts: what a random
        one gives.
    """
    grid = fixed.grid.working(spacing)
    lattice = _lattice_over(moving.grid, grid)
    f = feature_map(fixed, np.eye(4), grid, extract)
    m = feature_map(moving, np.eye(4), lattice, extract)
    every = Shifts(f, m.weight.shape[1:])
    difference, overlap = every(m)
    full = min(float(f.weight.sum()), float(m.weight.sum()))
    possible = overlap >= _MIN_OVERLAP * full
    mean = difference / overlap.clamp_min(1)
    mismatch = float(mean[possible].median())
    score = difference + (full - overlap).clamp_min(0) * mismatch
    score[~possible] = torch.inf
    shifts, scores = [], []
    for peak in _lowest(score, count, _APART):
        cell = every.cell(peak)
        shifts.append(transform_points(lattice.index_to_world, cell) - np.asarray(grid.origin))
        scores.append(float(score[tuple(peak)]) / max(full * mismatch, 1e-9))
    return shifts, scores, mismatch


def _lowest(score: torch.Tensor, count: int, apart: int) -> Iterator[list[int]]:
    """Indices (z, y, x) of up to ``count`` finite minima of a periodic volume, more than ``apart`` away from
    each other along some axis; lowest first."""
    score = score.clone()
    near = torch.arange(-apart, apart + 1, device=score.device)
    for _ in range(count):
        peak = [int(k) for k in np.unravel_index(int(score.argmin()), score.shape)]
        if not torch.isfinite(score[tuple(peak)]):
            return
        yield peak
        z, y, x = ((near + k) % n for k, n in zip(peak, score.shape, strict=True))
        score[z[:, None, None], y[:, None], x] = torch.inf


def block_match(fixed: FeatureMap, moving: FeatureMap, radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the block around a cell lies in the moving map, for the more distinctive half of blocks.

    Of a large map, for the cells of some slabs of it.

    Args:
        fixed, moving: maps on one grid.
        radius: cells.

    Returns:
        Index coordinates of the blocks (3, n) and of their matches (3, n), with fractions of a
        cell from a parabola through the costs.
    """
    wide = moving.padded(radius)
    depth, height, width = fixed.weight.shape[1:]
    count = depth * height * width
    slab, apart = (depth, depth) if count <= _MAX_CELLS else (_SLAB, count * _SLAB // _MAX_CELLS)
    matches, gain, blocks = [], [], []
    for first in range(0, depth, apart):
        last = min(first + slab, depth)
        better, step = best_steps(known_slab(fixed, wide, radius, first, last), radius)
        # A block that no displacement finds data for has the same cost for all of them.
        usable = (fixed.weight[0, first:last] > 0.5) & (better > 1e-6)
        gain.append(better[usable])
        matches.append(step[:, usable])
        cells = index_grid((last - first, height, width), step.device)
        blocks.append(cells[:, usable] + cells.new_tensor([[0.0], [0.0], [first]]))
    distinct, at = torch.cat(gain), torch.cat(blocks, dim=1)
    if not len(distinct):
        return torch.empty(3, 0), torch.empty(3, 0)
    better = distinct >= distinct.median()
    return at[:, better], (at + torch.cat(matches, dim=1))[:, better]


@dataclass(frozen=True)
class Moments:
    """What least squares need to know of points and their targets.

    Args:
        points, targets: (3,), their means.
        spread: (3, 3), sum of (p - mean)(p - mean)^T.
        cross: (3, 3), sum of (t - mean)(p - mean)^T.
    """

    points: Float64
    targets: Float64
    spread: Float64
    cross: Float64

    @classmethod
    def of(cls, sums: Float64) -> Moments:
        """From the sum (7, 4) of (1, p, t)^T (1, p)."""
        count, p, t = sums[0, 0], sums[1:4, 0] / sums[0, 0], sums[4:, 0] / sums[0, 0]
        return cls(p, t, sums[1:4, 1:] - count * np.outer(p, p), sums[4:, 1:] - count * np.outer(t, p))


def fit_rigid(of: Moments) -> Float64:
    """The rotation and translation of least squared error (Kabsch, 1976)."""
    u, _, vt = np.linalg.svd(of.cross)
    matrix = np.eye(4)
    matrix[:3, :3] = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    matrix[:3, 3] = of.targets - matrix[:3, :3] @ of.points
    return matrix


def fit_similarity(of: Moments) -> Float64:
    """The rotation, scale and translation of least squared error (Umeyama, 1991)."""
    matrix = fit_rigid(of)
    matrix[:3, :3] *= float((matrix[:3, :3] * of.cross).sum() / np.trace(of.spread))
    matrix[:3, 3] = of.targets - matrix[:3, :3] @ of.points
    return matrix


def fit_affine(of: Moments) -> Float64:
    """The affine map of least squared error, drawn towards the rigid one by a ridge.

    The ridge keeps directions that the points hardly span (a thin slab's normal) from being scaled.
    """
    matrix = fit_rigid(of)
    left = of.cross - matrix[:3, :3] @ of.spread
    ridge = _AFFINE_RIDGE * float(np.trace(of.spread)) / 3
    linear = np.linalg.solve(of.spread + ridge * np.eye(3), left.T).T
    matrix[:3, :3] += linear
    matrix[:3, 3] -= linear @ of.points
    return matrix


_FITS: dict[str, Fit] = {"rigid": fit_rigid, "similarity": fit_similarity, "affine": fit_affine}


def least_trimmed_squares(
    fit: Fit, points: torch.Tensor, targets: torch.Tensor, keep: float = 0.5, rounds: int = 20
) -> Float64:
    """A fit to the ``keep`` share of the points that it explains best (Rousseeuw, 1984).

    Args:
        points, targets: (3, n).
    """
    points, targets = points.double(), targets.double()
    middle, goal = points.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    # About their means, so that nothing is lost where sums are subtracted.
    both = torch.cat([torch.ones_like(points[:1]), points - middle, targets - goal])
    error = torch.zeros_like(both[0])
    sums = _kept_sums(both, error, 0.0)
    for _ in range(rounds):
        error = _squared_errors(both, fit(Moments.of(sums)))
        before, sums = sums, _kept_sums(both, error, _ranked(error, int(keep * (len(error) - 1))))
        if (sums == before).all():
            break
    matrix = fit(Moments.of(sums))
    matrix[:3, 3] += (goal[:, 0] - torch.from_numpy(matrix[:3, :3]).to(goal) @ middle[:, 0]).cpu().numpy()
    return matrix


@operation
def _squared_errors(both: torch.Tensor, matrix: Float64) -> torch.Tensor:
    """How far the matrix brings points from their targets, squared, (n,).

    Args:
        both: (7, n), float64: 1, the points and the targets.
    """
    columns = np.ascontiguousarray(matrix[:3, [3, 0, 1, 2]])
    return torch.mm(torch.from_numpy(columns).to(both.device), both[:4]).sub_(both[4:]).square_().sum(0)


@_squared_errors.kernel("c", lambda both, matrix: native.serves(both, dtype=torch.float64))
def _squared_errors_by_c(both: torch.Tensor, matrix: Float64) -> torch.Tensor:
    columns, error = np.ascontiguousarray(matrix[:3, [3, 0, 1, 2]]), torch.empty_like(both[0])
    native.run("squared_errors", points=both, matrix=columns, error=error)
    return error


@operation
def _kept_sums(both: torch.Tensor, error: torch.Tensor, threshold: float) -> Float64:
    """The sum (7, 4) of (1, p, t)^T (1, p) over the points with an error of at most ``threshold``."""
    return np.asarray((both @ (both[:4] * (error <= threshold)).T).cpu().numpy())


@_kept_sums.kernel("c", lambda both, error, threshold: native.serves(both, error, dtype=torch.float64))
def _kept_sums_by_c(both: torch.Tensor, error: torch.Tensor, threshold: float) -> Float64:
    sums = np.empty((native.blocks(len(error)), 7, 4))
    native.run("kept_sums", points=both, error=error, most=threshold, sums=sums)
    return np.asarray(sums.sum(0))


def _ranked(values: torch.Tensor, rank: int) -> float:
    """The value that so many others are below."""
    if values.device.type == "cpu":  # numpy finds it fifty times as fast
        return float(np.partition(values.numpy(), rank)[rank])
    return float(values.kthvalue(rank + 1).values)


def _matched(start: LinearStart, judge: Judge, final: Judge, model: str) -> LinearStart:
    """One round of block matching on ``judge``'s grid, kept if ``final`` finds it better."""
    blocks, matches = block_match(judge.fixed_map, judge.moving_map(start.matrix), _RADIUS)
    if blocks.shape[1] < 32:
        return start
    # The grid is isotropic, so that to fit its indices is to fit mm.
    step = least_trimmed_squares(_FITS[model], blocks, matches)
    matrix = np.asarray(start.matrix @ judge.grid.index_to_world @ step @ judge.grid.world_to_index)
    return _better(start, matrix, final.similarity(matrix), model)


def _refined(start: LinearStart, judge: Judge, model: str) -> LinearStart:
    """By Gauss-Newton steps on the judge's grid."""
    grid = judge.grid

    def matrix_of(motion: Float64) -> Float64:
        return np.asarray(start.matrix @ grid.index_to_world @ motion @ grid.world_to_index)

    motion, similarity = gauss_newton.improve(
        judge.fixed_map, lambda tried: judge.compare(matrix_of(tried)), model
    )
    return _better(start, matrix_of(motion), similarity, model)


def _better(start: LinearStart, matrix: Float64, similarity: float, model: str) -> LinearStart:
    """The matrix, if it is more similar and of a likely size, else the start."""
    u, scales, vt = np.linalg.svd(matrix[:3, :3])
    if not (_SCALES[0] < scales[-1] and scales[0] < _SCALES[1] and similarity > start.similarity):
        return start
    if start.model in _FITS:  # of the two the one with more freedom
        model = max(start.model, model, key=list(_FITS).index)
    if model != "affine":  # directions in a header have seven digits, and the grid's are among the factors
        matrix = matrix.copy()
        matrix[:3, :3] = u @ vt * (1.0 if model == "rigid" else scales.mean())
    return replace(start, matrix=matrix, similarity=similarity, model=model)


def _judged(start: LinearStart, judge: Judge) -> LinearStart:
    return replace(start, similarity=judge.similarity(start.matrix))


def _translation(shift: Float64) -> Float64:
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix


def _covered_mm3(source: Source) -> float:
    share = 1.0 if source.mask is None else float(source.mask.mean())
    return share * float(np.prod(source.grid.extent))


def _lattice_over(grid: Grid, like: Grid) -> Grid:
    """A lattice with the axes and spacing of ``like`` over the field of view of ``grid``."""
    rotation = np.reshape(like.direction, (3, 3))
    along = transform_points(grid.index_to_world, grid.corners()) @ rotation
    low, high = along.min(0), along.max(0)
    size = np.maximum(np.ceil((high - low) / like.spacing - 1e-6).astype(int), 1)
    origin = rotation @ ((low + high) / 2 - np.asarray(like.spacing) * (size - 1) / 2)
    return Grid(tuple(size), like.spacing, tuple(origin), like.direction)
