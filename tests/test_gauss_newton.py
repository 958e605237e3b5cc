"""Gauss-Newton on features: known motions are found, rigid ones stay rigid, nothing is made worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from regkit.core.geometry import Float64
from regkit.features.featuremap import FeatureMap
from regkit.solver import gauss_newton

SHAPE = (20, 22, 24)


def channels(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((3, *SHAPE)).astype(np.float32)
    return np.stack([gaussian_filter(one, 3) * 30 for one in noise])


def seen(values: np.ndarray, matrix: Float64) -> np.ndarray:
    """Channels at where a 4x4 map of index coordinates (x, y, z) brings each cell."""
    z, y, x = np.indices(SHAPE)
    places = np.einsum("ij,jzyx->izyx", matrix[:3], np.stack([x, y, z, np.ones_like(x)]))[::-1]
    return np.stack([map_coordinates(one, places, order=3, mode="nearest") for one in values])


def comparison(moving: np.ndarray, fixed: np.ndarray):
    weight = torch.ones(1, *SHAPE)

    def compare(matrix: Float64) -> tuple[FeatureMap, float]:
        values = seen(moving, matrix)
        return FeatureMap(torch.from_numpy(values), weight), 1 - float(np.square(values - fixed).mean())

    return FeatureMap(torch.from_numpy(fixed), weight), compare


def about_the_middle(linear: Float64, shift: tuple[float, float, float]) -> Float64:
    middle = (np.array(SHAPE[::-1]) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = middle + shift - linear @ middle
    return matrix


TURN = Rotation.from_rotvec([0.04, -0.03, 0.05]).as_matrix()


@pytest.mark.parametrize(
    ("linear", "model"),
    [
        (TURN, "rigid"),
        (TURN, "similarity"),
        (1.05 * TURN, "similarity"),
        (TURN @ np.diag([1.04, 0.97, 1.02]), "affine"),
    ],
)
def test_a_known_motion_is_found(linear, model):
    values = channels()
    true = about_the_middle(linear, (0.6, -0.4, 0.3))
    fixed, compare = comparison(values, seen(values, true))
    found, similarity = gauss_newton.improve(fixed, compare, model)
    corners = np.array([[x, y, z, 1] for x in (4, 19) for y in (4, 17) for z in (4, 15)], float).T
    assert np.abs((found - true) @ corners).max() < 0.05
    assert similarity > compare(np.eye(4))[1]


def test_a_rigid_motion_keeps_lengths_and_handedness():
    values = channels()
    fixed, compare = comparison(values, seen(values, about_the_middle(1.06 * TURN, (0.5, 0, 0))))
    found, _ = gauss_newton.improve(fixed, compare, "rigid")
    np.testing.assert_allclose(found[:3, :3].T @ found[:3, :3], np.eye(3), atol=1e-9)
    assert np.linalg.det(found[:3, :3]) > 0


def test_features_without_anything_in_common_are_not_made_worse():
    fixed, compare = comparison(channels(1), channels(2))
    _, before = compare(np.eye(4))
    assert gauss_newton.improve(fixed, compare, "affine")[1] >= before


@pytest.mark.parametrize("shape", [(2, 9, 9), (3, 3, 3), (1, 1, 1)])
def test_flat_and_tiny_maps_stay_where_they_are(shape):
    flat = FeatureMap(torch.zeros(2, *shape), torch.ones(1, *shape))
    found, similarity = gauss_newton.improve(flat, lambda _: (flat, 0.5), "affine")
    np.testing.assert_array_equal(found, np.eye(4))
    assert similarity == 0.5


def test_a_similarity_has_one_size_and_right_angles():
    values = channels()
    fixed, compare = comparison(
        values, seen(values, about_the_middle(np.diag([1.06, 1, 1.02]) @ TURN, (0, 0, 0)))
    )
    found, _ = gauss_newton.improve(fixed, compare, "similarity")
    scales = np.linalg.svd(found[:3, :3], compute_uv=False)
    assert np.ptp(scales) < 1e-9 and abs(scales[0] - 1) > 0.01
