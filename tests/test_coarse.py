"""Cost volume, coupled convex optimisation and inverse consistency against naive versions."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from regkit.features.featuremap import FeatureMap
from regkit.ops.sampling import index_grid, sample
from regkit.solver.coarse import COUPLING, coupled_convex, inverse_consistent, match
from regkit.solver.costvolume import cost_volume, displacements

SHAPE = (5, 6, 4)
RADIUS = 2


def _maps(rng: np.random.Generator) -> tuple[FeatureMap, FeatureMap]:
    """A fixed map, and a moving one with RADIUS cells more; both with holes of no data."""
    wide = tuple(n + 2 * RADIUS for n in SHAPE)
    maps = []
    for shape in (SHAPE, wide):
        weight = (rng.random(shape) > 0.2) * rng.random(shape)
        weight[:, : shape[1] // 3] = 0
        maps.append(FeatureMap(torch.from_numpy(rng.random((3, *shape))), torch.from_numpy(weight)[None]))
    return maps[0], maps[1]


def _naive_costs(fixed: FeatureMap, moving: FeatureMap) -> np.ndarray:
    f, fw, m, mw = (t.numpy() for t in (fixed.values, fixed.weight[0], moving.values, moving.weight[0]))
    costs = np.full((len(displacements(RADIUS)), *SHAPE), np.nan)
    for k, (dx, dy, dz) in enumerate(displacements(RADIUS).tolist()):
        for cell in np.ndindex(SHAPE):
            total = weights = 0.0
            for step in product((-1, 0, 1), repeat=3):
                here = tuple(c + s for c, s in zip(cell, step, strict=True))
                if not all(0 <= h < n for h, n in zip(here, SHAPE, strict=True)):
                    continue
                there = tuple(h + RADIUS + d for h, d in zip(here, (dz, dy, dx), strict=True))
                weight = fw[here] * mw[there]
                difference = f[(slice(None), *here)] - m[(slice(None), *there)]
                total += weight * float(difference @ difference) / len(difference)
                weights += weight
            if weights > 0.25 * 27:
                costs[(k, *cell)] = total / weights
    known = ~np.isnan(costs)
    neutral = np.where(known, costs, 0).sum(0) / np.maximum(known.sum(0), 1)
    assert known.any()
    assert not known.all()
    return np.where(known, costs, neutral)


def test_cost_volume_is_its_definition(rng: np.random.Generator) -> None:
    fixed, moving = _maps(rng)
    full = (
        FeatureMap(fixed.values, torch.ones_like(fixed.weight)),
        FeatureMap(moving.values, moving.weight.ceil()),
    )
    np.testing.assert_allclose(cost_volume(*full, RADIUS).numpy(), _naive_costs(*full), atol=1e-12)


def test_missing_data_neither_attract_nor_repel(rng: np.random.Generator) -> None:
    fixed, moving = _maps(rng)
    nothing = FeatureMap(moving.values, torch.zeros_like(moving.weight))
    costs = cost_volume(fixed, nothing, RADIUS)
    assert torch.equal(costs, torch.zeros_like(costs))
    assert torch.equal(coupled_convex(costs, RADIUS), torch.zeros(3, *SHAPE, dtype=costs.dtype))


def _naive_coupled_convex(costs: np.ndarray) -> np.ndarray:
    steps = displacements(RADIUS).numpy().astype(float)

    def smooth(field: np.ndarray) -> np.ndarray:
        padded = np.pad(field, ((0, 0), *((1, 1),) * 3), mode="edge")
        size = field.shape[1:]
        parts = [
            padded[:, z : z + size[0], y : y + size[1], x : x + size[2]]
            for z, y, x in product(range(3), repeat=3)
        ]
        return np.mean(parts, axis=0)

    field = np.zeros((3, *SHAPE))
    for theta in (1e-6, *COUPLING):
        chosen = np.empty_like(field)
        for cell in np.ndindex(SHAPE):
            at = (slice(None), *cell)
            coupled = costs[at] + theta * ((steps - field[at]) ** 2).sum(1)  # of the costs as they came
            by_step = {tuple(step): value for step, value in zip(steps, coupled)}
            best = steps[coupled.argmin()]
            for axis, unit in enumerate(np.eye(3)):
                ends = [by_step.get(tuple(best + sign * unit)) for sign in (-1, 1)]
                chosen[(axis, *cell)] = best[axis]
                if None not in ends:
                    curve = np.polyfit((-1, 0, 1), (ends[0], coupled.min(), ends[1]), 2)
                    chosen[(axis, *cell)] -= curve[1] / (2 * curve[0])
        field = smooth(chosen)
    return field


def test_coupled_convex_is_its_definition_and_leaves_the_costs_alone(rng: np.random.Generator) -> None:
    costs = torch.from_numpy(rng.random((len(displacements(RADIUS)), *SHAPE)))
    before = costs.clone()
    np.testing.assert_allclose(
        coupled_convex(costs, RADIUS).numpy(), _naive_coupled_convex(before.numpy()), atol=1e-9
    )
    assert torch.equal(costs, before)


def test_a_shift_is_found_up_to_the_border(rng: np.random.Generator) -> None:
    texture = torch.from_numpy(rng.random((4, 14, 14, 14)))
    moving = FeatureMap(texture, torch.ones(1, 14, 14, 14, dtype=torch.float64))
    z, y, x = 2, -1, 1
    cut = texture[:, 2 + z : 12 + z, 2 + y : 12 + y, 2 + x : 12 + x]
    fixed = FeatureMap(cut, torch.ones(1, 10, 10, 10, dtype=torch.float64))
    forward = coupled_convex(cost_volume(fixed, moving, 2), 2)
    expected = torch.tensor([x, y, z], dtype=torch.float64).view(3, 1, 1, 1).expand_as(forward)
    torch.testing.assert_close(forward, expected, atol=0.25, rtol=0)
    # The way back has no data at the far ends, and still nothing pulls the rest towards zero.
    inner = match(fixed, moving, 2)[:, 2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(inner, expected[:, 2:-2, 2:-2, 2:-2], atol=0.3, rtol=0)


def test_inverse_consistency_shrinks_what_the_two_ways_differ_by(rng: np.random.Generator) -> None:
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(rng.normal(size=(2, 3, 3, 3, 3))), (12, 12, 12), mode="trilinear"
    )
    identity = index_grid((12, 12, 12)).double()

    def residual(u: torch.Tensor, v: torch.Tensor) -> float:
        return float((u + sample(v, identity + u)).square().mean())

    before = residual(smooth[0], smooth[1])
    assert residual(*inverse_consistent(smooth[0], smooth[1])) < 0.05 * before


def test_one_round_of_inverse_consistency_is_its_formula(rng: np.random.Generator) -> None:
    u, v = rng.uniform(-1.5, 1.5, (2, 3, 6, 5, 7))
    identity = np.stack(np.meshgrid(*[np.arange(n) for n in (6, 5, 7)], indexing="ij"))

    def seen(field: np.ndarray, by: np.ndarray) -> np.ndarray:
        where = identity + by[::-1]  # array order (z, y, x) from components (x, y, z)
        return np.stack([map_coordinates(c, where, order=1, mode="nearest") for c in field])

    found = inverse_consistent(torch.from_numpy(u), torch.from_numpy(v), iterations=1)
    np.testing.assert_allclose(found[0].numpy(), 0.5 * (u - seen(v, u)), atol=1e-5)
    np.testing.assert_allclose(found[1].numpy(), 0.5 * (v - seen(u, v)), atol=1e-5)


def test_exact_inverses_stay_as_they_are() -> None:
    shift = torch.tensor([1.5, -0.5, 1.0], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 8, 8, 8)
    forward, backward = inverse_consistent(shift, -shift)
    torch.testing.assert_close(forward, shift)
    torch.testing.assert_close(backward, -shift)
