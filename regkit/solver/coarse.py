"""Coarse stage: coupled convex optimisation over a dense cube of displacements."""

from __future__ import annotations

import torch

from regkit.features.featuremap import FeatureMap
from regkit.ops import gpu, native
from regkit.ops.dispatch import operation
from regkit.ops.filters import smooth
from regkit.ops.sampling import MAX_VOXELS, index_grid, sample
from regkit.solver.costvolume import (
    displacements,
    known_costs,
    largest_of_short_costs,
    of_the_way_back,
    short_costs,
    with_neutral,
)

# Coupling weights of the successive rounds, for costs that are means over channels in [0, 1].
COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# The first round follows the costs alone; this little keeps cells without data, whose costs are all
# the same, where they are.
_TIE_BREAK = 1e-6


def coupled_convex(costs: torch.Tensor, radius: int, coupling: tuple[float, ...] = COUPLING) -> torch.Tensor:
    """The smooth displacement field that a cost volume asks for.

    Alternates ``d(x) = argmin_d cost(d, x) + theta |d - u(x)|^2`` with ``u = smooth(d)`` while theta
    grows (Heinrich et al., WBIR 2014). The cost volume is read only: each round adds its own
    penalty to the original costs. Between whole cells a parabola through these sums along each axis tells
    where they are lowest: by whole cells alone, a trace of noise tips many of them over.

    Args:
        costs: (D, Z, Y, X), as :func:`regkit.solver.costvolume.cost_volume` returns.

    Returns:
        (3, Z, Y, X) displacement in cells, components (x, y, z).
    """
    field = costs.new_zeros((3, *costs.shape[1:]))
    steps = displacements(radius, costs.device).to(costs.dtype)
    whole = displacements(radius).tolist()
    for theta in (_TIE_BREAK, *coupling):
        best = torch.full(costs.shape[1:], torch.inf, dtype=costs.dtype, device=costs.device)
        chosen = torch.zeros(costs.shape[1:], dtype=torch.int64, device=costs.device)
        for k, (cost, step) in enumerate(zip(costs, whole, strict=True)):
            # |u|^2 is the same for every displacement, so it is left out.
            total = cost + theta * sum(d * d for d in step)
            for component, d in zip(field, step, strict=True):
                total.add_(component, alpha=-2 * theta * d)
            better = total < best
            best = torch.where(better, total, best)
            chosen[better] = k
        # Of sums less |u|^2, as above, all parabolas are the same.
        matches = steps[chosen].movedim(-1, 0) + _between_cells(costs, chosen, field, theta, radius)
        field = smooth(matches)
    return field


def _between_cells(
    costs: torch.Tensor, chosen: torch.Tensor, field: torch.Tensor, theta: float, radius: int
) -> torch.Tensor:
    """What to add to the displacements that were chosen, off the border of the cube, (3, Z, Y, X) in cells.

    Args:
        costs: (D, Z, Y, X).
        chosen: (Z, Y, X), numbers of displacements.
    """
    side, fractions = 2 * radius + 1, []
    here = costs.gather(0, chosen[None])[0]
    for axis, apart in enumerate((1, side, side**2)):
        step = chosen // apart % side
        inside = (step > 0) & (step < side - 1)
        below, above = (
            costs.gather(0, torch.where(inside, chosen + sign * apart, chosen)[None])[0] for sign in (-1, 1)
        )
        slope = below - above + 4 * theta * (field[axis] - (step - radius))
        bend = below + above - 2 * here + 2 * theta
        fractions.append(torch.where(inside, (0.5 * slope / bend.clamp_min(1e-9)).clamp(-0.5, 0.5), 0.0))
    return torch.stack(fractions)


def _coupled_convex_by_c(costs: torch.Tensor, radius: int, back: bool) -> torch.Tensor:
    """:func:`coupled_convex` of :func:`short_costs`; ``back`` for those of the way back."""
    _, z, y, wide = costs.shape
    shape = z, y, wide - 2 * radius
    neutral, field, chosen = torch.empty(shape), torch.zeros((3, *shape)), torch.empty((3, *shape))
    way = int(back)
    native.run("neutral", costs=costs, radius=radius, back=way, neutral=neutral)
    for theta in (_TIE_BREAK, *COUPLING):
        native.run(
            "choose", costs=costs, radius=radius, back=way, neutral=neutral, theta=theta, field=field,
            chosen=chosen,
        )  # fmt: skip
        field = smooth(chosen)
    return field


@operation
def inverse_consistent(
    forward: torch.Tensor, backward: torch.Tensor, iterations: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both fields moved towards being each other's inverse.

    Repeats ``u <- (u - v(x + u)) / 2`` and ``v <- (v - u(x + v)) / 2``, both from the old values.

    Args:
        forward, backward: (3, Z, Y, X) displacements in cells of one grid, components (x, y, z).
    """
    identity = index_grid(forward.shape[1:], forward.device)
    for _ in range(iterations):
        forward, backward = (
            0.5 * (forward - sample(backward, identity + forward)),
            0.5 * (backward - sample(forward, identity + backward)),
        )
    return forward, backward


@inverse_consistent.kernel(
    "c",
    lambda forward, backward, iterations=8: (
        native.serves(forward, backward) and forward[0].numel() < MAX_VOXELS
    ),
)
def _inverse_consistent_by_c(
    forward: torch.Tensor, backward: torch.Tensor, iterations: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """With the components of a cell side by side, and a fourth that is none."""
    z, y, x = forward.shape[1:]
    fields, others = ([native.empty(z, y, x, 4) for _ in range(2)] for _ in range(2))
    for field, source in zip(fields, (forward, backward)):
        field[..., :3] = source.movedim(0, -1)
        field[..., 3] = 0
    for _ in range(iterations):
        for other, one, two in zip(others, fields, reversed(fields)):
            native.run("halfway", u=one, v=two, halved=other)
        fields, others = others, fields
    forward, backward = (field[..., :3].movedim(-1, 0).contiguous() for field in fields)
    return forward, backward


def match(fixed: FeatureMap, moving: FeatureMap, radius: int) -> torch.Tensor:
    """Displacement of every cell of ``fixed`` to where it lies in ``moving``, inverse-consistent.

    Args:
        fixed: map of shape (C, Z, Y, X).
        moving: map of the same lattice with ``radius`` cells more on every side.
        radius: search range in cells, each way along each axis.

    Returns:
        (3, Z, Y, X) displacement in cells, components (x, y, z).
    """
    return inverse_consistent(*_there_and_back(fixed, moving, radius))[0]


@operation
def _there_and_back(fixed: FeatureMap, moving: FeatureMap, radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`coupled_convex` of the costs of two maps, and of those of the way back."""
    costs = known_costs(fixed, moving, radius)
    backward = coupled_convex(with_neutral(of_the_way_back(costs, radius)), radius)
    return coupled_convex(with_neutral(costs), radius), backward


@_there_and_back.kernel("triton", lambda fixed, moving, radius: gpu.serves(fixed.values))
def _there_and_back_by_triton(
    fixed: FeatureMap, moving: FeatureMap, radius: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from regkit.ops.gpu import kernels

    costs, couplings = known_costs(fixed, moving, radius), (_TIE_BREAK, *COUPLING)
    forward, backward = (kernels.coupled_convex(costs, radius, back, couplings) for back in (False, True))
    return forward, backward


@_there_and_back.kernel("c", lambda fixed, moving, radius: native.serves(fixed.values))
def _there_and_back_by_c(
    fixed: FeatureMap, moving: FeatureMap, radius: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of costs in 16 bits, where these can hold them."""
    if (largest := largest_of_short_costs(fixed, moving, radius)) is None:
        return _there_and_back.reference(fixed, moving, radius)
    costs = short_costs(fixed, moving, radius, largest)
    forward, backward = (_coupled_convex_by_c(costs, radius, back) for back in (False, True))
    return forward, backward
