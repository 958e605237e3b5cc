"""Box means and pooling against loops in float64, and what they promise at borders and holes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from regkit.ops.filters import box_sum, pool, smooth


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_box_sum_is_the_sum_over_each_whole_neighbourhood(rng: np.random.Generator, radius: int) -> None:
    volume = rng.normal(size=(2, 7, 6, 5))
    before = volume.copy()
    found = box_sum(torch.from_numpy(volume), radius).numpy()
    assert found.shape == (2, 7 - 2 * radius, 6 - 2 * radius, 5 - 2 * radius)
    for channel, z, y, x in np.ndindex(found.shape):
        box = tuple(slice(k, k + 2 * radius + 1) for k in (z, y, x))
        np.testing.assert_allclose(found[channel, z, y, x], before[(channel, *box)].sum())
    np.testing.assert_array_equal(volume, before)


def test_smoothing_is_the_mean_of_27_neighbours_with_the_border_repeated(rng: np.random.Generator) -> None:
    volume = rng.normal(size=(3, 5, 4, 6))
    found = smooth(torch.from_numpy(volume)).numpy()
    for point in np.ndindex(volume.shape[1:]):
        around = [
            tuple(np.clip(np.add(point, step), 0, np.array(volume.shape[1:]) - 1))
            for step in product((-1, 0, 1), repeat=3)
        ]
        expected = np.mean([volume[(slice(None), *neighbour)] for neighbour in around], axis=0)
        np.testing.assert_allclose(found[(slice(None), *point)], expected, atol=1e-12)
    twice = smooth(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(smooth(torch.from_numpy(volume), 2).numpy(), twice, atol=1e-12)


def test_smoothing_leaves_a_constant_field_alone_up_to_the_border() -> None:
    field = torch.tensor([7.0, -3.0, 0.5], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 4, 5, 6)
    torch.testing.assert_close(smooth(field, 3), field.contiguous())


def test_pooling_is_a_weighted_mean_per_cell(rng: np.random.Generator) -> None:
    values, weight = rng.normal(size=(3, 4, 6, 8)), rng.random((1, 4, 6, 8))
    weight[0, :2, :2, :2] = 0
    means, shares = (t.numpy() for t in pool(torch.from_numpy(values), torch.from_numpy(weight), 2))
    assert means.shape == (3, 2, 3, 4) and shares.shape == (1, 2, 3, 4)
    for cell in np.ndindex(shares.shape[1:]):
        box = tuple(slice(2 * k, 2 * k + 2) for k in cell)
        inside = weight[(0, *box)]
        np.testing.assert_allclose(shares[(0, *cell)], inside.mean())
        if inside.any():
            expected = (values[(slice(None), *box)] * inside).sum((1, 2, 3)) / inside.sum()
            np.testing.assert_allclose(means[(slice(None), *cell)], expected, rtol=1e-9)
    assert np.isfinite(means).all()


def test_one_voxel_of_a_cell_is_enough_for_its_mean() -> None:
    values = torch.full((1, 4, 4, 4), 1e3)
    weight = torch.zeros(1, 4, 4, 4)
    values[0, 1, 2, 3], weight[0, 1, 2, 3] = 0.25, 1.0
    means, shares = pool(values, weight, 4)
    torch.testing.assert_close(means, torch.full((1, 1, 1, 1), 0.25))
    torch.testing.assert_close(shares, torch.full((1, 1, 1, 1), 1 / 64))
