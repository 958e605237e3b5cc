"""A small picture of a registration, for the page of a cohort: the fixed image above the moved one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from regkit.core.geometry import slab_index, transform_points
from regkit.viz.htmlslices import seen_at, thinned, values_at
from regkit.viz.planes import PLANES, tone, view, window

if TYPE_CHECKING:
    from regkit.io.images import Volume
    from regkit.registration_result import Registration

_SIDE = 104  # pixels of each of the six panels
_QUALITY = 60
_GAP = 2


def thumbnail(result: Registration, fixed: Volume) -> bytes:
    """A JPEG of some 6 KB: axial, coronal and sagittal, the fixed image above the moved one."""
    thin = thinned(fixed)
    box, middle = view(thin, None)
    warp, moving = result.warp, result.moving
    windows = window(thin.array), window(thinned(moving).array)
    pixel = float((box[1] - box[0]).max()) / _SIDE
    step = _SIDE + _GAP
    sheet = np.zeros((2 * step - _GAP, len(PLANES) * step - _GAP), np.uint8)
    for column, plane in enumerate(PLANES):
        grid = plane.grid(box, middle, pixel)
        points = transform_points(grid.index_to_world, slab_index(grid, 0, 1)[0])
        index = transform_points(warp.grid.world_to_index, points)
        there = points + np.stack([values_at(warp.field[..., k], index) for k in range(3)], axis=-1)
        slices = seen_at(fixed, points), seen_at(moving, there)
        for row, picture in enumerate(map(tone, slices, windows)):
            panel = np.rint(255 * picture[:_SIDE, :_SIDE]).astype(np.uint8)
            top, left = (s + (_SIDE - n) // 2 for s, n in zip((row * step, column * step), panel.shape))
            sheet[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
