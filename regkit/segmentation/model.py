"""A segmenter in one file: the network, how its input is made, and what its output means."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.core.intensity import is_ct, normalise, window_of
from regkit.features.equalise import equalised
from regkit.features.unet import UNet, shuffled
from regkit.features.weights import SEGMENTER, load_network, save_weights
from regkit.io.images import Volume
from regkit.ops.resample import Source, resample

FILE = "model.safetensors"
"""The name of the segmenter in its folder."""


@dataclass(frozen=True)
class Task:
    """What is segmented, and what a network is given for it.

    Args:
        labels: the numbers in the label maps, ascending, without 0, which is background.
        names: of the labels, in their order.
        spacing: mm, of the isotropic grid that the network sees.
        patch: voxels (Z, Y, X) that it sees at once.
        ct_window: HU that become 0 and 1, in images that are CT; others have robust percentiles.
        input: as of :class:`regkit.features.weights.Reading`.
    """

    labels: tuple[int, ...]
    names: tuple[str, ...]
    spacing: float
    patch: tuple[int, int, int]
    ct_window: tuple[float, float]
    input: str

    def network_input(self, volume: Volume) -> tuple[torch.Tensor, Grid]:
        """An image as the network sees it, (Z, Y, X) in [0, 1], and the grid of that."""
        window = window_of(volume.array, self.ct_window if is_ct(volume.array) else None)
        grid = volume.grid.working(self.spacing)
        source = Source(torch.from_numpy(normalise(volume.array, window)), None, volume.grid)
        image = resample(source.smoothed_for(self.spacing), np.eye(4), grid)[0]
        return equalised(image) if self.input == "equalised" else image, grid


class Segmenter:
    """A network whose output are the scores of background and labels.

    Its last convolution gives, for each cell, the scores of the cell's voxels, so that nothing is lost of
    the resolution of the grid where the body works at half of it (sub-pixel convolution: Shi et al., CVPR
    2016).

    Args:
        network: with ``(1 + labels) * stride^3`` channels of output.
        task: what they are.
        provenance: what made the network.
    """

    def __init__(self, network: UNet, task: Task, provenance: Mapping[str, str]) -> None:
        self.network, self.task, self.provenance = network, task, dict(provenance)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (N, 1 + labels, Z, Y, X) of images (N, 1, Z, Y, X), sides a multiple of the network's."""
        return shuffled(self.network(images), self.network.architecture.stride)

    def save(self, path: Path) -> None:
        """Write it, complete or not at all."""
        entry = json.dumps(asdict(self.task))
        save_weights(path, self.network, {**self.provenance, SEGMENTER: entry, "input": self.task.input})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Segmenter:
        """Read a segmenter from its file, or from the folder that ``regkit finetune`` left.

        Raises:
            RegkitError: if there is none, or it cannot be used.
        """
        path = Path(path)
        if not path.exists():
            raise RegkitError(f"the model '{path}' does not exist")
        if path.is_dir():
            path = path / FILE
            if not path.is_file():
                raise RegkitError(
                    f"no model in '{path.parent}': expected {FILE}, which regkit finetune writes there"
                )
        network, provenance = load_network(path)
        if SEGMENTER not in provenance:
            raise RegkitError(
                f"'{path}' holds a network that does not segment; regkit finetune makes one of it "
                "(--weights FILE)"
            )
        try:
            values = json.loads(provenance.pop(SEGMENTER))
            task = Task(**{name: _tuples(value) for name, value in values.items()})
            channels = (1 + len(task.labels)) * network.architecture.stride**3
            sound = channels == network.architecture.out_channels and len(task.names) == len(task.labels)
        except (AttributeError, TypeError, ValueError) as error:
            raise RegkitError(f"cannot read the model '{path}': {error}") from error
        if not sound:
            raise RegkitError(f"cannot read the model '{path}': its labels do not fit its network")
        return cls(network, task, provenance)


def new_network(start: UNet, classes: int, keep: bool) -> UNet:
    """A network for ``classes``, of an architecture like another's.

    Args:
        start: whose shape it has.
        keep: whether it has its weights as well, but for those of the finest level on the way up, or random
            ones. That level learnt to give features that do not depend on contrast, by which tissues are told
            apart; begun anew it learns faster (docs/benchmarks.md).
    """
    stride = start.architecture.stride
    network = UNet(replace(start.architecture, out_channels=classes * stride**3))
    name = f"model.{len(network.model) - 1}.weight"
    last = network.get_parameter(name)
    with torch.no_grad():
        # Alike for all voxels of a cell (Aitken et al., 2017): no pattern of cells to unlearn.
        last.copy_(last[:classes].repeat(stride**3, 1, 1, 1, 1))
    if keep:
        last_level = max(k for k, module in enumerate(start.model) if isinstance(module, nn.Upsample))
        copied = {key: t for key, t in start.state_dict().items() if int(key.split(".")[1]) < last_level}
        for number, module in enumerate(start.model[:last_level]):
            if isinstance(module, nn.Conv3d):
                _rescale(copied, number, network.get_parameter(f"model.{number}.weight"))
        network.load_state_dict(copied, strict=False)
    return network


def _rescale(entries: dict[str, torch.Tensor], number: int, random: torch.Tensor) -> None:
    """Give a convolution's weights the norm of random ones, and the statistics behind it what follows.

    The norm layer behind it undoes this, but for its eps: features of the bundled network change by a tenth.
    The optimiser does not: it changes every weight by about the learning rate, and those of a long training
    are up to ten times as large as random ones. Left so, they would turn a tenth as fast (van Laarhoven,
    2017), and be all but frozen in a short training.
    """
    weight = entries[f"model.{number}.weight"]
    scale = random.detach().norm() / weight.norm().clamp_min(1e-12)
    entries[f"model.{number}.weight"] = weight * scale
    for statistic, power in (("running_mean", 1), ("running_var", 2)):
        if (name := f"model.{number + 1}.{statistic}") in entries:
            entries[name] = entries[name] * scale**power


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
