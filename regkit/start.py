"""Starts that the user gives: a matrix, a transform of SimpleITK, or a warp to continue from.

From a warp W the moving image is seen through W on the working grid and around it, registered from there, and
what is found is put before W: T(p) = W(T'(p)).
"""

from __future__ import annotations

import os

import numpy as np
import SimpleITK as sitk
import torch

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, slab_index, slabs, transform_points
from regkit.io.formats import NotLinearError, is_transform, linear_of, read_linear
from regkit.ops.resample import Source
from regkit.ops.sampling import sample
from regkit.transforms import Transform, as_warp
from regkit.warp import Warp

Init = str | os.PathLike[str] | Transform
"""The name of a way to start, the file of a transform or warp, or one in memory (LPS mm, fixed to moving)."""


def given_start(init: Init, names: tuple[str, ...], fixed: Grid, moving: Grid) -> Float64 | Warp | None:
    """The start that ``init`` gives: a 4x4 matrix, or a warp; None where it is one of ``names``.

    Args:
        fixed, moving: grids of the images.

    Raises:
        RegkitError: if it cannot be read or is not a transform.
    """
    if isinstance(init, Warp):
        return init
    if isinstance(init, str | os.PathLike):
        if str(init) in names:
            return None
        path = os.fspath(init)
        if not os.path.exists(path) and not os.path.splitext(path)[1]:
            raise RegkitError(
                f"no start named {path!r}; available: {', '.join(names)}, or the file of a transform"
            )
        try:
            if is_transform(path):
                return read_linear(path, fixed, moving)
        except NotLinearError:
            pass
        return _own_grid(path, fixed, moving)
    try:
        return linear_of(init, "init")
    except NotLinearError:
        return as_warp(init, fixed, moving, "init")


def _own_grid(path: str, fixed: Grid, moving: Grid) -> Warp:
    """A warp on the grid of its file, or on the fixed image's where the file has none."""
    try:
        return Warp.load(path, None, moving)
    except RegkitError:
        return Warp.load(path, fixed, moving)


def seen_through(warp: Warp, moving: Source, grid: Grid, margin: int) -> Source:
    """The moving image through a warp, on an isotropic grid and so many voxels around it.

    Args:
        moving: as it is registered.

    Returns:
        Continued by border values, its mask 0 where the moving image has no data.
    """
    moving = moving.smoothed_for(grid.spacing[0])
    grid = grid.window((-margin,) * 3, tuple(n + 2 * margin for n in grid.size))
    device = moving.image.device
    image, mask = torch.empty(grid.shape), torch.empty(grid.shape)
    source, counted = moving.image.cpu()[None], None if moving.mask is None else moving.mask.cpu()[None]
    for first, last in slabs(grid):
        points = warp.transform_points(transform_points(grid.index_to_world, slab_index(grid, first, last)))
        index = transform_points(moving.grid.world_to_index, points)
        inside = np.all((index >= -0.5) & (index <= np.asarray(moving.grid.size) - 0.5), axis=-1)
        coordinates = torch.from_numpy(index.astype(np.float32)).movedim(-1, 0).contiguous()
        image[first:last] = sample(source, coordinates)[0]
        mask[first:last] = torch.from_numpy(inside.astype(np.float32))
        if counted is not None:
            mask[first:last] *= sample(counted, coordinates, mode="nearest")[0]
    return Source(image.to(device), mask.to(device), grid)


def described(init: object) -> str:
    """A start in a word or two, for the record of a run."""
    if isinstance(init, str | os.PathLike):
        return os.fspath(init)
    if isinstance(init, Warp):
        return "a warp"
    if isinstance(init, sitk.Transform):
        return init.GetName()
    return str(np.asarray(init.detach().cpu() if isinstance(init, torch.Tensor) else init))
