"""The terms of the fine stage against float64 references, and what Adam makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from regkit.core.settings import PRESETS
from regkit.features.featuremap import FeatureMap
from regkit.ops.filters import smooth
from regkit.ops.folding import folded_points
from regkit.ops.sampling import index_grid
from regkit.solver.fine import (
    _MAX_STIFFNESS,
    _STIFFNESS_RANGE,
    _TYPICAL_RESEL,
    diffusion,
    dissimilarity,
    refine,
    scattered,
    stiffness_for,
)

SHAPE = (7, 6, 8)


def _random_map(rng: np.random.Generator, shape: tuple[int, ...] = SHAPE) -> FeatureMap:
    weight = torch.from_numpy(rng.random((1, *shape)))
    return FeatureMap(torch.from_numpy(rng.random((3, *shape))), weight)


def test_diffusion_is_its_definition(rng: np.random.Generator) -> None:
    field = rng.normal(size=(3, *SHAPE))
    stiffness = rng.uniform(0.1, 3, size=(1, *SHAPE))
    expected = 0.0
    for axis in (1, 2, 3):
        ends = np.moveaxis(stiffness, axis, 0)
        weight = np.moveaxis((ends[1:] + ends[:-1]) / 2, 0, axis)
        expected += (weight * np.diff(field, axis=axis) ** 2).mean()
    found = diffusion(torch.from_numpy(field), torch.from_numpy(stiffness))
    np.testing.assert_allclose(float(found), expected)


def test_a_field_is_held_together_more_where_the_coarse_stage_found_less_strain(
    rng: np.random.Generator,
) -> None:
    still, strained = torch.zeros(3, 24, 8, 8), torch.from_numpy(rng.normal(size=(3, 24, 8, 8))).float()
    assert (stiffness_for(still, 1.0) == _STIFFNESS_RANGE[1]).all()
    assert (stiffness_for(strained, 1.0) == _STIFFNESS_RANGE[0]).all()
    both = stiffness_for(torch.cat([0.1 * strained[:, :12], still[:, 12:]], dim=1), 1.0)
    assert both[0, 0].mean() < both[0, 12].mean() < both[0, -1].mean()


def test_a_field_is_held_together_more_where_cells_differ_alike(rng: np.random.Generator) -> None:
    strained = torch.from_numpy(rng.normal(size=(3, 24, 8, 8))).float()
    assert torch.equal(stiffness_for(strained, _TYPICAL_RESEL), stiffness_for(strained, 1.0))
    torch.testing.assert_close(stiffness_for(strained, 2 * _TYPICAL_RESEL), 8 * stiffness_for(strained, 1.0))
    assert (stiffness_for(strained, 1e9) == _MAX_STIFFNESS).all()


def test_places_lie_in_their_cells_and_between_the_outer_centres() -> None:
    places = scattered(torch.zeros(1, 4, 6, 9))
    assert (places - index_grid((4, 6, 9))).abs().max() <= 0.5
    assert (places >= 0).all()
    assert (places.flatten(1).amax(1) <= torch.tensor([8.0, 5.0, 3.0])).all()
    inside = (places - index_grid((4, 6, 9)))[:, 1:-1, 1:-1, 1:-1].flatten(1)
    for quarter in range(4):  # as many in each quarter of the cell along each axis
        share = ((inside + 0.5) * 4).floor().eq(quarter).float().mean(1)
        assert ((share > 0.15) & (share < 0.35)).all()


def test_dissimilarity_is_its_definition(rng: np.random.Generator) -> None:
    fixed, moving = _random_map(rng), _random_map(rng)
    shift = (1, 0, 2)  # x, y, z: whole cells, so that no interpolation is needed
    where = index_grid(SHAPE).double() + torch.tensor(shift).view(3, 1, 1, 1)
    total = 0.0
    for z, y, x in np.ndindex(SHAPE):
        there = (z + shift[2], y + shift[1], x + shift[0])
        if all(t < n for t, n in zip(there, SHAPE, strict=True)):
            weight = fixed.weight[0, z, y, x] * moving.weight[(0, *there)]
            total += float(
                weight * (fixed.values[:, z, y, x] - moving.values[(slice(None), *there)]).square().sum()
            )
    np.testing.assert_allclose(
        float(dissimilarity(fixed, moving, where)), total / fixed.values.numel(), rtol=1e-10
    )


def test_the_gradient_is_that_of_the_plain_definition(rng: np.random.Generator) -> None:
    fixed, moving = _random_map(rng), _random_map(rng)
    grid = index_grid(SHAPE).double()
    where = (grid + torch.from_numpy(rng.uniform(-1.5, 1.5, grid.shape))).requires_grad_()
    seen = moving.at(where)
    plain = ((seen.values - fixed.values).square() * (fixed.weight * seen.weight.detach())).mean()
    found = dissimilarity(fixed, moving, where)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(*(torch.autograd.grad(value, where)[0] for value in (found, plain)))


def test_cells_without_data_leave_no_trace(rng: np.random.Generator) -> None:
    """Neither in the value nor in the gradient, whatever the voxels behind a weight of 0 hold."""
    fixed, moving = _random_map(rng), _random_map(rng)
    hole = torch.ones(1, *SHAPE)
    hole[:, 3:, 2:5] = 0
    found = []
    for filling in (0.0, 1e3):
        values = torch.where(hole > 0, moving.values, filling)
        where = (index_grid(SHAPE).double() + 0.3).requires_grad_()
        loss = dissimilarity(fixed, FeatureMap(values, moving.weight * hole), where)
        found.append((loss, *torch.autograd.grad(loss, where)))
    torch.testing.assert_close(found[0], found[1])
    assert not found[0][1][:, 5, 3].any()
    assert found[0][1].any()


def test_there_is_no_gain_in_moving_towards_missing_data(rng: np.random.Generator) -> None:
    """Where the features are the same everywhere, the weights alone do not call for any displacement."""
    fixed = FeatureMap(torch.zeros(3, *SHAPE).double(), torch.ones(1, *SHAPE).double())
    moving = FeatureMap(torch.ones(3, *SHAPE).double(), torch.from_numpy(rng.uniform(0.1, 1, (1, *SHAPE))))
    where = (index_grid(SHAPE).double() + 0.3).requires_grad_()
    loss = dissimilarity(fixed, moving, where)
    assert loss > 0.1
    (gradient,) = torch.autograd.grad(loss, where)
    assert gradient.abs().max() < 1e-12


def test_what_adam_returns_does_not_fold(rng: np.random.Generator) -> None:
    nothing = FeatureMap(torch.zeros(1, 10, 10, 10), torch.zeros(1, 10, 10, 10))
    start = torch.from_numpy(rng.normal(size=(3, 10, 10, 10)) * 30).float()
    assert folded_points(smooth(start, 3)).any()
    found = refine(nothing, nothing, torch.zeros(3), start, replace(PRESETS["default"], iterations=(1, 1)))
    assert not folded_points(found).any()


def test_adam_finds_a_shift_of_part_of_a_cell(rng: np.random.Generator) -> None:
    coarse = torch.from_numpy(rng.random((1, 4, 9, 9, 9))).float()
    fine = torch.nn.functional.interpolate(coarse, size=(36, 36, 36), mode="trilinear", align_corners=False)[
        0
    ]
    whole = FeatureMap(fine[:, 8:28, 8:28, 8:28], torch.ones(1, 20, 20, 20))
    lattice = FeatureMap(fine, torch.ones(1, 36, 36, 36))
    start = torch.zeros(3, 20, 20, 20)
    offset = torch.tensor([8.0, 8.0, 8.0])
    still = refine(whole, lattice, offset, start, PRESETS["default"])
    assert still.abs().max() < 0.05
    # The same cells, seen from 0.7 cells further along x and back along z.
    found = refine(whole, lattice, offset + torch.tensor([0.7, 0.0, -0.7]), start, PRESETS["default"])
    expected = torch.tensor([-0.7, 0.0, 0.7]).view(3, 1, 1, 1)
    assert (found - expected).abs().mean() < 0.05
    # The coarse level finds it too, in the cells of the fine one.
    alone = replace(PRESETS["default"], iterations=(64, 0))
    found = refine(whole, lattice, offset + torch.tensor([0.7, 0.0, -0.7]), start, alone)
    assert (found - expected).abs().mean() < 0.05
