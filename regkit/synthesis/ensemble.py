"""Label ensembles: random shapes that overwrite one another, some of them in a body with a skin.

After the label synthesis of Dey et al. (ICLR 2025), with differences that the solver asks for: shapes of
all sizes (from vessels to lungs), each bent by itself; rims of one common tissue around organs, as fat
lies between them; a body of several layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from regkit.errors import RegkitError
from regkit.synthesis.noise import Dice, smooth_noise
from regkit.synthesis.shapes import Shape
from regkit.synthesis.sources import Source

_SMALLEST = 8  # voxels
_LAST_LABEL = 255
MOST = 240  # shapes: labels are uint8, and cells, rims and the body need some
_COARSE_ABOVE = 10  # voxels, half extent, from which a shape is evaluated at every other voxel


@dataclass(frozen=True)
class Ensembles:
    """How label ensembles are drawn.

    Args:
        size: voxels along each side.
        count: fewest and most shapes.
        radius: smallest and largest half extent of a shape, voxels.
        details: most further shapes, smaller than those: vessels, nodules, ribs.
        detail_radius: smallest and largest half extent of a detail, voxels.
        bend: largest displacement of a shape's coordinates, as a share of its half extent.

    Raises:
        RegkitError: if a number makes no ensembles.
    """

    size: int = 96
    count: tuple[int, int] = (20, 40)
    radius: tuple[float, float] = (6.0, 32.0)
    details: int = 60
    detail_radius: tuple[float, float] = (2.0, 7.0)
    bend: float = 0.3

    def __post_init__(self) -> None:
        if self.size < _SMALLEST:
            raise RegkitError(f"size of ensembles must be at least {_SMALLEST}, got {self.size}")
        if not 0 <= self.count[0] <= self.count[1] or self.details < 0:
            raise RegkitError(
                f"ensembles cannot have {self.count[0]} to {self.count[1]} shapes and {self.details} details"
            )
        if self.most > MOST:
            raise RegkitError(
                f"count and details of ensembles must not exceed {MOST} together, got {self.count[1]} and "
                f"{self.details}"
            )
        for name in ("radius", "detail_radius"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise RegkitError(f"{name} of ensembles must be positive and rising, got {low} to {high}")

    @property
    def most(self) -> int:
        """Shapes, at most."""
        return self.count[1] + self.details


def draw_labels(how: Ensembles, sources: Sequence[tuple[Source, float]], dice: Dice) -> torch.Tensor:
    """One label map, (size, size, size) uint8.

    In thirds of the cases the shapes fill the volume, or lie in a body, or in a body with an envelope of
    one to four layers.

    Args:
        sources: of shapes, and their weights.
    """
    shape = (how.size,) * 3
    labels = torch.zeros(shape, dtype=torch.uint8, device=dice.device)
    used = 0
    if dice.chance(0.3):
        labels, used = _cells(how.size, dice)
    rim_label = used + 1  # one tissue lies around all the organs that have a rim
    used += 1
    count = int(dice.scalars.integers(how.count[0], how.count[1] + 1))
    details = int(dice.scalars.integers(how.details + 1))
    sizes = np.concatenate([_sizes(how.radius, count, dice), _sizes(how.detail_radius, details, dice)])
    # Small shapes mostly come later, or hardly one of them would be left.
    order = np.argsort(-sizes * np.exp(dice.scalars.normal(0, 0.5, len(sizes))))
    rims = dice.chance(0.5)
    for radius in sizes[order]:
        used += 1
        rim = int(dice.scalars.integers(1, 3)) if rims and dice.chance(0.6) else 0
        _paste(labels, _draw(sources, dice), radius, used, rim, rim_label, how.bend, dice)
    body = int(dice.scalars.integers(3))
    if body:
        labels = _in_a_body(labels, used, layers=int(dice.scalars.integers(1, 5)) * (body == 2), dice=dice)
    return labels


def add_strays(
    labels: torch.Tensor, most: int, how: Ensembles, sources: Sequence[tuple[Source, float]], dice: Dice
) -> None:
    """Write up to ``most`` details into a label map (Z, Y, X) that no other view of the anatomy has."""
    count = int(dice.scalars.integers(most + 1))
    for k, radius in enumerate(_sizes(how.detail_radius, count, dice)):
        _paste(labels, _draw(sources, dice), radius, _LAST_LABEL - k, 0, 0, how.bend, dice)


def _draw(sources: Sequence[tuple[Source, float]], dice: Dice) -> Shape:
    weights = np.array([weight for _, weight in sources])
    source = sources[dice.scalars.choice(len(sources), p=weights / weights.sum())][0]
    return source.draw(dice.scalars, dice.device)


def _sizes(limits: tuple[float, float], count: int, dice: Dice) -> np.ndarray:
    low, high = limits
    return low * (high / low) ** dice.scalars.random(count)


def _cells(size: int, dice: Dice) -> tuple[torch.Tensor, int]:
    """A dense parcellation: the highest of several smooth noise fields wins."""
    count = int(dice.scalars.integers(3, 9))
    scale = dice.uniform(12, 48)
    best = smooth_noise(dice, 1, (size,) * 3, scale)[0]
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for label in range(1, count):
        field = smooth_noise(dice, 1, (size,) * 3, scale)[0]
        labels.masked_fill_(field > best, label)
        torch.maximum(best, field, out=best)
    return labels, count - 1


def _paste(
    labels: torch.Tensor,
    shape: Shape,
    radius: float,
    label: int,
    rim: int,
    rim_label: int,
    bend: float,
    dice: Dice,
) -> None:
    """Write a shape, randomly scaled, turned, sheared, reflected, bent and placed, into the label map."""
    size = np.array(labels.shape[::-1])
    to_voxels = _random_affine(dice.scalars) * radius
    centre = dice.scalars.uniform(0, size, 3)
    reach = np.abs(to_voxels).sum(1) * (1 + bend) + rim
    first = np.maximum(np.floor(centre - reach), 0).astype(int)
    last = np.minimum(np.ceil(centre + reach) + 1, size).astype(int)
    if (last - first < 2).any():
        return
    # Axes of arrays are (z, y, x), components of points (x, y, z).
    box = tuple(slice(a, b) for a, b in zip(first[::-1], last[::-1]))
    to_shape = np.linalg.inv(to_voxels)
    # The level of a large shape is smooth: every other voxel of it is enough.
    step = 2 if radius > _COARSE_ABOVE else 1
    axes = [
        torch.linspace(a, b - 1, math.ceil((b - a) / step), device=labels.device) - float(c)
        for a, b, c in zip(first.tolist(), last.tolist(), centre)
    ]
    x, y, z = axes[0], axes[1][:, None], axes[2][:, None, None]
    where = torch.stack([x * a + y * b + z * c for a, b, c in to_shape.tolist()])
    where += smooth_noise(dice, 3, where.shape[1:], max(where.shape[1:]) / dice.uniform(1.5, 5)) * (
        bend * dice.uniform(0, 1)
    )
    level, part = shape(where), labels[box]
    if step > 1:
        level = F.interpolate(level[None, None], size=part.shape, mode="trilinear", align_corners=True)[0, 0]
    inside = level > 0
    if rim:
        part.masked_fill_(_dilated(inside, rim), rim_label)
    part.masked_fill_(inside, label)


def _dilated(mask: torch.Tensor, voxels: int) -> torch.Tensor:
    """A mask grown by a cube of that radius."""
    for axis in range(3):
        grown = mask.clone()
        for shift in range(1, voxels + 1):
            n = mask.shape[axis] - shift
            grown.narrow(axis, 0, n).logical_or_(mask.narrow(axis, shift, n))
            grown.narrow(axis, shift, n).logical_or_(mask.narrow(axis, 0, n))
        mask = grown
    return mask


def _random_affine(random: np.random.Generator) -> np.ndarray:
    """Stretch, shear and turn of a unit cube, 3x3; reflections with probability a half."""
    turn, _ = np.linalg.qr(random.standard_normal((3, 3)))
    turn[:, 0] *= random.choice([-1.0, 1.0])
    shear = np.eye(3) + np.triu(random.uniform(-0.3, 0.3, (3, 3)), 1)
    stretch = np.exp(random.uniform(-0.45, 0.45, 3))
    return np.asarray(turn @ shear * stretch)


def _in_a_body(labels: torch.Tensor, used: int, layers: int, dice: Dice) -> torch.Tensor:
    """Only what lies in a deformed ellipsoid is kept, and ``layers`` shells are laid along its surface."""
    size = labels.shape[0]
    quarter = size // 4
    grid = torch.linspace(-1, 1, quarter, device=labels.device)
    z, y, x = torch.meshgrid(grid, grid, grid, indexing="ij")
    where = torch.stack([x, y, z]) - torch.from_numpy(
        dice.scalars.uniform(-0.35, 0.35, (3, 1, 1, 1)).astype(np.float32)
    ).to(labels.device)
    where += 0.2 * smooth_noise(dice, 3, where.shape[1:], quarter / dice.uniform(1.5, 4))
    radii = dice.scalars.uniform(0.7, 1.4, 3)
    level = sum((component / r).square() for component, r in zip(where, radii.tolist()))
    assert isinstance(level, torch.Tensor)
    # Voxels to the surface, about.
    depth = (1 - level.sqrt()) * float(radii.mean()) * size / 2
    depth = F.interpolate(depth[None, None], size=labels.shape, mode="trilinear", align_corners=True)[0, 0]
    labels = torch.where(labels == 0, used + 1, labels)
    bound = 0.0
    for layer in range(layers):
        bound, inner = bound + dice.uniform(1.5, 7), bound
        labels = torch.where((depth >= inner) & (depth < bound), used + 2 + layer, labels)
    return labels.masked_fill(depth < 0, 0)
