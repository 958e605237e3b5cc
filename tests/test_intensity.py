"""What is taken for CT, and what becomes of intensities."""

from __future__ import annotations

import numpy as np
import pytest

from regkit.core.intensity import CT_WINDOW, is_ct, normalise, window_of


def _ct(rng: np.random.Generator, air: float = -1000) -> np.ndarray:
    array = rng.normal(40, 20, (20, 20, 20))
    array[:8] = air
    array[10:12] = 700
    array[12:14] = -90
    return array.astype(np.float32)


@pytest.mark.parametrize("padding", [-1000, -1024, -2048, -3024])
def test_ct_is_recognised_whatever_fills_its_margin(rng: np.random.Generator, padding: float) -> None:
    assert is_ct(_ct(rng, padding))


def test_others_are_not_taken_for_ct(rng: np.random.Generator) -> None:
    mr = np.abs(rng.normal(300, 120, (20, 20, 20)))
    for array in (
        mr,
        mr - mr.mean(),
        (mr - mr.mean()) / mr.std(),
        mr / 100,
        rng.integers(-4096, 4096, (20, 20, 20)),
    ):
        assert not is_ct(np.asarray(array, dtype=np.float32))


def test_normalising_clips_to_the_window() -> None:
    found = normalise(np.array([-2000.0, -450, 0, 450, 3000]), CT_WINDOW)
    np.testing.assert_allclose(found, [0, 0, 0.5, 1, 1])
    assert found.dtype == np.float32


def test_outliers_and_empty_margins_do_not_set_the_window(rng: np.random.Generator) -> None:
    array = rng.uniform(100, 200, (30, 30, 30)).astype(np.float32)
    array[:20] = 0
    array[25, 25, 25] = 1e6
    low, high = window_of(array, None)
    assert low == 0
    assert 190 < high < 201


def test_a_small_object_in_an_empty_image_sets_its_own_window(rng: np.random.Generator) -> None:
    array = np.zeros((40, 40, 40), dtype=np.float32)
    array[10:19, 10:19, 10:19] = rng.uniform(100, 200, (9, 9, 9))  # 1 % of the volume
    low, high = window_of(array, None)
    assert low == 0
    assert high > 190


def test_a_binary_image_keeps_both_its_values() -> None:
    array = np.zeros((10, 10, 10), dtype=np.float32)
    array[5:] = 7
    assert window_of(array, None) == (0, 7)


def test_a_trace_of_noise_does_not_change_the_window(rng: np.random.Generator) -> None:
    array = np.zeros((20, 24, 28), dtype=np.float32)
    array[5:15, 6:18, 7:21] = rng.gamma(4, 50, (10, 12, 14))
    noisy = array + 1e-6 * array.std() * rng.standard_normal(array.shape).astype(np.float32)
    np.testing.assert_allclose(window_of(noisy, None), window_of(array, None), atol=1e-3)
