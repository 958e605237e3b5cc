"""``regkit apply``, ``jacobian``, ``invert`` and ``convert``: what can be done with a warp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from regkit.cli.console import print_facts, print_json
from regkit.cli.files import IMAGES, WARPS, check_outputs, load_grid, load_warp, warn_outside
from regkit.cli.options import AsJson, FixedGrid, MovingGrid, Overwrite, WarpFile

_POINTS = (".csv", ".fcsv", ".mrk.json")


def apply(
    warp: WarpFile,
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE", show_default=False, help="The moving image, or its labels, to resample."
        ),
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", show_default=False, help="An image; with --points, .csv .fcsv or .mrk.json."
        ),
    ],
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of an image: points in FIXED space, carried to the moving image by the warp "
            "itself. Points of the moving image go the other way: apply the warp of 'regkit invert' to them.",
        ),
    ] = None,
    interpolation: Annotated[
        Literal["linear", "bspline", "nearest", "label"],
        typer.Option(help="For labels: nearest, or label, which keeps outlines smoother."),
    ] = "linear",
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            "--fixed",
            metavar="IMAGE",
            help="Resample on the voxels of this image. Default: on those of the warp. A warp file that "
            "holds no grid needs the fixed image here.",
        ),
    ] = None,
    moving: MovingGrid = None,
    default_value: Annotated[
        float | None,
        typer.Option(help="The value where the image ends. Default: its minimum; 0 for 'label'."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring an image, labels or points through a warp."""
    if (image is None) == (points is None):
        raise typer.BadParameter("give either an image or --points", param_hint="IMAGE")
    kinds = IMAGES if points is None else _POINTS
    check_outputs([(output, kinds)], (warp, image, points, reference, moving), overwrite)
    if points is not None:
        _apply_to_points(warp, points, output, reference, moving)
    elif image is not None:
        _apply_to_image(warp, image, output, interpolation, reference, default_value)
    typer.echo(f"wrote {output}")


def _apply_to_points(
    warp_file: Path, points: Path, output: Path, reference: Path | None, moving: Path | None
) -> None:
    from regkit.points import read_points, write_points

    start = read_points(points)
    warp = load_warp(warp_file, load_grid(reference, "reference"), load_grid(moving, "moving image"))
    warn_outside(start, warp.grid, "they move as the nearest voxel at its border does")
    write_points(output, warp.transform_points(start))


def _apply_to_image(
    warp_file: Path,
    image: Path,
    output: Path,
    interpolation: str,
    reference: Path | None,
    default: float | None,
) -> None:
    import SimpleITK as sitk

    from regkit.images import load_image, load_labels
    from regkit.outputs import save_image

    role = "image to warp"
    volume = load_labels(image, role) if interpolation == "label" else load_image(image, role)
    grid = load_grid(reference, "reference")
    warp = load_warp(warp_file, grid, volume.grid)
    moved = warp.apply(volume, interpolation=interpolation, reference=grid, default=default).to_sitk()
    if interpolation == "nearest":  # makes up no value, so that labels can stay of whole-number type
        same = sitk.Cast(moved, _pixel_type(image))
        if (sitk.GetArrayViewFromImage(same) == sitk.GetArrayViewFromImage(moved)).all():
            moved = same
    save_image(moved, output)


def _pixel_type(image: Path) -> int:
    """SimpleITK's type of the voxels of a file; float32 for a DICOM folder, whose slices may differ."""
    import SimpleITK as sitk

    if image.is_dir():
        return int(sitk.sitkFloat32)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(image))
    reader.ReadImageInformation()
    return int(reader.GetPixelID())


def jacobian(
    warp: WarpFile,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="An image of the determinant: 1 keeps volume, below 0 folds."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Count only here; on the warp's voxels.")] = None,
    fixed: FixedGrid = None,
    moving: MovingGrid = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure how a warp changes volume: folding, range and spread of its Jacobian determinant."""
    check_outputs([(output, IMAGES)], (warp, mask, fixed, moving), overwrite)

    import numpy as np

    from regkit.images import load_mask
    from regkit.jacobian import folding_percent, sd_log_jacobian
    from regkit.outputs import save_image

    field = load_warp(warp, load_grid(fixed, "fixed image"), load_grid(moving, "moving image"))
    inside = None if mask is None else load_mask(mask, "mask", field.grid).array
    volume = field.jacobian()
    values = volume.array if inside is None else volume.array[inside]
    measures = {
        "folding_percent": folding_percent(volume.array, inside),
        "sd_log_jacobian": sd_log_jacobian(volume.array, inside),
        "minimum": float(values.min()),
        "median": float(np.median(values)),
        "maximum": float(values.max()),
    }
    if output:
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
        Path, typer.Option("--output", "-o", show_default=False, help="The inverse, as a warp file.")
    ],
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            "--moving",
            metavar="IMAGE",
            show_default=False,
            help="The moving image: the inverse lies on its voxels.",
        ),
    ],
    fixed: FixedGrid = None,
    overwrite: Overwrite = False,
) -> None:
    """Compute the warp from the moving image back to the fixed one."""
    check_outputs([(output, WARPS)], (warp, reference, fixed), overwrite)
    forward = load_warp(warp, load_grid(fixed, "fixed image"), load_grid(reference, "reference"))
    forward.inverse().save(output)
    typer.echo(f"wrote {output}")


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", show_default=False, help="A warp file of any format.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="The file to write.")],
    to: Annotated[
        Literal["itk", "dispvect", "h5", "l2r"] | None,
        typer.Option(
            show_default=False,
            help="itk: displacement field of ITK, ANTs, SimpleITK. dispvect: the same by the letter of NIfTI "
            "(RAS). h5: ITK composite. l2r: Learn2Reg, in voxels. Default: .h5 is h5, .npz is l2r, else itk.",
        ),
    ] = None,
    fixed: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="The fixed image: the warp is brought to its voxels. Learn2Reg and matrices need it.",
        ),
    ] = None,
    moving: MovingGrid = None,
    overwrite: Overwrite = False,
) -> None:
    """Rewrite a warp in another format."""
    check_outputs([(output, WARPS)], (source, fixed, moving), overwrite)

    from regkit.warp import Warp

    Warp.load(source, load_grid(fixed, "fixed image"), load_grid(moving, "moving image")).save(output, to)
    typer.echo(f"wrote {output}")
