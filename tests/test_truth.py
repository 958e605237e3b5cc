"""The benchmark of truth: its cases are what they say, it measures right, and a small part of it holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import truth_cases
from truth import METHODS, Found, measure
from truth_cases import COPIES, NOTHINGS, Case, bent, body_of, identity, nothing, posed
from truth_report import report

import regkit
from regkit.core.geometry import transform_points
from regkit.synthesis.phantom import Phantom, torso

# Mean error in the body, voxels, with room above what was measured (0.15, 0.11, 0.50).
MAX_ERROR = {"half a voxel off, inside": 0.2, "noise": 0.15, "turned": 0.6}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """64 x 52 x 40 voxels of 5.2 x 5.2 x 6 mm."""
    return torso(0, 5.2)


@pytest.fixture(scope="module")
def turned(phantom: Phantom) -> Case:
    """The MR turned by 40 degrees and moved by 50 mm, on a lattice of its own."""
    fixed = phantom.fixed
    moving, truth = posed(fixed, turn=(0, 0, 40), shift=50)
    return Case("trunk, turned", "known", "turned", fixed, moving, truth, body_of(fixed), "auto")


def warp_of(case: Case) -> regkit.Warp:
    points = case.fixed.grid.world_points()
    return regkit.Warp((case.truth(points) - points).astype(np.float32), case.fixed.grid, case.moving.grid)


def found(warp: regkit.Warp, doubt: np.ndarray | None = None) -> Found:
    return Found(warp, None, doubt, 1.0)


@pytest.mark.parametrize("kind", ["half a voxel off, inside", "noise"])
def test_a_copy_stays_where_it_is(phantom: Phantom, kind: str) -> None:
    case = identity(f"trunk, {kind}", phantom.fixed, kind)
    row = measure(case, METHODS["default"].run(case, 1))
    assert row["body"]["linear"]["max"] == 0
    assert row["body"]["after"]["mean"] < MAX_ERROR[kind]


def test_a_turn_is_found(turned: Case) -> None:
    row = measure(turned, METHODS["default"].run(turned, 1))
    assert row["body"]["linear"]["mean"] < 0.2
    assert row["body"]["after"]["mean"] < MAX_ERROR["turned"]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_lie_in_the_same_place(phantom: Phantom, kind: str) -> None:
    case = identity(f"trunk, {kind}", phantom.fixed, kind, phantom.fixed_labels)
    assert not np.array_equal(case.moving.array, case.fixed.array)
    points = case.fixed.grid.world_points()
    assert np.array_equal(case.truth(points), points)
    if kind in ("remapped", "inverted", "structures"):  # voxel by voxel another contrast
        assert case.moving.grid == case.fixed.grid
    else:
        assert agreement(case) > 0.95


def test_moved_copies_lie_where_the_truth_says(phantom: Phantom, turned: Case) -> None:
    fixed = phantom.fixed
    cases = [turned]
    for move in (bent(fixed, 8), posed(fixed, scale=1.3), posed(fixed, turn=(180, 0, 0))):
        cases.append(replace(turned, moving=move[0], truth=move[1]))
    for case in cases:
        assert agreement(case) > 0.97
        assert agreement(replace(case, truth=np.asarray)) < 0.94


def agreement(case: Case) -> float:
    """Correlation of the fixed image with what the moving one shows at the true places, in its middle."""
    seen = warp_of(case).apply(case.moving)
    points = transform_points(case.moving.grid.world_to_index, case.truth(case.fixed.grid.world_points()))
    inside = np.all((points > 2) & (points < np.asarray(case.moving.grid.size) - 3), axis=-1)
    return float(np.corrcoef(seen.array[inside], case.fixed.array[inside])[0, 1])


def test_nothings_show_the_same_world(phantom: Phantom) -> None:
    for kind in NOTHINGS:
        case = nothing(f"trunk, {kind}", phantom.fixed, phantom.moving, kind)
        assert case.reference is not None
        for changed, original in zip((case.fixed, case.moving), case.reference):
            onto = sitk.Resample(changed.to_sitk(), original.to_sitk(), sitk.Transform(3, sitk.sitkIdentity))
            apart = np.abs(sitk.GetArrayFromImage(onto) - original.array)[2:-2, 2:-2, 2:-2]
            assert apart.mean() <= 0.02 * original.array.std()
        # A method that finds the change and nothing else has no error.
        base = regkit.Warp(np.full((*phantom.fixed.grid.shape, 3), 3, np.float32), phantom.fixed.grid)
        points = case.fixed.grid.world_points()
        after = case.truth(points + 3) - points
        row = measure(case, found(regkit.Warp(after.astype(np.float32), case.fixed.grid)), found(base))
        assert row["body"]["after"]["max"] < 1e-3
    assert nothing("", phantom.fixed, phantom.moving, "two threads").threads == 2


def test_errors_are_told_in_voxels(turned: Case) -> None:
    true = warp_of(turned)
    voxel = np.prod(turned.fixed.grid.spacing) ** (1 / 3)
    row = measure(turned, found(true))
    assert row["body"]["voxels"] > 10_000 and row["border"]["voxels"] > 1_000
    assert row["body"]["after"]["max"] < 1e-4 and row["border"]["after"]["max"] < 1e-4
    assert row["imaged"]["after"] == pytest.approx(row["imaged"]["truth"], abs=1e-4)
    off = replace(true, field=true.field + np.array([0, 2 * voxel, 0], np.float32))
    row = measure(turned, found(off))
    assert row["body"]["after"] == pytest.approx({"mean": 2, "p95": 2, "max": 2}, rel=1e-3)
    assert "linear" not in row["body"]  # a peer does not tell


def test_a_crop_is_half_of_what_is_imaged(phantom: Phantom) -> None:
    case = identity("trunk, cropped", phantom.fixed, "cropped")
    drawn_in = warp_of(case)
    drawn_in.field[:] = 0.5 * (case.moving.grid.centre - case.fixed.grid.world_points())
    row = measure(case, found(drawn_in))
    assert row["imaged"]["truth"] == pytest.approx(0.5, abs=0.01)
    assert row["imaged"]["after"] > 0.7
    assert row["body"]["voxels"] < 0.5 * case.body.sum()  # what nobody imaged has no error


def test_doubt_is_held_against_the_error(turned: Case) -> None:
    true = warp_of(turned)
    voxel = float(np.prod(true.grid.spacing) ** (1 / 3))
    half = np.arange(true.grid.size[0]) < true.grid.size[0] // 2
    error = np.where(half, 0, 3 * voxel)[:, None] * np.array([1, 0, 0])
    off = replace(true, field=true.field + error.astype(np.float32))
    honest = np.broadcast_to(np.where(half, 0.2, 3.0) * voxel, true.grid.shape)
    told = measure(turned, found(off, honest))["doubt"]
    assert 0.2 < told["sure"] < 0.8 and told["right_where_sure"] == 1
    boasting = np.full(true.grid.shape, 0.2 * voxel)
    told = measure(turned, found(off, boasting))["doubt"]
    assert told["sure"] == 1 and 0.2 < told["right_where_sure"] < 0.8
    assert len(told["sample"]) == 32 and {round(d, 3) for d, _ in told["sample"]} == {0.2}


def test_the_report_tells_of_failures(turned: Case) -> None:
    same = {"group": "known", "case": turned.name, "kind": "turned", "version": "1", "seconds": 1.0}
    rows = [
        same | {"method": "one", "error": None} | measure(turned, found(warp_of(turned))),
        same | {"method": "two", "error": "RuntimeError: no"},
    ]
    lines = report(rows).splitlines()
    assert any(line.startswith("| one (1) | 1 | 0 | 1 |") for line in lines)
    assert "| trunk, turned | 0.00 / 0.00 / 0.00 | failed |" in lines


def test_every_case_of_the_benchmark_has_one_name() -> None:
    names = [name for makers in truth_cases.MAKERS.values() for name in makers()]
    assert len(names) == len(set(names))
    assert len(truth_cases.IMAGES) >= 7
