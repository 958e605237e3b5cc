"""``regkit template``: the mean image of a group, of the average shape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regkit.cli.console import number, print_json, print_table, progress, warn
from regkit.cli.options import AsJson, Device, Features, Preset, Quiet, Seed, Threads, Weights


def command(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            show_default=False,
            help="Two or more images of one modality. More are better.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            show_default=False,
            help="Folder for template.nii.gz, affine_mean.nii.gz and warps/. New or empty, or that of a run "
            "that was stopped, which then resumes.",
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="The image whose voxels and pose the template gets. Default: the first of IMAGES.",
        ),
    ] = None,
    affine_rounds: Annotated[int, typer.Option(min=1, help="Rounds of affine registration.")] = 2,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of deformable registration after them.")] = 3,
    features: Features = "network+mind",
    weights: Weights = None,
    preset: Preset = "default",
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a group template: the mean image, of average shape, with a warp to each image.

    Each round registers all images to the previous template, removes the mean deformation, and averages the
    images again.
    """
    from regkit.runtime.process import prepare_to_compute

    prepare_to_compute()
    from regkit.template import build_template

    with progress(quiet) as report:
        made = build_template(
            images,
            output,
            reference=reference,
            affine_rounds=affine_rounds,
            rounds=rounds,
            features=features,
            weights=weights,
            preset=preset,
            device=device,
            threads=threads,
            seed=seed,
            progress=report,
        )
    if failed := made.rounds[-1]["failed"]:
        warn(
            f"the verdict on {len(failed)} of {len(images)} images is FAIL: {', '.join(failed)}; look at "
            "them, and leave out what does not belong"
        )
    if as_json:
        print_json(
            {
                "output": str(output),
                "rounds": made.rounds,
                "transforms": [str(path) for path in made.transforms],
                "settings": made.settings,
            }
        )
    elif not quiet:
        rows = [
            [str(k), row["stage"], number(row["sharpness"], 4), number(row["displacement_mm"], 2)]
            for k, row in enumerate(made.rounds, start=1)
        ]
        print_table(["round", "stage", "sharpness", "bias taken out, mm"], rows)
        typer.echo(f"wrote {output}")
