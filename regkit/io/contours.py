"""DICOM structure sets (RTSTRUCT): closed planar contours to label maps.

DICOM PS3.3 C.8.8.5 (structure set) and C.8.8.6 (ROI contour).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import FormatError
from regkit.core.geometry import Float64, Grid, transform_points
from regkit.io.segments import LayeredSegmentation, Packing, Segment

_IN_PLANE = 1.0  # mm of the voxels of a structure set without an image
_MARGIN = 2  # voxels around the contours there
_MAX_VOXELS = 1 << 30
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def rasterise(dataset: Any, image: Grid | None) -> LayeredSegmentation:
    """The regions of a structure set as labels, which are their ROI numbers.

    A voxel belongs to a region if its centre lies inside an odd number of its contours in the plane nearest
    to it, at most half a step of the contours away. That is what makes holes of inner contours.

    Args:
        dataset: of pydicom.
        image: the grid to lie on; where there is none, or the contours are not in the planes of its slices,
            a grid of 1 mm in the plane and the step of the contours.

    Raises:
        RegkitError: if there are no closed contours, or they are not parallel; without the file's name.
    """
    regions = _regions(dataset)
    if not regions:
        raise FormatError("is a structure set (RTSTRUCT) without closed planar contours")
    grid = image
    if grid is None or not _parallel(regions, grid):
        grid = _own_grid(regions)
    packing = Packing(grid.shape, max(segment.label for segment, _ in regions))
    step = _step([_planes(contours, grid) for _, contours in regions]) or 1.0
    for segment, contours in regions:
        planes = _planes(contours, grid)
        own = _step([planes]) or step
        filled: dict[float, npt.NDArray[np.bool_]] = {}
        parts = []
        places = np.array(sorted(planes))
        first = max(0, math.ceil(places[0] - own / 2 - 1e-6))
        last = min(grid.size[2] - 1, math.floor(places[-1] + own / 2 + 1e-6))
        for k in range(first, last + 1):
            place = float(places[np.abs(places - k).argmin()])
            if abs(place - k) > own / 2 + 1e-6:
                continue
            if place not in filled:
                filled[place] = fill(planes[place], (grid.size[1], grid.size[0]))
            parts.append((k, filled[place]))
        packing.put(segment.label, parts)
    if not packing.layers:
        raise FormatError("is a structure set (RTSTRUCT) none of whose regions lies in the image")
    return LayeredSegmentation(packing.layers, grid, tuple(segment for segment, _ in regions))


def fill(polygons: Sequence[Float64], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where the centre of a pixel lies inside an odd number of polygons.

    Args:
        polygons: corners (n, 2), (x, y) in pixels.
        shape: (y, x).
    """
    rows, columns = shape
    toggles = np.zeros((rows, columns + 1), np.int64)
    for corners in polygons:
        ends = np.roll(corners, -1, axis=0)
        low, high = np.minimum(corners[:, 1], ends[:, 1]), np.maximum(corners[:, 1], ends[:, 1])
        # Rows from the lower end on and before the upper one, so that a corner counts once.
        first = np.clip(np.ceil(low), 0, rows).astype(int)
        count = np.clip(np.ceil(high), 0, rows).astype(int) - first
        edge = np.repeat(np.arange(len(corners)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        share = (row - corners[edge, 1]) / (ends[edge, 1] - corners[edge, 1])
        x = corners[edge, 0] + share * (ends[edge, 0] - corners[edge, 0])
        np.add.at(toggles, (row, np.clip(np.ceil(x), 0, columns).astype(int)), 1)
    inside: npt.NDArray[np.bool_] = np.cumsum(toggles, axis=1)[:, :columns] % 2 == 1
    return inside


def _regions(dataset: Any) -> list[tuple[Segment, list[Float64]]]:
    """Each region that has closed contours, and their corners (n, 3), LPS mm."""
    names = {
        int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in dataset.get("StructureSetROISequence", [])
    }
    regions = []
    for roi in dataset.get("ROIContourSequence", []):
        contours = []
        for contour in roi.get("ContourSequence", None) or []:
            points = np.array(contour.get("ContourData", []), dtype=np.float64)
            if contour.get("ContourGeometricType", "CLOSED_PLANAR") in _CLOSED and points.size >= 9:
                contours.append(points.reshape(-1, 3))
        number = int(roi.ReferencedROINumber)
        if not all(np.isfinite(points).all() for points in contours):
            raise FormatError("is damaged: a contour has a value that is not finite")
        if contours and 0 < number < 1 << 32:
            colour = [float(v) / 255 for v in roi.get("ROIDisplayColor", None) or []]
            triple = (colour[0], colour[1], colour[2]) if len(colour) == 3 else None
            regions.append((Segment(number, names.get(number) or f"ROI {number}", triple), contours))
    return regions


def _parallel(regions: Sequence[tuple[Segment, list[Float64]]], grid: Grid) -> bool:
    """Whether all contours lie within slices of a grid, or between two."""
    return all(np.ptp(_slices(points, grid)) < 0.05 for _, contours in regions for points in contours)


def _slices(points: Float64, grid: Grid) -> Float64:
    return transform_points(grid.world_to_index, points)[:, 2]


def _planes(contours: Sequence[Float64], grid: Grid) -> dict[float, list[Float64]]:
    """The polygons (n, 2), in pixels, by the slice that they lie in, which need not be whole."""
    planes: dict[float, list[Float64]] = {}
    for points in contours:
        index = transform_points(grid.world_to_index, points)
        planes.setdefault(round(float(index[:, 2].mean()), 2), []).append(index[:, :2])
    return planes


def _step(all_planes: Sequence[dict[float, list[Float64]]]) -> float | None:
    """The smallest gap between planes of contours, in slices; None where there are no two."""
    gaps = [gap for planes in all_planes for gap in np.diff(sorted(planes)) if gap > 0.05]
    return float(min(gaps)) if gaps else None


def _own_grid(regions: Sequence[tuple[Segment, list[Float64]]]) -> Grid:
    """A grid whose slices are the planes of the contours."""
    every = [points for _, contours in regions for points in contours]
    normals = [_normal(points) for points in every]
    largest = max(normals, key=lambda normal: float(np.linalg.norm(normal)))
    if not np.linalg.norm(largest):
        raise FormatError("is a structure set (RTSTRUCT) whose contours have no area")
    normal = largest / np.linalg.norm(largest)
    normal *= np.sign(normal[np.abs(normal).argmax()])
    x = np.eye(3)[0] if abs(normal[0]) < 0.9 else np.eye(3)[1]
    x = x - normal * (x @ normal)
    x /= np.linalg.norm(x)
    turn = np.stack([x, np.cross(normal, x), normal], axis=1)
    local = [points @ turn for points in every]
    if max(float(np.ptp(points[:, 2])) for points in local) > 0.1:
        raise FormatError("is a structure set (RTSTRUCT) whose contours are not parallel")
    heights = np.unique(np.round([points[:, 2].mean() for points in local], 2))
    gaps = np.diff(heights)
    step = float(gaps[gaps > 0.05].min()) if (gaps > 0.05).any() else 1.0
    corners = np.concatenate(local)
    low = np.array([*corners[:, :2].min(0) - _MARGIN * _IN_PLANE, heights[0]])
    high = np.array([*corners[:, :2].max(0) + _MARGIN * _IN_PLANE, heights[-1]])
    spacing = (_IN_PLANE, _IN_PLANE, step)
    size = tuple(max(4, math.ceil(round(float(n), 3)) + 1) for n in (high - low) / spacing)
    if math.prod(size) > _MAX_VOXELS:
        raise FormatError(f"is damaged: its contours span {' x '.join(map(str, size))} voxels")
    return Grid(size, spacing, tuple(turn @ low), tuple(turn.ravel()))  # type: ignore[arg-type]


def _normal(points: Float64) -> Float64:
    """Twice the area of a polygon along its normal, by Newell's sum."""
    around = points - points[0]
    total: Float64 = np.cross(around, np.roll(around, -1, axis=0)).sum(axis=0)
    return total
