"""Training pairs: two cut-outs of one label map, one of them bent, each rendered with its own appearance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from regkit.errors import RegkitError
from regkit.synthesis.appearance import draw_grain, render
from regkit.synthesis.ensemble import MOST, Ensembles, add_strays, draw_labels
from regkit.synthesis.noise import Dice, smooth_noise
from regkit.synthesis.sources import Source


@dataclass(frozen=True)
class Pairs:
    """How pairs are drawn.

    Args:
        size: voxels along each side of a volume.
        slabs: share of the volumes that are flat instead, half as thick and half as wide again, in a random
            direction: more context along two axes, and ends nearby along the third, at about the same cost.
        reuse: pairs that are cut from one label ensemble, each at another place.
        offset: largest shift, voxels, between the two cut-outs along each axis.
        turn: largest rotation between them, degrees.
        stretch: largest change of size between them along an axis, as a logarithm.
        bend: largest elastic displacement between them, as a share of the distance over which it varies.
        strays: most details that one of them has and the other lacks.
        ensembles: the label ensembles; their size is at least ``size + offset``, and with slabs more than
            their width; the offset within them is what room there is.

    Raises:
        RegkitError: if a number makes no pairs.
    """

    size: int = 64
    slabs: float = 0.0
    reuse: int = 8
    offset: int = 28
    turn: float = 20.0
    stretch: float = 0.25
    bend: float = 0.2
    strays: int = 20
    ensembles: Ensembles = field(default_factory=Ensembles)

    def __post_init__(self) -> None:
        for name in ("size", "reuse"):
            if getattr(self, name) < 1:
                raise RegkitError(f"{name} of pairs must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.offset < self.size:
            raise RegkitError(
                f"offset of pairs must be from 0 to less than their size {self.size}, got {self.offset}"
            )
        if self.ensembles.size < self.size + self.offset:
            raise RegkitError(
                f"ensembles of {self.ensembles.size} voxels are too small for pairs of {self.size} with an "
                f"offset of {self.offset}; make them {self.size + self.offset} or larger"
            )

        if self.strays < 0 or self.ensembles.most + self.strays > MOST:
            raise RegkitError(
                f"strays of pairs must be at least 0, and with the shapes of ensembles at most {MOST}, got "
                f"{self.strays}"
            )
        if not 0 <= self.slabs <= 1:
            raise RegkitError(f"slabs of pairs must be a share from 0 to 1, got {self.slabs}")
        if self.slabs and (self.size % 2 or self.ensembles.size <= 3 * self.size // 2):
            raise RegkitError(
                f"slabs need an even size and ensembles larger than half as much again, got {self.size} "
                f"and {self.ensembles.size}"
            )

    def shape(self, dice: Dice) -> tuple[int, ...]:
        """The shape (Z, Y, X) of a volume: a cube, or a slab across a random axis."""
        if not dice.chance(self.slabs):
            return (self.size,) * 3
        across = int(dice.scalars.integers(3))
        return tuple(self.size // 2 if axis == across else 3 * self.size // 2 for axis in range(3))


@dataclass(frozen=True)
class Pair:
    """Two views of one anatomy.

    Args:
        images: (2, Z, Y, X) float32 in [0, 1].
        labels: (2, Z, Y, X) uint8.
        seen: (2, Z, Y, X) bool, each image's field of view.
        partner: (3, Z, Y, X) where each voxel of the second view lies in the first: index coordinates
            (x, y, z), which may be outside.
    """

    images: torch.Tensor
    labels: torch.Tensor
    seen: torch.Tensor
    partner: torch.Tensor


class Synthesiser:
    """Draws pairs by number: the same number gives the same pair, in any order and on any process.

    Args:
        how: settings.
        sources: of shapes, and their weights.
        device: where pairs are made.
    """

    def __init__(
        self, how: Pairs, sources: Sequence[tuple[Source, float]], seed: int, device: torch.device
    ) -> None:
        self.how, self.sources, self.seed, self.device = how, sources, seed, device
        self._at = -1
        self._labels = self._grain = torch.empty(0)

    def pair(self, index: int, shape: tuple[int, ...] | None = None) -> Pair:
        """Pair number ``index``, its volumes of a shape (Z, Y, X), by default cubes."""
        ensemble = index // self.how.reuse
        if ensemble != self._at:
            dice = Dice.of(self.seed, 0, ensemble, device=self.device)
            self._labels = draw_labels(self.how.ensembles, self.sources, dice)
            self._grain = draw_grain(tuple(self._labels.shape), dice)
            self._at = ensemble
        dice = Dice.of(self.seed, 1, index, device=self.device)
        return cut_and_render(self._labels, self.how, self.sources, dice, shape, self._grain)


def cut_and_render(
    ensemble: torch.Tensor,
    how: Pairs,
    sources: Sequence[tuple[Source, float]],
    dice: Dice,
    shape: tuple[int, ...] | None = None,
    grain: torch.Tensor | None = None,
) -> Pair:
    """A pair of volumes of a shape (Z, Y, X), by default cubes, from one label ensemble (Z, Y, X).

    Args:
        sources: of the strays.
        grain: what both views show within the structures, as of :func:`draw_grain`.
    """
    shape = shape or (how.size,) * 3
    # Axes are flipped and exchanged for both alike: the templates' own axes mean nothing.
    axes = tuple(int(a) for a in dice.scalars.permutation(3))
    flips = tuple(axis for axis in range(3) if dice.chance(0.5))
    sides = np.empty(3, dtype=int)
    sides[list(axes)] = shape
    # The two cut-outs overlap, and both lie in the ensemble.
    room = np.asarray(ensemble.shape) - sides
    reach = np.minimum(how.offset, room)
    shift = dice.scalars.integers(-reach, reach + 1)
    low, high = np.maximum(0, -shift), room - np.maximum(0, shift)
    first = dice.scalars.integers(low, high + 1)
    box = tuple(slice(int(a), int(a) + int(n)) for a, n in zip(first, sides))

    inner = ensemble[box]
    to_second = _view(sides, how, dice)  # coordinates (x, y, z) in the second cut-out, before bending
    partner = to_second + _vector(shift, dice)
    where = partner + _vector(first, dice)
    scale = torch.from_numpy((2 / (np.asarray(ensemble.shape[::-1]) - 1)).astype(np.float32)).to(dice.device)
    grid = where.movedim(0, -1) * scale - 1
    seen_there = F.grid_sample(
        ensemble[None, None].float(), grid[None], mode="nearest", padding_mode="border", align_corners=True
    )[0, 0].to(torch.uint8)
    labels = torch.stack([inner, seen_there])
    # The same exchange of axes for labels and grain, and for the coordinates that point between them.
    labels = labels.permute(0, *(1 + a for a in axes)).flip([1 + f for f in flips]).contiguous()
    grains: Sequence[torch.Tensor | None] = (None, None)
    if grain is not None:
        there = F.grid_sample(grain[None], grid[None], padding_mode="border", align_corners=True)[0]
        both = torch.stack([grain[(slice(None), *box)], there])
        grains = both.permute(0, 1, *(2 + a for a in axes)).flip([2 + f for f in flips]).contiguous().unbind()
    partner = partner[[2 - axes[2], 2 - axes[1], 2 - axes[0]]].permute(0, *(1 + a for a in axes))
    partner = partner.flip([1 + f for f in flips]).contiguous()
    for axis in flips:
        partner[2 - axis] = shape[axis] - 1 - partner[2 - axis]

    if how.strays:
        for volume in labels:
            add_strays(volume, how.strays, how.ensembles, sources, dice)
    one, other = (render(volume, dice, grain=own) for volume, own in zip(labels, grains))
    return Pair(torch.stack([one.image, other.image]), labels, torch.stack([one.seen, other.seen]), partner)


def _vector(zyx: np.ndarray, dice: Dice) -> torch.Tensor:
    """Components (x, y, z) that broadcast over coordinates (3, Z, Y, X)."""
    return torch.from_numpy(zyx[::-1].astype(np.float32)).to(dice.device).view(3, 1, 1, 1)


def _view(sides: np.ndarray, how: Pairs, dice: Dice) -> torch.Tensor:
    """Index coordinates (3, Z, Y, X) of a cut-out's voxels, turned about its middle, scaled and bent."""
    z, y, x = (torch.arange(n, device=dice.device, dtype=torch.float32) - (n - 1) / 2 for n in sides.tolist())
    y, z = y[:, None], z[:, None, None]
    vector = dice.scalars.standard_normal(3)
    vector *= np.radians(dice.uniform(0, how.turn)) / np.linalg.norm(vector)
    a, b, c = vector.tolist()
    turn = torch.matrix_exp(torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=torch.float32))
    stretch = torch.from_numpy(np.exp(dice.scalars.uniform(-how.stretch, how.stretch, 3)).astype(np.float32))
    rows = (turn * stretch).tolist()
    where = torch.stack([x * p + y * q + z * r for p, q, r in rows]) + _vector((sides - 1) / 2, dice)
    length = float(sides.max()) / dice.uniform(1.5, 4)
    return where + smooth_noise(dice, 3, where.shape[1:], length) * (length * dice.uniform(0, how.bend))
