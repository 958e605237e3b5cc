"""Box means and pooling that do not let the border or missing voxels pull on the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from regkit.ops import gpu, native


def box_sum(volume: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum over the (2 radius + 1)^3 neighbourhood of each voxel that has one, over the last three axes.

    Three separable passes; every axis gets 2 radius shorter.
    """
    if not radius:
        return volume.clone()
    for axis in (-3, -2, -1):
        n = volume.shape[axis] - 2 * radius
        total = volume.narrow(axis, 0, n) + volume.narrow(axis, 1, n)
        for shift in range(2, 2 * radius + 1):
            total += volume.narrow(axis, shift, n)
        volume = total
    return volume


def smooth(volume: torch.Tensor, passes: int = 1) -> torch.Tensor:
    """Box means of width 3 with replicated borders: a constant stays constant up to the border.

    Args:
        volume: (C, Z, Y, X); differentiable.
        passes: three passes are close to a cubic B-spline kernel.
    """
    if passes and (gpu.serves(volume) or native.serves(volume)):
        smoothed: torch.Tensor = _Smooth.apply(volume, passes)
        return smoothed
    for _ in range(passes):
        padded = F.pad(volume[None], (1,) * 6, mode="replicate")
        for axis in (2, 3, 4):
            n = padded.shape[axis] - 2
            padded = padded.narrow(axis, 0, n) + padded.narrow(axis, 1, n) + padded.narrow(axis, 2, n)
        volume = padded[0] / 27
    return volume


class _Smooth(torch.autograd.Function):
    """A box mean with replicated borders is symmetric, so that the gradient is smoothed as the volume is."""

    @staticmethod
    def forward(ctx: Any, volume: torch.Tensor, passes: int) -> torch.Tensor:
        ctx.passes = passes
        if gpu.serves(volume):
            from regkit.ops.gpu import kernels

            return kernels.smooth(volume, passes)
        volume = volume.contiguous()
        out = torch.empty_like(volume)
        channels, z, y, x = volume.shape
        native.run("smooth_planes", channels * z, volume, out, y, x, passes)
        native.run("smooth_columns", y, out, channels, z, y, x, passes)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Smooth.forward(ctx, outputs[0], ctx.passes), None


def blur(image: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian blur, the border values going on; the kernel ends at three deviations.

    Args:
        image: (Z, Y, X).
        sigma: voxels along (z, y, x); an axis of 0 is left alone.
    """
    for axis, deviation in enumerate(sigma):
        radius = int(3 * deviation + 0.5)
        if not radius:
            continue
        taps = torch.exp(-0.5 * (torch.arange(radius + 1, dtype=torch.float64) / deviation) ** 2)
        taps = (taps / (2 * taps.sum() - taps[0])).to(image)
        if native.serves(image):
            image = _native_blur(image.contiguous(), axis, taps)
            continue
        rows = image.movedim(axis, -1)
        flat = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (radius, radius), mode="replicate")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which keeps ten bits
            blurred = F.conv1d(flat, torch.cat([taps[1:].flip(0), taps])[None, None])
        image = blurred.reshape(rows.shape).movedim(-1, axis)
    return image


def _native_blur(image: torch.Tensor, axis: int, taps: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(image)
    z, y, x = image.shape
    radius = len(taps) - 1
    if axis == 2:
        native.run("blur_rows", z * y, image, out, x, taps, radius)
    else:
        n, inner = (z, y * x) if axis == 0 else (y, x)
        native.run("blur_across", z if axis == 0 else z * y, image, out, n, inner, taps, radius)
    return out


def pool(values: torch.Tensor, weight: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted means over cells of stride^3 voxels, and the mean weight of each cell.

    Args:
        values: (C, Z, Y, X) with sizes divisible by ``stride``.
        weight: (1, Z, Y, X) in [0, 1]; voxels of weight 0 leave the mean untouched.
    """
    mean_weight = F.avg_pool3d(weight, stride)
    if native.serves(values, weight):
        values, weight = values.contiguous(), weight.contiguous()
        channels, (z, y, x) = len(values), mean_weight.shape[1:]
        means = native.empty(channels, z, y, x)
        native.run("pool", channels * z, values, weight, z, y, x, stride, means)
        return means, mean_weight
    # Channel by channel: the product with the weight is never held for all of them.
    means = torch.stack([F.avg_pool3d(channel[None] * weight, stride)[0] for channel in values])
    return means / mean_weight.clamp_min(1e-6), mean_weight
