"""Label ensembles: what is pasted, in which order, and bodies with their envelopes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from regkit.core.errors import RegkitError
from regkit.synthesis import ensemble
from regkit.synthesis.ensemble import (
    Ensembles,
    clip_to_body,
    dilate,
    draw_labels,
    draw_sizes,
    draw_strays,
    paste_shape,
    paste_strays,
    random_affine,
)
from regkit.synthesis.noise import Rng
from regkit.synthesis.shape_sources import Procedural
from regkit.synthesis.shapes import Shape

SMALL = Ensembles(size=20, count=(2, 4), radius=(4.0, 9.0), details=3, detail_radius=(1.5, 3.0))


class _Counting:
    """Balls, counted."""

    def __init__(self) -> None:
        self.count = 0

    def draw(self, random: np.random.Generator, device: torch.device) -> Shape:
        self.count += 1
        return lambda x: 1 - x.square().sum(0)


def test_the_same_dice_draw_the_same_labels() -> None:
    for index in range(6):
        one, again, other = (
            draw_labels(SMALL, [(Procedural(), 1.0)], Rng.of(3, 0, k)) for k in (index, index, index + 50)
        )
        assert one.shape == (20, 20, 20)
        assert one.dtype == torch.uint8
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_as_many_shapes_as_asked_for() -> None:
    counts = []
    for index in range(60):
        source = _Counting()
        draw_labels(replace(SMALL, details=0), [(source, 2.0)], Rng.of(1, index))
        counts.append(source.count)
    assert set(counts) == {2, 3, 4}
    counts = []
    for index in range(60):
        source = _Counting()
        draw_labels(replace(SMALL, count=(2, 2)), [(source, 2.0)], Rng.of(1, index))
        counts.append(source.count)
    assert set(counts) == {2, 3, 4, 5}


def test_the_most_labels_fit_their_type() -> None:
    """No label is lost to the range of uint8 with as many shapes as are allowed."""
    how = Ensembles(size=32, count=(240, 240), radius=(2.0, 5.0), details=0)
    drawn = [draw_labels(how, [(Procedural(), 1.0)], Rng.of(2, index)) for index in range(6)]
    assert max(len(labels.unique()) for labels in drawn) > 100
    assert max(int(labels.max()) for labels in drawn) > 240


def test_sources_are_drawn_by_weight() -> None:
    often, seldom, never = _Counting(), _Counting(), _Counting()
    for index in range(60):
        draw_labels(SMALL, [(often, 3.0), (never, 0.0), (seldom, 1.0)], Rng.of(1, index))
    assert never.count == 0
    assert often.count / seldom.count == pytest.approx(3, rel=0.35)


def test_a_third_has_no_body_and_a_third_an_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: list[int] = []

    def note(labels: torch.Tensor, used: int, *, layers: int, rng: Rng) -> torch.Tensor:
        drawn.append(layers)
        return labels

    drawn: list[int] = []
    monkeypatch.setattr(ensemble, "clip_to_body", note)
    for index in range(150):
        drawn.clear()
        draw_labels(SMALL, [(_Counting(), 1.0)], Rng.of(9, index))
        layers.append(drawn[0] if drawn else -1)
    shares = [
        np.mean([kind(k) for k in layers]) for kind in (lambda k: k < 0, lambda k: k == 0, lambda k: k > 0)
    ]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.12)
    assert set(layers) > {1, 2}


def _neighbours(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The labels that lie face to face with a mask's voxels."""
    return labels[ndimage.binary_dilation(mask) & ~mask]


def test_an_envelope_encloses_the_body() -> None:
    """From the inside to the outside the way leads through every layer, but for rare thin spots."""
    leaks = []
    for index in range(25):
        full = torch.full((48, 48, 48), 7, dtype=torch.uint8)
        found = clip_to_body(full, 9, layers=2, rng=Rng.of(4, index)).numpy()
        outside, inside = found == 0, found == 7
        assert set(np.unique(found)) <= {0, 7, 11, 12}
        if outside.any() and inside.any():
            leaks.append((_neighbours(found, outside) == 7).mean())
            assert np.isin(_neighbours(found, inside), (0, 12)).mean() > 0.95
            assert (_neighbours(found, outside) == 11).mean() > 0.95
    assert len(leaks) > 15
    assert np.mean(leaks) < 0.02


def test_a_body_has_no_background_inside_and_nothing_outside() -> None:
    for index in range(10):
        labels = torch.zeros(24, 24, 24, dtype=torch.uint8)
        labels[::2] = 5
        found = clip_to_body(labels, 5, layers=0, rng=Rng.of(4, index))
        body = found > 0
        assert 0.1 < body.float().mean() <= 1
        assert (found[::2][body[::2]] == 5).all()
        assert (found[1::2][body[1::2]] == 6).all()


def test_a_later_shape_overwrites_and_its_rim_surrounds_it(rng: np.random.Generator) -> None:
    met = 0
    for index in range(40):
        rng = Rng.of(6, index)
        before = torch.from_numpy(rng.scalars.integers(0, 4, (18, 18, 18))).to(torch.uint8)
        labels = before.clone()
        paste_shape(labels, _Counting().draw(rng.scalars, rng.device), 5.0, 9, 2, 8, 0.3, rng)
        changed = labels != before
        assert set(labels[changed].tolist()) <= {8, 9}
        shape = (labels == 9).numpy()
        grown = ndimage.binary_dilation(shape, np.ones((5, 5, 5)))
        # All around lies the rim, and it lies nowhere else.
        assert np.array_equal((labels == 8).numpy(), grown & ~shape)
        met += shape.any()
    assert met > 25


def test_a_shape_fills_what_its_cube_holds() -> None:
    """A shape that is everywhere becomes a block around a place in the volume, cut at the borders."""
    for index in range(20):
        labels = torch.zeros(16, 16, 16, dtype=torch.uint8)
        paste_shape(labels, lambda x: torch.ones_like(x[0]), 3.0, 1, 0, 0, 0.2, Rng.of(3, index))
        assert labels.any()
        ends = [(int(i.min()), int(i.max()) + 1) for i in labels.nonzero().T]
        assert labels[tuple(slice(*e) for e in ends)].all()


@pytest.mark.parametrize("voxels", [1, 2, 3])
def test_a_mask_grows_by_a_cube(rng: np.random.Generator, voxels: int) -> None:
    mask = rng.random((7, 9, 8)) < 0.02
    expected = ndimage.binary_dilation(mask, np.ones((2 * voxels + 1,) * 3))
    assert np.array_equal(dilate(torch.from_numpy(mask), voxels).numpy(), expected)


def test_sizes_are_spread_evenly_over_their_logarithm() -> None:
    sizes = draw_sizes((2.0, 32.0), 4000, Rng.of(0))
    assert sizes.min() >= 2
    assert sizes.max() <= 32
    assert np.median(sizes) == pytest.approx(8, rel=0.1)


def test_shapes_are_reflected_as_often_as_not_and_never_flat() -> None:
    random = np.random.default_rng(1)
    found = np.array([random_affine(random) for _ in range(400)])
    determinants = np.linalg.det(found)
    assert (determinants > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert np.linalg.cond(found).max() < 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 5}, "size of ensembles must be at least"),
        ({"count": (200, 220)}, "must not exceed 240 together, got 220 and 60"),
        ({"count": (5, 4)}, "5 to 4 shapes"),
        ({"details": -1}, "-1 details"),
        ({"radius": (0.0, 4.0)}, "radius of ensembles must be positive"),
        ({"detail_radius": (3.0, 2.0)}, "detail_radius of ensembles must be positive and rising"),
    ],
)
def test_numbers_that_make_no_ensemble(change: dict[str, object], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        Ensembles(**change)  # type: ignore[arg-type]


def test_strays_are_pasted_whole_turned_and_cut_at_the_borders() -> None:
    """An L of five voxels keeps its shape in every position; the last one lies on top."""
    letter = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 0, 0]])
    counts, extents = [], set()
    for seed in range(60):
        labels = torch.zeros((2, 7, 8, 9), dtype=torch.uint8)
        paste_strays(labels, [[letter], []], 1, [Rng.of(seed), Rng.of(seed)])
        assert not labels[1].any()
        assert set(labels.unique().tolist()) <= {0, 255}
        places = labels[0].nonzero()
        counts.append(len(places))
        if len(places) == 5:
            extents.add(tuple((places.amax(0) - places.amin(0)).tolist()))
    assert set(counts) >= {0, 5}
    assert extents == {(1, 1, 2), (1, 2, 1), (2, 1, 1)}


def test_strays_have_the_sizes_of_details() -> None:
    strays = draw_strays(200, SMALL, [(_Counting(), 1.0)], Rng.of(5))
    assert len(strays) == 200
    volumes = np.array([len(stray) for stray in strays])
    assert 4 < np.median(volumes) < 150
    assert max(int(np.abs(stray).max()) for stray in strays) < 16
    again = draw_strays(200, SMALL, [(_Counting(), 1.0)], Rng.of(5))
    assert all(np.array_equal(one, other) for one, other in zip(strays, again, strict=True))
