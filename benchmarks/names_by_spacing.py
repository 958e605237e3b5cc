"""How well the bundled network names the structures of painted trunks on voxels of several sizes.

    python benchmarks/names_by_spacing.py [--spacings 1 1.25 1.5 2 3] [--trunks 8] [-o FILE]

Trunks that it has not seen, each drawn once on voxels of each size, over the same 160 x 288 x 336 mm, or as
much of it as the largest volume holds. It is what tells from which voxels on a registration leaves the
network out (``regkit.features``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from open_pairs import ROOT, setting, write_rows

from regkit.metrics import dice, summarise
from regkit.network import NetworkFeatures
from regkit.pretrain.config import load_config
from regkit.pretrain.targets import STRUCTURE_CHANNELS
from regkit.synthesis.anatomies import Anatomy
from regkit.synthesis.noise import Dice
from regkit.synthesis.pairs import Pairs, cut_and_render, draw_trunk
from regkit.weights import bundled_weights

_FIELD_MM = (160, 288, 336)
_LARGEST = 280  # voxels along a side
_SEED = 77  # no run's


def named(
    network: NetworkFeatures, anatomies: Sequence[Anatomy], how: Pairs, spacing: float
) -> tuple[float, float]:
    """Mean Dice over the structures, all trunks together, and the share of them called nothing."""
    shape = tuple(min(_LARGEST, round(mm / spacing / 16) * 16) for mm in _FIELD_MM)
    how = replace(how, spacing=(spacing, spacing), strays=0, offset=0)
    middle = (slice(network.stride // 2, None, network.stride),) * 3
    found, truth = [], []
    for number, anatomy in enumerate(anatomies):
        pair = cut_and_render([anatomy], how, [Dice.of(_SEED, 1, number)], shape)
        found.append(network(pair.images[0]).argmax(0).to(torch.uint8))
        truth.append(pair.structures[0][middle])
    likely, there = (torch.stack(maps).numpy() for maps in (found, truth))
    # What is nowhere found scores 0, since it is there.
    scores = dice(there, likely, range(1, STRUCTURE_CHANNELS), moving_labels=there)
    return summarise(scores.values()), float((likely[there > 0] == 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spacings", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--trunks", type=int, default=8)
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "names_by_spacing"
    )
    arguments = parser.parse_args()
    how = load_config(ROOT / "models" / "regkit-small.yaml").pairs
    network = NetworkFeatures(bundled_weights(), apart=True)
    trunks = [
        draw_trunk(Dice.of(_SEED, 0, number)).with_grain(Dice.of(_SEED, 2, number))
        for number in range(arguments.trunks)
    ]
    rows: list[dict[str, Any]] = []
    lines = ["| voxels mm | Dice | called nothing |", "|--:|--:|--:|"]
    for spacing in arguments.spacings:
        score, nothing = named(network, trunks, how, spacing)
        rows.append({"spacing_mm": spacing, "dice": score, "called_nothing": nothing})
        lines.append(f"| {spacing:g} | {score:.3f} | {100 * nothing:.0f} % |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    command = f"python benchmarks/names_by_spacing.py --trunks {arguments.trunks}"
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n{table}")


if __name__ == "__main__":
    main()
