"""MIND-SSC against its definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from regkit.errors import RegkitError
from regkit.features import _ssc_pairs, feature_parts, mind_ssc


def _naive(image: np.ndarray, radius: int, dilation: int) -> np.ndarray:
    """The definition, voxel by voxel in float64, the image continued by its border values."""
    pairs = _ssc_pairs()
    shape = image.shape

    def at(point: np.ndarray) -> float:
        return float(image[tuple(np.clip(point, 0, np.array(shape) - 1))])

    box = [np.array(s) for s in product(range(-radius, radius + 1), repeat=3)]
    distance = np.empty((len(pairs), *shape))
    for k, (a, b) in enumerate(pairs):
        for x in np.ndindex(shape):
            terms = [
                (at(x + s + dilation * np.array(a)) - at(x + s + dilation * np.array(b))) ** 2 for s in box
            ]
            distance[(k, *x)] = np.mean(terms)
    distance -= distance.min(0)
    variance = distance.mean(0)
    variance = np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean())
    return np.exp(-distance / variance)


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1)])
def test_mind_is_its_definition(rng: np.random.Generator, radius: int, dilation: int) -> None:
    image = rng.random((6, 7, 5))
    found = mind_ssc(torch.from_numpy(image), radius, dilation)
    np.testing.assert_allclose(found.numpy(), _naive(image, radius, dilation), atol=1e-10)


def test_the_scale_is_held_where_there_is_hardly_any_detail(rng: np.random.Generator) -> None:
    """The faint half of the image is judged by a thousandth of the mean variance, not by its own."""
    image = rng.random((6, 9, 7))
    image[:, :5] *= 1e-3
    found = mind_ssc(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found, _naive(image, 1, 2), atol=1e-10)
    assert found[:, :, 0].min() > 0.9


def test_the_twelve_pairs_are_face_neighbours_at_right_angles() -> None:
    pairs = _ssc_pairs()
    assert len(pairs) == len(set(pairs)) == 12
    for a, b in pairs:
        assert sum(map(abs, a)) == sum(map(abs, b)) == 1
        assert sum((i - j) ** 2 for i, j in zip(a, b, strict=True)) == 2


def test_mind_ignores_a_linear_change_of_intensity(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.random((9, 8, 10)))
    torch.testing.assert_close(mind_ssc(5 - 3 * image), mind_ssc(image))


def test_mind_of_a_constant_image_is_finite() -> None:
    assert torch.equal(mind_ssc(torch.zeros(5, 5, 5)), torch.ones(12, 5, 5, 5))


def test_unknown_features_are_named_with_those_there_are() -> None:
    with pytest.raises(RegkitError, match=r"no features named 'sift'.*mind, network, network\+mind"):
        feature_parts("sift")
