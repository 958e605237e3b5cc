"""Renderings of label maps: each step against what it says it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from regkit.synthesis.appearance import (
    Palette,
    Rendering,
    _add_grain,
    _add_noise,
    _add_texture,
    _cut,
    _in_k_space,
    _rescale,
    _thick_slices,
    bias,
    blurred,
    draw_grain,
    random_palette,
    render,
)
from regkit.synthesis.noise import Rng, smooth_noise


def _render(
    labels: torch.Tensor, rng: Rng, palette: Palette | None = None, partial: float = 0.35
) -> Rendering:
    """One image."""
    palette = random_palette(rng) if palette is None else palette
    return render(labels[None], [rng], [palette], partial=partial)


class _Yes(Rng):
    """Dice for which every chance comes."""

    def chance(self, probability: float) -> bool:
        return True


class _No(Rng):
    """Dice for which none does."""

    def chance(self, probability: float) -> bool:
        return False


def _blocks(side: int = 16, labels: int = 9) -> torch.Tensor:
    """Random labels of 4^3 blocks."""
    coarse = np.random.default_rng(0).integers(0, labels, (side // 4,) * 3)
    return torch.from_numpy(coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)).to(torch.uint8)


def test_every_image_is_finite_and_within_0_and_1() -> None:
    labels = _blocks()
    constant = torch.full_like(labels, 3)
    ends = 0
    for seed in range(50):
        for volume in (labels, constant):
            found = _render(volume, Rng.of(seed), partial=0.5)
            assert found.images[0].shape == found.visible[0].shape == labels.shape
            assert found.images[0].dtype == torch.float32
            assert found.visible[0].dtype == torch.bool
            assert found.images[0].isfinite().all()
            assert found.images[0].min() >= 0
            assert found.images[0].max() <= 1
            ends += not found.visible[0].all()
        again = _render(constant, Rng.of(seed), partial=0.5)
        assert torch.equal(again.images[0], found.images[0])
    assert 25 < ends < 75


def test_what_lies_far_below_a_window_shows_no_noise() -> None:
    """As the air of a CT, and as it does not in other images."""
    labels = torch.ones((24, 24, 24), dtype=torch.uint8)
    labels[:, :, 12:] = 2
    means = np.where(np.arange(256) == 1, -1.0, 0.5)
    inside, without = [], []
    for seed in range(30):
        image = _render(
            labels, Rng.of(seed), palette=Palette(means, np.full(256, 0.05), window=True), partial=0.0
        ).images[0]
        assert 0 <= image.min() <= image.max() <= 1
        assert (image[..., :6] == 0).all()
        inside.append(float(image[..., 18:].std()))
        image = _render(labels, Rng.of(seed), palette=Palette(means, np.full(256, 0.05)), partial=0.0).images[
            0
        ]
        without.append(float(image[..., :6].std()))
    assert np.median(inside) > 0.005
    assert np.median(without) > 0.005


def test_the_labels_are_not_changed_and_their_values_mean_nothing() -> None:
    labels = _blocks()
    before = labels.clone()
    for seed in range(10):
        _render(labels, _Yes.of(seed))
        _render(labels, _No.of(seed))
    assert torch.equal(labels, before)


def test_partial_is_how_often_the_field_of_view_ends() -> None:
    labels = _blocks()
    assert all(_render(labels, Rng.of(seed), partial=0.0).visible.all() for seed in range(20))
    assert not any(_render(labels, Rng.of(seed), partial=1.0).visible.all() for seed in range(20))


def _means(image: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return ndimage.mean(image.numpy(), labels.numpy(), np.unique(labels.numpy()))


def test_two_renderings_share_nothing_but_the_labels() -> None:
    """The means of the labels in one are unrelated to those in the other, and in each they matter."""
    labels = _blocks()
    related, explained = [], []
    for seed in range(80):
        rng = Rng.of(seed)
        one, other = (_render(labels, rng, partial=0.0).images[0] for _ in range(2))
        related.append(np.corrcoef(_means(one, labels)[1:], _means(other, labels)[1:])[0, 1])
        by_label = _means(one, labels)[
            np.unique(labels.numpy(), return_inverse=True)[1].reshape(labels.shape)
        ]
        explained.append(by_label.var() / max(1e-9, float(one.var(correction=0))))
    assert abs(np.mean(related)) < 0.15
    assert np.std(related) > 0.2
    assert np.median(explained) > 0.3


def test_few_tissues_are_sometimes_more_than_three() -> None:
    """Palettes with gaps are those of few tissues; as many of them are used as were drawn."""
    gaps = []
    for seed in range(200):
        means, deviations, _ = random_palette(Rng.of(seed))
        assert means.shape == deviations.shape == (256,)
        assert (deviations >= 0).all()
        gaps.append(int((np.diff(np.sort(means[1:])) > 0.06).sum()))
    assert max(gaps) >= 4
    assert min(gaps) == 0


@pytest.mark.parametrize("sigmas", [(0.6, 1.1, 0.3), (2.0, 0.05, 0.9)])
def test_blur_is_scipys_with_as_many_taps(rng: np.random.Generator, sigmas: tuple[float, ...]) -> None:
    image = rng.random((9, 8, 11))
    expected = image
    for axis, sigma in enumerate(sigmas):
        radius = max(1, round(2.5 * sigma))
        expected = ndimage.gaussian_filter1d(expected, sigma, axis, mode="nearest", radius=radius)
    beside = rng.random(image.shape)
    found = blurred(torch.from_numpy(np.stack([image, beside])), [sigmas, (2.9, 0.2, 1.0)])
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-9)


def test_blur_keeps_a_constant_and_has_its_sigma() -> None:
    constant = torch.full((6, 7, 8), 0.3)
    torch.testing.assert_close(blurred(constant[None], [[0.4, 0.9, 2.0]])[0], constant)
    image = torch.zeros(21, 21, 21).double()
    image[10, 10, 10] = 1
    sigmas = np.array([0.7, 0.9, 1.6])
    found = blurred(image[None], [sigmas])[0]
    at = (torch.arange(21) - 10.0).double().square()
    for axis, sigma in enumerate(sigmas):
        profile = found.sum([a for a in range(3) if a != axis])
        assert float((profile * at).sum()) ** 0.5 == pytest.approx(sigma, rel=0.12)


@pytest.mark.parametrize("shape", [(16, 12, 14), (9, 11, 13)])
def test_ringing_cuts_high_frequencies_off_and_keeps_the_others(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    image = torch.from_numpy(rng.random(shape))
    for seed in range(5):
        before, after = torch.fft.fftn(image), torch.fft.fftn(_in_k_space(image, _Yes.of(seed)))
        kept = (after - before).abs() < 1e-9 * before.abs().max()
        gone = after.abs() < 1e-9 * before.abs().max()
        assert (kept | gone).all()
        assert gone.any()
        assert kept[0, 0, 0]
        for axis, n in enumerate(shape):
            line = kept[tuple(slice(None) if a == axis else 0 for a in range(3))].tolist()
            highest = max(min(k, n - k) for k in range(n) if line[k])
            assert highest >= n // 5
            assert line == [min(k, n - k) <= highest for k in range(n)]


def test_a_spike_is_one_wave(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.random((16, 12, 14)))
    for seed in range(8):
        wave = torch.fft.fftn(_in_k_space(image, _No.of(seed)) - image).abs()
        peaks = (wave > 1e-3 * wave.max()).nonzero().tolist()
        assert len(peaks) == 2
        assert [(a + b) % n for a, b, n in zip(*peaks, image.shape)] == [0, 0, 0]
        assert any(peaks[0])


def test_slices_are_thick_along_one_axis_or_all(rng: np.random.Generator) -> None:
    """Values between slices are interpolated: along such an axis the image has fewer degrees of freedom."""

    def ranks(image: torch.Tensor) -> list[int]:
        return [int(torch.linalg.matrix_rank(image.movedim(a, 0).flatten(1), rtol=1e-9)) for a in range(3)]

    image = torch.from_numpy(rng.random((12, 13, 14)))
    axes = set()
    for seed in range(12):
        found = _thick_slices(image, _Yes.of(seed))
        assert found.shape == image.shape
        fewer = [a for a in range(3) if ranks(found)[a] < image.shape[a]]
        assert len(fewer) == 1
        axes.update(fewer)
        assert all(r < n for r, n in zip(ranks(_thick_slices(image, _No.of(seed))), image.shape))
    assert axes == {0, 1, 2}
    constant = torch.full((12, 13, 14), 0.7)
    torch.testing.assert_close(_thick_slices(constant, _Yes.of(1)), constant)


def _noisy(image: torch.Tensor, rng: Rng, magnitude: bool = True) -> torch.Tensor:
    found = image[None].clone()
    _add_noise(found, [rng], [magnitude])
    return found[0]


class _Plain(Rng):
    """Dice for which the likely comes and the unlikely does not."""

    def chance(self, probability: float) -> bool:
        return probability > 0.5


def test_noise_is_symmetric_or_that_of_a_magnitude() -> None:
    image = torch.full((24, 24, 24), 0.5)
    for seed in range(4):
        for plain in (_noisy(image, _Plain.of(seed)) - image, _noisy(image, _Yes.of(seed), False) - image):
            assert 0 < float(plain.std()) < 0.2
            assert abs(float(plain.mean())) < 0.05 * float(plain.std())
            assert float(plain[1:].flatten() @ plain[:-1].flatten()) < 0.05 * float(plain.square().sum())
        assert (_noisy(torch.zeros_like(image), _Yes.of(seed)) >= 0).all()
        assert (_noisy(image, _Yes.of(seed)) - image).mean() >= -1e-4
        assert torch.equal(_noisy(image, _No.of(seed)), image)


def test_a_bias_is_smooth_and_positive() -> None:
    for seed in range(10):
        found = bias((16, 20, 24), 0.4, Rng.of(seed))
        assert (found > 0).all()
        assert found.log().diff(dim=2).abs().max() < 0.4


def test_texture_has_no_mean_of_its_own() -> None:
    found = torch.zeros((60, 8, 8, 8))
    _add_texture(found, [Rng.of(seed) for seed in range(60)])
    assert abs(float(found.mean())) < 0.004
    assert 0.005 < found.std() < 0.1


def test_rescaling_spans_0_to_1() -> None:
    image = smooth_noise(Rng.of(3), 1, (5, 6, 7), 2.0)[0] * 4 - 9
    found = torch.stack([image, image, torch.full_like(image, 5.0)])
    _rescale(found, torch.tensor([False, True, False]).view(-1, 1, 1, 1))
    assert float(found[0].min()) == 0
    assert float(found[0].max()) == 1
    torch.testing.assert_close(found[0], (image - image.min()) / (image.max() - image.min()))
    assert torch.equal(found[1], image)
    assert not found[2].any()


def test_beyond_the_field_of_view_the_last_slice_is_repeated(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.random((10, 12, 14)))
    kinds = set()
    for seed in range(40):
        seen = torch.ones(image.shape, dtype=torch.bool)
        found = image.clone()
        _cut(found, seen, Rng.of(seed))
        assert torch.equal(found[seen], image[seen])
        (axis,) = [a for a in range(3) if not seen.movedim(a, 0).flatten(1).any(1).all()]
        line = seen.movedim(axis, 0).flatten(1)
        assert (line.all(1) == line.any(1)).all()
        where = line.any(1).nonzero().flatten()
        first, last = int(where[0]), int(where[-1])
        assert last - first + 1 == len(where)
        assert 0.2 <= len(where) / image.shape[axis] < 0.9
        nearest = torch.arange(image.shape[axis]).clamp(first, last)
        assert torch.equal(found, image.index_select(axis, nearest))
        kinds.add((axis, first == 0))
    assert len(kinds) == 6


def _seen(grain: torch.Tensor, labels: torch.Tensor, seed: int, kind: type[Rng] = Rng) -> torch.Tensor:
    """What one of two images shows of the grain, if the dice want to show any."""
    images = torch.zeros((2, *labels.shape))
    for number in range(seed, seed + 1000, 50):  # until they do
        _add_grain(images, torch.stack([labels] * 2), [None, grain.clone], [Rng.of(9), kind.of(number)])
        if images.any():
            break
    assert not images[0].any()
    return images[1]


def test_grain_shows_in_each_label_as_strongly_as_chance_has_it() -> None:
    labels = torch.zeros(24, 24, 24, dtype=torch.uint8)
    labels[:, :, 12:] = 1
    grain = draw_grain(tuple(labels.shape), Rng.of(0)).volume
    assert grain.shape == (2, 24, 24, 24)
    assert grain[0].diff(dim=2).std() > grain[1].diff(dim=2).std()  # the first is finer
    ratios = []
    for seed in range(40):
        found = _seen(grain, labels, seed)
        assert torch.isfinite(found).all()
        here, there = (float(found[labels == label].std()) for label in (0, 1))
        assert min(here, there) > 0
        assert max(here, there) < 0.5
        ratios.append(max(here, there) / min(here, there))
    assert np.median(ratios) > 1.5
    assert not torch.equal(_seen(grain, labels, 1), _seen(grain, labels, 2))
    assert not _seen(grain, labels, 1, _No).any()
