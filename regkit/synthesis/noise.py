"""Random numbers of a sample, and smooth noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Dice:
    """What a sample draws from: scalars on the host, so that no device waits for them, and voxels there.

    Args:
        scalars: for decisions and parameters.
        voxels: for noise, on the device of the tensors it fills.
    """

    scalars: np.random.Generator
    voxels: torch.Generator

    @classmethod
    def of(cls, seed: int, *index: int, device: torch.device | str = "cpu") -> Dice:
        """The same dice for the same numbers, on any machine with the same kind of device.

        Zeros at the end do not count: what must differ is to differ in another place.
        """
        here, there = np.random.SeedSequence([seed, *index]).spawn(2)
        voxels = torch.Generator(device).manual_seed(int(there.generate_state(1, np.uint64)[0] >> 1))
        return cls(np.random.default_rng(here), voxels)

    @property
    def device(self) -> torch.device:
        return self.voxels.device

    def chance(self, probability: float) -> bool:
        return bool(self.scalars.random() < probability)

    def uniform(self, low: float, high: float) -> float:
        return float(self.scalars.uniform(low, high))

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal voxels."""
        return torch.randn(shape, generator=self.voxels, device=self.device)


def random_turn(dice: Dice, most: float, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """A rotation (3, 3) about any axis by up to ``most`` degrees."""
    vector = dice.scalars.standard_normal(3)
    a, b, c = (vector * np.radians(dice.uniform(0, most)) / np.linalg.norm(vector)).tolist()
    return torch.matrix_exp(torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=dtype)).numpy()


def normals(dice: Sequence[Dice], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers (V, *shape), those of each sample from its own dice."""
    drawn = torch.empty((len(dice), *shape), device=dice[0].device)
    for sample, of_it in zip(drawn, dice):
        sample.normal_(generator=of_it.voxels)
    return drawn


def onto(device: torch.device, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> torch.Tensor:
    """Numbers of the host on a device, which is not waited for."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype)).to(device, non_blocking=True)


def smooth_noise(dice: Dice, channels: int, shape: Sequence[int], scale: float) -> torch.Tensor:
    """Noise (channels, Z, Y, X) that varies over some ``scale`` voxels: a cubic B-spline of normal knots."""
    return splined(dice.normal(channels, *knots(shape, scale)), shape)


def knots(shape: Sequence[int], scale: float) -> tuple[int, ...]:
    """How many knots along each axis smooth noise has."""
    return tuple(max(2, round(n / scale) + 1) + 2 for n in shape)


def splined(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Cubic B-splines (C, Z, Y, X) of values at knots, (C, kz, ky, kx), from border to border."""
    return _product(values, [_spline(n, k - 2, values.device) for n, k in zip(shape, values.shape[1:])])


def splined_at(values: torch.Tensor, places: Sequence[npt.NDArray[np.float32]]) -> torch.Tensor:
    """The same at places along each axis, from 0 at one border to 1 at the other."""
    matrices = [_weights(at * (k - 3), k - 2) for at, k in zip(places, values.shape[1:])]
    return _product(values, [onto(values.device, matrix) for matrix in matrices])


def _product(values: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """One small matrix per axis: several times faster than general interpolation."""
    for matrix in matrices:  # each takes the first axis left and puts it last
        values = torch.tensordot(values, matrix, dims=([1], [1]))
    return values


@lru_cache(maxsize=512)
def _spline(n: int, knots: int, device: torch.device = _HOST) -> torch.Tensor:
    return onto(device, _weights(np.linspace(0, knots - 1, n), knots))


def _weights(at: np.ndarray, knots: int) -> np.ndarray:
    """Values (n, knots + 2) of the cubic B-splines at places (n,) from 0 to knots - 1, scaled so that normal
    knots give a deviation near 1.
    """
    distance = np.abs(at.clip(max=knots - 1 - 1e-4)[:, None] + 1 - np.arange(knots + 2, dtype=np.float32))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clip(0) ** 3 / 6
    return np.where(distance < 1, near, far) * 1.44
