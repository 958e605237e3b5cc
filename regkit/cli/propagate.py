"""``regkit propagate``: the labels of atlases on an image that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from regkit.cli.console import logged, print_json, progress
from regkit.cli.files import IMAGES, check_log, check_outputs, recorded
from regkit.cli.options import (
    AsJson,
    CtWindow,
    Device,
    Features,
    Init,
    LabelMapOfTarget,
    Log,
    Overwrite,
    Preset,
    Quiet,
    Seed,
    Target,
    Threads,
    Verbose,
    Weights,
    start_file,
)
from regkit.cli.report import print_atlases


def command(
    target: Target,
    atlas: Annotated[
        list[Path],
        typer.Option(
            metavar="IMAGE",
            show_default=False,
            help="An image with labels, of any modality. Repeatable.",
        ),
    ],
    atlas_labels: Annotated[
        list[Path],
        typer.Option(
            metavar="LABELS",
            show_default=False,
            help="The label map of an atlas. One for each --atlas, in the same order.",
        ),
    ],
    output: LabelMapOfTarget,
    confidence: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An image: the share of the votes for the label of each voxel."),
    ] = None,
    fusion: Annotated[
        Literal["similarity", "majority"],
        typer.Option(
            help="How atlases vote. similarity: around each voxel, atlases that fit TARGET better count "
            "more. majority: all count the same."
        ),
    ] = "similarity",
    overwrite: Overwrite = False,
    init: Init = "auto",
    features: Features = "network+mind",
    weights: Weights = None,
    preset: Preset = "default",
    ct_window: CtWindow = None,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log: Log = None,
) -> None:
    """Segment TARGET: register one or several atlases to it, and fuse their labels on its voxels."""
    if len(atlas) != len(atlas_labels):
        raise typer.BadParameter(
            f"every --atlas needs its --atlas-labels, but there are {len(atlas)} and {len(atlas_labels)}",
            param_hint="--atlas-labels",
        )
    start = start_file(init)
    outputs = {"labels": output, "confidence": confidence}
    inputs = (target, *atlas, *atlas_labels, start, weights)
    check_log(log)
    check_outputs([(path, IMAGES) for path in outputs.values()], inputs, overwrite, recorded=output)
    if not quiet:
        typer.echo(f"target={target} atlases={','.join(map(str, atlas))}", err=True)

    from regkit.runtime.process import prepare_to_compute

    prepare_to_compute()
    from regkit.io.outputs import save_image
    from regkit.propagation import propagate

    with progress(quiet) as report, logged(not verbose, verbose, log):
        result = propagate(
            target,
            list(zip(atlas, atlas_labels)),
            fusion=fusion,
            init=init,
            features=features,
            weights=weights,
            preset=preset,
            ct_window=ct_window,
            device=device,
            threads=threads,
            seed=seed,
            progress=report,
        )
    written = {name: str(path) for name, path in outputs.items() if path}
    made_of = {"target": target, "atlas": atlas, "atlas_labels": atlas_labels, "init": start}
    with recorded(written, made_of, fusion=fusion, atlases=result.atlases):
        for name, path in written.items():
            save_image(getattr(result, name).to_sitk(), path)
    if as_json:
        print_json({"target": str(target), "fusion": fusion, "atlases": result.atlases, "outputs": written})
    elif not quiet:
        print_atlases(result.atlases)
        for path in written.values():
            typer.echo(f"wrote {path}")
