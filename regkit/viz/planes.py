"""Slices of volumes as pictures, along the patient's axes whatever the axes of the images.

In radiological convention: the patient's right on the left, head up, and the front on the left in the
sagittal plane. Millimetres are square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from regkit.core.geometry import Float64, Grid, transform_points
from regkit.core.intensity import is_ct
from regkit.io.images import Volume

Picture = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plane:
    """A plane of the patient: world axes to the right and down, and the letters at its left and right."""

    name: str
    right: int
    down: int
    letters: tuple[str, str]

    def grid(self, box: Float64, middle: Float64, pixel: float) -> Grid:
        """One slice of a box (2, 3: lower and upper corner, LPS mm) at ``middle``, its rows running down."""
        across = 3 - self.right - self.down
        direction = np.zeros((3, 3))
        # Up is the head (z), or the front (-y) in the axial plane; LPS y already runs to the back.
        sign = -1.0 if self.down == 2 else 1.0
        direction[self.right, 0], direction[self.down, 1] = 1, sign
        direction[across, 2] = 1
        direction[across, 2] = np.linalg.det(direction)
        origin = middle.copy()
        origin[self.right] = box[0, self.right]
        origin[self.down] = box[1 if sign < 0 else 0, self.down]
        size = np.maximum(np.round((box[1] - box[0]) / pixel), 1).astype(int)
        return Grid(
            (size[self.right], size[self.down], 1), (pixel,) * 3, tuple(origin), tuple(direction.ravel())
        )


PLANES = (
    Plane("axial", 0, 1, ("R", "L")),
    Plane("coronal", 0, 2, ("R", "L")),
    Plane("sagittal", 1, 2, ("A", "P")),
)


def view(fixed: Volume, labels: Volume | None) -> tuple[Float64, Float64]:
    """The box that holds what is seen of the fixed image, and the point through which the planes go."""
    low, high = window(fixed.array)
    points = _points(fixed, fixed.array > low + 0.15 * (high - low))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in fixed.grid.size])).reshape(3, -1).T
    field = transform_points(fixed.grid.index_to_world, corners)
    if not len(points):
        points = field
    # A thousandth of the voxels may be noise or the table.
    low_corner, high_corner = np.percentile(points, (0.1, 99.9), axis=0)
    box = np.clip([low_corner - 8, high_corner + 8], field.min(axis=0), field.max(axis=0))
    box[1] = np.maximum(box[1], box[0] + 1)
    middle = np.median(points, axis=0)
    if labels is not None and labels.array.any():
        middle = _richest(labels)
    return box, np.clip(middle, box[0], box[1])


def _richest(labels: Volume) -> Float64:
    """On each world axis the place whose plane meets the most labels; of several the most central."""
    mask = labels.array > 0
    points, values = _points(labels, mask), labels.array[mask]
    values = values[:: _thinning(len(values))]
    middle = np.median(points, axis=0)
    step = 2 * max(labels.grid.spacing)
    for axis in range(3):
        slabs = np.floor(points[:, axis] / step).astype(int)
        pairs, counts = np.unique(np.stack([slabs, values]), axis=1, return_counts=True)
        met, richness = np.unique(pairs[0][counts >= 5], return_counts=True)
        if met.size:
            best = (met[richness == richness.max()] + 0.5) * step
            middle[axis] = best[np.argmin(np.abs(best - middle[axis]))]
    return middle


def _points(volume: Volume, mask: npt.NDArray[np.bool_]) -> Float64:
    """LPS mm of the voxels in a mask, (n, 3), thinned."""
    index = np.argwhere(mask)[:, ::-1]
    return transform_points(volume.grid.index_to_world, index[:: _thinning(len(index))])


def _thinning(count: int) -> int:
    """Every how manieth of so many voxels suffices to place a view."""
    return max(1, count // 200_000)


def window(array: npt.NDArray[Any]) -> tuple[float, float]:
    """The intensities shown as black and white."""
    thin = array[::2, ::2, ::2].astype(np.float32)
    if is_ct(array):
        # Soft tissue, unless much of the patient is lung.
        patient = thin[thin > -980]
        return (-1050.0, 250.0) if np.mean(patient < -500) > 0.25 else (-180.0, 280.0)
    thin = thin[thin > thin.min()]
    if not thin.size:
        return float(array.min()), float(array.min()) + 1
    low, high = np.percentile(thin, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def cut(volume: Volume, grid: Grid, labels: bool = False) -> Picture:
    """A volume on the one slice of ``grid``, (rows, columns); NaN (labels: 0) where it has no voxels."""
    image = volume.to_sitk()
    if not labels:
        image = sitk.Cast(image, sitk.sitkFloat32)
    method = sitk.sitkLabelLinear if labels else sitk.sitkLinear
    outside = 0.0 if labels else float("nan")
    slice_ = sitk.Resample(
        image, grid.size, sitk.Transform(), method, grid.origin, grid.spacing, grid.direction, outside
    )
    return sitk.GetArrayFromImage(slice_)[0].astype(np.float32)


def tone(picture: Picture, window: tuple[float, float]) -> Picture:
    """Grey values 0 to 1; black where there are none."""
    return np.nan_to_num(np.clip((picture - window[0]) / (window[1] - window[0]), 0, 1))


def grey(picture: Picture) -> Picture:
    return np.repeat(picture[..., None], 3, axis=-1)
