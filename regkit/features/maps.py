"""Features: from one normalised volume to channels that two modalities can be compared on.

An extractor is any callable from an image (Z, Y, X) in [0, 1] and the spacing of its voxels, mm, to channels
(C, Z / stride, Y / stride, X / stride). What the solver works on are :class:`Part` s, each an extractor with
its stride and weight, that :func:`feature_maps` pools to cells and puts side by side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import torch
import torch.nn.functional as F

from regkit.core.choices import DEFAULT_FEATURES, FEATURE_SETS, FeatureSet
from regkit.core.errors import RegkitError
from regkit.features.featuremap import FeatureMap
from regkit.features.network import NetworkFeatures
from regkit.features.weights import bundled_weights
from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.filters import box_sum, pool

Extractor = Callable[..., torch.Tensor]
Shift = tuple[int, int, int]


def _ssc_pairs() -> list[tuple[Shift, Shift]]:
    """The 12 pairs of face neighbours (z, y, x) whose squared distance is 2."""
    faces: list[Shift] = [
        (z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if abs(z) + abs(y) + abs(x) == 1
    ]
    return [(a, b) for a, b in combinations(faces, 2) if sum(i * j for i, j in zip(a, b, strict=True)) == 0]


@operation
def mind_ssc(
    image: torch.Tensor,
    radius: int = 1,
    dilation: int = 2,
    stride: int = 1,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The 12-channel self-similarity descriptor MIND-SSC.

    ``D_ab(x)`` is the mean over a box of (2 radius + 1)^3 of ``(I(x + a) - I(x + b))^2`` for the 12
    pairs (a, b) of face neighbours at ``dilation`` voxels, the image continued by its border values;
    ``D <- D - min_ab D``; the descriptor is ``exp(-D / V)`` with V the mean of D over the pairs, kept
    within 0.001 to 1000 times its own mean over the volume (Heinrich et al., MICCAI 2013).

    Args:
        image: (Z, Y, X), any scale: a linear change of intensities changes nothing.
        stride: the descriptors are averaged over cells of stride^3 voxels; it divides the sides.
        weight: (1, Z, Y, X), of the voxels in these averages; by default all count alike.

    Returns:
        (12, Z / stride, Y / stride, X / stride) in (0, 1].
    """
    reach = 2 * dilation
    padded = F.pad(image[None, None], (reach + radius,) * 6, mode="replicate")[0, 0]
    # D_ab(x) depends on a - b alone up to a shift by b, and the 12 pairs share 6 differences: six box
    # means serve all channels.
    steps, begins = _shared_differences()
    means = [
        _box_mean_of_squared_difference(padded, [dilation * s for s in step], radius, dilation)
        for step in steps
    ]
    views = [_crop(means[which], [dilation * (1 + s) for s in begin], image.shape) for which, begin in begins]
    lowest = views[0].clone()
    mean = torch.zeros_like(lowest)
    for view in views:
        torch.minimum(lowest, view, out=lowest)
        mean += view
    scale = mean.div_(len(views)).sub_(lowest)
    typical = scale.mean().clamp_min(1e-12)
    scale = scale.clamp_(0.001 * typical, 1000 * typical)
    out = image.new_empty((len(views), *(n // stride for n in image.shape)))
    weight = torch.ones_like(image[None]) if weight is None else weight
    for channel, view in zip(out, views):
        found = torch.sub(lowest, view).div_(scale).exp_()
        channel.copy_(pool(found[None], weight, stride)[0][0] if stride > 1 else found)
    return out


def _mind_by_c(
    image: torch.Tensor,
    radius: int = 1,
    dilation: int = 2,
    stride: int = 1,
    weight: torch.Tensor | None = None,
) -> bool:
    return radius == 1 and stride in (1, 2) and native.serves(image, image if weight is None else weight)


@mind_ssc.kernel("c", _mind_by_c)
def _mind_ssc_by_c(
    image: torch.Tensor,
    radius: int = 1,
    dilation: int = 2,
    stride: int = 1,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """With boxes of 3^3 voxels."""
    margin = 2 * dilation + 1
    padded = F.pad(image[None, None], (margin,) * 6, mode="replicate")[0, 0]
    steps, views = _shared_differences()
    shape = [n + 2 * dilation for n in image.shape]
    plane, row = shape[1] * shape[2], shape[2]
    offsets = [dilation * (z * padded.stride(0) + y * padded.stride(1) + x) for z, y, x in steps]
    starts = [
        which * shape[0] * plane + dilation * ((1 + z) * plane + (1 + y) * row + 1 + x)
        for which, (z, y, x) in views
    ]
    means = native.empty(len(steps), *shape)
    native.run(
        "mind_differences", padded=padded, steps=torch.tensor(offsets), margin=dilation + 1, means=means
    )
    z, y, x = image.shape
    arguments: dict[str, native.Argument] = {
        "means": means,
        "views": torch.tensor(starts),
        "z": z,
        "y": y,
        "x": x,
    }
    typical = max(native.run("mind_scale", **arguments) / image.numel(), 1e-12)
    out = native.empty(len(views), *(n // stride for n in image.shape))
    if weight is None and stride > 1:
        weight = torch.ones_like(image[None])
    native.run(
        "mind_channels", **arguments, stride=stride, weight=None if weight is None else weight.contiguous(),
        least_scale=0.001 * typical, most_scale=1000 * typical, channels=out,
    )  # fmt: skip
    return out


def _shared_differences() -> tuple[list[Shift], list[tuple[int, Shift]]]:
    """The 6 steps (z, y, x) that the 12 pairs (a, b) differ by, up to sign, and for each pair which it is and
    where it begins: D_ab(x) is the box mean of (I(. + step) - I)^2 at x + begin."""
    steps: list[Shift] = []
    views: list[tuple[int, Shift]] = []
    for a, b in _ssc_pairs():
        step: Shift = (a[0] - b[0], a[1] - b[1], a[2] - b[2])
        if step < (0, 0, 0):
            step, b = (-step[0], -step[1], -step[2]), a
        if step not in steps:
            steps.append(step)
        views.append((steps.index(step), b))
    return steps, views


def _box_mean_of_squared_difference(
    padded: torch.Tensor, step: list[int], radius: int, dilation: int
) -> torch.Tensor:
    """Box mean of (I(x + step) - I(x))^2 for x from -dilation to size + dilation, given I padded by
    2 dilation + radius."""
    margin = dilation + radius
    start = [2 * dilation + radius - margin] * 3
    size = [n - 2 * (2 * dilation + radius) + 2 * margin for n in padded.shape]
    base = _crop(padded, start, size)
    moved = _crop(padded, [s + d for s, d in zip(start, step)], size)
    return box_sum((moved - base).square_(), radius).div_((2 * radius + 1) ** 3)


def _crop(volume: torch.Tensor, start: list[int], size: list[int] | torch.Size) -> torch.Tensor:
    for axis, (s, n) in enumerate(zip(start, size)):
        volume = volume.narrow(axis, s, n)
    return volume


@dataclass(frozen=True)
class Part:
    """An extractor and how its channels count.

    Args:
        extract: image (Z, Y, X) in [0, 1], spacing (mm) -> channels (C, Z / stride, Y / stride, X / stride).
        stride: voxels per cell of the channels.
        weight: of the mean over these channels of a squared difference, in the sum over the parts.
        name: for results.
        finest: mm; of finer voxels it knows too little to be asked, where there are other parts.
        image: which of the images it is extracted from, where one side has several.
        in_doubt: it takes long, and beside MIND it is asked where that leaves doubt alone.
        weighs: ``extract`` is given the weights of the voxels, (1, Z, Y, X), as well, and averages by them.
    """

    extract: Extractor
    stride: int = 1
    weight: float = 1.0
    name: str = ""
    finest: float = 0.0
    in_doubt: bool = False
    weighs: bool = False
    image: int = 0


# The weights of the parts, of whatever they are combined with.
_MIND_WEIGHT = 1.0
_NETWORK_WEIGHT = 1.0
# Share of the finest voxels that a network learnt from. At 0.75 of it the bundled one names painted trunks
# two thirds as well as at 1, at 0.6 not half as well, at 0.5 hardly anything (docs/benchmarks.md).
_KNOWN_SHARE = 0.7
MIND = Part(
    lambda image, spacing, weight: mind_ssc(image, stride=2, weight=weight),
    stride=2,
    weight=_MIND_WEIGHT,
    name="mind",
    weighs=True,
)
# Counts where both images are of one modality alone (regkit.solver.evidence).
INTENSITY = Part(lambda image, spacing: image[None], weight=3.0, name="intensity")
GUIDE = "guide"
"""Name of the part that is made of labels."""


def feature_parts(
    name: FeatureSet = DEFAULT_FEATURES, weights: str | os.PathLike[str] | None = None
) -> tuple[FeatureSet, tuple[Part, ...], dict[str, Any] | None]:
    """The features of that name.

    Args:
        name: one of :data:`regkit.core.choices.FEATURE_SETS`.
        weights: the file of the network's weights; by default those that come with regkit.

    Returns:
        The name, the parts, and what is to be recorded of the weights, if any are used.

    Raises:
        RegkitError: if there are no such features or weights; the message lists the names.
    """
    if name not in FEATURE_SETS:
        raise RegkitError(f"no features named {name!r}; available: {', '.join(FEATURE_SETS)}")
    if name == "mind":
        if weights is not None:
            raise RegkitError(f"features 'mind' use no weights, but '{os.fspath(weights)}' was given")
        return name, (MIND,), None
    file = bundled_weights() if weights is None else weights
    try:
        state = os.stat(file)
    except OSError:  # which loading it tells in words
        network = NetworkFeatures(file)
    else:
        network = _network(os.fspath(file), state.st_mtime_ns, state.st_size)
    known = network.reading.spacing
    part = Part(
        network,
        network.stride,
        _NETWORK_WEIGHT,
        "network",
        _KNOWN_SHARE * known[0] if known else 0.0,
        in_doubt=True,
    )
    return name, (part,) if name == "network" else (part, MIND, INTENSITY), network.record


@lru_cache(maxsize=1)
def _network(file: str, changed: int, size: int) -> NetworkFeatures:
    """The network of a file as it is now; kept, as one process may register many pairs."""
    return NetworkFeatures(file)


def further_parts(images: int, labels: int, guide_weight: float) -> tuple[Part, ...]:
    """Parts for further images of each side, and for label maps that guide.

    Args:
        images: how many further pairs of images there are; they count as much as MIND of the first.
        labels: how many labels the last image, a label map of 1, 2, ..., has; 0 where there is none.
        guide_weight: of the squared difference, summed over the labels.
    """
    parts = [replace(MIND, name=f"mind {k + 1}", image=k) for k in range(1, images + 1)]
    if labels:

        def shares(image: torch.Tensor, spacing: float) -> torch.Tensor:
            """Of the cells of 2^3 voxels, how much has each label."""
            return torch.cat([F.avg_pool3d((image == k)[None].to(image), 2) for k in range(1, labels + 1)])

        parts.append(Part(shares, stride=2, weight=guide_weight * labels, name=GUIDE, image=images + 1))
    return tuple(parts)


def parts_for(spacing: float, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Those parts that know voxels of a spacing, mm, or all, if none does."""
    return tuple(part for part in parts if spacing >= part.finest) or tuple(parts)


def feature_maps(
    image: torch.Tensor,
    weight: torch.Tensor,
    spacing: float,
    parts: Sequence[Part],
    strides: Sequence[int],
    more: Sequence[torch.Tensor] = (),
) -> tuple[dict[int, FeatureMap], tuple[int, ...]]:
    """The channels of all parts on cells of each stride, and how many each part has.

    They are scaled so that the mean over all channels of a squared difference is the sum over the parts of
    weight times the mean over the part's own channels.

    Args:
        image: (Z, Y, X) in [0, 1].
        weight: (1, Z, Y, X), 1 where the image has data.
        spacing: of the voxels, mm.
        parts: each of a stride that divides all ``strides``.
        strides: voxels per cell; they divide the sides of the image.
        more: further images (Z, Y, X) of the same voxels, for the parts that are made of them.
    """
    images = (image, *more)
    pooled: dict[int, list[torch.Tensor]] = {stride: [] for stride in strides}
    weights = _pooled_weights(weight, {*strides, *(part.stride for part in parts)})
    for part in parts:
        own_image = images[part.image]
        values = part.extract(own_image, spacing, *([weight] if part.weighs else []))
        own = weights[part.stride]
        for stride in strides:
            same = stride == part.stride
            pooled[stride].append(values if same else pool(values, own, stride // part.stride)[0])
        del values  # of full resolution, before the next part computes its own
    channels = [len(found) for found in pooled[strides[0]]]
    scales = [math.sqrt(part.weight * sum(channels) / n) for part, n in zip(parts, channels)]
    maps = {stride: FeatureMap(_scaled(level, scales), weights[stride]) for stride, level in pooled.items()}
    return maps, tuple(channels)


def _scaled(level: Sequence[torch.Tensor], scales: Sequence[float]) -> torch.Tensor:
    """The channels of all parts, each part's times its scale."""
    channels, shape = [len(part) for part in level], level[0].shape[1:]
    out = native.empty_for(level[0], sum(channels), *shape)
    for part, scale, to in zip(level, scales, out.split(channels)):
        torch.mul(part, scale, out=to)
    return out


def _pooled_weights(weight: torch.Tensor, strides: Iterable[int]) -> dict[int, torch.Tensor]:
    """The mean weights of cells of each stride, from the finer ones that they are made up of."""
    pooled = {1: weight}
    for stride in sorted(strides):
        finer = max(other for other in pooled if stride % other == 0)
        pooled[stride] = F.avg_pool3d(pooled[finer], stride // finer)
    return pooled
