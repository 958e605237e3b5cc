"""Pairs: where a voxel of one view lies in the other is exact, and any pair can be had by its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from regkit.core.errors import RegkitError
from regkit.synthesis import pairs
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.ensemble import Ensembles, draw_strays
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs, Synthesiser, Views, cut_and_render, draw_anatomy
from regkit.synthesis.shape_sources import Procedural

N, WHOLE = 16, 26
SOURCES = [(Procedural(), 1.0)]
HOW = Pairs(
    size=N,
    reuse=3,
    offset=8,
    turn=25.0,
    stretch=0.1,
    bend=0.1,
    strays=0,
    ensembles=Ensembles(size=WHOLE, count=(3, 6), radius=(4.0, 9.0), details=4),
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are the labels, so that no time is lost on their looks."""
    monkeypatch.setattr(
        pairs, "render", lambda labels, *_, **__: SimpleNamespace(images=labels.float(), visible=labels < 255)
    )


def _cut(anatomy: Anatomy, how: Pairs, rng: Rng, shape: tuple[int, ...] | None = None) -> Views:
    """One pair."""
    return cut_and_render([anatomy], how, [rng], shape)


def _looked_up(pair: Views) -> tuple[torch.Tensor, torch.Tensor]:
    """The first view's labels at the partners, and where that says something: inside, no tie of rounding."""
    where = pair.partner[0].double()
    whole = where.round().long()
    clear = ((where - whole).abs() < 0.499).all(0)
    sides = torch.tensor(pair.labels.shape[:0:-1]).view(3, 1, 1, 1)
    x, y, z = torch.minimum(whole.clamp_min(0), sides - 1)
    return pair.labels[0][z, y, x], clear & ((whole >= 0) & (whole < sides)).all(0)


def test_the_partner_is_exact_however_axes_are_exchanged_and_flipped(
    rng: np.random.Generator, plain: None
) -> None:
    """In an ensemble where every voxel has a label of its own kind, no other voxel would do."""
    ensemble = torch.from_numpy(rng.integers(0, 255, (WHOLE,) * 3)).to(torch.uint8)
    shares = []
    for seed in range(150):
        pair = _cut(Anatomy(ensemble), HOW, Rng.of(seed))
        found, clear = _looked_up(pair)
        assert torch.equal(found[clear], pair.labels[1][clear])
        shares.append(float(clear.float().mean()))
    assert np.mean(shares) > 0.2


def test_the_partner_is_exact_in_an_ensemble_of_unequal_sides(rng: np.random.Generator, plain: None) -> None:
    ensemble = torch.from_numpy(rng.integers(0, 255, (25, 40, 31))).to(torch.uint8)
    for seed in range(40):
        pair = _cut(Anatomy(ensemble), HOW, Rng.of(seed))
        found, clear = _looked_up(pair)
        assert torch.equal(found[clear], pair.labels[1][clear])


@pytest.mark.parametrize("shape", [(8, 24, 24), (24, 8, 24), (24, 24, 8)])
def test_the_partner_is_exact_in_slabs(
    rng: np.random.Generator, plain: None, shape: tuple[int, int, int]
) -> None:
    ensemble = torch.from_numpy(rng.integers(0, 255, (26, 30, 28))).to(torch.uint8)
    for seed in range(30):
        pair = _cut(Anatomy(ensemble), HOW, Rng.of(seed), shape)
        assert pair.images.shape == (2, *shape)
        found, clear = _looked_up(pair)
        assert torch.equal(found[clear], pair.labels[1][clear])


def test_shapes_take_turns() -> None:
    how = Pairs(size=16, offset=4, ensembles=Ensembles(size=32), shapes=((8, 24, 32), (16, 16, 20)))
    shapes = [how.shape(Rng.of(seed)) for seed in range(300)]
    assert set(shapes) == set(how.shapes)
    assert 0.4 < np.mean([shape == how.shapes[0] for shape in shapes]) < 0.6
    assert replace(how, shapes=()).shape(Rng.of(0)) == (16, 16, 16)


def test_views_are_turned_into_every_position(plain: None) -> None:
    """The first view of a ramp is a ramp, along any axis and in either direction, inside the ensemble."""
    ramp = torch.arange(WHOLE, dtype=torch.uint8).expand(WHOLE, WHOLE, WHOLE).contiguous()
    met = set()
    for seed in range(120):
        first = _cut(Anatomy(ramp), HOW, Rng.of(seed)).labels[0].int()
        steps = [first.diff(dim=axis).unique().tolist() for axis in range(3)]
        (axis,) = [a for a in range(3) if steps[a] != [0]]
        assert steps[axis] in ([1], [-1])
        assert first.min() >= 0
        assert first.max() < WHOLE
        met.add((axis, steps[axis][0], int(first.min())))
    assert len({m[:2] for m in met}) == 6
    assert {m[2] for m in met} >= {0, WHOLE - N}


def test_offsets_reach_their_limit_and_not_further(plain: None) -> None:
    """Without bending, the second view lies in the first shifted by whole voxels, about its middle."""
    how = replace(HOW, bend=0.0)
    ensemble = torch.zeros(WHOLE, WHOLE, WHOLE, dtype=torch.uint8)
    shifts = []
    for seed in range(200):
        partner = _cut(Anatomy(ensemble), how, Rng.of(seed)).partner[0].double()
        shifts.append((partner.mean((1, 2, 3)) - (N - 1) / 2).numpy())
    np.testing.assert_allclose(shifts, np.round(shifts), atol=1e-4)
    assert set(np.abs(np.round(shifts)).ravel()) == set(range(how.offset + 1))
    still = _cut(Anatomy(ensemble), replace(how, offset=0), Rng.of(3)).partner[0]
    torch.testing.assert_close(still.mean((1, 2, 3)), torch.full((3,), (N - 1) / 2))


def test_a_turn_is_no_larger_than_asked_for(plain: None) -> None:
    """Without stretching, the Jacobian of the partner is a turn, times a permutation of axes."""
    ensemble = torch.zeros(WHOLE, WHOLE, WHOLE, dtype=torch.uint8)
    angles = []
    for seed in range(60):
        how = replace(HOW, bend=0.0, stretch=0.0)
        partner = _cut(Anatomy(ensemble), how, Rng.of(seed)).partner[0].double()
        ends = [(partner[:, 0, 0, -1], 0), (partner[:, 0, -1, 0], 1), (partner[:, -1, 0, 0], 2)]
        jacobian = torch.stack([(end - partner[:, 0, 0, 0]) / (N - 1) for end, _ in ends], dim=1)
        scale = float(torch.linalg.det(jacobian)) ** (1 / 3)
        assert 0.5 < scale < 2
        torch.testing.assert_close(jacobian @ jacobian.T, torch.eye(3).double() * scale**2, atol=1e-4, rtol=0)
        cosine = (float(jacobian.trace()) / scale - 1) / 2
        angles.append(np.degrees(np.arccos(min(1.0, cosine))))
    assert max(angles) <= HOW.turn + 0.1
    assert max(angles) > HOW.turn / 2


def test_any_order_gives_the_same_pairs() -> None:
    """Also from another synthesiser, and with other pairs of the same ensemble in between."""

    def fresh() -> Synthesiser:
        return Synthesiser(HOW, [(Procedural(), 1.0)], 11, torch.device("cpu"))

    one, other = fresh(), fresh()
    forwards = [one.draw([k]) for k in range(7)]
    backwards = {k: other.draw([k]) for k in (6, 0, 5, 1, 4, 2, 3)}
    for k, pair in enumerate(forwards):
        for name in ("images", "labels", "visible", "partner", "structures"):
            assert torch.equal(getattr(pair, name), getattr(backwards[k], name)), (k, name)
    assert not torch.equal(forwards[0].images, forwards[1].images)
    others = Synthesiser(HOW, [(Procedural(), 1.0)], 12, torch.device("cpu"))
    assert not torch.equal(forwards[0].images, others.draw([0]).images)


def test_what_a_pair_is_made_of() -> None:
    pair = Synthesiser(HOW, [(Procedural(), 1.0)], 0, torch.device("cpu")).draw([4])
    assert pair.images.shape == pair.labels.shape == pair.visible.shape == (2, N, N, N)
    assert pair.partner.shape == (1, 3, N, N, N)
    dtypes = [t.dtype for t in (pair.images, pair.labels, pair.visible, pair.partner[0])]
    assert dtypes == [torch.float32, torch.uint8, torch.bool, torch.float32]
    assert all(t.is_contiguous() for t in (pair.images, pair.labels, pair.partner[0]))
    assert pair.structures.shape == pair.labels.shape
    assert not pair.structures.any()  # a random shape has no name
    assert pair.partner[0].isfinite().all()


def test_an_ensemble_is_drawn_once_for_the_pairs_that_reuse_it(
    monkeypatch: pytest.MonkeyPatch, plain: None
) -> None:
    drawn = []

    def counted(how: Ensembles, sources: object, rng: Rng) -> torch.Tensor:
        drawn.append(rng.uniform(0, 1))
        return torch.zeros(how.size, how.size, how.size, dtype=torch.uint8)

    monkeypatch.setattr(pairs, "draw_labels", counted)
    synthesiser = Synthesiser(HOW, [], 0, torch.device("cpu"))
    for k in range(9):
        synthesiser.draw([k])
    assert len(drawn) == len(set(drawn)) == 3


def test_anatomies_of_a_bank_take_turns(monkeypatch: pytest.MonkeyPatch, plain: None) -> None:
    """Each pair is of one of the next few anatomies, the same one in whatever order pairs are drawn."""

    def numbered(how: Ensembles, sources: object, rng: Rng) -> torch.Tensor:
        number = numbers.setdefault(rng.uniform(0, 1), len(numbers))
        return torch.full((how.size,) * 3, number, dtype=torch.uint8)

    numbers: dict[float, int] = {}
    monkeypatch.setattr(pairs, "draw_labels", numbered)
    how = replace(HOW, bank=4)
    synthesiser = Synthesiser(how, [], 0, torch.device("cpu"))
    for anatomy in range(24):  # so that they are numbered as they are drawn
        draw_anatomy(how, [], 0, anatomy)
    met = [int(synthesiser.draw([k]).labels[0, 0, 0, 0]) for k in range(60)]
    assert {anatomy - k // how.reuse for k, anatomy in enumerate(met)} == {0, 1, 2, 3}
    other = Synthesiser(how, [], 0, torch.device("cpu"))
    assert [int(other.draw([k]).labels[0, 0, 0, 0]) for k in (41, 7, 23)] == [met[41], met[7], met[23]]


def test_an_anatomy_that_takes_turns_is_drawn_once(plain: None) -> None:
    """However long it was not asked for: drawing a trunk takes seconds."""
    drawn: list[int] = []

    def noted(number: int) -> Anatomy:
        drawn.append(number)
        return Anatomy(torch.zeros((how.ensembles.size,) * 3, dtype=torch.uint8))

    how = replace(HOW, bank=16, reuse=10)
    synthesiser = Synthesiser(how, [], 0, torch.device("cpu"), noted)
    for k in range(300):
        before = len(drawn)
        synthesiser.draw([k])
        assert set(drawn[before:]) <= set(range(k // 10, k // 10 + 16)) == set(how.turns(k))
    assert len(drawn) == len(set(drawn)) > 30


def test_views_of_an_upright_anatomy_keep_their_axes_and_are_exact(plain: None) -> None:
    """Each is at a random spacing; partners point to the same place of it: its coordinates are its labels."""
    how = replace(HOW, size=32, offset=10, spacing=(2.0, 4.0), ensembles=Ensembles(size=48))
    coordinates = torch.meshgrid(*[torch.arange(60, dtype=torch.uint8)] * 3, indexing="ij")[::-1]  # x, y, z
    scales, compared = [], 0
    for seed in range(30):
        views = [
            _cut(Anatomy(v.contiguous(), spacing=2.0), how, Rng.of(seed), (16, 32, 32)) for v in coordinates
        ]
        first, second = torch.stack([pair.labels.double() for pair in views], dim=1)
        for component, axis in ((0, 2), (1, 1), (2, 0)):  # not flipped, no axis exchanged
            assert (first[component].diff(dim=axis) >= 0).all()
        scales.append(float(first[2, -1].median() - first[2, 0].median()) / 15)
        partner = views[0].partner[0]
        x, y, z = partner.round().long()
        inside = ((partner >= 0) & (partner < torch.tensor([32, 32, 16]).view(3, 1, 1, 1) - 1)).all(0)
        # Rounded to a voxel of the first view, up to two of the anatomy's, and there to one of those.
        apart = first[:, z[inside], y[inside], x[inside]] - second[:, inside]
        compared += int(inside.sum())
        assert apart.numel() == 0 or apart.abs().max() <= 2
    assert compared > 30_000
    assert 0.9 < min(scales) < 1.3
    assert 1.6 < max(scales) < 2.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"size": 19},
            "ensembles of 26 voxels are too small for pairs of 19 with an offset of 8.*27 or larger",
        ),
        ({"offset": 11}, "too small for pairs of 16 with an offset of 11"),
        ({"offset": -1}, "offset of pairs must be from 0"),
        ({"offset": 16}, "less than their size 16"),
        ({"size": 0}, "size of pairs"),
        ({"reuse": 0}, "reuse of pairs"),
        ({"bank": 0}, "bank of pairs"),
        ({"trunks": 1.5}, "trunks of pairs must be a share"),
        ({"necks": -0.1}, "necks of pairs must be a share"),
        ({"artefacts": 2.0}, "artefacts of pairs must be a share"),
        ({"trunks": 0.5, "necks": 0.6}, "must not exceed 1 together, got 0.5, 0.6 and 0.0"),
        ({"anatomies": -0.1}, "anatomies of pairs must be a share"),
        ({"thick": 2.0}, "thick of pairs must be a share"),
        ({"trunks": 0.7, "anatomies": 0.4}, "must not exceed 1 together, got 0.7, 0.0 and 0.4"),
        ({"spacing": (3.0, 2.0)}, "spacing of pairs"),
        (
            {"shapes": ((8, 8, 27),)},
            r"shapes of pairs must be from 1 to the size of ensembles, 26, got \[8, 8, 27\]",
        ),
    ],
)
def test_numbers_that_make_no_pairs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        replace(HOW, **change)


def test_an_ensemble_that_just_fits() -> None:
    how = replace(HOW, ensembles=replace(HOW.ensembles, size=N + HOW.offset))
    for seed in range(20):
        labels = torch.zeros((N + HOW.offset,) * 3, dtype=torch.uint8)
        assert _cut(Anatomy(labels), how, Rng.of(seed)).images.shape == (2, N, N, N)


def _jacobian(partner: torch.Tensor) -> torch.Tensor:
    """(Z, Y, X, 3, 3) of index coordinates, by central differences."""
    return torch.stack([torch.stack(torch.gradient(c, dim=(2, 1, 0)), -1) for c in partner.double()], -2)


def test_a_stretch_is_along_each_axis_by_itself_and_no_larger_than_asked_for(plain: None) -> None:
    ensemble = torch.zeros(WHOLE, WHOLE, WHOLE, dtype=torch.uint8)
    how = replace(HOW, bend=0.0, stretch=0.3)
    scales = []
    for seed in range(60):
        partner = _cut(Anatomy(ensemble), how, Rng.of(seed)).partner[0]
        scales.append(torch.linalg.svdvals(_jacobian(partner)[3, 3, 3]).log())
    found = torch.stack(scales)
    assert found.abs().max() <= 0.3 + 1e-3
    assert found.max() > 0.25
    assert found.min() < -0.25
    assert (found[:, 0] - found[:, 2]).min() > 0.01  # never the same along all axes


def test_a_bend_of_the_default_hardly_folds(plain: None) -> None:
    """Gradients of a bend do not depend on how far it reaches: 0.2 of the distance over which it varies."""
    ensemble = torch.zeros(64, 64, 64, dtype=torch.uint8)
    how = Pairs(size=48, offset=8, strays=0, ensembles=Ensembles(size=64))
    folded, moved = [], []
    for seed in range(10):
        partner = _cut(Anatomy(ensemble), how, Rng.of(seed)).partner[0]
        determinant = torch.linalg.det(_jacobian(partner))
        folded.append((determinant * determinant.median().sign() <= 0).double().mean())
        straight = _cut(Anatomy(ensemble), replace(how, bend=0.0), Rng.of(seed)).partner[0]
        moved.append((partner - straight).norm(dim=0).max())
    assert torch.stack(folded).mean() < 0.005
    assert torch.stack(moved).max() > 5


def test_each_view_has_strays_of_its_own() -> None:
    """Details that the other view lacks; everywhere else both show the same anatomy."""
    labels = torch.randint(0, 9, (WHOLE,) * 3).to(torch.uint8)
    details = draw_strays(8, HOW.ensembles, SOURCES, Rng.of(0))
    anatomy = Anatomy(labels, strays=details)
    how = replace(HOW, strays=12)
    strays = 0
    for seed in range(20):
        pair, without = _cut(anatomy, how, Rng.of(seed)), _cut(anatomy, HOW, Rng.of(seed))
        stray = pair.labels >= 240
        strays += int(stray.any())
        assert torch.equal(pair.labels[~stray], without.labels[~stray])
        assert torch.equal(pair.partner, without.partner)
        assert not (stray[0] & stray[1]).all()
    assert strays > 15
    assert len(draw_anatomy(how, SOURCES, 0, 0).strays) > 12
    with pytest.raises(RegkitError, match="strays of pairs"):
        replace(HOW, strays=-1)
    with pytest.raises(RegkitError, match="at most 240"):
        replace(HOW, strays=231)


def test_both_views_show_the_same_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first view's grain at the partner of a voxel of the second is that voxel's."""
    shown: list[torch.Tensor] = []

    def render(
        labels: torch.Tensor,
        rng: object,
        palettes: object,
        grains: list[Callable[[], torch.Tensor]],
        **_: float,
    ) -> SimpleNamespace:
        shown.extend(grain() for grain in grains)
        return SimpleNamespace(images=labels.float(), visible=labels < 255)

    monkeypatch.setattr(pairs, "render", render)
    labels = torch.zeros((WHOLE,) * 3, dtype=torch.uint8)
    anatomy = Anatomy(labels).with_grain(Rng.of(50))
    # Whole voxels, where no interpolation is needed.
    how = replace(HOW, turn=0.0, stretch=0.0, bend=0.0)
    for seed in range(20):
        partner = _cut(anatomy, how, Rng.of(seed)).partner[0]
        first, second = shown[-2:]
        x, y, z = partner.round().long()
        inside = ((partner > -0.5) & (partner < N - 0.5)).all(0)
        at = first[:, z.clamp(0, N - 1), y.clamp(0, N - 1), x.clamp(0, N - 1)]
        assert inside.any()
        torch.testing.assert_close(second[:, inside], at[:, inside], rtol=1e-3, atol=1e-3)
    synthesiser = Synthesiser(HOW, SOURCES, 0, torch.device("cpu"))
    synthesiser.draw([0])
    assert shown[-1].shape == (2, N, N, N)
    assert shown[-1].std() > 0.3


def test_pairs_do_not_depend_on_those_that_they_are_drawn_with() -> None:
    """Alone and in a batch, bit for bit: of trunks and ensembles, with all that a pair may have."""
    how = replace(HOW, strays=5, bank=4, trunks=0.3, spacing=(4.4, 7.2), shapes=((12, 16, 20),))
    synthesiser = Synthesiser(how, SOURCES, 3, torch.device("cpu"))
    numbers = [0, 3, 4, 9, 1, 7]
    together = synthesiser.draw(numbers, (12, 16, 20))
    for k, number in enumerate(numbers):
        alone = synthesiser.draw([number], (12, 16, 20))
        for name in ("images", "labels", "visible", "structures"):
            assert torch.equal(getattr(alone, name), getattr(together, name)[2 * k : 2 * k + 2]), name
        assert torch.equal(alone.partner[0], together.partner[k])
