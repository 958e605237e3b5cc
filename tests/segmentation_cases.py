"""Small labelled volumes, and networks that learn them or whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regkit.core.geometry import Grid
from regkit.features.unet import Architecture, UNet
from regkit.features.weights import save_weights
from regkit.io.images import Volume
from regkit.io.outputs import save_image
from regkit.segmentation.model import Segmenter, Task

# As the bundled network, but small.
TINY: dict[str, Any] = {"width": 4, "levels": 2, "stride": 2, "padding": "replicate", "norm": "instance"}
GRID = Grid((18, 17, 16), (2.0, 2.0, 2.0), (-30.0, 12.0, 5.0))
# Numbers that are no classes, so that one taken for the other shows.
LABELS = (2, 7)


def tiny_network(out_channels: int = 3, seed: int = 0, **changes: Any) -> UNet:
    """Random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(Architecture(out_channels=out_channels, **{**TINY, **changes}))


def tiny_weights(path: Path, seed: int = 0, entries: dict[str, str] | None = None, **changes: Any) -> Path:
    """A file of the weights of :func:`tiny_network`."""
    save_weights(path, tiny_network(seed=seed, **changes), entries or {})
    return path


def task(labels: Sequence[int] = LABELS, **changes: Any) -> Task:
    """A task of windows of 16^3 voxels of 2 mm."""
    names = tuple(f"label {label}" for label in labels)
    given: dict[str, Any] = {
        "spacing": 2.0, "patch": (16, 16, 16), "ct_window": (-450.0, 450.0), "input": "window"
    }  # fmt: skip
    return Task(tuple(labels), names, **{**given, **changes})


def random_segmenter(labels: Sequence[int] = LABELS, **changes: Any) -> Segmenter:
    """Whose labels are those of a random network."""
    return Segmenter(tiny_network(8 * (1 + len(labels))), task(labels, **changes), {})


def thresholder(levels: Sequence[float], stride: int = 2, sharpness: float = 200.0) -> UNet:
    """A network that sees single voxels: their class is the number of levels below the intensity.

    All its convolutions pass on the voxels of a cell and a channel of ones. The scores of the classes are
    lines of the intensity, and cross at the levels.
    """
    voxels, classes = stride**3, 1 + len(levels)
    shape = Architecture(classes * voxels, width=voxels + 1, levels=1, stride=stride, padding="replicate")
    network = UNet(shape).eval()
    with torch.no_grad():
        for module in network.model:
            if isinstance(module, nn.Conv3d):
                module.weight.zero_()
                for k in range(min(module.in_channels, module.out_channels, voxels + 1)):
                    module.weight[k, k, 1, 1, 1] = 1
            elif isinstance(module, nn.BatchNorm3d):
                module.running_var.fill_(1 - module.eps)  # type: ignore[union-attr]
        network.model[1].bias[-1] = 1  # type: ignore[index]
        last = network.model[-1].weight
        last.zero_()  # type: ignore[operator]
        for k in range(voxels):
            for c in range(classes):
                last[k * classes + c, k, 1, 1, 1] = sharpness * c  # type: ignore[index]
                last[k * classes + c, -1, 1, 1, 1] = -sharpness * sum(levels[:c])  # type: ignore[index]
    return network


def labelled(seed: int, grid: Grid = GRID) -> tuple[Volume, Volume]:
    """A ball of label 7 in a ball of label 2, off the middle, bright and grey on black, with noise."""
    rng = np.random.default_rng(seed)
    centre = grid.centre + rng.uniform(-3, 3, 3)
    radius = float(min(grid.extent))
    apart = np.linalg.norm(grid.world_points() - centre, axis=-1)
    labels = np.select([apart < 0.28 * radius, apart < 0.42 * radius], [7, 2], 0).astype(np.uint8)
    image = np.select([labels == 7, labels == 2], [40.0, 100.0], 0.0) + 5 * rng.normal(size=grid.shape)
    return Volume(image.astype(np.float32), grid, f"image {seed}"), Volume(labels, grid, f"labels {seed}")


def write_labelled(images: Path, labels: Path, count: int) -> None:
    """``count`` labelled volumes as files, named as nnU-Net does."""
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, found = labelled(seed)
        save_image(image.to_sitk(), images / f"case{seed}_0000.nii.gz")
        save_image(found.to_sitk(), labels / f"case{seed}.nii.gz")
