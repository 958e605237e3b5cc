"""A linear map improved by Gauss-Newton steps on the squared differences of features.

Block matching finds where parts of an image went, by whole cells first, and keeps the half of them that one
map explains best. What is then left is less than a cell everywhere, and the slopes of the features tell it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from regkit.core.geometry import Float64, linear_about
from regkit.features.featuremap import FeatureMap

_EVERY_SECOND = (slice(None), *(slice(1, -1, 2),) * 3)  # every second cell that has neighbours on all sides
_STEPS, _DAMPINGS = 8, 4
_FIRST_DAMPING, _MORE, _LESS = 1e-3, 10.0, 1 / 3
_MIN_GAIN = 1e-5  # of the similarity, below which it has converged

Compared = tuple[FeatureMap, float]
"""A moving map on the fixed grid, and its similarity to the fixed one."""


def improve(fixed: FeatureMap, compare: Callable[[Float64], Compared], model: str) -> tuple[Float64, float]:
    """The map near the identity under which the features agree best (Levenberg, 1944; Marquardt, 1963).

    Steps follow the mean of both images' slopes, which converges from further away than either alone (Malis,
    2004).

    Args:
        fixed: features on an isotropic grid.
        compare: from a map, 4x4, of index coordinates of that grid, in which a point of the fixed image is
            brought first, to the moving features seen through it and their similarity.
        model: "rigid", "similarity" or "affine".

    Returns:
        The map, 4x4, and its similarity; no step is taken that lowers it.
    """
    total, (moving, similarity) = np.eye(4), compare(np.eye(4))
    if min(fixed.weight.shape[1:]) < 3:
        return total, similarity
    basis = _motions(model)
    slopes, damping = _slopes(fixed.values), _FIRST_DAMPING
    for _ in range(_STEPS):
        curvature, slope, middle, size = _normal_equations(fixed, slopes, moving)
        curvature, slope = basis.T @ curvature @ basis, basis.T @ slope
        for _ in range(_DAMPINGS):
            held = curvature + damping * np.diag(np.diag(curvature)) + 1e-12 * np.eye(len(curvature))
            step = (basis @ np.linalg.solve(held, -slope)).reshape(3, 4)
            tried = total @ _motion(step, middle, size, model)
            tried_map, better = compare(tried)
            if better > similarity:
                break
            damping *= _MORE
        else:
            break
        gain, damping = better - similarity, damping * _LESS
        total, moving, similarity = tried, tried_map, better
        if gain < _MIN_GAIN:
            break
    return total, similarity


def _slopes(values: torch.Tensor) -> torch.Tensor:
    """Central differences of channels (C, Z, Y, X) along x, y and z at some cells, (3, C, z, y, x)."""
    slopes = []
    for axis in (3, 2, 1):
        before, after = list(_EVERY_SECOND), list(_EVERY_SECOND)
        before[axis], after[axis] = slice(0, -2, 2), slice(2, None, 2)
        slopes.append((values[tuple(after)] - values[tuple(before)]) / 2)
    return torch.stack(slopes)


def _normal_equations(
    fixed: FeatureMap, fixed_slopes: torch.Tensor, moving: FeatureMap
) -> tuple[Float64, Float64, Float64, float]:
    """Second and first derivatives of half the weighted sum of squared differences by an affine motion.

    Returns:
        (12, 12) and (12,), by the rows of (3, 4) that takes ``((x - middle) / size, 1)`` to a motion in
        cells; ``middle`` (3,) and ``size``.
    """
    weight = (fixed.weight * moving.weight)[_EVERY_SECOND]
    differences = moving.values[_EVERY_SECOND] - fixed.values[_EVERY_SECOND]
    slopes = (_slopes(moving.values) + fixed_slopes) / 2
    depth, height, width = fixed.weight.shape[1:]
    middle = np.array([width - 1, height - 1, depth - 1]) / 2
    size = float(middle.max())
    axes = [
        (torch.arange(1, n - 1, 2, device=weight.device) - c) / size
        for n, c in zip((depth, height, width), middle[::-1], strict=True)
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    places = torch.stack([x, y, z, torch.ones_like(x)]).flatten(1).double()
    pulls = ((slopes * differences).sum(1) * weight).flatten(1).double()
    slope = pulls @ places.T
    curvature = slope.new_zeros(3, 4, 3, 4)
    for i in range(3):
        for j in range(i, 3):
            product = ((slopes[i] * slopes[j]).sum(0, keepdim=True) * weight).flatten().double()
            curvature[i, :, j] = (places * product) @ places.T
            curvature[j, :, i] = curvature[i, :, j]
    return curvature.reshape(12, 12).cpu().numpy(), slope.flatten().cpu().numpy(), middle, size


def _motions(model: str) -> Float64:
    """(12, 6, 7 or 12): what a model allows, as columns of flattened (3, 4)."""
    if model == "affine":
        return np.eye(12)
    columns = np.zeros((7, 3, 4))
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        columns[k, k, 3] = 1
        columns[3 + k, j, i], columns[3 + k, i, j] = 1, -1
        columns[6, k, k] = 1
    return columns[: 6 if model == "rigid" else 7].reshape(-1, 12).T


def _motion(step: Float64, middle: Float64, size: float, model: str) -> Float64:
    """The 4x4 map of index coordinates of a step (3, 4) as :func:`_normal_equations` counts it."""
    linear = np.eye(3) + step[:, :3] / size
    if model != "affine":  # the nearest rotation, and size
        u, scales, vt = np.linalg.svd(linear)
        linear = u @ vt * (1.0 if model == "rigid" else scales.mean())
    return linear_about(middle, linear, step[:, 3])
