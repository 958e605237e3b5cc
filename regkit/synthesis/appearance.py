"""Volumes of random appearance from a label map.

A Gaussian mixture per label, then what scanners do: texture, partial volume, a bias field, gamma, thick
slices, ringing, spikes in k-space, blur, noise, and a field of view that ends. Every step has its own
probability; two renderings of one label map share nothing but the labels. The list is that of Dey et al.
(ICLR 2025), drawn anew for each sample; some palettes are of few or of close intensities: most organs in a
CT differ by less than its noise. All of it in moderation: pairs with most of their boundaries hidden teach a
network to blur (measured: docs/pretraining.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from regkit.synthesis.noise import Dice, smooth_noise


class Palette(NamedTuple):
    """What one image shows of each label.

    Args:
        means, deviations: of the intensities, (256,) each.
        window: whether what lies beyond [0, 1] is cut off when all is done, as by the window of a CT: air
            far below it shows no noise. There is no bias field then.
    """

    means: np.ndarray
    deviations: np.ndarray
    window: bool = False


@dataclass(frozen=True)
class Rendering:
    """An image and where it has data.

    Args:
        image: (Z, Y, X) float32 in [0, 1], beyond the field of view continued by border values.
        seen: (Z, Y, X) bool, the field of view.
    """

    image: torch.Tensor
    seen: torch.Tensor


def draw_grain(shape: tuple[int, ...], dice: Dice) -> torch.Tensor:
    """Fine structure of an anatomy, (2, Z, Y, X): finer and coarser smooth noise.

    Two images of one patient share far more than the outlines of organs: lobules, fibres, small vessels,
    strands of fat. Where nothing but outlines is shared, a network learns to look past all that is fine.
    """
    scales = dice.uniform(2, 4), dice.uniform(4, 10)
    return torch.cat([smooth_noise(dice, 1, shape, scale) for scale in scales])


def render(
    labels: torch.Tensor,
    dice: Dice,
    partial: float = 0.35,
    grain: Callable[[], torch.Tensor] | None = None,
    palette: Palette | None = None,
) -> Rendering:
    """One image of a label map.

    Args:
        labels: (Z, Y, X) uint8.
        partial: probability that the field of view ends within the volume.
        grain: gives the (2, Z, Y, X) fine structure that all images of the anatomy show, each in its own way;
            asked for only where it is seen.
        palette: by default a random one.
    """
    palette = random_palette(dice) if palette is None else palette
    means, deviations = (torch.from_numpy(values.astype(np.float32)) for values in palette[:2])
    index = labels.int()
    image = means.to(dice.device)[index]
    if grain is not None and dice.chance(0.5):
        image = image + _seen_grain(grain(), index, dice)
    if dice.chance(0.8):
        image = image + _texture(labels.shape, dice) * dice.uniform(0.0, 0.05)
    if dice.chance(0.7):
        image += deviations.to(dice.device)[index] * dice.normal(*labels.shape)
    image = blurred(image, dice.scalars.uniform(0.2, 0.9, 3)) if dice.chance(0.8) else image
    if not palette.window and dice.chance(0.5):
        image = image * bias(labels.shape, dice.uniform(0, 0.4), dice)
    if dice.chance(0.1):
        image = _thick_slices(image, dice)
    if dice.chance(0.05):
        image = _in_k_space(image, dice)
    if palette.window:
        image = (_noisy(image, dice, 0.0) if dice.chance(0.7) else image).clamp_(0, 1)
    else:
        image = _scanned(image, dice)
    seen = torch.ones_like(image, dtype=torch.bool)
    return _cut(image, seen, dice) if dice.chance(partial) else Rendering(image, seen)


def random_palette(dice: Dice) -> Palette:
    """Random contrasts: any, few that many structures share, or close ones."""
    random = dice.scalars
    kind = random.choice(3, p=(0.8, 0.15, 0.05))
    means = random.uniform(0, 1, 256)
    if kind == 1:
        # Few tissues: many structures look alike here, and need not in the other view.
        tissues = random.uniform(0, 1, int(random.integers(3, 8)))
        means = tissues[random.integers(len(tissues), size=256)]
        means = means + random.normal(0, 0.01, 256)
    elif kind == 2:
        # A narrow band for most, the ends of the scale for some.
        centre, width = random.uniform(0.3, 0.7), random.uniform(0.04, 0.2)
        means = np.where(random.random(256) < 0.7, centre + width * random.uniform(-1, 1, 256), means)
    if dice.chance(0.6):
        means[0] = random.choice([0.0, 0.0, means.max()])
    deviations = random.uniform(0, 0.08, 256) * random.uniform(0.1, 1)
    return Palette(means, deviations)


def _seen_grain(grain: torch.Tensor, index: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Grain with the contrast of one image: a random function of it, its strength another for each label."""
    total = torch.zeros_like(grain[0])
    for field in grain:
        strength = torch.from_numpy(
            (dice.scalars.random(256) ** 2 * dice.uniform(-0.2, 0.2)).astype(np.float32)
        )
        if dice.chance(0.5):  # other levels are bright, and not only the other way round
            field = torch.sin(field * dice.uniform(1, 3) + dice.uniform(0, 2 * np.pi))
        total += strength.to(dice.device)[index] * field
    return total


def _texture(shape: tuple[int, ...], dice: Dice) -> torch.Tensor:
    """Noise of several scales, (Z, Y, X)."""
    total = torch.zeros(shape, device=dice.device)
    for scale in (2, 4, 8, 16):
        if dice.chance(0.5):
            total += smooth_noise(dice, 1, shape, scale)[0] * dice.uniform(0, 1)
    return total


def bias(shape: tuple[int, ...], strength: float, dice: Dice) -> torch.Tensor:
    """A smooth positive factor (Z, Y, X), its logarithm with a deviation near ``strength``."""
    return smooth_noise(dice, 1, shape, max(shape) / dice.uniform(1, 3))[0].mul_(strength).exp_()


def blurred(image: torch.Tensor, sigmas: Sequence[float] | np.ndarray) -> torch.Tensor:
    """Gaussian blur of (Z, Y, X), one sigma (voxels) per axis, borders replicated."""
    volume = image[None, None]
    for axis, sigma in enumerate(map(float, sigmas)):
        radius = max(1, round(2.5 * sigma))
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-3)) ** 2)
        weights = (taps / taps.sum()).tolist()
        pad = [0, 0, 0, 0, 0, 0]
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = radius
        padded = F.pad(volume, pad, mode="replicate")
        n = volume.shape[2 + axis]
        volume = sum(w * padded.narrow(2 + axis, k, n) for k, w in enumerate(weights))
    return volume[0, 0]


def _thick_slices(image: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Fewer voxels along one axis, or along all, and interpolated back."""
    ratios = np.ones(3)
    if dice.chance(0.7):
        ratios[dice.scalars.integers(3)] = dice.uniform(1.5, 4)
    else:
        ratios[:] = dice.uniform(1.2, 2.5)
    z, y, x = (max(4, round(n / r)) for n, r in zip(image.shape, ratios))
    few = F.adaptive_avg_pool3d(image[None, None], (z, y, x))
    return F.interpolate(few, size=image.shape, mode="trilinear", align_corners=False)[0, 0]


def _in_k_space(image: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Gibbs ringing (high frequencies cut off) or a spike (a wave over the whole image)."""
    spectrum = torch.fft.rfftn(image)
    if dice.chance(0.6):
        keep = dice.uniform(0.5, 0.9)
        for axis, n in enumerate(spectrum.shape):
            frequency = torch.fft.rfftfreq(image.shape[2]) if axis == 2 else torch.fft.fftfreq(n)
            mask = (frequency.abs() <= keep / 2).to(image.device)
            spectrum = spectrum * mask.view([-1 if k == axis else 1 for k in range(3)])
    else:
        at = tuple(int(dice.scalars.integers(1, max(2, n // 3))) for n in spectrum.shape)
        angle = dice.uniform(0, 2 * np.pi)
        height = dice.uniform(0.005, 0.03) * image.numel()
        spectrum[at] += complex(height * np.cos(angle), height * np.sin(angle))
    return torch.fft.irfftn(spectrum, s=image.shape)


def _scanned(image: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Gamma, noise, and a window that cuts off the ends, as percentiles do; in [0, 1]."""
    image = _rescaled(image)
    if dice.chance(0.5):
        image = image.clamp_(min=0).pow_(float(np.exp(dice.uniform(-0.7, 0.7))))
    if dice.chance(0.7):
        image = _noisy(image, dice)
    image = _rescaled(image)
    if dice.chance(0.4):
        low, high = dice.uniform(-0.02, 0.2), dice.uniform(0.7, 1.02)
        image = ((image - low) / (high - low)).clamp_(0, 1)
    return image


def _noisy(image: torch.Tensor, dice: Dice, magnitude: float = 0.3) -> torch.Tensor:
    """Gaussian noise, or, with the probability ``magnitude``, Rician as in a magnitude image."""
    # Mostly little: a network that has learned to see through much noise sees smooth blobs in clean images.
    level = float(np.exp(dice.uniform(np.log(0.002), np.log(0.02))))
    return rician(image, level, dice) if dice.chance(magnitude) else image + level * dice.normal(*image.shape)


def rician(image: torch.Tensor, level: float, dice: Dice) -> torch.Tensor:
    """The magnitude of an image with complex Gaussian noise."""
    return torch.hypot(image + level * dice.normal(*image.shape), level * dice.normal(*image.shape))


def _rescaled(image: torch.Tensor) -> torch.Tensor:
    low, high = image.aminmax()
    return (image - low) / (high - low).clamp_min(1e-6)


def _cut(image: torch.Tensor, seen: torch.Tensor, dice: Dice) -> Rendering:
    """End the field of view at a plane across one axis; what lies beyond repeats the last slice."""
    axis = int(dice.scalars.integers(3))
    n = image.shape[axis]
    kept = int(n * dice.uniform(0.25, 0.9))
    first = 0 if dice.chance(0.5) else n - kept
    image, seen = image.clone(), seen.clone()
    for start, length, edge in ((0, first, first), (first + kept, n - first - kept, first + kept - 1)):
        if length:
            image.narrow(axis, start, length).copy_(
                image.narrow(axis, edge, 1).expand_as(image.narrow(axis, start, length))
            )
            seen.narrow(axis, start, length).fill_(False)
    return Rendering(image, seen)
