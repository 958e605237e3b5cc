"""Compare features in the same solver, from the same linear start, on the open pairs.

    python benchmarks/features.py [--weights FILE] [--features mind network network+mind] [-o FILE]

The linear start of each pair and direction is found once, with MIND, and given to all. So the rows of a
pair differ in the features of the deformable stages alone: iterations, search range and regularisation are
the preset's. Labels and landmarks are for measuring alone. Data as for open_pairs.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from open_pairs import ROOT, apart, pair_names, run, setting, write_rows

NAMES = ("mind", "network", "network+mind")


def linear_start(name: str, direction: str) -> list[list[float]]:
    """The matrix that the search with MIND finds."""
    linear: list[list[float]] = run(name, direction, {"preset": "linear"})["linear"]
    return linear


def measure(name: str, direction: str, start: list[list[float]], options: dict[str, Any]) -> dict[str, Any]:
    return run(name, direction, {"init": np.array(start), **options})


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| fixed <- moving | features | Dice linear | after | common field | TRE mm linear | after "
        "| folding % | SDlogJ | s features | coarse | fine | peak MB |",
        "|---|---|" + "--:|" * 11,
    ]
    for row in rows:
        metrics, seconds = row["metrics"], row["seconds"]
        cells = [f"{row['pair']}, {row['direction']}", row["settings"]["features"]]
        cells += [f"{metrics['mean_dice'][stage]:.3f}" for stage in ("linear", "after")]
        cells.append(f"{row['dice_in_common_field']['after']:.3f}")
        tre = row.get("tre_mm")
        cells += [f"{tre[stage]:.2f}" if tre else "" for stage in ("linear", "after")]
        cells += [f"{metrics['folding_percent']:.4f}", f"{metrics['sd_log_jacobian']:.3f}"]
        cells += [f"{seconds[stage]:.1f}" for stage in ("features", "coarse", "fine")]
        lines.append("| " + " | ".join([*cells, f"{row['memory_mb']['peak']:.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="of the network; by default those that come with regkit")
    parser.add_argument("--features", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--pairs", nargs="+", default=pair_names())
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "features")
    arguments = parser.parse_args()
    options = {"preset": arguments.preset, "threads": arguments.threads}
    rows: list[dict[str, Any]] = []
    for name in arguments.pairs:
        for direction in ("as given", "exchanged"):
            start = apart(linear_start, name, direction)
            for features in arguments.features:
                weights = None if features == "mind" else arguments.weights
                own = {**options, "features": features, "weights": weights}
                rows.append(apart(measure, name, direction, start, own))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    command = f"python benchmarks/features.py --preset {arguments.preset}"
    if arguments.weights:
        command += f" --weights {arguments.weights.name}"
    if arguments.threads:
        command += f" --threads {arguments.threads}"
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
