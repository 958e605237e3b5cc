"""Undo known random warps of the brain CT/T1 pair.

    python benchmarks/known_warps.py [--seeds 10] [--same] [-o benchmarks/results/known_warps]

Both templates are in MNI space. For each seed the CT is moved by a known map V (rotation up to 10
degrees, translation up to 15 mm, a smooth bend of 12 mm at its peak) and registered to the T1 by T.
Brains of different ages differ in shape, so that a registration T0 of the pair as it lies is not the
identity. Two errors over the points p of the brain: against the MNI identity, ``|T(p) - V(p)|``, and of
undoing, ``|T(p) - V(T0(p))|``. With ``--same`` the T1 itself is moved: no other modality, but an exact truth.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from open_pairs import ROOT, SHARED, setting, write_rows
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import regkit
from regkit.core.geometry import slab_index, transform_points
from regkit.ops.jacobian import jacobian_determinant

BEND_MM, BEND_SIGMA_MM, ROTATION_DEG, SHIFT_MM = 12.0, 25.0, 10.0, 15.0


def known_map(
    grid: regkit.Grid,
    moving_grid: regkit.Grid,
    seed: int,
    *,
    bend_mm: float = BEND_MM,
    sigma_mm: float = BEND_SIGMA_MM,
    rotation_deg: float = ROTATION_DEG,
    shift_mm: float = SHIFT_MM,
) -> regkit.Warp:
    """V on the fixed grid: p -> R (p + bend(p) - centre) + centre + shift, free of folds.

    Args:
        bend_mm: length of the bend at its peak.
        sigma_mm: of the Gaussian that smooths it.
        rotation_deg, shift_mm: the most that the rotation and the translation can be.
    """
    random = np.random.default_rng(seed)
    sigma = sigma_mm / np.asarray(grid.spacing[::-1])
    bend = np.stack([gaussian_filter(random.standard_normal(grid.shape), sigma) for _ in range(3)], axis=-1)
    bend *= bend_mm / np.linalg.norm(bend, axis=-1).max()
    turn = Rotation.from_rotvec(random.uniform(-1, 1, 3) * np.radians(rotation_deg) / np.sqrt(3)).as_matrix()
    shift = random.uniform(-1, 1, 3) * shift_mm / np.sqrt(3)
    points = transform_points(grid.index_to_world, slab_index(grid, 0, grid.shape[0]))
    field = (points + bend - grid.centre) @ turn.T + grid.centre + shift - points
    warp = regkit.Warp(field.astype(np.float32), grid, moving_grid)
    assert jacobian_determinant(warp.field, grid).min() > 0.2, "the known map must not fold"
    return warp


def run(seed: int | None, resting: np.ndarray | None, same: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Errors in mm over the brain, and where T took its points.

    Args:
        seed: of V; None registers the pair as it lies.
        resting: where T0 takes the points, to measure the undoing against.
        same: whether the T1 is registered to itself.
    """
    folder = SHARED / "data" / "pairs" / "brain-ct-t1"
    fixed = regkit.load_image(folder / "t1.nii.gz", "fixed image")
    moving = fixed if same else regkit.load_image(folder / "ct_stripped.nii.gz", "moving image")
    labels = regkit.load_labels(folder / "t1_labels.nii.gz", "fixed labels")
    points = transform_points(fixed.grid.index_to_world, np.argwhere(labels.array > 0)[::97, ::-1])
    truth = undone = points
    if seed is not None:
        known = known_map(fixed.grid, moving.grid, seed)
        truth, undone = known.transform_points(points), known.transform_points(resting)
        moving = known.inverse().apply(moving)
    result = regkit.register(fixed, moving)
    mapped = result.warp.transform_points(points)
    error = regkit.target_registration_error
    row = {
        "seed": seed,
        "before_mm": float(error(points, truth).mean()),
        "linear_mm": float(error(transform_points(result.linear, points), truth).mean()),
        "after_mm": float(error(mapped, truth).mean()),
        "undone_mm": None if seed is None else float(error(mapped, undone).mean()),
        "undone_p95_mm": None if seed is None else float(np.percentile(error(mapped, undone), 95)),
        "folding_percent": result.metrics["folding_percent"],
        "seconds": result.timings["total"],
    }
    return row, mapped


MEASURES = ("before_mm", "linear_mm", "after_mm", "undone_mm", "undone_p95_mm", "folding_percent", "seconds")


def table(rows: list[dict[str, Any]]) -> str:
    heads = ("TRE mm before", "linear", "after", "undone to", "95 %", "folding %", "s")
    lines = ["| seed | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    warped = [row for row in rows if row["seed"] is not None]
    medians = {name: float(np.median([row[name] for row in warped])) for name in MEASURES}
    for row in (*rows, medians | {"seed": "median of the seeds"}):
        name = "as it lies (T0)" if row["seed"] is None else row["seed"]
        cells = ["" if row[measure] is None else f"{row[measure]:.2f}" for measure in MEASURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--same", action="store_true", help="move the T1 in place of the CT")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "known_warps")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    resting = None
    for seed in (None, *range(arguments.seeds)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            row, mapped = fresh.submit(run, seed, resting, arguments.same).result()
        resting = mapped if seed is None else resting
        rows.append(row)
        print(row, flush=True)
    command = f"python benchmarks/known_warps.py --seeds {arguments.seeds}" + " --same" * arguments.same
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
