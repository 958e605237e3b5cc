"""The measures of the Learn2Reg challenge by its own formulas, to compare with its published numbers only.

From MDL-UzL/L2R, ``evaluation.py`` and ``utils.py``. Labels are warped by ``scipy.ndimage.map_coordinates``
of order 0, Dice and HD95 are of the labels that both unwarped maps have, HD95 is that of DeepMind's
``surface-distance`` (surface elements weighted by their area) in voxels, and SDlogJ is
:func:`regkit.ops.jacobian.learn2reg_sdlogj`. The challenge's count of folds is always 0, since it counts
after clipping; ours is in :mod:`regkit.ops.jacobian`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from regkit.core.errors import RegkitError
from regkit.evaluate import dice, summarise
from regkit.ops.jacobian import learn2reg_sdlogj

Array = npt.NDArray[np.generic]


def learn2reg_measures(
    fixed_labels: Array,
    moving_labels: Array,
    displacement: npt.NDArray[np.float32],
    labels: Iterable[int],
    mask: Array | None = None,
) -> dict[str, float]:
    """What the challenge's evaluation says of one field.

    Args:
        fixed_labels, moving_labels: (x, y, z) whole numbers, on one grid.
        displacement: (x, y, z, 3) voxels; component 0 moves along array axis 0.
        labels: which are scored.
        mask: (x, y, z) of the fixed image, inside which SDlogJ is taken.

    Returns:
        ``dice`` and ``hd95_voxels``, means over the labels, and ``sdlogj``; without the package
        ``surface-distance`` no ``hd95_voxels``.

    Raises:
        RegkitError: if a shape does not fit.
    """
    shape = fixed_labels.shape
    if moving_labels.shape != shape or displacement.shape != (*shape, 3):
        raise RegkitError(
            f"Learn2Reg's measures need one grid: fixed labels {shape}, moving labels {moving_labels.shape}, "
            f"field {displacement.shape}"
        )
    at = np.indices(shape, dtype=np.float64) + np.moveaxis(displacement, -1, 0)
    warped = map_coordinates(moving_labels, at, order=0)
    overlap = dice(fixed_labels, warped, labels, moving_labels)
    measures = {"dice": summarise(overlap.values())}
    if importlib.util.find_spec("surface_distance") is not None:
        common = [label for label, value in overlap.items() if not np.isnan(value)]
        measures["hd95_voxels"] = summarise(_hd95(fixed_labels == label, warped == label) for label in common)
    measures["sdlogj"] = learn2reg_sdlogj(displacement, mask)
    return measures


def _hd95(fixed: npt.NDArray[np.bool_], warped: npt.NDArray[np.bool_]) -> float:
    if not warped.any():  # lost by the warp; the package fails there with numpy 2
        return float("inf")
    from surface_distance import compute_robust_hausdorff, compute_surface_distances

    with warnings.catch_warnings():
        # It still takes a name of scipy's that has moved.
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(compute_robust_hausdorff(compute_surface_distances(fixed, warped, np.ones(3)), 95.0))
