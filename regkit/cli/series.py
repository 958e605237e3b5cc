"""``regkit series``: a 4-D image without the motion between its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from regkit.cli.console import print_facts, print_json, progress
from regkit.cli.files import IMAGES, check_outputs, recorded
from regkit.cli.options import (
    AsJson,
    Device,
    Features,
    Overwrite,
    Preset,
    Quiet,
    Seed,
    Threads,
    Weights,
)

_SERIES, _TABLES = (".nii.gz", ".nii"), (".csv", ".tsv")


def command(
    series: Annotated[
        Path,
        typer.Argument(
            metavar="SERIES", show_default=False, help="A 4-D image: NIfTI, MGH, NRRD, MetaImage."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="The 4-D image without motion, .nii.gz or .nii, with the time step of SERIES.",
        ),
    ],
    mean: Annotated[Path | None, typer.Option(help="The mean of the aligned frames, an image.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="The motion of every frame, .csv or .tsv: translations (mm), rotations (degrees), "
            "displacement since the previous frame."
        ),
    ] = None,
    transforms: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The transforms, from points of the mean to points of each frame: .tfm, or .nii.gz if "
            "deformable. A new or empty folder.",
        ),
    ] = None,
    model: Annotated[
        Literal["rigid", "deformable"],
        typer.Option(
            help="rigid: as a head moves. deformable: then a warp for each frame, as for breathing or the "
            "heart."
        ),
    ] = "rigid",
    rounds: Annotated[
        int, typer.Option(min=1, help="How often to align the frames, each time to a better mean.")
    ] = 2,
    mask: Annotated[
        Path | None, typer.Option(help="A mask on the voxels of SERIES: only these voxels count.")
    ] = None,
    interpolation: Annotated[
        Literal["linear", "bspline", "nearest"],
        typer.Option(
            help="Interpolation of the frames that are written. bspline is sharper and may overshoot."
        ),
    ] = "linear",
    overwrite: Overwrite = False,
    features: Features = "network+mind",
    weights: Weights = None,
    preset: Preset = "default",
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Correct the motion between the frames of a 4-D image, such as fMRI, DCE or cine.

    Each frame is aligned to the mean of all frames, which is refined. The result has the voxels of SERIES.
    """
    inputs = (series, mask, weights)
    outputs = [(output, _SERIES), (mean, IMAGES), (table, _TABLES)]
    check_outputs(outputs, inputs, overwrite, recorded=output)
    _check_folder(transforms)

    from regkit.runtime.process import prepare_to_compute

    prepare_to_compute()
    from regkit.io.atomic import atomic_folder, atomic_path
    from regkit.io.formats import write_linear, write_warp
    from regkit.io.outputs import save_image
    from regkit.series import align_series

    with progress(quiet) as report:
        aligned = align_series(
            series,
            model=model,
            rounds=rounds,
            mask=mask,
            interpolation=interpolation,
            features=features,
            weights=weights,
            preset=preset,
            device=device,
            threads=threads,
            seed=seed,
            progress=report,
        )
    result = aligned.to_dict()
    files = {"series": output, "mean": mean, "table": table}
    with recorded(files, {"series": series, "mask": mask}, **result["settings"]):
        aligned.frames.save(output)
        if mean is not None:
            save_image(aligned.mean.to_sitk(), mean)
        if table is not None:
            with atomic_path(table) as temporary:
                text = aligned.table("\t" if table.suffix == ".tsv" else ",")
                temporary.write_text(text, encoding="utf-8")
        if transforms is not None:
            with atomic_folder(transforms) as folder:
                for k, matrix in enumerate(aligned.matrices):
                    if aligned.warps:
                        write_warp(aligned.warps[k], folder / f"frame-{k:04d}.nii.gz")
                    else:
                        write_linear(matrix, folder / f"frame-{k:04d}.tfm")
    written = {**files, "transforms": transforms}
    if as_json:
        outputs_of = {name: str(path) for name, path in written.items() if path}
        print_json({"series": str(series), **result, "outputs": outputs_of})
    elif not quiet:
        facts = [("frames", str(result["frames"]))]
        for name, key in (("from the mean", "displacement"), ("frame to frame", "framewise_displacement")):
            facts.append(
                (
                    name,
                    f"{result[f'mean_{key}_mm']:.2f} mm on average, {result[f'max_{key}_mm']:.2f} mm at most",
                )
            )
        if result["searched"]:
            facts.append(("looked for anew", "frames " + ", ".join(map(str, result["searched"]))))
        print_facts(facts)
        for path in written.values():
            if path:
                typer.echo(f"wrote {path}")


def _check_folder(folder: Path | None) -> None:
    """Check before any work that a folder can be made."""
    if folder is None:
        return
    from regkit.io.outputs import check_output

    check_output(f"{folder}/", ("/",))
