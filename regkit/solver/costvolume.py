"""Dissimilarity of two feature maps for every displacement in a cube."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from regkit.features.featuremap import FeatureMap
from regkit.ops import gpu, native
from regkit.ops.dispatch import Backend, operation
from regkit.ops.filters import box_sum

# What the kernels take: the largest search range, the shortest row.
MAX_RADIUS, MIN_ROW = 4, 16
# Short costs end at 4. MIND, the network and intensities side by side may come to 5.25 where all of them
# disagree as much as they can.
_MAX_SHORT = 5.5


def displacements(radius: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Every whole displacement within the cube, shape ((2 radius + 1)^3, 3), components (x, y, z)."""
    steps = torch.arange(-radius, radius + 1, device=device)
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def cost_volume(fixed: FeatureMap, moving: FeatureMap, radius: int, aggregate: int = 1) -> torch.Tensor:
    """Mean squared feature difference per displacement, averaged over a box of cells.

    That of :func:`known_costs`; where it is not known, the mean over the displacements for which it is (0 if
    there is none): missing data neither attract nor repel.
    """
    return with_neutral(known_costs(fixed, moving, radius, aggregate))


@operation
def known_costs(fixed: FeatureMap, moving: FeatureMap, radius: int, aggregate: int = 1) -> torch.Tensor:
    """``cost(d, x) = sum_box w |F(x) - M(x + d)|^2 / (C sum_box w)`` with ``w = w_F(x) w_M(x + d)``.

    Args:
        fixed: map of shape (C, Z, Y, X).
        moving: map of the same lattice with ``radius`` cells more on every side.
        radius: cells; displacements as ordered by :func:`displacements`.
        aggregate: box radius in cells.

    Returns:
        (D, Z, Y, X), NaN where less than a quarter of the box has data on both sides.
    """
    channels, *shape = fixed.values.shape
    # |F - M|^2 = |F|^2 + |M|^2 - 2 F.M leaves one pass over the channels for each displacement; channel by
    # channel, so that what is added up stays in the cache.
    fixed_square = fixed.values.square().sum(0)
    moving_square = moving.values.square().sum(0)
    steps = displacements(radius)
    costs = fixed.values.new_empty((len(steps), *shape))
    min_weight = 0.25 * (2 * aggregate + 1) ** 3
    padded = costs.new_zeros((2, *(n + 2 * aggregate for n in shape)))
    difference, weight = padded[(slice(None), *(slice(aggregate, aggregate + n) for n in shape))]
    for cost, (x, y, z) in zip(costs, steps.tolist()):
        at = tuple(slice(radius + s, radius + s + n) for s, n in zip((z, y, x), shape))
        torch.mul(fixed.weight[0], moving.weight[0][at], out=weight)
        torch.add(fixed_square, moving_square[at], out=difference)
        for one, other in zip(fixed.values, moving.values[(slice(None), *at)]):
            difference.addcmul_(one, other, value=-2)
        # Rounding can leave a tiny negative where both sides agree.
        difference.clamp_(min=0).mul_(weight)
        total, count = box_sum(padded, aggregate)
        known = count > min_weight
        torch.div(total, count.clamp_(min=1e-6).mul_(channels), out=cost)
        cost.masked_fill_(~known, torch.nan)
    return costs


@operation
def known_slab(fixed: FeatureMap, moving: FeatureMap, radius: int, first: int, last: int) -> torch.Tensor:
    """Planes [first, last) of z of :func:`known_costs`, (D, last - first, Y, X)."""
    low, high = max(first - 1, 0), min(last + 1, fixed.values.shape[1])  # what the boxes reach
    here, there = slice(low, high), slice(low, high + 2 * radius)
    one = FeatureMap(fixed.values[:, here], fixed.weight[:, here])
    other = FeatureMap(moving.values[:, there], moving.weight[:, there])
    return known_costs(one, other, radius)[:, first - low : last - low]


@operation
def best_steps(costs: torch.Tensor, radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The displacement of lowest cost of every cell, with fractions of a cell, and how much better it is.

    Costs that are not known count as the mean of the others.

    Args:
        costs: (D, ...), as :func:`known_costs` returns.

    Returns:
        (...), the mean of the costs less the lowest, 0 where none is known; (3, ...), cells, components
        (x, y, z): off the border of the cube, where a parabola through the cost and its neighbours along
        each axis is lowest.
    """
    gain, step = torch.empty_like(costs[0]), costs.new_empty((3, *costs.shape[1:]))
    side = 2 * radius + 1
    costs = with_neutral(costs.flatten(1).clone())
    lowest, at = costs.min(0)
    torch.sub(costs.mean(0), lowest, out=gain.view(-1))
    best = displacements(radius, costs.device).to(costs.dtype)[at].T
    for axis, stride in enumerate((1, side, side * side)):
        inside = best[axis].abs() < radius
        below = costs.gather(0, (at - stride).clamp_min(0)[None])[0]
        above = costs.gather(0, (at + stride).clamp_max(len(costs) - 1)[None])[0]
        fraction = 0.5 * (below - above) / (below + above - 2 * lowest).clamp_min(1e-9)
        torch.add(best[axis], fraction.clamp(-0.5, 0.5) * inside, out=step[axis].view(-1))
    return gain, step


@best_steps.kernel("c", lambda costs, radius: native.serves(costs) and costs.is_contiguous())
def _best_steps_by_c(costs: torch.Tensor, radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    gain, step = torch.empty_like(costs[0]), costs.new_empty((3, *costs.shape[1:]))
    native.run("best_steps", costs=costs, side=2 * radius + 1, gain=gain, step=step)
    return gain, step


def _all(
    fixed: FeatureMap, moving: FeatureMap
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return fixed.values, fixed.weight, moving.values, moving.weight


@known_slab.kernel(
    "triton",
    lambda fixed, moving, radius, first, last: 1 <= radius <= MAX_RADIUS and gpu.serves(*_all(fixed, moving)),
)
def _slab_by_triton(
    fixed: FeatureMap, moving: FeatureMap, radius: int, first: int, last: int
) -> torch.Tensor:
    from regkit.ops.gpu import kernels

    return kernels.costs(*_all(fixed, moving), radius, (first, last))


@known_slab.kernel(
    "c",
    lambda fixed, moving, radius, first, last: (
        1 <= radius <= MAX_RADIUS and native.serves(*_all(fixed, moving))
    ),
)
def _slab_by_c(fixed: FeatureMap, moving: FeatureMap, radius: int, first: int, last: int) -> torch.Tensor:
    costs = native.empty((2 * radius + 1) ** 3, last - first, *fixed.values.shape[2:])
    _run_costs(fixed, moving, radius, first, 1.0, costs, None)
    return costs


def _in_small_boxes(backend: Backend) -> Callable[..., bool]:
    """Whether a kernel of :func:`known_slab` has all costs; it knows boxes of 3^3 cells alone."""
    kernel = known_slab.kernels[backend]

    def takes(fixed: FeatureMap, moving: FeatureMap, radius: int, aggregate: int = 1) -> bool:
        return aggregate == 1 and kernel.takes(fixed, moving, radius, 0, 0)

    return takes


@known_costs.kernel("triton", _in_small_boxes("triton"))
def _costs_by_triton(fixed: FeatureMap, moving: FeatureMap, radius: int, aggregate: int = 1) -> torch.Tensor:
    return _slab_by_triton(fixed, moving, radius, 0, fixed.values.shape[1])


@known_costs.kernel("c", _in_small_boxes("c"))
def _costs_by_c(fixed: FeatureMap, moving: FeatureMap, radius: int, aggregate: int = 1) -> torch.Tensor:
    return _slab_by_c(fixed, moving, radius, 0, fixed.values.shape[1])


def largest_of_short_costs(fixed: FeatureMap, moving: FeatureMap, radius: int) -> float | None:
    """The largest magnitude of two maps' values, if :func:`short_costs` can be had: the kernel in C takes the
    maps, a row is long enough, and hardly any cost can be beyond 16 bits, where all count as the largest.
    """
    if fixed.values.shape[-1] < MIN_ROW or not known_costs.kernels["c"].takes(fixed, moving, radius):
        return None
    flat = [one.values.flatten(1) for one in (fixed, moving)]
    lowest = torch.minimum(*(one.amin(1) for one in flat))
    highest = torch.maximum(*(one.amax(1) for one in flat))
    largest = float((highest - lowest).square().mean())
    return float(torch.maximum(highest.abs(), lowest.abs()).max()) if largest < _MAX_SHORT else None


def steps_of_values(largest: float, channels: int) -> float:
    """How many steps 1 has in :func:`short_costs`: 16 bits, and sums of squares over the channels 32."""
    return float(np.float32(math.isqrt((2**29 - 1) // channels) / max(largest, 1e-9)))


def short_costs(fixed: FeatureMap, moving: FeatureMap, radius: int, largest: float) -> torch.Tensor:
    """:func:`known_costs` by the kernel in half the memory, and of values in half the bits.

    Args:
        largest: no value is of a larger magnitude; they are rounded to steps of some 12 bits of it
            (:func:`steps_of_values`).

    Returns:
        (D, Z, Y, X + 2 radius), 16 bits in steps of 2^-14; 65535 where not known and beyond both ends of x.
    """
    channels, z, y, x = fixed.values.shape
    costs = native.empty((2 * radius + 1) ** 3, z, y, x + 2 * radius, dtype=np.uint16)
    _run_costs(fixed, moving, radius, 0, steps_of_values(largest, channels), None, costs)
    return costs


def _run_costs(
    fixed: FeatureMap,
    moving: FeatureMap,
    radius: int,
    first: int,
    steps: float,
    whole: torch.Tensor | None,
    short: torch.Tensor | None,
) -> None:
    maps = [t.contiguous() for t in (fixed.values, fixed.weight, moving.values, moving.weight)]
    native.run(
        "costs", fixed=maps[0], fixed_weight=maps[1], moving=maps[2], moving_weight=maps[3], radius=radius,
        start=first, scale=steps, whole=whole, short_costs=short,
    )  # fmt: skip


def with_neutral(costs: torch.Tensor) -> torch.Tensor:
    """Costs (D, ...) with the mean of those known where they are NaN, 0 if none is; in place on a CPU."""
    if costs.is_cuda:  # at once: there is memory for it, and each step costs a launch
        return torch.where(costs.isnan(), costs.nanmean(0).nan_to_num(), costs)
    total, count = torch.zeros_like(costs[0]), torch.zeros_like(costs[0])
    for cost in costs:
        total += cost.nan_to_num()
        count += ~cost.isnan()
    neutral = total.div_(count.clamp_min_(1))
    for cost in costs:
        torch.where(cost.isnan(), neutral, cost, out=cost)
    return costs


def of_the_way_back(costs: torch.Tensor, radius: int) -> torch.Tensor:
    """From the known costs of the way there, at its cells, to those of the way back.

    A displacement from the moving image costs what the opposite one costs at the cell that it leads to; NaN
    where that lies beyond the ends.
    """
    back = torch.full_like(costs, torch.nan)
    for reversed_cost, cost, step in zip(back, costs.flip(0), displacements(radius).tolist()):
        ends = list(zip(step[::-1], reversed_cost.shape))  # how far, and of how many cells, z first
        if any(abs(s) >= n for s, n in ends):
            continue
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in ends)
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in ends)
        reversed_cost[here] = cost[there]
    return back
