"""How well a network names the structures of anatomies that it has not seen, on voxels of several sizes.

    python benchmarks/names_by_spacing.py [--spacings 1 1.25 1.5 2 3] [--count 8] [--weights FILE] [-o FILE]
    python benchmarks/names_by_spacing.py --anatomies FOLDER [--spacings ...] [--count 8] [--weights FILE]

Painted trunks, each drawn once on voxels of each size, over the same 160 x 288 x 336 mm, or as much of it as
the largest volume holds; or anatomies of label maps (docs/pretraining.md), as much as 160 voxels hold.
It is what tells from which voxels on a registration leaves the network out (``regkit.features.maps``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from open_pairs import ROOT, setting, write_rows

from regkit.evaluate import dice, summarise
from regkit.features.network import NetworkFeatures
from regkit.features.weights import bundled_weights
from regkit.pretrain.config import load_config
from regkit.pretrain.targets import STRUCTURE_CHANNELS
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.label_maps import LabelMaps, load_label_maps
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs, cut_and_render, draw_trunk

_FIELD_MM = (160, 288, 336)
_MAX_SIDE = 280  # voxels along a side
_FINER = 1.2  # voxels of label maps are so much finer than those of their views
_SEED = 77  # no run's


def of_maps(maps: LabelMaps, count: int, spacing: float) -> list[Anatomy]:
    """Anatomies for views of a spacing: the same heads in the same poses for all."""
    drawn = [maps.draw(Rng.of(_SEED, 0, number), spacing / _FINER) for number in range(count)]
    return [anatomy.with_grain(Rng.of(_SEED, 2, number)) for number, anatomy in enumerate(drawn)]


def named(
    network: NetworkFeatures,
    anatomies: Sequence[Anatomy],
    settings: Pairs,
    spacing: float,
    field_mm: Sequence[float] | None,
) -> tuple[float, float]:
    """Mean Dice over the structures, all anatomies together, and the share of them called nothing."""
    settings = replace(settings, spacing=(spacing, spacing), strays=0, offset=0)
    middle = (slice(network.stride // 2, None, network.stride),) * 3
    recognised, truth = [], []
    for number, anatomy in enumerate(anatomies):
        assert anatomy.spacing is not None
        field = field_mm or [n * anatomy.spacing for n in anatomy.labels.shape]
        shape = tuple(min(_MAX_SIDE, round(mm / spacing / 16) * 16) for mm in field)
        pair = cut_and_render([anatomy], settings, [Rng.of(_SEED, 1, number)], shape)
        recognised.append(network(pair.images[0]).argmax(0).to(torch.uint8).flatten())
        truth.append(pair.structures[0][middle].flatten())
    likely, there = (torch.cat(maps).numpy() for maps in (recognised, truth))
    # What is nowhere found scores 0, since it is there.
    numbers = [number for number in range(1, STRUCTURE_CHANNELS) if (there == number).any()]
    scores = dice(there, likely, numbers, moving_labels=there)
    return summarise(scores.values()), float((likely[there > 0] == 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spacings", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--count", type=int, default=8, help="of anatomies")
    parser.add_argument("--anatomies", type=Path, help="a folder of label maps, in place of painted trunks")
    parser.add_argument("--weights", type=Path, help="by default those that come with regkit")
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "names_by_spacing"
    )
    arguments = parser.parse_args()
    settings = load_config(ROOT / "models" / "regkit-small.yaml").pairs
    network = NetworkFeatures(arguments.weights or bundled_weights(), apart=True)
    maps = load_label_maps(arguments.anatomies) if arguments.anatomies else None
    trunks = [
        draw_trunk(Rng.of(_SEED, 0, number)).with_grain(Rng.of(_SEED, 2, number))
        for number in range(0 if maps else arguments.count)
    ]
    rows: list[dict[str, Any]] = []
    lines = ["| voxels mm | Dice | called nothing |", "|--:|--:|--:|"]
    for spacing in arguments.spacings:
        drawn = of_maps(maps, arguments.count, spacing) if maps else trunks
        score, nothing = named(network, drawn, settings, spacing, None if maps else _FIELD_MM)
        rows.append({"spacing_mm": spacing, "dice": score, "called_nothing": nothing})
        lines.append(f"| {spacing:g} | {score:.3f} | {100 * nothing:.0f} % |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    command = f"python benchmarks/names_by_spacing.py --count {arguments.count}"
    command += f" --anatomies {arguments.anatomies.name}" if arguments.anatomies else ""
    command += f" --weights {arguments.weights.name}" if arguments.weights else ""
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n{table}")


if __name__ == "__main__":
    main()
