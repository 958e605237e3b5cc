"""Votes and weights against loops in float64, and what propagate() promises on phantoms and awkward grids."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from warp_cases import FIXED, MOVING, affine_map, smooth_warp, texture

import regkit
from regkit.core.geometry import Grid, transform_points
from regkit.evaluate import dice
from regkit.features.featuremap import FeatureMap
from regkit.propagation import FUSIONS, RegisteredAtlas, fuse_votes, local_difference, weigh_votes
from regkit.synthesis.phantom import Phantom, torso

TARGET = regkit.Volume(texture(FIXED), FIXED, "target")
IMAGE = regkit.Volume(texture(MOVING, 2), MOVING, "atlas")
# Within the field of view of MOVING, on other voxels: as labels may lie beside their image.
INNER = Grid(
    (9, 10, 12), (4.0, 4.1, 3.2), tuple(transform_points(MOVING.index_to_world, (3, 4, 3))), MOVING.direction
)


def _labels(grid: Grid = MOVING, seed: int = 3, values: tuple[int, ...] = (0, 7, 200, 3)) -> regkit.Volume:
    levels = np.quantile(texture(grid, seed), (0.4, 0.6, 0.8))
    return regkit.Volume(
        np.array(values)[np.digitize(texture(grid, seed), levels)].astype(np.int16), grid, f"labels {seed}"
    )


def _naive_votes(labels: regkit.Volume, index: np.ndarray) -> dict[int, float]:
    """The linear interpolation of every indicator at an index; background beyond half a voxel outside."""
    size = np.array(labels.grid.size)
    if (index < -0.5).any() or (index > size - 0.5).any():
        return {0: 1.0}
    base, votes = np.floor(index), {}
    for corner in product((0, 1), repeat=3):
        x, y, z = np.clip(base + corner, 0, size - 1).astype(int)
        label = int(labels.array[z, y, x])
        weight = math.prod(part if far else 1 - part for part, far in zip((index - base).tolist(), corner))
        votes[label] = votes.get(label, 0.0) + weight
    return votes


def test_the_fusion_is_that_of_a_loop_over_voxels(rng: np.random.Generator) -> None:
    atlases = [
        RegisteredAtlas(_labels(grid, seed), MOVING, smooth_warp(seed))
        for seed, grid in enumerate((MOVING, INNER, MOVING))
    ]
    shares = rng.uniform(0, 1, (3, *FIXED.shape)).astype(np.float32)
    shares[rng.uniform(size=shares.shape) < 0.3] = 0
    steps: list[float] = []
    found, confidence = fuse_votes(atlases, shares, steps.append)
    assert found.dtype == np.int16
    assert confidence.dtype == np.float32
    assert steps == [0.25, 0.5, 0.75, 1.0]  # after each label

    points = FIXED.world_points()
    indices = [
        transform_points(atlas.labels.grid.world_to_index, points + atlas.warp.field) for atlas in atlases
    ]
    near = 0
    for voxel in np.ndindex(FIXED.shape):
        total: dict[int, float] = {}
        for atlas, index, share in zip(atlases, indices, shares[(slice(None), *voxel)]):
            for label, vote in _naive_votes(atlas.labels, index[voxel]).items():
                total[label] = total.get(label, 0.0) + float(share) * vote
        everything = float(shares[(slice(None), *voxel)].sum(dtype=np.float64))
        ranked = sorted(total.values(), reverse=True)
        assert confidence[voxel] == pytest.approx(ranked[0] / everything if everything else 0, abs=1e-5)
        if len(ranked) > 1 and ranked[0] - ranked[1] < 1e-6:
            near += 1
        elif everything:
            assert total[int(found[voxel])] == ranked[0]
        else:
            assert found[voxel] == 0
    assert near < 0.04 * found.size  # mostly where nobody votes


def test_of_equal_votes_the_smallest_label_wins() -> None:
    grid = Grid((6, 6, 6))
    still = regkit.Warp(np.zeros((*grid.shape, 3), np.float32), grid, grid)
    atlases = [
        RegisteredAtlas(regkit.Volume(np.full(grid.shape, v, np.uint8), grid), grid, still) for v in (9, 4)
    ]
    found, confidence = fuse_votes(atlases, np.ones((2, *grid.shape), np.float32), lambda done: None)
    assert (found == 4).all()
    assert (confidence == 0.5).all()


@pytest.mark.usefixtures("seeded")
def test_the_local_difference_is_that_of_a_loop_over_cells() -> None:
    shape = (5, 6, 7)
    maps = [FeatureMap(torch.rand(4, *shape), torch.rand(1, *shape)) for _ in range(2)]
    maps[1].weight[:, :, :3] = 0  # in the first rows there is nothing to compare
    (a, b), weight = (m.values.double().numpy() for m in maps), maps[0].weight * maps[1].weight
    squares, weight = ((a - b) ** 2).mean(axis=0), weight[0].double().numpy()
    found = local_difference(*maps).numpy()
    assert found.shape == (1, *shape)
    mean = (squares * weight).sum() / weight.sum()
    for cell in np.ndindex(shape):
        around = [
            tuple(np.clip(np.add(cell, step), 0, np.array(shape) - 1))
            for step in product((-1, 0, 1), repeat=3)
        ]
        numerator = sum(squares[i] * weight[i] for i in around) / 27 + 1e-3 * mean
        assert found[(0, *cell)] == pytest.approx(
            numerator / (sum(weight[i] for i in around) / 27 + 1e-3), rel=1e-4
        )
    assert found[0, :, :2] == pytest.approx(mean, rel=1e-4)


def test_the_weights_are_those_of_the_formula(rng: np.random.Generator) -> None:
    cells = FIXED.working(3.0, 2).pooled(2)
    differences = torch.from_numpy(rng.uniform(0.01, 0.1, (3, *cells.shape)).astype(np.float32))
    covers = rng.uniform(size=(3, *FIXED.shape)) < 0.7
    found = covers.astype(np.float32)
    weigh_votes(found, differences, cells, FIXED)
    image = [sitk.Cast(cells.to_sitk(d.numpy()), sitk.sitkFloat64) for d in differences]
    d = np.stack([sitk.GetArrayFromImage(sitk.Resample(i, FIXED.blank(), sitk.Transform(3, sitk.sitkIdentity),
                  sitk.sitkLinear, 0.0, sitk.sitkFloat64, True)) for i in image])  # fmt: skip
    least = np.where(covers, d, np.inf).min(axis=0)
    expected = np.where(covers, np.exp(1 - d / np.where(np.isinf(least), 1, least)), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.max(axis=0) == covers.any(axis=0)).all()  # exactly 1 for the best


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("labels", [_labels(), _labels(INNER), _labels(values=(1, 2, 3, 4))])
def test_one_atlas_gives_what_the_warp_does(fusion: str, labels: regkit.Volume) -> None:
    given: dict[str, Any] = {"init": affine_map(8, (9, -3, 1)), "preset": "linear"}
    expected = regkit.register(TARGET, IMAGE, **given).warp.apply(labels, interpolation="label")
    result = regkit.propagate(TARGET, [(IMAGE, labels)], fusion=fusion, **given)
    assert result.labels.grid is FIXED
    assert result.labels.array.dtype == expected.array.dtype
    np.testing.assert_array_equal(result.labels.array, expected.array)
    assert (expected.array == 0).any()
    assert result.confidence.array.dtype == np.float32
    assert result.confidence.grid is FIXED
    assert 0 < result.confidence.array.max() <= 1
    assert result.atlases[0]["votes"] == 1


def test_two_like_atlases_count_as_one(one_thread: None) -> None:
    given: dict[str, Any] = {"init": affine_map(4, (1, 2, 0)), "preset": "linear"}
    for fusion in FUSIONS:
        alone, twice = (
            regkit.propagate(TARGET, [(IMAGE, _labels())] * n, fusion=fusion, **given) for n in (1, 2)
        )
        np.testing.assert_array_equal(alone.labels.array, twice.labels.array)
        np.testing.assert_allclose(alone.confidence.array, twice.confidence.array, atol=1e-6)
        assert [atlas["votes"] for atlas in twice.atlases] == [0.5, 0.5]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_atlas_votes_only_within_its_image(fusion: str) -> None:
    grid = Grid((20, 18, 24), (2.0, 2.0, 2.0), (-20.0, 5.0, 40.0))
    image = texture(grid)
    target = regkit.Volume(image, grid)
    parts = {1: (0, 12), 2: (8, 18)}  # of 24 slices; the label maps go on beyond the images
    atlases = [
        (
            regkit.Volume(image[a:b], grid.window((0, 0, a), (20, 18, b - a))),
            regkit.Volume(np.full(grid.shape, label), grid),
        )
        for label, (a, b) in parts.items()
    ]
    result = regkit.propagate(target, atlases, fusion=fusion, init="none", preset="linear")
    slices = result.labels.array
    assert (slices[:8] == 1).all()
    assert (slices[12:18] == 2).all()
    assert (slices[18:] == 0).all()
    confidence = result.confidence.array
    assert (confidence[:8] == 1).all()
    assert (confidence[12:18] == 1).all()
    assert (confidence[18:] == 0).all()
    if fusion == "majority":
        assert (slices[8:12] == 1).all()
        assert (confidence[8:12] == 0.5).all()


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [torso(seed, 8.0) for seed in range(3)]


@pytest.fixture(scope="module")
def with_a_bad_one(phantoms: list[Phantom]) -> list[tuple[regkit.Volume, regkit.Volume]]:
    """Two trunks, and a third that is noise and whose labels lie 56 mm beside their places."""
    good = [(p.fixed, p.fixed_labels) for p in phantoms[1:]]
    image, labels = good[0]
    noise = np.random.default_rng(0).permutation(image.array.ravel()).reshape(image.array.shape)
    return [*good, (replace(image, array=noise), replace(labels, array=np.roll(labels.array, 7, axis=2)))]


def test_similarity_outdoes_majority_where_an_atlas_is_bad(
    phantoms: list[Phantom], with_a_bad_one: list[tuple[regkit.Volume, regkit.Volume]]
) -> None:
    target, truth = phantoms[0].fixed, phantoms[0].fixed_labels.array

    def score(atlases: list[Any], fusion: str) -> float:
        found = regkit.propagate(target, atlases, fusion=fusion, preset="fast", threads=1)
        return float(np.nanmean([*dice(truth, found.labels.array).values()]))

    similarity, majority = (score(with_a_bad_one, fusion) for fusion in FUSIONS)
    singles = [score([atlas], "majority") for atlas in with_a_bad_one]
    assert singles[2] < 0.3
    assert similarity > majority + 0.02
    assert similarity > max(singles)


def test_the_same_input_gives_the_same_result(
    phantoms: list[Phantom], with_a_bad_one: list[tuple[regkit.Volume, regkit.Volume]]
) -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    first, second = (
        regkit.propagate(phantoms[0].fixed, with_a_bad_one[1:], preset="fast", threads=1) for _ in range(2)
    )
    np.testing.assert_array_equal(first.labels.array, second.labels.array)
    np.testing.assert_array_equal(first.confidence.array, second.confidence.array)
    votes = [atlas["votes"] for atlas in first.atlases]
    assert votes == [atlas["votes"] for atlas in second.atlases]
    assert sum(votes) == pytest.approx(1)
    assert votes[0] > 0.7  # of the good one
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_how_images_are_stored_changes_nothing(tmp_path: Path) -> None:
    given: dict[str, Any] = {"init": affine_map(6, (2, 1, -2)), "preset": "linear", "threads": 1}
    atlases = [(IMAGE, _labels()), (regkit.Volume(texture(MOVING, 5), MOVING), _labels(seed=6))]
    straight = regkit.propagate(TARGET, atlases, **given)
    files = tmp_path / "image.nii.gz", tmp_path / "labels.nrrd"
    regkit.save_image(sitk.DICOMOrient(IMAGE.to_sitk(), "ASR"), files[0])
    regkit.save_image(_labels().to_sitk(), files[1])
    second = [volume.to_sitk() for volume in atlases[1]]
    turned = nibabel.Nifti1Image(TARGET.array.T, FIXED.ras_affine)
    found = regkit.propagate(turned, [files, (sitk.DICOMOrient(second[0], "LPI"), second[1])], **given)
    assert (found.labels.array != straight.labels.array).mean() < 2e-3
    assert found.atlases[0]["image"] == "image.nii.gz"
    assert found.atlases[0]["labels"] == "labels.nrrd"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [((1, 255), np.uint8), ((1, 256), np.int16), ((1, 70000), np.int32)],
)
def test_the_type_holds_the_labels_of_all_atlases(values: tuple[int, int], dtype: type) -> None:
    grid = Grid((8, 8, 8))
    image = regkit.Volume(texture(grid), grid)
    halves = np.zeros(grid.shape, np.int32)
    atlases = []
    for half, value in enumerate(values):
        halves[4 * half : 4 * half + 4] = value
        atlases.append((image, regkit.Volume(np.where(halves == value, value, 0), grid)))
    # Each atlas calls background what the other one labels, and of equal votes the smallest label wins.
    found = regkit.propagate(image, atlases, init="none", preset="linear", fusion="majority").labels.array
    assert found.dtype == dtype
    assert set(np.unique(found)) == {0}


def test_progress_goes_from_atlas_to_atlas_to_the_end() -> None:
    told: list[tuple[str, float]] = []
    regkit.propagate(
        TARGET,
        [(IMAGE, _labels())] * 2,
        init=affine_map(4, (1, 2, 0)),
        preset="linear",
        progress=lambda stage, done: told.append((stage, done)),
    )
    stages = list(dict.fromkeys(stage for stage, _ in told))
    parts = ("load", "linear", "warp", "verdict")
    assert stages == ["reading", *(f"atlas {k} of 2: {part}" for k in (1, 2) for part in parts), "fusion"]
    shares = [done for _, done in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)


_FAR = replace(MOVING, origin=(5000.0, 0.0, 0.0))
_EMPTY = regkit.Volume(np.zeros(MOVING.shape), MOVING)


@pytest.mark.parametrize(
    ("atlases", "given", "expected"),
    [
        ([], {}, "there is no atlas"),
        ([(IMAGE, _labels())], {"fusion": "staple"}, "no fusion named 'staple'; available: similarity"),
        ([(IMAGE, _labels()), (IMAGE, _EMPTY)], {}, "labels of atlas 2 holds no label"),
        (
            [(IMAGE, _labels()), (IMAGE, replace(_labels(), grid=_FAR))],
            {},
            "labels of atlas 2, 'labels 3': none lies inside the atlas' image 'atlas'",
        ),
        ([(replace(IMAGE, array=IMAGE.array * 0), _labels())], {}, "image of atlas 1 is constant"),
        ([("no.nii", _labels())], {}, "image of atlas 1 'no.nii' does not exist"),
        ([(IMAGE, "no.nii")], {}, "labels of atlas 1 'no.nii' does not exist"),
        (
            [(IMAGE, _labels()), (IMAGE, _labels(values=(0, -3, 2, 1)))],
            {},
            "labels of atlas 2, 'labels 3': there is a label -3; labels must be 0 or more, so give -3",
        ),
        ([(IMAGE, _labels()), IMAGE], {}, r"atlas 2 must be a pair \(image, label map\), got a Volume"),
        (("a.nii", "b.nii"), {}, "atlas 1 must be a pair .*, got 'a.nii'"),
        ([(IMAGE, _labels(), "name")], {}, "atlas 1 must be a pair .*, got a tuple of 3"),
        ([(IMAGE, _labels())], {"device": "tpu"}, "no device named 'tpu'"),
    ],
)
def test_inputs_are_refused_before_any_registration(
    atlases: list[Any], given: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "device" not in given:
        monkeypatch.setattr("regkit.propagation.register", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(regkit.RegkitError, match=expected):
        regkit.propagate(TARGET, atlases, **given)


def test_an_atlas_that_cannot_be_registered_is_named() -> None:
    far = replace(IMAGE, grid=_FAR, name="far.nii.gz"), replace(_labels(), grid=_FAR)
    with pytest.raises(regkit.RegkitError, match=r"^atlas 2 of 2, 'far\.nii\.gz': the images do not overlap"):
        regkit.propagate(TARGET, [(IMAGE, _labels()), far], init="none", preset="fast")
    with pytest.raises(regkit.RegkitError, match="no atlas covers any part of the target"):
        regkit.propagate(TARGET, [far], init="none", preset="linear")


def test_what_does_not_fit_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regkit.runtime.memory.available_memory", lambda: 1e6)
    with pytest.raises(regkit.RegkitError, match="the fusion of 9 atlases needs"):
        regkit.propagate(TARGET, [(IMAGE, _labels())] * 9)


def test_one_labelled_voxel_in_the_image_is_enough() -> None:
    """Half a voxel beyond the outer centres is inside, more is not."""
    grid = Grid((8, 8, 8))
    image = regkit.Volume(texture(grid), grid)
    for shift, fits in ((7.4, True), (7.6, False)):
        array = np.zeros(grid.shape, np.uint8)
        array[0, 0, 0] = 1
        labels = regkit.Volume(array, replace(grid, origin=(shift,) * 3))
        if fits:
            regkit.propagate(image, [(image, labels)], init="none", preset="linear")
        else:
            with pytest.raises(regkit.RegkitError, match="none lies inside"):
                regkit.propagate(image, [(image, labels)], init="none", preset="linear")
