"""Training pairs: two cut-outs of one label map, one of them bent, each rendered with its own appearance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from regkit.errors import RegkitError
from regkit.synthesis.anatomies import Anatomy
from regkit.synthesis.appearance import draw_grain, render
from regkit.synthesis.ensemble import MOST, Ensembles, add_strays, draw_labels
from regkit.synthesis.noise import Dice, smooth_noise
from regkit.synthesis.sources import Source


@dataclass(frozen=True)
class Pairs:
    """How pairs are drawn.

    Args:
        size: voxels along each side of a volume.
        reuse: pairs that are cut from one anatomy, each at another place.
        offset: largest shift, voxels, between the two cut-outs along each axis.
        turn: largest rotation between them, degrees.
        stretch: largest change of size between them along an axis, as a logarithm.
        bend: largest elastic displacement between them, as a share of the distance over which it varies.
        strays: most details that one of them has and the other lacks.
        ensembles: the label ensembles; their size is at least ``size + offset``, and no less than a side of
            ``shapes``; the offset within them is what room there is.
        bank: how many anatomies take turns at random; with 1, pairs of one anatomy follow on each other. A
            network learns few anatomies by heart, and no more from them.
        trunks: share of the anatomies that are human trunks (:mod:`regkit.synthesis.trunk`) and not ensembles
            of shapes.
        spacing: smallest and largest, of the views of a trunk, mm.
        shapes: voxels (Z, Y, X) that volumes have instead of those of a cube; one is drawn for each step.

    Raises:
        RegkitError: if a number makes no pairs.
    """

    size: int = 64
    reuse: int = 8
    offset: int = 28
    turn: float = 20.0
    stretch: float = 0.25
    bend: float = 0.2
    strays: int = 20
    ensembles: Ensembles = field(default_factory=Ensembles)
    bank: int = 1
    trunks: float = 0.0
    spacing: tuple[float, float] = (2.0, 4.0)
    shapes: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("size", "reuse", "bank"):
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
        if not 0 <= self.trunks <= 1:
            raise RegkitError(f"trunks of pairs must be a share from 0 to 1, got {self.trunks}")
        if not 0 < self.spacing[0] <= self.spacing[1]:
            raise RegkitError(f"spacing of pairs must be positive and rising, got {list(self.spacing)}")
        for shape in self.shapes:
            if min(shape) < 1 or max(shape) > self.ensembles.size:
                raise RegkitError(
                    f"sides of shapes of pairs must be from 1 to the size of ensembles, "
                    f"{self.ensembles.size}, got {list(shape)}"
                )

    def shape(self, dice: Dice) -> tuple[int, ...]:
        """The shape (Z, Y, X) of the volumes of a step."""
        return self.shapes[dice.scalars.integers(len(self.shapes))] if self.shapes else (self.size,) * 3


@dataclass(frozen=True)
class Pair:
    """Two views of one anatomy.

    Args:
        images: (2, Z, Y, X) float32 in [0, 1].
        labels: (2, Z, Y, X) uint8.
        seen: (2, Z, Y, X) bool, each image's field of view.
        partner: (3, Z, Y, X) where each voxel of the second view lies in the first: index coordinates
            (x, y, z), which may be outside.
        structures: (2, Z, Y, X) uint8, numbers of structures, 0 where there is none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    seen: torch.Tensor
    partner: torch.Tensor
    structures: torch.Tensor


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
        self._anatomies: dict[int, Anatomy] = {}

    def pair(self, index: int, shape: tuple[int, ...] | None = None) -> Pair:
        """Pair number ``index``, its volumes of a shape (Z, Y, X), by default cubes."""
        dice, turns = self._dice(index), self._turns(index)
        number = _one_of(turns, dice)
        # Not the least recently used ones: some that turns come back to would be among them.
        for other in self._anatomies.keys() - turns:
            del self._anatomies[other]
        if number not in self._anatomies:
            self._anatomies[number] = self._drawn(number)
        return cut_and_render(self._anatomies[number], self.how, self.sources, dice, shape)

    def anatomy_of(self, index: int) -> int:
        """The number of the anatomy that a pair is cut from."""
        return _one_of(self._turns(index), self._dice(index))

    def _dice(self, index: int) -> Dice:
        return Dice.of(self.seed, 1, index, device=self.device)

    def _turns(self, index: int) -> range:
        """The numbers of the anatomies that take turns at a pair."""
        first = index // self.how.reuse
        return range(first, first + self.how.bank)

    def _drawn(self, number: int) -> Anatomy:
        dice = Dice.of(self.seed, 0, number, device=self.device)
        if self.how.trunks and dice.chance(self.how.trunks):
            return draw_trunk(dice)
        labels = draw_labels(self.how.ensembles, self.sources, dice)
        return Anatomy(labels, draw_grain(tuple(labels.shape), dice))


def _one_of(turns: range, dice: Dice) -> int:
    return turns[int(dice.scalars.integers(len(turns)))] if len(turns) > 1 else turns[0]


def draw_trunk(dice: Dice) -> Anatomy:
    """A trunk, from a module that is not imported before one is wanted.

    Raises:
        RegkitError: if scipy is missing, which a bare training machine need not have.
    """
    try:
        from regkit.synthesis.trunk import draw_trunk as drawn
    except ModuleNotFoundError as error:
        raise RegkitError(
            f"drawing trunks needs {error.name}, which is not installed; install scipy, or set "
            "'pairs.trunks: 0' in the configuration"
        ) from error
    return drawn(dice)


def cut_and_render(
    anatomy: Anatomy,
    how: Pairs,
    sources: Sequence[tuple[Source, float]],
    dice: Dice,
    shape: tuple[int, ...] | None = None,
) -> Pair:
    """A pair of volumes of a shape (Z, Y, X), by default cubes, from one anatomy.

    Args:
        sources: of the strays.
    """
    shape = shape or (how.size,) * 3
    axes: tuple[int, ...] = (0, 1, 2)
    flips: tuple[int, ...] = ()
    scale = 1.0
    if anatomy.spacing:
        scale = float(np.exp(dice.uniform(*np.log(how.spacing)))) / anatomy.spacing
    else:
        # Axes are flipped and exchanged for both alike: the templates' own axes mean nothing.
        axes = tuple(int(a) for a in dice.scalars.permutation(3))
        flips = tuple(axis for axis in range(3) if dice.chance(0.5))
    sides = np.empty(3, dtype=int)
    sides[list(axes)] = shape
    first, shift = _places(np.asarray(anatomy.labels.shape), sides, scale, how, dice)

    to_second = _view(sides, how, dice)  # coordinates (x, y, z) in the second cut-out, before bending
    partner = to_second + _vector(shift, dice)
    z, y, x = (torch.arange(n, device=dice.device, dtype=torch.float32) for n in sides.tolist())
    views = [
        [(c + corner + 0.5) * scale - 0.5 for c, corner in zip(view, first[::-1].tolist(), strict=True)]
        for view in ((x, y[:, None], z[:, None, None]), partner)
    ]

    def exchanged(channels: torch.Tensor) -> torch.Tensor:
        """The same of labels and grain, and of the coordinates that point between them."""
        return channels.permute(0, *(1 + a for a in axes)).flip([1 + f for f in flips]).contiguous()

    def fine(view: Sequence[torch.Tensor]) -> torch.Tensor:
        assert anatomy.grain is not None
        return exchanged(_linear(anatomy.grain, view))

    labels = exchanged(torch.stack([_nearest(anatomy.labels, view) for view in views]))
    grains = [None if anatomy.grain is None else partial(fine, view) for view in views]
    partner = exchanged(partner[[2 - axes[2], 2 - axes[1], 2 - axes[0]]])
    for axis in flips:
        partner[2 - axis] = shape[axis] - 1 - partner[2 - axis]
    structures = torch.zeros_like(labels)
    if anatomy.structures is not None:
        structures = anatomy.structures[labels.int()]

    if how.strays:
        for volume in labels:
            add_strays(volume, how.strays, how.ensembles, sources, dice)
    one, other = (
        render(volume, dice, grain=grain, palette=anatomy.palette(dice))
        for volume, grain in zip(labels, grains)
    )
    return Pair(
        torch.stack([one.image, other.image]),
        labels,
        torch.stack([one.seen, other.seen]),
        partner,
        structures,
    )


def _places(
    extent: np.ndarray, sides: np.ndarray, scale: float, how: Pairs, dice: Dice
) -> tuple[np.ndarray, np.ndarray]:
    """First voxel of the first cut-out, and the shift to the second; voxels of ``scale`` of the anatomy's."""
    room = np.floor(extent / scale).astype(int) - sides
    if (room < 0).any():  # a trunk that is seen whole: the views need not lie within it
        reach = np.minimum(how.offset, sides // 4)
        shift = dice.scalars.integers(-reach, reach + 1)
        return dice.scalars.integers(np.minimum(room, 0), np.maximum(room, 0) + 1), shift
    reach = np.minimum(how.offset, room)
    shift = dice.scalars.integers(-reach, reach + 1)
    low, high = np.maximum(0, -shift), room - np.maximum(0, shift)
    return dice.scalars.integers(low, high + 1), shift


def _nearest(volume: torch.Tensor, where: Sequence[torch.Tensor]) -> torch.Tensor:
    """(Z, Y, X) at index coordinates x, y and z, which broadcast; those beyond the border at the border."""
    x, y, z = (c.round().clamp(0, n - 1).long() for c, n in zip(where, reversed(volume.shape), strict=True))
    return volume.take((z * volume.shape[1] + y) * volume.shape[2] + x)


def _linear(volume: torch.Tensor, where: Sequence[torch.Tensor]) -> torch.Tensor:
    """(C, Z, Y, X) at index coordinates x, y and z as above."""
    if where[0].ndim == 1:  # upright: one axis after the other, a tenth of the time
        for axis, c in zip((1, 2, 3), reversed(where), strict=True):
            at = c.flatten().clamp(0, volume.shape[axis] - 1)
            low = at.long().clamp_max(volume.shape[axis] - 2)
            share = (at - low).view([-1 if k == axis else 1 for k in range(4)])
            volume = volume.index_select(axis, low).lerp(volume.index_select(axis, low + 1), share)
        return volume
    sides = volume.shape[:0:-1]
    grid = torch.stack([c * (2 / (n - 1)) - 1 for c, n in zip(where, sides, strict=True)], dim=-1)
    return F.grid_sample(volume[None], grid[None], padding_mode="border", align_corners=True)[0]


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
