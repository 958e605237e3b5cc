"""One picture of a registration: three planes, before and after, with labels and change of volume."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from regkit.core.errors import RegkitError
from regkit.io.atomic import atomic_path
from regkit.io.images import Volume
from regkit.io.outputs import check_output
from regkit.viz.colours import DIM, INK, PALE
from regkit.viz.planes import PLANES, Picture, Plane, cut, grey, tone, view, window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

    box, middle = view(fixed, fixed_labels)
    pixel = float((box[1] - box[0]).max()) / _PIXELS
    grids = [plane.grid(box, middle, pixel) for plane in PLANES]
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
    fixed_window, moving_window = window(fixed.array), window(after.array)
    for row, (plane, grid) in enumerate(zip(PLANES, grids, strict=True)):
        one = tone(cut(fixed, grid), fixed_window)
        two, three = (tone(cut(volume, grid), moving_window) for volume in (before, after))
        lines = None if fixed_labels is None else cut(fixed_labels, grid, labels=True)
        for column, (picture, areas) in enumerate(((one, None), (two, before_labels), (three, after_labels))):
            ax = sheet.panel(row, column)
            _show(ax, grey(picture))
            if areas is not None:
                _fill(ax, cut(areas, grid, labels=True))
            if lines is not None:
                _outline(ax, lines)
        _show(sheet.panel(row, 3), grey(_checkerboard(one, three)))
        if determinant is not None:
            ax = sheet.panel(row, 4)
            _show(ax, volume_change(cut(determinant, grid), one, octaves))
            if lines is not None:
                _outline(ax, lines, colour=DIM)
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
        sheet.figure.savefig(temporary, dpi=_DPI, facecolor=INK)


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
        self.figure = Figure((inches, inches * self._height / self._width), dpi=_DPI, facecolor=INK)
        FigureCanvasAgg(self.figure)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = 1 - (top + height) / self._height
        place = (left / self._width, bottom, width / self._width, height / self._height)
        ax = self.figure.add_axes(place)
        ax.set_axis_off()
        return ax

    def _text(self, left: float, top: float, text: str, **style: Any) -> None:
        self.figure.text(
            left / self._width, 1 - top / self._height, text, **{"color": DIM, "size": 7, **style}
        )

    def _left(self, column: int) -> float:
        return self._side + column * (self._cell + self._gap)

    def _top(self, row: int) -> float:
        return self._head + sum(height + self._gap for _, height in self._sizes[:row])

    def panel(self, row: int, column: int) -> Axes:
        width, height = self._sizes[row]
        return self._axes(self._left(column) + (self._cell - width) / 2, self._top(row), width, height)

    def name_row(self, row: int, plane: Plane) -> None:
        from matplotlib.patheffects import withStroke

        width, height = self._sizes[row]
        middle = self._top(row) + height / 2
        self._text(0.5 * self._side, middle, plane.name, size=8, rotation=90, ha="center", va="center")
        rim = withStroke(linewidth=1.5, foreground=INK)  # to be legible on fat and bone
        edge = self._left(0) + (self._cell - width) / 2
        for left, letter, align in (
            (edge + 4, plane.letters[0], "left"),
            (edge + width - 4, plane.letters[1], "right"),
        ):
            self._text(left, middle, letter, color=PALE, ha=align, va="center", path_effects=[rim])

    def name_column(self, column: int, heading: str, caption: str) -> None:
        middle = self._left(column) + self._cell / 2
        self._text(middle, self._head - 0.105 * self._cell, heading, color=PALE, size=9.5, ha="center")
        self._text(middle, self._head - 0.035 * self._cell, caption, ha="center")

    def title(self, text: str) -> None:
        self._text(self._side, 0.045 * self._cell, text, color=PALE, size=12, va="top", weight="bold")

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
        ax.imshow(diverging(ramp), aspect="auto", extent=(-1, 1, 0, 1))
        for at in (-1, 0, 1):
            ax.text(at, -0.4, f"\u00d7{2 ** (at * octaves):.2g}", color=DIM, size=7, ha="center", va="top")


def _checkerboard(one: Picture, other: Picture) -> Picture:
    rows, columns = np.indices(one.shape) // _TILE
    return np.where((rows + columns) % 2 == 0, one, other)


def _octaves(determinant: Volume) -> float:
    """How many doublings of volume the ends of the colour scale stand for."""
    changes = np.abs(np.log2(np.maximum(determinant.array[::2, ::2, ::2], 1e-3)))
    return float(np.clip(np.percentile(changes, 99), 0.1, 2))


def volume_change(determinant: Picture, fixed: Picture, octaves: float) -> Picture:
    """The determinant in colour, (rows, columns, 3), with the fixed image shining through."""
    picture = blended(diverging(np.log2(np.maximum(determinant, 1e-3)) / octaves), fixed, determinant)
    picture[determinant <= 0] = _FOLD
    return picture


def blended(colours: Picture, fixed: Picture, values: Picture) -> Picture:
    """Colours (rows, columns, 3) with the fixed image shining through; black where there is no value."""
    picture = colours * (0.4 + 0.6 * fixed[..., None])
    picture[np.isnan(values)] = 0
    return picture


def diverging(change: Picture) -> Picture:
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
