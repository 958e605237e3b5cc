"""Settings of a training run, and the small YAML files that hold them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from regkit.errors import RegkitError
from regkit.synthesis.pairs import Pairs
from regkit.unet import Architecture


@dataclass(frozen=True)
class Loss:
    """Weights and settings of the losses; a weight of 0 leaves a loss out.

    Args:
        affinity, distance, local, label: weights.
        offsets: voxels, of the affinities.
        embedding: channels of the contrastive part of the output.
        anchors: per pair (local) and per level and volume (label).
        neighbourhood: cells; negatives of an anchor lie no further from its partner along each axis.
        negatives: places around its partner that an anchor is contrasted with.
        local_temperature, label_temperature: of the two contrastive losses.
    """

    affinity: float = 1.0
    distance: float = 10.0
    local: float = 0.2
    label: float = 0.1
    offsets: tuple[int, ...] = (3, 6, 12)
    embedding: int = 16
    anchors: int = 512
    neighbourhood: int = 10
    negatives: int = 48
    local_temperature: float = 0.1
    label_temperature: float = 0.33


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        width, levels, stride, padding: of the network (:class:`regkit.unet.Architecture`).
        steps: optimiser steps in all; the learning rate follows a half cosine over them.
        batch: pairs per step, over all processes.
        learning_rate: at its highest, after ``warmup`` steps.
        ema: decay of the averaged weights, which are what is exported.
        clip: largest norm of the gradient.
        procedural, templates: weights of the two kinds of shapes.
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

    @property
    def architecture(self) -> Architecture:
        """That of the network, its output the affinities, distances and embedding side by side."""
        values = {"width": self.width, "levels": self.levels, "stride": self.stride, "padding": self.padding}
        return Architecture.from_dict({**values, "out_channels": sum(g[1] for g in self.groups)})

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Name and channels of each part of the output."""
        from regkit.pretrain.targets import DISTANCE_CHANNELS

        wanted = [
            ("affinity", 6 * len(self.loss.offsets), self.loss.affinity),
            ("distance", DISTANCE_CHANNELS, self.loss.distance),
            ("embedding", self.loss.embedding, self.loss.local),
        ]
        return [(name, channels) for name, channels, weight in wanted if weight]

    def to_dict(self) -> dict[str, Any]:
        """Nested, ready for JSON."""
        return asdict(self)


def load_config(path: Path) -> Config:
    """Read a configuration: lines ``section.key: value``, the value as JSON, ``#`` for comments.

    That is a subset of YAML which needs no library.

    Raises:
        RegkitError: naming the line, if it is no such line, the key is unknown or the value of a wrong kind.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RegkitError(f"cannot read the configuration '{path}': {error}") from error
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        key, colon, value = text.partition(":")
        try:
            if not colon:
                raise ValueError("expected 'key: value'")
            values[key.strip()] = json.loads(value)
        except ValueError as error:
            raise RegkitError(f"'{path}', line {number}: {error}") from error
    return _built(Config, values, path)


def _built(kind: type, values: dict[str, Any], path: Path, prefix: str = "") -> Any:
    """A dataclass from ``values``, whose keys name nested fields by dots."""
    arguments: dict[str, Any] = {}
    known = {f.name: f for f in fields(kind)}
    default = kind()
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        first, dot, rest = key.partition(".")
        if first not in known:
            raise RegkitError(f"'{path}': no setting {prefix}{first!s}; there is: {', '.join(known)}")
        here = getattr(default, first)
        if dot:
            nested.setdefault(first, {})[rest] = value
            continue
        if isinstance(here, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(here, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(here):
            raise RegkitError(f"'{path}': {prefix}{key} must be of kind {type(here).__name__}, got {value!r}")
        arguments[first] = value
    for name, inner in nested.items():
        here = getattr(default, name)
        if not is_dataclass(here):
            raise RegkitError(f"'{path}': {prefix}{name} has no parts")
        arguments[name] = _built(type(here), inner, path, f"{prefix}{name}.")
    return kind(**arguments)
