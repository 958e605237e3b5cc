"""The verdict: every gate on a pair that trips it and on one that does not, and all of them together."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import regkit
from regkit.core.geometry import transform_points
from regkit.core.jsontext import to_json
from regkit.ops.jacobian import folding_percent
from regkit.ops.resample import Source
from regkit.synthesis.phantom import Phantom, torso
from regkit.verdict import RULES, measured, verdict_of


@lru_cache(maxsize=1)
def phantom() -> Phantom:
    return torso(0, 6.5)


@lru_cache(maxsize=1)
def coarse() -> Phantom:
    """So few voxels that a registration takes a moment."""
    return torso(0, 12.0)


def source(volume: regkit.Volume) -> Source:
    low, high = np.percentile(volume.array, (1, 99))
    image = (np.clip(volume.array.astype(np.float32), low, high) - low) / (high - low)
    return Source(torch.from_numpy(image.astype(np.float32)), None, volume.grid)


def true_matrix() -> np.ndarray:
    """The phantom's map without its bend."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = phantom().truth.rotation, phantom().truth.translation
    return matrix


def gates(
    fixed: regkit.Volume | None = None,
    moving: regkit.Volume | None = None,
    matrix: np.ndarray | None = None,
) -> dict[str, tuple[float, str]]:
    """Value and level of each gate, for the phantom's images unless others are given."""
    matrix = true_matrix() if matrix is None else matrix
    with torch.no_grad():
        values = measured(
            source(fixed or phantom().fixed),
            source(moving or phantom().moving),
            matrix,
            lambda points: transform_points(matrix, points),
        )
    return {gate.name: (gate.value, gate.level) for gate in verdict_of(values).gates}


@lru_cache(maxsize=1)
def right() -> dict[str, tuple[float, str]]:
    return gates()


def flipped(volume: regkit.Volume, axis: int) -> regkit.Volume:
    return replace(volume, array=np.ascontiguousarray(np.flip(volume.array, axis)))


def scaled(volume: regkit.Volume, factor: float) -> regkit.Volume:
    grid = volume.grid
    return replace(volume, grid=replace(grid, spacing=tuple(factor * s for s in grid.spacing)))


def test_a_right_pair_passes_every_gate() -> None:
    assert {name: level for name, (_, level) in right().items()} == dict.fromkeys(
        ("copies", "inside", "side", "turn", "place", "overlap", "doubt", "size", "scale"), "PASS"
    )
    assert right()["copies"][0] < 0.8


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_noise_fits_no_better_than_its_copies(sigma: float) -> None:
    random = np.random.default_rng(3)
    array = gaussian_filter(random.standard_normal(phantom().moving.array.shape), sigma).astype(np.float32)
    assert gates(moving=replace(phantom().moving, array=array))["copies"][1] == "FAIL"


def test_noise_in_the_outline_of_the_body_is_told() -> None:
    moving = phantom().moving
    body = gaussian_filter((moving.array > -300).astype(float), 2) > 0.5
    noise = gaussian_filter(np.random.default_rng(4).standard_normal(body.shape), 1.0)
    array = np.where(body, 50 + 300 * noise, -1000).astype(np.float32)
    value, level = gates(moving=replace(moving, array=array))["inside"]
    assert value > 0.95
    assert level != "PASS"
    assert right()["inside"][0] < 0.85


def test_an_image_upside_down_fits_worse_than_its_copy() -> None:
    value, level = gates(moving=flipped(phantom().moving, 0))["copies"]
    assert value > 1.1
    assert level == "FAIL"


def test_sides_exchanged_are_told() -> None:
    value, level = gates(moving=flipped(phantom().moving, 2))["side"]
    assert value < -4
    assert level == "WARN"
    assert verdict_of({"side": -7.0}).level == "FAIL"
    assert right()["side"][0] > 6


def test_a_start_that_turns_an_image_around_is_told() -> None:
    about = np.diag([-1.0, -1.0, 1.0, 1.0])
    moving, matrix = phantom().moving, about @ true_matrix()
    origin = transform_points(about, moving.grid.origin)
    direction = about[:3, :3] @ np.reshape(moving.grid.direction, (3, 3))
    grid = replace(moving.grid, origin=tuple(origin), direction=tuple(direction.ravel()))
    found = gates(moving=replace(moving, grid=grid), matrix=matrix)
    assert found["turn"][0] == pytest.approx(180, abs=15)
    assert found["turn"][1] == "WARN"
    assert right()["turn"][0] < 30
    assert found["copies"][1] == found["side"][1] == "PASS"  # nothing else is wrong with it


def test_a_start_in_another_place_is_told() -> None:
    matrix = true_matrix()
    matrix[:3, 3] += (40.0, -30.0, 35.0)
    found = gates(matrix=matrix)
    assert found["place"][0] > 4
    assert found["place"][1] == "WARN"
    assert found["copies"][1] == "PASS"  # the images still belong together


def test_images_that_share_little_are_told() -> None:
    moving = phantom().moving
    x, y, z = moving.grid.size
    grid = moving.grid.window((0, 0, 0), (x, y, z // 4))
    value, level = gates(moving=regkit.Volume(moving.array[: z // 4], grid))["overlap"]
    assert value < 40
    assert level == "WARN"


def test_another_unit_is_told() -> None:
    value, level = gates(moving=scaled(phantom().moving, 10.0))["size"]
    assert value > 9
    assert level == "FAIL"


def test_a_scaling_beyond_what_people_differ_by_is_told() -> None:
    matrix = true_matrix()
    matrix[:3, :3] *= 1.45
    assert gates(matrix=matrix)["scale"][1] == "WARN"


def test_doubt_is_relative_to_the_body() -> None:
    def shrunk(volume: regkit.Volume) -> regkit.Volume:
        small = scaled(volume, 0.1)
        return replace(small, grid=replace(small.grid, origin=tuple(0.1 * k for k in volume.grid.origin)))

    matrix = true_matrix()
    matrix[:3, 3] *= 0.1
    small = gates(shrunk(phantom().fixed), shrunk(phantom().moving), matrix)
    assert small["doubt"][0] == pytest.approx(right()["doubt"][0], rel=0.05)


def test_doubt_is_large_where_the_features_tell_nothing() -> None:
    random = np.random.default_rng(3)
    array = random.standard_normal(phantom().moving.array.shape).astype(np.float32)
    value, level = gates(moving=replace(phantom().moving, array=array))["doubt"]
    assert value > 1.5 * right()["doubt"][0]
    assert level == "WARN"


def test_a_fold_is_told() -> None:
    grid = regkit.Grid((12, 12, 12))
    field = np.zeros((*grid.shape, 3), np.float32)
    assert level_of("folding", folding_percent(regkit.Warp(field, grid).jacobian().array)) == "PASS"
    field[4:8, 4:8, 4:8, 0] = -2 * np.arange(4)
    folded = folding_percent(regkit.Warp(field, grid).jacobian().array)
    assert level_of("folding", folded) == "FAIL"
    assert level_of("folding", 0.1) == "WARN"


def test_labels_that_agree_worse_than_before_are_told() -> None:
    assert [level_of("labels", gain) for gain in (0.3, -0.05, -0.2)] == ["PASS", "WARN", "FAIL"]


def level_of(name: str, value: float) -> str:
    return verdict_of({name: value}).level


def test_the_verdict_is_the_worst_gate() -> None:
    good = {"copies": 0.5, "side": 9.0, "overlap": 90.0}
    assert verdict_of(good).level == "PASS"
    assert verdict_of(good | {"side": 1.0}).level == "WARN"
    assert verdict_of(good | {"side": 1.0, "copies": 1.0}).level == "FAIL"
    assert verdict_of(good | {"side": 1.0, "overlap": 30.0}).level == "WARN"
    assert verdict_of(good | {"side": 1.0, "overlap": 30.0, "doubt": 30.0}).level == "FAIL"
    # Two gates of the same copies are one thing.
    assert verdict_of(good | {"copies": 0.92, "inside": 0.95, "overlap": 30.0}).level == "WARN"


def test_what_cannot_be_measured_neither_warns_nor_fails() -> None:
    verdict = verdict_of({"copies": math.nan})
    assert verdict.level == "PASS"
    assert verdict.gates[0].says == RULES["copies"].unknown
    assert verdict_of({"side": math.nan}).gates[0].says == RULES["side"].unknown != RULES["copies"].unknown


def test_thresholds_grow_worse_in_order() -> None:
    for rule in RULES.values():
        if not math.isnan(rule.fail):
            assert (rule.fail > rule.warn) == rule.above


def test_a_verdict_is_frozen_and_goes_to_json() -> None:
    verdict = verdict_of({"copies": 0.5, "place": math.nan})
    with pytest.raises(FrozenInstanceError):
        verdict.level = "FAIL"  # type: ignore[misc]
    found: dict[str, Any] = verdict.to_dict()
    assert found["level"] == "PASS"
    assert [gate["name"] for gate in found["gates"]] == ["copies", "place"]
    assert {"value", "unit", "warn", "fail", "above", "level", "says"} < found["gates"][0].keys()
    assert "null" in to_json(found)


@pytest.mark.parametrize("options", [{"preset": "linear"}, {"init": "none"}, {}])
def test_every_registration_has_one(options: dict[str, str]) -> None:
    images = coarse()
    result = regkit.register(images.fixed, images.moving, **options)  # type: ignore[arg-type]
    names = [gate.name for gate in result.verdict.gates]
    assert names[:7] == ["copies", "inside", "side", "turn", "place", "overlap", "doubt"]
    assert result.to_dict()["verdict"] == result.verdict.to_dict()


def test_masks_count() -> None:
    images = coarse()
    inside = np.zeros(images.fixed.array.shape, np.uint8)
    inside[:, :, : inside.shape[2] // 2] = 1
    mask = regkit.Volume(inside, images.fixed.grid)
    result = regkit.register(images.fixed, images.moving, fixed_mask=mask, preset="linear")
    values = {gate.name: gate.value for gate in result.verdict.gates}
    assert values["overlap"] > 80  # % of what is inside the mask
