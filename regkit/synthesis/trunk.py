"""Trunks as anatomies to learn from: of random build and pose, their tissues and structures by number.

The structures lie where they do in people, so that a network can learn to know them by their place and their
neighbours, whatever the contrast. Drawing needs scipy.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch

from regkit.anatomy import TISSUES, draw_tissues, intensities
from regkit.synthesis.anatomies import Anatomy
from regkit.synthesis.appearance import Palette, random_palette
from regkit.synthesis.noise import Dice, random_turn, smooth_noise

_SPACING = 2.5  # mm
_SHAPE = (140, 112, 152)
_MIDDLE = (0.0, 0.0, 12.0)  # anatomical mm
_NUMBERS = {name: number for number, name in enumerate(TISSUES)}
_COUCH = len(TISSUES)
_LIKE_AIR = ("gas", "lung")
_SPREAD = {"t2": 0.3, "t1": 0.15}  # standard deviation of the logarithm of a tissue's intensity in MR
_FATTY = {"fat": 1.0, "marrow": 0.7, "skin": 0.4}  # share that fat suppression takes
_BLOOD = ("artery", "vein", "portal vein", "chamber")
# Those that take contrast medium, and what they have without it, HU.
_ENHANCED = dict.fromkeys(_BLOOD, 42) | {
    "heart": 42, "renal cortex": 32, "renal medulla": 32, "spleen": 48, "liver": 56, "pancreas": 42,
}  # fmt: skip
# Share of the signal of its voxels that fat gives, which the Dixon method parts from that of water.
_FAT_SHARE = {
    "air": (0, 0), "lung": (0, 0.05), "gas": (0, 0.03), "fat": (0.85, 1), "skin": (0.1, 0.5),
    "marrow": (0.3, 0.7), "rib": (0.15, 0.5), "liver": (0.03, 0.3), "pancreas": (0.05, 0.4),
    "muscle": (0.02, 0.15), "stool": (0.02, 0.2),
}  # fmt: skip
_FAT_SHARES = np.array([_FAT_SHARE.get(name, (0.01, 0.12)) for name in _NUMBERS]).T


def draw_trunk(dice: Dice) -> Anatomy:
    """A trunk on voxels of 2.5 mm, axes towards the patient's head, back and left (Z, Y, X).

    Args:
        dice: on the CPU.
    """
    random = dice.scalars
    fatness = min(float(np.exp(random.normal(0.1, 0.45))), 2.2)
    coordinates = _pose(dice, fatness)
    tissues, structures = draw_tissues(
        coordinates,
        _SPACING,
        random,
        play=random.uniform(2, 13),
        slack=random.uniform(0, 0.2) + 0.2 * max(float(np.log(fatness)), 0),
        fatness=fatness,
    )
    if dice.chance(0.5):
        _lay_arms(coordinates, tissues, structures, dice)
    if dice.chance(0.5):
        _lay_on_couch(tissues, structures, dice)
    codes = tissues.astype(np.uint16) << 8 | structures
    found = np.flatnonzero(np.bincount(codes.ravel(), minlength=2**16))
    label_of = np.zeros(2**16, np.uint8)
    label_of[found] = np.arange(len(found))
    kinds = np.zeros(256, np.int64)
    numbers = np.zeros(256, np.uint8)
    kinds[: len(found)], numbers[: len(found)] = found >> 8, found & 255
    volume = torch.from_numpy(label_of[codes])
    palette = partial(_palette, kinds, len(found))
    return Anatomy(volume, None, numbers, palette, _SPACING)


def _pose(dice: Dice, fatness: float) -> np.ndarray:
    """Anatomical coordinates (3, Z, Y, X), mm, of the voxels: turned, stretched and bent.

    The fat are of greater girth, above all from front to back.
    """
    random = dice.scalars
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(_SPACING) for n in _SHAPE]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])
    turn = random_turn(dice, 8).astype(np.float32)
    size = np.exp(random.normal(0, 0.06) + random.normal(0, 0.05, 3)).astype(np.float32)
    size /= np.array([fatness**0.12, fatness**0.22, 1], np.float32)
    points = np.einsum("ij,jzyx->izyx", (turn * size).astype(np.float32), points)
    bend = smooth_noise(dice, 3, _SHAPE, random.uniform(90, 200) / _SPACING) * random.uniform(2, 12)
    bend += smooth_noise(dice, 3, _SHAPE, random.uniform(35, 60) / _SPACING) * random.uniform(0, 2.5)
    return points + bend.numpy() + np.array(_MIDDLE, np.float32).reshape(3, 1, 1, 1)


def _lay_arms(coordinates: np.ndarray, tissues: np.ndarray, structures: np.ndarray, dice: Dice) -> None:
    """Arms beside the trunk, of no structure."""
    x, y, _ = coordinates
    for side in (-1, 1):
        centre = side * dice.uniform(168, 182), dice.uniform(-20, 40)
        radius = dice.uniform(22, 34)
        away = np.hypot(x - centre[0], 0.85 * (y - centre[1]))
        for share, tissue in (
            (1.0, "skin"),
            (0.92, "fat"),
            (0.75, "muscle"),
            (0.3, "compact bone"),
            (0.18, "marrow"),
        ):
            tissues[(away < share * radius) & (structures == 0)] = _NUMBERS[tissue]


def _lay_on_couch(tissues: np.ndarray, structures: np.ndarray, dice: Dice) -> None:
    """A thin, bent plate under the back, level in the image; of no structure."""
    behind = int(np.flatnonzero((structures > 0).any(axis=(0, 2)))[-1])
    across = np.arange(_SHAPE[2]) - dice.uniform(0.4, 0.6) * _SHAPE[2]
    top = behind + dice.uniform(0, 2) - dice.uniform(0, 0.004) * across**2
    rows = np.arange(_SHAPE[1])[:, None]
    plate = (rows >= top) & (rows < top + dice.uniform(1, 3)) & (np.abs(across) < dice.uniform(60, 85))
    tissues[np.broadcast_to(plate, _SHAPE) & (structures == 0)] = _COUCH


@lru_cache
def _intensities(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of tissues, their intensities in a kind of image, and those without contrast medium."""
    found = intensities(kind)
    least = [float(_ENHANCED.get(name, mean)) for name, mean in found.items()]
    return np.array([_NUMBERS[name] for name in found]), np.array(list(found.values())), np.array(least)


def _palette(kinds: np.ndarray, count: int, dice: Dice) -> Palette:
    """Mean and deviation of every label: as of a CT or an MR, or random ones of each tissue.

    Args:
        kinds: (256,) tissue of each label, of which ``count`` are in use.
    """
    random = dice.scalars
    means, deviations, _ = random_palette(dice)
    tissue = means[: _COUCH + 1].copy()
    kind = ("ct", "t2", "t1", "fat", "random")[dice.one_of(5, (0.35, 0.1, 0.2, 0.1, 0.25))]
    if kind == "ct":
        low, high = random.uniform(-600, -120), random.uniform(200, 500)
        medium = 0.0 if dice.chance(0.4) else dice.uniform(0, 1.6)  # contrast medium: none, little or much
        numbers, most, least = _intensities("ct")
        units = least + medium * (most - least)
        soft = np.flatnonzero((units > -200) & (units < 350))
        units[soft] += random.normal(0, 14, len(soft))
        tissue[numbers] = (units - low) / (high - low)
        tissue[_COUCH] = random.uniform(0, 0.8)
    elif kind in _SPREAD:
        numbers, signals, _ = _intensities(kind)
        tissue[numbers] = signals / 900 * np.exp(random.normal(0, _SPREAD[kind], len(signals)))
        if dice.chance(0.3):  # fat suppressed
            for name, share in _FATTY.items():
                tissue[_NUMBERS[name]] *= 1 - share * random.uniform(0.7, 1)
        if kind == "t1" and dice.chance(0.3):
            medium = random.uniform(0.1, 1)
            for name in _ENHANCED:
                tissue[_NUMBERS[name]] += medium * (0.8 if name in _BLOOD else random.uniform(0.1, 0.4))
        tissue /= max(1.0, float(tissue[:_COUCH].max()))
        tissue[_COUCH] = 0
    elif kind == "fat":
        tissue[list(_NUMBERS.values())] = random.uniform(*_FAT_SHARES)
        tissue[_COUCH] = 0
    elif dice.chance(0.85):
        # Air gives no signal, or the least; as a rule gas in the bowel is air.
        tissue[0] = (0.0, 0.0, 0.0, tissue.max())[dice.one_of(4)]
        for name in _LIKE_AIR:
            if dice.chance(0.8):
                tissue[_NUMBERS[name]] = np.clip(tissue[0] + random.normal(0, 0.03), 0, 1)
    if kind != "random":
        deviations = np.full(256, random.uniform(0, 0.04))
    if kind != "ct":
        tissue = tissue.clip(0, 1)
    means[:count] = tissue[kinds[:count]] + random.normal(0, 0.006, count)
    return Palette(means, deviations, window=kind == "ct")
