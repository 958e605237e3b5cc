"""MIND-SSC against its definition, and how features of several kinds count together."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from regkit.core.choices import FEATURE_SETS
from regkit.core.errors import RegkitError
from regkit.features.maps import (
    MIND,
    Part,
    _ssc_pairs,
    feature_maps,
    feature_parts,
    mind_ssc,
    parts_for,
)
from regkit.io.provenance import sha256
from regkit.ops.filters import pool


def _naive(image: np.ndarray, radius: int, dilation: int) -> np.ndarray:
    """The definition, voxel by voxel in float64, the image continued by its border values."""
    pairs = _ssc_pairs()
    shape, reach = image.shape, radius + dilation
    continued = np.pad(image, reach, mode="edge")

    def at(voxel: tuple[int, ...], step: tuple[int, ...], side: tuple[int, ...]) -> float:
        return float(continued[tuple(reach + v + s + dilation * n for v, s, n in zip(voxel, step, side))])

    box = list(product(range(-radius, radius + 1), repeat=3))
    distance = np.empty((len(pairs), *shape))
    for k, (a, b) in enumerate(pairs):
        for x in np.ndindex(shape):
            distance[(k, *x)] = sum((at(x, s, a) - at(x, s, b)) ** 2 for s in box) / len(box)
    distance -= distance.min(0)
    variance = distance.mean(0)
    variance = np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean())
    return np.exp(-distance / variance)


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1)])
def test_mind_is_its_definition(rng: np.random.Generator, radius: int, dilation: int) -> None:
    image = rng.random((5, 6, 4))
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


def test_the_parts_of_every_name(random_weights: Path) -> None:
    found = {name: feature_parts(name, random_weights) for name in FEATURE_SETS if name != "mind"}
    assert [part.stride for part in found["network"][1]] == [2]
    assert [part.stride for part in found["network+mind"][1]] == [2, 2, 1]
    for name, _, record in found.values():
        assert name in found
        assert record == {
            "file": random_weights.name,
            "sha256": sha256(random_weights),
            "provenance": {"data": "none", "channels": '[["features", 8, "unit", 1.0]]'},
        }
    assert feature_parts("mind") == ("mind", (MIND,), None)
    assert feature_parts(weights=random_weights)[0] == feature_parts()[0] == "network+mind"


def test_features_and_weights_that_do_not_fit(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegkitError, match="'mind' use no weights"):
        feature_parts("mind", random_weights)
    monkeypatch.setattr("regkit.features.weights._MODELS", (Path("nowhere"),))
    for name in ("network", "network+mind"):
        with pytest.raises(RegkitError, match="missing from this installation"):
            feature_parts(name)


def test_mind_alone_is_pooled_and_no_more(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.random((8, 12, 16)))
    weight = torch.from_numpy(rng.integers(0, 2, (1, 8, 12, 16)).astype(np.float64))
    maps, channels = feature_maps(image, weight, 1.0, [MIND], (4, 2))
    assert channels == (12,)
    for stride, found in maps.items():
        values, share = pool(mind_ssc(image), weight, stride)
        torch.testing.assert_close(found.values, values)
        torch.testing.assert_close(found.weight, share)


def _levels(image: torch.Tensor, spacing: float = 1.0) -> torch.Tensor:
    """Two channels of full resolution."""
    return torch.stack([image, image.square()])


def _cells(image: torch.Tensor, spacing: float = 1.0) -> torch.Tensor:
    """Five channels of half the resolution."""
    return torch.stack([3 * k * image[::2, ::2, ::2] for k in range(1, 6)])


def test_a_combination_counts_the_weighted_sum_of_its_parts(rng: np.random.Generator) -> None:
    """The mean over all channels, which the solver forms, is the sum of the parts' own means, weighted."""
    parts = [Part(_levels, 1, 1.0), Part(_cells, 2, 0.25)]
    images = torch.from_numpy(rng.random((2, 8, 12, 16)))
    weight = torch.from_numpy(rng.integers(0, 2, (1, 8, 12, 16)).astype(np.float64))

    def difference(*chosen: Part) -> dict[int, torch.Tensor]:
        one, two = (feature_maps(image, weight, 1.0, chosen, (4, 2))[0] for image in images)
        assert all(torch.equal(one[stride].weight, two[stride].weight) for stride in one)
        return {stride: (one[stride].values - two[stride].values).square().mean(0) for stride in one}

    both, first, second = difference(*parts), difference(parts[0]), difference(Part(_cells, 2))
    for stride in (4, 2):
        torch.testing.assert_close(both[stride], first[stride] + 0.25 * second[stride])
        # Each part is the weighted mean over the cell of its own extractor.
        own = torch.nn.functional.avg_pool3d(weight, 2)
        values, _ = pool(_cells(images[0]), own, stride // 2)
        found = feature_maps(images[0], weight, 1.0, [parts[1]], (stride,))[0][stride].values
        torch.testing.assert_close(found, 0.5 * values)


def test_a_part_is_asked_of_voxels_that_it_knows() -> None:
    """And where no part knows them, all are."""
    always, coarse = Part(_levels), Part(_cells, 2, finest=1.4)
    assert parts_for(1.4, (coarse, always)) == (coarse, always)
    assert parts_for(1.39, (coarse, always)) == (always,)
    assert parts_for(0.5, (coarse,)) == (coarse,)
    assert [part.finest for part in feature_parts("network+mind")[1]] == [pytest.approx(1.4), 0, 0]


def test_weights_that_tell_no_spacing_are_always_asked(random_weights: Path) -> None:
    assert [part.finest for part in feature_parts("network+mind", random_weights)[1]] == [0, 0, 0]
