"""A registration's measures as the tables that ``register``, ``propagate`` and ``demo`` print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from regkit.cli.console import number, print_facts, print_table

if TYPE_CHECKING:
    from regkit.registration_result import Registration
    from regkit.transforms import CoarsenedWarp
    from regkit.verdict import Gate, Verdict


def print_labels(
    rows: Sequence[Mapping[str, Any]], mean_dice: Mapping[str, float], mean_hd95: Mapping[str, float]
) -> None:
    """Dice and HD95 of each label, as far as they were measured.

    Args:
        rows: ``name``, ``dice``, ``hd95_mm`` and, where there is a state before, the same with ``before``
            or ``linear``.
        mean_dice: "before", "linear", "after", as many as there are.
        mean_hd95: likewise, mm.
    """
    stages = [stage for stage in ("before", "linear", "after") if stage in mean_dice]
    distances = [stage for stage in ("before", "after") if stage in mean_hd95]
    headings = ["label", *(f"Dice {s}" for s in stages), *(f"HD95 {s}, mm" for s in distances)]
    table = [
        [
            str(row["name"]),
            *(number(row["dice" if s == "after" else f"dice_{s}"], 3) for s in stages),
            *(number(row["hd95_mm" if s == "after" else f"hd95_{s}_mm"], 1) for s in distances),
        ]
        for row in rows
    ]
    mean = ["mean", *(number(mean_dice[s], 3) for s in stages), *(number(mean_hd95[s], 1) for s in distances)]
    print_table(headings, table, mean)
    print()


def print_stored(stored: Mapping[str, CoarsenedWarp]) -> None:
    """What it costs that warps were written on larger voxels.

    Args:
        stored: the warps that were written, by output.
    """
    for name, coarse in stored.items():
        sides = " x ".join(f"{side:.3g}" for side in coarse.warp.grid.spacing)
        typer.echo(
            f"the {name} has voxels of {sides} mm, which moves points by {coarse.mean_mm:.3f} mm on average "
            f"and {coarse.max_mm:.2f} mm at most; apply it with --reference"
        )


def print_registration(result: Registration, more: Sequence[tuple[str, str]] = ()) -> None:
    """What a registration is worth and what it took.

    Args:
        more: further facts, printed first.
    """
    memory, settings = result.memory, result.settings
    if result.label_scores is not None:
        scores = result.label_scores.to_dict()
        print_labels(scores["labels"], scores["mean_dice"], scores["mean_hd95_mm"])
    stages = ", ".join(f"{name} {value:.1f}" for name, value in result.timings.stages.items())
    print_facts(
        [
            *more,
            *_left_out(settings),
            ("folding", f"{result.smoothness.folding_percent:.2f} % of the voxels"),
            *_landmarks(result),
            ("SD of log J", number(result.smoothness.sd_log_jacobian, 3)),
            ("time", f"{result.timings.total:.1f} s ({stages})"),
            ("memory", f"{memory['peak']:.0f} MB at most, {memory['foretold']:.0f} MB foretold"),
        ]
    )


def _landmarks(result: Registration) -> list[tuple[str, str]]:
    """Distances of the landmarks that were given."""
    if result.landmarks_mm is None:
        return []
    stages = (f"{name} {value:.1f}" for name, value in result.landmarks_mm.items())
    return [("landmarks", f"{', '.join(stages)} mm apart on average")]


def print_verdict(verdict: Verdict) -> None:
    """The gates as a table, what those that do not pass say, and the verdict last."""
    typer.echo()
    rows = [
        [gate.name, _with_unit(gate.value, gate.unit), _threshold(gate, gate.warn),
         _threshold(gate, gate.fail), gate.level]
        for gate in verdict.gates
    ]  # fmt: skip
    print_table(["gate", "measured", "WARN", "FAIL", ""], rows)
    typer.echo()
    for gate in verdict.gates:
        unknown = math.isnan(gate.value)
        if unknown or gate.level != "PASS":
            typer.echo(f"{'note' if unknown else gate.level} {gate.name}: {gate.says}")
    many = verdict.level == "FAIL" and all(gate.level != "FAIL" for gate in verdict.gates)
    typer.echo(f"verdict  {verdict.level}{', by all these warnings together' if many else ''}")


def _with_unit(value: float, unit: str) -> str:
    return f"{number(value, 2)} {unit}".rstrip()


def _threshold(gate: Gate, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{'above' if gate.above else 'below'} {number(value, 2)}"


def print_atlases(atlases: Sequence[Mapping[str, Any]]) -> None:
    """What each atlas counted and what its registration took, as from ``Propagation.atlases``."""
    rows = [
        [
            str(atlas["image"]),
            number(100 * atlas["votes"], 1),
            number(atlas["metrics"]["feature_difference"].get("after"), 4),
            number(atlas["seconds"]["total"], 1),
            atlas["verdict"]["level"],
        ]
        for atlas in atlases
    ]
    print_table(["atlas", "votes, %", "difference", "time, s", "verdict"], rows)
    for fact in dict.fromkeys(fact for atlas in atlases for fact in _left_out(atlas["settings"])):
        print_facts([fact])


def _left_out(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was compared, if the network was not, and why."""
    if (
        settings["features"] != "network+mind"
        or "network" in settings["compared"]
        or not settings["compared"]
    ):
        return []
    spacing = settings["working_spacing_mm"]
    rest = "MIND and intensities" if "intensity" in settings["compared"] else "MIND alone"
    if "network" in settings["asked"]:
        return [("features", f"{rest}: the network recognises nothing in this pair")]
    if "network" in settings["known"]:
        return [("features", f"{rest}: they leave no doubt in this pair, so the network was not asked")]
    return [("features", f"{rest}: the network does not know voxels as fine as {spacing:.1f} mm")]
