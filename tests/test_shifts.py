"""Differences under all shifts, against sums over the cells that overlap."""

from __future__ import annotations

import itertools

import pytest
import torch

from regkit.features.featuremap import FeatureMap
from regkit.solver.shifts import Shifts, fast_length


def maps() -> tuple[FeatureMap, FeatureMap]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    return FeatureMap(random(3, 5, 4, 6), random(1, 5, 4, 6)), FeatureMap(
        random(3, 3, 7, 4), random(1, 3, 7, 4)
    )


def test_every_shift_is_the_sum_over_what_overlaps() -> None:
    fixed, moving = maps()
    shifts = Shifts(fixed, moving.weight.shape[1:])
    difference, overlap = shifts(moving)
    seen = set()
    for peak in itertools.product(*map(range, shifts.shape)):
        cell = shifts.cell(peak)[::-1]
        if any(k <= -n for k, n in zip(cell, fixed.weight.shape[1:])):
            continue  # beyond any overlap
        seen.add(tuple(cell))
        weighted = weights = 0.0
        for z, y, x in itertools.product(*map(range, fixed.weight.shape[1:])):
            there = (z + cell[0], y + cell[1], x + cell[2])
            if all(0 <= k < n for k, n in zip(there, moving.weight.shape[1:])):
                weight = float(fixed.weight[0, z, y, x] * moving.weight[0][there])
                apart = fixed.values[:, z, y, x] - moving.values[(slice(None), *there)]
                weighted, weights = weighted + weight * float(apart.square().mean()), weights + weight
        assert float(difference[peak]) == pytest.approx(weighted, abs=1e-4)
        assert float(overlap[peak]) == pytest.approx(weights, abs=1e-4)
    assert len(seen) == (5 + 3 - 1) * (4 + 7 - 1) * (6 + 4 - 1)


@pytest.mark.parametrize(("length", "fast"), [(1, 1), (7, 8), (11, 12), (97, 100), (101, 108), (128, 128)])
def test_fast_lengths(length: int, fast: int) -> None:
    assert fast_length(length) == fast
