"""``regkit rigid``: two images in, a linear transform out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from regkit.cli import register
from regkit.cli.options import (
    AsJson,
    CtWindow,
    Device,
    FixedImage,
    FixedLandmarks,
    FixedMask,
    FixedSeries,
    Log,
    Moved,
    MovingImage,
    MovingLandmarks,
    MovingMask,
    MovingSeries,
    Overwrite,
    Quiet,
    Strict,
    Threads,
    Verbose,
)


def command(
    fixed: FixedImage,
    moving: MovingImage,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="The transform: .tfm .txt .mat (ITK), or a displacement field as 'regkit register' writes.",
        ),
    ],
    model: Annotated[
        Literal["rigid", "similarity", "affine"],
        typer.Option(
            help="rigid: rotation and translation. similarity: also one scale. affine: also three scales and "
            "shear. What goes beyond rigid is kept only if the images then agree better."
        ),
    ] = "rigid",
    moved: Moved = None,
    overwrite: Overwrite = False,
    fixed_series: FixedSeries = None,
    moving_series: MovingSeries = None,
    fixed_landmarks: FixedLandmarks = None,
    moving_landmarks: MovingLandmarks = None,
    fixed_mask: FixedMask = None,
    moving_mask: MovingMask = None,
    ct_window: CtWindow = None,
    device: Device = "auto",
    threads: Threads = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log: Log = None,
) -> None:
    """Find the rigid transform that brings MOVING onto FIXED, or a similarity or affine one.

    The transform takes points of FIXED to points of MOVING, in LPS mm, as in ITK, SimpleITK, ANTs and 3D
    Slicer.
    """
    register.command(
        output,
        fixed,
        moving,
        fixed_landmarks=fixed_landmarks,
        moving_landmarks=moving_landmarks,
        moved=moved,
        overwrite=overwrite,
        fixed_series=fixed_series,
        moving_series=moving_series,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        preset="rigid",
        assignments=[f"linear_model={model}"],
        ct_window=ct_window,
        device=device,
        threads=threads,
        strict=strict,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
        log=log,
    )
