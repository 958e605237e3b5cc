"""Box means and pooling that do not let the border or missing voxels pull on the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from regkit.ops import gpu, native
from regkit.ops.dispatch import operation


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


@operation
def smooth(volume: torch.Tensor, passes: int = 1) -> torch.Tensor:
    """Box means of width 3 with replicated borders: a constant stays constant up to the border.

    Args:
        volume: (C, Z, Y, X); differentiable.
        passes: three passes are close to a cubic B-spline kernel.
    """
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
    def forward(
        ctx: Any, run: Callable[[torch.Tensor, int], torch.Tensor], volume: torch.Tensor, passes: int
    ) -> torch.Tensor:
        ctx.run, ctx.passes = run, passes
        return run(volume, passes)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        return None, ctx.run(outputs[0], ctx.passes), None


@smooth.kernel("triton", lambda volume, passes=1: passes > 0 and gpu.serves(volume))
def _smooth_by_triton(volume: torch.Tensor, passes: int = 1) -> torch.Tensor:
    from regkit.ops.gpu import kernels

    smoothed: torch.Tensor = _Smooth.apply(kernels.smooth, volume, passes)
    return smoothed


@smooth.kernel("c", lambda volume, passes=1: passes > 0 and native.serves(volume))
def _smooth_by_c(volume: torch.Tensor, passes: int = 1) -> torch.Tensor:
    smoothed: torch.Tensor = _Smooth.apply(_smoothed_by_c, volume, passes)
    return smoothed


def _smoothed_by_c(volume: torch.Tensor, passes: int) -> torch.Tensor:
    volume = volume.contiguous()
    out = torch.empty_like(volume)
    native.run("smooth_planes", volume=volume, smoothed=out, passes=passes)
    native.run("smooth_columns", volume=out, passes=passes)
    return out


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
        image = convolve(image, axis, taps)
    return image


@operation
def convolve(image: torch.Tensor, axis: int, taps: torch.Tensor) -> torch.Tensor:
    """Convolution along an axis with a symmetric kernel, the border values going on.

    Args:
        image: (Z, Y, X).
        taps: (radius + 1,), the middle one first.
    """
    radius, rows = len(taps) - 1, image.movedim(axis, -1)
    flat = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (radius, radius), mode="replicate")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which keeps ten bits
        blurred = F.conv1d(flat, torch.cat([taps[1:].flip(0), taps])[None, None])
    return blurred.reshape(rows.shape).movedim(-1, axis)


@convolve.kernel("c", lambda image, axis, taps: native.serves(image))
def _convolve_by_c(image: torch.Tensor, axis: int, taps: torch.Tensor) -> torch.Tensor:
    image = image.contiguous()
    out, radius = torch.empty_like(image), len(taps) - 1
    if axis == 2:
        native.run("blur_rows", image=image, blurred=out, taps=taps, radius=radius)
        return out
    shape = (1, len(image), image[0].numel()) if axis == 0 else image.shape
    native.run("blur_across", image=image.view(shape), blurred=out.view(shape), taps=taps, radius=radius)
    return out


@operation
def pool(values: torch.Tensor, weight: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted means over cells of stride^3 voxels, and the mean weight of each cell.

    Args:
        values: (C, Z, Y, X) with sizes divisible by ``stride``.
        weight: (1, Z, Y, X) in [0, 1]; voxels of weight 0 leave the mean untouched.
    """
    mean_weight = F.avg_pool3d(weight, stride)
    # Channel by channel: the product with the weight is never held for all of them.
    means = torch.stack([F.avg_pool3d(channel[None] * weight, stride)[0] for channel in values])
    return means / mean_weight.clamp_min(1e-6), mean_weight


@pool.kernel("c", lambda values, weight, stride: native.serves(values, weight))
def _pool_by_c(values: torch.Tensor, weight: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean_weight = F.avg_pool3d(weight, stride)
    means = native.empty(len(values), *mean_weight.shape[1:])
    native.run("pool", volume=values.contiguous(), weight=weight.contiguous(), stride=stride, means=means)
    return means, mean_weight
