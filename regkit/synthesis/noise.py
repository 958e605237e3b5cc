"""Random numbers of a sample, and smooth noise."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Rng:
    """What a sample draws from: scalars on the host, so that no device waits for them, and voxels there.

    Args:
        scalars: for decisions and parameters.
        voxels: for noise, on the device of the tensors it fills.
    """

    scalars: np.random.Generator
    voxels: torch.Generator

    @classmethod
    def of(cls, seed: int, *index: int, device: torch.device | str = "cpu") -> Rng:
        """The same generator for the same numbers, on any machine with the same kind of device.

        Zeros at the end do not count: what must differ is to differ in another place.
        """
        here, there = (np.random.SeedSequence([seed, *index], spawn_key=(k,)) for k in range(2))
        voxels = torch.Generator(device).manual_seed(int(there.generate_state(1, np.uint64)[0] >> 1))
        return cls(np.random.Generator(np.random.PCG64(here)), voxels)

    @property
    def device(self) -> torch.device:
        return self.voxels.device

    def chance(self, probability: float) -> bool:
        return bool(self.scalars.random() < probability)

    def uniform(self, low: float, high: float) -> float:
        return float(self.scalars.uniform(low, high))

    def one_of(self, count: int, shares: tuple[float, ...] = ()) -> int:
        """A number below ``count``, each as likely as its share; as numpy's choice, which takes ten times as
        long.
        """
        if not shares:
            return int(self.scalars.integers(count))
        return bisect_right(_cumulated(shares), self.scalars.random())

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal voxels."""
        return torch.randn(shape, generator=self.voxels, device=self.device)


@lru_cache
def _cumulated(shares: tuple[float, ...]) -> list[float]:
    sums = np.cumsum(shares)
    return list(sums / sums[-1])


def random_turn(rng: Rng, max_angle: float) -> np.ndarray:
    """A rotation (3, 3) about any axis by up to ``max_angle`` degrees."""
    axis = rng.scalars.standard_normal(3)
    angle = math.radians(rng.uniform(0, max_angle))
    x, y, z = (axis / np.linalg.norm(axis)).tolist()
    across = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * across + 2 * math.sin(angle / 2) ** 2 * (across @ across)


def normals(rng: Sequence[Rng], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers (V, *shape), those of each sample from its own generator."""
    drawn = torch.empty((len(rng), *shape), device=rng[0].device)
    for sample, of_it in zip(drawn, rng):
        sample.normal_(generator=of_it.voxels)
    return drawn


def onto(device: torch.device, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> torch.Tensor:
    """Numbers of the host on a device, which is not waited for."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype)).to(device, non_blocking=True)


def smooth_noise(rng: Rng, channels: int, shape: Sequence[int], scale: float) -> torch.Tensor:
    """Noise (channels, Z, Y, X) that varies over some ``scale`` voxels: a cubic B-spline of normal knots."""
    return splined(rng.normal(channels, *knots(shape, scale)), shape)


def smooth_noises(
    rng: Sequence[Rng], channels: int, shape: Sequence[int], scales: Sequence[float]
) -> torch.Tensor:
    """The same of several samples, each of its own scale, evaluated together: (V, channels, Z, Y, X)."""
    sizes = [knots(shape, scale) for scale in scales]
    largest = tuple(map(max, zip(*sizes)))
    counts = [channels * math.prod(size) for size in sizes]
    drawn = torch.empty(sum(counts), device=rng[0].device)
    for sample, of_it in zip(drawn.split(counts), rng):
        sample.normal_(generator=of_it.voxels)
    # All in boxes of one size. What is beyond the knots that there are weighs nothing, and may be any number.
    starts = accumulate(counts, initial=0)
    boxes = [start + _box(channels, size, largest) for start, size in zip(starts, sizes)]
    values = drawn.index_select(0, onto(drawn.device, np.concatenate(boxes), np.int32))
    matrices = [_splines(tuple(shape), size, max(largest)) for size in sizes for _ in range(channels)]
    parts = onto(drawn.device, matrices).split(tuple(shape), dim=1)
    values_at = _product(values.view(-1, *largest), [part[..., :k] for part, k in zip(parts, largest)])
    return values_at.unflatten(0, (len(sizes), channels))


@lru_cache(maxsize=512)
def _box(channels: int, size: tuple[int, ...], largest: tuple[int, ...]) -> np.ndarray:
    """Flat indices into (channels, *size) of the elements of (channels, *most), beyond it of the border."""
    axes = [np.minimum(np.arange(m), n - 1) for m, n in zip((channels, *largest), (channels, *size))]
    return np.ravel_multi_index(np.ix_(*axes), (channels, *size)).ravel().astype(np.int32)


@lru_cache(maxsize=512)
def _splines(shape: tuple[int, ...], size: tuple[int, ...], max_knots: int) -> np.ndarray:
    """The matrices of all axes, one upon the other, (Z + Y + X, most)."""
    matrices = [spline_matrix_on_host(n, k - 2) for n, k in zip(shape, size)]
    return np.concatenate([np.pad(matrix, ((0, 0), (0, max_knots - matrix.shape[1]))) for matrix in matrices])


def knots(shape: Sequence[int], scale: float) -> tuple[int, ...]:
    """How many knots along each axis smooth noise has."""
    return tuple(max(2, round(n / scale) + 1) + 2 for n in shape)


def splined(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Cubic B-splines (C, Z, Y, X) of values at knots, (C, kz, ky, kx), from border to border."""
    return _product(values, [spline_matrix(n, k - 2, values.device) for n, k in zip(shape, values.shape[1:])])


def splined_at(
    values: Sequence[torch.Tensor], places: Sequence[npt.NDArray[np.float32]]
) -> list[torch.Tensor]:
    """The same of several values at places along each axis, from 0 at one border to 1 at the other."""
    counts = [len(at) for at in places]
    last = np.concatenate([np.repeat(np.array(v.shape[1:], np.float32) - 3, counts) for v in values])
    weights = _weights(np.tile(np.concatenate(places), len(values)) * last, last + 1)
    parts = onto(values[0].device, weights).split(counts * len(values))
    every = iter(parts)
    return [_product(v, [next(every)[:, :k] for k in v.shape[1:]]) for v in values]


def _product(values: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """One small matrix per axis, (n, k) or of each sample (C, n, k): several times faster than general
    interpolation.
    """
    count = len(values)
    for matrix in matrices:  # each takes the first axis left and puts it last
        across = values.reshape(count, matrix.shape[-1], -1).mT
        values = torch.bmm(across, matrix.mT.expand(count, -1, -1))
    return values.view(count, *(matrix.shape[-2] for matrix in matrices))


@lru_cache(maxsize=512)
def spline_matrix(n: int, knots: int, device: torch.device = _HOST) -> torch.Tensor:
    return onto(device, spline_matrix_on_host(n, knots))


@lru_cache(maxsize=512)
def spline_matrix_on_host(n: int, knots: int) -> np.ndarray:
    return _weights(np.linspace(0, knots - 1, n), np.full(n, knots)).astype(np.float32)


def _weights(at: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Values (n, most knots + 2) of the cubic B-splines at places (n,) from 0 to knots (n,) - 1, scaled so
    that normal knots give a deviation near 1.
    """
    at = at.clip(max=(knots - 1 - 1e-4).astype(at.dtype))
    # Four at a place are not 0.
    near_it = at.astype(np.int64)[:, None] + np.arange(4)
    distance = np.abs(at[:, None] + 1 - near_it.astype(np.float32))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clip(0) ** 3 / 6
    weights = np.zeros((len(at), int(knots.max()) + 2), at.dtype)
    weights[np.arange(len(at))[:, None], near_it] = np.where(distance < 1, near, far) * 1.44
    return weights
