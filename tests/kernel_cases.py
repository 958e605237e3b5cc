"""What the kernels are tried on, and what their twins in torch make of it in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from regkit.features.featuremap import FeatureMap
from regkit.solver.coarse import coupled_convex
from regkit.solver.costvolume import displacements, known_costs, of_the_way_back, with_neutral

SHAPES = [(9, 8, 11), (1, 5, 40), (7, 1, 1)]


def close(found: torch.Tensor, expected: torch.Tensor, part: float = 1e-5) -> None:
    """To roundings of float32, in terms of the largest value; NaN in the same places."""
    assert found.dtype == torch.float32
    largest = float(expected.detach().nan_to_num().abs().max())
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=0, atol=part * max(largest, 1e-30), equal_nan=True
    )


def single(one: FeatureMap) -> FeatureMap:
    return FeatureMap(one.values.float(), one.weight.float())


def both(function: object, at: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Value and gradient in float32, by the kernel, and in float64, by torch."""
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = at.to(dtype).requires_grad_()
        value = function(leaf)  # type: ignore[operator]
        weight = torch.linspace(-1, 2, value.numel(), dtype=dtype, device=at.device).view(value.shape)
        (gradient,) = torch.autograd.grad((value * weight).sum() if value.ndim else value, leaf)
        found.append((value, gradient))
    return found[0], found[1]


def feature_map(rng: np.random.Generator, channels: int, shape: tuple[int, ...]) -> FeatureMap:
    """With cells of no weight, of the full weight, and between; exact in the 16 bits of the kernel."""
    weight = rng.choice([0, 0.25, 0.5, 1, 1, 1], size=(1, *shape))
    values = rng.integers(-500, 2000, size=(channels, *shape)) / 1024
    return FeatureMap(torch.from_numpy(values), torch.from_numpy(weight))


# Of one plane, of more rows than the kernel takes at once, and of rows shorter than a vector and just longer.
COSTS = [
    (1, (3, 9, 40), 1.0),
    (14, (4, 3, 17), 2.0),
    (3, (2, 18, 7), 1.0),
    (5, (1, 1, 1), 1.0),
    (2, (5, 8, 16), 1.0),
]


@cache
def cost_pairs(radius: int) -> list[tuple[FeatureMap, FeatureMap, torch.Tensor]]:
    """Two maps, with a block of no data, and what torch says that displacements cost."""
    found = []
    for channels, shape, scale in COSTS:
        random = np.random.default_rng(radius)
        fixed = feature_map(random, channels, shape)
        moving = feature_map(random, channels, tuple(n + 2 * radius for n in shape))
        moving.weight[:, :, : radius + 4, : radius + 3] = 0
        one, other = (FeatureMap(m.values * scale, m.weight) for m in (fixed, moving))
        found.append((one, other, known_costs(one, other, radius)))
    return found


@cache
def convex_steps(radius: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Costs in whole steps, in 16 bits and in float64, and the fields that torch finds, there and back."""
    found = []
    # Of rows as long as the largest vector, and not much longer; of more rows than are tried at once.
    for shape in ((4, 18, 16), (5, 4, 37)):
        random = np.random.default_rng(radius)
        goal = gaussian_filter(random.normal(size=(3, *shape)), (0, 2, 2, 2))
        goal = torch.from_numpy(goal / np.abs(goal).max() * radius)
        away = displacements(radius).double()[:, :, None, None, None] - goal
        noise = torch.from_numpy(random.uniform(0, 0.5, size=(len(away), *shape)))
        steps = ((0.03 * away.square().sum(1) + noise) * 2**14).round().clamp(max=65534)
        steps[torch.from_numpy(random.random(steps.shape) < 0.2)] = 65535
        steps[:, :, 2:4, 3:8] = 65535
        short = torch.nn.functional.pad(steps, (radius, radius), value=65535).numpy().astype(np.uint16)
        costs = torch.where(steps < 65535, steps / 2**14, torch.nan)
        back = coupled_convex(with_neutral(of_the_way_back(costs, radius)), radius)
        forward = coupled_convex(with_neutral(costs.clone()), radius)
        found.append((torch.from_numpy(short), costs, forward, back))
    return found
