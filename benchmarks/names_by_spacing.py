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
    hits, total = torch.zeros(STRUCTURE_CHANNELS), torch.zeros(STRUCTURE_CHANNELS)
    nothing = within = 0
    for number, anatomy in enumerate(anatomies):
        pair = cut_and_render(anatomy, how, [], Dice.of(_SEED, 1, number), shape)
        found = network(pair.images[0]).argmax(0)
        middle = (slice(network.stride // 2, None, network.stride),) * 3
        truth = pair.structures[0][middle].long()
        for label in range(STRUCTURE_CHANNELS):
            hits[label] += 2 * ((found == label) & (truth == label)).sum()
            total[label] += (found == label).sum() + (truth == label).sum()
        nothing += int(((found == 0) & (truth > 0)).sum())
        within += int((truth > 0).sum())
    return float((hits / total.clamp_min(1))[1:].mean()), nothing / max(1, within)


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
    trunks = [draw_trunk(Dice.of(_SEED, 0, number)) for number in range(arguments.trunks)]
    rows: list[dict[str, Any]] = []
    lines = ["| voxels mm | Dice | called nothing |", "|--:|--:|--:|"]
    for spacing in arguments.spacings:
        dice, nothing = named(network, trunks, how, spacing)
        rows.append({"spacing_mm": spacing, "dice": dice, "called_nothing": nothing})
        lines.append(f"| {spacing:g} | {dice:.3f} | {100 * nothing:.0f} % |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    command = f"python benchmarks/names_by_spacing.py --trunks {arguments.trunks}"
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n{table}")


if __name__ == "__main__":
    main()
