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
import numpy.typing as npt
import torch
import torch.nn.functional as F

from regkit.core.errors import RegkitError
from regkit.synthesis.noise import Rng, onto, smooth_noise
from regkit.synthesis.shape_sources import ShapeSource
from regkit.synthesis.shapes import Shape

_MIN_SIZE = 8  # voxels
_LAST_LABEL = 255
_AXES = np.arange(3)[None]
MAX_SHAPES = 240  # shapes: labels are uint8, and cells, rims and the body need some
_COARSE_ABOVE = 10  # voxels, half extent, from which a shape is evaluated at every other voxel

Stray = npt.NDArray[np.int16]
"""(n, 3): the voxels (z, y, x) of a detail, from its middle."""


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
        if self.size < _MIN_SIZE:
            raise RegkitError(f"size of ensembles must be at least {_MIN_SIZE}, got {self.size}")
        if not 0 <= self.count[0] <= self.count[1] or self.details < 0:
            raise RegkitError(
                f"ensembles cannot have {self.count[0]} to {self.count[1]} shapes and {self.details} details"
            )
        if self.max_shapes > MAX_SHAPES:
            raise RegkitError(
                f"count and details of ensembles must not exceed {MAX_SHAPES} together, got "
                f"{self.count[1]} and {self.details}"
            )
        for name in ("radius", "detail_radius"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise RegkitError(f"{name} of ensembles must be positive and rising, got {low} to {high}")

    @property
    def max_shapes(self) -> int:
        """Shapes, at most."""
        return self.count[1] + self.details


def draw_labels(settings: Ensembles, sources: Sequence[tuple[ShapeSource, float]], rng: Rng) -> torch.Tensor:
    """One label map, (size, size, size) uint8.

    In thirds of the cases the shapes fill the volume, or lie in a body, or in a body with an envelope of
    one to four layers.

    Args:
        sources: of shapes, and their weights.
    """
    shape = (settings.size,) * 3
    labels = torch.zeros(shape, dtype=torch.uint8, device=rng.device)
    used = 0
    if rng.chance(0.3):
        labels, used = _cells(settings.size, rng)
    rim_label = used + 1  # one tissue lies around all the organs that have a rim
    used += 1
    count = int(rng.scalars.integers(settings.count[0], settings.count[1] + 1))
    details = int(rng.scalars.integers(settings.details + 1))
    sizes = np.concatenate(
        [draw_sizes(settings.radius, count, rng), draw_sizes(settings.detail_radius, details, rng)]
    )
    # Small shapes mostly come later, or hardly one of them would be left.
    order = np.argsort(-sizes * np.exp(rng.scalars.normal(0, 0.5, len(sizes))))
    rims = rng.chance(0.5)
    for radius in sizes[order]:
        used += 1
        rim = int(rng.scalars.integers(1, 3)) if rims and rng.chance(0.6) else 0
        paste_shape(labels, _draw(sources, rng), radius, used, rim, rim_label, settings.bend, rng)
    body = int(rng.scalars.integers(3))
    if body:
        labels = clip_to_body(labels, used, layers=int(rng.scalars.integers(1, 5)) * (body == 2), rng=rng)
    return labels


def draw_strays(
    count: int, settings: Ensembles, sources: Sequence[tuple[ShapeSource, float]], rng: Rng
) -> tuple[Stray, ...]:
    """Details that single views have, and the anatomy has not."""
    endless = np.full(3, np.inf)
    strays = []
    for radius in draw_sizes(settings.detail_radius, count, rng):
        first, inside = _inside(
            _draw(sources, rng), radius, np.zeros(3), (-endless, endless), settings.bend, rng
        )
        strays.append((inside.nonzero().cpu().numpy() + first).astype(np.int16))
    return tuple(strays)


def paste_strays(
    labels: torch.Tensor, strays: Sequence[Sequence[Stray]], max_count: int, rng: Sequence[Rng]
) -> None:
    """Write up to ``max_count`` strays into each of several label maps, each somewhere and turned somehow.

    Args:
        labels: (V, Z, Y, X) uint8; changed.
        strays: for each map, those there are.
    """
    shape = np.array(labels.shape[1:])
    drawn: list[tuple[Stray, np.ndarray, np.ndarray, np.ndarray]] = []
    numbers: list[int] = []
    values: list[int] = []
    for v, (those, d) in enumerate(zip(strays, rng, strict=True)):
        if not those:
            continue
        random, count = d.scalars, int(d.scalars.integers(max_count + 1))
        which = random.integers(len(those), size=count)
        axes = random.permuted(_AXES.repeat(count, 0), axis=1)
        signs = (1 - 2 * random.integers(2, size=(count, 3))).astype(np.int16)
        middles = random.integers(shape, size=(count, 3)).astype(np.int16)
        drawn += zip([those[number] for number in which.tolist()], axes, signs, middles)
        numbers += [v] * count
        values += range(_LAST_LABEL, _LAST_LABEL - count, -1)
    if not drawn:
        return
    # Found on the host, as so many small steps would keep a GPU waiting.
    counts = [len(stray) for stray, *_ in drawn]
    voxels, end = np.empty((4, sum(counts)), np.int16), 0
    for (stray, order, sign, middle), v, count in zip(drawn, numbers, counts):
        part, end = voxels[:, end : end + count], end + count
        part[0] = v
        np.multiply(stray.T[order], sign[:, None], out=part[1:])
        part[1:] += middle[:, None]
    inside = ((voxels[1:] >= 0) & (voxels[1:] < shape[:, None].astype(np.int16))).all(0)
    at = onto(
        labels.device, np.ravel_multi_index(tuple(voxels.compress(inside, 1)), tuple(labels.shape)), np.int64
    )
    value = onto(labels.device, np.repeat(np.array(values, np.uint8), counts)[inside], np.uint8)
    # Of several strays at one place the last one, of the lowest label, stays.
    labels.view(-1).index_fill_(0, at, _LAST_LABEL).scatter_reduce_(0, at, value, "amin")


def _draw(sources: Sequence[tuple[ShapeSource, float]], rng: Rng) -> Shape:
    weights = np.array([weight for _, weight in sources])
    source = sources[rng.scalars.choice(len(sources), p=weights / weights.sum())][0]
    return source.draw(rng.scalars, rng.device)


def draw_sizes(limits: tuple[float, float], count: int, rng: Rng) -> np.ndarray:
    low, high = limits
    return low * (high / low) ** rng.scalars.random(count)


def _cells(size: int, rng: Rng) -> tuple[torch.Tensor, int]:
    """A dense parcellation: the highest of several smooth noise fields wins."""
    count = int(rng.scalars.integers(3, 9))
    scale = rng.uniform(12, 48)
    best = smooth_noise(rng, 1, (size,) * 3, scale)[0]
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for label in range(1, count):
        field = smooth_noise(rng, 1, (size,) * 3, scale)[0]
        labels.masked_fill_(field > best, label)
        torch.maximum(best, field, out=best)
    return labels, count - 1


def paste_shape(
    labels: torch.Tensor,
    shape: Shape,
    radius: float,
    label: int,
    rim: int,
    rim_label: int,
    bend: float,
    rng: Rng,
) -> None:
    """Write a shape, randomly scaled, turned, sheared, reflected, bent and placed, into the label map."""
    size = np.array(labels.shape)
    centre = rng.scalars.uniform(0, size, 3)
    first, inside = _inside(shape, radius, centre, (np.zeros(3), size), bend, rng, rim)
    if inside.numel():
        part = labels[tuple(slice(a, a + n) for a, n in zip(first.tolist(), inside.shape))]
        if rim:
            part.masked_fill_(dilate(inside, rim), rim_label)
        part.masked_fill_(inside, label)


def _inside(
    shape: Shape,
    radius: float,
    centre: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
    bend: float,
    rng: Rng,
    margin: int = 0,
) -> tuple[np.ndarray, torch.Tensor]:
    """A shape, randomly scaled, turned, sheared, reflected and bent, about a centre, in (z, y, x).

    Args:
        limits: first voxels, and those behind the last, that there are.
        margin: voxels around the shape.

    Returns:
        The first voxel of a box, and which voxels of the box (Z, Y, X) lie inside the shape; the box is empty
        where the shape lies beyond the limits.
    """
    to_voxels = random_affine(rng.scalars) * radius  # components are (x, y, z)
    reach = np.abs(to_voxels).sum(1)[::-1] * (1 + bend) + margin
    first = np.maximum(np.floor(centre - reach), limits[0]).astype(int)
    last = np.minimum(np.ceil(centre + reach) + 1, limits[1]).astype(int)
    if (last - first < 2).any():
        return first, torch.zeros((0, 0, 0), dtype=torch.bool, device=rng.device)
    # The level of a large shape is smooth: every other voxel of it is enough.
    step = 2 if radius > _COARSE_ABOVE else 1
    z, y, x = (
        torch.linspace(a, b - 1, math.ceil((b - a) / step), device=rng.device) - c
        for a, b, c in zip(first.tolist(), last.tolist(), centre.tolist())
    )
    y, z = y[:, None], z[:, None, None]
    coordinates = torch.stack([x * a + y * b + z * c for a, b, c in np.linalg.inv(to_voxels).tolist()])
    coordinates += smooth_noise(
        rng, 3, coordinates.shape[1:], max(coordinates.shape[1:]) / rng.uniform(1.5, 5)
    ) * (bend * rng.uniform(0, 1))
    level = shape(coordinates)
    if step > 1:
        size = (last - first).tolist()
        level = F.interpolate(level[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]
    return first, level > 0


def dilate(mask: torch.Tensor, voxels: int) -> torch.Tensor:
    """A mask grown by a cube of that radius."""
    for axis in range(3):
        grown = mask.clone()
        for shift in range(1, voxels + 1):
            n = mask.shape[axis] - shift
            grown.narrow(axis, 0, n).logical_or_(mask.narrow(axis, shift, n))
            grown.narrow(axis, shift, n).logical_or_(mask.narrow(axis, 0, n))
        mask = grown
    return mask


def random_affine(random: np.random.Generator) -> np.ndarray:
    """Stretch, shear and turn of a unit cube, 3x3; reflections with probability a half."""
    turn, _ = np.linalg.qr(random.standard_normal((3, 3)))
    turn[:, 0] *= random.choice([-1.0, 1.0])
    shear = np.eye(3) + np.triu(random.uniform(-0.3, 0.3, (3, 3)), 1)
    stretch = np.exp(random.uniform(-0.45, 0.45, 3))
    return np.asarray(turn @ shear * stretch)


def clip_to_body(labels: torch.Tensor, used: int, layers: int, rng: Rng) -> torch.Tensor:
    """Only what lies in a deformed ellipsoid is kept, and ``layers`` shells are laid along its surface."""
    size = labels.shape[0]
    quarter = size // 4
    grid = torch.linspace(-1, 1, quarter, device=labels.device)
    z, y, x = torch.meshgrid(grid, grid, grid, indexing="ij")
    coordinates = torch.stack([x, y, z]) - torch.from_numpy(
        rng.scalars.uniform(-0.35, 0.35, (3, 1, 1, 1)).astype(np.float32)
    ).to(labels.device)
    coordinates += 0.2 * smooth_noise(rng, 3, coordinates.shape[1:], quarter / rng.uniform(1.5, 4))
    radii = rng.scalars.uniform(0.7, 1.4, 3)
    level = sum((component / r).square() for component, r in zip(coordinates, radii.tolist()))
    assert isinstance(level, torch.Tensor)
    # Voxels to the surface, about.
    depth = (1 - level.sqrt()) * float(radii.mean()) * size / 2
    depth = F.interpolate(depth[None, None], size=labels.shape, mode="trilinear", align_corners=True)[0, 0]
    labels = torch.where(labels == 0, used + 1, labels)
    bound = 0.0
    for layer in range(layers):
        bound, inner = bound + rng.uniform(1.5, 7), bound
        labels = torch.where((depth >= inner) & (depth < bound), used + 2 + layer, labels)
    return labels.masked_fill(depth < 0, 0)
