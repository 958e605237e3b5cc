"""A picture of the network's features: each image, and their principal components as colours beside it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import numpy as np

from regkit.core.errors import RegkitError
from regkit.io.atomic import atomic_path
from regkit.io.images import Volume
from regkit.io.outputs import check_output
from regkit.viz.colours import DIM, INK, PALE
from regkit.viz.planes import PLANES, Picture, cut, grey, tone, view, window

_WIDTH, _ROW = 13.0, 3.6  # inches: of the page, and the highest that a row becomes
_MARGIN, _HEAD, _NAME = 0.12, 0.42, 0.24
_GAP, _MIDDLE = 0.05, 0.16  # between panels, and between the image and its components
_PIXELS = 320  # along the longest side of what is shown
_DPI = 130
_HEADINGS = ("image", "features: common principal components 1, 2, 3 as red, green, blue")


def components_figure(
    volumes: Sequence[Volume], components: Sequence[Sequence[Volume]], path: str | os.PathLike[str]
) -> None:
    """Write a PNG, a row for each image: three planes of it, and the same planes of its components.

    Args:
        components: three volumes for each image, in [0, 1].
        path: must end in .png.

    Raises:
        RegkitError: if matplotlib is missing or the file cannot be written.
    """
    target = check_output(path, (".png",))
    if importlib.util.find_spec("matplotlib") is None:
        raise RegkitError("pictures need matplotlib: pip install matplotlib")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [_panels(volume, colours) for volume, colours in zip(volumes, components, strict=True)]
    half = (_WIDTH - 2 * _MARGIN - _MIDDLE) / 2
    scales = [_inches_per_pixel(panels, half) for panels in rows]
    heights = [max(p.shape[0] for p in panels) * scale for panels, scale in zip(rows, scales)]
    height = _HEAD + sum(h + _NAME for h in heights) + _MARGIN
    figure = Figure((_WIDTH, height), dpi=_DPI, facecolor=INK)
    FigureCanvasAgg(figure)
    for heading, left in zip(_HEADINGS, (_MARGIN, _MARGIN + half + _MIDDLE)):
        figure.text(left / _WIDTH, 1 - 0.24 / height, heading, color=PALE, size=10)
    top = _HEAD
    for volume, panels, scale, row in zip(volumes, rows, scales, heights):
        figure.text(_MARGIN / _WIDTH, 1 - (top + 0.1) / height, volume.name, color=DIM, size=8)
        top += _NAME
        wide = sum(p.shape[1] for p in panels[:3]) * scale + 2 * _GAP
        for side in (0, 1):
            left = _MARGIN + side * (half + _MIDDLE) + (half - wide) / 2
            for picture in panels[3 * side : 3 * side + 3]:
                high, across = (n * scale for n in picture.shape[:2])
                bottom = top + (row + high) / 2
                place = (left / _WIDTH, 1 - bottom / height, across / _WIDTH, high / height)
                ax = figure.add_axes(place)
                ax.set_axis_off()
                ax.imshow(picture, vmin=0, vmax=1, interpolation="bilinear", aspect="auto")
                left += across + _GAP
        top += row
    with atomic_path(target) as temporary:
        figure.savefig(temporary, facecolor=INK)


def _panels(volume: Volume, components: Sequence[Volume]) -> list[Picture]:
    """Axial, coronal and sagittal slice of an image, then those of its components, (rows, columns, 3)."""
    box, middle = view(volume, None)
    pixel = float((box[1] - box[0]).max()) / _PIXELS
    grids = [plane.grid(box, middle, pixel) for plane in PLANES]
    shades = window(volume.array)
    images = [grey(tone(cut(volume, grid), shades)) for grid in grids]
    colours = [np.stack([tone(cut(c, grid), (0, 1)) for c in components], axis=-1) for grid in grids]
    return images + colours


def _inches_per_pixel(panels: Sequence[Picture], width: float) -> float:
    """So that three planes fill ``width``, or the highest of them a row."""
    across, high = sum(p.shape[1] for p in panels[:3]), max(p.shape[0] for p in panels)
    return min((width - 2 * _GAP) / across, _ROW / high)
