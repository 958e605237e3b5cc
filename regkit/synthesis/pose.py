"""Poses and builds: where in a body the voxels of an anatomy lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from regkit.synthesis.noise import Rng, random_turn, smooth_noise

MAX_SIDE = 160
"""Voxels along a side of an anatomy; of what is larger a box is taken."""


def sides(extent: Sequence[float], spacing: float) -> tuple[int, int, int]:
    """Voxels (Z, Y, X) of an anatomy of an extent (x, y, z), mm: at most :data:`MAX_SIDE` along a side."""
    x, y, z = (min(MAX_SIDE, int(np.ceil(length / spacing))) for length in extent)
    return z, y, x


def posed(
    rng: Rng,
    shape: tuple[int, int, int],
    spacing: float,
    middle: npt.ArrayLike,
    turn: float,
    girth: npt.ArrayLike = (1.0, 1.0, 1.0),
) -> npt.NDArray[np.float32]:
    """Coordinates (3, Z, Y, X), mm, in a body of the voxels of an anatomy: turned, stretched and bent.

    Args:
        rng: on the CPU.
        middle: (x, y, z) of the middle of the anatomy in the body, mm.
        turn: by at most so many degrees.
        girth: the body is so many times as wide along x, y and z.
    """
    random = rng.scalars
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(spacing) for n in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])
    rotation = random_turn(rng, turn).astype(np.float32)
    size = np.exp(random.normal(0, 0.06) + random.normal(0, 0.05, 3)).astype(np.float32)
    size /= np.asarray(girth, np.float32)
    points = np.einsum("ij,jzyx->izyx", (rotation * size).astype(np.float32), points)
    bend = smooth_noise(rng, 3, shape, random.uniform(90, 200) / spacing) * random.uniform(2, 12)
    bend += smooth_noise(rng, 3, shape, random.uniform(35, 60) / spacing) * random.uniform(0, 2.5)
    points += bend.numpy()
    points += np.asarray(middle, np.float32).reshape(3, 1, 1, 1)
    return points
