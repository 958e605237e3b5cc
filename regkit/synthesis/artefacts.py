"""What goes wrong in a scan, or is done to an image later: of one volume, which keeps its shape and place.

Each takes an image (Z, Y, X), about 0 to 1, and gives another; :func:`with_artefact` chooses one at random.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from regkit.synthesis.noise import Rng, onto

_LAYERS = 4  # of random convolutions
_CHANNELS = 2


def with_artefact(image: torch.Tensor, rng: Rng, mr: bool) -> torch.Tensor:
    """An image with one artefact, of those that its kind of scanner has.

    Args:
        mr: whether it is an MR, and not a CT.
    """
    kinds = (*ALL_IMAGES, *MR_ONLY) if mr else ALL_IMAGES
    return kinds[rng.one_of(len(kinds))](image, rng)


def surface_coil(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """The signal falls off with the distance from a coil on one side."""
    direction = rng.scalars.standard_normal(3)
    direction /= np.linalg.norm(direction)
    centred = [np.arange(n) - (n - 1) / 2 for n in image.shape]
    reach = rng.uniform(0.3, 1.2) * max(image.shape)
    for axis, (at, share) in enumerate(zip(centred, direction)):
        along = onto(image.device, np.exp(-share * at / reach))
        image = image * along.view([-1 if k == axis else 1 for k in range(3)])
    return image


def wrap_around(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """What lies beyond the field of view along one axis is seen, fainter, at its other end."""
    axis = int(rng.scalars.integers(3))
    n = image.shape[axis]
    first = round(n * rng.uniform(0.65, 0.95))  # voxels from an end to what is seen there
    strength = rng.uniform(0.15, 0.8)
    found = image.clone()
    found.narrow(axis, first, n - first).add_(image.narrow(axis, 0, n - first), alpha=strength)
    found.narrow(axis, 0, n - first).add_(image.narrow(axis, first, n - first), alpha=strength)
    return found


def motion(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """The patient moved once or more often while the lines of k-space were measured, or all the time."""
    axis = int(rng.scalars.integers(3))
    n = image.shape[axis]
    time = np.arange(n)
    if rng.chance(0.5):  # now and then
        ends = np.sort(rng.scalars.uniform(0, n, int(rng.scalars.integers(1, 4))))
        places = rng.scalars.normal(0, 1.2, (len(ends) + 1, 3))[np.searchsorted(ends, time)]
    else:  # with each breath
        waves = np.sin(2 * np.pi * time / rng.uniform(3, 12) + rng.uniform(0, 6))
        places = waves[:, None] * rng.scalars.normal(0, 0.6, 3)
    places -= places[n // 2]  # the middle of k-space says where it lies
    order = np.fft.ifftshift(time)  # it is measured from one end to the other
    phase = torch.zeros((), device=image.device)
    spectrum = torch.fft.fftn(image)
    for k, m in enumerate(image.shape):
        turns = onto(image.device, np.fft.fftfreq(m)).view([-1 if j == k else 1 for j in range(3)])
        by = onto(image.device, places[order, k]).view([-1 if j == axis else 1 for j in range(3)])
        phase = phase + turns * by
    turned = torch.polar(torch.ones_like(phase), -2 * np.pi * phase)
    return torch.fft.ifftn(spectrum * turned).abs()


def slice_gaps(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Thin slices with gaps along one axis, interpolated, or repeated, back to the voxels."""
    axis = int(rng.scalars.integers(3))
    n = image.shape[axis]
    step = rng.uniform(2, min(6, max(2.5, n / 3)))
    kept = np.round(np.arange(rng.uniform(0, step), n - 0.5, step)).astype(int)
    at = np.interp(np.arange(n), kept, np.arange(len(kept)))
    if rng.chance(0.3):
        at = np.round(at)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(kept) - 1)
    share = onto(image.device, at - low).view([-1 if k == axis else 1 for k in range(3)])
    below, above = (image.index_select(axis, onto(image.device, kept[k], np.int64)) for k in (low, high))
    return below + share * (above - below)


def metal(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """A piece of metal: nothing, or all that is bright, with streaks in the slices across it."""
    centre = [rng.uniform(0.15, 0.85) * n for n in image.shape]
    radius = rng.uniform(1.5, 6)
    z, y, x = (onto(image.device, np.arange(n) - middle) for n, middle in zip(image.shape, centre))
    across = (y[:, None].square() + x.square()).sqrt_()
    far = (across.square() + z[:, None, None].square()).sqrt_()
    low, high = float(image.min()), float(image.max())
    if rng.chance(0.5):  # it takes the signal around it, and piles it up at the border
        rim = torch.exp(-0.5 * ((far - radius - 1) / 1.0).square())
        lost = torch.sigmoid(2 * (far - radius))
        return low + (image - low) * lost * (1 + rng.uniform(0, 1) * rim)
    angle = torch.atan2(y[:, None].expand_as(across), x.expand_as(across))
    streaks = torch.zeros_like(across)
    for _ in range(6):
        waves, strength = int(rng.scalars.integers(1, 20)), rng.scalars.normal(0, 0.5)
        streaks += strength * torch.cos(waves * angle + rng.uniform(0, 6))
    fading = (
        torch.exp(-across / (0.25 * max(image.shape)))
        * torch.exp(-0.5 * (z / radius).square())[:, None, None]
    )
    streaked = image + rng.uniform(0.05, 0.3) * (high - low) * streaks * fading
    return torch.where(far < radius, high, streaked)


def random_convolutions(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """A shallow network of random weights, mixed with the image (GIN: Ouyang et al., TMI 2023).

    Its kernels are symmetric, as others would shift what they show.
    """
    values = (image - image.mean())[None, None]
    norm = values.norm()
    for layer in range(_LAYERS):
        first, last = layer == 0, layer == _LAYERS - 1
        side = 1 + 2 * int(rng.chance(0.5))
        weight = rng.normal(1 if last else _CHANNELS, 1 if first else _CHANNELS, side, side, side)
        weight = weight + weight.flip(2, 3, 4)
        bias = rng.normal(1 if last else _CHANNELS)
        values = F.conv3d(F.pad(values, (side // 2,) * 6, mode="replicate"), weight) + bias.view(
            1, -1, 1, 1, 1
        )
        if not last:
            values = F.leaky_relu(values)
    values = values - values.mean()
    share = rng.uniform(0, 1)
    mixed = share * values * (norm / values.norm().clamp_min(1e-6)) + (1 - share) * (image - image.mean())
    return (mixed[0, 0] + image.mean()).contiguous()


ALL_IMAGES = (slice_gaps, metal, random_convolutions)
"""Artefacts of all images."""
MR_ONLY = (surface_coil, wrap_around, motion)
"""Those that a CT has not, or not so."""
