"""Fine stage: Adam instance optimisation of a smoothed displacement grid that may not fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from regkit.core.settings import Settings
from regkit.features.featuremap import MIN_WEIGHT, FeatureMap
from regkit.ops import gpu, native
from regkit.ops.dispatch import operation
from regkit.ops.filters import smooth
from regkit.ops.folding import CORNERS, Corner, corner_jacobian, unfold
from regkit.ops.sampling import index_grid, resize
from regkit.solver.evidence import resel_volume
from regkit.solver.landmarks import Landmarks

# The data term counts 12 times the mean over channels, which for the 12 channels of MIND is the sum:
# the scale on which ConvexAdam's regularisation weights are known to work.
_DATA_WEIGHT = 12.0
_BARRIER_WEIGHT = 40.0
_MIN_JACOBIAN = 0.3
# Cells of the final grid. The coarse level moves many cells at once and starts from a good field: with steps
# as large as the fine level's it loses thin structures.
_COARSE_LEARNING_RATE, _LEARNING_RATE = 0.4, 1.0
# Gradients are sums over the cells, of order 1 where there is data: below this they are noise that
# Adam must not blow up to full steps. With a floor of 0.1 a field that is right from the start wanders off by
# a hundredth of a cell before it comes back. With 0.5 a noise of one millionth still moves the abdomen by a
# tenth of a voxel.
_COARSE_GRADIENT_FLOOR, _GRADIENT_FLOOR = 2.0, 1.0
# Mean squared strain of the coarse field at which the regularisation counts as set, and how far its weight
# goes from there: it falls with the square of the strain. Chosen on the pairs that choose, and on images
# beside copies of themselves (benchmarks/truth.py).
_TYPICAL_STRAIN = 0.03
_STIFFNESS_RANGE = (0.4, 12.0)
# Cells of a resolution element (evidence.resel_volume) that are usual where details agree. Beyond them
# fewer observations stand behind each displacement than there are cells, and the strain that the coarse stage
# found may be made up. Chosen on pairs smoothed by 8 and 14 mm and on copies in another contrast.
_TYPICAL_RESEL, _MAX_STIFFNESS = 6.0, 60.0
_R3 = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)
_STRAIN_PASSES = 20  # box means over which the strain is averaged, a deviation of some 4 cells
# Up to this size of the grid all cells are compared: with a quarter of them, thin structures lose a little.
_FEW_CELLS = 200_000


def diffusion(field: torch.Tensor, stiffness: torch.Tensor) -> torch.Tensor:
    """Sum over the axes of the mean of stiffness times squared forward difference.

    Args:
        field: (3, Z, Y, X) in cells.
        stiffness: (1, Z, Y, X); of a difference it is the mean of those of its two ends.
    """
    total = field.new_zeros(())
    for axis in (1, 2, 3):
        difference = field.diff(dim=axis)
        n = difference.shape[axis]
        if n:
            weight = (stiffness.narrow(axis, 0, n) + stiffness.narrow(axis, 1, n)) / 2
            total = total + (weight * difference.square()).mean()
    return total


def stiffness_for(field: torch.Tensor, resel: float) -> torch.Tensor:
    """How strongly to hold a field together around each cell, given what the coarse stage found.

    Where the coarse stage, which moves by whole cells, found hardly any strain, what is left to find is less
    than a cell, and most of what features say of it is noise and the blur of interpolation. Where it found
    much, there is much to follow. So the expected strain is taken from the field, as in empirical Bayes.
    What differs over large resolution elements is less evidence than its cells are many: the field is held
    together more strongly with the third power of their volume.

    Args:
        field: (3, Z, Y, X) displacement of the coarse stage, cells.
        resel: :func:`regkit.solver.evidence.resel_volume` under that displacement.

    Returns:
        (1, Z, Y, X), 1 where the strain is typical.
    """
    strain = torch.zeros_like(field[:1])
    for axis in (1, 2, 3):
        strain.narrow(axis, 0, field.shape[axis] - 1).add_(
            field.diff(dim=axis).square().mean(0, keepdim=True)
        )
    strain = smooth(strain, _STRAIN_PASSES).clamp_min_(1e-9)
    stiffness = (_TYPICAL_STRAIN / strain).square_().clamp_(*_STIFFNESS_RANGE)
    return stiffness.mul_(max(resel / _TYPICAL_RESEL, 1.0) ** 3).clamp_(max=_MAX_STIFFNESS)


def scattered(cells: torch.Tensor) -> torch.Tensor:
    """A place within each cell of a grid, evenly scattered: index coordinates (3, Z, Y, X).

    Interpolation averages noise, most of all half-way between cells. At cell centres alone the features of
    the fixed image would keep their noise, those of the moving image would lose it where the displacement
    ends half-way, and displacements would be drawn there. Both are interpolated alike where the places in
    the fixed image are as uneven. The fractions are those of the R3 sequence (Roberts, 2018).

    Args:
        cells: (1, Z, Y, X), of any values; places lie between its outer centres.
    """
    shape = cells.shape[1:]
    count = torch.arange(shape.numel(), dtype=torch.float64)
    inside = torch.stack([(count * ratio) % 1 - 0.5 for ratio in _R3]).view(3, *shape)
    ends = torch.tensor([n - 1 for n in reversed(shape)], dtype=torch.float64).view(3, 1, 1, 1)
    places = (index_grid(shape).double() + inside).clamp_min_(0)
    return torch.minimum(places, ends).to(cells)


def dissimilarity(fixed: FeatureMap, moving: FeatureMap, coordinates: torch.Tensor) -> torch.Tensor:
    """Mean over all cells and channels of the weighted squared feature differences.

    Cells without data on either side count nothing, and there is no gain in moving towards them: the
    weight is taken as a constant.

    Args:
        where: (3, Z, Y, X) index coordinates of the moving map, one for each cell of the fixed map.
    """
    value: torch.Tensor = _WeightedDifference.apply(moving.sampled(coordinates), fixed.values, fixed.weight)
    return value


class _WeightedDifference(torch.autograd.Function):
    """sum w_F w |v / w - F|^2 / (cells * channels) of v and w stacked, with w as a factor constant.

    The gradient is written out because the chain of elementary operations would keep, and pass over, half a
    dozen volumes of all channels: here it is the only one kept.
    """

    @staticmethod
    def forward(ctx: Any, stacked: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        v, w = stacked[:-1], stacked[-1:].clamp_min(MIN_WEIGHT)
        value = v / w
        residual = value - values
        factor = weight * (2 / values.numel())
        loss = 0.5 * (factor * stacked[-1:] * residual.square().sum(0, keepdim=True)).sum()
        # d loss / d v = share * residual, d loss / d w = -sum over channels of the same times v / w.
        share = factor * (stacked[-1:] / w)
        gradient = torch.empty_like(stacked)
        torch.mul(residual, share, out=gradient[:-1])
        torch.sum(value.mul_(gradient[:-1]), 0, keepdim=True, out=gradient[-1:]).neg_()
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None


Comparison = Callable[[torch.Tensor, Sequence[Corner]], torch.Tensor]
"""The dissimilarity of one or two of the eight cells in each 2^3, from where they are seen: (3, Z, Y, X) of
all, of which the others are passed over, or (3, Z / 2, Y / 2, X / 2) of those of one corner."""


def _eighth(volume: torch.Tensor, corner: Corner) -> torch.Tensor:
    """One of the eight cells in each 2^3 of a volume (C, Z, Y, X)."""
    z, y, x = (slice(side, None, 2) for side in corner)
    return volume[:, z, y, x]


@operation
def comparison(fixed: FeatureMap, moving: FeatureMap) -> Comparison:
    """:func:`dissimilarity` of two maps for many fields, with all that can be done beforehand done."""

    def compare(coordinates: torch.Tensor, corners: Sequence[Corner]) -> torch.Tensor:
        losses = []
        for corner in corners:
            corner_cells = FeatureMap(_eighth(fixed.values, corner), _eighth(fixed.weight, corner))
            whole = coordinates.shape[1:] == fixed.values.shape[1:]
            losses.append(
                dissimilarity(corner_cells, moving, _eighth(coordinates, corner) if whole else coordinates)
            )
        return torch.stack(losses).mean()

    return compare


def _few_channels(serves: Callable[..., bool]) -> Callable[..., bool]:
    """Whether the kernels are there for two maps, whose cells they must hold."""

    def takes(fixed: FeatureMap, moving: FeatureMap) -> bool:
        maps = fixed.values, fixed.weight, moving.values, moving.weight
        return len(fixed.values) < _MAX_LANES and serves(*maps)

    return takes


@comparison.kernel("triton", _few_channels(gpu.serves))
def _comparison_by_triton(fixed: FeatureMap, moving: FeatureMap) -> Comparison:
    return _comparison_of_lanes(_difference_by_triton, fixed, moving)


@comparison.kernel("c", _few_channels(native.serves))
def _comparison_by_c(fixed: FeatureMap, moving: FeatureMap) -> Comparison:
    return _comparison_of_lanes(_difference_by_c, fixed, moving)


def _comparison_of_lanes(run: _DifferenceKernel, fixed: FeatureMap, moving: FeatureMap) -> Comparison:
    moving_lanes, fixed_lanes = _Lanes.of(moving.values, moving.weight), _Lanes.of(fixed.values)
    weight, channels = fixed.weight[0].contiguous(), len(fixed.values)

    def compare(coordinates: torch.Tensor, corners: Sequence[Corner]) -> torch.Tensor:
        value: torch.Tensor = _WithGradient.apply(
            lambda places: run(places, corners, fixed_lanes, weight, moving_lanes, channels), coordinates
        )
        return value

    return compare


_LANES, _MAX_LANES = 16, 64  # of a vector, and of the cells that the kernel takes


@dataclass(frozen=True)
class _Lanes:
    """A map with all that a cell has in one place, and in half the bytes.

    Args:
        cells: (Z, Y, X, lanes) int16: a weight, the channels, then zeros up to whole vectors.
        unit: what 1 stands for, a power of two.
    """

    cells: torch.Tensor
    unit: float

    @classmethod
    def of(cls, values: torch.Tensor, weight: torch.Tensor | None = None) -> _Lanes:
        """A weight (1, Z, Y, X) and channels (C, Z, Y, X) times it; or 1 and the channels."""
        largest = max(float(v.abs()) for v in values.aminmax())
        unit = 2.0 ** (math.frexp(max(largest, 1.0))[1] - 15)
        return cls(_cells_of_lanes(values, weight, unit), unit)


@operation
def _cells_of_lanes(values: torch.Tensor, weight: torch.Tensor | None, unit: float) -> torch.Tensor:
    """The cells of :class:`_Lanes`; as many lanes as a power of two, as Triton's vectors have."""
    lanes = 1 << (_lanes_for(values) - 1).bit_length()
    cells = torch.zeros((*values.shape[1:], lanes), dtype=torch.int16, device=values.device)
    weight = torch.ones_like(values[:1]) if weight is None else weight
    for lane, channel in enumerate((*weight, *(values * weight))):
        cells[..., lane] = (channel / unit).round_().clamp_(max=32767)
    return cells


@_cells_of_lanes.kernel("c", lambda values, weight, unit: native.serves(values) and not gpu.serves(values))
def _cells_of_lanes_by_c(values: torch.Tensor, weight: torch.Tensor | None, unit: float) -> torch.Tensor:
    cells = native.empty(*values.shape[1:], _lanes_for(values), dtype=np.int16)
    values, weight = values.contiguous(), None if weight is None else weight.contiguous()
    native.run("lanes", values=values, weight=weight, unit=unit, packed=cells)
    return cells


def _lanes_for(values: torch.Tensor) -> int:
    """As many as the channels and a weight need, in whole vectors."""
    return -(-(len(values) + 1) // _LANES) * _LANES


_ValueAndGradient = tuple[torch.Tensor, torch.Tensor]
_DifferenceKernel = Callable[
    [torch.Tensor, Sequence[Corner], _Lanes, torch.Tensor, _Lanes, int], _ValueAndGradient
]


class _WithGradient(torch.autograd.Function):
    """A value that comes with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, evaluate: Callable[[torch.Tensor], _ValueAndGradient], at: torch.Tensor
    ) -> torch.Tensor:
        value, gradient = evaluate(at)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[None, torch.Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, gradient.mul_(outputs[0])


def _difference_by_triton(
    coordinates: torch.Tensor,
    corners: Sequence[Corner],
    fixed: _Lanes,
    weight: torch.Tensor,
    moving: _Lanes,
    channels: int,
) -> _ValueAndGradient:
    from regkit.ops.gpu import kernels

    return kernels.difference(
        coordinates, corners, fixed.cells, fixed.unit, weight, moving.cells, moving.unit, channels
    )


def _difference_by_c(
    coordinates: torch.Tensor,
    corners: Sequence[Corner],
    fixed: _Lanes,
    weight: torch.Tensor,
    moving: _Lanes,
    channels: int,
) -> _ValueAndGradient:
    """:func:`dissimilarity` in one pass, which reads the moving map once and holds no volume of channels."""
    coordinates = coordinates.contiguous()
    gradient = torch.zeros_like(coordinates)
    corner, other = (4 * z + 2 * y + x for z, y, x in (corners[0], corners[-1]))
    value = native.run(
        "difference", moving=moving.cells, moving_unit=moving.unit, fixed=fixed.cells,
        fixed_unit=fixed.unit, weight=weight, places=coordinates, corner=corner, other=other,
        scale=2 / (weight.numel() // 8 * channels * len(corners)), gradient=gradient,
    )  # fmt: skip
    return coordinates.new_tensor(value), gradient


@operation
def penalty(field: torch.Tensor, corner: Corner, stiffness: torch.Tensor) -> torch.Tensor:
    """Diffusion, and the barrier against folds at one corner of every cell.

    Args:
        field: (3, Z, Y, X) in cells of its own lattice.
        stiffness: (1, Z, Y, X), as for :func:`diffusion`.
    """
    shortfall = (_MIN_JACOBIAN - corner_jacobian(field, corner)).clamp_min(0)
    return diffusion(field, stiffness) + _BARRIER_WEIGHT * shortfall.square().mean()


@penalty.kernel("triton", lambda field, corner, stiffness: gpu.serves(field))
def _penalty_by_triton(field: torch.Tensor, corner: Corner, stiffness: torch.Tensor) -> torch.Tensor:
    from regkit.ops.gpu import kernels

    value: torch.Tensor = _WithGradient.apply(
        lambda at: kernels.penalty(at, corner, stiffness, _BARRIER_WEIGHT, _MIN_JACOBIAN), field
    )
    return value


@penalty.kernel("c", lambda field, corner, stiffness: native.serves(field))
def _penalty_by_c(field: torch.Tensor, corner: Corner, stiffness: torch.Tensor) -> torch.Tensor:
    """In one pass."""
    z, y, x = corner

    def evaluate(at: torch.Tensor) -> _ValueAndGradient:
        at = at.contiguous()
        gradient = torch.empty_like(at)
        value = native.run(
            "penalty", field=at, stiffness=stiffness.contiguous(), barrier=_BARRIER_WEIGHT,
            least_jacobian=_MIN_JACOBIAN, corner_z=z, corner_y=y, corner_x=x, gradient=gradient,
        )  # fmt: skip
        return at.new_tensor(value), gradient

    value: torch.Tensor = _WithGradient.apply(evaluate, field)
    return value


def refine(
    fixed: FeatureMap,
    moving: FeatureMap,
    offset: torch.Tensor,
    start: torch.Tensor,
    settings: Settings,
    on_step: Callable[[], None] = lambda: None,
    landmarks: Landmarks | None = None,
) -> torch.Tensor:
    """Adam on displacement grids seen through three box means, close to cubic B-splines: two levels.

    The coarse level has cells twice as large. Each of its steps compares the features of one of the eight
    cells in each 2^3, and each fine step of two opposite ones, all eight in turn: the box means reach further
    than from one such cell to the next. On small grids, where it costs little, fine steps compare all cells.

    Args:
        fixed: map on the grid of the displacements, its sides even.
        moving: map on a lattice of the same spacing and axes.
        offset: (x, y, z), the index in ``moving`` of the cell that lies on the fixed cell (0, 0, 0).
        start: (3, Z, Y, X) displacement in cells, components (x, y, z).
        landmarks: on the grid of the displacements.

    Returns:
        (3, Z, Y, X) displacement in cells; the trilinear field through it does not fold.
    """
    places = scattered(start[:1])
    anchor = places + offset.view(3, 1, 1, 1)
    cells = start[0].numel()
    coarse, fine = settings.iterations
    resel = resel_volume(fixed, moving, offset, start)
    stiffness = settings.regularisation * stiffness_for(start, resel)
    coarse_stiffness = resize(stiffness, tuple(n // 2 for n in start.shape[1:]))

    compare = comparison(fixed.at(places), moving)

    def objective(
        data: torch.Tensor, field: torch.Tensor, corner: Corner, stiffness: torch.Tensor
    ) -> torch.Tensor:
        """Of a field in cells of its own level; of the Jacobian one corner a step, all eight in turn."""
        return cells * (_DATA_WEIGHT * data + penalty(field, corner, stiffness))

    wide = start.new_zeros((3, *(n // 2 for n in start.shape[1:])))
    hold_wide = None if landmarks is None else landmarks.after(start).term(wide.shape[1:], 2)
    hold = None if landmarks is None else landmarks.term(start.shape[1:])

    def coarse_loss(parameters: torch.Tensor, corner: Corner) -> torch.Tensor:
        smoothed = smooth(parameters, 3)
        field = _eighth(start, corner) + smoothed
        data = compare(_eighth(anchor, corner) + field, [corner])
        loss = objective(data, field / 2, corner, coarse_stiffness)
        return loss if hold_wide is None else loss + hold_wide(smoothed)

    def fine_loss(parameters: torch.Tensor, corner: Corner) -> torch.Tensor:
        field = smooth(parameters, 3)
        coordinates, pairs = anchor + field, []
        for z, y, x in [corner] if cells > _FEW_CELLS else CORNERS[:4]:
            pairs.append(compare(coordinates, [(z, y, x), (1 - z, 1 - y, 1 - x)]))
        loss = objective(torch.stack(pairs).mean(), field, corner, stiffness)
        return loss if hold is None else loss + hold(field)

    wide = _descend(coarse_loss, wide, _COARSE_LEARNING_RATE, _COARSE_GRADIENT_FLOOR, coarse, on_step)
    start = start + resize(smooth(wide, 3), start.shape[1:])
    start = _descend(fine_loss, start, _LEARNING_RATE, _GRADIENT_FLOOR, fine, on_step)
    return unfold(smooth(start, 3))


def _descend(
    loss: Callable[[torch.Tensor, Corner], torch.Tensor],
    start: torch.Tensor,
    learning_rate: float,
    floor: float,
    steps: int,
    on_step: Callable[[], None],
) -> torch.Tensor:
    """What :class:`Adam` makes of ``start`` while its learning rate falls by half a cosine."""
    parameters = start.clone(memory_format=torch.contiguous_format).requires_grad_()
    rates = [learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    adam = optimiser(parameters, rates, floor)

    def advance(corner: Corner) -> None:
        (gradient,) = torch.autograd.grad(loss(parameters, corner), parameters)
        adam.step(gradient)

    _advance_through(
        parameters, advance, [CORNERS[3 * step % len(CORNERS)] for step in range(steps)], on_step
    )
    return parameters.detach()


@operation
def _advance_through(
    parameters: torch.Tensor,
    advance: Callable[[Corner], None],
    order: Sequence[Corner],
    on_step: Callable[[], None],
) -> None:
    """Steps of an optimisation of ``parameters``, one for each corner; the order repeats every eight."""
    for corner in order:
        advance(corner)
        on_step()


@_advance_through.kernel("triton", lambda parameters, advance, order, on_step: gpu.serves(parameters))
def _advance_by_graphs(
    parameters: torch.Tensor,
    advance: Callable[[Corner], None],
    order: Sequence[Corner],
    on_step: Callable[[], None],
) -> None:
    """Round by round of eight, which a GPU repeats."""
    rounds, rest = divmod(len(order), len(CORNERS))

    def turn() -> None:
        for corner in order[: len(CORNERS)]:
            advance(corner)

    def on_turn() -> None:
        for _ in CORNERS:
            on_step()

    gpu.repeat(turn, rounds, on_turn)
    _advance_through.reference(parameters, advance, order[:rest], on_step)


class Adam:
    """Adam (Kingma and Ba, ICLR 2015) with its usual rates. torch's own takes a second to import.

    Args:
        parameters: changed in place.
        learning_rates: of all steps.
        floor: what gradients are divided by at least.
    """

    BETAS = (0.9, 0.999)

    def __init__(self, parameters: torch.Tensor, learning_rates: Sequence[float], floor: float) -> None:
        self.floor = floor
        self.parameters = parameters.detach()
        self.mean, self.squares = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        beta1, beta2 = self.BETAS
        # Of each step its length and the root of the correction of its squares.
        self.rates = [
            (rate / (1 - beta1**count), math.sqrt(1 - beta2**count))
            for count, rate in enumerate(learning_rates, 1)
        ]
        self.count = 0

    def step(self, gradient: torch.Tensor) -> None:
        beta1, beta2 = self.BETAS
        length, spread = self._next()
        self.mean.lerp_(gradient, 1 - beta1)
        self.squares.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = self.squares.sqrt().div_(spread).add_(self.floor)
        self.parameters.addcdiv_(self.mean, root, value=-length)

    def _next(self) -> tuple[float, float]:
        self.count += 1
        return self.rates[self.count - 1]


@operation
def optimiser(parameters: torch.Tensor, learning_rates: Sequence[float], floor: float) -> Adam:
    """:class:`Adam` of these."""
    return Adam(parameters, learning_rates, floor)


@optimiser.kernel("triton", lambda parameters, learning_rates, floor: gpu.serves(parameters))
class _AdamByTriton(Adam):
    def __init__(self, parameters: torch.Tensor, learning_rates: Sequence[float], floor: float) -> None:
        super().__init__(parameters, learning_rates, floor)
        # Where a captured step finds them.
        self.rates_there = self.parameters.new_tensor(self.rates)
        self.count_there = torch.zeros((), dtype=torch.int64, device=self.parameters.device)

    def step(self, gradient: torch.Tensor) -> None:
        from regkit.ops.gpu import kernels

        kernels.adam(
            self.parameters, gradient, self.mean, self.squares, self.rates_there, self.count_there,
            self.BETAS, self.floor,
        )  # fmt: skip
        self.count_there += 1


@optimiser.kernel("c", lambda parameters, learning_rates, floor: native.serves(parameters))
class _AdamByC(Adam):
    def step(self, gradient: torch.Tensor) -> None:
        beta1, beta2 = self.BETAS
        length, spread = self._next()
        native.run(
            "adam", parameters=self.parameters, gradient=gradient.contiguous(), mean=self.mean,
            squares=self.squares, beta1=beta1, beta2=beta2, step=length, spread=spread,
            floor=self.floor,
        )  # fmt: skip
