"""The phantom of ``regkit demo``: a CT and an MR of one made-up trunk, with the exact map between them.

The anatomy (:mod:`regkit.synthesis.procedural_trunk`) lives in the world of the MR. The true map T takes a
point of the MR to the CT. The MR shows ``anatomy(p)`` and the CT ``anatomy(T^-1(y))``, each evaluated at its
own voxels. So labels and landmarks correspond exactly, and no voxel of one image is made from voxels of the
other. As in a clinic, the two differ in voxel size, axes, field of view and origin. By their headers they lie
60 mm apart. The data engine (:mod:`regkit.synthesis.appearance`) adds what scanners add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid
from regkit.io.images import Volume
from regkit.synthesis.appearance import bias, blurred, rician
from regkit.synthesis.noise import Rng
from regkit.synthesis.procedural_trunk import NAMES, draw

_SPACING = 2.6  # mm, in-plane of the MR at full size
_HALF_TRUNK = np.array([130.0, 85.0, 105.0])  # mm

# Anatomical mm, as in regkit.synthesis.procedural_trunk.
_LANDMARKS = {
    "liver, top of the dome": (-64, -2, 81), "liver, lower tip": (-96, -8, -56),
    "liver, left tip": (66, -50, 42), "hepatic veins at the vena cava": (-22, 13, 60),
    "portal vein, fork": (-36, -6, 22), "gallbladder, fundus": (-52, -50, -26),
    "spleen, middle": (98, 32, 28), "spleen, lower tip": (97, 25, -21),
    "right kidney, upper pole": (-51, 29, 26), "right kidney, lower pole": (-77, 29, -78),
    "right renal hilum": (-50, 20, -26), "left kidney, upper pole": (47, 30, 39),
    "left kidney, lower pole": (77, 29, -62), "left renal hilum": (50, 20, -10),
    "stomach, fundus": (55, 2, 66), "pylorus": (-22, -40, -2), "pancreas, head": (-30, -12, -16),
    "pancreas, tail": (80, 16, 27), "coeliac trunk": (9, 4, 12), "aorta, fork": (8, 13, -84),
    "L1, centre": (0, 35, 17), "L2, centre": (0, 33, -15), "L3, centre": (-1, 32, -48),
    "L4, centre": (-2, 33, -83), "T11, centre": (2, 40, 76), "L2, spinous process": (0, 73, -24),
    "navel": (0, -85, -75), "right iliac crest": (-90, 40, -88), "left iliac crest": (90, 40, -88),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrueMap:
    """T(p) = R (p + u(p)) + t with u a sum of Gaussians; fixed LPS mm to moving LPS mm.

    Args:
        rotation: (3, 3).
        translation: (3,) mm.
        centres: (n, 3) mm, of the Gaussians.
        peaks: (n, 3) mm, the displacement of each at its centre.
        widths: (n,) mm, standard deviations.
    """

    rotation: Float64
    translation: Float64
    centres: Float64
    peaks: Float64
    widths: Float64

    def __call__(self, points: npt.ArrayLike) -> Float64:
        """Fixed points (..., 3) as seen in the moving world."""
        p = np.asarray(points, dtype=np.float64)
        return (p + self.bend(p)) @ self.rotation.T + self.translation

    def bend(self, points: npt.ArrayLike) -> Float64:
        """u at fixed points (..., 3), mm."""
        return self._weights(np.asarray(points, dtype=np.float64)) @ self.peaks

    def determinant(self, points: npt.ArrayLike) -> Float64:
        """Jacobian determinant of T at fixed points (..., 3), from the analytic derivative."""
        p = np.asarray(points, dtype=np.float64)
        apart = p[..., None, :] - self.centres
        slopes = -(self._weights(p) / self.widths**2)[..., None] * apart  # d weight / d p
        return np.linalg.det(np.eye(3) + np.einsum("ki,...kj->...ij", self.peaks, slopes))

    def inverse(self, points: npt.ArrayLike) -> Float64:
        """Moving points (..., 3) as seen in the fixed world, to better than 1e-6 mm."""
        goal = (np.asarray(points, dtype=np.float64) - self.translation) @ self.rotation
        return _solve(self.bend, goal)

    def _weights(self, points: Float64) -> Float64:
        """Each Gaussian at each point, (..., n); |p - c|^2 by its binomial, which is one matrix product."""
        squares = (points**2).sum(axis=-1)[..., None] + (self.centres**2).sum(axis=-1)
        return np.exp((points @ self.centres.T - 0.5 * squares) / self.widths**2)


@dataclass(frozen=True, eq=False)
class Phantom:
    """Two images of one trunk and all that is known about them.

    Args:
        fixed: the MR, int16.
        moving: the CT, int16, HU.
        fixed_labels, moving_labels: uint8, numbered as in ``names``.
        names: label -> organ.
        landmarks_fixed, landmarks_moving: (n, 3) LPS mm each.
        landmark_names: n names.
        truth: the map from fixed points to moving points.
    """

    fixed: Volume
    moving: Volume
    fixed_labels: Volume
    moving_labels: Volume
    names: dict[int, str]
    landmarks_fixed: Float64
    landmarks_moving: Float64
    landmark_names: tuple[str, ...]
    truth: TrueMap


def torso(seed: int = 0, spacing: float = _SPACING) -> Phantom:
    """An MR (fixed) and a CT (moving) of a trunk; the same seed gives the same bits.

    Args:
        seed: of the anatomy, the true map and the noise.
        spacing: of the MR in plane, mm; the other voxel sides keep their proportion to it.

    Raises:
        RegkitError: if the spacing is not between 1 and 12 mm, or the seed is negative.
    """
    if seed < 0:
        raise RegkitError(f"the phantom's seed must be 0 or more, got {seed}")
    if not 1 <= spacing <= 12:
        raise RegkitError(f"the phantom's voxel spacing must be from 1 to 12 mm, got {spacing:g}")
    anatomy, warp = np.random.SeedSequence(seed).spawn(2)
    truth = _true_map(np.random.default_rng(warp))
    shape = _Shape(np.random.default_rng(anatomy))
    scale = spacing / _SPACING
    oblique = Rotation.from_euler("xyz", (4, -3, 6), degrees=True).as_matrix()
    fixed_grid = _grid((128, 104, 80), (2.6, 2.6, 3.0), scale, oblique, np.array([3.0, -4.0, 2.0]))
    # RAS axes, as dcm2niix writes a CT; a field of view that is wider, and lower on the patient.
    moving_grid = _grid(
        (144, 120, 100), (2.4, 2.4, 2.5), scale, np.diag([-1.0, -1.0, 1.0]), truth((-6.0, 4.0, -7.0))
    )

    texture = int(anatomy.generate_state(1)[0])
    image, labels = draw(_on_grid(fixed_grid, shape.to_anatomy), "t2", max(fixed_grid.spacing), texture)
    fixed = Volume(scanned_mr(image, Rng.of(seed, 1)), fixed_grid, "phantom MR")
    fixed_labels = Volume(labels, fixed_grid, "phantom MR labels")

    coordinates = _on_grid(moving_grid, lambda y: shape.to_anatomy(truth.inverse(y)))
    image, labels = draw(coordinates, "ct", max(moving_grid.spacing), texture)
    back = truth(shape.from_anatomy(np.array([0.0, 97.0, 0.0])))
    _couch(image, coordinates, moving_grid, back)
    moving = Volume(scanned_ct(image, Rng.of(seed, 2)), moving_grid, "phantom CT")
    moving_labels = Volume(labels, moving_grid, "phantom CT labels")

    landmarks = shape.from_anatomy(np.array(list(_LANDMARKS.values()), dtype=np.float64))
    return Phantom(
        fixed,
        moving,
        fixed_labels,
        moving_labels,
        dict(NAMES),
        landmarks,
        truth(landmarks),
        tuple(_LANDMARKS),
        truth,
    )


class _Shape:
    """Makes each seed's patient another person: a smooth deformation of the anatomical coordinates."""

    def __init__(self, random: np.random.Generator) -> None:
        # Long waves bend the trunk, short ones take the geometric look from its organs.
        lengths = np.concatenate([random.uniform(170, 360, 6), random.uniform(42, 75, 10)])
        heights = np.concatenate([np.full(6, 2.4), np.full(10, 0.35)])
        directions = random.standard_normal((16, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self._waves = 2 * np.pi * directions / lengths[:, None]
        self._phases = random.uniform(0, 2 * np.pi, 16)
        self._amplitudes = heights[:, None] * random.standard_normal((16, 3))
        self._size = random.uniform(0.97, 1.03, 3)

    def to_anatomy(self, points: Float64) -> Float64:
        """Fixed LPS mm (..., 3) to anatomical mm."""
        return (points + self._bend(points)) * self._size

    def from_anatomy(self, points: Float64) -> Float64:
        return _solve(self._bend, points / self._size)

    def _bend(self, points: Float64) -> Float64:
        return np.sin(points @ self._waves.T + self._phases) @ self._amplitudes


def _solve(bend: Callable[[Float64], Float64], goal: Float64) -> Float64:
    """The p with p + bend(p) = goal, by fixed-point iteration; ``bend`` must be a contraction."""
    p = goal.copy()
    for _ in range(200):
        error = goal - bend(p) - p
        p = p + error
        if np.abs(error).max() < 1e-7:
            return p
    raise RuntimeError("the phantom's map cannot be inverted")


def _true_map(random: np.random.Generator) -> TrueMap:
    centres = random.uniform(-1, 1, (12, 3)) * _HALF_TRUNK
    widths = random.uniform(42, 70, 12)
    peaks = random.standard_normal((12, 3))
    # One more for breathing: liver and diaphragm lower in the CT, which is taken in inspiration.
    centres, widths = np.vstack([centres, (-20, 0, 60)]), np.append(widths, 75.0)
    peaks = np.vstack([peaks, (0, -0.4, -1.6)])
    angles = random.uniform(3, 7, 3) * random.choice([-1, 1], 3)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    translation = random.standard_normal(3)
    translation *= 60 / np.linalg.norm(translation)
    axes = [np.arange(-1.2, 1.21, 0.1) * half for half in _HALF_TRUNK]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    truth = TrueMap(rotation, translation, centres, peaks, widths)
    peaks = peaks * (16 / np.linalg.norm(truth.bend(lattice), axis=-1).max())
    while (truth := TrueMap(rotation, translation, centres, peaks, widths)).determinant(lattice).min() < 0.4:
        peaks = 0.9 * peaks
    return truth


def _grid(
    size: tuple[int, int, int],
    spacing: tuple[float, ...],
    scale: float,
    direction: Float64,
    centre: npt.ArrayLike,
) -> Grid:
    """The grid of a field of view about ``centre`` (LPS mm), its voxels made ``scale`` times larger."""
    count = np.maximum(np.round(np.asarray(size) / scale), 4).astype(int)
    sides = np.asarray(spacing) * scale
    origin = np.asarray(centre) - (direction * sides) @ ((count - 1) / 2)
    return Grid(tuple(count), tuple(sides), tuple(origin), tuple(direction.ravel()))


def _on_grid(grid: Grid, function: Callable[[Float64], Float64]) -> npt.NDArray[np.float32]:
    """A smooth vector function of world points at all voxels, (3, Z, Y, X).

    Evaluated some 7 mm apart and joined by cubic splines, in a hundredth of the time.
    """
    stride = max(1, round(7 / min(grid.spacing)))
    if stride == 1:
        return np.ascontiguousarray(np.moveaxis(function(grid.world_points()), -1, 0), dtype=np.float32)
    knots = [np.arange(0, n - 1 + stride, stride) for n in grid.shape]
    z, y, x = np.meshgrid(*knots, indexing="ij")
    index = np.stack([x, y, z], axis=-1)
    values = np.moveaxis(function(index @ grid.index_to_world[:3, :3].T + grid.origin), -1, 0)
    for axis, (at, n) in enumerate(zip(knots, grid.shape, strict=True), start=1):
        spline = make_interp_spline(at, np.eye(len(at)), k=3)(np.arange(n)).astype(np.float32)
        values = np.moveaxis(np.tensordot(spline, values.astype(np.float32), (1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def scanned_mr(image: npt.NDArray[np.float32], rng: Rng) -> npt.NDArray[np.int16]:
    """An MR of drawn signal: a coil that sees some parts better, a scanner's gamma, and Rician noise."""
    signal = 900 * (blurred(torch.from_numpy(image)[None], [[0.45] * 3]).clamp_(min=0) / 900) ** 1.1
    noisy = rician(signal * bias(image.shape, 0.12, rng), 14.0, [rng])
    return np.asarray(noisy[0].round_().numpy(), dtype=np.int16)


def scanned_ct(image: npt.NDArray[np.float32], rng: Rng) -> npt.NDArray[np.int16]:
    """A CT of drawn HU: the blur of the reconstruction and its correlated noise of 12 HU."""
    noise = blurred(rng.normal(1, *image.shape), [[0.6] * 3])
    noisy = blurred(torch.from_numpy(image)[None], [[0.45] * 3]) + noise * (12 / noise.std())
    return np.asarray(noisy[0].clamp_(-1024, 3071).round_().numpy(), dtype=np.int16)


def _couch(
    image: npt.NDArray[np.float32], coordinates: npt.NDArray[np.float32], grid: Grid, back: Float64
) -> None:
    """Put the scanner's curved couch under the patient, whose back is at the moving point ``back``."""
    x, y = np.moveaxis(
        Grid((*grid.size[:2], 1), grid.spacing, grid.origin, grid.direction).world_points()[0, ..., :2], -1, 0
    )
    depth = y - (back[1] + 8) + (x - back[0]) ** 2 / 900
    shell = np.abs(depth - 9) - 9  # 18 mm of foam between two skins of carbon fibre
    table = np.where(shell > 2, -1000, np.where(shell > -1, -450, -960))
    behind = (coordinates[1] > 60) & (image < -900)
    image[behind] = np.broadcast_to(table, image.shape)[behind]
