"""How well a network names the structures of real images: Dice of its likeliest structure at each voxel.

    python benchmarks/structures.py [--weights FILE ...] [-o FILE]

On the abdominal MR and CT of the open pairs, whose label maps serve to measure alone. It is not what the
network is for, but tells how far it sees through the contrast of an image that it knows nothing of.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from open_pairs import ROOT, SHARED, setting, write_rows

from regkit.core.intensity import default_ct_window, is_ct
from regkit.evaluate import dice, summarise
from regkit.features.components import cell_features
from regkit.features.network import NetworkFeatures
from regkit.features.weights import bundled_weights
from regkit.io.images import Volume, load_image, load_labels
from regkit.ops.sampling import resize
from regkit.synthesis.structures import TRUNK
from regkit.warp import resample_labels

PAIR = SHARED / "data" / "pairs" / "abdomen-mr-ct"
IMAGES = ("mr", "ct")
# Those of the pair's names that are not ours with an underscore.
_OURS = {
    "kidney_right": "right kidney",
    "kidney_left": "left kidney",
    "inferior_vena_cava": "vena cava",
    "portal_vein_and_splenic_vein": "portal vein",
    "autochthon_left": "left back muscles",
    "autochthon_right": "right back muscles",
}


def number_of(name: str) -> int:
    """Our number of a structure that the pair names."""
    ours = _OURS.get(name, name.replace("_", " "))
    return next(number for number, theirs in TRUNK.items() if theirs == ours)


def named(image: Volume, extract: NetworkFeatures) -> np.ndarray:
    """The likeliest structure of each voxel of an image, (Z, Y, X)."""
    spacing = float(np.cbrt(np.prod(image.grid.spacing)))
    window = default_ct_window([True, False]) if is_ct(image.array) else None
    features, _, _ = cell_features(image, extract, extract.stride, spacing, window)
    grid = image.grid.working(spacing, extract.stride)
    likely = resize(features, grid.shape).argmax(0)
    return resample_labels(Volume(likely.numpy().astype(np.uint8), grid), image.grid, sitk.Transform()).array


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, nargs="+", help="by default those that come with regkit")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "structures")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    files = arguments.weights or [bundled_weights()]
    names = {int(label): name for label, name in json.loads((PAIR / "labels.json").read_text()).items()}
    rows: list[dict[str, Any]] = []
    for file in files:
        extract = NetworkFeatures(file, apart=True)
        for image in IMAGES:
            truth = load_labels(PAIR / f"{image}_labels.nii.gz", "labels").array
            recognised = named(load_image(PAIR / f"{image}.nii.gz", "image"), extract)
            theirs = sum((recognised == number_of(name)) * label for label, name in names.items())
            scores = dice(truth, np.asarray(theirs, np.uint8), sorted(names))
            rows.append({"weights": extract.record, "image": image, "dice": scores})
    lines = ["| | " + " | ".join(f"{row['weights']['file']}, {row['image']}" for row in rows) + " |"]
    lines.append("|---|" + "--:|" * len(rows))
    for label, name in names.items():
        lines.append(f"| {name} | " + " | ".join(f"{row['dice'][label]:.2f}" for row in rows) + " |")
    means = (f"{summarise(row['dice'].values()):.3f}" for row in rows)
    lines.append("| mean | " + " | ".join(means) + " |")
    print("\n".join(lines))
    command = "python benchmarks/structures.py"
    if arguments.weights:
        command += " --weights " + " ".join(file.name for file in files)
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
