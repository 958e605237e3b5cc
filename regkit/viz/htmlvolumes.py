"""One HTML file that shows a registration as volumes: three planes and a 3-D view, drawn by NiiVue.

It holds NiiVue and the volumes, made smaller, and loads nothing. NiiVue is not part of regkit: its code is
read from the package ipyniivue, which carries it (BSD-2-Clause).
"""

from __future__ import annotations

import base64
import gzip
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from regkit.core.errors import FormatError, UsageError, install
from regkit.core.geometry import Grid
from regkit.core.jsontext import without_nan
from regkit.io.atomic import atomic_path
from regkit.io.images import ImageLike, Volume, load_image
from regkit.io.outputs import check_output
from regkit.ops.resample import Source, resample
from regkit.viz.htmlreport import template
from regkit.viz.htmlslices import most_doubt, most_octaves, thinned
from regkit.viz.planes import tone, window

if TYPE_CHECKING:
    from regkit.registration_result import Registration

_SUFFIX = ".html"
_TEMPLATE = "volumes.html.j2"
_EXTRA = "report3d"
_PACKAGE, _BUNDLE = "ipyniivue", "ipyniivue/static/widget.js"
# The bundle exports a widget of Jupyter, but not the class that draws: here it makes one.
_CLASS = re.compile(r'"Creating new Niivue instance"\);.{0,200}?=\s*new ([\w$]+)\(', re.DOTALL)
_EXPORT = re.compile(r"export\s*\{[^{}]*\};?\s*$")
_VOXELS = (
    2_000_000,
    1_000_000,
    500_000,
    250_000,
)  # of each volume: the first with which all are small enough
_BUDGET = 3_800_000  # bytes of all volumes; NiiVue takes 2.1 MB
_QUIET = 0.1  # of the limit: smaller changes and doubts are not coloured
_STEPS = 127  # of the byte that a signed value is told by, to either side


@dataclass(frozen=True)
class Layer:
    """A volume of the page.

    Args:
        name: as the page calls it.
        colormap, negative: of NiiVue; that of values below 0, if there is one.
        low, high: values at the ends of its colours; smaller ones are not shown.
        file: .nii.gz in base64.
    """

    name: str
    colormap: str
    negative: str
    low: float
    high: float
    file: str


def write_report_3d(result: Registration, path: str | os.PathLike[str], fixed: ImageLike) -> None:
    """Write what a registration found as one HTML file with volumes to move through, of at most 6 MB.

    Args:
        path: must end in .html.
        fixed: the fixed image, as it was registered; the result holds the rest.

    Raises:
        RegkitError: if the package ipyniivue is missing or another one than is known, or the file cannot be
            written, or the image cannot be read.
    """
    target = check_output(path, (_SUFFIX,))
    viewer, version = niivue()
    image = load_image(fixed, "fixed image")
    spacing, layers = math.nan, list[Layer]()
    for most in _VOXELS:
        grid = _smaller(image.grid, most)
        spacing, layers = max(grid.spacing), list(_layers(result, image, grid))
        if sum(len(layer.file) for layer in layers) <= _BUDGET:
            break
    page = template("regkit.viz", _TEMPLATE).render(
        fixed=result.settings["fixed"],
        layers=without_nan([asdict(layer) for layer in layers]),
        moving=result.settings["moving"],
        names=[layer.name for layer in layers],
        niivue=base64.b64encode(gzip.compress(viewer.encode(), 9, mtime=0)).decode("ascii"),
        spacing=spacing,
        verdict=result.verdict.to_dict(),
        version=version,
    )
    with atomic_path(target) as temporary:
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def check_niivue() -> None:
    """Check before any work that there is what draws the page.

    Raises:
        RegkitError: if not.
    """
    niivue()


def niivue() -> tuple[str, str]:
    """A module of JavaScript that leaves the class ``Niivue`` as a global one, and whose version it is.

    Raises:
        RegkitError: if the package is missing, or its bundle is another one than is known.
    """
    try:
        package = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"the volumes are drawn by NiiVue, which is not installed: {install(_EXTRA)}"
        ) from None
    bundle = Path(str(package.locate_file(_BUNDLE)))
    text = bundle.read_text(encoding="utf-8") if bundle.is_file() else ""
    found, exported = _CLASS.search(text), _EXPORT.search(text)
    if found is None or exported is None:
        raise FormatError(
            f"{_PACKAGE} {package.version} is not one that regkit can read NiiVue from: {install(_EXTRA)}"
        )
    return f"{text[: exported.start()]}globalThis.Niivue={found[1]};\n", f"{_PACKAGE} {package.version}"


def _smaller(grid: Grid, most: int) -> Grid:
    """A grid over the same field of view with at most so many voxels, as cubic as it can be."""
    spacing = max(min(grid.spacing), (float(np.prod(grid.extent)) / most) ** (1 / 3))
    sides = np.maximum(grid.spacing, spacing)
    size = np.maximum(np.floor(np.asarray(grid.size) * grid.spacing / sides + 1e-6), 1).astype(int)
    if np.array_equal(size, grid.size):
        return grid
    sides = np.asarray(grid.size) * grid.spacing / size
    direction = np.reshape(grid.direction, (3, 3))
    # The first voxel's centre lies half of its side within the field of view.
    origin = np.asarray(grid.origin) + direction @ ((sides - grid.spacing) / 2)
    return Grid(tuple(size.tolist()), tuple(sides.tolist()), tuple(origin.tolist()), grid.direction)


def _layers(result: Registration, fixed: Volume, grid: Grid) -> Iterator[Layer]:
    moving = result.moving
    own, theirs = window(thinned(fixed).array), window(thinned(moving).array)
    yield _grey("fixed image", _reduced(fixed, grid), own, grid)
    yield _grey("moving image, after", _reduced(result.moved, grid), theirs, grid)
    yield _grey("moving image, before", _reduced(moving, grid), theirs, grid)
    octaves = most_octaves(result)
    changes = np.log2(np.maximum(_reduced(result.warp.jacobian(), grid), 1e-3))
    yield _signed("log-Jacobian (doublings of volume)", changes, octaves, grid)
    limit, doubt = most_doubt(result), result.uncertainty
    if limit is not None and doubt is not None:
        yield _signed("doubt, mm", _reduced(doubt, grid), limit, grid)


def _reduced(volume: Volume, grid: Grid) -> npt.NDArray[np.float32]:
    """A volume on a grid, smoothed for its voxels; NaN where it has none."""
    source = Source(torch.from_numpy(np.ascontiguousarray(volume.array, np.float32)), None, volume.grid)
    values, weight = resample(source.smoothed_for(min(grid.spacing)), np.eye(4), grid)
    found = values.numpy()
    found[weight.numpy() <= 0] = np.nan
    return found


def _grey(name: str, values: npt.NDArray[np.float32], ends: tuple[float, float], grid: Grid) -> Layer:
    levels = np.rint(255 * tone(values, ends)).astype(np.uint8)
    return Layer(name, "gray", "", 0, 255, _file(levels, grid, 1, 0))


def _signed(name: str, values: npt.NDArray[np.float32], limit: float, grid: Grid) -> Layer:
    """A volume in colours that run from minus the limit to the limit."""
    share = np.nan_to_num(np.clip(values / limit, -1, 1))
    levels = (np.rint(_STEPS * share) + _STEPS).astype(np.uint8)
    return Layer(name, "warm", "winter", _QUIET * limit, limit, _file(levels, grid, limit / _STEPS, -limit))


def _file(levels: npt.NDArray[np.uint8], grid: Grid, slope: float, intercept: float) -> str:
    image = nib.Nifti1Image(levels.T, grid.ras_affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    raw = bytearray(image.to_bytes())
    return base64.b64encode(gzip.compress(bytes(raw), 9, mtime=0)).decode("ascii")
