"""``regkit register``: two images in, a warp out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from regkit.cli.console import NOT_RIGHT, logged, print_json, progress
from regkit.cli.files import (
    IMAGES,
    LABELS,
    MATRICES,
    PICTURES,
    REPORTS,
    SERIES,
    WARPS,
    check_log,
    check_outputs,
    in_series,
)
from regkit.cli.options import (
    KNOWN,
    OUTPUTS,
    AsJson,
    Assignments,
    ChosenPreset,
    Config,
    CtWindow,
    Device,
    Features,
    FixedLandmarks,
    FixedMask,
    FixedSeries,
    Init,
    LabelNames,
    Log,
    Memory,
    Moved,
    MovingLandmarks,
    MovingMask,
    MovingSeries,
    OptionalFixedImage,
    OptionalMovingImage,
    Overwrite,
    Quiet,
    Seed,
    Strict,
    Threads,
    Verbose,
    WarpSpacing,
    Weights,
    chosen_settings,
    start_file,
)
from regkit.cli.report import print_registration, print_stored, print_verdict
from regkit.core.errors import UsageError
from regkit.io.labelnames import read_label_names


def command(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            rich_help_panel=OUTPUTS,
            help="The warp: .nii.gz .nii .mha .nrrd (ITK displacement field), .h5 (ITK composite) or "
            ".npz (Learn2Reg); of the presets 'linear' and 'rigid' also .tfm .txt .mat (ITK transform).",
        ),
    ],
    fixed: OptionalFixedImage = None,
    moving: OptionalMovingImage = None,
    moved: Moved = None,
    moved_labels: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUTS,
            help="The moving labels on the voxels of the fixed image; .seg.nrrd and .dcm keep names.",
        ),
    ] = None,
    inverse: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUTS, help="The inverse warp, on the voxels of the moving image."),
    ] = None,
    warp_spacing: WarpSpacing = None,
    linear: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUTS, help="The linear start alone, as an ITK transform: .tfm .txt .mat .h5."
        ),
    ] = None,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUTS,
            help="The possible error of the warp in mm, on the voxels of the fixed image.",
        ),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUTS, help="A picture of before and after (.png).")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUTS,
            help="An HTML page in one file: verdict, slices, measures, settings.",
        ),
    ] = None,
    report_3d: Annotated[
        Path | None,
        typer.Option(
            "--report-3d",
            rich_help_panel=OUTPUTS,
            help="A page with the volumes to move through, drawn by NiiVue (.html): extra report3d.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    fixed_series: FixedSeries = None,
    moving_series: MovingSeries = None,
    more_fixed: Annotated[
        list[Path] | None,
        typer.Option(
            "--fixed",
            metavar="FILE",
            show_default=False,
            rich_help_panel=KNOWN,
            help="Another image of the same body as FIXED, such as T2 beside T1. It is compared with the "
            "--moving at the same position, or with MOVING if there is no --moving. Repeatable.",
        ),
    ] = None,
    more_moving: Annotated[
        list[Path] | None,
        typer.Option(
            "--moving",
            metavar="FILE",
            show_default=False,
            rich_help_panel=KNOWN,
            help="Another image of the same body as MOVING. Repeatable.",
        ),
    ] = None,
    fixed_landmarks: FixedLandmarks = None,
    moving_landmarks: MovingLandmarks = None,
    guide_labels: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="FIXED MOVING",
            show_default=False,
            rich_help_panel=KNOWN,
            help="Two label maps to align as well. Only labels that both of them have count.",
        ),
    ] = None,
    fixed_mask: FixedMask = None,
    moving_mask: MovingMask = None,
    fixed_labels: Annotated[
        Path | None,
        typer.Option(rich_help_panel=KNOWN, help="Label map of the fixed image, only to measure the result."),
    ] = None,
    moving_labels: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=KNOWN, help="Label map of the moving image, only to measure the result."
        ),
    ] = None,
    label_names: LabelNames = None,
    init: Init = "auto",
    features: Features = "network+mind",
    weights: Weights = None,
    preset: ChosenPreset = None,
    config: Config = None,
    assignments: Assignments = None,
    ct_window: CtWindow = None,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    seed: Seed = 0,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log: Log = None,
) -> None:
    """Find the warp that brings MOVING onto FIXED. FIXED comes first.

    The warp takes points of FIXED to points of MOVING, in LPS mm. ITK, SimpleITK, ANTs and 3D Slicer resample
    MOVING with it.
    """
    fixed_images = [*([fixed] if fixed else []), *(more_fixed or [])]
    moving_images = [*([moving] if moving else []), *(more_moving or [])]
    if not fixed_images or not moving_images:
        raise typer.BadParameter("give two images", param_hint="FIXED MOVING")
    if (fixed_landmarks is None) != (moving_landmarks is None):
        both = "--fixed-landmarks --moving-landmarks"
        raise typer.BadParameter("give both, in the same order", param_hint=both)
    if moved_labels and not moving_labels:
        raise typer.BadParameter("needs --moving-labels", param_hint="--moved-labels")
    if fixed_labels and not moving_labels:
        raise typer.BadParameter("needs --moving-labels", param_hint="--fixed-labels")
    if moving_labels and not (fixed_labels or moved_labels):
        raise typer.BadParameter("needs --fixed-labels or --moved-labels", param_hint="--moving-labels")
    if label_names and not (fixed_labels and moving_labels):
        raise typer.BadParameter("needs --fixed-labels and --moving-labels", param_hint="--label-names")
    base, changes, settings = chosen_settings(preset, config, assignments)
    if uncertainty and not settings.deformable:
        raise typer.BadParameter(
            "needs a preset that deforms: a linear start has no uncertainty", param_hint="--uncertainty"
        )
    if settings.deformable and output.suffix in MATRICES and output.suffix not in WARPS:
        raise UsageError(
            f"'{output}' can hold only a linear result: give a name that ends in {', '.join(WARPS)}, or add "
            "--preset linear or rigid"
        )
    start = start_file(init)
    outputs = {
        "warp": (output, WARPS if settings.deformable else (*WARPS, *MATRICES)),
        "moved": (moved, SERIES),
        "moved_labels": (moved_labels, LABELS),
        "inverse": (inverse, WARPS),
        "linear": (linear, MATRICES),
        "uncertainty": (uncertainty, IMAGES),
        "figure": (figure, PICTURES),
        "report": (report, REPORTS),
        "report_3d": (report_3d, REPORTS),
    }
    inputs = (
        *fixed_images,
        *moving_images,
        fixed_landmarks,
        moving_landmarks,
        *(guide_labels or ()),
        fixed_mask,
        moving_mask,
        fixed_labels,
        moving_labels,
        label_names,
        start,
        weights,
        config,
    )
    check_log(log)
    if warp_spacing is not None and any(str(path).endswith(".npz") for path in (output, inverse)):
        raise typer.BadParameter(
            "a Learn2Reg warp (.npz) is of the image's own voxels", param_hint="--warp-spacing"
        )
    check_outputs(outputs.values(), inputs, overwrite, recorded=output)
    names = read_label_names(label_names)
    fixed_image = in_series(fixed_images[0], fixed_series)
    moving_image = in_series(moving_images[0], moving_series)
    ours, theirs = [fixed_image, *fixed_images[1:]], [moving_image, *moving_images[1:]]
    if not quiet:
        names_given = (",".join(map(str, images)) for images in (fixed_images, moving_images))
        typer.echo("fixed={} moving={}".format(*names_given), err=True)

    from regkit.runtime.process import prepare_to_compute

    prepare_to_compute()
    from regkit.io.provenance import command_line, record_of
    from regkit.registration import register
    from regkit.result_files import check_dicom, write_results
    from regkit.verdict import FAIL

    check_dicom(moved, moved_labels, fixed_image)
    if report_3d is not None:
        from regkit.viz.htmlvolumes import check_niivue

        check_niivue()

    kinds = {"moved": moved or figure or report_3d, "inverse": inverse, "h5": str(output).endswith(".h5")}
    with progress(quiet) as on_progress, logged(quiet, verbose, log):
        result = register(
            ours,
            theirs,
            fixed_landmarks=fixed_landmarks,
            moving_landmarks=moving_landmarks,
            guide_labels=guide_labels,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            label_names=names,
            init=init,
            features=features,
            weights=weights,
            preset=base,
            settings=changes,
            ct_window=ct_window,
            device=device,
            threads=threads,
            seed=seed,
            progress=on_progress,
            memory=memory,
            outputs=[name for name, requested in kinds.items() if requested],
        )
    files = {name: path for name, (path, _) in outputs.items() if path}
    roles = {
        "fixed": ours if len(ours) > 1 else fixed_image,
        "moving": theirs if len(theirs) > 1 else moving_image,
        "fixed_landmarks": fixed_landmarks,
        "moving_landmarks": moving_landmarks,
        "guide_labels": guide_labels and list(guide_labels),
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
    }
    roles |= {"fixed_labels": fixed_labels, "moving_labels": moving_labels, "init": start, "config": config}
    record = record_of(roles, result.to_dict()["settings"], command_line())
    begun = time.perf_counter()
    stored = write_results(
        result,
        files,
        fixed_image,
        fixed_labels,
        moving_labels,
        moving=moving_image,
        label_names=names,
        record=record,
        warp_spacing=warp_spacing,
    )
    result = result.with_writing(time.perf_counter() - begun)
    if as_json:
        written = {name: str(path) for name, path in files.items()}
        images = {"fixed": str(fixed_images[0]), "moving": str(moving_images[0])}
        whole = {**images, **result.to_dict(), "outputs": written}
        if stored:
            whole["stored"] = {name: coarse.to_dict() for name, coarse in stored.items()}
        print_json(whole)
    elif not quiet:
        print_registration(result)
        for path in files.values():
            typer.echo(f"wrote {path}")
        print_stored(stored)
        print_verdict(result.verdict)
    if strict and result.verdict.level == FAIL:
        raise typer.Exit(NOT_RIGHT)
