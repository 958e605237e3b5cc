import numpy as np
import pytest
import torch
from scipy import ndimage

from regkit.features.featuremap import FeatureMap
from regkit.ops.filters import smooth
from regkit.solver.deformable import STRIDE, Pyramid
from regkit.solver.evidence import (
    MAX_DOUBT,
    blur_of_match,
    borne_out,
    doubt,
    gain_between,
    local_contrast,
    resel_volume,
    share_of,
    share_of_intensities,
    taken_back,
)

SHAPE = (12, 14, 16)
OFFSET = torch.zeros(3)
STILL = torch.zeros(3, *SHAPE)


def _map(values: torch.Tensor) -> FeatureMap:
    return FeatureMap(values, torch.ones_like(values[:1]))


def _texture(rng: np.random.Generator, channels: int = 1) -> torch.Tensor:
    return smooth(torch.from_numpy(rng.random((channels, *SHAPE))).float(), 1)


def test_a_match_is_told_from_a_near_miss_and_noise_is_not(rng: np.random.Generator) -> None:
    one, other = _texture(rng, 4), _texture(rng, 4)
    assert blur_of_match(_map(one), _map(one), OFFSET, STILL) < 1e-6
    assert blur_of_match(_map(one), _map(other), OFFSET, STILL) == pytest.approx(1, abs=0.15)
    noisy = one + 0.3 * one.std() * torch.from_numpy(rng.normal(size=one.shape)).float()
    assert 0.02 < blur_of_match(_map(one), _map(noisy), OFFSET, STILL) < 0.5


def test_what_is_not_known_counts_nothing(rng: np.random.Generator) -> None:
    one = _texture(rng)
    other, weight = one.clone(), torch.ones_like(one)
    other[:, 4:], weight[:, 4:] = 100, 0
    assert blur_of_match(_map(one), FeatureMap(other, weight), OFFSET, STILL) < 1e-3


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.4])
def test_the_resel_of_blurred_noise_is_that_of_its_kernel(rng: np.random.Generator, sigma: float) -> None:
    shape = (48, 48, 48)
    noise = torch.from_numpy(ndimage.gaussian_filter(rng.normal(size=shape), sigma)).float()[None]
    found = resel_volume(_map(noise), _map(torch.zeros_like(noise)), OFFSET, torch.zeros(3, *shape))
    assert found == pytest.approx((2.355 * sigma) ** 3, rel=0.3)


def test_the_resel_counts_what_is_known_and_differs(rng: np.random.Generator) -> None:
    shape = (32, 32, 32)
    noise = torch.from_numpy(rng.normal(size=(1, *shape))).float()
    still = torch.zeros(3, *shape)
    sharp = resel_volume(_map(noise), _map(torch.zeros_like(noise)), OFFSET, still)
    noise[..., 8:] *= 1e-3  # air that is nearly the same in both
    noise[..., 8:] += 1e-2
    assert resel_volume(_map(noise), _map(torch.zeros_like(noise)), OFFSET, still) == pytest.approx(
        sharp, rel=0.2
    )
    nowhere = FeatureMap(noise, torch.zeros_like(noise))
    assert resel_volume(nowhere, nowhere, OFFSET, still) == 1
    assert resel_volume(_map(noise[:, :1]), _map(noise[:, :1]), OFFSET, still[:, :1]) == 1


def test_a_part_keeps_what_it_can_tell_beside_the_reference() -> None:
    assert share_of(0.5, 0.5) == 1
    assert share_of(0.56, 0.5) == pytest.approx(0.88**8)
    assert share_of(0.1, 0.49) == 0  # little to add
    assert share_of(0.96, 0.5) == 0
    assert share_of(0.9, 0.5) == 0  # a share too small to be worth its time
    assert share_of(0.1, 0.9) == 1.25


def test_intensities_count_in_one_modality_alone(rng: np.random.Generator) -> None:
    one = _texture(rng)
    brighter, other = 0.9 * one + 0.05, (one - one.mean()).abs()

    def share(moving: torch.Tensor) -> float:
        maps = _map(one), _map(moving)
        local = (local_contrast(m) for m in maps)
        return share_of_intensities(blur_of_match(*maps, OFFSET, STILL), blur_of_match(*local, OFFSET, STILL))

    assert share(brighter) == 1
    assert share(other) == share(1 - one) == 0


def test_the_gain_between_images_is_told_in_spite_of_outliers_and_a_shift(rng: np.random.Generator) -> None:
    one = _texture(rng)
    one = one - one.min()
    moving = FeatureMap(one / 0.8, torch.ones_like(one))
    assert gain_between(_map(one), moving, OFFSET, STILL) == pytest.approx(0.8, rel=1e-4)
    spoilt = moving.values.clone()
    spoilt[:, :2, :2] += 20 * one.max()  # a stain
    assert gain_between(_map(one), _map(spoilt), OFFSET, STILL) == pytest.approx(0.8, rel=0.05)
    displaced = torch.roll(one, 2, dims=-1)
    there = torch.zeros_like(STILL)
    there[0] = 2
    inside = torch.ones_like(one)
    inside[..., -2:] = 0
    found = gain_between(FeatureMap(one, inside), _map(0.5 * displaced), OFFSET, there)
    assert found == pytest.approx(2, rel=1e-4)
    assert gain_between(_map(one), _map(0.1 * one), OFFSET, STILL) == 2  # no copy of it
    nowhere = FeatureMap(one, torch.zeros_like(one))
    assert gain_between(nowhere, nowhere, OFFSET, STILL) == 1


def test_local_contrast_is_its_definition(rng: np.random.Generator) -> None:
    values = _texture(rng)
    found = local_contrast(_map(values), 1)
    wide = np.pad(values[0].numpy().astype(np.float64), 1, mode="edge")
    boxes = np.lib.stride_tricks.sliding_window_view(wide, (3, 3, 3)).reshape(*SHAPE, 27)
    deviation = boxes.std(-1)
    expected = (values[0].numpy() - boxes.mean(-1)) / (deviation + 0.1 * deviation.mean())
    np.testing.assert_allclose(found.values[0].numpy(), expected, atol=1e-3)
    air = torch.cat([values[:, :6], 0 * values[:, 6:]], dim=1)
    assert (local_contrast(_map(air)).weight[:, 6:] == 0).all()


def test_parts_at_shares_of_their_weights_cost_their_sum(rng: np.random.Generator) -> None:
    one, other = (Pyramid({STRIDE: _map(_texture(rng, 5))}, (0, 0, 0), (2, 3)) for _ in range(2))

    def cost(fixed: Pyramid, moving: Pyramid) -> torch.Tensor:
        return (fixed.maps[STRIDE].values - moving.maps[STRIDE].values).square().mean(0)

    def at(*shares: float) -> torch.Tensor:
        return cost(one.weighted(shares), other.weighted(shares))

    torch.testing.assert_close(at(1, 1), cost(one, other))
    torch.testing.assert_close(at(0.5, 2), 0.5 * at(1, 0) + 2 * at(0, 1))
    half = Pyramid(
        {STRIDE: FeatureMap(other.maps[STRIDE].values / 2, other.maps[STRIDE].weight)}, (0, 0, 0), (2, 3)
    )
    torch.testing.assert_close(cost(one.weighted((1, 0)), half.weighted((1, 0), (2, 1))), at(1, 0))
    assert one.weighted((0, 1)).channels == (3,)


def test_doubt_grows_with_noise_and_is_largest_where_nothing_is_told(rng: np.random.Generator) -> None:
    one = _texture(rng, 4)
    noise = one.std() * torch.from_numpy(rng.normal(size=one.shape)).float()
    little, much = (doubt(_map(one), _map(one + k * noise), OFFSET, STILL).mean() for k in (0.1, 0.5))
    assert doubt(_map(one), _map(one), OFFSET, STILL).max() < 0.1 < little < much < MAX_DOUBT
    nothing = FeatureMap(one, torch.zeros_like(one[:1]))
    assert (doubt(_map(one), nothing, OFFSET, STILL) == MAX_DOUBT).all()
    flat = torch.full_like(one, 0.5)
    assert (doubt(_map(flat), _map(flat), OFFSET, STILL) == MAX_DOUBT).all()
    assert doubt(_map(one), _map(one), OFFSET, STILL).shape == tuple(n // 2 for n in SHAPE)


def test_small_displacements_in_much_doubt_are_taken_back() -> None:
    one = torch.ones(3, *SHAPE)
    shape = tuple(n // 2 for n in SHAPE)
    sure, unsure = torch.full(shape, 0.5), torch.full(shape, 3.0)
    torch.testing.assert_close(taken_back(one, sure), one)
    small, large = (taken_back(scale * one, unsure).mean() / scale for scale in (0.3, 20))
    assert small < 0.05
    assert large > 0.95
    assert (taken_back(0 * one, unsure) == 0).all()
    # Of what nobody imaged nothing is known, for or against.
    torch.testing.assert_close(taken_back(one, torch.full(shape, MAX_DOUBT)), one)


def test_what_agrees_no_better_than_without_is_left_out(rng: np.random.Generator) -> None:
    texture = _texture(rng, 4)
    shifted = torch.roll(texture, 2, dims=3)  # what lies at x is found at x + 2
    right, wrong = torch.zeros(3, *SHAPE), torch.zeros(3, *SHAPE)
    right[0], wrong[1] = 2, 2
    np.testing.assert_allclose(borne_out(_map(texture), _map(shifted), OFFSET, right), right, atol=1e-5)
    np.testing.assert_array_equal(borne_out(_map(texture), _map(texture), OFFSET, wrong), STILL)
    assert borne_out(_map(texture), _map(shifted), OFFSET, wrong).abs().mean() < 0.3
