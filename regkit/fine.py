"""Fine stage: Adam instance optimisation of a smoothed displacement grid that may not fold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from regkit.costvolume import LEAST_WEIGHT, FeatureMap
from regkit.filters import smooth
from regkit.folding import CORNERS, corner_jacobian, unfold
from regkit.geometry import index_grid
from regkit.settings import Settings

# The data term counts 12 times the mean over channels, which for the 12 channels of MIND is the sum:
# the scale on which ConvexAdam's regularisation weights are known to work.
_DATA_WEIGHT = 12.0
_BARRIER_WEIGHT = 40.0
_LEAST_JACOBIAN = 0.3
_LEARNING_RATE = 1.0  # cells
# Gradients are sums over the cells, of order 1 where there is data: below this they are noise that
# Adam must not blow up to full steps.
_GRADIENT_FLOOR = 0.1


def diffusion(field: torch.Tensor) -> torch.Tensor:
    """Sum over the axes of the mean squared forward difference."""
    return torch.stack([field.diff(dim=axis).square().mean() for axis in (1, 2, 3)]).sum()


def dissimilarity(fixed: FeatureMap, moving: FeatureMap, where: torch.Tensor) -> torch.Tensor:
    """Mean over all cells and channels of the weighted squared feature differences.

    Cells without data on either side count nothing, and there is no gain in moving towards them: the
    weight is taken as a constant.

    Args:
        where: (3, Z, Y, X) index coordinates of the moving map, one for each cell of the fixed map.
    """
    value: torch.Tensor = _WeightedDifference.apply(moving.sampled(where), fixed.values, fixed.weight)
    return value


class _WeightedDifference(torch.autograd.Function):
    """sum w_F w |v / w - F|^2 / (cells * channels) of v and w stacked, with w as a factor constant.

    The gradient is written out because the chain of elementary operations would keep, and pass over, half a
    dozen volumes of all channels: here it is the only one kept.
    """

    @staticmethod
    def forward(ctx: Any, stacked: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        v, w = stacked[:-1], stacked[-1:].clamp_min(LEAST_WEIGHT)
        seen = v / w
        residual = seen - values
        factor = weight * (2 / values.numel())
        loss = 0.5 * (factor * stacked[-1:] * residual.square().sum(0, keepdim=True)).sum()
        # d loss / d v = share * residual, d loss / d w = -sum over channels of the same times v / w.
        share = factor * (stacked[-1:] / w)
        gradient = torch.empty_like(stacked)
        torch.mul(residual, share, out=gradient[:-1])
        torch.sum(seen.mul_(gradient[:-1]), 0, keepdim=True, out=gradient[-1:]).neg_()
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None


def refine(
    fixed: FeatureMap,
    moving: FeatureMap,
    offset: torch.Tensor,
    start: torch.Tensor,
    settings: Settings,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Adam on a displacement grid seen through three box means, close to a cubic B-spline.

    Args:
        fixed: map on the grid of the displacements.
        moving: map on a lattice of the same spacing and axes.
        offset: (x, y, z), the index in ``moving`` of the cell that lies on the fixed cell (0, 0, 0).
        start: (3, Z, Y, X) displacement in cells, components (x, y, z).

    Returns:
        (3, Z, Y, X) displacement in cells; the trilinear field through it does not fold.
    """
    anchor = index_grid(start.shape[1:], start.device) + offset.view(3, 1, 1, 1)
    parameters = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=_LEARNING_RATE, eps=_GRADIENT_FLOOR)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(settings.iterations, 1)))
    )
    cells = start[0].numel()
    for step in range(settings.iterations):
        optimiser.zero_grad(set_to_none=True)
        field = smooth(parameters, 3)
        loss = _DATA_WEIGHT * dissimilarity(fixed, moving, anchor + field)
        loss = loss + settings.regularisation * diffusion(field)
        # One corner a step, all eight in turn.
        shortfall = (_LEAST_JACOBIAN - corner_jacobian(field, CORNERS[3 * step % 8])).clamp_min(0)
        loss = loss + _BARRIER_WEIGHT * shortfall.square().mean()
        (loss * cells).backward()
        optimiser.step()
        decay.step()
        on_step()
    with torch.no_grad():
        return unfold(smooth(parameters, 3))
