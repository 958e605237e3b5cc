"""Weights of the network in files: safetensors of our own, and the published ``.pth``.

Nothing that is read is ever run: a pickle with more than plain tensors is refused. This module needs torch,
numpy and safetensors alone.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from regkit.core.errors import RegkitError
from regkit.features.unet import Architecture, UNet
from regkit.io.atomic import atomic_path
from regkit.ops import native
from regkit.ops.dispatch import operation

SEGMENTER = "segmentation"
"""The entry of the metadata that a segmenter (:class:`regkit.segmentation.model.Segmenter`) has."""

_FORMAT = "regkit-unet/1"
_SUFFIXES = (".safetensors", ".pth", ".pt")
_ACTIVATIONS = ("none", "sigmoid", "unit", "softmax")
_INPUTS = ("window", "equalised")
_MAX_CHANNELS = 64  # whose softmax the kernel takes
# In an installed package, and in a checkout.
_MODELS = (Path(__file__).parents[1] / "models", Path(__file__).parents[2] / "models")
# Where training codes put the state dict in a checkpoint, and what wrappers of torch put before its names.
_NESTED = ("state_dict", "model", "network", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Channels:
    """Channels of a network's output that lie side by side and are read alike.

    Args:
        name: what they are.
        count: how many.
        activation: "none", "sigmoid", "softmax" over them, or "unit" if they are scaled to length 1, at every
            voxel.
        weight: of the mean over them of a squared difference, in the cost of a registration; 0 leaves
            them out.
        merged: numbers of channels that are read as one, their sum; each in one group. By default each
            stays for itself.
    """

    name: str
    count: int
    activation: str = "none"
    weight: float = 1.0
    merged: tuple[tuple[int, ...], ...] = ()


def unit(vectors: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Vectors scaled to length 1 along an axis; many times faster on a CPU than ``F.normalize``."""
    return vectors * (vectors.square().sum(dim, keepdim=True) + 1e-8).rsqrt()


@dataclass(frozen=True)
class Reading:
    """What a network is given and how its output is read.

    Args:
        input: "window", the intensities scaled to [0, 1], or "equalised", their ranks
            (:func:`regkit.features.equalise.equalised`).
        channels: the output in order.
        spacing: smallest and largest of the voxels that it learnt from, mm; None if it can tell no sizes.
    """

    input: str
    channels: tuple[Channels, ...]
    spacing: tuple[float, float] | None = None

    def read(self, output: torch.Tensor) -> torch.Tensor:
        """The channels that count, of a network's output (N, C, Z, Y, X), contiguous and no halves.

        They are so scaled that the mean over all of a squared difference is the sum over the groups of weight
        times the mean over the group: the sum over what is read of it, by the number of its channels before
        any are merged.
        """
        return _read(self, output)

    def apart(self) -> Reading:
        """The same, but that every channel stays for itself."""
        return replace(self, channels=tuple(replace(group, merged=()) for group in self.channels))

    def to_metadata(self) -> dict[str, str]:
        """As the entries of a file's metadata."""
        entries = {"input": self.input, "channels": json.dumps([astuple(group) for group in self.channels])}
        return entries | ({"spacing": json.dumps(self.spacing)} if self.spacing else {})


def _scale(group: Channels, total: int) -> float:
    return math.sqrt(group.weight * total / group.count)


def _channels_read(reading: Reading) -> int:
    return sum(len(group.merged) or group.count for group in reading.channels if group.weight)


@operation
def _read(reading: Reading, output: torch.Tensor) -> torch.Tensor:
    """:meth:`Reading.read`."""
    total = _channels_read(reading)
    kind = torch.float32 if output.dtype == torch.bfloat16 else output.dtype
    output = output.to(kind, memory_format=torch.contiguous_format)
    groups = []
    counts = [group.count for group in reading.channels]
    for group, values in zip(reading.channels, output.split(counts, dim=1)):
        if not group.weight:
            continue
        if group.activation == "sigmoid":
            values = values.sigmoid()
        elif group.activation == "unit":
            values = unit(values)
        elif group.activation == "softmax":
            values = values.softmax(1)
        if group.merged:
            values = torch.stack([values[:, list(numbers)].sum(1) for numbers in group.merged], dim=1)
        groups.append(values * _scale(group, total))
    return torch.cat(groups, dim=1)


def _is_softmax_side_by_side(reading: Reading, output: torch.Tensor) -> bool:
    """Whether the output is that of one volume in bfloat16, the channels of a cell side by side."""
    group, *others = reading.channels
    sound = not others and group.activation == "softmax" and group.weight > 0
    side_by_side = output.stride(1) == 1 and output.stride(4) == group.count and len(output) == 1
    few = group.count <= _MAX_CHANNELS
    return sound and side_by_side and few and native.serves(output, dtype=torch.bfloat16)


@_read.kernel("c", _is_softmax_side_by_side)
def _softmax_by_c(reading: Reading, output: torch.Tensor) -> torch.Tensor:
    (group,) = reading.channels
    merged = group.merged or tuple((number,) for number in range(group.count))
    group_of = np.empty(group.count, np.int64)
    for k, numbers in enumerate(merged):
        group_of[list(numbers)] = k
    probabilities = native.empty(1, len(merged), *output.shape[2:])
    scores, scale = output[0].movedim(0, -1), _scale(group, _channels_read(reading))
    native.run("softmax_sums", scores=scores, group=group_of, scale=scale, sums=probabilities[0])
    return probabilities


def reading(provenance: Mapping[str, str], out_channels: int) -> Reading:
    """How the metadata of weights say that they are read; by default all channels alike, as they come.

    Raises:
        RegkitError: if what they say makes no sense.
    """
    if "channels" in provenance:
        try:
            groups = tuple(
                Channels(*entry[:4], *(tuple(map(tuple, merged)) for merged in entry[4:]))
                for entry in json.loads(provenance["channels"])
            )
            sound = sum(group.count for group in groups) == out_channels and all(
                group.activation in _ACTIVATIONS
                and group.weight >= 0
                and (not group.merged or sorted(chain(*group.merged)) == list(range(group.count)))
                for group in groups
            )
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise RegkitError(f"the entry 'channels' does not fit {out_channels} channels of output")
    else:
        groups = (Channels("features", out_channels),)
    if provenance.get("input", "window") not in _INPUTS:
        raise RegkitError(f"input must be {' or '.join(_INPUTS)}, got {provenance['input']!r}")
    return Reading(provenance.get("input", "window"), groups, _spacing(provenance))


def _spacing(provenance: Mapping[str, str]) -> tuple[float, float] | None:
    if "spacing" not in provenance:
        return None
    try:
        low, high = map(float, json.loads(provenance["spacing"]))
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low <= high < math.inf:
        raise RegkitError(f"spacing must be two numbers, positive and rising, got {provenance['spacing']}")
    return low, high


def save_weights(path: str | os.PathLike[str], network: UNet, provenance: Mapping[str, str]) -> None:
    """Write a network as safetensors, in its own precision; ``path`` is complete or as it was.

    Args:
        provenance: what is to be known about the weights; with the entries of :meth:`Reading.to_metadata`
            where the defaults of :func:`reading` are not right.

    Raises:
        RegkitError: if the file cannot be written, a weight is not a finite number, or the reading is none.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise RegkitError(f"cannot write '{path}': the name must end in .safetensors")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_finite(tensors, path)
    metadata = {
        **provenance,
        "format": _FORMAT,
        "architecture": json.dumps(network.architecture.to_dict()),
    }
    _check_reading(metadata, network, path)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(save(tensors, metadata))
        stream.flush()
        os.fsync(stream.fileno())


def load_network(path: str | os.PathLike[str]) -> tuple[UNet, dict[str, str]]:
    """The network of a file, in eval mode and float32 whatever it is stored in, and its provenance.

    Args:
        path: ``.safetensors`` as :func:`save_weights` writes it, or a ``.pth`` of the published network.

    Returns:
        The network and the provenance.

    Raises:
        RegkitError: if the file cannot be used; the message says why.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise RegkitError(f"cannot read weights '{path}': the name must end in {' or '.join(_SUFFIXES)}")
    if not os.path.isfile(path):
        raise RegkitError(f"cannot read weights '{path}': no such file")
    if path.suffix == ".safetensors":
        architecture, tensors, provenance = _read_safetensors(path)
    else:
        architecture, tensors, provenance = Architecture(), _read_pickle(path), {}
    # No random weights first: they would take time, and numbers of the caller's generator.
    with torch.device("meta"):
        network = UNet(architecture)
    _check_entries(network.state_dict(), tensors, path)
    _check_finite(tensors, path)
    _check_reading(provenance, network, path)
    single = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    network.load_state_dict(single, assign=True)
    return network.eval(), provenance


def bundled_weights() -> Path:
    """The weights that come with regkit: the last by name of those in its folder of models.

    Raises:
        RegkitError: if there are none.
    """
    for folder in _MODELS:
        files = sorted(folder.glob("*.safetensors"))
        if files:
            return files[-1]
    raise RegkitError(
        "the weights that come with regkit are missing from this installation; install it again, or give a "
        "file of weights (--weights FILE)"
    )


def _read_safetensors(path: Path) -> tuple[Architecture, dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise RegkitError(f"cannot read weights '{path}': truncated or damaged ({error})") from error
    if metadata.pop("format", None) != _FORMAT:
        raise RegkitError(f"cannot read weights '{path}': not of the format {_FORMAT} of regkit")
    try:
        architecture = Architecture.from_dict(json.loads(metadata.pop("architecture")))
    except (KeyError, TypeError, ValueError) as error:
        raise RegkitError(f"cannot read weights '{path}': its architecture is unusable ({error})") from error
    return architecture, tensors, metadata


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint, without the names that wrappers of torch add."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the errors below say
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RegkitError(
            f"refused to read weights '{path}': it holds more than plain tensors, which could run code, or "
            "is damaged; convert a checkpoint you trust to one of its state dict alone"
        ) from error
    except Exception as error:  # of torch, zipfile or pickle's machine, as the damage will have it
        raise RegkitError(f"cannot read weights '{path}': truncated or damaged") from error
    if isinstance(content, Mapping):
        content = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping):
        raise RegkitError(f"cannot read weights '{path}': it holds no state dict")
    return {_bare(str(name)): tensor for name, tensor in content.items()}


def _bare(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _check_entries(expected: Mapping[str, torch.Tensor], entries: Mapping[str, Any], path: Path) -> None:
    """RegkitError that names the first entry which is missing, of another shape, or not expected."""
    start = f"cannot use weights '{path}': another architecture, "
    for name, tensor in expected.items():
        if not isinstance(entries.get(name), torch.Tensor):
            raise RegkitError(f"{start}'{name}' is missing")
        if entries[name].shape != tensor.shape:
            shapes = f"{tuple(entries[name].shape)} and not {tuple(tensor.shape)}"
            raise RegkitError(f"{start}'{name}' has the shape {shapes}")
    unexpected = [name for name in entries if name not in expected]
    if unexpected:
        raise RegkitError(f"{start}'{unexpected[0]}' is not part of it")


def _check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RegkitError(f"unusable weights '{path}': '{name}' holds NaN or infinite values")


def _check_reading(provenance: Mapping[str, str], network: UNet, path: Path) -> None:
    try:
        reading(provenance, network.architecture.out_channels)
    except RegkitError as error:
        raise type(error)(f"unusable weights '{path}': {error}") from error
