"""A network with norms over the volume in 8 bits, where the processor has instructions for their products.

Activations are whole numbers from 0 to 255 times a factor, one for each layer and volume; weights are whole
numbers from -127 to 127 times a factor for each output. Sums of products are exact, so that threads change
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from regkit.features.unet import UNet, unshuffled
from regkit.ops import native

_LANES = 16  # outputs that a kernel works on at once, and 32 of more
_MAX, _MAX_WEIGHT = 255.0, 127.0
_MIN = 1e-6  # where nothing is above 0


def serves(network: UNet) -> bool:
    """Whether the kernels are there for the processor, and fit the network."""
    shape = network.architecture
    return (
        native.fast_eightbit()
        and shape.norm == "instance"
        and shape.padding == "replicate"
        and shape.stride == 2
        and shape.width % _LANES == 0
    )


@dataclass(frozen=True)
class _Cells:
    """Activations: (z, y, x + 2, channels) uint8, the first and last of a row twice, times ``scale``."""

    values: torch.Tensor
    scale: float


@dataclass(frozen=True)
class _Weights:
    """Of some inputs: as the kernel reads them, and the scale of each output."""

    values: torch.Tensor
    scale: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Layer:
    """A convolution, of a level's own cells and maybe of those of the level below; and the norm behind it."""

    near: _Weights
    below: _Weights | None
    outputs: int
    norm: nn.GroupNorm | None


class EightBit:
    """What :meth:`UNet.forward` gives, within about a hundredth, of one volume that fills [0, 1], on the CPU.

    Args:
        network: that :func:`serves` is true for.
    """

    def __init__(self, network: UNet) -> None:
        self.architecture = network.architecture
        self.layers = []
        modules = list(network.model)
        for index, module in enumerate(modules):
            if not isinstance(module, nn.Conv3d):
                continue
            weights = module.weight.detach().float().cpu().numpy()
            outputs, inputs = weights.shape[:2]
            # Behind an upsampling come the channels of the skip, as many as outputs, and those of below.
            own = outputs if isinstance(modules[index - 1], nn.Upsample) else inputs
            below = _below(weights[:, own:]) if own < inputs else None
            norm = modules[index + 1] if index + 1 < len(modules) else None
            assert norm is None or isinstance(norm, nn.GroupNorm)
            self.layers.append(_Layer(_packed(weights[:, :own]), below, -(-outputs // _LANES) * _LANES, norm))

    def __call__(self, volume: torch.Tensor) -> torch.Tensor:
        """(1, C, Z / stride, Y / stride, X / stride) bfloat16, the channels of a cell side by side.

        Args:
            volume: (1, 1, Z, Y, X), sides a multiple of the network's.
        """
        layers = iter(self.layers)
        cells = _entered(volume, self.architecture.stride)
        z, y, x, _ = cells.values.shape
        scratch = native.empty(z * y * (x - 2) * max(self.layers[0].outputs, self.layers[-1].outputs))
        cells = _through(next(layers), scratch, cells)
        skips = []
        for level in range(self.architecture.levels + 1):
            if level:
                skips.append(cells)
                cells = _pooled(cells)
            for _ in range(2):
                cells = _through(next(layers), scratch, cells)
        while skips:
            cells = _through(next(layers), scratch, skips.pop(), cells)
            cells = _through(next(layers), scratch, cells)
        output, _ = _convolved(next(layers), scratch, cells, None)
        return output[..., : self.architecture.out_channels].to(torch.bfloat16).permute(3, 0, 1, 2)[None]


def _entered(volume: torch.Tensor, stride: int) -> _Cells:
    """The voxels of each cell of a volume (1, 1, Z, Y, X) in [0, 1]."""
    voxels = (volume.float() * _MAX).round_().clamp_(0, _MAX).to(torch.uint8)
    blocks = unshuffled(voxels, stride)[0].permute(1, 2, 3, 0)
    z, y, x, channels = blocks.shape
    values = torch.empty(z, y, x + 2, channels, dtype=torch.uint8)
    values[:, :, 1:-1] = blocks
    values[:, :, 0], values[:, :, -1] = values[:, :, 1], values[:, :, -2]
    return _Cells(values, 1 / _MAX)


def _convolved(
    layer: _Layer, scratch: torch.Tensor, near: _Cells, below: _Cells | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution (z, y, x, outputs) in float32, in the scratch memory; and of each row the statistics."""
    z, y, x = near.values.shape[0], near.values.shape[1], near.values.shape[2] - 2
    out = scratch[: z * y * x * layer.outputs].view(z, y, x, layer.outputs)
    statistics = native.empty(z * y, 4, layer.outputs)
    of_below: dict[str, native.Argument] = {"below": None, "below_weights": None, "below_scale": None}
    if below is not None and layer.below is not None:
        scale = layer.below.scale * np.float32(below.scale)
        of_below = {"below": below.values, "below_weights": layer.below.values, "below_scale": scale}
    native.run(
        "convolve_eightbit", near=near.values, near_weights=layer.near.values,
        near_scale=layer.near.scale * np.float32(near.scale), **of_below, convolved=out,
        statistics=statistics,
    )  # fmt: skip
    return out, statistics


def _through(layer: _Layer, scratch: torch.Tensor, near: _Cells, below: _Cells | None = None) -> _Cells:
    """Convolution, norm over the volume, and ReLU."""
    output, statistics = _convolved(layer, scratch, near, below)
    z, y, x, channels = output.shape
    norm = layer.norm
    assert norm is not None
    rows = statistics.numpy()
    mean, square = rows[:, :2].sum(0, dtype=np.float64) / (z * y * x)
    gain = norm.weight.detach().double().numpy()
    factor = gain / np.sqrt(np.maximum(square - mean**2, 0) + norm.eps)
    term = norm.bias.detach().double().numpy() - factor * mean
    largest = np.maximum(factor * rows[:, 2].max(0), factor * rows[:, 3].min(0)) + term
    scale = max(float(largest.max()), _MIN) / _MAX
    values = native.empty(z, y, x + 2, channels, dtype=np.uint8)
    factor, term = ((v / scale).astype(np.float32) for v in (factor, term))
    native.run("to_eightbit", values=output, factor=factor, term=term, cells=values)
    return _Cells(values, scale)


def _pooled(cells: _Cells) -> _Cells:
    """The largest of each 2^3 cells."""
    z, y, x, channels = cells.values.shape
    out = native.empty(z // 2, y // 2, (x - 2) // 2 + 2, channels, dtype=np.uint8)
    native.run("pool_eightbit", cells=cells.values, largest_cells=out)
    return _Cells(out, cells.scale)


def _whole(weights: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Whole numbers from -127 to 127, of more outputs, so that kernels have enough; and the scale of each."""
    more = -len(weights) % _LANES
    weights = np.pad(weights, [(0, more), *[(0, 0)] * (weights.ndim - 1)])
    scale = np.maximum(np.abs(weights).reshape(len(weights), -1).max(1), 1e-12) / _MAX_WEIGHT
    return np.rint(weights / scale.reshape(-1, *[1] * (weights.ndim - 1))), scale.astype(np.float32)


def _grouped(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """(O, C, ...) as (O / 32 or 16, ..., C / 4, 32 or 16, 4)."""
    outputs, channels, *taps = weights.shape
    together = 16 if outputs % 32 else 32
    split = weights.reshape(outputs // together, together, channels // 4, 4, *taps)
    order = (0, *range(4, 4 + len(taps)), 2, 1, 3)
    return np.ascontiguousarray(split.transpose(order).astype(np.int8))


def _packed(weights: npt.NDArray[np.float32]) -> _Weights:
    whole, scale = _whole(weights)
    return _Weights(torch.from_numpy(_grouped(whole)), scale)


# Which of the three taps along an axis fall on the first and on the second of the two cells of the level
# below that a cell of even and of odd index sees.
_FALLS = (((0,), (1, 2)), ((0, 1), (2,)))


def _below(weights: npt.NDArray[np.float32]) -> _Weights:
    """Of a level whose cells are twice as wide: the taps that fall on one of its cells are added up."""
    outputs, channels = weights.shape[:2]
    # Parities of z and y, taps of z and y, parity and tap of x.
    summed = np.empty((outputs, channels, 2, 2, 2, 2, 2, 2), np.float32)
    for pz, py, px, tz, ty, tx in product(range(2), repeat=6):
        taps = weights
        for axis, falls in enumerate((_FALLS[pz][tz], _FALLS[py][ty], _FALLS[px][tx])):
            taps = taps.take(falls, axis=2 + axis)
        summed[:, :, pz, py, tz, ty, px, tx] = taps.sum((2, 3, 4))
    return _packed(summed)
