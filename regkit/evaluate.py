"""How good a registration is, measured on labels and landmarks that it did not see.

* ``dice = 2 |F and M| / (|F| + |M|)`` of the voxel sets F (fixed) and M (moved).
* ``hd95 = max(P95 of d(f, surface M) over f in surface F, P95 of d(m, surface F) over m in surface M)``,
  in mm. A surface is the set of label voxels with a face neighbour outside the label (the edge of the
  image counts as outside), d is the Euclidean distance between voxel centres, P95 the linearly
  interpolated percentile. Google DeepMind's ``surface-distance``, which Learn2Reg uses, weights each
  surface element by its area and puts it between voxels; ours counts surface voxels alike. Both
  take the larger of the two directed percentiles. A spacing of (1, 1, 1) gives voxels, as Learn2Reg reports.

NaN means "not scored", never "bad": a label that was not there to be found. A label that the warp
lost scores 0 (Dice) and infinity (HD95), provided that the caller says what was there
(``moving_labels``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regkit.core.choices import Stage
from regkit.core.errors import InputError

if TYPE_CHECKING:
    from regkit.io.images import Volume
    from regkit.warp import Warp

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelScore:
    """Overlap of one label: ``dice`` in [0, 1] and ``hd95`` in mm, NaN where not scored."""

    label: int
    name: str
    dice: float
    hd95: float


def dice(
    fixed_labels: npt.ArrayLike,
    moved_labels: npt.ArrayLike,
    labels: Iterable[int] | None = None,
    moving_labels: npt.ArrayLike | None = None,
) -> dict[int, float]:
    """Dice overlap per label.

    Args:
        fixed_labels: whole numbers, 0 is background.
        moved_labels: on the same grid.
        labels: which to score; by default those of ``fixed_labels`` other than 0.
        moving_labels: the moved labels before they were warped, on any grid. With them, a label that they
            have and ``moved_labels`` has not scores 0; without them it scores NaN.

    Returns:
        label -> Dice; NaN where the label is missing in ``fixed_labels`` or was missing in the moving ones.
    """
    fixed, moved = _label_maps(fixed_labels, moved_labels)
    in_fixed, in_moved, in_both = _counts(fixed), _counts(moved), _counts(fixed[fixed == moved])
    findable = _findable(in_moved, moving_labels)
    return {
        label: 2 * in_both.get(label, 0) / (in_fixed[label] + in_moved.get(label, 0))
        if label in in_fixed and label in findable
        else float("nan")
        for label in _chosen(labels, in_fixed)
    }


def hd95(
    fixed_labels: npt.ArrayLike,
    moved_labels: npt.ArrayLike,
    spacing_xyz: tuple[float, float, float],
    labels: Iterable[int] | None = None,
    moving_labels: npt.ArrayLike | None = None,
) -> dict[int, float]:
    """95th percentile of the symmetric surface distance per label, in mm (formula: top of the module).

    Args:
        fixed_labels: (z, y, x) whole numbers, 0 is background.
        moved_labels: on the same grid.
        spacing_xyz: mm between voxel centres along (x, y, z).
        labels: as in :func:`dice`.
        moving_labels: as in :func:`dice`.

    Returns:
        label -> mm; NaN where :func:`dice` gives NaN, infinity where the warp lost the label.
    """
    fixed, moved = _label_maps(fixed_labels, moved_labels)
    if fixed.ndim != 3:
        raise InputError(f"surface distances need 3-D label maps, got shape {fixed.shape}")
    in_fixed, in_moved = _counts(fixed), _counts(moved)
    findable = _findable(in_moved, moving_labels)
    distances: dict[int, float] = {}
    for label in _chosen(labels, in_fixed):
        if label not in in_fixed or label not in findable:
            distances[label] = float("nan")
        elif label not in in_moved:
            distances[label] = float("inf")
        else:
            distances[label] = _hd95(fixed == label, moved == label, spacing_xyz[::-1])
    return distances


def target_registration_error(mapped: npt.ArrayLike, moving: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Distance in mm of each fixed landmark, mapped by the registration, from its true partner.

    Args:
        mapped: (n, 3) LPS mm, the fixed landmarks as ``Warp.transform_points`` maps them; the fixed landmarks
            themselves give the error before registration.
        moving: (n, 3) LPS mm, the same landmarks as marked in the moving image.

    Returns:
        (n,) mm.

    Examples:
        >>> regkit.target_registration_error([[0, 0, 0], [10, 0, 0]], [[0, 3, 4], [10, 0, 0]]).tolist()
        [5.0, 0.0]
    """
    here, there = np.asarray(mapped, dtype=np.float64), np.asarray(moving, dtype=np.float64)
    if here.shape != there.shape or here.ndim != 2 or here.shape[1] != 3:
        raise InputError(
            f"landmarks must come in pairs of 3-D points, got {here.shape} fixed and {there.shape} moving"
        )
    return np.linalg.norm(here - there, axis=1)


def summarise(values: Iterable[float]) -> float:
    """Mean of the scored values; NaN where none was scored."""
    scored = [value for value in values if not np.isnan(value)]
    return float(np.mean(scored)) if scored else float("nan")


@dataclass(frozen=True)
class ErrorSummary:
    """Distances in mm, in three numbers; NaN if there are none."""

    mean: float
    median: float
    max: float

    @classmethod
    def of(cls, distances: npt.ArrayLike) -> ErrorSummary:
        """The summary of distances of any shape."""
        values = np.asarray(distances, dtype=np.float64)
        if not values.size:
            return cls(float("nan"), float("nan"), float("nan"))
        return cls(float(values.mean()), float(np.median(values)), float(values.max()))

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON but for NaN."""
        return asdict(self)


@dataclass(frozen=True)
class LandmarkErrors:
    """Target registration errors of landmarks.

    Args:
        count: of the landmarks.
        before: by the headers alone.
        after: under the warp; None if there is no warp.
    """

    count: int
    before: ErrorSummary
    after: ErrorSummary | None

    @classmethod
    def of(
        cls, fixed: npt.NDArray[np.float64], moving: npt.NDArray[np.float64], warp: Warp | None
    ) -> LandmarkErrors:
        """The errors of landmarks (n, 3), LPS mm, in the same order in both images."""
        before = ErrorSummary.of(target_registration_error(fixed, moving))
        if warp is None:
            return cls(len(fixed), before, None)
        mapped = warp.transform_points(fixed)
        return cls(len(fixed), before, ErrorSummary.of(target_registration_error(mapped, moving)))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON but for NaN."""
        after = {} if self.after is None else {"tre_mm": self.after.to_dict()}
        return {"count": self.count, "tre_before_mm": self.before.to_dict(), **after}


def compare_labels(
    fixed: Volume, moved: Volume, names: Mapping[int, str] | None = None, moving: Volume | None = None
) -> list[LabelScore]:
    """Dice and HD95 (mm) of each label of two label maps on one grid.

    Args:
        names: label -> name, which also chooses the labels; by default those of ``fixed``, named "label 3".
        moving: the label map before warping, on its own grid, to tell a lost label from a missing one.

    Raises:
        RegkitError: if the grids differ, or the fixed map holds no label.

    Examples:
        >>> grid = regkit.Grid(size=(4, 4, 4))
        >>> fixed, moved = (regkit.Volume(np.zeros((4, 4, 4), np.uint8), grid) for _ in range(2))
        >>> fixed.array[1:3, 1:3, 1:3], moved.array[1:3, 1:3, 2:4] = 1, 1
        >>> (score,) = regkit.compare_labels(fixed, moved, {1: "liver"})
        >>> score.name, score.dice
        ('liver', 0.5)
    """
    if not fixed.grid.same_as(moved.grid):
        raise InputError(
            f"the labels of {fixed.name} and {moved.name} lie on different grids; "
            "apply the warp to the moving labels first"
        )
    if not fixed.array.any():
        raise InputError(f"{fixed.name} holds no label: every voxel is 0")
    labels = None if names is None else sorted(set(names) - {0})
    before = None if moving is None else moving.array
    overlap = dice(fixed.array, moved.array, labels, before)
    distance = hd95(fixed.array, moved.array, fixed.grid.spacing, labels, before)
    return [
        LabelScore(label, (names or {}).get(label, f"label {label}"), overlap[label], distance[label])
        for label in overlap
    ]


@dataclass(frozen=True)
class LabelScores:
    """Scores of the same labels at several stages of a registration.

    Args:
        stages: "before" (by the headers alone), "linear" or "after" -> the scores of all labels, which have
            the same order at every stage.
    """

    stages: Mapping[Stage, Sequence[LabelScore]]

    @classmethod
    def of(
        cls,
        fixed: Volume,
        moved: Mapping[Stage, Volume],
        names: Mapping[int, str] | None = None,
        moving: Volume | None = None,
    ) -> LabelScores:
        """The scores of label maps on the fixed grid.

        Args:
            moved: the moving labels at each stage, on the fixed grid.
            names, moving: as of :func:`compare_labels`.

        Raises:
            RegkitError: as :func:`compare_labels`.
        """
        return cls({stage: compare_labels(fixed, labels, names, moving) for stage, labels in moved.items()})

    @property
    def mean_dice(self) -> dict[Stage, float]:
        """Mean over the labels, by stage."""
        return {stage: summarise(s.dice for s in scores) for stage, scores in self.stages.items()}

    @property
    def mean_hd95(self) -> dict[Stage, float]:
        """Mean over the labels in mm, by stage."""
        return {stage: summarise(s.hd95 for s in scores) for stage, scores in self.stages.items()}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON but for NaN and infinity.

        The means are by stage. A row has ``label``, ``name``, ``dice_before``, ``dice_linear``, ``dice``,
        ``hd95_before_mm`` and ``hd95_mm``, as far as there are such stages.
        """
        return {
            "mean_dice": self.mean_dice,
            "mean_hd95_mm": self.mean_hd95,
            "labels": [
                self._row(dict(zip(self.stages, scores, strict=True)))
                for scores in zip(*self.stages.values(), strict=True)
            ],
        }

    @staticmethod
    def _row(scores: Mapping[Stage, LabelScore]) -> dict[str, Any]:
        first = next(iter(scores.values()))
        row: dict[str, Any] = {"label": first.label, "name": first.name}
        for stage, score in scores.items():
            row["dice" if stage == "after" else f"dice_{stage}"] = score.dice
        for stage, score in scores.items():
            if stage != "linear":
                row["hd95_mm" if stage == "after" else f"hd95_{stage}_mm"] = score.hd95
        return row


def _label_maps(fixed: npt.ArrayLike, moved: npt.ArrayLike) -> tuple[Labels, Labels]:
    first, second = _whole(fixed, "fixed"), _whole(moved, "moved")
    if first.shape != second.shape:
        raise InputError(f"the label maps differ in shape: fixed {first.shape}, moved {second.shape}")
    return first, second


def _whole(labels: npt.ArrayLike, which: str) -> Labels:
    array = np.asarray(labels)
    if array.dtype.kind in "ui":
        whole = array
    else:
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int64)
        if (whole != array).any():
            raise InputError(
                f"the {which} labels are not whole numbers: resample label maps with nearest neighbour"
            )
    return whole


def _counts(labels: Labels) -> dict[int, int]:
    """Voxels per label other than 0."""
    if labels.size and labels.min() >= 0 and labels.max() <= 1 << 20:  # counting beats sorting tenfold
        counts = np.bincount(labels.ravel())
        return {int(label): int(counts[label]) for label in np.flatnonzero(counts) if label}
    return {
        int(label): int(n) for label, n in zip(*np.unique(labels, return_counts=True), strict=True) if label
    }


def _findable(in_moved: dict[int, int], moving_labels: npt.ArrayLike | None) -> Iterable[int]:
    return in_moved if moving_labels is None else _counts(_whole(moving_labels, "moving"))


def _chosen(labels: Iterable[int] | None, in_fixed: dict[int, int]) -> list[int]:
    return list(in_fixed) if labels is None else [int(label) for label in labels]


def _hd95(
    fixed: npt.NDArray[np.bool_], moved: npt.NDArray[np.bool_], spacing_zyx: tuple[float, ...]
) -> float:
    from scipy import ndimage  # here, since it takes a quarter of a second that those without labels save

    # No nearest surface voxel lies outside the box around both labels, so the crop changes nothing.
    box = ndimage.find_objects((fixed | moved).astype(np.uint8))[0]
    # The box is tight, so its faces are the outside of the label or the edge of the image.
    one, other = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (fixed, moved))
    to_one = ndimage.distance_transform_edt(~one, sampling=spacing_zyx)
    to_other = ndimage.distance_transform_edt(~other, sampling=spacing_zyx)
    return float(max(np.percentile(to_other[one], 95), np.percentile(to_one[other], 95)))
