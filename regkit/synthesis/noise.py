"""Random numbers of a sample, and smooth noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


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


def smooth_noise(dice: Dice, channels: int, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Noise (channels, Z, Y, X) that varies over some ``scale`` voxels: a cubic B-spline of normal knots.

    One small matrix per axis: several times faster than general interpolation.
    """
    knots = [max(2, round(n / scale) + 1) for n in shape]
    noise = dice.normal(channels, *(k + 2 for k in knots))
    for n, k in zip(shape, knots):  # each product takes the first axis left and puts it last
        noise = torch.tensordot(noise, _spline(n, k).to(noise), dims=([1], [1]))
    return noise


@lru_cache(maxsize=512)
def _spline(n: int, knots: int) -> torch.Tensor:
    """Values (n, knots + 2) of the cubic B-splines, scaled so that normal knots give a deviation near 1."""
    at = torch.linspace(0, knots - 1, n).clamp_max(knots - 1 - 1e-4)
    distance = (at[:, None] + 1 - torch.arange(knots + 2)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far) * 1.44
