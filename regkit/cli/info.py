"""``regkit info``: what a file holds and how regkit takes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regkit.cli.console import print_facts, print_json, print_table
from regkit.cli.files import load_grid, load_warp
from regkit.cli.options import AsJson, FixedGrid, MovingGrid
from regkit.errors import RegkitError

if TYPE_CHECKING:
    import numpy as np

    from regkit.geometry import Grid
    from regkit.images import Volume
    from regkit.warp import Warp

_TRANSFORMS = (".tfm", ".txt", ".mat", ".h5", ".hdf5")
_MOST_LABELS = 1000


def command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="An image, a DICOM folder, a label map, a warp or a transform.",
        ),
    ],
    fixed: FixedGrid = None,
    moving: MovingGrid = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a file holds: grid, orientation, values, labels, displacements or matrix."""
    facts = _describe(file, load_grid(fixed, "fixed image"), load_grid(moving, "moving image"))
    if as_json:
        print_json({"file": str(file), **facts})
        return
    labels = facts.pop("labels", None)
    print_facts([(name.replace("_", " "), _text(value)) for name, value in facts.items()])
    if labels is not None:
        typer.echo()
        print_table(
            ["label", "ml", "voxels"],
            [[str(row["label"]), f"{row['ml']:.2f}", f"{row['voxels']:,}"] for row in labels],
        )


def _describe(file: Path, fixed: Grid | None, moving: Grid | None) -> dict[str, Any]:
    from regkit.images import load_image, load_labels

    if file.suffix.lower() in _TRANSFORMS:
        return _transform(file, fixed, moving)
    if file.suffix.lower() == ".npz" or _holds_vectors(file, fixed is not None and moving is not None):
        return _warp(load_warp(file, fixed, moving))
    volume = load_image(file, "image")
    if looks_like_labels(volume.array):
        return _label_map(load_labels(file, "labels"))
    return _image(volume)


def _holds_vectors(file: Path, learn2reg: bool) -> bool:
    """Whether an image's header says that each voxel holds a displacement.

    Args:
        learn2reg: whether a 4-D image of three volumes counts as a field in voxels.
    """
    import SimpleITK as sitk

    if not file.is_file():
        return False
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False  # reading it as an image tells why
    size = reader.GetSize()
    if len(size) == 3:  # three whole numbers are colours
        is_real = reader.GetPixelID() in (sitk.sitkVectorFloat32, sitk.sitkVectorFloat64)
        return is_real and reader.GetNumberOfComponents() == 3
    return size[3:] == (1, 3) or (learn2reg and size[3:] == (3,))


def _transform(file: Path, fixed: Grid | None, moving: Grid | None) -> dict[str, Any]:
    from regkit.formats import read_linear

    try:
        matrix = read_linear(file)
    except RegkitError:  # not linear, or not readable, and then reading it as a warp fails as well
        return _warp(load_warp(file, fixed, moving))
    return {"kind": "linear transform, fixed point -> moving point, LPS mm", "matrix": matrix.tolist()}


def _range(values: np.ndarray) -> dict[str, float]:
    import numpy as np

    return {
        "minimum": float(values.min()),
        "median": float(np.median(values)),
        "maximum": float(values.max()),
    }


def _image(volume: Volume) -> dict[str, Any]:
    from regkit.intensity import CT_WINDOW, is_ct, window_of

    ct = is_ct(volume.array)
    low, high = window_of(volume.array, CT_WINDOW if ct else None)
    return {
        "kind": "image",
        **_grid(volume.grid),
        "values": _range(volume.array),
        "taken_as": "CT" if ct else "no CT: values are scaled by percentiles",
        "window": {"low": low, "high": high},
    }


def _label_map(volume: Volume) -> dict[str, Any]:
    import numpy as np

    labels, counts = np.unique(volume.array, return_counts=True)
    ml = float(np.prod(volume.grid.spacing)) / 1000
    rows = [
        {"label": int(label), "ml": int(count) * ml, "voxels": int(count)}
        for label, count in zip(labels, counts, strict=True)
        if label
    ]
    return {"kind": "label map", **_grid(volume.grid), "labels": rows}


def _warp(warp: Warp) -> dict[str, Any]:
    import numpy as np

    from regkit.jacobian import folding_percent, sd_log_jacobian

    length = np.linalg.norm(warp.field, axis=-1)
    determinant = warp.jacobian().array
    return {
        "kind": "warp, fixed point -> moving point, LPS mm",
        **_grid(warp.grid),
        "displacement_mm": _range(length),
        "folding_percent": folding_percent(determinant),
        "sd_log_jacobian": sd_log_jacobian(determinant),
    }


def _grid(grid: Grid) -> dict[str, Any]:
    import numpy as np

    from regkit.images import axis_codes

    largest = np.abs(np.reshape(grid.direction, (3, 3))).max(axis=0)
    return {
        "size": list(grid.size),
        "spacing_mm": [round(s, 6) for s in grid.spacing],
        "orientation": axis_codes(grid),
        "oblique_degrees": round(float(np.degrees(np.arccos(np.clip(largest, 0, 1))).max()), 2),
        "extent_mm": [round(float(e), 3) for e in grid.extent],
        "origin_lps_mm": [round(o, 3) for o in grid.origin],
        "centre_lps_mm": [round(float(c), 3) for c in grid.centre],
    }


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether an image (z, y, x) is a label map: few whole values, mostly equal to their neighbours.

    An image of eight bits has few whole values, too, but noise.
    """
    import numpy as np

    if array.min() < 0 or (array != np.rint(array)).any() or len(np.unique(array)) > _MOST_LABELS:
        return False
    here, there = array[:, :, 1:], array[:, :, :-1]
    inside = (here != 0) & (there != 0)
    return bool(inside.any() and (here == there)[inside].mean() > 0.7)


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "\n" + "\n".join("  " + " ".join(f"{number:12.6f}" for number in row) for row in value)
    if isinstance(value, list):
        return "  ".join(f"{number:.6g}" for number in value)
    if isinstance(value, dict):
        return "  ".join(f"{name} {number:.6g}" for name, number in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
