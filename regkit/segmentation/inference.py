"""The segmenter on a volume of any grid: in sliding windows, and back on the volume's own voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regkit.core.geometry import Grid, slab_index, slabs, transform_points
from regkit.features.unet import fused, in_bfloat16
from regkit.io.images import ImageLike, Volume, label_type, load_image
from regkit.ops.sampling import sample
from regkit.runtime.device import reproducible, torch_device
from regkit.runtime.memory import check_fits_memory
from regkit.segmentation.model import Segmenter
from regkit.segmentation.monai_parts import check_installed, sliding_windows

_SHARE = 0.9  # of the windows in the whole, for the progress bar
_POINTS = 1 << 23  # times classes, that are interpolated at once


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of :func:`segment`.

    Args:
        labels: on the grid of the image, in the first of uint8, int16, int32, uint32 and int64 that holds
            all.
        confidence: the network's probability of the label of each voxel, 0 to 1, float32.
        names: of the labels that the model knows.
    """

    labels: Volume
    confidence: Volume
    names: dict[int, str]

    def volumes(self) -> list[dict[str, Any]]:
        """Of each label ``label``, its number, ``name``, and how many ``voxels`` and ``ml`` it has."""
        ml = float(np.prod(self.labels.grid.spacing)) / 1000
        counts = {label: int((self.labels.array == label).sum()) for label in self.names}
        return [
            {"label": label, "name": name, "voxels": counts[label], "ml": counts[label] * ml}
            for label, name in self.names.items()
        ]


def segment(
    model: str | PathLike[str] | Segmenter,
    image: ImageLike,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Segmentation:
    """Segment an image of any grid and orientation.

    Args:
        model: the folder that :func:`regkit.finetune` wrote, or its file of weights.
        image: anything that :func:`regkit.register` takes.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        threads: CPU threads; by default as many as torch uses.
        progress: called with the stage and the share of the run that is done, 0 to 1.

    Raises:
        RegkitError: if the model or the image cannot be used.
    """
    check_installed()
    report = progress or (lambda stage, done: None)
    report("reading", 0.0)
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model)
    volume = load_image(image, "image")
    with reproducible(threads, 0):
        return apply(segmenter, volume, torch_device(device), report)


@torch.no_grad()
def apply(
    segmenter: Segmenter,
    volume: Volume,
    device: torch.device,
    report: Callable[[str, float], None] = lambda stage, done: None,
) -> Segmentation:
    """:func:`segment`, of what is loaded already."""
    task = segmenter.task
    image, grid = task.network_input(volume)
    classes = 1 + len(task.labels)
    check_fits_memory(image.numel(), f"the segmentation into {classes} classes", 4 * (3 * classes + 4))
    network = Segmenter(fused(segmenter.network).to(device), task, {})
    order = network.network.architecture.memory_format

    def scores(window: torch.Tensor) -> torch.Tensor:
        with in_bfloat16(device):
            return network(window.to(memory_format=order)).float()

    scores_of = sliding_windows(
        image, task.patch, scores, device, lambda done: report("segmentation", _SHARE * done)
    )
    probabilities = scores_of.softmax(0)
    labels, confidence = onto_grid(probabilities, grid, volume.grid, task.labels)
    report("segmentation", 1.0)
    return Segmentation(
        Volume(labels, volume.grid, "labels"),
        Volume(confidence, volume.grid, "confidence"),
        dict(zip(task.labels, task.names)),
    )


def onto_grid(
    probabilities: torch.Tensor, network_grid: Grid, grid: Grid, labels: Sequence[int]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """The most probable label at each voxel of ``grid``, and how probable it is; linearly interpolated.

    Args:
        probabilities: (C, Z, Y, X) on the grid ``network_grid``; background first, then the labels.
    """
    numbers = np.array([0, *labels])
    label_map = np.empty(grid.shape, label_type(numbers.min(), numbers.max()))
    confidence = np.empty(grid.shape, np.float32)
    matrix = network_grid.world_to_index @ grid.index_to_world
    for first, last in slabs(grid, _POINTS // len(numbers)):
        index = transform_points(matrix, slab_index(grid, first, last)).astype(np.float32)
        best = sample(probabilities, torch.from_numpy(index).movedim(-1, 0)).max(0)
        label_map[first:last] = numbers[best.indices.numpy()]
        np.minimum(best.values.numpy(), 1, out=confidence[first:last])  # sums of weights are rounded
    return label_map, confidence
