"""Settings of a training run, and the YAML files that hold them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regkit.core.configuration import build, read_yaml
from regkit.core.errors import RegkitError
from regkit.features.unet import Architecture
from regkit.features.weights import Channels, Reading
from regkit.pretrain.targets import DISTANCE_CHANNELS, STRUCTURE_CHANNELS
from regkit.synthesis.pairs import Pairs
from regkit.synthesis.structures import GROUPS

# Bodies are as much larger and smaller than their mean (regkit.synthesis.pose): what is learnt at a spacing
# holds as far beyond it.
_BUILDS = 1.1


@dataclass(frozen=True)
class Loss:
    """Weights and settings of the losses; a weight of 0 leaves a loss out.

    Args:
        affinity, distance, local, label, structure: weights.
        offsets: voxels, of the affinities.
        embedding: channels of the contrastive part of the output.
        anchors: per pair (local) and per level and volume (label).
        neighbourhood: cells; negatives of an anchor lie no further from its partner along each axis.
        negatives: places around its partner that an anchor is contrasted with.
        local_temperature, label_temperature: of the two contrastive losses.

    Raises:
        RegkitError: if a number makes no loss.
    """

    affinity: float = 1.0
    distance: float = 10.0
    local: float = 0.2
    label: float = 0.1
    structure: float = 0.0
    offsets: tuple[int, ...] = (3, 6, 12)
    embedding: int = 16
    anchors: int = 512
    neighbourhood: int = 10
    negatives: int = 48
    local_temperature: float = 0.1
    label_temperature: float = 0.33

    def __post_init__(self) -> None:
        _check(self, "loss.", 0, "affinity", "distance", "local", "label", "structure")
        _check(self, "loss.", 1, "embedding", "negatives")
        _check(self, "loss.", 2, "anchors", "neighbourhood")
        _check_positive(self, "loss.", "local_temperature", "label_temperature")
        if any(offset < 1 for offset in self.offsets):
            raise RegkitError(f"loss.offsets must be positive, got {list(self.offsets)}")
        if self.affinity and not self.offsets:
            raise RegkitError("loss.offsets must not be empty where loss.affinity has a weight")


@dataclass(frozen=True)
class Cost:
    """Weights in the cost of a registration of the parts of the output; they are chosen after training.

    Args:
        affinity, distance, embedding, structure: see :class:`regkit.features.weights.Channels`.
    """

    affinity: float = 0.1
    distance: float = 0.125
    embedding: float = 0.33
    structure: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "cost.", 0, "affinity", "distance", "embedding", "structure")


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        width, levels, stride, padding: of the network (:class:`regkit.features.unet.Architecture`).
        steps: optimiser steps in all; the learning rate follows a half cosine over them.
        batch: pairs per step, over all processes.
        learning_rate: at its highest, after ``warmup`` steps.
        ema: decay of the averaged weights, which are what is exported.
        clip: largest norm of the gradient.
        procedural, templates: weights of the two kinds of shapes.

    Raises:
        RegkitError: if a value makes no run.
    """

    width: int = 16
    levels: int = 3
    stride: int = 2
    padding: str = "replicate"
    seed: int = 0
    steps: int = 10000
    batch: int = 2
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 1e-4
    ema: float = 0.998
    clip: float = 1.0
    procedural: float = 1.0
    templates: float = 0.0
    pairs: Pairs = field(default_factory=Pairs)
    loss: Loss = field(default_factory=Loss)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        _check(self, "", 0, "seed", "warmup", "weight_decay", "ema", "procedural", "templates")
        _check(self, "", 1, "steps", "batch")
        _check_positive(self, "", "learning_rate", "clip")
        if self.ema >= 1:
            raise RegkitError(f"ema must be less than 1, got {self.ema}")
        if not self.procedural + self.templates:
            raise RegkitError("procedural and templates must not both be 0: there would be no shapes")
        if not self.reading.channels:
            raise RegkitError("a loss must have a weight: affinity, distance, local, label or structure")
        step = self.architecture.multiple
        minimum = 2 * step if self.padding == "reflect" else step
        name, shapes = ("shapes", self.pairs.shapes) if self.pairs.shapes else ("size", [(self.pairs.size,)])
        for shape in shapes:
            if any(side % step or side < minimum for side in shape):
                raise RegkitError(
                    f"pairs.{name} must be a multiple of {step} and at least {minimum} for this network, got "
                    f"{', '.join(map(str, shape))}"
                )

    @property
    def architecture(self) -> Architecture:
        """That of the network, its output the affinities, distances, embedding and structures side by side.

        Its norms are over each volume: with the few volumes of a step, batch norms make another network of it
        when they turn to their running statistics.
        """
        return Architecture.from_dict(
            {
                "out_channels": sum(group.count for group in self.reading.channels),
                "width": self.width,
                "levels": self.levels,
                "stride": self.stride,
                "padding": self.padding,
                "norm": "instance",
            }
        )

    @property
    def reading(self) -> Reading:
        """How the output is read: the parts that a loss trains, in order."""
        loss, cost = self.loss, self.cost
        parts = (
            (loss.affinity, Channels("affinity", 6 * len(loss.offsets), "sigmoid", cost.affinity)),
            (loss.distance, Channels("distance", DISTANCE_CHANNELS, "none", cost.distance)),
            (loss.local + loss.label, Channels("embedding", loss.embedding, "unit", cost.embedding)),
            (loss.structure, Channels("structure", STRUCTURE_CHANNELS, "softmax", cost.structure, GROUPS)),
        )
        low, high = self.pairs.spacing
        spacing = (low / _BUILDS, high * _BUILDS) if self.pairs.bodies else None  # shapes have no size in mm
        return Reading("equalised", tuple(channels for weight, channels in parts if weight), spacing)

    def to_dict(self) -> dict[str, Any]:
        """Nested, ready for JSON."""
        return asdict(self)


def _check(values: Any, prefix: str, minimum: int, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        if not minimum <= value < math.inf:
            raise RegkitError(f"{prefix}{name} must be at least {minimum}, got {value}")


def _check_positive(values: Any, prefix: str, *names: str) -> None:
    for name in names:
        if not getattr(values, name) > 0:
            raise RegkitError(f"{prefix}{name} must be positive, got {getattr(values, name)}")


def load_config(path: Path) -> Config:
    """Read a configuration from YAML; keys of nested settings have dots, as ``loss.label``, or are nested.

    Raises:
        RegkitError: naming the file, and the line or the key, if it is no YAML, the key is unknown or given
            twice, or the value is of a wrong kind or makes no run.
    """
    values = read_yaml(path)
    try:
        return build(Config, values)
    except RegkitError as error:
        raise type(error)(f"'{path}': {error}") from error
