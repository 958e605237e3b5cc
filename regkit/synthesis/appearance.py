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
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from regkit.synthesis.artefacts import with_artefact
from regkit.synthesis.noise import Rng, knots, normals, onto, smooth_noises, splined

_TEXTURES = (2, 4, 8, 16)  # voxels over which they vary
_EACH = (-1, 1, 1, 1)  # a number for each volume


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
    """Images and where they have data.

    Args:
        images: (V, Z, Y, X) float32 in [0, 1], beyond the field of view continued by border values.
        visible: (V, Z, Y, X) bool, the field of view.
    """

    images: torch.Tensor
    visible: torch.Tensor


@dataclass(frozen=True)
class Grain:
    """Fine structure of an anatomy: finer and coarser smooth noise.

    Two images of one patient share far more than the outlines of organs: lobules, fibres, small vessels,
    strands of fat. Where nothing but outlines is shared, a network learns to look past all that is fine.

    Args:
        knots: the finer and the coarser as splines, (1, kz, ky, kx) each, which an upright grid is quickly
            evaluated from.
        volume: (2, Z, Y, X) both at the voxels of the anatomy, for any other grid.
    """

    knots: tuple[torch.Tensor, ...]
    volume: torch.Tensor


def draw_grain(shape: tuple[int, ...], rng: Rng) -> Grain:
    """The grain of an anatomy of a shape (Z, Y, X), on the device of the generator."""
    scales = rng.uniform(2, 4), rng.uniform(4, 10)
    values = tuple(rng.normal(1, *knots(shape, scale)) for scale in scales)
    return Grain(values, torch.cat([splined(of_scale, shape) for of_scale in values]))


def render(
    labels: torch.Tensor,
    rng: Sequence[Rng],
    palettes: Sequence[Palette],
    grains: Sequence[Callable[[], torch.Tensor] | None] | None = None,
    partial: float = 0.35,
    thick: float = 0.1,
    artefacts: float = 0.0,
) -> Rendering:
    """An image of each of several label maps, the same one whatever it is drawn beside.

    All are drawn step by step together: on a GPU a step takes as long for one as for many.

    Args:
        labels: (V, Z, Y, X) uint8.
        rng: for each; some may share theirs.
        palettes: of each.
        grains: each gives the (2, Z, Y, X) fine structure that all images of an anatomy show, every one in
            its own way; asked for only where it is seen.
        partial: probability that a field of view ends within the volume.
        thick: probability of thick slices, or of larger voxels.
        artefacts: probability of one of :mod:`regkit.synthesis.artefacts`.
    """
    shape = labels.shape[1:]
    scanned = [not palette.window for palette in palettes]
    images = looked_up([palette.means for palette in palettes], labels)
    if grains:
        _add_grain(images, labels, grains, rng)
    _add_texture(images, rng)
    if uneven := _chosen(rng, 0.7):
        deviations = looked_up([palettes[v].deviations for v in uneven], _some(labels, uneven))
        deviations *= normals([rng[v] for v in uneven], shape)
        _add(images, uneven, deviations)
    soft = _chosen(rng, 0.8)
    sigmas = [rng[v].scalars.uniform(0.2, 0.9, 3) for v in soft]
    _change(images, soft, lambda some: blurred(some, sigmas))
    if biased := _chosen(rng, 0.5, scanned):
        drawn = [(rng[v].uniform(0, 0.4), max(shape) / rng[v].uniform(1, 3)) for v in biased]
        strengths, scales = zip(*drawn)
        _change(images, biased, _biases(shape, strengths, scales, [rng[v] for v in biased]).mul_)
    for v in _chosen(rng, thick):
        images[v] = _thick_slices(images[v], rng[v])
    for v in _chosen(rng, 0.05):
        images[v] = _in_k_space(images[v], rng[v])
    # With none, nothing is drawn either: older configurations give what they gave.
    for v in _chosen(rng, artefacts) if artefacts else ():
        images[v] = with_artefact(images[v], rng[v], scanned[v])
    _scan(images, rng, scanned)
    visible = torch.ones_like(images, dtype=torch.bool)
    for v in _chosen(rng, partial):
        _cut(images[v], visible[v], rng[v])
    return Rendering(images, visible)


def _chosen(rng: Sequence[Rng], probability: float, among: Sequence[bool] | None = None) -> list[int]:
    """The numbers of the volumes that a step is done to, of those for which ``among`` is true."""
    return [v for v, d in enumerate(rng) if (among is None or among[v]) and d.chance(probability)]


def _some(volumes: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """The volumes of some numbers."""
    if _in_a_row(numbers):
        return volumes.narrow(0, numbers[0], len(numbers))
    return volumes.index_select(0, onto(volumes.device, numbers, np.int64))


def _change(
    volumes: torch.Tensor, numbers: Sequence[int], step: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Put in the place of the volumes of some numbers what a step makes of them."""
    if not numbers:
        return
    if _in_a_row(numbers):
        some = _some(volumes, numbers)
        some.copy_(step(some))  # free, if the step was in place
    else:
        at = onto(volumes.device, numbers, np.int64)
        volumes.index_copy_(0, at, step(volumes.index_select(0, at)))


def _add(volumes: torch.Tensor, numbers: Sequence[int], summands: torch.Tensor) -> None:
    """Add to the volumes of some numbers, in place."""
    if _in_a_row(numbers):
        _some(volumes, numbers).add_(summands)
    else:
        volumes.index_add_(0, onto(volumes.device, numbers, np.int64), summands)


def _in_a_row(numbers: Sequence[int]) -> bool:
    return numbers[-1] - numbers[0] == len(numbers) - 1


def _each(device: torch.device, values: Sequence[float] | np.ndarray) -> torch.Tensor:
    """A number for each volume, (V, 1, 1, 1)."""
    return onto(device, values).view(_EACH)


def looked_up(
    tables: Sequence[np.ndarray], labels: torch.Tensor, dtype: npt.DTypeLike = np.float32
) -> torch.Tensor:
    """What each label stands for in its volume.

    Args:
        tables: (256,) for each volume.
        labels: (V, Z, Y, X) uint8.
    """
    table = onto(labels.device, np.concatenate(tables), dtype)
    index = labels + _starts(len(labels), labels.device)
    # A third of the time of indexing on a CPU.
    return table.index_select(0, index.view(-1)).view(labels.shape)


@lru_cache(maxsize=64)
def _starts(count: int, device: torch.device) -> torch.Tensor:
    """Where the tables of so many volumes begin."""
    return torch.arange(0, 256 * count, 256, dtype=torch.int32, device=device).view(_EACH)


def random_palette(rng: Rng) -> Palette:
    """Random contrasts: any, few that many structures share, or close ones."""
    random = rng.scalars
    kind = rng.one_of(3, (0.8, 0.15, 0.05))
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
    if rng.chance(0.6):
        means[0] = (0.0, 0.0, means.max())[rng.one_of(3)]
    deviations = random.uniform(0, 0.08, 256) * random.uniform(0.1, 1)
    return Palette(means, deviations)


def _add_grain(
    images: torch.Tensor,
    labels: torch.Tensor,
    grains: Sequence[Callable[[], torch.Tensor] | None],
    rng: Sequence[Rng],
) -> None:
    """Grain in half of the images that have any, in place, in the contrast of each: a random function of it,
    its strength another for each label.
    """
    shown = _chosen(rng, 0.5, [grain is not None for grain in grains])
    if not shown:
        return
    fields = torch.cat([grain() for v in shown if (grain := grains[v])])  # the finer and the coarser of each
    theirs = [rng[v] for v in shown for _ in range(2)]
    strengths = [d.scalars.random(256) ** 2 * d.uniform(-0.2, 0.2) for d in theirs]
    waved = _chosen(theirs, 0.5)  # other levels are bright, and not only the other way round
    steepness = [theirs[k].uniform(1, 3) for k in waved]
    phases = [theirs[k].uniform(0, 2 * np.pi) for k in waved]
    waves = onto(images.device, [steepness, phases])[..., None, None, None]
    _change(fields, waved, lambda some: some.mul_(waves[0]).add_(waves[1]).sin_())
    fields *= looked_up(strengths, _some(labels, shown).repeat_interleave(2, dim=0))
    grainy = fields[::2].add_(fields[1::2])
    _add(images, shown, grainy)


def _add_texture(images: torch.Tensor, rng: Sequence[Rng]) -> None:
    """Noise of several scales, added to most of the images (V, Z, Y, X)."""
    shape = images.shape[1:]
    strengths = [d.uniform(0.0, 0.05) if d.chance(0.8) else 0.0 for d in rng]
    there = [strength > 0 for strength in strengths]
    textured: list[list[int]] = []
    amounts: list[float] = []
    for _ in _TEXTURES:
        textured.append(_chosen(rng, 0.5, there))
        amounts += [strengths[v] * rng[v].uniform(0, 1) for v in textured[-1]]
    each = _each(images.device, amounts).split([len(some) for some in textured])
    for scale, some, theirs in zip(_TEXTURES, textured, each):
        if some:
            values = normals([rng[v] for v in some], knots(shape, scale)).mul_(theirs)
            _add(images, some, splined(values, shape))


def bias(shape: tuple[int, ...], strength: float, rng: Rng) -> torch.Tensor:
    """A smooth positive factor (Z, Y, X), its logarithm with a deviation near ``strength``."""
    return _biases(shape, [strength], [max(shape) / rng.uniform(1, 3)], [rng])[0]


def _biases(
    shape: tuple[int, ...], strengths: Sequence[float], scales: Sequence[float], rng: Sequence[Rng]
) -> torch.Tensor:
    """The same of several images, (V, Z, Y, X), each of its own scale."""
    noise = smooth_noises(rng, 1, shape, scales)[:, 0]
    return noise.mul_(_each(noise.device, strengths)).exp_()


def blurred(images: torch.Tensor, sigmas: npt.ArrayLike) -> torch.Tensor:
    """Gaussian blur of (V, Z, Y, X), borders replicated; a sigma, voxels, for each axis of each."""
    sigma = np.asarray(sigmas, np.float64).T[:, None]
    reach = np.maximum(1, np.round(2.5 * sigma))
    widest = [int(of_axis.max()) for of_axis in reach]
    at = np.arange(-max(widest), max(widest) + 1)[:, None]
    taps = np.exp(-0.5 * (at / np.maximum(sigma, 1e-3)) ** 2) * (np.abs(at) <= reach)
    # Two axes (for each axis of the images, each tap) and those of the images.
    weights = onto(images.device, taps / taps.sum(1, keepdims=True)).view(*taps.shape, 1, 1, 1)
    for axis, far in enumerate(widest):
        pad = [0, 0, 0, 0, 0, 0]
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = far
        padded = F.pad(images[None], pad, mode="replicate")[0]
        n = images.shape[1 + axis]
        first, *others = weights[axis, max(widest) - far : max(widest) + far + 1]
        images = padded.narrow(1 + axis, 0, n) * first
        for k, weight in enumerate(others, 1):
            images.addcmul_(padded.narrow(1 + axis, k, n), weight)
    return images


def _thick_slices(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Fewer voxels along one axis, or along all, and interpolated back."""
    ratios = np.ones(3)
    if rng.chance(0.7):
        ratios[rng.scalars.integers(3)] = rng.uniform(1.5, 6)
    else:
        ratios[:] = rng.uniform(1.2, 2.5)
    z, y, x = (max(4, round(n / r)) for n, r in zip(image.shape, ratios))
    few = F.adaptive_avg_pool3d(image[None, None], (z, y, x))
    return F.interpolate(few, size=image.shape, mode="trilinear", align_corners=False)[0, 0]


def _in_k_space(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Gibbs ringing (high frequencies cut off) or a spike (a wave over the whole image)."""
    spectrum = torch.fft.rfftn(image)
    if rng.chance(0.6):
        keep = rng.uniform(0.5, 0.9)
        for axis in range(3):
            of_axis = torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq
            mask = of_axis(image.shape[axis], device=image.device).abs() <= keep / 2
            spectrum = spectrum * mask.view([-1 if k == axis else 1 for k in range(3)])
    else:
        at = tuple(int(rng.scalars.integers(1, max(2, n // 3))) for n in spectrum.shape)
        angle = rng.uniform(0, 2 * np.pi)
        height = rng.uniform(0.005, 0.03) * image.numel()
        spectrum[at] += complex(height * np.cos(angle), height * np.sin(angle))
    return torch.fft.irfftn(spectrum, s=image.shape)


def _scan(images: torch.Tensor, rng: Sequence[Rng], scanned: Sequence[bool]) -> None:
    """Noise, and then [0, 1], in place. Those that are ``scanned``, and not of a window, get a gamma, their
    own range, and some a window that cuts off the ends, as percentiles do.
    """
    device = images.device
    as_it_is = onto(device, np.logical_not(scanned), np.bool_).view(_EACH)
    _rescale(images, as_it_is)
    curved = _chosen(rng, 0.5, scanned)
    gammas = _each(device, [np.exp(rng[v].uniform(-0.7, 0.7)) for v in curved])
    _change(images, curved, lambda some: some.clamp_(min=0).pow_(gammas))
    _add_noise(images, rng, scanned)
    _rescale(images, as_it_is)
    cut_off = _chosen(rng, 0.4, scanned)
    low = [rng[v].uniform(-0.02, 0.2) for v in cut_off]
    high = [rng[v].uniform(0.7, 1.02) for v in cut_off]
    ends = onto(device, [low, high])[..., None, None, None]
    _change(images, cut_off, lambda some: some.sub_(ends[0]).div_(ends[1] - ends[0]))
    images.clamp_(0, 1)


def _add_noise(images: torch.Tensor, rng: Sequence[Rng], magnitude: Sequence[bool]) -> None:
    """Gaussian noise in most, in place, or Rician in some of those that may be a ``magnitude``."""
    # Mostly little: a network that has learned to see through much noise sees smooth blobs in clean images.
    noisy = _chosen(rng, 0.7)
    levels = {v: float(np.exp(rng[v].uniform(np.log(0.002), np.log(0.02)))) for v in noisy}
    rectified = [v for v in noisy if magnitude[v] and rng[v].chance(0.3)]
    plain = [v for v in noisy if v not in rectified]
    of_plain, of_rectified = (_each(images.device, [levels[v] for v in some]) for some in (plain, rectified))
    if plain:
        noise = normals([rng[v] for v in plain], images.shape[1:]).mul_(of_plain)
        _add(images, plain, noise)
    _change(images, rectified, lambda some: rician(some, of_rectified, [rng[v] for v in rectified]))


def rician(images: torch.Tensor, level: torch.Tensor | float, rng: Sequence[Rng]) -> torch.Tensor:
    """The magnitude of images (V, Z, Y, X) with complex Gaussian noise."""
    real, imaginary = (normals(rng, images.shape[1:]) * level for _ in range(2))
    return torch.hypot(images + real, imaginary)


def _rescale(images: torch.Tensor, but: torch.Tensor) -> None:
    """From 0 to 1, in place, each but those for which ``but`` (V, 1, 1, 1) is true."""
    low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
    width = (high - low).clamp_min_(1e-6)
    images.sub_(low.masked_fill_(but, 0)).div_(width.masked_fill_(but, 1))


def _cut(image: torch.Tensor, visible: torch.Tensor, rng: Rng) -> None:
    """End the field of view at a plane across one axis; what lies beyond repeats the last slice."""
    axis = int(rng.scalars.integers(3))
    n = image.shape[axis]
    remaining = int(n * rng.uniform(0.25, 0.9))
    first = 0 if rng.chance(0.5) else n - remaining
    for start, length, edge in (
        (0, first, first),
        (first + remaining, n - first - remaining, first + remaining - 1),
    ):
        if length:
            image.narrow(axis, start, length).copy_(image.narrow(axis, edge, 1))
            visible.narrow(axis, start, length).fill_(False)
