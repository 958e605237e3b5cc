"""``regkit apply``, ``jacobian``, ``invert`` and ``convert``: what can be done with a warp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from regkit.cli.console import print_facts, print_json, warn
from regkit.cli.files import (
    IMAGES,
    SERIES,
    WARPS,
    check_outputs,
    in_series,
    load_warp,
    optional_grid,
    recorded,
)
from regkit.cli.options import (
    AsJson,
    ChainFile,
    FixedGrid,
    FixedSeries,
    MovingGrid,
    MovingSeries,
    Overwrite,
    WarpFile,
    WarpSpacing,
)
from regkit.cli.report import print_stored
from regkit.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from regkit.core.choices import Interpolation
    from regkit.core.geometry import Float64, Grid
    from regkit.io.dicom import DicomSeries
    from regkit.io.frames import FramesLike
    from regkit.io.images import ImageLike
    from regkit.io.segments import LayeredSegmentation
    from regkit.transforms import CoarsenedWarp
    from regkit.warp import Warp

_LINEAR = (".tfm", ".txt", ".mat")
_POINTS = (".csv", ".fcsv", ".mrk.json")
_MESHES = (".vtk", ".vtu", ".stl", ".ply", ".obj", ".gii", ".trk", ".tck")
_LITTLE = 0.05  # of a result shows the image


def apply(
    warp: ChainFile,
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE", show_default=False, help="The moving image, or its labels, to resample."
        ),
    ] = None,
    *,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|FOLDER/",
            show_default=False,
            help="An image; a folder for a DICOM series; .seg.nrrd or .dcm (DICOM SEG, with --reference) for "
            "labels with their names; with --points, .csv .fcsv .mrk.json, or the ending of the mesh.",
        ),
    ],
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Points of the fixed image to take to the moving one, in place of an image: landmarks (.csv "
            ".fcsv .mrk.json), a mesh (.vtk .vtu .stl .ply .obj .gii) or streamlines (.trk .tck). For points "
            "of the moving image, apply the inverse warp ('regkit invert').",
        ),
    ] = None,
    space: Annotated[
        Literal["lps", "ras"] | None,
        typer.Option(
            show_default=False,
            help="Coordinates of a mesh whose file does not say, such as .stl.",
        ),
    ] = None,
    then: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A warp or linear transform to apply after the previous one. The image is interpolated only "
            "once. Repeatable.",
        ),
    ] = None,
    interpolation: Annotated[
        Literal["auto", "linear", "bspline", "nearest", "label"],
        typer.Option(
            help="For labels: nearest, or label, which keeps outlines smoother. auto: label if the image "
            "looks like a label map, else linear.",
        ),
    ] = "auto",
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            "--fixed",
            metavar="IMAGE",
            help="Resample on the voxels of this image. Default: those of the warp. A warp file without a "
            "grid needs the fixed image here.",
        ),
    ] = None,
    moving: MovingGrid = None,
    fixed_series: FixedSeries = None,
    moving_series: MovingSeries = None,
    default_value: Annotated[
        float | None,
        typer.Option(help="Value outside the image. Default: its minimum, or 0 for labels."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Apply a warp, or several transforms in a row, to an image, labels or points."""
    if (image is None) == (points is None):
        raise typer.BadParameter("give either an image or --points", param_hint="IMAGE")
    from regkit.transforms import existing

    chain = [warp, *(then or [])]
    of_mesh = points is not None and points.suffix.lower() in _MESHES
    if space is not None and not of_mesh:
        raise typer.BadParameter("is of a mesh in --points", param_hint="--space")
    kinds: tuple[str, ...] = (*SERIES, ".dcm")
    if points is not None:
        kinds = (points.suffix,) if of_mesh else _POINTS
    inputs = (*map(existing, chain), image, points, reference, moving)
    check_outputs([(output, kinds)], inputs, overwrite, recorded=output)
    source = None if image is None else in_series(image, moving_series)
    onto = None if reference is None else in_series(reference, fixed_series)
    made_of = {"transform": list(map(existing, chain)), "image": source, "points": points}
    made_of |= {"reference": onto, "moving": moving}
    with recorded({"moved": output}, made_of, interpolation=interpolation, default_value=default_value):
        if points is not None:
            _apply_to_points(chain, points, Path(output), reference, moving, space)
        elif source is not None:
            _apply_to_image(chain, source, output, interpolation, onto, default_value)
    typer.echo(f"wrote {output}")


def _apply_to_points(
    chain: list[Path],
    points: Path,
    output: Path,
    reference: Path | None,
    moving: Path | None,
    space: str | None,
) -> None:
    from regkit.io.meshes import is_mesh, open_mesh
    from regkit.io.points import open_points
    from regkit.transforms import outside, read_chain, through

    grid = optional_grid(moving, "moving image")
    file = open_mesh(points, space, grid) if is_mesh(points) else open_points(points)
    start = file.points
    steps = read_chain(chain, optional_grid(reference, "reference"), grid)
    if left := outside(steps, start):
        warn(
            f"{left} of {len(start)} points lie outside the warp's field; they move as the nearest voxel at "
            "its border does"
        )
    file.save(output, through(steps, start))


def _apply_to_image(
    chain: list[Path],
    image: ImageLike,
    output: str,
    interpolation: Interpolation | Literal["auto"],
    reference: Path | DicomSeries | None,
    default: float | None,
) -> None:
    from regkit.io.dicom import DicomSeries
    from regkit.io.frames import is_series
    from regkit.io.images import load_image, load_labels, load_segmentation, load_volume, looks_like_labels
    from regkit.result_files import check_dicom, save_volume

    if is_series(image):
        _apply_to_series(chain, image, output, interpolation, optional_grid(reference, "reference"), default)
        return
    to_dicom = output.lower().endswith(".dcm")
    check_dicom(output, Path(output) if to_dicom else None, reference)
    grid = optional_grid(reference, "reference")
    if interpolation in ("auto", "nearest", "label"):
        segmentation = load_segmentation(image, "image to warp")
        if segmentation is not None:
            _apply_to_segments(chain, segmentation, output, interpolation, grid, reference)
            return
    volume = load_volume(image, "image to warp")
    if interpolation == "auto":
        interpolation = "linear"
        if looks_like_labels(volume.array) and volume.array.min() < volume.array.max():
            interpolation = "label"
            _note_labels()
    if to_dicom and interpolation not in ("nearest", "label"):
        raise UsageError(
            f"cannot write '{output}': a DICOM segmentation is of labels; an image gets a folder/"
        )
    if interpolation != "nearest":
        load = load_labels if interpolation == "label" else load_image
        place = image.folder if isinstance(image, DicomSeries) else image
        volume = load(volume, f"image to warp '{place}'")
    warp = _one_warp(chain, grid, volume.grid)
    moved = warp.apply(volume, interpolation=interpolation, reference=grid, default=default)
    _warn_empty(warp, grid or warp.grid, volume.grid, moved.array)
    save_volume(moved, output, reference, image)


def _note_labels() -> None:
    typer.echo(
        "note: the image is a label map by its values and moves as one (--interpolation label); "
        "if it is none, give --interpolation linear",
        err=True,
    )


def _apply_to_series(
    chain: list[Path],
    image: FramesLike,
    output: str,
    interpolation: Interpolation | Literal["auto"],
    grid: Grid | None,
    default: float | None,
) -> None:
    from regkit.io.frames import interpolation_for, load_frames
    from regkit.io.outputs import NIFTI_SUFFIXES, check_output
    from regkit.warp import apply_to_frames

    check_output(output, NIFTI_SUFFIXES)
    frames = load_frames(image, "image to warp")
    if interpolation == "auto":
        interpolation = interpolation_for(frames)
        if interpolation == "label":
            _note_labels()
    warp = _one_warp(chain, grid, frames.grid)
    moved = apply_to_frames(warp, frames, interpolation, grid, default)
    _warn_empty(warp, moved.grid, frames.grid, moved.array[:: max(1, len(moved) // 4)])
    moved.save(output)


def _apply_to_segments(
    chain: list[Path],
    segmentation: LayeredSegmentation,
    output: str,
    interpolation: Interpolation | Literal["auto"],
    grid: Grid | None,
    reference: Path | DicomSeries | None,
) -> None:
    """Each layer of a segmentation, so that what overlaps stays whole where the output has room for it."""
    import numpy as np

    from regkit.io.images import LabelledVolume, Volume
    from regkit.io.segments import SLICER, LayeredSegmentation
    from regkit.result_files import save_segments, save_volume

    warp = _one_warp(chain, grid, segmentation.grid)
    method: Interpolation = "label" if interpolation == "auto" else interpolation
    layers = [
        warp.apply(Volume(layer, segmentation.grid, "segments"), interpolation=method, reference=grid).array
        for layer in segmentation.layers
    ]
    kind = np.result_type(*layers)
    moved = LayeredSegmentation(
        [layer.astype(kind) for layer in layers], grid or warp.grid, segmentation.segments
    )
    _warn_empty(
        warp, moved.grid, segmentation.grid, np.stack([layer[::2, ::2, ::2] for layer in moved.layers])
    )
    if output.lower().endswith((".dcm", SLICER[0])):
        save_segments(moved, output, reference)
        return
    array, shared = moved.merged()
    if shared:
        warn(
            f"segments overlap in {shared:,} voxels, which count for the smallest of them; .seg.nrrd and "
            ".dcm keep each whole"
        )
    save_volume(LabelledVolume(array, moved.grid, "segments", moved.segments), output, reference)


def _one_warp(chain: list[Path], grid: Grid | None, moving: Grid) -> Warp:
    """The warp of one file or of a chain, with a warning where it is elsewhere than the result."""
    from regkit.transforms import compose, is_chain, read_chain

    if is_chain(chain):
        warp = compose(read_chain(chain, grid, moving), grid, moving)
    else:
        warp = load_warp(chain[0], grid, moving)
    if grid is not None:
        _warn_elsewhere(warp, grid)
    return warp


def _lattice(grid: Grid) -> Float64:
    """Points spread over a grid, LPS mm (n, 3), of at most some 4000 voxels."""
    import numpy as np

    from regkit.core.geometry import transform_points

    axes = [np.linspace(0, n - 1, min(n, 16)).round() for n in grid.size]
    return transform_points(grid.index_to_world, np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3))


def _warn_elsewhere(warp: Warp, reference: Grid) -> None:
    from regkit.warp import contains

    share = contains(warp.grid, _lattice(reference)).mean()
    if share < 0.5:
        warn(
            f"only {100 * share:.0f} % of the reference lies in the warp's field, and the rest is not moved; "
            "is it the fixed image of this warp?"
        )


def _warn_empty(warp: Warp, result: Grid, moving: Grid, moved: np.ndarray) -> None:
    from regkit.warp import contains

    share = contains(moving, warp.transform_points(_lattice(result))).mean()
    if share == 0 or moved.min() == moved.max():
        warn(
            "the result holds nothing of the image: the warp leads no voxel into it; is it the moving image "
            "of this warp, and does the warp go from fixed to moving?"
        )
    elif share < _LITTLE:
        warn(
            f"only {100 * share:.1f} % of the result shows the image; is it the moving image of this warp, "
            "and does the warp go from fixed to moving?"
        )


def jacobian(
    warp: WarpFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="An image of the determinant: 1 keeps the volume, 0 or less is a fold."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A mask on the voxels of the warp: measure only there.")
    ] = None,
    fixed: FixedGrid = None,
    moving: MovingGrid = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure the volume change of a warp: folding, range and spread of its Jacobian determinant."""
    check_outputs([(output, IMAGES)], (warp, mask, fixed, moving), overwrite, recorded=output)

    import numpy as np

    from regkit.io.images import load_mask
    from regkit.io.outputs import save_image
    from regkit.ops.jacobian import Smoothness

    field = load_warp(warp, optional_grid(fixed, "fixed image"), optional_grid(moving, "moving image"))
    inside = None if mask is None else load_mask(mask, "mask", field.grid).array
    volume = field.jacobian()
    values = volume.array if inside is None else volume.array[inside]
    measures = {
        **Smoothness.of(volume.array, inside).to_dict(),
        "minimum": float(values.min()),
        "median": float(np.median(values)),
        "maximum": float(values.max()),
    }
    if output:
        with recorded({"jacobian": output}, {"warp": warp, "fixed": fixed, "moving": moving}):
            save_image(volume.to_sitk(), output)
    if as_json:
        print_json({"warp": str(warp), **measures, "output": None if output is None else str(output)})
        return
    print_facts(
        [
            ("folding", f"{measures['folding_percent']:.4g} % of the voxels"),
            (
                "determinant",
                " ".join(f"{name} {measures[name]:.3f}" for name in ("minimum", "median", "maximum")),
            ),
            ("SD of log J", f"{measures['sd_log_jacobian']:.4f}"),
        ]
    )
    if output:
        typer.echo(f"wrote {output}")


def invert(
    warp: WarpFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", show_default=False, help="The file of the inverse warp.")
    ],
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            "--moving",
            metavar="IMAGE",
            show_default=False,
            help="The moving image. The inverse lies on its voxels.",
        ),
    ],
    fixed: FixedGrid = None,
    overwrite: Overwrite = False,
) -> None:
    """Compute the warp from the moving image back to the fixed one."""
    check_outputs([(output, WARPS)], (warp, reference, fixed), overwrite, recorded=output)
    forward = load_warp(warp, optional_grid(fixed, "fixed image"), optional_grid(reference, "reference"))
    inverse = forward.inverse()
    with recorded({"inverse": output}, {"warp": warp, "moving": reference, "fixed": fixed}):
        inverse.save(output)
    typer.echo(f"wrote {output}")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", show_default=False, help="A warp or transform of any format (docs/formats.md)."
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="The file to write.")],
    to: Annotated[
        Literal["itk", "dispvect", "h5", "l2r"] | None,
        typer.Option(
            show_default=False,
            help="itk: displacement field of ITK, ANTs and SimpleITK. dispvect: the same as the NIfTI "
            "standard has it (RAS). h5: ITK composite. l2r: Learn2Reg, in voxels. Default: h5 for .h5, l2r "
            "for .npz, else itk.",
        ),
    ] = None,
    fixed: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="The fixed image. The warp is resampled on its voxels. Learn2Reg and matrices need it.",
        ),
    ] = None,
    moving: MovingGrid = None,
    warp_spacing: WarpSpacing = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a warp to another format, or a linear transform to ITK's (.tfm .txt .mat)."""
    from regkit.transforms import existing

    inputs = (existing(source), fixed, moving)
    check_outputs([(output, (*WARPS, *_LINEAR))], inputs, overwrite, recorded=output)

    from regkit.io.formats import read_linear, write_linear
    from regkit.transforms import coarsened
    from regkit.warp import Warp

    if warp_spacing is not None and (to == "l2r" or output.suffix in (".npz", *_LINEAR)):
        raise typer.BadParameter("is of warps that have voxels of their own", param_hint="--warp-spacing")
    grids = optional_grid(fixed, "fixed image"), optional_grid(moving, "moving image")
    stored: dict[str, CoarsenedWarp] = {}
    made_of = {"transform": inputs[0], "fixed": fixed, "moving": moving}
    with recorded({"transform": output}, made_of, format=to):
        if output.suffix in _LINEAR:
            write_linear(read_linear(source, *grids), output)
        else:
            warp = Warp.load(source, *grids)
            if warp_spacing is not None:
                stored["warp"] = coarsened(warp, warp_spacing)
                warp = stored["warp"].warp
            warp.save(output, to)
    typer.echo(f"wrote {output}")
    print_stored(stored)
