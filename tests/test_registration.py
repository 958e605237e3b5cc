"""register() as its callers see it: what it recovers, on any grids, and what it promises."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

import regkit
from regkit import registration
from regkit.core.errors import RegkitError
from regkit.core.geometry import slab_index, transform_points
from regkit.features.weights import bundled_weights
from regkit.io.formats import to_learn2reg, write_linear
from regkit.ops.folding import folded_points
from regkit.ops.jacobian import jacobian_determinant, unfolded_warp
from regkit.synthesis.phantom import torso

SHAPE = (37, 41, 29)  # of odd sizes that no stride divides
SPACING = 2.0


def texture(seed: int = 1) -> np.ndarray:
    """A smooth random image over a body-like ball, of values that are not taken for CT."""
    random = np.random.default_rng(seed)
    image = gaussian_filter(random.normal(size=SHAPE), 1.7)
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    body = 1 / (1 + np.exp((z**2 + y**2 + x**2 - 1.1) * 12))
    return (body * (1 + image / image.std())).astype(np.float32) * 100


GRID = regkit.Grid(SHAPE[::-1], (SPACING,) * 3, (-31.0, 12.0, 100.0))


def moving_through(matrix: np.ndarray, grid: regkit.Grid = GRID) -> regkit.Volume:
    """The texture seen at y = T(p), so that the true fixed -> moving map is ``matrix``."""
    index = transform_points(
        GRID.world_to_index @ np.linalg.inv(matrix) @ grid.index_to_world, slab_index(grid, 0, grid.shape[0])
    )
    seen = map_coordinates(texture(), np.moveaxis(index[..., ::-1], -1, 0), order=3, mode="nearest")
    return regkit.Volume(seen.astype(np.float32), grid, "moving")


FIXED = regkit.Volume(texture(), GRID, "fixed")


def inner_points(margin: int = 8) -> np.ndarray:
    inner = tuple(slice(margin, n - margin, 2) for n in SHAPE)
    return transform_points(GRID.index_to_world, slab_index(GRID, 0, SHAPE[0])[inner].reshape(-1, 3))


def errors(result: regkit.Registration, matrix: np.ndarray) -> np.ndarray:
    points = inner_points()
    return np.linalg.norm(result.warp.transform_points(points) - transform_points(matrix, points), axis=1)


def scaled(factor: float, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    matrix = np.diag([factor, factor, factor, 1.0])
    matrix[:3, 3] = GRID.centre * (1 - factor) + shift
    return matrix


@pytest.mark.parametrize(
    ("matrix", "voxels"),
    [
        pytest.param(scaled(1.0), 0.2, id="identity"),
        pytest.param(scaled(1.0, (4.0, -2.0, 6.0)), 0.2, id="whole-voxels"),
        # Displacements lean towards whole voxels, by 0.2004 here.
        pytest.param(scaled(1.0, (1.0, 3.0, -0.6)), 0.21, id="parts-of-voxels"),
        pytest.param(scaled(1.06), 0.2, id="larger"),
        pytest.param(scaled(0.95), 0.2, id="smaller"),
    ],
)
@pytest.mark.parametrize("features", ["mind", "network+mind"])
def test_shifts_and_scalings_are_found_without_a_half_voxel_error(
    matrix: np.ndarray, voxels: float, features: str
) -> None:
    """By the deformable stages alone, which is where the public codes are off by N / (N - 1)."""
    found = errors(regkit.register(FIXED, moving_through(matrix), init="none", features=features), matrix)
    assert found.mean() < voxels * SPACING
    assert np.percentile(found, 95) < 0.5 * SPACING


def test_a_shift_is_found_up_to_the_border() -> None:
    """Nothing pulls displacements towards zero where the box means meet the end of the grid."""
    shift = np.array([6.0, 0.0, -6.0])
    grid = regkit.Grid(tuple(n + 12 for n in GRID.size), GRID.spacing, tuple(np.array(GRID.origin) - 12.0))
    random = np.random.default_rng(5)
    wide = gaussian_filter(random.normal(size=grid.shape), 1.7).astype(np.float32)
    fixed = regkit.Volume(wide[6:-6, 6:-6, 6:-6], GRID)
    result = regkit.register(
        fixed,
        regkit.Volume(wide, regkit.Grid(grid.size, grid.spacing, tuple(np.array(grid.origin) + shift))),
        init="none",
    )
    off = np.linalg.norm(result.warp.field - shift, axis=-1)
    faces = np.concatenate([np.take(off, end, axis).ravel() for axis in range(3) for end in (0, -1)])
    assert faces.mean() < SPACING  # of a shift of 8.5 mm


def test_the_field_that_is_returned_is_the_one_that_was_used() -> None:
    """By SimpleITK from the saved field, and by scipy from Learn2Reg's voxels, as the official code does."""
    result = regkit.register(FIXED, moving_through(scaled(1.05, (2.0, 0.0, -2.0))))
    moved = result.moved.array
    by_itk = sitk.Resample(
        result.moving.to_sitk(),
        GRID.blank(),
        result.warp.to_sitk(),
        sitk.sitkLinear,
        float(result.moving.array.min()),
    )
    np.testing.assert_allclose(moved, sitk.GetArrayFromImage(by_itk), atol=1e-3)
    voxels = to_learn2reg(result.warp)
    identity = np.stack(np.meshgrid(*[np.arange(n) for n in GRID.size], indexing="ij"))
    by_scipy = map_coordinates(result.moving.array.T, identity + np.moveaxis(voxels, -1, 0), order=1)
    inner = (slice(6, -6),) * 3
    np.testing.assert_allclose(moved.T[inner], by_scipy[inner], atol=1e-2 * np.ptp(moved))
    inside = inner_points()
    back = result.warp.inverse().transform_points(result.warp.transform_points(inside))
    assert np.abs(back - inside).max() < 0.2 * SPACING


@pytest.mark.parametrize("features", ["mind", "network+mind"])
def test_the_way_voxels_are_stored_changes_nothing(features: str) -> None:
    matrix = scaled(1.03, (3.0, -4.0, 2.0))
    moving = moving_through(matrix).to_sitk()
    straight = regkit.register(FIXED, moving, features=features)
    turned = sitk.DICOMOrient(moving, "ASR")  # axes exchanged, and two of them backwards
    assert turned.GetDirection() != moving.GetDirection()
    found = regkit.register(FIXED, turned, features=features)
    assert np.abs(found.warp.field - straight.warp.field).max() < 0.1
    inner = (slice(4, -4),) * 3  # at the ends a voxel may fall in or out by rounding
    np.testing.assert_allclose(found.moved.array[inner], straight.moved.array[inner], atol=5)
    found = regkit.register(sitk.DICOMOrient(FIXED.to_sitk(), "ASR"), moving, features=features)
    points = inner_points()
    apart = found.warp.transform_points(points) - straight.warp.transform_points(points)
    assert np.linalg.norm(apart, axis=1).max() < 0.2 * SPACING


def test_an_oblique_moving_grid_in_another_frame() -> None:
    turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = (250.0, -80.0, -300.0)
    size = (34, 46, 31)
    middle = transform_points(matrix, GRID.centre)
    origin = middle - turn @ (np.array((1.8, 1.7, 2.4)) * (np.array(size) - 1) / 2)
    grid = regkit.Grid(size, (1.8, 1.7, 2.4), tuple(origin), tuple(turn.ravel()))
    result = regkit.register(FIXED, moving_through(matrix, grid))
    assert errors(result, matrix).mean() < 0.3 * SPACING
    assert result.warp.moving_grid == grid


def test_what_one_image_does_not_show_does_not_pull() -> None:
    """With the upper part of the moving image cut away, the rest is registered as before."""
    matrix = scaled(1.0, (3.0, 2.0, -1.0))
    whole = moving_through(matrix)
    z = 20
    part = regkit.Volume(
        whole.array[:z].copy(), regkit.Grid((*GRID.size[:2], z), GRID.spacing, GRID.origin), "part"
    )
    result = regkit.register(FIXED, part, init="none")
    points = inner_points()
    seen = transform_points(GRID.world_to_index, points)[:, 2] < z - 4
    off = np.linalg.norm(result.warp.transform_points(points) - transform_points(matrix, points), axis=1)
    assert off[seen].mean() < 0.3 * SPACING
    assert off[~seen].mean() < 2 * SPACING
    assert result.metrics["folding_percent"] == 0


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("brightest", [300.0, 1e5])
def test_what_a_mask_leaves_out_does_not_count(side: str, brightest: float) -> None:
    """Neither where it lies, nor by setting the window of intensities for all the rest."""
    matrix = scaled(1.0, (3.0, 0.0, -2.0))
    images = {"fixed": FIXED, "moving": moving_through(matrix)}
    spoilt = images[side].array.copy()
    spoilt[:, :, 18:] = np.random.default_rng(3).uniform(0, brightest, spoilt[:, :, 18:].shape)
    mask = np.ones(SHAPE, dtype=np.uint8)
    mask[:, :, 17:] = 0
    images[side] = regkit.Volume(spoilt, GRID)
    masks = {f"{side}_mask": regkit.Volume(mask, GRID)}
    result = regkit.register(images["fixed"], images["moving"], init="none", **masks)
    points = inner_points()
    clear = transform_points(GRID.world_to_index, points)[:, 0] < 12
    off = np.linalg.norm(result.warp.transform_points(points) - transform_points(matrix, points), axis=1)
    assert off[clear].mean() < 0.3 * SPACING


def _mask(*inside: slice) -> regkit.Volume:
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[inside] = 1
    return regkit.Volume(array, GRID)


def test_masks_that_leave_too_little_are_refused_in_one_line() -> None:
    one = slice(17, 18)
    with pytest.raises(RegkitError, match="moving image is constant inside its mask"):
        regkit.register(FIXED, FIXED, moving_mask=_mask(one, one, one))
    # A slab along z and one along x: wherever they are placed, they cross in a small part.
    with pytest.raises(RegkitError, match=r"less than a fifth .* overlaps"):
        regkit.register(
            FIXED,
            FIXED,
            fixed_mask=_mask(slice(0, 2)),
            moving_mask=_mask(slice(None), slice(None), slice(0, 2)),
        )
    few = slice(17, 19)  # eight voxels: no more than a mask that says little
    result = regkit.register(FIXED, FIXED, fixed_mask=_mask(few, few, few), init="none")
    assert result.metrics["folding_percent"] == 0


@pytest.mark.parametrize("size", [(4, 4, 4), (5, 6, 31)])
def test_the_smallest_images_pass(size: tuple[int, int, int]) -> None:
    grid = regkit.Grid(size, (2.0, 3.0, 1.0))
    fixed, moving = (
        regkit.Volume(np.random.default_rng(seed).normal(500, 100, grid.shape).astype(np.float32), grid)
        for seed in (0, 1)
    )
    result = regkit.register(fixed, moving)
    assert result.warp.field.shape == (*grid.shape, 3)
    assert result.metrics["folding_percent"] == 0
    again = regkit.register(fixed, fixed)
    assert np.abs(again.warp.field).max() < 0.5


def test_unrelated_images_do_not_fold() -> None:
    result = regkit.register(FIXED, regkit.Volume(texture(7), GRID), init="none")
    assert result.metrics["folding_percent"] == 0
    assert result.warp.jacobian().array.min() > 0


def test_what_folds_on_the_fixed_grid_alone_is_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver's last field is replaced by a wave that folds in none of its cells: they are larger than the
    voxels in the plane.
    """
    thick = regkit.Grid((37, 41, 7), (SPACING, SPACING, 8.0), GRID.origin)
    fixed = regkit.Volume(sitk.GetArrayFromImage(sitk.Resample(FIXED.to_sitk(), thick.blank())), thick)
    waves: list[torch.Tensor] = []
    folds: list[float] = []

    def wave(field: torch.Tensor, doubt: torch.Tensor) -> torch.Tensor:
        place = torch.arange(field.shape[2])[:, None] + torch.arange(field.shape[3])
        across = (3 * torch.sin(2 * torch.pi * place / 12)).expand(field.shape[1:])
        waves.append(torch.stack([across, -across, 0 * across]))
        return waves[-1]

    def seen(field: np.ndarray, grid: regkit.Grid, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        folds.append(float((jacobian_determinant(field, grid) <= 0).mean()))
        return unfolded_warp(field, grid, matrix)

    monkeypatch.setattr(registration, "taken_back", wave)
    monkeypatch.setattr(registration, "unfolded_warp", seen)
    result = regkit.register(fixed, FIXED, features="mind", init="none")
    assert not folded_points(waves[0]).any()
    assert folds[0] > 0
    assert result.metrics["folding_percent"] == 0
    assert result.warp.jacobian().array.min() > 0
    assert np.abs(result.warp.field[..., 1]).max() > 5  # mm: the wave is still there


def test_the_same_seed_gives_the_same_warp_to_the_bit() -> None:
    moving = moving_through(scaled(1.04, (3.0, 1.0, 0.0)))
    one, two = (regkit.register(FIXED, moving, seed=3) for _ in range(2))
    assert np.array_equal(one.warp.field, two.warp.field)


@pytest.mark.parametrize("features", ["mind", "network", "network+mind"])
def test_every_kind_of_features(features: str, random_weights: Path) -> None:
    """Even an untrained network describes places well enough to find a shift within one modality."""
    matrix = scaled(1.0, (3.0, -2.0, 1.0))
    weights = None if features == "mind" else random_weights
    one, two = (
        regkit.register(FIXED, moving_through(matrix), init="none", features=features, weights=weights)
        for _ in range(2)
    )
    assert np.array_equal(one.warp.field, two.warp.field)
    assert errors(one, matrix).mean() < 0.5 * SPACING
    assert one.metrics["folding_percent"] == 0
    assert one.warp.jacobian().array.min() > 0
    assert one.settings["features"] == features
    record = one.settings["weights"]
    assert record is None if weights is None else record["file"] == random_weights.name


def test_a_network_is_left_out_on_voxels_that_it_does_not_know() -> None:
    """Those finer than 0.7 of the finest that it learnt from, 2 mm; alone it is asked nevertheless."""

    def found(spacing: float, features: str) -> regkit.Registration:
        grid = regkit.Grid(GRID.size, (spacing,) * 3, GRID.origin)
        fixed = regkit.Volume(FIXED.array, grid, "fixed")
        # Of another contrast, so that intensities are not compared.
        moving = regkit.Volume(-np.roll(FIXED.array, 1, axis=2), grid, "moving")
        return regkit.register(fixed, moving, init="none", features=features)

    for spacing, known in ((1.3, ["mind", "intensity"]), (1.5, ["network", "mind", "intensity"])):
        both = found(spacing, "network+mind")
        assert both.settings["known"] == known
        assert both.settings["asked"] == ["mind", "intensity"]  # the images agree
        assert both.settings["features"] == "network+mind"


def test_where_no_other_part_tells_anything_the_result_is_that_of_mind() -> None:
    """But for the rounding of features that are scaled beside others and back."""
    rng = np.random.default_rng(5)
    pair = [regkit.Volume(rng.random(FIXED.array.shape, np.float32), GRID, name) for name in ("a", "b")]
    both, mind = (regkit.register(*pair, init="none", features=f) for f in ("network+mind", "mind"))
    assert both.metrics["evidence"]["network"]["share"] == both.metrics["evidence"]["intensity"]["share"] == 0
    assert both.settings["compared"] == mind.settings["compared"] == ["mind"]
    assert np.abs(both.warp.field - mind.warp.field).max() < 1e-3


def test_intensities_are_compared_in_one_modality_and_said() -> None:
    moving = regkit.Volume(np.roll(FIXED.array, 1, axis=2), GRID, "moving")
    assert "intensity" in regkit.register(FIXED, moving, init="none").settings["compared"]


def test_features_that_were_named_are_asked_whatever_the_voxels() -> None:
    grid = regkit.Grid(GRID.size, (1.3,) * 3, GRID.origin)
    fine = regkit.Volume(FIXED.array, grid, "fine")
    for features in ("network", "mind"):
        found = regkit.register(fine, fine, init="none", features=features)
        assert found.settings["compared"] == [features]


def test_weights_without_features_are_combined_with_mind(random_weights: Path) -> None:
    result = regkit.register(FIXED, FIXED, init="none", weights=random_weights, preset="linear")
    assert result.settings["features"] == "network+mind"
    assert result.settings["weights"]["provenance"]["data"] == "none"
    bundled = regkit.register(FIXED, FIXED, init="none", preset="linear").settings
    assert bundled["features"] == "network+mind"
    assert bundled["weights"]["file"] == bundled_weights().name


def test_every_kind_of_image_gives_the_same_warp(tmp_path: Path) -> None:
    moving = moving_through(scaled(1.04, (3.0, 1.0, 0.0)))
    file = tmp_path / "moving.nii.gz"
    regkit.save_image(moving.to_sitk(), file)
    as_nibabel = nib.Nifti1Image(moving.array.T, GRID.ras_affine)
    as_tensor = regkit.Volume(torch.from_numpy(moving.array), GRID)
    found = [
        regkit.register(FIXED, image, init="none").warp.field
        for image in (moving, moving.to_sitk(), file, as_nibabel, as_tensor)
    ]
    for field in found[1:]:
        np.testing.assert_allclose(field, found[0], atol=1e-2)


def test_a_start_may_be_a_warp_that_the_registration_goes_on_from(tmp_path: Path) -> None:
    """Half of the way is given, as a bend about the middle; the whole way is found, and no fold is made."""
    away = scaled(1.0, (5.0, -3.0, 2.0))
    near = np.exp(-((np.linalg.norm(GRID.world_points() - GRID.centre, axis=-1) / 25) ** 2))
    bend = regkit.Warp((near[..., None] * [3.0, 4.0, 0.0]).astype(np.float32), GRID)
    truth = bend.compose(away)
    index = np.moveaxis(
        transform_points(GRID.world_to_index, truth.inverse(GRID).field + GRID.world_points()), -1, 0
    )
    moving = regkit.Volume(
        map_coordinates(texture(), index[::-1], order=3, mode="nearest").astype(np.float32), GRID
    )
    points = inner_points()
    right = truth.transform_points(points)
    bend.compose(away).save(tmp_path / "start.nii.gz")
    for start, options in (
        (bend.compose(away), {"preset": "linear"}),
        (bend.compose(away).to_sitk(), {"preset": "linear"}),
        (tmp_path / "start.nii.gz", {"preset": "linear"}),
    ):
        result = regkit.register(FIXED, moving, init=start, **options)
        np.testing.assert_allclose(result.warp.transform_points(points), right, atol=0.05)
        np.testing.assert_allclose(result.linear, bend.compose(away).affine_part(), atol=1e-3)
        assert result.settings["start"]["model"] == "warp"
        assert result.warp.moving_grid == moving.grid
    # The rest is found from there: the start lacks 2 mm of the bend's 5.
    part = regkit.Warp(0.6 * bend.field, GRID).compose(away)
    before = np.linalg.norm(part.transform_points(points) - right, axis=1).mean()
    result = regkit.register(FIXED, moving, init=part, features="mind")
    after = np.linalg.norm(result.warp.transform_points(points) - right, axis=1).mean()
    assert after < 0.6 * before, (before, after)
    assert result.metrics["folding_percent"] == 0


def test_the_start_can_be_chosen(tmp_path: Path) -> None:
    matrix = scaled(1.0, (5.0, -3.0, 2.0))
    moving = moving_through(matrix)
    file = tmp_path / "start.tfm"
    write_linear(matrix, file)
    turned = sitk.TranslationTransform(3, (5.0, -3.0, 2.0))
    for init in (file, str(file), matrix, torch.from_numpy(matrix), turned):
        result = regkit.register(FIXED, moving, init=init, preset="linear")
        np.testing.assert_allclose(result.linear, matrix, atol=1e-6)
        np.testing.assert_allclose(
            result.warp.field, np.broadcast_to((5.0, -3.0, 2.0), (*SHAPE, 3)), atol=1e-4
        )
    oblique = np.eye(4)
    oblique[:3] = [[1.05, -0.2, 0.01, 30.0], [0.18, 0.97, -0.04, -55.0], [0.02, 0.05, 1.1, 7.0]]
    affine = regkit.register(FIXED, moving, init=oblique, preset="linear").warp
    world = GRID.world_points()
    np.testing.assert_allclose(affine.field, transform_points(oblique, world) - world, atol=1e-4)
    none = regkit.register(FIXED, moving, init="none", preset="linear")
    assert np.array_equal(none.linear, np.eye(4))
    away = regkit.Volume(moving.array, regkit.Grid(GRID.size, GRID.spacing, (500.0, 0.0, 0.0)))
    centre = regkit.register(FIXED, away, init="centre", preset="linear")
    np.testing.assert_allclose(transform_points(centre.linear, GRID.centre), away.grid.centre)
    rigid = regkit.register(FIXED, moving_through(scaled(1.06)), init="rigid", preset="linear")
    np.testing.assert_allclose(rigid.linear[:3, :3] @ rigid.linear[:3, :3].T, np.eye(3), atol=1e-6)
    larger = regkit.register(FIXED, moving_through(scaled(1.06)), init="affine", preset="linear")
    assert np.linalg.det(larger.linear[:3, :3]) > 1.08
    with pytest.raises(RegkitError, match="do not overlap"):
        regkit.register(FIXED, away, init="none")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"init": "magic"}, "no start named 'magic'.*centre"),
        ({"init": "nowhere.tfm"}, "no such file"),
        ({"features": "sift"}, r"no features named 'sift'.*mind, network, network\+mind"),
        ({"features": "mind", "weights": "net.safetensors"}, "use no weights"),
        ({"weights": "nowhere.safetensors"}, "no such file"),
        ({"preset": "best"}, "no preset named best;.*fast"),
        ({"device": "tpu"}, "no device named 'tpu'"),
        ({"threads": 0}, "at least 1"),
        ({"ct_window": (100.0, -100.0)}, "CT window"),
    ],
)
def test_an_unknown_choice_is_answered_with_those_there_are(option: dict[str, object], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        regkit.register(FIXED, FIXED, **option)  # type: ignore[arg-type]


def test_progress_times_memory_and_state() -> None:
    seen: list[tuple[str, float]] = []
    threads = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    torch.manual_seed(42)
    expected = torch.rand(1)
    torch.manual_seed(42)
    with torch.no_grad():
        result = regkit.register(
            FIXED, FIXED, threads=1, progress=lambda stage, done: seen.append((stage, done))
        )
    assert torch.equal(torch.rand(1), expected)
    assert (torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()) == threads
    stages = ["load", "linear", "features", "coarse", "fine", "warp", "verdict"]
    assert list(dict.fromkeys(stage for stage, _ in seen)) == stages
    shares = [done for _, done in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert list(result.timings) == [*stages, "total"]
    assert list(result.memory) == [*stages, "foretold", "peak"]
    assert result.settings["threads"] == 1


def test_what_a_result_says_of_itself() -> None:
    labels = regkit.Volume((texture() > 60).astype(np.uint8), GRID)
    result = regkit.register(FIXED, FIXED, fixed_labels=labels, moving_labels=labels, threads=1)
    written = result.to_dict()
    assert list(written) == ["metrics", "verdict", "seconds", "memory_mb", "settings", "linear"]
    assert list(written["metrics"]) == [
        "folding_percent", "sd_log_jacobian", "feature_difference", "evidence",
        "mean_dice", "mean_hd95_mm", "labels",
    ]  # fmt: skip
    assert set(written["metrics"]["feature_difference"]) == {"linear", "after"}
    assert all(set(one) == {"share", "blur_of_match"} for one in written["metrics"]["evidence"].values())
    assert list(written["metrics"]["labels"][0]) == [
        "label", "name", "dice_before", "dice_linear", "dice", "hd95_before_mm", "hd95_mm"
    ]  # fmt: skip
    assert list(written["settings"]["start"]) == ["origin", "model", "similarity", "runner_up"]
    assert list(written["seconds"])[-1] == "total"
    assert sum(result.timings.stages.values()) == result.timings.total == written["seconds"]["total"]
    said = repr(result)
    assert len(said.splitlines()) <= 10
    assert f"verdict   {result.verdict.level}" in said
    assert "Dice      before 1.000, linear 1.000, after" in said


def test_progress_of_a_linear_registration_ends_at_one() -> None:
    seen: list[float] = []
    regkit.register(FIXED, FIXED, preset="linear", progress=lambda stage, done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)


def test_ct_is_windowed_and_the_window_can_be_set() -> None:
    ct = regkit.Volume(np.where(texture() > 60, texture(), -1000).astype(np.float32), GRID)
    windows = regkit.register(FIXED, ct, init="none", preset="linear").settings["intensity_windows"]
    assert not windows["fixed"]["ct"]
    assert windows["moving"] == {"ct": True, "low": -450, "high": 450}
    both = regkit.register(ct, ct, init="none", preset="linear").settings["intensity_windows"]
    assert both["fixed"] == {"ct": True, "low": -950, "high": 450}
    given = regkit.register(ct, ct, init="none", preset="linear", ct_window=(-160, 240)).settings[
        "intensity_windows"
    ]
    assert given["moving"] == {"ct": True, "low": -160, "high": 240}


def test_a_trunk_of_two_modalities_in_unrelated_frames() -> None:
    """The whole way at a coarse 6 mm, judged by labels and landmarks that register() never sees."""
    phantom = torso(0, 6.0)
    result = regkit.register(
        phantom.fixed,
        phantom.moving,
        fixed_labels=phantom.fixed_labels,
        moving_labels=phantom.moving_labels,
        label_names=phantom.names,
    )
    linear = transform_points(result.linear, phantom.landmarks_fixed)
    before, start, after = (
        float(regkit.target_registration_error(points, phantom.landmarks_moving).mean())
        for points in (
            phantom.landmarks_fixed,
            linear,
            result.warp.transform_points(phantom.landmarks_fixed),
        )
    )
    report = f"TRE {before:.1f} mm by the headers, {start:.1f} linear, {after:.1f} after"
    assert before > 40, report
    assert start < 9, report
    assert after < 6, report
    dice = result.metrics["mean_dice"]
    assert dice["after"] > 0.75 > dice["before"] + 0.5, dice
    assert result.metrics["folding_percent"] == 0
    assert [row["name"] for row in result.metrics["labels"]] == list(phantom.names.values())


def test_doubt_lies_on_the_fixed_grid_in_mm() -> None:
    """Small where an image meets itself, as large as can be where the moving image ends."""
    same = regkit.register(FIXED, FIXED, init="none").uncertainty
    assert same is not None
    assert same.grid == FIXED.grid
    assert np.median(same.array) < 0.5 * SPACING
    middle = FIXED.grid.size[0] // 2
    half = regkit.Volume(
        FIXED.array[:, :, :middle], FIXED.grid.window((0, 0, 0), (middle, *FIXED.grid.size[1:]))
    )
    beyond = regkit.register(FIXED, half, init="none").uncertainty
    assert beyond is not None
    assert np.median(beyond.array[:, :, -4:]) > 8 * SPACING
    assert regkit.register(FIXED, FIXED, init="none", preset="linear").uncertainty is None
