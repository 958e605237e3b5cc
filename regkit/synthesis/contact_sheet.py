"""A contact sheet of synthetic pairs: the middle slices of both views, and their labels."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regkit.synthesis.pairs import Views
from regkit.viz.colours import DIM, INK, PALE

Slices = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""Labels and image of the first view, image and labels of the second, (Y, X) each."""

_HEADINGS = ("labels", "view a", "view b", "labels")
_TILE = 1.15  # inches
_GAP, _MARGIN, _HEAD = 0.04, 0.16, 0.36
_UNSEEN = 0.2  # brightness beyond the field of view, where an image repeats its border
_SHOWN = 60  # pairs, at most
_DPI = 130


def middle_slices(views: Views) -> Slices:
    """What the sheet shows of one pair."""
    labels = views.labels.cpu().numpy()
    images = (views.images * torch.where(views.visible, 1.0, _UNSEEN)).cpu().numpy()
    middle = labels.shape[1] // 2
    return labels[0, middle], images[0, middle], images[1, middle], labels[1, middle]


def contact_sheet(pairs: Sequence[Slices], path: str | os.PathLike[str]) -> None:
    """Write a PNG of the first pairs, four tiles each. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = pairs[:_SHOWN]
    across = min(len(pairs), 1 if len(pairs) < 4 else 2 if len(pairs) < 25 else 3)
    down = -(-len(pairs) // across)
    block = 4 * _TILE + 3 * _GAP
    width = across * block + (across + 1) * _MARGIN
    height = _HEAD + down * (_TILE + 2 * _GAP) + _MARGIN
    figure = Figure((width, height), dpi=_DPI, facecolor=INK)
    FigureCanvasAgg(figure)
    colours = _colours()
    for k, slices in enumerate(pairs):
        row, column = divmod(k, across)
        top = _HEAD + row * (_TILE + 2 * _GAP)
        for tile, picture in enumerate(slices):
            left = _MARGIN + column * (block + _MARGIN) + tile * (_TILE + _GAP)
            ax = figure.add_axes((left / width, 1 - (top + _TILE) / height, _TILE / width, _TILE / height))
            ax.set_axis_off()
            if tile in (0, 3):
                ax.imshow(colours[picture], interpolation="nearest", aspect="auto")
            else:
                ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect="auto")
            if row == 0:
                middle, at = (left + _TILE / 2) / width, 1 - (_HEAD - 0.08) / height
                colour = DIM if tile in (0, 3) else PALE
                figure.text(middle, at, _HEADINGS[tile], color=colour, size=8, ha="center")
    figure.savefig(path, facecolor=INK, format="png")


def _colours() -> npt.NDArray[np.float32]:
    """A colour for each of 256 labels, those that follow one another far apart; 0 is almost black."""
    table = [(0.08, 0.10, 0.12)]
    for label in range(1, 256):
        hue = label * 0.618034 % 1
        table.append(colorsys.hls_to_rgb(hue, 0.42 + 0.12 * (label % 4), 0.45 + 0.2 * (label % 3)))
    return np.asarray(table, dtype=np.float32)
