"""What the network sees: ranks."""

from __future__ import annotations

import numpy as np
import torch

from regkit.features.equalise import equalised


def test_order_is_kept_and_a_change_of_contrast_hardly_matters(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.uniform(0.02, 0.98, (12, 13, 14)).astype(np.float32))
    found = equalised(image)
    order = image.flatten().argsort()
    assert (found.flatten()[order].diff() >= 0).all()
    window = 0.3 + 0.4 * image**2
    assert float((equalised(window) - found).abs().max()) < 0.02


def test_ranks_are_those_between_the_quantiles(rng: np.random.Generator) -> None:
    """Of each of several images, by numpy's quantiles and interpolation; the spread out one has no tie."""
    images = rng.beta(2, 9, (3, 20, 21, 22)).astype(np.float32)
    images[1, :12] = 0
    images[2] = 0.3 + 0.01 * images[2]  # knots close to the least distance
    found = equalised(torch.from_numpy(images)).numpy()
    for image, ranks in zip(images, found):
        middle = image[(image > 0.01) & (image < 0.99)]
        ramp = np.arange(65) * 1e-4
        knots = np.maximum.accumulate(np.quantile(middle, np.linspace(0, 1, 65)) - ramp) + ramp
        expected = np.interp(image, knots, np.linspace(0.05, 0.95, 65))
        expected[image <= 0.01], expected[image >= 0.99] = 0, 1
        np.testing.assert_allclose(ranks, expected, atol=5e-5)
    assert np.array_equal(equalised(torch.from_numpy(images[1])).numpy(), found[1])


def test_as_many_voxels_in_every_range(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.beta(2, 9, (20, 20, 20)).astype(np.float32)).clamp(0.011, 0.98)
    counts = torch.histc(equalised(image), 9, 0.05, 0.95)
    assert float((counts / counts.mean() - 1).abs().max()) < 0.1


def test_the_ends_stay_apart_and_take_no_part(rng: np.random.Generator) -> None:
    middle = torch.from_numpy(rng.uniform(0.4, 0.6, (8, 8, 8)).astype(np.float32))
    ends = torch.cat([torch.zeros(40, 8, 8), middle, torch.ones(20, 8, 8)])
    found = equalised(ends)
    assert not found[:40].any()
    assert (found[48:] == 1).all()
    torch.testing.assert_close(found[40:48], equalised(middle), atol=0.02, rtol=0)
    assert 0.05 <= float(found[40:48].min()) <= float(found[40:48].max()) <= 0.9501


def test_without_anything_between_the_ends_an_image_stays_as_it_is() -> None:
    image = (torch.arange(64) % 2).float().view(4, 4, 4)
    assert torch.equal(equalised(image), image)


def test_one_value_between_the_ends_is_no_division_by_zero() -> None:
    image = torch.zeros(4, 4, 4)
    image[1] = 0.5
    found = equalised(image)
    assert found.isfinite().all()
    assert not found[0].any()
    assert 0 < float(found[1, 0, 0]) <= 0.95


def test_rounding_stays_rounding_in_a_flat_area(rng: np.random.Generator) -> None:
    """Most quantiles lie there within less than rounding."""
    image = torch.from_numpy(rng.uniform(0.2, 0.9, (20, 20, 20)).astype(np.float32))
    image[:12] = 0.3
    rounding = torch.from_numpy(rng.uniform(-5e-7, 5e-7, image.shape).astype(np.float32))
    assert float((equalised(image + rounding) - equalised(image)).abs().max()) < 5e-4
