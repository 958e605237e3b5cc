"""``regkit evaluate``: how good a warp is, on labels and landmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regkit.cli.console import number, print_facts, print_json
from regkit.cli.files import load_warp, optional_grid, warn_outside
from regkit.cli.options import AsJson, FixedGrid, LabelNames, MovingGrid
from regkit.cli.report import print_labels
from regkit.io.labelnames import read_label_names

if TYPE_CHECKING:
    from regkit.core.choices import Stage
    from regkit.core.geometry import Float64
    from regkit.io.images import Volume
    from regkit.warp import Warp


def command(
    fixed_labels: Annotated[Path | None, typer.Option(help="Label map of the fixed image.")] = None,
    moving_labels: Annotated[
        Path | None, typer.Option(help="Label map of the moving image. --warp moves it.")
    ] = None,
    moved_labels: Annotated[
        Path | None,
        typer.Option(
            help="In place of --moving-labels: labels that are moved already, on the fixed image's voxels."
        ),
    ] = None,
    warp: Annotated[
        Path | None,
        typer.Option(help="The warp. Without it, images are compared where their headers place them."),
    ] = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Pairs of points in columns fx,fy,fz,mx,my,mz (LPS mm)."),
    ] = None,
    fixed_points: Annotated[
        Path | None,
        typer.Option(help="In place of --landmarks: points of the fixed image (.csv .fcsv .mrk.json) ..."),
    ] = None,
    moving_points: Annotated[
        Path | None, typer.Option(help="... and the same points in the moving image.")
    ] = None,
    label_names: LabelNames = None,
    fixed: FixedGrid = None,
    moving: MovingGrid = None,
    as_json: AsJson = False,
) -> None:
    """Measure Dice and HD95 of labels, the error of landmarks (TRE) and the folding of a warp."""
    _check_usage(fixed_labels, moving_labels, moved_labels, landmarks, fixed_points, moving_points, warp)
    names = read_label_names(label_names)

    import SimpleITK as sitk

    from regkit.evaluate import LabelScores
    from regkit.io.images import load_labels
    from regkit.warp import resample_labels

    fixed_map = None if fixed_labels is None else load_labels(fixed_labels, "fixed labels")
    moving_map = None if moving_labels is None else load_labels(moving_labels, "moving labels")
    pairs = _read_landmarks(landmarks, fixed_points, moving_points)
    field = None
    if warp is not None:
        fixed_grid = optional_grid(fixed, "fixed image") or (fixed_map.grid if fixed_map else None)
        moving_grid = optional_grid(moving, "moving image") or (moving_map.grid if moving_map else None)
        field = load_warp(warp, fixed_grid, moving_grid)

    result: dict[str, Any] = {}
    if fixed_map is not None and moving_map is not None:
        moved: dict[Stage, Volume] = {
            "before": resample_labels(moving_map, fixed_map.grid, sitk.Transform(3, sitk.sitkIdentity))
        }
        if field is not None:
            moved["after"] = resample_labels(moving_map, fixed_map.grid, field.to_sitk())
        result |= LabelScores.of(fixed_map, moved, names, moving_map).to_dict()
    elif fixed_map is not None and moved_labels is not None:
        after = load_labels(moved_labels, "moved labels", fixed_map.grid)
        result |= LabelScores.of(fixed_map, {"after": after}, names).to_dict()
    if pairs is not None:
        result["landmarks"] = _landmark_errors(*pairs, field)
    if field is not None:
        result["warp"] = _smoothness(field)

    if as_json:
        print_json(result)
    else:
        _print(result)


def _check_usage(
    fixed_labels: Path | None,
    moving_labels: Path | None,
    moved_labels: Path | None,
    landmarks: Path | None,
    fixed_points: Path | None,
    moving_points: Path | None,
    warp: Path | None,
) -> None:
    if not (
        fixed_labels or moving_labels or moved_labels or landmarks or fixed_points or moving_points or warp
    ):
        raise typer.BadParameter("nothing to evaluate: give labels, landmarks or a warp")
    if (fixed_labels is None) != (moving_labels is None and moved_labels is None):
        raise typer.BadParameter("labels go in pairs: --fixed-labels with --moving-labels or --moved-labels")
    if moving_labels and moved_labels:
        raise typer.BadParameter("give --moving-labels (to be moved by --warp) or --moved-labels, not both")
    if (fixed_points is None) != (moving_points is None):
        raise typer.BadParameter("points go in pairs: --fixed-points with --moving-points")
    if landmarks and fixed_points:
        raise typer.BadParameter("give --landmarks, or --fixed-points and --moving-points, not both")


def _read_landmarks(
    landmarks: Path | None, fixed_points: Path | None, moving_points: Path | None
) -> tuple[Float64, Float64] | None:
    from regkit.io.points import read_pairs, read_points

    if landmarks is not None:
        return read_pairs(landmarks)
    if fixed_points is not None and moving_points is not None:
        return read_points(fixed_points), read_points(moving_points)
    return None


def _landmark_errors(fixed: Float64, moving: Float64, warp: Warp | None) -> dict[str, Any]:
    from regkit.evaluate import LandmarkErrors

    errors = LandmarkErrors.of(fixed, moving, warp).to_dict()
    if warp is not None:
        errors["outside"] = warn_outside(fixed, warp.grid, "they count, moved as its border is")
    return errors


def _smoothness(warp: Warp) -> dict[str, float]:
    from regkit.io.formats import to_learn2reg
    from regkit.ops.jacobian import Smoothness, learn2reg_sdlogj

    measures = Smoothness.of(warp.jacobian().array).to_dict()
    # Without the moving grid there are no voxels to count in, and the challenge crops two on each side.
    if warp.moving_grid is not None and min(warp.grid.size) >= 5:
        measures["learn2reg_sdlogj"] = learn2reg_sdlogj(to_learn2reg(warp))
    return measures


def _print(result: dict[str, Any]) -> None:
    if "labels" in result:
        print_labels(result["labels"], result["mean_dice"], result["mean_hd95_mm"])
    facts = []
    if "landmarks" in result:
        marks = result["landmarks"]
        for key, name in (("tre_before_mm", "TRE before"), ("tre_mm", "TRE")):
            if key in marks:
                errors = ", ".join(f"{what} {value:.2f}" for what, value in marks[key].items())
                facts.append((name, f"{errors} mm over {marks['count']} landmarks"))
    if "warp" in result:
        warp = result["warp"]
        facts.append(("folding", f"{warp['folding_percent']:.4g} % of the voxels"))
        facts.append(("SD of log J", number(warp["sd_log_jacobian"], 4)))
        if "learn2reg_sdlogj" in warp:
            facts.append(("SDlogJ", f"{number(warp['learn2reg_sdlogj'], 4)} as Learn2Reg counts it"))
    if facts:
        print_facts(facts)
