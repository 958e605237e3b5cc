"""Dice, HD95 and TRE against naive double loops in float64 and against cases worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.evaluate import (
    ErrorSummary,
    LabelScores,
    LandmarkErrors,
    compare_labels,
    dice,
    hd95,
    summarise,
    target_registration_error,
)
from regkit.io.images import Volume
from regkit.warp import Warp

SPACING = (0.7, 1.3, 3.5)  # x, y, z: all different, so that a swapped axis shows


def cube(at: tuple[int, int, int], side: int = 4, shape: tuple[int, int, int] = (12, 14, 16)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    z, y, x = at
    labels[z : z + side, y : y + side, x : x + side] = 1
    return labels


def blobs(rng: np.random.Generator, shape: tuple[int, int, int] = (7, 8, 9)) -> np.ndarray:
    """Ragged labels 1 to 3, scattered voxels included, that touch the edges of the image."""
    labels = np.zeros(shape, np.int16)
    for label in (1, 2, 3):
        centre = rng.uniform(0, shape)
        radius = rng.uniform(1.5, 3)
        distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
        labels[distance < radius + rng.normal(0, 0.6, shape)] = label
    return labels


def shared(one: np.ndarray, other: np.ndarray) -> list[int]:
    return sorted((set(one.ravel().tolist()) & set(other.ravel().tolist())) - {0})


def naive_dice(one: np.ndarray, other: np.ndarray, label: int) -> float:
    both = total = 0
    for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
        both += a == label and b == label
        total += (a == label) + (b == label)
    return 2 * both / total


def naive_surface(
    labels: np.ndarray, label: int, spacing: tuple[float, float, float]
) -> list[tuple[float, ...]]:
    """Positions in mm (z, y, x) of the label's voxels that have a face neighbour of another value."""
    inside = {tuple(index) for index in np.argwhere(labels == label).tolist()}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return [
        tuple(i * s for i, s in zip(voxel, spacing[::-1], strict=True))
        for voxel in sorted(inside)
        if any(tuple(i + d for i, d in zip(voxel, step, strict=True)) not in inside for step in steps)
    ]


def naive_percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def naive_hd95(one: np.ndarray, other: np.ndarray, label: int, spacing: tuple[float, float, float]) -> float:
    a, b = naive_surface(one, label, spacing), naive_surface(other, label, spacing)
    forth = [min(math.dist(p, q) for q in b) for p in a]
    back = [min(math.dist(p, q) for q in a) for p in b]
    return max(naive_percentile(forth, 0.95), naive_percentile(back, 0.95))


@pytest.mark.parametrize("seed", range(6))
def test_both_agree_with_double_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = blobs(rng), blobs(rng)
    both = shared(one, other)
    assert both
    overlap, distance = dice(one, other, both), hd95(one, other, SPACING, both)
    for label in both:
        assert overlap[label] == pytest.approx(naive_dice(one, other, label), abs=1e-12)
        assert distance[label] == pytest.approx(naive_hd95(one, other, label, SPACING), abs=1e-9)


@pytest.mark.parametrize(("axis", "mm"), [(0, 3.5), (1, 1.3), (2, 0.7)])
@pytest.mark.parametrize("shift", [1, 3])
def test_cube_shifted_along_an_axis(axis: int, mm: float, shift: int) -> None:
    moved = [3, 4, 5]
    moved[axis] += shift
    one, other = cube((3, 4, 5)), cube((moved[0], moved[1], moved[2]))
    assert dice(one, other) == {1: pytest.approx((4 - shift) / 4)}
    # The far face, 16 of the 56 surface voxels, is ``shift`` voxels away from the other cube, more than 5 %.
    assert hd95(one, other, SPACING) == {1: pytest.approx(shift * mm)}


def test_identical_labels_are_perfect(rng: np.random.Generator) -> None:
    labels = blobs(rng)
    assert set(dice(labels, labels).values()) == {1.0}
    assert set(hd95(labels, labels, SPACING).values()) == {0.0}


def test_a_few_stray_voxels_do_not_count() -> None:
    one = cube((1, 1, 1), side=8, shape=(14, 14, 30))
    other = one.copy()
    other[12, 12, 28] = 1  # one of 297 surface voxels
    assert hd95(one, other, (1, 1, 1)) == {1: 0.0}


def test_unit_spacing_gives_voxels() -> None:
    one, other = cube((3, 4, 5)), cube((5, 4, 5))
    assert hd95(one, other, (1, 1, 1)) == {1: 2.0}


def test_hd95_is_symmetric_and_dice_too(rng: np.random.Generator) -> None:
    one, other = blobs(rng), blobs(rng)
    both = shared(one, other)
    assert hd95(one, other, SPACING, both) == hd95(other, one, SPACING, both)
    assert dice(one, other, both) == dice(other, one, both)


def test_labels_missing_on_a_side_are_not_scored() -> None:
    one, other = cube((3, 4, 5)), cube((3, 4, 5))
    one[0, 0, :3] = 2
    other[0, 0, :3] = 3
    for scores in (dice(one, other, (1, 2, 3, 4)), hd95(one, other, SPACING, (1, 2, 3, 4))):
        assert list(scores) == [1, 2, 3, 4]
        assert not math.isnan(scores[1])
        assert all(math.isnan(scores[label]) for label in (2, 3, 4))
    assert list(dice(one, other)) == [1, 2]  # those of the fixed labels


def test_a_label_that_the_warp_lost_is_worst_and_not_excused() -> None:
    fixed, moving = cube((3, 4, 5)), cube((0, 0, 0))
    fixed[0, 0, :3] = 2  # never in the moving image
    moved = np.zeros_like(fixed)
    overlap, distance = dice(fixed, moved, None, moving), hd95(fixed, moved, SPACING, None, moving)
    assert (overlap[1], distance[1]) == (0.0, math.inf)
    assert math.isnan(overlap[2])
    assert math.isnan(distance[2])
    assert summarise(overlap.values()) == 0.0


def test_empty_maps_give_no_scores() -> None:
    empty = np.zeros((4, 5, 6), np.uint8)
    assert dice(empty, empty) == {}
    assert hd95(empty, empty, SPACING) == {}
    assert math.isnan(dice(empty, empty, [1])[1])
    assert math.isnan(summarise([]))
    assert math.isnan(summarise([math.nan]))


def test_summarise_skips_what_is_not_scored() -> None:
    assert summarise([0.5, math.nan, 1.0]) == 0.75


@pytest.mark.parametrize("labels", [[-3, 7], [614454277, 5]])
def test_negative_and_huge_labels_are_labels_too(labels: list[int]) -> None:
    one = np.zeros((4, 4, 4), np.int64)
    one[0], one[1] = labels
    assert dice(one, one) == dict.fromkeys(sorted(labels), 1.0)


def test_float_maps_of_whole_numbers_pass_and_others_do_not() -> None:
    one = cube((3, 4, 5))
    assert dice(one.astype(np.float32), one) == {1: 1.0}
    with pytest.raises(RegkitError, match=r"moved labels are not whole.*nearest"):
        dice(one, one * 0.5)
    with pytest.raises(RegkitError, match="not whole"):
        dice(np.where(one == 1, np.nan, 0.0), one)


def test_shapes_must_agree() -> None:
    with pytest.raises(RegkitError, match=r"differ in shape.*\(2, 3, 4\).*\(4, 3, 2\)"):
        dice(np.zeros((2, 3, 4), int), np.zeros((4, 3, 2), int))
    with pytest.raises(RegkitError, match="3-D"):
        hd95(np.zeros((3, 4), int), np.zeros((3, 4), int), SPACING)


def test_target_registration_error_by_hand() -> None:
    mapped = [(0, 0, 0), (1, 1, 1), (10, -4, 2)]
    moving = [(3, 4, 0), (1, 1, 1), (10, -4, 14)]
    errors = target_registration_error(mapped, moving)
    np.testing.assert_allclose(errors, [5, 0, 12])
    assert ErrorSummary.of(errors) == ErrorSummary(pytest.approx(17 / 3), 5.0, 12.0)
    assert all(math.isnan(value) for value in ErrorSummary.of([]).to_dict().values())
    with pytest.raises(RegkitError, match="pairs"):
        target_registration_error(mapped, moving[:2])


def test_compare_labels_makes_one_row_per_organ() -> None:
    grid = Grid((16, 14, 12), SPACING, (5, 6, 7))
    fixed, moved = cube((3, 4, 5)), cube((3, 4, 7))
    fixed[0, 0, 0] = 9
    rows = compare_labels(
        Volume(fixed, grid, "a"), Volume(moved, grid, "b"), {0: "background", 9: "lost", 1: "liver"},
        moving=Volume(np.full((2, 2, 2), 9), Grid((2, 2, 2)), "c"),
    )  # fmt: skip
    assert [(row.label, row.name) for row in rows] == [(1, "liver"), (9, "lost")]
    assert math.isnan(rows[0].dice)  # by what ``moving`` says, label 1 was never there
    assert (rows[1].dice, rows[1].hd95) == (0.0, math.inf)

    rows = compare_labels(Volume(fixed, grid, "a"), Volume(moved, grid, "b"))
    assert [row.name for row in rows] == ["label 1", "label 9"]
    assert rows[0].dice == pytest.approx(0.5)
    assert rows[0].hd95 == pytest.approx(1.4)


def test_compare_labels_refuses_other_grids_and_empty_maps() -> None:
    labels = cube((3, 4, 5))
    grid = Grid((16, 14, 12), SPACING)
    elsewhere = Grid((16, 14, 12), SPACING, (0, 0, 9))
    with pytest.raises(RegkitError, match=r"mr and ct.*apply the warp"):
        compare_labels(Volume(labels, grid, "mr"), Volume(labels, elsewhere, "ct"))
    with pytest.raises(RegkitError, match="mr holds no label"):
        compare_labels(Volume(0 * labels, grid, "mr"), Volume(labels, grid, "ct"))


def test_the_naive_surface_of_a_cube_has_no_core() -> None:
    surface = naive_surface(cube((3, 4, 5)), 1, (1, 1, 1))
    core = set(itertools.product((4, 5), (5, 6), (6, 7)))
    assert len(surface) == 64 - 8
    assert not core & set(surface)


def test_scores_have_the_same_keys_in_json_as_ever() -> None:
    grid = Grid((6, 6, 6))
    fixed, moved = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    fixed[1:4, 1:4, 1:4], moved[2:5, 1:4, 1:4] = 1, 1
    here, there = Volume(fixed, grid), Volume(moved, grid)
    scores = LabelScores.of(here, {"before": there, "linear": there, "after": here}, {1: "liver"}, there)
    assert scores.mean_dice == {"before": pytest.approx(2 / 3), "linear": pytest.approx(2 / 3), "after": 1.0}
    written = scores.to_dict()
    assert written == {
        "mean_dice": scores.mean_dice,
        "mean_hd95_mm": {"before": 1.0, "linear": 1.0, "after": 0.0},
        "labels": [
            {
                "label": 1,
                "name": "liver",
                "dice_before": pytest.approx(2 / 3),
                "dice_linear": pytest.approx(2 / 3),
                "dice": 1.0,
                "hd95_before_mm": 1.0,
                "hd95_mm": 0.0,
            }
        ],
    }
    (row,) = LabelScores.of(here, {"after": here}).to_dict()["labels"]
    assert set(row) == {"label", "name", "dice", "hd95_mm"}


def test_landmark_errors_have_the_same_keys_in_json_as_ever() -> None:
    grid = Grid((4, 4, 4))
    field = np.zeros((*grid.shape, 3), np.float32)
    field[..., 0] = 1
    fixed = np.array([[0.0, 0, 0], [1, 1, 1]])
    errors = LandmarkErrors.of(fixed, fixed + [3, 0, 0], Warp(field, grid))
    assert errors.to_dict() == {
        "count": 2,
        "tre_before_mm": {"mean": 3.0, "median": 3.0, "max": 3.0},
        "tre_mm": {"mean": 2.0, "median": 2.0, "max": 2.0},
    }
    assert set(LandmarkErrors.of(fixed, fixed, None).to_dict()) == {"count", "tre_before_mm"}
