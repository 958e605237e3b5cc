"""Register the demo's phantom on voxels of several sizes: with MIND, and with the network beside it.

    python benchmarks/spacings.py [--spacings 3 5 8] [--seeds 3] [--threads N] [-o FILE]

The network sees coarse images at a spacing that it learnt from. What it would be without that is measured
with the same weights in a file that does not tell their spacings. The rows of a phantom share a linear start.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from open_pairs import ROOT, apart, setting, write_rows

import regkit
from regkit.features.weights import bundled_weights, load_network, save_weights
from regkit.synthesis.phantom import torso

# Features, and whether the weights tell their spacings.
COLUMNS = {
    "MIND": ("mind", True),
    "network + MIND": ("network+mind", True),
    "network + MIND, images not resampled": ("network+mind", False),
}


def measure(spacing: float, seed: int, threads: int | None) -> list[dict[str, Any]]:
    """Dice and TRE of a phantom, a row for each of :data:`COLUMNS`."""
    phantom = torso(seed, spacing)
    images = phantom.fixed, phantom.moving
    start = regkit.register(*images, preset="linear", threads=threads).linear
    rows = []
    with TemporaryDirectory() as folder:
        untold = Path(folder) / "untold.safetensors"
        network, provenance = load_network(bundled_weights())
        entries = {key: value for key, value in provenance.items() if key != "spacing"}
        save_weights(untold, network, entries)
        for name, (features, options) in COLUMNS.items():
            weights = None if options else untold
            result = regkit.register(
                *images,
                fixed_labels=phantom.fixed_labels,
                moving_labels=phantom.moving_labels,
                init=start,
                features=features,
                weights=weights,
                threads=threads,
            )
            mapped = result.warp.transform_points(phantom.landmarks_fixed)
            error = regkit.target_registration_error(mapped, phantom.landmarks_moving)
            rows.append(
                {
                    "spacing_mm": spacing,
                    "working_spacing_mm": result.settings["working_spacing_mm"],
                    "seed": seed,
                    "features": name,
                    "dice": result.metrics["mean_dice"],
                    "tre_mm": float(np.mean(error)),
                    "folding_percent": result.metrics["folding_percent"],
                    "seconds": dict(result.timings),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds."""
    lines = ["| voxels mm | features | Dice linear | after | TRE mm | folding % |", "|--:|---|" + "--:|" * 4]
    for spacing in dict.fromkeys(row["spacing_mm"] for row in rows):
        for name in COLUMNS:
            own = [row for row in rows if (row["spacing_mm"], row["features"]) == (spacing, name)]
            linear, after = (np.mean([row["dice"][stage] for row in own]) for stage in ("linear", "after"))
            tre, folding = (np.mean([row[key] for row in own]) for key in ("tre_mm", "folding_percent"))
            lines.append(f"| {spacing:g} | {name} | {linear:.3f} | {after:.3f} | {tre:.2f} | {folding:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spacings", type=float, nargs="+", default=[3, 5, 8], metavar="MM")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "spacings")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for spacing in arguments.spacings:
        for seed in range(arguments.seeds):
            rows += apart(measure, spacing, seed, arguments.threads)
            print(table(rows), flush=True)
    command = f"python benchmarks/spacings.py --spacings {' '.join(f'{s:g}' for s in arguments.spacings)}"
    command += f" --seeds {arguments.seeds}"
    if arguments.threads:
        command += f" --threads {arguments.threads}"
    write_rows(rows, arguments.output, f"`{command}`, {setting()}. Means over the seeds.\n\n{table(rows)}")


if __name__ == "__main__":
    main()
