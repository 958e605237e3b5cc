"""Intensities of a volume brought to [0, 1] before features are taken from it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Soft tissue and bone, for CT against another modality; between two CTs the lungs count as well. What lies
# below is air, but for emphysema, and its noise would be matched.
CT_WINDOW = (-450.0, 450.0)
CT_WINDOW_BOTH = (-950.0, 450.0)
_PERCENTILES = (0.5, 99.5)
_SAMPLE_STEP = 61  # of so many voxels one tells the range
_MARGIN = 1e-3  # of the range above the minimum: what is taken for it


def is_ct(array: np.ndarray) -> bool:
    """Whether the values look like Hounsfield units.

    HU volumes hold air or lung (-1000 to -500) together with bone or contrast above 100, and no
    scanner writes less than -3100. MR, PET and z-scored images do not reach both ends. A crop of a CT
    without any air is not told from a signed MR; percentiles serve it well enough.
    """
    low, high = np.percentile(array[::2, ::2, ::2], (0.5, 99.9))
    return bool(-3100 <= low <= -500 and 100 <= high <= 10000)


def default_ct_window(ct: Iterable[bool]) -> tuple[float, float]:
    """The window, in HU, of those images that are CT, among images that are compared with one another."""
    return CT_WINDOW_BOTH if all(ct) else CT_WINDOW


def window_of(array: np.ndarray, ct_window: tuple[float, float] | None) -> tuple[float, float]:
    """The intensities that become 0 and 1: the CT window if there is one, else robust percentiles."""
    if ct_window is not None:
        return ct_window
    # Zero-filled margins (skull-stripped, rotated or masked volumes) would drag the percentiles down. One
    # with a trace of noise is a margin as well, or that trace would change the window.
    lowest, highest = float(array.min()), float(array.max())
    near = _MARGIN * (float(np.percentile(array.reshape(-1)[::_SAMPLE_STEP], _PERCENTILES[1])) - lowest)
    inside = array[array > lowest + near]
    low, high = np.percentile(inside if inside.size else array, _PERCENTILES)
    if lowest >= -near:
        low = min(low, lowest)
    return (float(low), float(high)) if high > low else (lowest, highest)


def normalise(array: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Clip to the window and scale it to [0, 1], float32."""
    low, high = window
    scaled = np.clip(array, low, high, dtype=np.result_type(array, np.float32))
    scaled -= low
    scaled /= high - low
    return scaled.astype(np.float32, copy=False)
