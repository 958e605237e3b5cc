"""Patches of labelled volumes, changed at random in shape, noise and contrast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from regkit.segmentation.monai_parts import augmentation

_MARGIN = 1.25  # of a patch that is cut, so that a turned one has little from beyond it
_RECOLOURED = {"same": 0.2, "any": 0.9}  # share of the patches that get another contrast
_KNOTS = 6  # of a contrast


@dataclass(frozen=True)
class PreparedVolume:
    """A labelled volume on the working grid.

    Args:
        image: (Z, Y, X) float32 in [0, 1], as the network sees it.
        labels: (Z, Y, X) uint8 classes, 0 is background.
    """

    image: torch.Tensor
    labels: torch.Tensor


class Patches:
    """Draws patches by number: the same number gives the same patch.

    Each is cut around a voxel of a class, background among them, that is drawn from those that a volume has.

    Args:
        volumes: to draw from, in turn.
        patch: voxels (Z, Y, X).
        contrast: as of :class:`regkit.Finetuning`.
        seed: of all that is drawn.
    """

    def __init__(
        self, volumes: Sequence[PreparedVolume], patch: tuple[int, int, int], contrast: str, seed: int
    ) -> None:
        self.seed, self.recoloured = seed, _RECOLOURED[contrast]
        self.cut = tuple(math.ceil(side * _MARGIN) for side in patch)
        self.volumes = [_continued(volume, self.cut) for volume in volumes]
        self.places = [_places(volume.labels) for volume in self.volumes]
        self.change = augmentation(patch)

    def draw(self, number: int) -> PreparedVolume:
        """A patch."""
        dice = np.random.default_rng([self.seed, 1, number])
        which = number % len(self.volumes)
        volume, places = self.volumes[which], self.places[which]
        place = places[dice.integers(len(places))]
        at = np.unravel_index(int(place[dice.integers(len(place))]), tuple(volume.labels.shape))
        # As near to the middle as it can be within the volume.
        first = [min(max(int(a) - c // 2, 0), n - c) for a, c, n in zip(at, self.cut, volume.labels.shape)]
        part = tuple(slice(f, f + c) for f, c in zip(first, self.cut))
        self.change.set_random_state(seed=int(dice.integers(2**32)))
        cut = {"image": volume.image[part][None], "labels": volume.labels[part][None].float()}
        changed = self.change(cut)
        # Not MONAI's kind of tensor, which carries its history through the network.
        image, labels = (changed[name].as_subclass(torch.Tensor)[0] for name in ("image", "labels"))
        image = image.clamp(0, 1)
        if dice.random() < self.recoloured:
            image = recoloured(image, dice)
        return PreparedVolume(image, labels.round().to(torch.uint8))


def recoloured(image: torch.Tensor, dice: np.random.Generator) -> torch.Tensor:
    """An image in [0, 1] in another contrast: its intensities through a random line of a few knots.

    Their order changes, as between modalities.
    """
    values = torch.from_numpy(dice.random(_KNOTS + 1).astype(np.float32)).to(image.device)
    at = image * _KNOTS
    low = at.floor().clamp_(max=_KNOTS - 1)
    below, above = (values[(low + k).long()] for k in (0, 1))
    return torch.lerp(below, above, at - low)


def _continued(volume: PreparedVolume, shape: tuple[int, ...]) -> PreparedVolume:
    """The volume, its borders going on until it is no smaller than a patch."""
    pads: list[int] = []
    for side, minimum in zip(reversed(volume.labels.shape), reversed(shape)):
        missing = max(0, minimum - side)
        pads += [missing // 2, missing - missing // 2]
    image, labels = (
        F.pad(t[None, None].float(), pads, mode="replicate")[0, 0] for t in (volume.image, volume.labels)
    )
    return PreparedVolume(image, labels.to(torch.uint8))


def _places(labels: torch.Tensor) -> list[torch.Tensor]:
    """For each class that there is, the flat indices of its voxels."""
    flat = labels.flatten()
    return [torch.nonzero(flat == k).flatten().int() for k in flat.unique()]
