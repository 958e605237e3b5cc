"""Feature maps with holes: interpolation, margins, and the costs of cells that are only partly known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from regkit.features.featuremap import FeatureMap
from regkit.ops.sampling import index_grid
from regkit.solver.costvolume import cost_volume, displacements


def _map(rng: np.random.Generator, shape: tuple[int, ...], channels: int = 3) -> FeatureMap:
    """Weights of 0, of 1 and between."""
    weight = np.clip(rng.uniform(-0.5, 1.5, (1, *shape)), 0, 1)
    return FeatureMap(torch.from_numpy(rng.random((channels, *shape))), torch.from_numpy(weight))


def test_displacements_are_the_whole_cube_once_with_x_first() -> None:
    found = displacements(2)
    assert {tuple(d) for d in found.tolist()} == set(product(range(-2, 3), repeat=3))
    assert len(found) == 125
    assert found[0].tolist() == [-2, -2, -2]
    assert found[1].tolist() == [-1, -2, -2]  # x runs fastest
    assert found[62].tolist() == [0, 0, 0]


def test_margins_hold_no_data_and_come_off_again(rng: np.random.Generator) -> None:
    one = _map(rng, (4, 5, 6))
    wide = one.padded(2)
    assert wide.values.shape == (3, 8, 9, 10)
    assert float(wide.weight.sum()) == pytest.approx(float(one.weight.sum()))
    torch.testing.assert_close(wide.cropped(2).values, one.values)
    torch.testing.assert_close(wide.cropped(2).weight, one.weight)


def test_interpolation_weighs_the_neighbours_by_what_is_known_of_them(rng: np.random.Generator) -> None:
    one = _map(rng, (4, 5, 6))
    points = rng.uniform(-1.5, 6.5, (40, 3))  # x, y, z; some of them outside
    found = one.at(torch.from_numpy(points.T[:, None, None, :].copy()))
    for k, point in enumerate(points):
        low = np.floor(point).astype(int)
        total, weights = np.zeros(3), 0.0
        for corner in product((0, 1), repeat=3):
            x, y, z = low + corner
            if 0 <= x < 6 and 0 <= y < 5 and 0 <= z < 4:
                share = np.prod(np.where(corner, point - low, 1 - (point - low))) * float(
                    one.weight[0, z, y, x]
                )
                total += share * one.values[:, z, y, x].numpy()
                weights += share
        np.testing.assert_allclose(float(found.weight[0, 0, 0, k]), weights, atol=1e-12)
        if weights > 1e-3:
            np.testing.assert_allclose(found.values[:, 0, 0, k].numpy(), total / weights, rtol=1e-6)
    assert torch.isfinite(found.values).all()


def test_what_lies_behind_a_hole_has_no_say(rng: np.random.Generator) -> None:
    """One step from the end of the data, the value is still that of the data, in full."""
    values = torch.from_numpy(rng.random((2, 3, 3, 6)))
    weight = torch.ones(1, 3, 3, 6, dtype=torch.float64)
    weight[..., 3:] = 0
    where = index_grid((3, 3, 3)).double() + torch.tensor([0.4, 0.0, 0.0], dtype=torch.float64).view(
        3, 1, 1, 1
    )
    found = FeatureMap(torch.where(weight > 0, values, -50.0), weight).at(where)
    torch.testing.assert_close(found.values[..., 2], values[..., 2])
    torch.testing.assert_close(found.weight[..., 2], torch.full((1, 3, 3), 0.6, dtype=torch.float64))


@pytest.mark.parametrize(("radius", "aggregate"), [(1, 0), (1, 2), (2, 1)])
def test_costs_are_weighted_means_over_a_box(rng: np.random.Generator, radius: int, aggregate: int) -> None:
    shape = (4, 3, 5)
    fixed = _map(rng, shape)
    moving = _map(rng, tuple(n + 2 * radius for n in shape))
    found = cost_volume(fixed, moving, radius, aggregate).numpy()
    f, fw, m, mw = (t.numpy() for t in (fixed.values, fixed.weight[0], moving.values, moving.weight[0]))
    least = 0.25 * (2 * aggregate + 1) ** 3
    for cell in np.ndindex(shape):
        costs = []
        for step in displacements(radius).tolist():
            total = weights = 0.0
            for around in product(range(-aggregate, aggregate + 1), repeat=3):
                here = tuple(c + s for c, s in zip(cell, around))
                if all(0 <= h < n for h, n in zip(here, shape, strict=True)):
                    there = tuple(h + radius + s for h, s in zip(here, step[::-1]))
                    weight = fw[here] * mw[there]
                    difference = f[(slice(None), *here)] - m[(slice(None), *there)]
                    total += weight * float(difference @ difference) / len(difference)
                    weights += weight
            costs.append(total / weights if weights > least else np.nan)
        known = ~np.isnan(costs)
        expected = np.where(known, costs, np.mean(np.array(costs)[known]) if known.any() else 0)
        np.testing.assert_allclose(found[(slice(None), *cell)], expected, atol=1e-12)


def test_a_displacement_out_of_the_image_is_neither_cheaper_nor_dearer(rng: np.random.Generator) -> None:
    """Where the moving image ends, the unknown displacements cost what the known ones cost on average."""
    fixed = FeatureMap(torch.from_numpy(rng.random((2, 8, 8, 8))), torch.ones(1, 8, 8, 8))
    moving = FeatureMap(torch.from_numpy(rng.random((2, 8, 8, 8))), torch.ones(1, 8, 8, 8)).padded(2)
    costs = cost_volume(fixed, moving, 2, 0)[:, 0, 4, 4]  # the first slice
    steps = displacements(2)
    out = steps[:, 2] < 0
    assert torch.unique(costs[out]).numel() == 1
    torch.testing.assert_close(costs[out][0], costs[~out].mean())


def test_the_maps_that_go_in_are_left_as_they_are(rng: np.random.Generator) -> None:
    fixed, moving = _map(rng, (5, 5, 5)), _map(rng, (7, 7, 7))
    before = [t.clone() for t in (fixed.values, fixed.weight, moving.values, moving.weight)]
    cost_volume(fixed, moving, 1)
    for tensor, old in zip((fixed.values, fixed.weight, moving.values, moving.weight), before, strict=True):
        assert torch.equal(tensor, old)


def test_a_map_matches_itself_at_no_cost_in_single_precision(rng: np.random.Generator) -> None:
    """|F|^2 + |M|^2 - 2 F.M loses digits; what is left of them must not outweigh the first coupling."""
    values = torch.from_numpy(rng.random((12, 9, 9, 9))).float()
    fixed = FeatureMap(values[:, 2:-2, 2:-2, 2:-2], torch.ones(1, 5, 5, 5))
    costs = cost_volume(fixed, FeatureMap(values, torch.ones(1, 9, 9, 9)), 2)
    assert costs.min() >= 0
    assert costs[62].max() < 1e-6
    assert (costs.argmin(0) == 62).all()
