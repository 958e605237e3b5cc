"""The measures of a row: one code for all methods."""

from __future__ import annotations

from typing import Any

import SimpleITK as sitk

from regkit.bench.dataset import Case
from regkit.bench.learn2reg_metrics import learn2reg_measures
from regkit.core.errors import RegkitError
from regkit.evaluate import compare_labels, summarise, target_registration_error
from regkit.io.formats import to_learn2reg
from regkit.io.images import load_grid, load_labels, load_mask
from regkit.io.points import read_pairs
from regkit.ops.jacobian import folding_percent, jacobian_determinant, sd_log_jacobian
from regkit.warp import Warp, resample_labels


def measure(case: Case, warp: Warp) -> dict[str, Any]:
    """What :mod:`regkit.bench.result_rows` says a row has of a warp from the fixed to the moving image.

    Raises:
        RegkitError: if the warp is on another grid than the fixed image, or the labels or landmarks cannot be
            used.
    """
    fixed_grid = load_grid(case.fixed.image, "fixed image")
    if not warp.grid.same_as(fixed_grid):
        raise RegkitError(
            f"the warp lies on another grid ({warp.grid.size} voxels of {warp.grid.spacing} mm) than the "
            f"fixed image ({fixed_grid.size} of {fixed_grid.spacing} mm)"
        )
    determinant = jacobian_determinant(warp.field, warp.grid)
    found: dict[str, Any] = {
        "folding_percent": folding_percent(determinant),
        "sd_log_jacobian": sd_log_jacobian(determinant),
    }
    if case.labels and case.fixed.labels and case.moving.labels:
        found |= _of_labels(case, warp)
    if case.landmarks:
        fixed, moving = read_pairs(case.landmarks)
        if case.exchanged:
            fixed, moving = moving, fixed
        found["tre_mm"] = {
            "before": float(target_registration_error(fixed, moving).mean()),
            "after": float(target_registration_error(warp.transform_points(fixed), moving).mean()),
        }
    return found


def _of_labels(case: Case, warp: Warp) -> dict[str, Any]:
    assert case.fixed.labels and case.moving.labels
    fixed = load_labels(case.fixed.labels, "fixed labels", warp.grid)
    moving = load_labels(case.moving.labels, "moving labels")
    states = {"before": sitk.Transform(3, sitk.sitkIdentity), "after": warp.to_sitk()}
    before, after = (
        compare_labels(fixed, resample_labels(moving, fixed.grid, transform), case.labels, moving)
        for transform in states.values()
    )
    found: dict[str, Any] = {
        "mean_dice": {
            state: summarise(s.dice for s in scores) for state, scores in zip(states, (before, after))
        },
        "mean_hd95_mm": {
            state: summarise(s.hd95 for s in scores) for state, scores in zip(states, (before, after))
        },
        "labels": [
            {
                "label": new.label,
                "name": new.name,
                "dice_before": old.dice,
                "dice": new.dice,
                "hd95_before_mm": old.hd95,
                "hd95_mm": new.hd95,
            }
            for old, new in zip(before, after)
        ],
    }
    # The challenge's images have one shape, and it looks at no header.
    if moving.grid.size == fixed.grid.size and min(fixed.grid.size) >= 5:
        mask = None if case.fixed.mask is None else load_mask(case.fixed.mask, "fixed mask", fixed.grid)
        found["learn2reg"] = learn2reg_measures(
            fixed.array.T,
            moving.array.T,
            to_learn2reg(Warp(warp.field, warp.grid, moving.grid)),
            case.labels,
            None if mask is None else mask.array.T,
        )
    return found
