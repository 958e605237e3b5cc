"""What a user knows of a pair beside its two images: landmarks, labels that guide, further images of each."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid
from regkit.io.images import ImageLike, Volume, load_labels
from regkit.io.points import read_points
from regkit.ops.resample import Source
from regkit.warp import contains

PointsLike = str | os.PathLike[str] | npt.ArrayLike
"""Landmarks: a file that :func:`regkit.io.points.read_points` reads, or an array (n, 3), LPS mm."""


def landmark_pairs(
    fixed: PointsLike | None, moving: PointsLike | None, grid: Grid
) -> tuple[Float64, Float64] | None:
    """Landmarks of both images, row by row; None where none are given.

    Args:
        grid: of the fixed image; pairs beyond it are left out, with a warning.

    Returns:
        (n, 3) each, LPS mm.

    Raises:
        RegkitError: if only one side is given, their numbers differ, or all lie beside the fixed image.
    """
    if fixed is None and moving is None:
        return None
    if fixed is None or moving is None:
        present, other = ("moving", "fixed") if fixed is None else ("fixed", "moving")
        raise RegkitError(f"{present} landmarks need {other} landmarks: give both, in the same order")
    ours, theirs = _points(fixed, "fixed landmarks"), _points(moving, "moving landmarks")
    if len(ours) != len(theirs):
        raise RegkitError(
            f"there are {len(ours)} fixed landmarks and {len(theirs)} moving ones: each needs its partner, "
            "in the same order"
        )
    inside = contains(grid, ours)
    if not inside.any():
        raise RegkitError("all fixed landmarks lie beside the fixed image; are they in LPS mm?")
    if not inside.all():
        warnings.warn(
            f"{np.count_nonzero(~inside)} of {len(ours)} landmarks lie beside the fixed image: they do not "
            "count",
            stacklevel=2,
        )
    return ours[inside], theirs[inside]


def _points(points: PointsLike, what: str) -> Float64:
    if isinstance(points, str | os.PathLike):
        return read_points(points)
    try:
        array = np.array(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RegkitError(f"{what} must be a file or numbers of the shape (n, 3)") from error
    if array.ndim != 2 or array.shape[1] != 3 or not len(array) or not np.isfinite(array).all():
        raise RegkitError(f"{what} must be finite and of the shape (n, 3), got {array.shape}")
    return array


def distance(ours: Float64, theirs: Float64) -> float:
    """Mean distance of landmarks, mm."""
    return float(np.linalg.norm(ours - theirs, axis=1).mean())


def guides(
    maps: tuple[ImageLike, ImageLike] | None, images: tuple[Volume, Volume], device: torch.device
) -> tuple[list[tuple[Source, Source]], list[int]]:
    """Label maps that guide, with the labels that both have numbered 1, 2, ...

    Args:
        maps: of the fixed and of the moving image, each on any grid that shares the world of its image.
        images: the fixed and the moving one.

    Returns:
        One pair of maps, none where none are given; and the labels as they are numbered in the files.

    Raises:
        RegkitError: if they share no label.
    """
    if maps is None:
        return [], []
    volumes = [
        load_labels(one, f"{side} guide labels", image=image.grid)
        for one, side, image in zip(maps, ("fixed", "moving"), images)
    ]
    ours, theirs = (np.unique(one.array) for one in volumes)
    shared = [int(label) for label in np.intersect1d(ours, theirs) if label]
    if not shared:
        raise RegkitError(
            f"the guide labels share no label: the fixed map has {_listed(ours)}, the moving one "
            f"{_listed(theirs)}"
        )
    sources = []
    for one in volumes:
        numbered = np.zeros(one.array.shape, np.float32)
        for number, label in enumerate(shared, 1):
            numbered[one.array == label] = number
        sources.append(Source(torch.from_numpy(numbered).to(device), None, one.grid, labels=True))
    return [(sources[0], sources[1])], shared


def _listed(labels: npt.NDArray[np.generic]) -> str:
    return ", ".join(str(label) for label in labels[labels != 0][:20])


def images_of(image: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """The images of one side: several in a list or tuple, or one."""
    images: list[ImageLike] = [*image] if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]
    if not images:
        raise RegkitError("there is no image: the list is empty")
    return images


def pairs_of(fixed: Sequence[ImageLike], moving: Sequence[ImageLike]) -> list[tuple[ImageLike, ImageLike]]:
    """Which image is compared with which: in their order; a side that has one image has it compared with all.

    Raises:
        RegkitError: if both sides have several, and not as many.
    """
    if len(fixed) != len(moving) and 1 not in (len(fixed), len(moving)):
        raise RegkitError(
            f"there are {len(fixed)} fixed and {len(moving)} moving images: give as many of each, in the "
            "order in which they are to be compared, or only one of either"
        )
    count = max(len(fixed), len(moving))
    return [(fixed[min(k, len(fixed) - 1)], moving[min(k, len(moving) - 1)]) for k in range(count)]
