"""Training pairs: two cut-outs of one label map, one of them bent, each rendered with its own appearance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F

from regkit.core.errors import RegkitError
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.appearance import Grain, looked_up, render
from regkit.synthesis.ensemble import MAX_SHAPES, Ensembles, draw_labels, draw_strays, paste_strays
from regkit.synthesis.label_maps import LabelMaps
from regkit.synthesis.noise import Rng, onto, random_turn, smooth_noises, splined_at
from regkit.synthesis.shape_sources import ShapeSource

# Voxels of the views of a body, in its own: finer ones would show its voxels, coarser ones miss what is fine.
_FINEST, _COARSEST = 0.88, 1.45
_STRAYS = 4  # times as many as one view has at most, of an anatomy


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
        trunks, necks, anatomies: shares of the anatomies that are painted trunks
            (:mod:`regkit.synthesis.trunk`), painted necks (:mod:`regkit.synthesis.neck`) and whole label maps
            (:mod:`regkit.synthesis.label_maps`); the others are ensembles of shapes.
        spacing: smallest and largest, of the views of a body, mm.
        shapes: voxels (Z, Y, X) that volumes have instead of those of a cube; one is drawn for each step.
        thick: share of the images that are of thick slices, or of larger voxels.
        artefacts: share of the images that show one of :mod:`regkit.synthesis.artefacts`.

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
    necks: float = 0.0
    anatomies: float = 0.0
    spacing: tuple[float, float] = (2.0, 4.0)
    shapes: tuple[tuple[int, int, int], ...] = ()
    thick: float = 0.1
    artefacts: float = 0.0

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
        if self.strays < 0 or self.ensembles.max_shapes + self.strays > MAX_SHAPES:
            raise RegkitError(
                f"strays of pairs must be at least 0, and with the shapes of ensembles at most {MAX_SHAPES}, "
                f"got {self.strays}"
            )
        for name in ("trunks", "necks", "anatomies", "thick", "artefacts"):
            if not 0 <= getattr(self, name) <= 1:
                raise RegkitError(f"{name} of pairs must be a share from 0 to 1, got {getattr(self, name)}")
        if self.bodies > 1:
            raise RegkitError(
                f"trunks, necks and anatomies of pairs must not exceed 1 together, got {self.trunks}, "
                f"{self.necks} and {self.anatomies}"
            )
        if not 0 < self.spacing[0] <= self.spacing[1]:
            raise RegkitError(f"spacing of pairs must be positive and rising, got {list(self.spacing)}")
        for shape in self.shapes:
            if min(shape) < 1 or max(shape) > self.ensembles.size:
                raise RegkitError(
                    f"sides of shapes of pairs must be from 1 to the size of ensembles, "
                    f"{self.ensembles.size}, got {list(shape)}"
                )

    def shape(self, rng: Rng) -> tuple[int, ...]:
        """The shape (Z, Y, X) of the volumes of a step."""
        return self.shapes[rng.scalars.integers(len(self.shapes))] if self.shapes else (self.size,) * 3

    @property
    def bodies(self) -> float:
        """Share of the anatomies of which sizes in millimetres mean anything."""
        return self.trunks + self.necks + self.anatomies

    def turns(self, pair: int) -> range:
        """The numbers of the anatomies that take turns at a pair."""
        first = pair // self.reuse
        return range(first, first + self.bank)


@dataclass(frozen=True)
class Views:
    """N pairs of views, each pair of one anatomy; first and second views alternate.

    Args:
        images: (2N, Z, Y, X) float32 in [0, 1].
        labels: (2N, Z, Y, X) uint8.
        visible: (2N, Z, Y, X) bool, each image's field of view.
        partner: (N, 3, Z, Y, X) where each voxel of the second view lies in the first: index coordinates
            (x, y, z), which may be outside.
        structures: (2N, Z, Y, X) uint8, numbers of structures, 0 where there is none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    visible: torch.Tensor
    partner: torch.Tensor
    structures: torch.Tensor


class Synthesiser:
    """Draws pairs by number: the same number gives the same pair, in any order and on any process.

    Anatomies are drawn on a CPU, and pairs cut from them on the device.

    Args:
        settings: of the pairs.
        sources: of shapes, and their weights.
        device: where pairs are made.
        anatomies: gives an anatomy by its number, as :func:`draw_anatomy` does; by default it draws it.
        maps: whole label maps.
    """

    def __init__(
        self,
        settings: Pairs,
        sources: Sequence[tuple[ShapeSource, float]],
        seed: int,
        device: torch.device,
        anatomies: Callable[[int], Anatomy] | None = None,
        maps: Sequence[LabelMaps] = (),
    ) -> None:
        self.settings, self.sources, self.maps, self.seed, self.device = settings, sources, maps, seed, device
        self._anatomies = anatomies or partial(draw_anatomy, settings, sources, seed, maps=maps)
        self._held: dict[int, Anatomy] = {}

    def draw(self, numbers: Sequence[int], shape: tuple[int, ...] | None = None) -> Views:
        """The pairs of some numbers, their volumes of a shape (Z, Y, X), by default cubes."""
        anatomies, rng = [], []
        for number in numbers:
            of_pair, turns = Rng.of(self.seed, 1, number, device=self.device), self.settings.turns(number)
            # Not the least recently used ones: some that turns come back to would be among them.
            for other in self._held.keys() - turns:
                del self._held[other]
            anatomies.append(self._anatomy(turns[int(of_pair.scalars.integers(len(turns)))]))
            rng.append(of_pair)
        return cut_and_render(anatomies, self.settings, rng, shape)

    def _anatomy(self, number: int) -> Anatomy:
        """One that is held, on the device, with a grain."""
        if number not in self._held:
            rng = Rng.of(self.seed, 4, number, device=self.device)
            self._held[number] = self._anatomies(number).with_grain(rng)
        return self._held[number]


def draw_anatomy(
    settings: Pairs,
    sources: Sequence[tuple[ShapeSource, float]],
    seed: int,
    number: int,
    maps: Sequence[LabelMaps] = (),
) -> Anatomy:
    """The anatomy of a number, on the CPU, without a grain: a body or an ensemble of shapes."""
    rng = Rng.of(seed, 0, number)
    kind = rng.uniform(0, 1) if settings.bodies else 1.0
    if kind < settings.bodies:
        spacing = _spacing(settings, rng)
        if kind < settings.trunks:
            anatomy = draw_trunk(rng, spacing)
        elif kind < settings.trunks + settings.necks:
            anatomy = draw_neck(rng, spacing)
        else:
            anatomy = maps[rng.one_of(len(maps))].draw(rng, spacing)
        low, high = settings.spacing
        anatomy = replace(anatomy, views=(max(low, _FINEST * spacing), min(high, _COARSEST * spacing)))
    else:
        anatomy = Anatomy(draw_labels(settings.ensembles, sources, rng))
    # No more than the pairs can show.
    count = settings.strays * min(2 * settings.reuse, _STRAYS)
    return replace(anatomy, strays=draw_strays(count, settings.ensembles, sources, rng))


def _spacing(settings: Pairs, rng: Rng) -> float:
    """Of the voxels of a body, mm, so that those of views are as likely at all scales."""
    finest = settings.spacing[0] / _FINEST
    return float(np.exp(rng.uniform(np.log(finest), np.log(max(finest, settings.spacing[1] / _COARSEST)))))


def draw_trunk(rng: Rng, spacing: float = 2.5) -> Anatomy:
    """A trunk, from a module that is not imported before one is wanted.

    Raises:
        RegkitError: if scipy is missing, which a bare training machine need not have.
    """
    with _scipy_needed("trunks"):
        from regkit.synthesis.trunk import draw_trunk as drawn
    return drawn(rng, spacing)


def draw_neck(rng: Rng, spacing: float = 1.0) -> Anatomy:
    """A neck, as :func:`draw_trunk`.

    Raises:
        RegkitError: if scipy is missing.
    """
    with _scipy_needed("necks"):
        from regkit.synthesis.neck import draw_neck as drawn
    return drawn(rng, spacing)


@contextmanager
def _scipy_needed(what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise RegkitError(
            f"drawing {what} needs {error.name}, which is not installed; install scipy, or set "
            f"'pairs.{what}: 0' in the configuration"
        ) from error


@dataclass(frozen=True)
class _Cut:
    """Where the views of a pair lie; components are (x, y, z) along the axes of the views.

    Args:
        axes: which axis of the anatomy's arrays each axis (Z, Y, X) of the views is.
        last: (3,) the last voxel of the anatomy.
        strides: (3,) elements between its voxels.
        scale, origin: (3,) coordinates in the anatomy are scale * those in the first view + origin.
        turn, shift: (3, 3) and (3,), those in the first view turn @ those in the second + shift, but for a
            bend.
    """

    axes: tuple[int, ...]
    last: np.ndarray
    strides: np.ndarray
    scale: np.ndarray
    origin: np.ndarray
    turn: np.ndarray
    shift: np.ndarray


def cut_and_render(
    anatomies: Sequence[Anatomy], settings: Pairs, rng: Sequence[Rng], shape: tuple[int, ...] | None = None
) -> Views:
    """A pair of views of each of several anatomies.

    Args:
        anatomies: on the device of the generator.
        rng: for each pair.
        shape: (Z, Y, X) of the volumes, by default cubes.
    """
    shape = shape or (settings.size,) * 3
    count, device = len(anatomies), rng[0].device
    cuts = [_draw_cut(anatomy, settings, d, shape) for anatomy, d in zip(anatomies, rng, strict=True)]
    *turned, scale, origin, last, strides = _vectors(cuts, device)
    partner = _partner(turned, settings, rng, shape)
    coordinates = (partner * scale).add_(origin)  # of the second views, in the anatomies
    labels = torch.empty((count, 2, *shape), dtype=torch.uint8, device=device)
    cells = torch.stack([_upright_cells(cuts, shape, device), _cells(coordinates, last, strides)], dim=1)
    for anatomy, theirs, label in zip(anatomies, cells, labels):
        torch.index_select(anatomy.labels.view(-1), 0, theirs.view(-1), out=label.view(-1))
    labels = labels.flatten(0, 1)
    views = [(anatomy, d) for anatomy, d in zip(anatomies, rng) for _ in range(2)]
    of_views = [d for _, d in views]
    structures = looked_up([anatomy.structures for anatomy, _ in views], labels, np.uint8)
    if settings.strays:
        paste_strays(labels, [anatomy.strays for anatomy, _ in views], settings.strays, of_views)
    grains = [
        None if anatomy.grain is None else partial(grain, anatomy.grain, cut, at)
        for cut, anatomy, at in zip(cuts, anatomies, coordinates)
        for grain in (_upright_grain, _grain)
    ]
    palettes = [anatomy.palette(d) for anatomy, d in views]
    rendering = render(labels, of_views, palettes, grains, thick=settings.thick, artefacts=settings.artefacts)
    return Views(rendering.images, labels, rendering.visible, partner, structures)


def _draw_cut(anatomy: Anatomy, settings: Pairs, rng: Rng, shape: tuple[int, ...]) -> _Cut:
    sides = np.array(shape)
    axes, flips, scale = np.arange(3), np.zeros(3, bool), 1.0
    if anatomy.spacing:
        scale = float(np.exp(rng.uniform(*np.log(anatomy.views or settings.spacing)))) / anatomy.spacing
    else:
        # Axes are flipped and exchanged for both alike: the templates' own axes mean nothing.
        axes, flips = rng.scalars.permutation(3), rng.scalars.random(3) < 0.5
    extent = np.array(anatomy.labels.shape)[axes]
    first, shift = _places(extent, sides, scale, settings, rng)
    origin = (first + 0.5) * scale - 0.5
    turn = random_turn(rng, settings.turn) * np.exp(
        rng.scalars.uniform(-settings.stretch, settings.stretch, 3)
    )
    middle = (sides[::-1] - 1) / 2
    return _Cut(
        tuple(axes.tolist()),
        extent[::-1] - 1,
        np.array(anatomy.labels.stride())[axes][::-1],
        np.where(flips, -scale, scale)[::-1],
        np.where(flips, extent - 1 - origin, origin)[::-1],
        turn,
        middle - turn @ middle + shift[::-1],
    )


def _places(
    extent: np.ndarray, sides: np.ndarray, scale: float, settings: Pairs, rng: Rng
) -> tuple[np.ndarray, np.ndarray]:
    """First voxel of the first cut-out, and the shift to the second; voxels of ``scale`` of the anatomy's."""
    room = np.floor(extent / scale).astype(int) - sides
    if (room < 0).any():  # a trunk that is seen whole: the views need not lie within it
        reach = np.minimum(settings.offset, sides // 4)
        shift = rng.scalars.integers(-reach, reach + 1)
        return rng.scalars.integers(np.minimum(room, 0), np.maximum(room, 0) + 1), shift
    reach = np.minimum(settings.offset, room)
    shift = rng.scalars.integers(-reach, reach + 1)
    low, high = np.maximum(0, -shift), room - np.maximum(0, shift)
    return rng.scalars.integers(low, high + 1), shift


def _vectors(cuts: Sequence[_Cut], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Columns of turns, shifts, scales, origins, last voxels and strides of cuts, (N, 3, 1, 1, 1) each."""
    vectors = [(*cut.turn.T, cut.shift, cut.scale, cut.origin, cut.last, cut.strides) for cut in cuts]
    return onto(device, vectors)[..., None, None, None].unbind(1)


def _partner(
    turned: Sequence[torch.Tensor], settings: Pairs, rng: Sequence[Rng], shape: tuple[int, ...]
) -> torch.Tensor:
    """Where the voxels of the second views lie in the first ones, (N, 3, Z, Y, X).

    Args:
        turned: steps along x, y and z of the second views, and where they begin, (N, 3, 1, 1, 1) each.
    """
    across, down, along, shift = turned
    z, y, x = (_counted(n, shift.device) for n in shape)
    coordinates = across * x + (down * y[:, None] + shift)
    coordinates = coordinates + along * z[:, None, None]
    lengths = [max(shape) / d.uniform(1.5, 4) for d in rng]
    bends = [length * d.uniform(0, settings.bend) for length, d in zip(lengths, rng)]
    bent = smooth_noises(rng, 3, shape, lengths)
    return coordinates.addcmul_(bent, onto(shift.device, bends).view(-1, 1, 1, 1, 1))


@lru_cache(maxsize=64)
def _counted(n: int, device: torch.device) -> torch.Tensor:
    return torch.arange(n, device=device, dtype=torch.float32)


def _cells(coordinates: torch.Tensor, last: torch.Tensor, strides: torch.Tensor) -> torch.Tensor:
    """Elements (N, Z, Y, X) of the anatomies that are nearest to coordinates (N, 3, Z, Y, X) in them."""
    cells = torch.minimum(coordinates.round().clamp_(min=0), last).int()
    cells *= strides.int()
    return cells.sum(1, dtype=torch.int32)


def _upright_cells(cuts: Sequence[_Cut], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The same of the first views, whose axes are the anatomies'."""
    nearest = [
        [_along(cut, axis, n).round().clip(0, cut.last[axis]) * cut.strides[axis] for cut in cuts]
        for axis, n in zip((2, 1, 0), shape)
    ]
    z, y, x = onto(device, np.concatenate(nearest, axis=1), np.int32).split(shape, dim=1)
    return z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]


def _along(cut: _Cut, axis: int, n: int) -> np.ndarray:
    """Coordinates in the anatomy of the n voxels of a first view along an axis, as the device has them."""
    return np.arange(n, dtype=np.float32) * np.float32(cut.scale[axis]) + np.float32(cut.origin[axis])


def _upright_grain(grain: Grain, cut: _Cut, coordinates: torch.Tensor) -> torch.Tensor:
    """Grain (2, Z, Y, X) as the first view has it."""
    last = cut.last.astype(np.float32)
    places = [
        _along(cut, 2 - k, n).clip(0, last[2 - k]) / last[2 - k] for k, n in enumerate(coordinates.shape[1:])
    ]
    order = (0, *(1 + axis for axis in cut.axes))
    return torch.cat(splined_at([values.permute(order) for values in grain.knots], places))


def _grain(grain: Grain, cut: _Cut, coordinates: torch.Tensor) -> torch.Tensor:
    """Grain (2, Z, Y, X) at coordinates (3, Z, Y, X) in the anatomy, beyond its border as at the border."""
    volume = grain.volume.permute(0, *(1 + axis for axis in cut.axes))
    ratios = coordinates.movedim(0, -1) * onto(volume.device, 2 / cut.last) - 1
    return F.grid_sample(volume[None], ratios[None], padding_mode="border", align_corners=True)[0]
