"""The slices of an HTML report: three planes of the patient, each picture a data URI.

Only the points of a slice are sampled, so that memory does not grow with the volumes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_erosion, gaussian_gradient_magnitude, gaussian_laplace, map_coordinates

from regkit.core.geometry import Float64, Grid, slab_index, transform_points
from regkit.io.images import Volume
from regkit.ops.jacobian import triple_product
from regkit.viz.figure import blended, diverging, volume_change
from regkit.viz.planes import PLANES, Picture, Plane, tone, view, window

if TYPE_CHECKING:
    from regkit.registration_result import Registration

SLICES = 13  # of each plane
_LINES = 30  # of the warp grid along the longest side of the box, about
# Pixels along the longest side of the box shown, and quality of the JPEG: the first that is small enough.
_SIZES = ((280, 80), (280, 60), (220, 50), (160, 40), (110, 30))
_BUDGET = 2_400_000  # bytes of all pictures, of the 3 MB that a report may have
_MARGIN = 0.06  # of the box at either end without a slice
_THIN = 128  # voxels along a side are enough to place a view and to choose a window
_THINNER = 48  # ... and to choose a scale of colours
_EDGE_BLUR, _EDGE_SHARE = 1.5, 0.3  # pixels, and of the steepest edges of the slice
_LINE, _EDGE = (255, 224, 102), (255, 180, 84)
# Patient axes x, y, z in LPS: the letters towards lower and towards higher values.
_ENDS = (("R", "L"), ("A", "P"), ("I", "S"))


@dataclass(frozen=True)
class Slices:
    """The pictures of one plane.

    Args:
        plane: which.
        size: pixels (width, height) of each picture; they are square in mm.
        marks: letters at the left, right, top and bottom.
        first: the slice to show first, through what is most seen.
        pictures: for each slice the data URI of every layer ("fixed", "before", "after", "edges", "grid",
            "jacobian" and, where there is one, "doubt") and under "where" its place.
    """

    plane: Plane
    size: tuple[int, int]
    marks: dict[str, str]
    first: int
    pictures: list[dict[str, str]]


@dataclass(frozen=True)
class Scales:
    """What the ends of the colours stand for.

    Args:
        octaves: doublings of volume at either end of the colours of the Jacobian.
        doubt: mm at the upper end of the colours of the doubt; None where it was not measured.
        lattice: mm between the lines of the warp grid.
    """

    octaves: float
    doubt: float | None
    lattice: float


def render(result: Registration, fixed: Volume) -> tuple[list[Slices], Scales]:
    """All slices of a registration, as large and as good as the file's limit allows."""
    painter = _Painter(result, fixed)
    planes: list[Slices] = []
    for pixels, quality in _SIZES:
        planes = [painter.plane(plane, pixels, quality) for plane in PLANES]
        if sum(len(uri) for p in planes for slice_ in p.pictures for uri in slice_.values()) <= _BUDGET:
            break
    return planes, painter.scales


def values_at(array: npt.NDArray[Any], index: Float64) -> Picture:
    """Trilinear values at index coordinates (..., 3: x, y, z); NaN beyond half a voxel from the last one."""
    inside = np.all((index >= -0.5) & (index <= np.asarray(array.shape[::-1]) - 0.5), axis=-1)
    values = map_coordinates(array, np.moveaxis(index[..., ::-1], -1, 0), np.float32, order=1, mode="nearest")
    values[~inside] = np.nan
    return values


def jacobian_at(field: npt.NDArray[np.float32], grid: Grid, index: Float64) -> Picture:
    """:func:`regkit.ops.jacobian.jacobian_determinant` at the voxels nearest to index coordinates (..., 3).

    NaN where there is no voxel.
    """
    last = np.asarray(grid.size) - 1
    nearest = np.rint(index).astype(int)
    inside = np.all((nearest >= 0) & (nearest <= last), axis=-1)
    nearest = nearest[inside]
    matrix = grid.index_to_world[:3, :3]
    columns = []  # derivatives of the map by x, y and z, (n, 3)
    for axis in range(3):
        low, high = nearest.copy(), nearest.copy()
        low[:, axis] = np.maximum(low[:, axis] - 1, 0)
        high[:, axis] = np.minimum(high[:, axis] + 1, last[axis])
        ends = [field[at[:, 2], at[:, 1], at[:, 0]].astype(np.float64) for at in (low, high)]
        step = np.maximum(high[:, axis] - low[:, axis], 1)[:, None]
        columns.append(matrix[:, axis] + (ends[1] - ends[0]) / step)
    values = np.full(index.shape[:-1], np.nan, np.float32)
    values[inside] = triple_product(*columns) / np.linalg.det(matrix)
    return values


def edges_of(picture: Picture) -> npt.NDArray[np.bool_]:
    """Outlines in grey values 0 to 1: zero crossings of the Laplacian where the slope is steep."""
    bent = gaussian_laplace(picture, _EDGE_BLUR) > 0
    slope = gaussian_gradient_magnitude(picture, _EDGE_BLUR)
    return _steps(bent) & (slope > max(_EDGE_SHARE * float(np.percentile(slope, 99)), 0.005))


def round_step(minimum: float) -> float:
    """The next of 1, 2, 5, 10 and so on, and of their tenths."""
    decade = 10.0 ** np.floor(np.log10(minimum))
    return float(next(step * decade for step in (1, 2, 5, 10) if step * decade >= minimum * (1 - 1e-9)))


def lattice_of(right: Float64, down: Float64, step: float) -> npt.NDArray[np.bool_]:
    """Where either of two coordinates passes a multiple of ``step``, all in mm."""
    lines = np.zeros(right.shape, bool)
    for coordinate in (right, down):
        known = np.isfinite(coordinate)
        lines |= _steps(np.floor(np.where(known, coordinate, 0) / step)) & known
    return lines


def _steps(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Pixels whose value is not that of the next one to the right or below."""
    steps = np.zeros(values.shape, bool)
    steps[:, :-1] |= values[:, :-1] != values[:, 1:]
    steps[:-1] |= values[:-1] != values[1:]
    return steps


def most_octaves(result: Registration) -> float:
    """Doublings of volume at either end of the colours of the Jacobian."""
    warp = result.warp
    few = [np.linspace(0, n - 1, min(n, _THINNER)) for n in warp.grid.size]
    index = np.stack(np.meshgrid(*few, indexing="ij"), axis=-1)
    changes = np.abs(np.log2(np.maximum(jacobian_at(warp.field, warp.grid, index), 1e-3)))
    return float(np.clip(np.percentile(changes, 99), 0.1, 2))


def most_doubt(result: Registration) -> float | None:
    """Millimetres at the upper end of the colours of the doubt; None where it was not measured."""
    if result.doubt is None:
        return None
    values = result.doubt.image.cpu().numpy()
    told = values[values < values.max()]  # the largest stands for places of which nothing is known
    return max(float(np.percentile(told if told.size else values, 95)), 1e-6)


class _Painter:
    """Paints slices of one registration."""

    def __init__(self, result: Registration, fixed: Volume) -> None:
        self.result, self.fixed = result, fixed
        thin = thinned(fixed)
        self.box, self.middle = view(thin, None)
        self.fixed_window = window(thin.array)
        self.moving_window = window(thinned(result.moving).array)
        self.back = np.linalg.inv(result.linear)
        self.scales = Scales(
            most_octaves(result),
            most_doubt(result),
            round_step(float((self.box[1] - self.box[0]).max()) / _LINES),
        )

    def plane(self, plane: Plane, pixels: int, quality: int) -> Slices:
        across = 3 - plane.right - plane.down
        low, high = self.box[:, across]
        places = np.linspace(low + _MARGIN * (high - low), high - _MARGIN * (high - low), SLICES)
        pixel = float((self.box[1] - self.box[0]).max()) / pixels
        pictures = []
        for place in places:
            middle = self.middle.copy()
            middle[across] = place
            grid = plane.grid(self.box, middle, pixel)
            layers = dict(self._layers(plane, grid, quality))
            pictures.append(layers | {"where": f"{_ENDS[across][int(place > 0)]} {abs(place):.1f} mm"})
        upright = ("S", "I") if plane.down == 2 else ("A", "P")
        marks = dict(zip(("left", "right", "top", "bottom"), (*plane.letters, *upright), strict=True))
        first = int(np.argmin(np.abs(places - self.middle[across])))
        return Slices(plane, grid.size[:2], marks, first, pictures)

    def _layers(self, plane: Plane, grid: Grid, quality: int) -> Iterator[tuple[str, str]]:
        warp, moving, linear_back = self.result.warp, self.result.moving, self.back
        points = transform_points(grid.index_to_world, slab_index(grid, 0, 1)[0])
        index = transform_points(warp.grid.world_to_index, points)
        there = points + np.stack([values_at(warp.field[..., k], index) for k in range(3)], axis=-1)

        background = seen_at(self.fixed, points)
        fixed = tone(background, self.fixed_window)
        yield "fixed", _jpeg(fixed, quality)
        yield "before", _jpeg(tone(seen_at(moving, points), self.moving_window), quality)
        yield "after", _jpeg(tone(seen_at(moving, there), self.moving_window), quality)
        yield "edges", _lines(edges_of(fixed) & _inner(background), _EDGE)
        straight = transform_points(linear_back, there)
        lattice = lattice_of(straight[..., plane.right], straight[..., plane.down], self.scales.lattice)
        yield "grid", _lines(lattice, _LINE)
        determinant = jacobian_at(warp.field, warp.grid, index)
        yield "jacobian", _jpeg(volume_change(determinant, fixed, self.scales.octaves), quality)
        doubt = self.result.doubt
        if doubt is not None and self.scales.doubt is not None:
            array = doubt.image.cpu().numpy()
            # It is known between the middles of the outer cells and taken to go on beyond, as in
            # Registration.uncertainty.
            doubt_index = transform_points(doubt.grid.world_to_index, points)
            doubt_index = np.clip(doubt_index, 0, np.asarray(array.shape[::-1]) - 1)
            value = values_at(array, doubt_index) / self.scales.doubt
            value[np.isnan(there[..., 0])] = np.nan
            yield "doubt", _jpeg(blended(diverging(2 * value - 1), fixed, value), quality)


def seen_at(volume: Volume, points: Float64) -> Picture:
    """Values of a volume at LPS mm (..., 3); NaN where it has no voxels."""
    return values_at(volume.array, transform_points(volume.grid.world_to_index, points))


def _inner(picture: Picture) -> npt.NDArray[np.bool_]:
    """Pixels away from where the image ends, which would be an edge of its own."""
    return binary_erosion(np.isfinite(picture), iterations=5, border_value=1)


def thinned(volume: Volume) -> Volume:
    """Every few voxels of the volume, at most 128 along each side, without a copy."""
    steps = [-(-n // _THIN) for n in volume.grid.size]
    array = volume.array[:: steps[2], :: steps[1], :: steps[0]]
    spacing = tuple(step * s for step, s in zip(steps, volume.grid.spacing, strict=True))
    grid = Grid(array.shape[::-1], spacing, volume.grid.origin, volume.grid.direction)  # type: ignore[arg-type]
    return Volume(array, grid, volume.name)


def _jpeg(picture: Picture, quality: int) -> str:
    """A picture (rows, columns) or (rows, columns, 3) of 0 to 1 as a data URI."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return _uri("jpeg", stream)


def _lines(mask: npt.NDArray[np.bool_], colour: tuple[int, int, int]) -> str:
    """A mask in one colour, transparent beside it, as a data URI."""
    image = Image.frombytes("P", mask.shape[::-1], mask.astype(np.uint8).tobytes())
    image.putpalette((0, 0, 0, *colour))
    stream = io.BytesIO()
    image.save(stream, "PNG", bits=1, transparency=0)
    return _uri("png", stream)


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
