"""Motion between the frames of a 4-D image: found, taken out, and told in the field's terms."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_cases import error_of, run
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, affine_transform, linear_about, transform_points
from regkit.io.formats import read_linear
from regkit.io.frames import Frames, load_frames
from regkit.ops.resample import Source
from regkit.series import COLUMNS, align_series
from regkit.solver.motion import Reference, parameters
from regkit.warp import Warp

_TURN = Rotation.from_euler("xyz", (12, -25, 8), degrees=True).as_matrix()
GRID = Grid((26, 28, 18), (3.0, 3.0, 3.6), (-30.0, 12.0, 55.0), tuple((_TURN * [1, -1, 1]).ravel()))
_MOTION = [(0.8, -1.2, 0.5, 1.0, -1.5, 0.7), (-0.4, 0.3, 1.5, -0.8, 0.2, 1.2), (0,) * 6]
_MOTION += [(2.6, 1.1, -3.1, 3.0, 2.0, -4.0), (0.3, 0.3, -0.2, 0.1, 0.4, -0.3)]


def _body(seed: int = 3) -> tuple[Grid, np.ndarray]:
    """A textured ball on a finer grid that reaches further."""
    fine = Grid((80, 84, 66), (1.5,) * 3, tuple(GRID.centre - np.array([79, 83, 65]) * 0.75))
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=fine.shape), 2.5)
    radius = np.linalg.norm(fine.world_points() - GRID.centre, axis=-1)
    ball = (gaussian_filter((radius < 28).astype(float), 1.5)) * (1 + 0.4 * texture / texture.std())
    return fine, ball.astype(np.float32).clip(0)


def _matrices() -> list[Float64]:
    return [
        linear_about(GRID.centre, Rotation.from_euler("xyz", p[3:], degrees=True).as_matrix(), p[:3])
        for p in _MOTION
    ]


def _moving(gain: float = 0.0, noise: float = 0.01) -> Frames:
    """A body that moves; a frame shows it where the inverse of its map says."""
    random = np.random.default_rng(5)
    fine, body = _body()
    frames = []
    for k, matrix in enumerate(_matrices()):
        image = fine.to_sitk(body * (1 + gain * k))
        seen = sitk.Resample(image, GRID.blank(), affine_transform(np.linalg.inv(matrix)), sitk.sitkLinear)
        frames.append(sitk.GetArrayFromImage(seen) + noise * random.normal(size=GRID.shape))
    return Frames(1000 * np.array(frames, np.float32), GRID, 2.0)


def _errors(found: Float64, points: Float64) -> Float64:
    """mm, of the motion of each frame since the first: where the mean lies is not told."""
    truth = np.stack(_matrices())
    since = [np.linalg.inv(matrices[0]) for matrices in (found, truth)]
    moved = [
        np.stack([transform_points(m @ first, points) for m in matrices])
        for matrices, first in zip((found, truth), since)
    ]
    return np.asarray(np.linalg.norm(moved[0] - moved[1], axis=2).mean(axis=1))


@pytest.mark.parametrize("gain", [0.0, 0.15])
def test_motion_is_found_to_a_tenth_of_a_voxel(gain: float) -> None:
    series = _moving(gain)
    found = align_series(series)
    before = _errors(np.stack([np.eye(4)] * len(series)), found.points)
    after = _errors(found.matrices, found.points)
    assert before[3] > 3
    assert after.max() < 0.3, after
    assert found.searched == ()
    spread = [
        np.std(f.array / f.array.mean((1, 2, 3), keepdims=True), axis=0).mean()
        for f in (series, found.frames)
    ]
    assert spread[1] < 0.4 * spread[0]
    assert found.frames.step == 2.0
    assert found.mean.grid == GRID


def test_a_frame_that_is_far_away_is_looked_for_anew() -> None:
    series = _moving()
    far = np.zeros_like(series.array[:1])
    far[0, 5:, :, 6:] = series.array[2, :-5, :, :-6]  # 18 mm off, of a body of 56 mm
    found = align_series(Frames(np.concatenate([series.array, far]), GRID, 2.0))
    shift = transform_points(found.matrices[5] @ np.linalg.inv(found.matrices[2]), GRID.centre) - GRID.centre
    expected = GRID.index_to_world[:3, :3] @ [6, 0, 5]
    assert np.linalg.norm(shift - expected) < 1.0, (shift, expected)


def test_parameters_are_those_of_itk(rng: np.random.Generator) -> None:
    euler = sitk.Euler3DTransform(GRID.centre.tolist(), 0.1, -0.2, 0.3, (4.0, 5.0, -6.0))
    euler.SetComputeZYX(True)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(euler.GetMatrix(), (3, 3))
    matrix[:3, 3] = euler.TransformPoint((0.0, 0.0, 0.0))
    right = [4.0, 5.0, -6.0, *np.degrees([0.1, -0.2, 0.3])]
    np.testing.assert_allclose(parameters(matrix, GRID.centre), right, atol=1e-9)


@pytest.mark.parametrize("backwards", [[], [0], [1, 2]])
def test_the_refinement_knows_axes_of_either_hand(backwards: list[int]) -> None:
    direction = _TURN.copy()
    direction[:, backwards] *= -1
    grid = Grid((30, 30, 22), (3.0, 3.0, 3.4), (0.0, 0.0, 0.0), tuple(direction.ravel()))
    grid = Grid(grid.size, grid.spacing, tuple(GRID.centre - grid.centre), grid.direction)
    fine, body = _body()
    truth = _matrices()[1]
    seen = [
        sitk.GetArrayFromImage(sitk.Resample(fine.to_sitk(body), grid.blank(), affine_transform(m)))
        for m in (np.eye(4), np.linalg.inv(truth))
    ]
    top = float(seen[0].max())
    fixed, frame = (Source(torch.from_numpy(array / top), None, grid) for array in seen)
    found = Reference(fixed).fit(frame, np.eye(4)).matrix
    off = np.linalg.norm(transform_points(found, grid.corners()) - transform_points(truth, grid.corners()))
    assert off < 0.5


def test_deformation_is_taken_out_and_the_mean_is_of_average_shape() -> None:
    fine, body = _body()
    near = np.exp(-((np.linalg.norm(fine.world_points() - GRID.centre, axis=-1) / 22) ** 2))
    bend = near[..., None] * np.array([2.0, 4.0, -2.0])
    truths = [Warp((sign * bend).astype(np.float32), fine) for sign in (-1.0, 1.0)]
    arrays = []
    for truth in truths:
        seen = sitk.Resample(fine.to_sitk(body), GRID.blank(), truth.inverse(fine).to_sitk(), sitk.sitkLinear)
        arrays.append(1000 * sitk.GetArrayFromImage(seen))
    series = Frames(np.array(arrays), GRID, 0.1)
    found = align_series(series, model="deformable", rounds=1, features="mind", preset="fast")
    points = found.points
    right = np.stack([truth.transform_points(points) for truth in truths])
    moved = np.stack([warp.transform_points(points) for warp in found.warps])
    before = np.linalg.norm(np.diff(right, axis=0), axis=2).mean()
    after = np.linalg.norm(np.diff(moved, axis=0) - np.diff(right, axis=0), axis=2).mean()
    assert after < 0.6 * before, (before, after)
    inner = np.stack(
        [
            transform_points(np.linalg.inv(matrix), one)
            for matrix, one in zip(found.matrices, moved, strict=True)
        ]
    )
    bias = np.linalg.norm((inner - points).mean(axis=0), axis=1).mean()
    assert bias < 0.1 * before, (bias, before)


def test_the_command_writes_series_mean_table_and_transforms(tmp_path: Path) -> None:
    series = _moving()
    series.save(tmp_path / "bold.nii.gz")
    out = {name: tmp_path / name for name in ("still.nii.gz", "mean.nii.gz", "motion.tsv", "transforms")}
    words = ["series", tmp_path / "bold.nii.gz", "-o", out["still.nii.gz"], "--mean", out["mean.nii.gz"]]
    words += ["--table", out["motion.tsv"], "--transforms", out["transforms"]]
    result = run(*words, "--json")
    told = json.loads(result.stdout)
    assert told["frames"] == 5 and told["max_displacement_mm"] > 2
    still = load_frames(out["still.nii.gz"], "series")
    assert still.step == 2.0 and still.grid.same_as(GRID)
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(sitk.ReadImage(str(out["mean.nii.gz"]))),
        still.array.mean(0),
        rtol=1e-3,
        atol=0.1,
    )
    with out["motion.tsv"].open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 5
    assert [float(row["time_s"]) for row in rows] == [0, 2, 4, 6, 8]
    # A transform of the table, applied by ITK, gives the frame of the series.
    matrix = read_linear(out["transforms"] / "frame-0003.tfm")
    own = [float(rows[3][column]) for column in COLUMNS[2:8]]
    np.testing.assert_allclose(parameters(matrix, GRID.centre), own, atol=1e-4)
    image = GRID.to_sitk(series.array[3])
    seen = sitk.Resample(
        image, GRID.blank(), affine_transform(matrix), sitk.sitkLinear, float(series.array.min())
    )
    np.testing.assert_allclose(sitk.GetArrayFromImage(seen), still.array[3], atol=0.5)
    record = json.loads((tmp_path / "still.nii.gz.json").read_text())
    assert record["settings"]["model"] == "rigid" and "sha256" in record["inputs"]["series"]
    said = error_of(*words)
    assert "exists already" in said


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    series = _moving()
    for options, message in (
        ({"model": "affine"}, "no model named 'affine'"),
        ({"rounds": 0}, "at least 1"),
        ({"interpolation": "label"}, "linear, bspline or nearest"),
        ({"device": "tpu"}, "no device named 'tpu'"),
    ):
        with pytest.raises(RegkitError, match=message):
            align_series(series, **options)  # type: ignore[arg-type]
    with pytest.raises(RegkitError, match="constant"):
        align_series(Frames(np.zeros((3, *GRID.shape)), GRID))
    series.volume(0).to_sitk()
    sitk.WriteImage(series.volume(0).to_sitk(), str(tmp_path / "one.nii.gz"))
    said = error_of("series", tmp_path / "one.nii.gz", "-o", tmp_path / "out.nii.gz")
    assert "not 4-D" in said and list(tmp_path.glob("out*")) == []
