"""The measures of a row: one code for all methods."""

from __future__ import annotations

from typing import Any

import SimpleITK as sitk

from regkit.bench.dataset import Case
from regkit.bench.learn2reg_metrics import learn2reg_measures
from regkit.check import agreement
from regkit.core.choices import Stage
from regkit.core.errors import RegkitError
from regkit.evaluate import LabelScores, LandmarkErrors
from regkit.io.formats import to_learn2reg
from regkit.io.images import load_grid, load_image, load_labels, load_mask
from regkit.io.points import read_pairs
from regkit.ops.jacobian import Smoothness, jacobian_determinant
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
    measures: dict[str, Any] = Smoothness.of(jacobian_determinant(warp.field, warp.grid)).to_dict()
    if case.labels and case.fixed.labels and case.moving.labels:
        measures |= _of_labels(case, warp)
    elif not case.landmarks:
        measures["agreement"] = _of_images(case, warp)
    if case.landmarks:
        fixed, moving = read_pairs(case.landmarks)
        if case.exchanged:
            fixed, moving = moving, fixed
        errors = LandmarkErrors.of(fixed, moving, warp)
        measures["tre_mm"] = {"before": errors.before.mean, "after": errors.after and errors.after.mean}
    return measures


def _of_images(case: Case, warp: Warp) -> dict[str, float]:
    """How well the images agree, which needs nothing else: by the headers alone, and through the warp."""
    fixed, moving = (
        load_image(case.fixed.image, "fixed image"),
        load_image(case.moving.image, "moving image"),
    )
    before, after = agreement(fixed, moving, lambda points: points, warp.transform_points)
    return {"before": before, "after": after}


def _of_labels(case: Case, warp: Warp) -> dict[str, Any]:
    assert case.fixed.labels and case.moving.labels
    fixed = load_labels(case.fixed.labels, "fixed labels", warp.grid)
    moving = load_labels(case.moving.labels, "moving labels")
    transforms: dict[Stage, sitk.Transform] = {
        "before": sitk.Transform(3, sitk.sitkIdentity), "after": warp.to_sitk()
    }  # fmt: skip
    moved = {stage: resample_labels(moving, fixed.grid, step) for stage, step in transforms.items()}
    measures = LabelScores.of(fixed, moved, case.labels, moving).to_dict()
    # The challenge's images have one shape, and it looks at no header.
    if moving.grid.size == fixed.grid.size and min(fixed.grid.size) >= 5:
        mask = None if case.fixed.mask is None else load_mask(case.fixed.mask, "fixed mask", fixed.grid)
        measures["learn2reg"] = learn2reg_measures(
            fixed.array.T,
            moving.array.T,
            to_learn2reg(Warp(warp.field, warp.grid, moving.grid)),
            case.labels,
            None if mask is None else mask.array.T,
        )
    return measures
