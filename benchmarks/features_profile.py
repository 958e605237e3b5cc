"""How well parts of the features tell a match from a near miss, in seconds, on the open pairs.

    python benchmarks/features_profile.py [--weights FILE ...] [--pairs choosing] [--known FILE]

The mean cost of each part at the solution of a registration with MIND, divided by its mean when the moving
features are shifted by 1, 2 and 4 cells along each axis: 0 tells every cell from its neighbours, 1 nothing.
It needs no labels, and one registration for all candidates, so that networks can be followed while they
learn. The solution favours MIND, and a low number is no gain by itself: what is coarse has one as well.
features.py is what decides. Data as for open_pairs.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from features import chosen, linear_starts
from open_pairs import DIRECTIONS, SHARED

from regkit.core.settings import named_settings
from regkit.features.maps import MIND, Part, feature_parts
from regkit.io.images import load_image
from regkit.registration import _sources
from regkit.solver.deformable import (
    STRIDE,
    Pyramid,
    coarse_field,
    fine_field,
    fixed_view,
    moving_view,
    plan,
)
from regkit.solver.evidence import differences_near

SHIFTS = (1, 2, 4)  # cells


def candidates(weights: Sequence[Path]) -> dict[str, Part]:
    """MIND, and the network of each file, or the bundled one, by name; asked on voxels of any size."""
    networks = {path.stem: feature_parts("network", path)[1][0] for path in weights}
    return {"mind": MIND} | (networks or {"network": feature_parts("network")[1][0]})


def profile(
    fixed: Pyramid, moving: Pyramid, field: torch.Tensor, shifts: Sequence[int] = SHIFTS
) -> list[float]:
    """Mean cost of a field (3, Z, Y, X), cells, over its mean with shifts of so many cells."""
    maps = fixed.maps[STRIDE], moving.maps[STRIDE]
    differences = differences_near(*maps, moving.offset(STRIDE), field)

    def cost(shift: tuple[int, int, int]) -> float:
        difference, known = differences(shift)
        return float((difference * known).sum() / known.sum().clamp_min(1e-6))

    here = cost((0, 0, 0))
    rows = []
    for far in shifts:
        steps = (np.eye(3, dtype=int) * far * sign for sign in (-1, 1))
        misses = [cost(tuple(step)) for both in steps for step in both.tolist()]
        rows.append(here / max(float(np.mean(misses)), 1e-9))
    return rows


def of_pair(name: str, direction: str, start: np.ndarray, parts: dict[str, Part]) -> dict[str, list[float]]:
    """The profile of each part on a pair, one way."""
    folder = SHARED / "data" / "pairs" / name
    manifest = json.loads((folder / "manifest.json").read_text())
    sides = ("fixed", "moving") if direction == DIRECTIONS[0] else ("moving", "fixed")
    first, second = (load_image(folder / manifest[side], "image") for side in sides)
    settings = named_settings("default")
    work = plan(first.grid, second.grid, settings)
    sources, _ = _sources(first, second, None, None, None, torch.device("cpu"))

    def maps(part: Part) -> tuple[Pyramid, Pyramid]:
        return fixed_view(sources[0], work).features(work, [part]), moving_view(
            sources[1], start, work
        ).features(work, [part])

    fixed, moving = maps(MIND)
    field = coarse_field(fixed, moving, work, lambda: None)
    with torch.enable_grad():
        field = fine_field(fixed, moving, field, settings, lambda: None)
    return {title: profile(*maps(part), field) for title, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, nargs="+", default=[], help="of networks; by default those that come along"
    )
    parser.add_argument("--pairs", nargs="+", default=["choosing"])
    parser.add_argument("--known", type=Path, help="JSON file of linear starts that features.py has kept")
    arguments = parser.parse_args()
    known = json.loads(arguments.known.read_text()) if arguments.known and arguments.known.exists() else {}
    parts = candidates(arguments.weights)
    print("| fixed <- moving | " + " | ".join(f"{name}, {SHIFTS} cells" for name in parts) + " |")
    print("|---|" + "---|" * len(parts))
    with torch.no_grad():
        for name in chosen(arguments.pairs):
            for direction in DIRECTIONS:
                key = f"{name}, {direction}"
                start = known[key][0] if key in known else linear_starts(name, direction, 1)[0]
                rows = of_pair(name, direction, np.array(start), parts)
                cells = [" ".join(f"{value:.2f}" for value in values) for values in rows.values()]
                print(f"| {key} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
