"""``regkit pretrain``: the network trained on synthetic pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from regkit.cli.options import Anatomies, Templates, TrainingThreads


def command(
    config: Annotated[
        Path,
        typer.Option(metavar="FILE", show_default=False, help="A configuration, such as models/NAME.yaml."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            show_default=False,
            help="The folder of the run. If it holds checkpoints, the run resumes.",
        ),
    ],
    templates: Templates = None,
    anatomies: Anatomies = None,
    minutes: Annotated[
        float, typer.Option(min=0.0, show_default=False, help="Time limit. Default: all steps.")
    ] = math.inf,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    threads: TrainingThreads = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that draw anatomies. Default: none, or on a GPU all cores but two, at most 16.",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            show_default=False,
            help="File for the weights. Default: RUN/NAME.safetensors, named after the configuration.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Initial weights of a new run."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            help="Label maps (.nii.gz) on which each checkpoint is scored. The best one is kept.",
        ),
    ] = None,
) -> None:
    """Train the network on synthetic pairs, or resume a run, and export its weights.

    Ctrl-C and SIGTERM save a checkpoint, from which the same command resumes, and exit with code 130. A
    second Ctrl-C ends the run at once.
    """
    from regkit.pretrain.run import pretrain

    outcome = pretrain(
        config,
        output,
        templates=templates or [],
        anatomies=anatomies or [],
        minutes=minutes,
        device=device,
        threads=threads,
        workers=workers,
        weights=export,
        start=start,
        validation=validation,
    )
    for line in outcome.lines() if outcome else ():
        typer.echo(line)
    if outcome and outcome.interrupted:
        raise typer.Exit(130)
