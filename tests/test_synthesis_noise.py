"""The dice that samples are drawn with, and smooth noise against scipy's B-splines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from regkit.synthesis.noise import (
    Rng,
    random_turn,
    smooth_noise,
    smooth_noises,
    spline_matrix,
    splined,
    splined_at,
)


def _numbers(rng: Rng) -> tuple[list[float], torch.Tensor]:
    return [rng.uniform(0, 1), float(rng.chance(0.5)), rng.uniform(-3, 2)], rng.normal(3, 4)


def _equal(one: tuple[list[float], torch.Tensor], other: tuple[list[float], torch.Tensor]) -> bool:
    return one[0] == other[0] and torch.equal(one[1], other[1])


def test_the_same_numbers_give_the_same_dice_in_any_order() -> None:
    indices = [(0,), (1,), (0, 1), (1, 0), (7, 2)]
    forwards = {index: _numbers(Rng.of(5, *index)) for index in indices}
    backwards = {index: _numbers(Rng.of(5, *index)) for index in reversed(indices)}
    assert all(_equal(forwards[index], backwards[index]) for index in indices)


def test_another_seed_or_index_gives_other_bits() -> None:
    drawn = [_numbers(Rng.of(*index)) for index in [(5, 0), (5, 1), (5, 0, 1), (5, 1, 1), (6, 0), (0, 5)]]
    for k, one in enumerate(drawn):
        for other in drawn[:k]:
            assert one[0] != other[0]
            assert not torch.equal(one[1], other[1])


def test_drawing_leaves_the_global_generators_alone(seeded: None) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    smooth_noise(Rng.of(1), 2, (5, 6, 7), 3.0)
    Rng.of(2).uniform(0, 1)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_chance_comes_as_often_as_it_says() -> None:
    rng = Rng.of(3)
    assert np.mean([rng.chance(0.3) for _ in range(4000)]) == pytest.approx(0.3, abs=0.03)
    assert not any(rng.chance(0.0) for _ in range(100))
    assert all(rng.chance(1.0) for _ in range(100))


@pytest.mark.parametrize(("n", "knots"), [(1, 2), (2, 2), (9, 2), (24, 5), (17, 17), (30, 11)])
def test_the_splines_are_cubic_b_splines(n: int, knots: int) -> None:
    """Equal to scipy's basis up to one factor, which is that of the sum over all knots everywhere."""
    found = spline_matrix(n, knots).double().numpy()
    total = found.sum(1)
    np.testing.assert_allclose(total, total[0], rtol=1e-5)
    bump = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    at = np.linspace(0, knots - 1, n)[:, None] + 1 - np.arange(knots + 2)
    np.testing.assert_allclose(found / total[0], np.nan_to_num(bump(at)), atol=2e-4)


def test_smooth_noise_is_the_tensor_product_of_its_splines() -> None:
    shape, scale = (7, 10, 6), 2.5
    found = smooth_noise(Rng.of(8), 2, shape, scale)
    matrices = []
    sizes = []
    for n in shape:
        knots = max(2, round(n / scale) + 1)
        sizes.append(knots + 2)
        matrices.append(spline_matrix(n, knots).double())
    noise = Rng.of(8).normal(2, *sizes).double()
    expected = torch.einsum("czyx,az,by,dx->cabd", noise, *matrices)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_splines_at_places_are_those_of_a_finer_grid() -> None:
    values = Rng.of(9).normal(2, 5, 7, 9)
    fine = splined(values, (21, 31, 41))
    steps = (slice(3, None, 4), slice(None, None, 5), slice(1, 38, 6))
    places = [np.linspace(0, 1, n)[step].astype(np.float32) for n, step in zip((21, 31, 41), steps)]
    coarse = values[:, :, ::2, 1:].contiguous()
    found, other = splined_at([values, coarse], places)
    torch.testing.assert_close(found, fine[(slice(None), *steps)], rtol=0, atol=2e-4)
    torch.testing.assert_close(other, splined_at([coarse], places)[0], rtol=0, atol=1e-6)


def test_noises_drawn_together_are_those_drawn_alone() -> None:
    shape, scales = (24, 30, 18), (4.0, 9.0, 9.0, 40.0)
    alone = [smooth_noise(Rng.of(7, k), 2, shape, scale) for k, scale in enumerate(scales)]
    together = smooth_noises([Rng.of(7, k) for k in range(4)], 2, shape, scales)
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-5)


def test_a_turn_is_a_rotation_by_its_angle() -> None:
    angles = []
    for seed in range(200):
        turn = random_turn(Rng.of(seed), 30)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-14)
        assert np.linalg.det(turn) == pytest.approx(1)
        angles.append(np.degrees(np.arccos((np.trace(turn) - 1) / 2)))
        random = Rng.of(seed).scalars
        axis = random.standard_normal(3)
        rotation = Rotation.from_rotvec(axis / np.linalg.norm(axis) * random.uniform(0, np.radians(30)))
        np.testing.assert_allclose(turn, rotation.as_matrix(), atol=1e-14)
    assert max(angles) < 30
    assert np.mean(angles) == pytest.approx(15, abs=2)


def test_one_of_several_is_what_numpy_chooses() -> None:
    shares = (0.35, 0.1, 0.2, 0.35)
    for seed in range(50):
        one, other = Rng.of(seed), Rng.of(seed).scalars
        assert one.one_of(4, shares) == other.choice(4, p=shares)
        assert one.one_of(3) == other.choice(3)
        assert one.uniform(0, 1) == other.uniform(0, 1)


@pytest.mark.parametrize("scale", [2.0, 5.0, 16.0, 40.0])
def test_the_deviation_is_near_1_at_any_scale(scale: float) -> None:
    noise = smooth_noise(Rng.of(1, 2), 300, (12, 16, 20), scale)
    assert float(noise.std()) == pytest.approx(1, abs=0.12)
    assert abs(float(noise.mean())) < 0.1


def test_noise_varies_over_its_scale() -> None:
    """Alike within a quarter of the scale, unrelated beyond four knots; half the scale is twice as steep."""
    slopes = []
    for scale in (8.0, 4.0):
        noise = smooth_noise(Rng.of(4), 200, (8, 8, 48), scale)
        lag = int(scale) // 4
        assert float((noise[..., lag:] * noise[..., :-lag]).mean()) > 0.9 * float(noise.square().mean())
        lag = 4 * int(scale)
        assert abs(float((noise[..., lag:] * noise[..., :-lag]).mean())) < 0.1
        slopes.append(float(noise.diff(dim=-1).square().mean().sqrt()))
    assert slopes[1] / slopes[0] == pytest.approx(2, rel=0.2)
