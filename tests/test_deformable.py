"""Working grid, feature pyramids and the units of the coarse field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.core.settings import PRESETS
from regkit.features.featuremap import FeatureMap
from regkit.features.maps import INTENSITY, MIND, Part
from regkit.ops.resample import Source
from regkit.ops.sampling import index_grid
from regkit.solver import coarse
from regkit.solver.deformable import (
    STRIDE,
    Plan,
    Pyramid,
    believed_field,
    coarse_field,
    feature_difference,
    fine_field,
    fixed_view,
    moving_view,
    plan,
)

SETTINGS = PRESETS["default"]
WORLD = Grid((84, 84, 84), (2.0, 2.0, 2.0), (-80.0, -80.0, -80.0))
FIXED = WORLD.window((24, 24, 24), (36, 32, 40))


@pytest.fixture(scope="module")
def world() -> np.ndarray:
    image = gaussian_filter(np.random.default_rng(8).normal(size=WORLD.shape), 2.5)
    return ((image - image.min()) / np.ptp(image)).astype(np.float32)


def _part(world: np.ndarray, grid: Grid) -> Source:
    """The voxels of the world that lie on ``grid``, a window of WORLD."""
    x, y, z = np.round(np.subtract(grid.origin, WORLD.origin) / 2).astype(int)
    nx, ny, nz = grid.size
    return Source(torch.from_numpy(world[z : z + nz, y : y + ny, x : x + nx].copy()), None, grid)


def _shifted(grid: Grid, shift: tuple[float, float, float]) -> Grid:
    return Grid(grid.size, grid.spacing, tuple(np.add(grid.origin, shift)), grid.direction)


def _plan_at(grid: Grid, shift: tuple[float, float, float]) -> Plan:
    moved = _shifted(grid, shift)
    return plan(moved, moved, SETTINGS)


# Features that show what they were given.
SHOWN = [Part(lambda image, spacing: image[None])]


@pytest.mark.parametrize("spacing", [0.5, 0.9, 1.5, 2.0, 3.0, 8.0])
def test_the_search_reaches_32_mm_or_half_the_field_of_view(spacing: float) -> None:
    grid = Grid((160, 128, 96), (spacing,) * 3)
    work = plan(grid, grid, SETTINGS)
    assert work.reach == sum(stride * radius for stride, radius in work.levels)
    assert work.reach * work.grid.spacing[0] >= min(SETTINGS.search_range, 0.5 * 96 * spacing)
    assert work.levels[-1][0] == STRIDE
    assert all(n % work.levels[0][0] == 0 for n in work.grid.size)
    assert np.prod(work.grid.size) < 1.2 * SETTINGS.max_voxels
    np.testing.assert_allclose(work.grid.centre, grid.centre, atol=1e-9)
    assert (work.grid.extent >= grid.extent - 1e-6).all()


def test_the_working_grid_is_no_finer_than_the_coarser_image() -> None:
    fine, slices = Grid((200, 200, 160), (0.7, 0.7, 0.7)), Grid((100, 100, 20), (1.4, 1.4, 7.0))
    expected = np.cbrt(1.4 * 1.4 * 7.0)
    for fixed, moving in ((fine, slices), (slices, fine)):
        assert plan(fixed, moving, SETTINGS).grid.spacing == pytest.approx((expected,) * 3)


@pytest.mark.parametrize(("spacing", "share"), [(1.0, 0.7), (2.0, 0.7), (3.0, 0.9)])
def test_an_accurate_grid_is_finer_most_of_all_for_fine_images(spacing: float, share: float) -> None:
    grid = Grid((32, 32, 32), (spacing,) * 3)
    assert plan(grid, grid, SETTINGS).grid.spacing == pytest.approx((spacing,) * 3)
    assert plan(grid, grid, PRESETS["accurate"]).grid.spacing == pytest.approx((share * spacing,) * 3)


@pytest.mark.parametrize("size", [(4, 4, 4), (37, 41, 29), (5, 60, 7)])
def test_levels_halve_down_to_the_stride_of_the_field(size: tuple[int, int, int]) -> None:
    grid = Grid(size, (1.5, 1.0, 2.5))
    work = plan(grid, grid, SETTINGS)
    strides = [stride for stride, _ in work.levels]
    assert strides == [strides[0] // 2**k for k in range(len(strides))]
    assert all(radius >= 1 for _, radius in work.levels)
    assert (work.grid.extent >= grid.extent - 1e-6).all()


def test_features_of_every_level_lie_on_the_cells_of_the_working_grid(world: np.ndarray) -> None:
    source = _part(world, FIXED)
    work = plan(FIXED, FIXED, SETTINGS)
    pyramid = fixed_view(source, work).features(work, SHOWN)
    assert set(pyramid.maps) == {stride for stride, _ in work.levels}
    for stride, level in pyramid.maps.items():
        assert level.weight.shape[1:] == work.grid.pooled(stride).shape
        assert level.weight.min() >= 0
        assert level.weight.max() <= 1
    # 36 x 32 x 40 voxels need no margin at strides 2 and 4: the cells are plain means.
    means = source.image.reshape(20, 2, 16, 2, 18, 2).mean((1, 3, 5))
    torch.testing.assert_close(pyramid.maps[2].values[0], means, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (24.0, -16.0, 8.0), (-40.0, 32.0, 0.0)])
def test_the_moving_lattice_goes_on_where_the_moving_image_does(
    world: np.ndarray, shift: tuple[float, float, float]
) -> None:
    """A displacement by whole cells shows the moving image's own voxels, also beyond the fixed ones."""
    work = plan(FIXED, WORLD, SETTINGS)
    moving = moving_view(_part(world, WORLD), np.eye(4), work).features(work, SHOWN)
    cells = torch.tensor(shift) / (STRIDE * work.grid.spacing[0])
    field = cells.view(3, 1, 1, 1).expand(3, *work.grid.pooled(STRIDE).shape)
    seen = moving.seen_through(field, STRIDE, 0)
    further = _plan_at(work.grid, shift)
    there = fixed_view(_part(world, _shifted(FIXED, shift)), further).features(further, SHOWN).maps[STRIDE]
    assert seen.weight.min() > 0.99
    torch.testing.assert_close(seen.values, there.values, atol=1e-4, rtol=0)


def test_the_moving_lattice_ends_where_no_displacement_reaches() -> None:
    """A whole body against a small fixed image does not fill the memory."""
    body = Grid((300, 300, 300), (2.0, 2.0, 2.0), (-300.0, -300.0, -300.0))
    work = plan(FIXED, body, SETTINGS)
    source = Source(torch.zeros(1, 1, 1).expand(body.shape), None, body)
    moving = moving_view(source, np.eye(4), work).features(work, SHOWN)
    furthest = work.reach + 2 * work.levels[0][0]
    assert all(-furthest <= start <= -work.reach for start in moving.start)
    cells = moving.maps[STRIDE].weight.shape[1:]
    assert all(STRIDE * n <= size + 2 * furthest for n, size in zip(cells, work.grid.shape, strict=True))


def test_margins_show_what_lies_beyond(world: np.ndarray) -> None:
    work = plan(FIXED, WORLD, SETTINGS)
    moving = moving_view(_part(world, WORLD), np.eye(4), work).features(work, SHOWN)
    still = torch.zeros(3, *work.grid.pooled(STRIDE).shape)
    narrow, wide = moving.seen_through(still, STRIDE, 0), moving.seen_through(still, STRIDE, 3)
    torch.testing.assert_close(wide.cropped(3).values, narrow.values)
    assert wide.weight.min() > 0.99


def test_a_small_moving_image_weighs_only_where_it_is(world: np.ndarray) -> None:
    part = _shifted(WORLD.window((0, 0, 0), (10, 8, 12)), (64.0, 60.0, 70.0))
    work = plan(FIXED, part, SETTINGS)
    moving = moving_view(Source(torch.rand(part.shape), None, part), np.eye(4), work).features(work, SHOWN)
    seen = moving.seen_through(torch.zeros(3, *work.grid.pooled(STRIDE).shape), STRIDE, 0)
    cells = work.grid.pooled(STRIDE)
    volume = float(seen.weight.sum()) * np.prod(cells.spacing)
    assert volume == pytest.approx(np.prod(part.extent), rel=0.05)
    points = (
        np.moveaxis(index_grid(cells.shape).numpy(), 0, -1) @ cells.index_to_world[:3, :3].T + cells.origin
    )
    centre = (points * seen.weight[0, ..., None].numpy()).sum((0, 1, 2)) / float(seen.weight.sum())
    np.testing.assert_allclose(centre, part.centre, atol=0.3)


def test_images_out_of_reach_are_refused(world: np.ndarray) -> None:
    away = _shifted(FIXED, (500.0, 0.0, 0.0))
    work = plan(FIXED, away, SETTINGS)
    source = _part(world, FIXED)
    with pytest.raises(RegkitError, match="do not overlap after the linear start"):
        moving_view(Source(source.image, None, away), np.eye(4), work).features(work, [MIND])
    back = np.eye(4)
    back[0, 3] = 500.0  # a start that brings them together
    moving = moving_view(Source(source.image, None, away), back, work).features(work, SHOWN)
    seen = moving.seen_through(torch.zeros(3, *work.grid.pooled(STRIDE).shape), STRIDE, 0)
    fixed = fixed_view(source, work).features(work, SHOWN).maps[STRIDE]
    torch.testing.assert_close(seen.values, fixed.values, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.weight, fixed.weight)


@pytest.mark.parametrize("consistent", [True, False])
def test_the_coarse_field_is_in_cells_of_its_last_level(
    world: np.ndarray, monkeypatch: pytest.MonkeyPatch, consistent: bool
) -> None:
    """With and without inverse consistency: the public codes forget to scale the field without it."""
    if not consistent:
        monkeypatch.setattr(coarse, "inverse_consistent", lambda forward, backward: (forward, backward))
    shift = (12.0, -8.0, 16.0)
    work = plan(FIXED, WORLD, SETTINGS)
    moving_grid = _shifted(WORLD, shift)
    fixed = fixed_view(_part(world, FIXED), work).features(work, [MIND])
    moving = moving_view(Source(torch.from_numpy(world), None, moving_grid), np.eye(4), work).features(
        work, [MIND]
    )
    steps: list[int] = []
    found = coarse_field(fixed, moving, work, lambda: steps.append(1))
    assert len(steps) == len(work.levels)
    assert found.shape[1:] == work.grid.pooled(STRIDE).shape
    expected = torch.tensor(shift) / (STRIDE * work.grid.spacing[0])
    inner = found[:, 2:-2, 2:-2, 2:-2]
    off = (inner - expected.view(3, 1, 1, 1)).norm(dim=0)
    assert float(off.mean()) < 0.15  # cells
    refined = fine_field(fixed, moving, found, SETTINGS, lambda: None)
    off = (refined[:, 2:-2, 2:-2, 2:-2] - expected.view(3, 1, 1, 1)).norm(dim=0)
    assert float(off.mean()) < 0.1


def test_the_feature_difference_counts_the_overlap_alone(rng: np.random.Generator) -> None:
    shape = (4, 5, 6)
    values, weight = (
        torch.from_numpy(rng.random((2, 3, *shape))),
        torch.from_numpy(rng.random((2, 1, *shape))),
    )
    weight[0, :, :2] = 0
    weight[1, :, :, :2] = 0
    fixed, moving = (
        Pyramid({STRIDE: FeatureMap(v, w)}, (0, 0, 0)) for v, w in zip(values, weight, strict=True)
    )
    still = torch.zeros(3, *shape, dtype=torch.float64)
    both = (weight[0] * weight[1])[0, ::2, ::2, ::2]
    squares = (values[0] - values[1]).square().mean(0)[::2, ::2, ::2]
    expected = (squares * both).sum() / both.sum()
    assert feature_difference(fixed, moving, still) == pytest.approx(float(expected), rel=1e-5)
    assert feature_difference(fixed, fixed, still) == pytest.approx(0, abs=1e-10)


def test_features_taken_apart_and_joined_are_those_taken_together(world: np.ndarray) -> None:
    parts = [MIND, Part(lambda image, spacing: torch.stack([image, 1 - image]), weight=3.0)]
    work = plan(FIXED, FIXED, SETTINGS)
    view = fixed_view(_part(world, FIXED), work)
    together, joined = view.features(work, parts), view.features(work, parts[:1])
    joined = joined.joined(view.features(work, parts[1:]))
    assert joined.channels == together.channels == (12, 2)
    for stride, level in together.maps.items():
        torch.testing.assert_close(joined.maps[stride].values, level.values)
        torch.testing.assert_close(joined.maps[stride].weight, level.weight)


@pytest.mark.parametrize("alike", [True, False])
def test_what_takes_long_is_asked_where_mind_leaves_doubt_alone(world: np.ndarray, alike: bool) -> None:
    """Where the moving image is a copy it is not; where it is noise it is, and tells nothing."""
    noise = np.random.default_rng(3).random(world.shape).astype(np.float32)
    work = plan(FIXED, WORLD, SETTINGS)
    views = (
        fixed_view(_part(world, FIXED), work),
        moving_view(_part(world if alike else noise, WORLD), np.eye(4), work),
    )
    asked: list[str] = []

    def slow(image: torch.Tensor, spacing: float) -> torch.Tensor:
        asked.append("slow")
        return image[None]

    def features(parts: Sequence[Part]) -> tuple[Pyramid, Pyramid]:
        one, other = (view.features(work, parts) for view in views)
        return one, other

    parts = (Part(slow, name="slow", in_doubt=True), MIND)
    found = believed_field(features, parts, work, lambda: None)
    assert asked == ([] if alike else ["slow", "slow"])
    assert found.shares == {"mind": 1.0} | ({} if alike else {"slow": 0.0})
    assert found.fixed.channels == (12,)
    if alike:
        assert float(found.field.abs().mean()) < 0.02
    alone = believed_field(features, parts[:1], work, lambda: None)
    assert asked[-2:] == ["slow", "slow"]  # whatever it can tell
    assert alone.shares == {"slow": 1.0}


def test_intensities_of_one_modality_are_compared_after_a_gain(world: np.ndarray) -> None:
    """Nine tenths as bright is the same modality."""
    work = plan(FIXED, WORLD, SETTINGS)
    views = (
        fixed_view(_part(world, FIXED), work),
        moving_view(_part(0.9 * world, WORLD), np.eye(4), work),
    )

    def features(parts: Sequence[Part]) -> tuple[Pyramid, Pyramid]:
        one, other = (view.features(work, parts) for view in views)
        return one, other

    found = believed_field(features, (MIND, INTENSITY), work, lambda: None)
    assert found.shares["intensity"] == 1
    one, other = (pyramid.seen_through(0 * found.field, STRIDE, 0) for pyramid in (found.fixed, found.moving))
    assert found.fixed.channels == (12, 1)
    torch.testing.assert_close(other.values[12], one.values[12], rtol=2e-3, atol=1e-3)
