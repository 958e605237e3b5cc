"""The network: a 3-D UNet from one image to feature channels, key for key that of anatomix.

The modules lie in one flat list, so that the entries of the state dict are those of the published 5.9 M
weights (Dey et al., ICLR 2025), which load unchanged. This module needs torch and numpy alone.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from regkit.core.errors import RegkitError
from regkit.ops import native

Padding = Literal["reflect", "replicate", "zeros"]
Norm = Literal["batch", "instance"]
_STRIDES = (1, 2)


@dataclass(frozen=True)
class Architecture:
    """The shape of a :class:`UNet`; the defaults are the published network.

    Args:
        out_channels: feature channels of the output.
        width: channels at the finest level; each deeper level has twice as many.
        levels: how often the network pools by 2.
        stride: voxels per cell of the output; with 2 the body sees each 2^3 voxels as 8 channels of one cell.
        padding: "reflect", "replicate" or "zeros", at the borders of every convolution. Off zeros a network
            reads how far the border is.
        norm: "batch", or "instance": of each channel of each volume by itself, when the network is trained as
            when it is used.

    Raises:
        RegkitError: if a value makes no network.
    """

    out_channels: int = 16
    width: int = 16
    levels: int = 4
    stride: int = 1
    padding: Padding = "reflect"
    norm: Norm = "batch"

    def __post_init__(self) -> None:
        for name in ("out_channels", "width", "levels", "stride"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RegkitError(f"{name} of a network must be a whole number from 1, got {value!r}")
        if self.levels > 8:
            raise RegkitError(f"levels of a network must be at most 8, got {self.levels}")
        if self.stride not in _STRIDES:
            raise RegkitError(f"stride of a network must be 1 or 2, got {self.stride}")
        for name, kinds in (("padding", get_args(Padding)), ("norm", get_args(Norm))):
            value = getattr(self, name)
            if value not in kinds:
                raise RegkitError(f"{name} of a network must be {' or '.join(kinds)}, got {value!r}")

    @property
    def multiple(self) -> int:
        """What every side of the input must be a multiple of, in voxels."""
        return self.stride * 2**self.levels

    @property
    def memory_format(self) -> torch.memory_format:
        """The order of the weights in memory that is fastest with this norm (measured on a CPU)."""
        return torch.channels_last_3d if self.norm == "batch" else torch.contiguous_format

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """The inverse of :meth:`to_dict`; what is left out has its default.

        Raises:
            RegkitError: for a field that there is not, or a value that makes no network.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RegkitError(f"a network has no {unknown[0]!r}; it has: {', '.join(known)}")
        return cls(**values)


class UNet(nn.Module):
    """Convolution, norm and ReLU, pooled and brought back with skips; a bare convolution last.

    Stem, two convolutions a level, two at the bottom, two a level on the way up after the concatenation of
    skip and nearest-neighbour upsampling, all 3^3 without bias.

    Args:
        architecture: its shape.
    """

    def __init__(self, architecture: Architecture = Architecture()) -> None:
        super().__init__()
        self.architecture = architecture
        widths = [architecture.width * 2**k for k in range(architecture.levels + 1)]
        modules: list[nn.Module] = []
        poolings: list[int] = []
        upsamplings: list[int] = []

        def convolve(inputs: int, outputs: int) -> None:
            modules.append(_convolution(inputs, outputs, architecture.padding))
            modules.extend((_norm(outputs, architecture.norm), nn.ReLU(inplace=True)))

        convolve(architecture.stride**3, widths[0])
        inputs = widths[0]
        for width in widths[:-1]:
            convolve(inputs, width)
            convolve(width, width)
            poolings.append(len(modules))
            modules.append(nn.MaxPool3d(2))
            inputs = width
        convolve(inputs, widths[-1])
        convolve(widths[-1], widths[-1])
        for width in reversed(widths[:-1]):
            upsamplings.append(len(modules))
            modules.append(nn.Upsample(scale_factor=2, mode="nearest"))
            convolve(3 * width, width)
            convolve(width, width)
        modules.append(_convolution(widths[0], architecture.out_channels, architecture.padding))
        self.model = nn.ModuleList(modules)
        # The blocks as (first module, end): from poolings on the way down, from upsamplings on the way up.
        self._down = list(pairwise([*poolings, upsamplings[0]]))
        self._up = list(pairwise([*upsamplings, len(modules) - 1]))

    @property
    def multiple(self) -> int:
        """What every side of the input must be a multiple of, in voxels."""
        return self.architecture.multiple

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Features of images, of any range of values.

        Args:
            image: (N, 1, Z, Y, X), sides a multiple of :attr:`multiple`, and with reflected borders at least
                twice that.

        Returns:
            (N, out_channels, Z / stride, Y / stride, X / stride).
        """
        skip = self.enter(image)
        return self.leave(skip, self.deepen(skip)[-1])[0]

    def forward_levels(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What :meth:`forward` gives, and the activations that lead there, from coarse to fine.

        Returns:
            The output, and ``levels`` + 1 tensors (N, width 2^k, Z / (stride 2^k), ...) for k from
            ``levels`` to 0: the bottom, then each block of the decoder after its last ReLU.
        """
        skip = self.enter(image)
        below = self.deepen(skip)
        output, last = self.leave(skip, below[-1])
        return output, [*below, last]

    def enter(self, image: torch.Tensor) -> torch.Tensor:
        """The finest skip, (N, width, Z / stride, ...): three convolutions, the first part of the network."""
        return self._through(unshuffled(image, self.architecture.stride), 0, self._down[0][0])

    def deepen(self, skip: torch.Tensor) -> list[torch.Tensor]:
        """All levels below the finest skip: the activations of :meth:`forward_levels` but for the last."""
        skips = [skip]
        for start, end in self._down:
            skips.append(self._through(skips[-1], start, end))
        levels = [skips.pop()]
        for start, end in self._up[:-1]:
            levels.append(self._joined(skips.pop(), levels[-1], start, end))
        return levels

    def leave(self, skip: torch.Tensor, below: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and the last activation, from the finest skip and the last of :meth:`deepen`.

        Three convolutions, so that a cell depends on those within 3 of it in ``skip``.
        """
        last = self._joined(skip, below, *self._up[-1])
        return self.model[-1](last), last

    def _joined(self, skip: torch.Tensor, below: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """The block of the decoder whose upsampling is module ``start``."""
        x = torch.cat([skip, self.model[start](below)], dim=1)
        return self._through(x, start + 1, end)

    def _through(self, x: torch.Tensor, start: int, end: int) -> torch.Tensor:
        for index in range(start, end):
            x = self.model[index](x)
        return x


def fused(network: UNet) -> UNet:
    """A copy for inference, in eval mode, whose batch norms are part of the convolutions before them."""
    copied = copy.deepcopy(network).eval()
    modules = copied.model
    for index in range(len(modules) - 1):
        first, second = modules[index], modules[index + 1]
        if isinstance(first, nn.Conv3d) and isinstance(second, nn.BatchNorm3d):
            modules[index] = fuse_conv_bn_eval(first, second)
            modules[index + 1] = nn.Identity()
    return copied.requires_grad_(False)


def in_bfloat16(device: torch.device) -> torch.autocast:
    """The context in which a network on a device computes in bfloat16, where that is quick.

    On a CPU that does not multiply in it, convolutions take twice as long as in float32, or, without AVX-512,
    a hundred times.
    """
    quick = device.type != "cpu" or native.fast_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=quick)


def _convolution(inputs: int, outputs: int, padding: Padding) -> nn.Conv3d:
    layer = nn.Conv3d(inputs, outputs, 3, padding=1, padding_mode=padding, bias=False)
    if not layer.weight.is_meta:  # where there is nothing to fill in, torch would take a second for it
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    return layer


def _norm(channels: int, kind: Norm) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    # One channel a group is an instance norm, several times as fast as torch's own of that name.
    return nn.GroupNorm(channels, channels, eps=1e-2)


def unshuffled(image: torch.Tensor, stride: int) -> torch.Tensor:
    """The voxels of each stride^3 block as the channels of one cell, (N, stride^3, Z / stride, ...)."""
    if stride == 1:
        return image
    count, _, *shape = image.shape
    z, y, x = (n // stride for n in shape)
    blocks = image.reshape(count, z, stride, y, stride, x, stride)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(count, stride**3, z, y, x)


def shuffled(cells: torch.Tensor, stride: int) -> torch.Tensor:
    """The channels of each cell as its stride^3 voxels, (N, C, stride Z, ...) of (N, stride^3 C, Z, ...).

    Of one channel a voxel, it undoes what the network does to its input.
    """
    if stride == 1:
        return cells
    count, channels, z, y, x = cells.shape
    blocks = cells.reshape(count, stride, stride, stride, channels // stride**3, z, y, x)
    return blocks.permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(count, -1, z * stride, y * stride, x * stride)
