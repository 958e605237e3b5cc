"""How well a network names the structures of real images: Dice of its likeliest structure at each voxel.

    python benchmarks/structures.py [--pairs NAME ...] [--weights FILE ...] [-o FILE]

On the open pairs that choose and have labels, which serve to measure alone. It is not what the network is
for, but tells how far it sees through the contrast of an image that it knows nothing of. A dash stands for a
structure that it was never shown.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from features import chosen
from open_pairs import ROOT, SHARED, setting, write_rows

from regkit.core.intensity import default_ct_window, is_ct
from regkit.evaluate import dice, summarise
from regkit.features.components import cell_features
from regkit.features.network import NetworkFeatures
from regkit.features.weights import bundled_weights
from regkit.io.images import Volume, load_image, load_labels
from regkit.ops.sampling import resize
from regkit.pretrain.initial_weights import known_structures
from regkit.warp import resample_labels

PAIRS = SHARED / "data" / "pairs"
_BRAIN = ("thalamus", "caudate nucleus", "lentiform nucleus", "hippocampus and amygdala")
_OURS: dict[str, tuple[str, ...]] = {
    "kidney_right": ("right kidney",),
    "kidney_left": ("left kidney",),
    "inferior_vena_cava": ("vena cava",),
    "portal_vein_and_splenic_vein": ("portal vein",),
    "autochthon_left": ("left back muscles",),
    "autochthon_right": ("right back muscles",),
    "Brainstem": ("brain stem",),
    "SpinalCord": ("spinal cord",),
    "Esophagus": ("oesophagus",),
    "lung region": ("right lung",),
    "grey matter": ("left cerebral cortex", "right cerebral cortex", "cerebellar cortex", *_BRAIN),
    "white matter": (
        "left cerebral white matter", "right cerebral white matter", "cerebellar white matter", "brain stem",
    ),
    "CSF": ("ventricles", "fluid around the brain"),
}  # fmt: skip
"""What those structures of the pairs are to us whose names are not ours; several of ours count as one."""
_UNLIKE = ("RightParotid", "LeftParotid", "Larynx", "Mandible")
"""Those that are parts of what we have."""


def ours(name: str) -> tuple[str, ...]:
    """Our names of what a pair calls a structure; none, if there is no like of it."""
    return () if name in _UNLIKE else _OURS.get(name, (name.replace("_", " "),))


def scores(
    image: Volume, truth: np.ndarray, names: dict[int, str], network: NetworkFeatures
) -> dict[str, float]:
    """Dice of each structure by the pair's name; NaN of those that the network does not know."""
    known = ["nothing", *known_structures(network.record["provenance"])]
    found = named(image, network)
    likely = np.zeros_like(found)
    for label, name in names.items():
        likely[np.isin(found, [known.index(one) for one in ours(name) if one in known])] = label
    there = [label for label in names if ours(names[label]) and (truth == label).any()]
    # What is nowhere found scores 0, since it is there.
    measured = dice(truth, likely, there, moving_labels=truth)
    return {
        names[label]: measured[label] if set(ours(names[label])) & set(known) else math.nan for label in there
    }


def named(image: Volume, extract: NetworkFeatures) -> np.ndarray:
    """The likeliest structure of each voxel of an image, (Z, Y, X)."""
    spacing = float(np.cbrt(np.prod(image.grid.spacing)))
    window = default_ct_window([True, False]) if is_ct(image.array) else None
    features, _, _ = cell_features(image, extract, extract.stride, spacing, window)
    grid = image.grid.working(spacing, extract.stride)
    likely = resize(features, grid.shape).argmax(0)
    return resample_labels(Volume(likely.numpy().astype(np.uint8), grid), image.grid, sitk.Transform()).array


def images_of(pair: str) -> list[tuple[str, Path, Path]]:
    """The images of a pair that have labels: their names, files and label maps."""
    folder = PAIRS / pair
    manifest = json.loads((folder / "manifest.json").read_text())
    return [
        (manifest[side].split(".")[0], folder / manifest[side], folder / manifest[f"{side}_labels"])
        for side in ("fixed", "moving")
        if manifest.get(f"{side}_labels")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=["choosing"], help="names of pairs, or choosing")
    parser.add_argument("--weights", type=Path, nargs="+", help="by default those that come with regkit")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "structures")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    files = arguments.weights or [bundled_weights()]
    networks = [NetworkFeatures(file, apart=True) for file in files]
    rows: list[dict[str, Any]] = []
    lines = ["| pair | image | structure | " + " | ".join(file.name for file in files) + " |"]
    lines.append("|---|---|---|" + "--:|" * len(files))
    for pair in chosen(arguments.pairs):
        names = {
            int(label): name for label, name in json.loads((PAIRS / pair / "labels.json").read_text()).items()
        }
        for title, file, labels in images_of(pair):
            image, truth = load_image(file, "image"), load_labels(labels, "labels").array
            found = [scores(image, truth, names, network) for network in networks]
            for network, of_it in zip(networks, found):
                rows.append({"weights": network.record, "pair": pair, "image": title, "dice": of_it})
            means = [summarise(of_it.values()) for of_it in found]
            for name, values in [
                *((name, [of_it[name] for of_it in found]) for name in found[0]),
                ("mean", means),
            ]:
                lines.append(f"| {pair} | {title} | {name} | " + " | ".join(map(_cell, values)) + " |")
                print(lines[-1], flush=True)
    command = "python benchmarks/structures.py"
    if arguments.pairs != ["choosing"]:
        command += " --pairs " + " ".join(arguments.pairs)
    if arguments.weights:
        command += " --weights " + " ".join(file.name for file in files)
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n" + "\n".join(lines))


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


if __name__ == "__main__":
    main()
