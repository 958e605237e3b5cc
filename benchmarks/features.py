"""Compare features in the same solver, from the same linear start, on the open pairs.

    python benchmarks/features.py [--weights FILE] [--features mind network network+mind] [-o FILE]

The linear start of each pair and direction is found once, with MIND, and given to all. So the rows of a
pair differ in the features of the deformable stages alone: iterations, search range and regularisation are
the preset's. What a registration reaches hangs on its start by as much as features differ, so each is
repeated from some that are a little off, the same for all features. Labels and landmarks are for measuring
alone. Data as for open_pairs.py.
"""

from __future__ import annotations

import argparse
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from open_pairs import ROOT, SHARED, apart, pair_names, run, setting, write_rows

NAMES = ("mind", "network", "network+mind")
# How far the other starts are off: standard deviations of a shift and of a turn about each axis.
_SHIFT_MM, _TURN_DEGREES = 2.0, 1.0


def linear_starts(name: str, direction: str, count: int) -> list[np.ndarray]:
    """The matrix that the search with MIND finds, and ``count`` - 1 that are off."""
    from scipy.spatial.transform import Rotation

    from regkit.images import load_image

    row = run(name, direction, {"preset": "linear"})
    found = np.array(row["linear"])
    middle = load_image(SHARED / "data" / "pairs" / name / row["settings"]["fixed"], "fixed").grid.centre
    random = np.random.default_rng(0)
    starts = [found]
    for _ in range(count - 1):
        off = np.eye(4)
        off[:3, :3] = Rotation.from_rotvec(random.normal(0, np.radians(_TURN_DEGREES), 3)).as_matrix()
        off[:3, 3] = middle - off[:3, :3] @ middle + random.normal(0, _SHIFT_MM, 3)
        starts.append(found @ off)
    return starts


def mean(rows: list[dict[str, Any]], *keys: str) -> float:
    """The mean over the rows of the number that the keys lead to."""
    return float(np.mean([reduce(lambda found, key: found[key], keys, row) for row in rows]))


def table(groups: list[list[dict[str, Any]]]) -> str:
    """A line for the starts of each pair, direction and features: means, and deviations of Dice."""
    lines = [
        "| fixed <- moving | features | Dice linear | after | common field | TRE mm linear | after "
        "| folding %, most | SDlogJ | s features | coarse | fine | peak MB |",
        "|---|---|" + "--:|" * 11,
    ]
    for rows in groups:
        after = [row["metrics"]["mean_dice"]["after"] for row in rows]
        common = [row["dice_in_common_field"]["after"] for row in rows]
        cells = [f"{rows[0]['pair']}, {rows[0]['direction']}", rows[0]["settings"]["features"]]
        cells.append(f"{mean(rows, 'metrics', 'mean_dice', 'linear'):.3f}")
        cells += [f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in (after, common)]
        for stage in ("linear", "after"):
            cells.append(f"{mean(rows, 'tre_mm', stage):.2f}" if "tre_mm" in rows[0] else "")
        cells.append(f"{max(row['metrics']['folding_percent'] for row in rows):.4f}")
        cells.append(f"{mean(rows, 'metrics', 'sd_log_jacobian'):.3f}")
        cells += [f"{mean(rows, 'seconds', stage):.1f}" for stage in ("features", "coarse", "fine")]
        lines.append("| " + " | ".join([*cells, f"{mean(rows, 'memory_mb', 'peak'):.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="of the network; by default those that come with regkit")
    parser.add_argument("--features", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--pairs", nargs="+", default=pair_names())
    parser.add_argument("--preset", default="default")
    parser.add_argument("--starts", type=int, default=5, help="linear starts for each, the first as found")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "features")
    arguments = parser.parse_args()
    options = {"preset": arguments.preset, "threads": arguments.threads}
    groups: list[list[dict[str, Any]]] = []
    for name in arguments.pairs:
        for direction in ("as given", "exchanged"):
            starts = apart(linear_starts, name, direction, arguments.starts)
            for features in arguments.features:
                weights = None if features == "mind" else arguments.weights
                own = {**options, "features": features, "weights": weights}
                groups.append([apart(run, name, direction, {**own, "init": start}) for start in starts])
                print(table(groups[-1:]).splitlines()[-1], flush=True)
    command = f"python benchmarks/features.py --preset {arguments.preset} --starts {arguments.starts}"
    if arguments.weights:
        command += f" --weights {arguments.weights.name}"
    if arguments.threads:
        command += f" --threads {arguments.threads}"
    rows = [row for group in groups for row in group]
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n{table(groups)}")


if __name__ == "__main__":
    main()
