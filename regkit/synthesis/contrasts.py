"""Contrasts of anatomies whose tissues are known: as of a CT, of an MR, or a random one of each tissue."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch

from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.appearance import Palette, random_palette
from regkit.synthesis.noise import Rng
from regkit.synthesis.tissues import TISSUES, intensities

NUMBERS = {name: number for number, name in enumerate(TISSUES)}
"""Of the tissues, by name."""
COUCH = len(TISSUES)
"""What a patient lies on: no tissue."""
_LIKE_AIR = ("gas", "lung")
_SPREAD = {"t2": 0.3, "t1": 0.15}  # standard deviation of the logarithm of a tissue's intensity in MR
_FATTY = {"fat": 1.0, "marrow": 0.7, "skin": 0.4}  # share that fat suppression takes
_FLUIDS = ("csf", "fluid", "urine", "bile", "vitreous body")
_BLOOD = ("artery", "vein", "portal vein", "chamber")
# Those that take contrast medium, and what they have without it, HU.
_ENHANCED = dict.fromkeys(_BLOOD, 42) | {
    "heart": 42, "renal cortex": 32, "renal medulla": 32, "spleen": 48, "liver": 56, "pancreas": 42,
}  # fmt: skip
# Share of the signal of its voxels that fat gives, which the Dixon method parts from that of water.
_FAT_SHARE = {
    "air": (0, 0), "lung": (0, 0.05), "gas": (0, 0.03), "fat": (0.85, 1), "skin": (0.1, 0.5),
    "marrow": (0.3, 0.7), "rib": (0.15, 0.5), "liver": (0.03, 0.3), "pancreas": (0.05, 0.4),
    "muscle": (0.02, 0.15), "stool": (0.02, 0.2), "csf": (0, 0.03), "grey matter": (0, 0.05),
    "deep grey matter": (0, 0.05), "white matter": (0, 0.08), "vitreous body": (0, 0.03),
}  # fmt: skip
_FAT_SHARES = np.array([_FAT_SHARE.get(name, (0.01, 0.12)) for name in NUMBERS]).T


def anatomy_of(tissues: npt.NDArray[np.uint8], structures: npt.NDArray[np.uint8], spacing: float) -> Anatomy:
    """An anatomy with a label for each tissue of each structure.

    Args:
        tissues: (Z, Y, X), numbers in :data:`regkit.synthesis.tissues.TISSUES`, or :data:`COUCH`.
        structures: (Z, Y, X), numbers in :data:`regkit.synthesis.structures.STRUCTURES`, or 0.
        spacing: of the voxels, mm; axes are towards the patient's head, back and left.
    """
    codes = tissues.astype(np.uint16) << 8 | structures
    present = np.flatnonzero(np.bincount(codes.ravel(), minlength=2**16))
    label_of = np.zeros(2**16, np.uint8)
    label_of[present] = np.arange(len(present))
    kinds = np.zeros(256, np.int64)
    numbers = np.zeros(256, np.uint8)
    kinds[: len(present)], numbers[: len(present)] = present >> 8, present & 255
    palette = partial(_palette, kinds, len(present))
    return Anatomy(torch.from_numpy(label_of[codes]), None, numbers, palette, spacing)


@lru_cache
def _intensities(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of tissues, their intensities in a kind of image, and those without contrast medium."""
    values = intensities(kind)
    lowest = [float(_ENHANCED.get(name, mean)) for name, mean in values.items()]
    return np.array([NUMBERS[name] for name in values]), np.array(list(values.values())), np.array(lowest)


def _palette(kinds: np.ndarray, count: int, rng: Rng) -> Palette:
    """Mean and deviation of every label: as of a CT or an MR, or random ones of each tissue.

    Args:
        kinds: (256,) tissue of each label, of which ``count`` are in use.
    """
    random = rng.scalars
    means, deviations, _ = random_palette(rng)
    tissue = means[: COUCH + 1].copy()
    kind = ("ct", "t2", "t1", "fat", "random")[rng.one_of(5, (0.35, 0.1, 0.2, 0.1, 0.25))]
    if kind == "ct":
        low, high = random.uniform(-600, -120), random.uniform(200, 500)
        medium = 0.0 if rng.chance(0.4) else rng.uniform(0, 1.6)  # contrast medium: none, little or much
        numbers, highest, lowest = _intensities("ct")
        units = lowest + medium * (highest - lowest)
        soft = np.flatnonzero((units > -200) & (units < 350))
        units[soft] += random.normal(0, 14, len(soft))
        tissue[numbers] = (units - low) / (high - low)
        tissue[COUCH] = random.uniform(0, 0.8)
    elif kind in _SPREAD:
        numbers, signals, _ = _intensities(kind)
        tissue[numbers] = signals / 900 * np.exp(random.normal(0, _SPREAD[kind], len(signals)))
        if rng.chance(0.3):  # fat suppressed
            for name, share in _FATTY.items():
                tissue[NUMBERS[name]] *= 1 - share * random.uniform(0.7, 1)
        if kind == "t2" and rng.chance(0.25):  # fluid suppressed
            for name in _FLUIDS:
                tissue[NUMBERS[name]] *= random.uniform(0, 0.15)
        if rng.chance(0.2):  # a gradient echo: the beams of spongy bone take the signal of its marrow
            for name in ("marrow", "rib"):
                tissue[NUMBERS[name]] *= random.uniform(0.02, 0.4)
        if kind == "t1" and rng.chance(0.3):
            medium = random.uniform(0.1, 1)
            for name in _ENHANCED:
                tissue[NUMBERS[name]] += medium * (0.8 if name in _BLOOD else random.uniform(0.1, 0.4))
        tissue /= max(1.0, float(tissue[:COUCH].max()))
        tissue[COUCH] = 0
    elif kind == "fat":
        tissue[list(NUMBERS.values())] = random.uniform(*_FAT_SHARES)
        tissue[COUCH] = 0
    elif rng.chance(0.85):
        # Air gives no signal, or the least; as a rule gas in the bowel is air.
        tissue[0] = (0.0, 0.0, 0.0, tissue.max())[rng.one_of(4)]
        for name in _LIKE_AIR:
            if rng.chance(0.8):
                tissue[NUMBERS[name]] = np.clip(tissue[0] + random.normal(0, 0.03), 0, 1)
    if kind != "random":
        deviations = np.full(256, random.uniform(0, 0.04))
    if kind != "ct":
        tissue = tissue.clip(0, 1)
    means[:count] = tissue[kinds[:count]] + random.normal(0, 0.006, count)
    return Palette(means, deviations, window=kind == "ct")
