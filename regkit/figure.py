"""One picture of a registration: three planes, before and after, with labels and change of volume.

Planes are cut along the patient's axes whatever the axes of the images, in radiological convention: the
patient's right on the left, head up, and the front on the left in the sagittal plane. Millimetres are square.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from regkit.errors import RegkitError
from regkit.geometry import Float64, Grid, transform_points
from regkit.images import Volume
from regkit.intensity import is_ct
from regkit.outputs import atomic_path, check_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = npt.NDArray[np.float32]

_INK, _PALE, _DIM = "#0b0e11", "#e9edf0", "#8b96a0"
_FOLD = (1.0, 0.1, 0.85)
_PIXELS = 300  # along the longest side of the box shown
_TILE = 29  # pixels, a square of the checkerboard
_WIDTH = 13.0  # inches of five columns
_DPI = 130

# Apart from one another in hue or lightness; a label keeps its colour in every panel and every picture.
_PALETTE = (
    "#ffb454", "#7ad7f0", "#ff6f91", "#9be564", "#c792ea", "#ffe066", "#4fd1a5", "#ff4d4d",
    "#5b8cff", "#f5f0dc", "#e58f65", "#00b8a9", "#d0d9e2", "#b0bec5", "#f78fdc", "#a3a847",
)  # fmt: skip


@dataclass(frozen=True)
class _Plane:
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


_PLANES = (
    _Plane("axial", 0, 1, ("R", "L")),
    _Plane("coronal", 0, 2, ("R", "L")),
    _Plane("sagittal", 1, 2, ("A", "P")),
)


def registration_figure(
    fixed: Volume,
    before: Volume,
    after: Volume,
    path: str | os.PathLike[str],
    fixed_labels: Volume | None = None,
    before_labels: Volume | None = None,
    after_labels: Volume | None = None,
    determinant: Volume | None = None,
    title: str = "",
) -> None:
    """Write a PNG: fixed, moving by its header, moving registered, checkerboard, and change of volume.

    Lines are always the outlines of the fixed labels, areas are the labels of the moving image. Where areas
    fill the lines, the registration is right.

    Args:
        before: the moving image as its header places it, on any grid; black where it has no voxels.
        after: the moving image registered.
        path: must end in .png.
        fixed_labels, before_labels, after_labels: label maps, each in the space of its image.
        determinant: Jacobian determinant of the warp; without it the last column is left out.

    Raises:
        RegkitError: if matplotlib is missing or the file cannot be written.
    """
    target = check_output(path, (".png",))
    if importlib.util.find_spec("matplotlib") is None:
        raise RegkitError("pictures need matplotlib: pip install matplotlib")

    box, middle = _view(fixed, fixed_labels)
    pixel = float((box[1] - box[0]).max()) / _PIXELS
    grids = [plane.grid(box, middle, pixel) for plane in _PLANES]
    headings = [
        ("fixed", fixed.name),
        ("moving, by its header", before.name),
        ("moving, registered", after.name),
        ("checkerboard", "fixed and registered"),
    ]
    if determinant is not None:
        headings.append(("volume change", "of tissue, fixed to moving"))
        octaves = _octaves(determinant)
    sheet = _Sheet([grid.size[:2] for grid in grids], len(headings), bool(title))
    fixed_window, moving_window = _window(fixed.array), _window(after.array)
    for row, (plane, grid) in enumerate(zip(_PLANES, grids, strict=True)):
        one = _tone(_cut(fixed, grid), fixed_window)
        two, three = (_tone(_cut(volume, grid), moving_window) for volume in (before, after))
        lines = None if fixed_labels is None else _cut(fixed_labels, grid, labels=True)
        for column, (picture, areas) in enumerate(((one, None), (two, before_labels), (three, after_labels))):
            ax = sheet.panel(row, column)
            _show(ax, _grey(picture))
            if areas is not None:
                _fill(ax, _cut(areas, grid, labels=True))
            if lines is not None:
                _outline(ax, lines)
        _show(sheet.panel(row, 3), _grey(_checkerboard(one, three)))
        if determinant is not None:
            ax = sheet.panel(row, 4)
            _show(ax, _volume_change(_cut(determinant, grid), one, octaves))
            if lines is not None:
                _outline(ax, lines, colour=_DIM)
        sheet.name_row(row, plane)
    for column, (heading, caption) in enumerate(headings):
        sheet.name_column(column, heading, caption)
    if title:
        sheet.title(title)
    if fixed_labels is not None:
        sheet.note("lines: outlines of the fixed labels" + (", areas: moving labels" if after_labels else ""))
    if determinant is not None:
        sheet.scale(octaves)
    with atomic_path(target) as temporary:
        sheet.figure.savefig(temporary, dpi=_DPI, facecolor=_INK)


class _Sheet:
    """The page: where panels and words go, reckoned in pixels of a panel from the top left."""

    def __init__(self, sizes: list[tuple[int, int]], columns: int, titled: bool) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._sizes = sizes
        # At least three fifths of the highest panel: headings need room above a slim neck or leg.
        self._cell = max(*(width for width, _ in sizes), 0.6 * max(height for _, height in sizes))
        self._gap, self._side = 0.02 * self._cell, 0.06 * self._cell
        self._head = (0.30 if titled else 0.20) * self._cell
        self._width = self._side + columns * (self._cell + self._gap)
        self._foot = self._head + sum(height + self._gap for _, height in sizes)
        self._height = self._foot + 0.10 * self._cell
        inches = _WIDTH * columns / 5
        self.figure = Figure((inches, inches * self._height / self._width), dpi=_DPI, facecolor=_INK)
        FigureCanvasAgg(self.figure)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = 1 - (top + height) / self._height
        place = (left / self._width, bottom, width / self._width, height / self._height)
        ax = self.figure.add_axes(place)
        ax.set_axis_off()
        return ax

    def _text(self, left: float, top: float, text: str, **how: Any) -> None:
        self.figure.text(
            left / self._width, 1 - top / self._height, text, **{"color": _DIM, "size": 7, **how}
        )

    def _left(self, column: int) -> float:
        return self._side + column * (self._cell + self._gap)

    def _top(self, row: int) -> float:
        return self._head + sum(height + self._gap for _, height in self._sizes[:row])

    def panel(self, row: int, column: int) -> Axes:
        width, height = self._sizes[row]
        return self._axes(self._left(column) + (self._cell - width) / 2, self._top(row), width, height)

    def name_row(self, row: int, plane: _Plane) -> None:
        from matplotlib.patheffects import withStroke

        width, height = self._sizes[row]
        middle = self._top(row) + height / 2
        self._text(0.5 * self._side, middle, plane.name, size=8, rotation=90, ha="center", va="center")
        rim = withStroke(linewidth=1.5, foreground=_INK)  # to be legible on fat and bone
        edge = self._left(0) + (self._cell - width) / 2
        for left, letter, align in (
            (edge + 4, plane.letters[0], "left"),
            (edge + width - 4, plane.letters[1], "right"),
        ):
            self._text(left, middle, letter, color=_PALE, ha=align, va="center", path_effects=[rim])

    def name_column(self, column: int, heading: str, caption: str) -> None:
        middle = self._left(column) + self._cell / 2
        self._text(middle, self._head - 0.105 * self._cell, heading, color=_PALE, size=9.5, ha="center")
        self._text(middle, self._head - 0.035 * self._cell, caption, ha="center")

    def title(self, text: str) -> None:
        self._text(self._side, 0.045 * self._cell, text, color=_PALE, size=12, va="top", weight="bold")

    def note(self, text: str) -> None:
        self._text(self._side, self._foot + 0.045 * self._cell, text)

    def scale(self, octaves: float) -> None:
        """The colour bar of the last column."""
        ax = self._axes(
            self._left(4) + 0.25 * self._cell,
            self._foot + 0.01 * self._cell,
            0.5 * self._cell,
            0.03 * self._cell,
        )
        ramp = np.linspace(-1, 1, 200, dtype=np.float32)[None]
        ax.imshow(_diverging(ramp), aspect="auto", extent=(-1, 1, 0, 1))
        for at in (-1, 0, 1):
            ax.text(at, -0.4, f"\u00d7{2 ** (at * octaves):.2g}", color=_DIM, size=7, ha="center", va="top")


def _view(fixed: Volume, labels: Volume | None) -> tuple[Float64, Float64]:
    """The box that holds what is seen of the fixed image, and the point through which the planes go."""
    low, high = _window(fixed.array)
    seen = _points(fixed, fixed.array > low + 0.15 * (high - low))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in fixed.grid.size])).reshape(3, -1).T
    field = transform_points(fixed.grid.index_to_world, corners)
    if not len(seen):
        seen = field
    # A thousandth of the voxels may be noise or the table.
    low_corner, high_corner = np.percentile(seen, (0.1, 99.9), axis=0)
    box = np.clip([low_corner - 8, high_corner + 8], field.min(axis=0), field.max(axis=0))
    box[1] = np.maximum(box[1], box[0] + 1)
    middle = np.median(seen, axis=0)
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


def _window(array: npt.NDArray[Any]) -> tuple[float, float]:
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


def _cut(volume: Volume, grid: Grid, labels: bool = False) -> Picture:
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


def _tone(picture: Picture, window: tuple[float, float]) -> Picture:
    """Grey values 0 to 1; black where there are none."""
    return np.nan_to_num(np.clip((picture - window[0]) / (window[1] - window[0]), 0, 1))


def _grey(picture: Picture) -> Picture:
    return np.repeat(picture[..., None], 3, axis=-1)


def _checkerboard(one: Picture, other: Picture) -> Picture:
    rows, columns = np.indices(one.shape) // _TILE
    return np.where((rows + columns) % 2 == 0, one, other)


def _octaves(determinant: Volume) -> float:
    """How many doublings of volume the ends of the colour scale stand for."""
    changes = np.abs(np.log2(np.maximum(determinant.array[::2, ::2, ::2], 1e-3)))
    return float(np.clip(np.percentile(changes, 99), 0.1, 2))


def _volume_change(determinant: Picture, fixed: Picture, octaves: float) -> Picture:
    """The determinant in colour, (rows, columns, 3), with the fixed image shining through."""
    change = np.log2(np.maximum(determinant, 1e-3)) / octaves
    picture = _diverging(change) * (0.4 + 0.6 * fixed[..., None])
    picture[determinant <= 0] = _FOLD
    picture[np.isnan(determinant)] = 0
    return picture


def _diverging(change: Picture) -> Picture:
    """Colours of -1 (shrinks, blue) over 0 (grey) to 1 (grows, orange)."""
    knots = np.array([[0.05, 0.52, 1.0], [0.40, 0.42, 0.45], [1.0, 0.50, 0.02]])
    value = np.clip(np.nan_to_num(change), -1, 1)
    return np.stack([np.interp(value, (-1, 0, 1), channel) for channel in knots.T], axis=-1).astype(
        np.float32
    )


def _colour(label: int) -> str:
    return _PALETTE[(label - 1) % len(_PALETTE)]


def _show(ax: Axes, picture: Picture) -> None:
    ax.imshow(picture, vmin=0, vmax=1, interpolation="bilinear", aspect="auto")


def _fill(ax: Axes, labels: Picture) -> None:
    from matplotlib.colors import to_rgba

    layer = np.zeros((*labels.shape, 4))
    for label in _present(labels):
        layer[labels == label] = to_rgba(_colour(label), 0.36)
    ax.imshow(layer, interpolation="bilinear", aspect="auto")


def _outline(ax: Axes, labels: Picture, colour: str | None = None) -> None:
    for label in _present(labels):
        # A slight blur takes the steps of the pixels from the line.
        inside = gaussian_filter((labels == label).astype(np.float32), 1.0)
        ax.contour(inside, levels=[0.5], colors=[colour or _colour(label)], linewidths=0.9)


def _present(labels: Picture) -> list[int]:
    return [int(label) for label in np.unique(labels) if label]
