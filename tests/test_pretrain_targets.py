"""Targets drawn from labels against plain loops and scipy's distances, and under mirroring."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from regkit.pretrain.targets import DISTANCE_CHANNELS, affinity, boundary_distance, distance, targets_of

OFFSETS = (1, 3)


def _labels(rng: np.random.Generator, shape: tuple[int, ...] = (8, 12, 16), count: int = 2) -> torch.Tensor:
    """Blobs of five labels."""
    noise = ndimage.gaussian_filter(rng.normal(size=(count, *shape)), (0, 1.5, 1.5, 1.5))
    levels = np.quantile(noise, [0.2, 0.4, 0.6, 0.8])
    return torch.from_numpy(np.digitize(noise, levels)).to(torch.uint8)


def _naive_affinity(labels: np.ndarray, offsets: tuple[int, ...], stride: int) -> np.ndarray:
    """The definition for one volume, cell by cell."""
    cells = tuple(n // stride for n in labels.shape)
    out = np.zeros((6 * len(offsets), *cells))
    corners = sorted({0, stride - 1})
    for k, (offset, axis, sign) in enumerate(product(offsets, range(3), (-1, 1))):
        for cell in np.ndindex(cells):
            total = 0.0
            for corner in corners:
                here = np.array(cell) * stride + corner
                there = here.copy()
                there[axis] += sign * offset
                outside = (there < 0).any() or (there >= labels.shape).any()
                total += np.nan if outside else float(labels[tuple(here)] == labels[tuple(there)])
            out[(k, *cell)] = total / len(corners)
    return out


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("offsets", [(1, 3), (2,), (5, 1, 20)])
def test_affinity_is_its_definition(rng: np.random.Generator, stride: int, offsets: tuple[int, ...]) -> None:
    labels = _labels(rng, (6, 8, 10))
    found = affinity(labels, offsets, stride)
    for volume, expected in zip(found, labels.numpy(), strict=True):
        np.testing.assert_array_equal(volume.numpy(), _naive_affinity(expected, offsets, stride))


def test_affinity_is_unknown_outside_alone(rng: np.random.Generator) -> None:
    found = affinity(_labels(rng), (3,), 2)
    outside = found[0].isnan()
    # Channels z-, z+, y-, y+, x-, x+; an offset of 3 voxels leaves from the outer two cells.
    for channel in range(6):
        axis, upper = divmod(channel, 2)
        expected = torch.zeros_like(outside[channel])
        n = expected.shape[axis]
        expected.narrow(axis, n - 2 if upper else 0, 2).fill_(True)
        assert torch.equal(outside[channel], expected)
    known = found[~found.isnan()]
    assert set(known.tolist()) == {0.0, 0.5, 1.0}


def test_label_0_is_a_label_like_others() -> None:
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    found = affinity(labels, (2,), 1)
    assert (found[~found.isnan()] == 1).all()
    assert affinity(torch.full_like(labels, 255), (2,), 1).nansum() == found.nansum()


def _naive_boundary(labels: np.ndarray) -> np.ndarray:
    """Distance to the nearest voxel with a face to another label, by scipy, plus half a voxel, at most 12."""
    beside = np.zeros(labels.shape, bool)
    for axis in range(3):
        a, b = (np.moveaxis(v, axis, 0) for v in (labels, beside))
        edge = a[1:] != a[:-1]
        b[1:] |= edge
        b[:-1] |= edge
    if not beside.any():
        return np.full(labels.shape, 12.0)
    return np.minimum(ndimage.distance_transform_edt(~beside) + 0.5, 12.0)


def test_the_boundary_distance_is_scipys(rng: np.random.Generator) -> None:
    sparse = np.zeros((3, 20, 30, 34), np.uint8)
    sparse[0, 4:7, 3:9, 2:4] = 3
    sparse[1, 10, 15, 17] = 9
    sparse[2, :, :, 29:] = 1
    for labels in (_labels(rng), torch.from_numpy(sparse), torch.zeros(1, 5, 6, 7, dtype=torch.uint8)):
        found = boundary_distance(labels)
        assert found.dtype == torch.float32
        for volume, expected in zip(found, labels.numpy(), strict=True):
            np.testing.assert_allclose(volume.numpy(), _naive_boundary(expected), rtol=1e-6)


def test_the_boundary_of_a_slab_is_where_it_is() -> None:
    labels = torch.zeros(1, 4, 5, 32, dtype=torch.uint8)
    labels[..., 8:] = 1
    expected = (torch.arange(32) + 0.5 - 8).abs().clamp_max(12).expand(1, 4, 5, 32)
    torch.testing.assert_close(boundary_distance(labels), expected)


def test_distance_channels_are_their_definition(rng: np.random.Generator) -> None:
    labels = _labels(rng)
    d = boundary_distance(labels).double()
    found = distance(labels, 1).double()
    assert found.shape == (2, DISTANCE_CHANNELS, *labels.shape[1:])
    torch.testing.assert_close(found[:, 0], torch.exp(-d / 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 1], torch.exp(-d / 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 2], d / 12, atol=1e-6, rtol=0)
    slopes = np.stack(np.gradient(d.numpy(), axis=(3, 2, 1)), axis=1)
    length = np.sqrt((slopes**2).sum(1, keepdims=True))
    expected = slopes / np.maximum(length, 1e-3) * np.exp(-d.numpy()[:, None] / 6)
    np.testing.assert_allclose(found[:, 3:].numpy(), expected, atol=1e-5)
    pooled = torch.nn.functional.avg_pool3d(found, 2)
    torch.testing.assert_close(distance(labels, 2).double(), pooled, atol=1e-5, rtol=0)


def test_the_direction_points_away_from_the_boundary() -> None:
    """Outwards outside a block and inwards inside, components (x, y, z), shorter further away."""
    labels = torch.zeros(1, 24, 24, 24, dtype=torch.uint8)
    labels[:, 8:16, 8:16, 8:16] = 1
    found = distance(labels, 1)[0]
    middle = (12, 12, 12)
    for component, axis in ((3, 2), (4, 1), (5, 0)):
        profile = found[component][tuple(slice(None) if a == axis else middle[a] for a in range(3))]
        assert (profile[2:7] < -0.3).all()  # before the block
        assert (profile[8:11] > 0.3).all()  # within it, behind its first face
        assert (profile[13:15] < -0.3).all()
        assert (profile[17:22] > 0.3).all()
        assert profile[18] > profile[21]
        others = [c for c in (3, 4, 5) if c != component]
        assert found[others][:, 12, 12, 12].abs().max() < 0.6


def _mirrored(found: torch.Tensor, axis: int, offsets: int) -> tuple[list[int], torch.Tensor]:
    """Channels of the affinities as they are for a volume flipped along an axis (z, y, x)."""
    order = []
    for k, a, sign in product(range(offsets), range(3), (0, 1)):
        order.append(6 * k + 2 * a + (1 - sign if a == axis else sign))
    return order, found[:, order].flip(2 + axis)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_volume_has_mirrored_distances(rng: np.random.Generator, stride: int, axis: int) -> None:
    labels = _labels(rng)
    expected = distance(labels, stride).flip(2 + axis)
    expected[:, 5 - axis] *= -1  # components x, y, z
    found = distance(labels.flip(1 + axis), stride)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_volume_has_mirrored_affinities(rng: np.random.Generator, axis: int) -> None:
    labels = _labels(rng)
    _, expected = _mirrored(affinity(labels, OFFSETS, 1), axis, len(OFFSETS))
    found = affinity(labels.flip(1 + axis), OFFSETS, 1)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_cells_of_two_voxels_are_the_same_after_a_point_reflection(rng: np.random.Generator) -> None:
    """Which two of a cell's corners are looked at does not depend on the end from which one looks."""
    labels = _labels(rng)
    expected = affinity(labels, OFFSETS, 2)
    for axis in range(3):
        _, expected = _mirrored(expected, axis, len(OFFSETS))
    found = affinity(labels.flip(1, 2, 3), OFFSETS, 2)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_renamed_labels_have_the_same_targets(rng: np.random.Generator) -> None:
    """Contrast and names mean nothing: only where labels differ."""
    labels = _labels(rng)
    names = torch.from_numpy(rng.permutation(256)).to(torch.uint8)
    one, other = (targets_of(volume, OFFSETS, 2) for volume in (labels, names[labels.long()]))
    torch.testing.assert_close(one.affinity, other.affinity, equal_nan=True)
    assert torch.equal(one.distance, other.distance)
