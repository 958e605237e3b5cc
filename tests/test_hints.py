"""What is known beside two images: landmarks, labels that guide, further images; from files to the warp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import error_of, run, usage_error_of, write_phantom

import regkit
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.features.maps import GUIDE, feature_maps, further_parts
from regkit.hints import guides, landmark_pairs, pairs_of
from regkit.io.images import Volume
from regkit.io.points import write_points
from regkit.ops.resample import Source, resample
from regkit.registration import register
from regkit.synthesis.phantom import Phantom, torso

GRID = Grid((20, 22, 18), (2.0, 1.5, 3.0), (-20.0, -15.0, 4.0))


def test_landmarks_come_from_files_and_arrays_alike(tmp_path: Path, rng: np.random.Generator) -> None:
    points = transform_points(GRID.index_to_world, rng.uniform(1, 16, (4, 3)))
    for name in ("a.csv", "a.fcsv", "a.mrk.json"):
        write_points(tmp_path / name, points)
        found = landmark_pairs(tmp_path / name, points + 5, GRID)
        assert found is not None
        np.testing.assert_allclose(found[0], points, atol=1e-3)
        np.testing.assert_array_equal(found[1], points + 5)
    assert landmark_pairs(None, None, GRID) is None


def test_landmarks_beside_the_image_do_not_count(rng: np.random.Generator) -> None:
    points = transform_points(GRID.index_to_world, rng.uniform(1, 16, (4, 3)))
    points[1] += 1000
    with pytest.warns(UserWarning, match="1 of 4 landmarks lie beside the fixed image"):
        found = landmark_pairs(points, points + 5, GRID)
    assert found is not None
    np.testing.assert_array_equal(found[1], points[[0, 2, 3]] + 5)


@pytest.mark.parametrize(
    ("fixed", "moving", "message"),
    [
        (np.zeros((3, 3)), None, "fixed landmarks need moving landmarks"),
        (None, np.zeros((3, 3)), "moving landmarks need fixed landmarks"),
        (np.zeros((3, 3)), np.zeros((4, 3)), "there are 3 fixed landmarks and 4 moving ones"),
        (np.zeros((3, 2)), np.zeros((3, 2)), r"fixed landmarks must be finite and of the shape \(n, 3\)"),
        (np.full((3, 3), np.nan), np.zeros((3, 3)), "fixed landmarks must be finite"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "fixed landmarks must be finite"),
        ([["a", "b", "c"]], np.zeros((1, 3)), "fixed landmarks must be a file or numbers"),
        (np.full((3, 3), 900.0), np.zeros((3, 3)), "all fixed landmarks lie beside the fixed image"),
        ("nowhere.csv", np.zeros((3, 3)), "points 'nowhere.csv' do not exist"),
    ],
)
def test_landmarks_that_are_none(fixed: Any, moving: Any, message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        landmark_pairs(fixed, moving, GRID)


def test_labels_of_both_maps_guide(rng: np.random.Generator) -> None:
    ours = Volume(rng.choice([0, 2, 5, 9], GRID.shape).astype(np.uint8), GRID)
    theirs = Volume(rng.choice([0, 2, 7, 9], GRID.shape).astype(np.uint8), GRID)
    [(fixed, moving)], labels = guides((ours, theirs), (ours, theirs), torch.device("cpu"))
    assert labels == [2, 9]
    np.testing.assert_array_equal(fixed.image.numpy(), (ours.array == 2) + 2 * (ours.array == 9))
    np.testing.assert_array_equal(moving.image.numpy(), (theirs.array == 2) + 2 * (theirs.array == 9))
    other = Volume(np.full(GRID.shape, 4, np.uint8), GRID)
    with pytest.raises(RegkitError, match="share no label: the fixed map has 2, 5, 9, the moving one 4"):
        guides((ours, other), (ours, other), torch.device("cpu"))


def test_labels_are_not_interpolated_and_end_in_none(oblique_grid: Grid, rng: np.random.Generator) -> None:
    labels = rng.integers(1, 6, oblique_grid.shape)
    source = Source(torch.from_numpy(labels.astype(np.float32)), None, oblique_grid, labels=True)
    grid = Grid((30, 26, 22), (1.3, 1.1, 1.9), tuple(oblique_grid.centre - 18.123))
    matrix = np.eye(4)
    matrix[:3, 3] = (2.0, -1.0, 3.0)
    image, weight = resample(source.smoothed_for(8.0), matrix, grid)
    index = transform_points(oblique_grid.world_to_index @ matrix, grid.world_points())
    at = np.rint(index).astype(int)
    inside = ((at >= 0) & (at < oblique_grid.size)).all(-1)
    wanted = np.zeros(grid.shape)
    x, y, z = at[inside].T
    wanted[inside] = labels[z, y, x]
    assert 0.03 < inside.mean() < 0.9
    assert (image.numpy() != wanted).mean() < 2e-3  # half-way between two voxels
    assert (weight == 1).all()


def test_the_cost_of_labels_is_their_weight_times_what_differs() -> None:
    one, other = torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)
    one[:2], other[:2, :2] = 1, 2
    image = torch.zeros(4, 4, 4)
    (part,) = further_parts(0, 2, 0.5)
    assert (part.name, part.image) == (GUIDE, 1)
    maps = [
        feature_maps(image, torch.ones(1, 4, 4, 4), 2.0, [part], [2], [labels])[0][2].values
        for labels in (one, other)
    ]
    squares = (maps[0] - maps[1]).square().mean(0)
    torch.testing.assert_close(squares[0, 0], torch.tensor([0.5 * 2, 0.5 * 2]))  # of label 1 and of label 2
    torch.testing.assert_close(squares[0, 1], torch.tensor([0.5 * 1, 0.5 * 1]))  # of label 1 alone
    torch.testing.assert_close(squares[1], torch.zeros(2, 2))


def test_which_images_are_compared() -> None:
    assert pairs_of(["a"], ["b"]) == [("a", "b")]
    assert pairs_of(["a", "c"], ["b", "d"]) == [("a", "b"), ("c", "d")]
    assert pairs_of(["a", "c", "e"], ["b"]) == [("a", "b"), ("c", "b"), ("e", "b")]
    assert pairs_of(["a"], ["b", "d"]) == [("a", "b"), ("a", "d")]
    with pytest.raises(RegkitError, match="there are 2 fixed and 3 moving images"):
        pairs_of(["a", "c"], ["b", "d", "f"])


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return torso(0, 7.0)


def _register(phantom: Phantom, **options: Any) -> regkit.Registration:
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = phantom.truth.rotation, phantom.truth.translation
    common = {"init": start, "features": "mind", "threads": 1}
    return register(
        options.pop("fixed", phantom.fixed), options.pop("moving", phantom.moving), **{**common, **options}
    )


def test_landmarks_and_labels_help_and_wrong_landmarks_fold_nothing(
    phantom: Phantom, rng: np.random.Generator
) -> None:
    points, targets = phantom.landmarks_fixed, phantom.landmarks_moving
    given, held = slice(0, None, 3), [k for k in range(len(points)) if k % 3]

    def error(result: regkit.Registration) -> float:
        found = result.warp.transform_points(points[held])
        return float(np.linalg.norm(found - targets[held], axis=1).mean())

    plain = _register(phantom)
    helped = _register(phantom, fixed_landmarks=points[given], moving_landmarks=targets[given])
    assert error(helped) < 0.9 * error(plain)
    distances = helped.metrics["landmarks_mm"]
    assert distances["after"] < 0.5 * distances["linear"]
    assert helped.settings["landmarks"] == len(points[given])
    off = rng.normal(size=targets[given].shape)
    off *= 3 / np.linalg.norm(off, axis=1, keepdims=True)
    wrong = _register(phantom, fixed_landmarks=points[given], moving_landmarks=targets[given] + off)
    assert wrong.metrics["folding_percent"] == 0
    ignored = _register(
        phantom, fixed_landmarks=points[given], moving_landmarks=targets[given] + off,
        settings={"landmark_weight": 0},
    )  # fmt: skip
    np.testing.assert_array_equal(ignored.warp.field, plain.warp.field)

    maps = phantom.fixed_labels, phantom.moving_labels
    keep = [label for label in phantom.names if label % 2]
    shown = [Volume(np.where(np.isin(one.array, keep), one.array, 0), one.grid) for one in maps]
    guided = _register(phantom, guide_labels=tuple(shown), fixed_labels=maps[0], moving_labels=maps[1])
    assert guided.settings["guide_labels"] == [label for label in keep if label in np.unique(shown[0].array)]
    assert "guide" in guided.settings["compared"]
    assert guided.metrics["folding_percent"] == 0
    before = _register(phantom, fixed_labels=maps[0], moving_labels=maps[1])
    scores = [
        np.nanmean([row["dice"] for row in one.metrics["labels"] if row["label"] in keep])
        for one in (before, guided)
    ]
    assert scores[1] > scores[0] + 0.03


def test_several_images_are_compared(phantom: Phantom) -> None:
    both = _register(phantom, fixed=[phantom.fixed, phantom.fixed], moving=phantom.moving)
    assert both.settings["images"] == 2
    assert both.settings["asked"] == ["mind", "mind 2"]
    assert both.metrics["evidence"]["mind 2"]["blur_of_match"] == pytest.approx(
        both.metrics["evidence"]["mind"]["blur_of_match"], abs=1e-3
    )
    far = Volume(phantom.fixed.array, Grid(phantom.fixed.grid.size, phantom.fixed.grid.spacing, (1e4, 0, 0)))
    with pytest.raises(RegkitError, match="the images of one side do not overlap"):
        _register(phantom, fixed=[phantom.fixed, far])


def test_hints_that_a_linear_preset_does_not_take(phantom: Phantom) -> None:
    with pytest.raises(RegkitError, match="count in a preset that deforms alone"):
        _register(phantom, preset="linear", fixed=[phantom.fixed, phantom.fixed])
    with pytest.raises(RegkitError, match="the list is empty"):
        _register(phantom, fixed=[])


def test_the_command_line(tmp_path: Path) -> None:
    files = write_phantom(tmp_path, 12.0)
    rows = np.loadtxt(files.landmarks, delimiter=",", skiprows=1)
    write_points(tmp_path / "f.fcsv", rows[:, :3])
    write_points(tmp_path / "m.mrk.json", rows[:, 3:])
    hints = ("--fixed-landmarks", tmp_path / "f.fcsv", "--moving-landmarks", tmp_path / "m.mrk.json")
    result = run(
        "register", "--fixed", files.fixed, "--fixed", files.fixed, "--moving", files.moving, *hints,
        "--guide-labels", files.fixed_labels, files.moving_labels, "-o", tmp_path / "w.nii.gz",
        "--features", "mind", "--threads", 1, "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["settings"]["images"] == 2
    assert found["settings"]["landmarks"] == len(rows)
    assert found["settings"]["start"]["origin"] == "landmarks"
    assert {"mind", "mind 2", "guide"} == set(found["settings"]["asked"])
    record = json.loads((tmp_path / "w.nii.gz.json").read_text())
    assert {"fixed 2", "moving", "fixed_landmarks", "guide_labels 2"} <= record["inputs"].keys()
    lines = run("rigid", files.fixed, files.moving, "-o", tmp_path / "t.tfm", *hints).stdout.splitlines()
    assert any(line.startswith("landmarks") for line in lines)
    words = ("register", files.fixed, files.moving, "-o", tmp_path / "x.nii.gz")
    assert "give both" in usage_error_of(*words, *hints[:2])
    assert "give two images" in usage_error_of("register", files.fixed, "-o", tmp_path / "x.nii.gz")
    (tmp_path / "few.csv").write_text("x,y,z\n1,2,3\n")
    message = error_of(*words, *hints[:3], tmp_path / "few.csv", "--quiet")
    assert f"there are {len(rows)} fixed landmarks and 1 moving ones" in message
