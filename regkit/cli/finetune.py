"""``regkit finetune``: a segmenter from a few labelled volumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from regkit.cli.console import print_json, print_table, warn
from regkit.cli.options import AsJson, Device, LabelNames, Quiet, Seed, Threads
from regkit.io.labelnames import read_label_names

if TYPE_CHECKING:
    from regkit.segmentation.training import Finetuned

_RUN = "Training"


def command(
    images: Annotated[
        Path, typer.Option(metavar="FOLDER", show_default=False, help="Images: .nii.gz .nii .nrrd .mha .mhd.")
    ],
    labels: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            help="Their label maps, with the same grids and names, but for endings such as _0000 of images "
            "and _seg or _labels of label maps. May be the folder of the images.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="MODEL",
            show_default=False,
            help="The folder of the model. If it holds a run that was stopped, the run resumes.",
        ),
    ],
    shots: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Volumes to train on, drawn by --seed. Default: all but those to validate on.",
        ),
    ] = None,
    validation: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=False,
            help="Volumes to hold out, which choose the best weights. Default: a fifth, at most 4.",
        ),
    ] = None,
    label_names: LabelNames = None,
    init: Annotated[
        Literal["pretrained", "random"],
        typer.Option(
            rich_help_panel=_RUN, help="Initial weights: those of regkit's network, or random ones."
        ),
    ] = "pretrained",
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_RUN,
            help="Initial weights, .safetensors or .pth. Default: the bundled ones.",
        ),
    ] = None,
    contrast: Annotated[
        Literal["same", "any"],
        typer.Option(
            rich_help_panel=_RUN,
            help="Contrast of the images to segment: the same as in training, or any, such as MR after CT.",
        ),
    ] = "same",
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=_RUN, help="Optimiser steps.")] = 500,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.0,
            show_default=False,
            rich_help_panel=_RUN,
            help="Time limit. Default: all steps.",
        ),
    ] = math.inf,
    spacing: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="MM",
            show_default=False,
            rich_help_panel=_RUN,
            help="Voxel size at which the network works. Default: that of the images, isotropic, at least 1 "
            "mm.",
        ),
    ] = None,
    patch: Annotated[int, typer.Option(min=1, rich_help_panel=_RUN, help="Side of a patch, voxels.")] = 64,
    batch: Annotated[int, typer.Option(min=1, rich_help_panel=_RUN, help="Patches per step.")] = 2,
    learning_rate: Annotated[
        float, typer.Option(rich_help_panel=_RUN, help="The highest learning rate.", show_default=True)
    ] = 2e-3,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a segmenter on a few labelled volumes, from the network that regkit registers with.

    MODEL gets the weights that were best on the held-out volumes (model.safetensors), a log, and a picture of
    the losses. Ctrl-C and SIGTERM save a checkpoint, from which the same command resumes, and exit with code
    130. A second Ctrl-C ends the run at once.
    """
    from regkit.segmentation.files import labelled_files, split

    names = read_label_names(label_names)
    chosen, held = split(labelled_files(images, labels), shots, validation, seed)
    if not quiet:
        for role, cases in (("train on", chosen), ("validate on", held)):
            typer.echo(f"{role}: {', '.join(case.name for case in cases) or 'nothing'}", err=True)
    if not held:
        warn("no volume is held out: the last weights are kept, and nothing tells how good they are")

    from regkit.runtime.process import tune

    tune()
    from regkit.segmentation.training import Finetuning, finetune
    from regkit.training.session import step_progress

    settings = Finetuning(
        init=init,
        spacing=spacing,
        patch=patch,
        batch=batch,
        steps=steps,
        learning_rate=learning_rate,
        contrast=contrast,
        seed=seed,
    )
    with step_progress(steps, quiet) as report:
        result = finetune(
            [(case.image, case.labels) for case in chosen],
            output,
            [(case.image, case.labels) for case in held],
            label_names=names,
            settings=settings,
            weights=weights,
            minutes=minutes,
            device=device,
            threads=threads,
            report=report,
        )
    if as_json:
        print_json(result.to_dict())
    elif not quiet:
        _print(result)
    if not result.finished:
        # As after any Ctrl-C, so that a script does not take what is there for the model that it asked for.
        typer.echo(
            f"stopped after step {result.step} of {steps}; run the same command again to resume", err=True
        )
        raise typer.Exit(130)


def _print(result: Finetuned) -> None:
    if result.best:
        rows = [(name, f"{dice:.3f}") for name, dice in result.best.labels.items()]
        print_table(("label", f"Dice, step {result.best.step}"), rows, ("mean", f"{result.best.dice:.3f}"))
    if result.finished and result.before == result.step:
        typer.echo(f"finished already, at step {result.step} of {result.steps}: {result.model}")
        return
    for path in (result.model, result.picture):
        if path and path.exists():  # one that was stopped at once has left none
            typer.echo(f"wrote {path}")
