"""Features of the network for volumes of any size, in little more memory than they take themselves."""

from __future__ import annotations

import copy
import os
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F

from regkit.core.errors import RegkitError
from regkit.features import eightbit
from regkit.features.equalise import equalised
from regkit.features.unet import UNet, fused
from regkit.features.weights import SEGMENTER, load_network, reading
from regkit.io.provenance import sha256
from regkit.ops import native
from regkit.ops.filters import smooth
from regkit.ops.sampling import resize
from regkit.runtime.memory import check_fits_memory

# Cells of the finest level that are computed at once.
MAX_CELLS = 3_000_000
# What it takes for each cell of a volume and channel of the finest level, in one pass and by slabs.
_BYTES_WHOLE, _BYTES_BY_SLABS = 36, 25
_BYTES_INSTANCE = 56  # with norms over the volume, in one pass
_BYTES_EIGHTBIT = 16  # the same in 8 bits
# How much finer than it is an image may be resampled, which takes the cube of it in memory.
_FINEST = 3.0
# Cells that a slab has more on either side, for three convolutions; even, so that pooling pairs the same.
_HALO = 4


class NetworkFeatures:
    """An extractor: from an image (Z, Y, X) in [0, 1] to channels (C, Z / stride, Y / stride, X / stride).

    What the network sees and how its output is read stands in the weights
    (:class:`regkit.features.weights.Reading`).
    Where they tell the spacings that it learnt from, an image of coarser voxels is resampled to the coarsest
    of these, and what the network gives is brought back: it takes organs of other sizes for others. Finer
    images are seen as they are: the finer, the more the bundled network says "nothing of the kind".

    Sizes that the network does not take are continued by border values, and the result is cropped. Of a large
    volume the finest level, which takes by far the most memory, is computed slab by slab, and all others at
    once: a cell sees as far as in one pass and no seam arises, as it would between tiles, unless each had
    the 94 cells around it that the network looks at. Norms over the volume need all of it at once.

    Args:
        path: a file of weights that :func:`regkit.features.weights.load_network` reads.
        max_cells: cells of the finest level to compute at once.
        apart: read every channel for itself, not those that a registration cannot confuse as one.

    Attributes:
        stride: voxels of the image per cell of the output.
        record: the weights' ``file``, ``sha256`` and ``provenance``, for results.
    """

    def __init__(self, path: str | os.PathLike[str], max_cells: int = MAX_CELLS, apart: bool = False) -> None:
        network, provenance = load_network(path)
        if SEGMENTER in provenance:
            raise RegkitError(
                f"'{path}' is a model of regkit finetune, for regkit segment; it gives no features"
            )
        self.network = fused(network)
        # Where the processor multiplies in it, three times as fast, and within 0.5 % of float32.
        self.type = torch.bfloat16 if native.fast_bfloat16() else torch.float32
        self.stride = network.architecture.stride
        self.max_cells = max_cells
        self.record = {"file": Path(path).name, "sha256": sha256(path), "provenance": provenance}
        read = reading(provenance, network.architecture.out_channels)
        self.reading = read.apart() if apart else read

    def __call__(self, image: torch.Tensor, spacing: float | None = None) -> torch.Tensor:
        """(C, Z / stride, Y / stride, X / stride), sides rounded up, float32.

        Args:
            spacing: of the voxels, mm; by default one that the network learnt from.
        """
        if spacing is None or self.reading.spacing is None:
            return self._of_its_spacing(image)
        ratio = min(max(1.0, spacing / self.reading.spacing[1]), _FINEST)
        # Whole cells on both grids, so that they share their field of view.
        cells = [-(-n // self.stride) for n in image.shape]
        whole = [n * self.stride for n in cells]
        resized_shape = [round(n * ratio) * self.stride for n in cells]
        if resized_shape == whole:
            return self._of_its_spacing(image)
        features = self._of_its_spacing(_resized(_continued(image, whole)[0], resized_shape)[0])
        return _resized(features, cells)

    @torch.no_grad()
    def _of_its_spacing(self, image: torch.Tensor) -> torch.Tensor:
        dtype = self.type if image.device.type == "cpu" else torch.float32
        order = self.network.architecture.memory_format if dtype == torch.float32 else torch.channels_last_3d
        network = self._half if dtype == torch.bfloat16 else self.network
        network.to(image.device, memory_format=order)  # type: ignore[call-overload]
        in_eightbit = self.eightbit if image.device.type == "cpu" else None
        if self.reading.input == "equalised":
            image = equalised(image)
        multiple = self.network.multiple
        # Reflection at the lowest level needs two cells there.
        volume = _continued(image, [max(2, -(-n // multiple)) * multiple for n in image.shape])
        cells = volume.numel() // self.stride**3
        if self.network.architecture.norm == "instance":
            whole, bytes_each = True, _BYTES_EIGHTBIT if in_eightbit else _BYTES_INSTANCE
        else:
            whole = cells <= self.max_cells
            bytes_each = _BYTES_WHOLE if whole else _BYTES_BY_SLABS
        if image.device.type == "cpu":
            check_fits_memory(cells, "the network", self.network.architecture.width * bytes_each)
        if in_eightbit:
            out = in_eightbit(volume)
        else:
            volume = volume.to(dtype=dtype, memory_format=order)
            out = network(volume) if whole else self._by_slabs(volume, network)
        z, y, x = (-(-n // self.stride) for n in image.shape)
        return self.reading.read(out[:, :, :z, :y, :x])[0]

    @cached_property
    def eightbit(self) -> eightbit.EightBit | None:
        """The network in 8 bits, for a CPU that has instructions for them and not for bfloat16.

        Six times as fast as in float32, within 1.5 %. Of ranks alone, which fill [0, 1]: other values would
        be rounded too coarsely.
        """
        serves = self.type == torch.float32 and self.reading.input == "equalised"
        return eightbit.EightBit(self.network) if serves and eightbit.serves(self.network) else None

    @cached_property
    def _half(self) -> UNet:
        return copy.deepcopy(self.network).to(torch.bfloat16)

    def _by_slabs(self, volume: torch.Tensor, network: UNet) -> torch.Tensor:
        """What the network gives for a volume (1, 1, Z, Y, X), the finest level a slab of z at a time."""
        shape = [n // self.stride for n in volume.shape[2:]]
        architecture = self.network.architecture
        skip = volume.new_empty((1, architecture.width, *shape))
        out = volume.new_empty((1, architecture.out_channels, *shape))
        depth, plane = shape[0], shape[1] * shape[2]
        thickness = max(_HALO, self.max_cells // plane - 2 * _HALO) // 2 * 2
        slabs = [
            (
                start,
                min(start + thickness, depth),
                max(start - _HALO, 0),
                min(start + thickness + _HALO, depth),
            )
            for start in range(0, depth, thickness)
        ]
        for start, end, first, last in slabs:
            slab = network.enter(volume[:, :, first * self.stride : last * self.stride])
            skip[:, :, start:end] = slab[:, :, start - first : end - first]
        below = network.deepen(skip)[-1]
        for start, end, first, last in slabs:
            slab, _ = network.leave(skip[:, :, first:last], below[:, :, first // 2 : last // 2])
            out[:, :, start:end] = slab[:, :, start - first : end - first]
        return out


def _continued(image: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """An image (Z, Y, X) as (1, 1, Z', Y', X'), its border values going on behind the ends of its axes."""
    z, y, x = (whole - n for whole, n in zip(shape, image.shape))
    return F.pad(image[None, None], (0, x, 0, y, 0, z), mode="replicate")


def _resized(volume: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """A volume (C, Z, Y, X) on another grid of the same field of view, blurred if that is coarser."""
    ratio = volume.shape[1] / shape[0]
    # As much as in Source.smoothed_for: a variance of (ratio^2 - 1) / 4 voxels^2; a pass gives 2 / 3.
    passes = round(max(0.0, ratio**2 - 1) / 4 * 3 / 2)
    return resize(smooth(volume, passes), tuple(shape))
