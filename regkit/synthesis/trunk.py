"""Trunks as anatomies to learn from: of random build and pose, their tissues and structures by number.

The structures lie where they do in people, so that a network can learn to know them by their place and their
neighbours, whatever the contrast. Drawing needs scipy.
"""

from __future__ import annotations

import numpy as np

from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.contrasts import COUCH, NUMBERS, anatomy_of
from regkit.synthesis.noise import Rng
from regkit.synthesis.pose import posed, sides
from regkit.synthesis.procedural_trunk import draw_tissues

_EXTENT = np.array([380.0, 280.0, 350.0])  # mm, along x, y and z
_MIDDLE = np.array([0.0, 0.0, 12.0])  # anatomical mm
_INNER = 0.7  # share of the way from the middle to the border that boxes may lie off it: air lies there


def draw_trunk(rng: Rng, spacing: float = 2.5) -> Anatomy:
    """A trunk, axes towards the patient's head, back and left (Z, Y, X), or a box out of it.

    Args:
        rng: on the CPU.
        spacing: of the voxels, mm; where they are too small to hold the whole trunk, a box is drawn.
    """
    random = rng.scalars
    fatness = min(float(np.exp(random.normal(0.1, 0.45))), 2.2)
    shape = sides(_EXTENT.tolist(), spacing)
    room = np.maximum(_EXTENT - spacing * np.array(shape[::-1]), 0) / 2
    middle = _MIDDLE + _INNER * random.uniform(-1, 1, 3) * room if room.any() else _MIDDLE
    # The fat are of greater girth, above all from front to back.
    coordinates = posed(rng, shape, spacing, middle, 8, (fatness**0.12, fatness**0.22, 1))
    tissues, structures = draw_tissues(
        coordinates,
        spacing,
        random,
        play=random.uniform(2, 13),
        slack=random.uniform(0, 0.2) + 0.2 * max(float(np.log(fatness)), 0),
        fatness=fatness,
    )
    if rng.chance(0.5):
        _lay_arms(coordinates, tissues, structures, rng)
    if rng.chance(0.5):
        _lay_on_couch(tissues, structures, spacing, rng)
    return anatomy_of(tissues, structures, spacing)


def _lay_arms(coordinates: np.ndarray, tissues: np.ndarray, structures: np.ndarray, rng: Rng) -> None:
    """Arms beside the trunk, of no structure."""
    x, y, _ = coordinates
    for side in (-1, 1):
        centre = side * rng.uniform(168, 182), rng.uniform(-20, 40)
        radius = rng.uniform(22, 34)
        away = np.hypot(x - centre[0], 0.85 * (y - centre[1]))
        for share, tissue in (
            (1.0, "skin"),
            (0.92, "fat"),
            (0.75, "muscle"),
            (0.3, "compact bone"),
            (0.18, "marrow"),
        ):
            tissues[(away < share * radius) & (structures == 0)] = NUMBERS[tissue]


def _lay_on_couch(tissues: np.ndarray, structures: np.ndarray, spacing: float, rng: Rng) -> None:
    """A thin, bent plate under the back, level in the image; of no structure."""
    occupied = np.flatnonzero((structures > 0).any(axis=(0, 2)))
    behind = occupied[-1] * spacing if len(occupied) else 0.0
    _, rows, columns = structures.shape
    across = spacing * (np.arange(columns) - columns / 2) - rng.uniform(-38, 38)
    top = behind + rng.uniform(0, 5) - rng.uniform(0, 0.0016) * across**2
    back = spacing * np.arange(rows)[:, None]
    plate = (back >= top) & (back < top + rng.uniform(2.5, 7.5)) & (np.abs(across) < rng.uniform(150, 212))
    tissues[np.broadcast_to(plate, structures.shape) & (structures == 0)] = COUCH
