"""Painting of implicit surfaces into a volume: the brushes of :mod:`regkit.synthesis.procedural_trunk`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

Float = npt.NDArray[np.floating[Any]]
Curve = npt.NDArray[np.float64]
"""(n, 4): points x, y, z on a centre line and the radius there, all mm."""
Knots = Sequence[tuple[float, ...]]
_HALF = 0.5  # opacity
_MARGIN = 3.0  # mm from a surface, more than textures move it


@dataclass(frozen=True, eq=False)
class Canvas:
    """A box of voxels being painted; its arrays are views into those of the whole image.

    Args:
        x, y, z: (Z, Y, X) coordinates of the voxels, mm, smooth.
        image: (Z, Y, X) float32.
        labels: (Z, Y, X) uint8.
        tissues: name -> intensity.
        numbers: name -> label.
        edge: width in mm over which a surface is smeared (partial volume); the longest side of a voxel.
        box: where the part lies in the one that it was cut from.
        play: mm, by which organs lie elsewhere (:meth:`organ`), as ``random`` says.
        slack: logarithm by which they are smaller.
    """

    x: Float
    y: Float
    z: Float
    image: Float
    labels: npt.NDArray[np.uint8]
    tissues: Mapping[str, float]
    numbers: Mapping[str, int]
    edge: float
    box: tuple[slice, ...] = (slice(None),) * 3
    play: float = 0.0
    slack: float = 0.0
    random: np.random.Generator = field(default_factory=np.random.default_rng)

    def within(self, low: tuple[float, float, float], high: tuple[float, float, float]) -> Canvas:
        """The smallest box, or little more, of voxels that holds all points between two corners, mm.

        Its ``box`` counts from this part's first voxel.
        """
        step = 3
        few = (slice(None, None, step),) * 3
        inside = np.ones(self.x[few].shape, bool)
        for values, lower, upper in zip((self.x, self.y, self.z), low, high, strict=True):
            margin = 2 * step * self.edge
            inside &= (values[few] > lower - margin) & (values[few] < upper + margin)
        hits = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        box = tuple(
            slice(int(hit[0]) * step, (int(hit[-1]) + 1) * step) if hit.size else slice(0, 0) for hit in hits
        )
        return replace(
            self,
            x=self.x[box],
            y=self.y[box],
            z=self.z[box],
            image=self.image[box],
            labels=self.labels[box],
            box=box,
        )

    def paint(self, surface: Float, tissue: str, label: str | None = "", opacity: Float | float = 1) -> None:
        """Paint a tissue where ``surface`` < 0.

        Args:
            surface: (Z, Y, X), about mm from the surface, negative inside.
            label: given to the voxels inside; "" takes away the label they had, None leaves it.
            opacity: 0 to 1.
        """
        cover = np.clip(0.5 - surface / self.edge, 0, 1) * opacity
        self.image[...] += cover * (self.tissues[tissue] - self.image)
        if label is not None:
            self.labels[surface < 0] = self.numbers[label] if label else 0

    def organ(self, low: tuple[float, float, float], high: tuple[float, float, float]) -> Canvas:
        """As :meth:`within`, but with ``play``: what is drawn lies elsewhere and has another size.

        Each axis is shifted by ``play`` mm and stretched by a fiftieth per mm of it, in standard deviations,
        about a size that is ``slack`` smaller.
        """
        if not (self.play or self.slack):
            return self.within(low, high)
        room = 3 * self.play
        wide = [tuple(float(c) for c in np.add(corner, by)) for corner, by in ((low, -room), (high, room))]
        part = self.within(*wide)  # type: ignore[arg-type]
        moved = []
        for values, middle in zip((part.x, part.y, part.z), (np.array(low) + high) / 2):
            shift = self.random.normal(0, self.play)
            size = np.exp(self.random.normal(-self.slack, 0.02 * self.play))
            moved.append(((values - middle - shift) / size + middle).astype(np.float32))
        return replace(part, x=moved[0], y=moved[1], z=moved[2])

    def stray(self, spread: float) -> float:
        """By how much something differs from the usual: with ``play`` a normal number, without it 0."""
        return float(self.random.normal(0, spread)) if self.play else 0.0

    def size(self, spread: float) -> float:
        """How many times as large as usual something is; ``spread`` is of the logarithm."""
        return float(np.exp(self.stray(spread)))

    def bent(self, knots: Knots, spread: float) -> Curve:
        """The curve through knots that lie ``spread`` mm elsewhere, each in its own way."""
        points = np.asarray(knots, dtype=np.float64)
        if self.play:
            points[:, :3] += self.random.normal(0, spread, (len(points), 3))
        return curve(points)

    def lacks(self, share: float) -> bool:
        """Whether something that this share of people lacks is missing; never without ``play``."""
        return bool(self.play) and bool(self.random.random() < share)

    def filled(self) -> float:
        """mm by which the wall of a hollow organ lies further in; with ``play`` it may be nearly empty."""
        return float(self.random.uniform(-2, 7)) if self.play else 0.0

    def ellipsoid(
        self, centre: Sequence[float], radii: Sequence[float], *, lean: float = 0, turn: float = 0
    ) -> Float:
        """Distance to an ellipsoid.

        Args:
            lean: mm in x per mm in z, a shear.
            turn: degrees about z, from x towards y.
        """
        z = self.z - centre[2]
        x, y = self.x - centre[0] - lean * z, self.y - centre[1]
        c, s = float(np.cos(np.radians(turn))), float(np.sin(np.radians(turn)))
        return ellipsoid(c * x + s * y, c * y - s * x, z, radii)

    def tube(self, curves: Sequence[Curve], flatten: float = 1) -> Float:
        """Distance to a union of tubes; further away than matters for painting it is a constant.

        Args:
            flatten: heights count this much less, which makes a round tube tall.
        """
        samples = np.concatenate(curves)
        scale = np.array([1, 1, flatten])
        tree = cKDTree(samples[:, :3] * scale)
        reach = _MARGIN + 1.2 * self.edge
        limit = samples[:, 3].max() + reach
        surface = np.full(self.x.shape, reach, np.float32)
        if not surface.size:
            return surface
        near = self._near(tree, limit, scale)
        points = np.stack([self.x[near], self.y[near], self.z[near]], axis=-1) * scale
        distance, nearest = tree.query(points, distance_upper_bound=limit)
        # A point without a sample in the limit gets distance inf and the index one past the last.
        surface[near] = np.minimum(distance - np.append(samples[:, 3], 0)[nearest], reach)
        return surface

    def _near(self, tree: cKDTree, limit: float, scale: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which voxels may have a sample within ``limit``, judged by one voxel of each 4 x 4 x 4 block."""
        middle = np.ix_(*(np.minimum(np.arange(1, n + 1, 4), n - 1) for n in self.x.shape))
        few = np.stack([self.x[middle], self.y[middle], self.z[middle]], axis=-1)
        # A block ends two voxels, 3.5 sides along the diagonal, from its voxel (1, 1, 1); a quarter more
        # where the coordinates are bent.
        far = limit + 4.5 * self.edge
        blocks = np.isfinite(tree.query(few * scale, distance_upper_bound=far)[0])
        for axis in range(3):
            blocks = np.repeat(blocks, 4, axis=axis)
        return blocks[tuple(slice(n) for n in self.x.shape)]


class Solid(Canvas):
    """A part whose ``image`` holds tissues instead of intensities: each voxel is of the one painted last."""

    def paint(self, surface: Float, tissue: str, label: str | None = "", opacity: Float | float = 1) -> None:
        """As :meth:`Canvas.paint`, without partial volume. What is less than half opaque is not painted."""
        inside = surface < 0
        self.image[inside & (opacity > _HALF)] = self.tissues[tissue]
        if label is not None:
            self.labels[inside] = self.numbers[label] if label else 0


class Texture:
    """Smooth noise in space, about normal, with a correlation length of choice."""

    def __init__(self, random: np.random.Generator) -> None:
        lattice = gaussian_filter(random.standard_normal((48, 48, 48)), 1.3, mode="wrap")
        self._lattice = (lattice / lattice.std()).astype(np.float32)

    def __call__(self, part: Canvas, length: float, shift: float = 0, near: Float | None = None) -> Float:
        """Noise at a part's voxels; ``length`` in mm, another ``shift`` gives independent noise.

        Args:
            near: (Z, Y, X) distance to what it is for, mm; where that is further than matters, there is none.
        """
        inside = np.ones(part.x.shape, bool) if near is None else near < _MARGIN + part.edge
        cells = np.stack([axis[inside] for axis in (part.z, part.y, part.x)])
        noise = np.zeros(part.x.shape, np.float32)
        noise[inside] = map_coordinates(
            self._lattice, cells * np.float32(2.5 / length) + np.float32(shift), order=1, mode="grid-wrap"
        )
        return noise


def ellipsoid(x: Float, y: Float, z: Float, radii: Sequence[float]) -> Float:
    """Distance to an ellipsoid about 0, exact to first order at its surface."""
    a, b, c = (float(radius) for radius in radii)
    level = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
    return level * (level - 1) / np.maximum(slope, 1e-6)


def join(a: Float, b: Float, blend: float) -> Float:
    """Union of two surfaces, filleted over ``blend`` mm where they meet (quadratic smooth minimum)."""
    h = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h / (4 * blend)


def cut(a: Float, b: Float, blend: float = 3) -> Float:
    """Intersection of two surfaces, its edge rounded over ``blend`` mm."""
    return -join(-a, -b, blend)


def curve(knots: Knots | npt.NDArray[np.float64]) -> Curve:
    """A smooth curve through knots (x, y, z, radius), sampled once for each mm between them."""
    points = np.asarray(knots, dtype=np.float64)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1))])
    return PchipInterpolator(along, points)(np.arange(0, along[-1] + 0.5, 1.0))


def mirrored(knots: Knots) -> list[Curve]:
    """The curve and its mirror image on the other side of the body."""
    return [curve(knots), curve([(-x, *rest) for x, *rest in knots])]


def branches(
    random: np.random.Generator, start: Sequence[float], end: Sequence[float], twigs: int, radius: float
) -> list[Curve]:
    """A vessel from start to end, mm, with twigs that leave it, bend and thin out."""
    root, way = np.asarray(start, float), np.subtract(end, start)
    middle = root + way / 2 + random.normal(0, 3, 3)
    curves = [curve([(*root, 1.6 * radius), (*middle, 1.2 * radius), (*(root + way), 0.7 * radius)])]
    for k in range(twigs):
        fork = root + way * (0.15 + 0.8 * k / twigs)
        tip = fork + way * random.uniform(0.14, 0.35) + random.normal(0, 0.3 * np.linalg.norm(way), 3)
        bend = (fork + tip) / 2 + random.normal(0, 4, 3)
        thick = radius * (1 - 0.5 * k / twigs)
        curves.append(curve([(*fork, thick), (*bend, 0.7 * thick), (*tip, 0.35 * thick)]))
    return curves


def coils(
    nodes: npt.NDArray[np.float64], radii: tuple[float, float], stride: float, random: np.random.Generator
) -> list[Curve]:
    """Tubes that together pass each of the nodes (n, 3) once, each step to one within ``stride``."""
    left, walks = list(range(1, len(nodes))), [[0]]
    while left:
        apart = np.linalg.norm(nodes[left] - nodes[walks[-1][-1]], axis=1)
        near = np.flatnonzero(apart < stride)
        if near.size:
            walks[-1].append(left.pop(int(random.choice(near))))
        else:
            walks.append([left.pop(0)])
    knots = np.column_stack([nodes, random.uniform(*radii, len(nodes))])
    return [curve(knots[walk]) for walk in walks if len(walk) > 1]
