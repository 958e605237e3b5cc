"""Artefacts: each does what it says, and none moves what an image shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regkit.synthesis import artefacts
from regkit.synthesis.artefacts import (
    ALL_IMAGES,
    MR_ONLY,
    metal,
    motion,
    random_convolutions,
    slice_gaps,
    surface_coil,
    with_artefact,
    wrap_around,
)
from regkit.synthesis.noise import Rng

SHAPE = (28, 32, 24)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Blobs from 0 to 1, as smooth as images are."""
    smooth = gaussian_filter(np.random.default_rng(3).random(SHAPE), 1.5)
    return torch.from_numpy(((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32))


def _likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(np.corrcoef(one.numpy().ravel(), other.numpy().ravel())[0, 1])


@pytest.mark.parametrize("artefact", [*ALL_IMAGES, *MR_ONLY], ids=lambda artefact: artefact.__name__)
def test_what_an_image_shows_stays_where_it_is(
    artefact: Callable[[torch.Tensor, Rng], torch.Tensor], image: torch.Tensor
) -> None:
    before, best = image.clone(), []
    for seed in range(12):
        found = artefact(image, Rng.of(seed))
        assert found.shape == image.shape
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert not torch.equal(found, image)
        assert torch.equal(found, artefact(image, Rng.of(seed)))
        # A contrast may be turned round, and strong structures shifted against none.
        likeness = {shift: abs(_likeness(found.roll(shift, 1), image)) for shift in (-3, -2, -1, 0, 1, 2, 3)}
        best.append(max(likeness, key=likeness.__getitem__))
    assert np.mean([shift == 0 for shift in best]) > 0.75
    assert torch.equal(before, image)


def test_the_signal_falls_off_along_one_line(image: torch.Tensor) -> None:
    ratio = (surface_coil(image + 1, Rng.of(1)) / (image + 1)).log()
    for axis in range(3):
        assert torch.allclose(ratio.diff(dim=axis), ratio.diff(dim=axis).mean(), atol=1e-4)
    assert float(ratio.max() - ratio.min()) > 0.3


def test_what_wraps_comes_from_the_other_end() -> None:
    """A bright slice at one end is seen once more, and nowhere else."""
    lit = torch.zeros((32, 32, 32))
    lit[0] = lit[:, 0] = lit[..., 0] = 1
    added = wrap_around(lit, Rng.of(0)) - lit
    # Only across the axis that is wrap_around is all of a slice lit anew.
    profiles = [added.movedim(axis, 0).flatten(1).amin(1) for axis in range(3)]
    (profile,) = [profile for profile in profiles if profile.max() > 0]
    assert (profile > 0).sum() == 1
    assert 0.6 * 32 < int(profile.argmax()) < 32
    assert 0.1 < float(profile.max()) <= 0.8


def test_who_lies_still_is_seen_as_he_is(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(np.random.Generator):
        def normal(self, *_: object) -> np.ndarray:  # type: ignore[override]
            return np.zeros((1, 3))

    rng = Rng.of(2)
    still = Rng(Still(np.random.PCG64(2)), rng.voxels)
    monkeypatch.setattr(Rng, "chance", lambda *_: False)
    assert torch.allclose(motion(image, still), image, atol=1e-5)
    assert _likeness(motion(image, rng), image) < 0.999


def test_a_steady_drift_is_no_motion_but_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines displaced alike would shift the image; the middle of k-space says by how much: nothing."""
    monkeypatch.setattr(Rng, "chance", lambda *_: True)
    image = torch.zeros((24, 24, 24))
    image[10:14, 9:15, 8:12] = 1
    centres = []
    for seed in range(8):
        found = motion(image, Rng.of(seed))
        grid = torch.stack(torch.meshgrid(*map(torch.arange, image.shape), indexing="ij")).float()
        centres.append((grid * found.square()).sum((1, 2, 3)) / found.square().sum())
    assert torch.stack(centres).mean(0).sub(torch.tensor([11.5, 11.5, 9.5])).abs().max() < 0.6


def test_slices_are_kept_and_what_lies_between_them_is_made_up(image: torch.Tensor) -> None:
    for seed in range(10):
        found = slice_gaps(image, Rng.of(seed))
        same = [
            (found == image).all(dim=tuple(k for k in range(3) if k != axis)).float().mean()
            for axis in range(3)
        ]
        assert 0.1 < max(same) < 0.7
        assert sorted(same)[1] == 0
    ramp = torch.arange(48.0).expand(48, 48, 48).contiguous()
    found = slice_gaps(ramp, Rng.of(0))
    assert (found - ramp).abs().max() <= 6


def test_metal_is_void_or_bright(image: torch.Tensor) -> None:
    darker, brighter = 0, 0
    for seed in range(20):
        change = metal(image, Rng.of(seed)) - image
        assert (change.abs() > 0.1).float().mean() < 0.6
        darker += bool(change.min() < -0.3 and change.max() < 0.6)
        brighter += bool((metal(image, Rng.of(seed)) == image.max()).sum() > 8)
    assert darker >= 4
    assert brighter >= 4


def test_random_convolutions_keep_mean_and_range_and_change_the_contrast(image: torch.Tensor) -> None:
    likeness = []
    for seed in range(20):
        found = random_convolutions(image, Rng.of(seed))
        assert float(found.mean()) == pytest.approx(float(image.mean()), abs=1e-3)
        assert float(found.std()) < 1.01 * float(image.std())
        likeness.append(_likeness(found, image))
    assert min(likeness) < 0.6
    assert max(likeness) > 0.9


def test_a_ct_has_no_artefact_of_an_mr(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    of_both = [artefact.__name__ for artefact in ALL_IMAGES]
    of_mr = [artefact.__name__ for artefact in MR_ONLY]

    def noted(name: str) -> Callable[[torch.Tensor, Rng], torch.Tensor]:
        def artefact(image: torch.Tensor, _: Rng) -> torch.Tensor:
            names.add(name)
            return image

        return artefact

    monkeypatch.setattr(artefacts, "ALL_IMAGES", tuple(map(noted, of_both)))
    monkeypatch.setattr(artefacts, "MR_ONLY", tuple(map(noted, of_mr)))
    for mr in seen:
        names = seen[mr]
        for seed in range(60):
            with_artefact(image, Rng.of(seed), mr)
    assert seen == {True: {*of_both, *of_mr}, False: set(of_both)}
