"""Trunks to learn from: structures where they belong, of any build, in every contrast."""

from __future__ import annotations

import sys
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from regkit.core.errors import RegkitError
from regkit.pretrain.targets import STRUCTURE_CHANNELS
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs, Synthesiser, draw_trunk
from regkit.synthesis.pose import MAX_SIDE
from regkit.synthesis.procedural_trunk import NAMES, draw_tissues
from regkit.synthesis.shape_sources import Procedural
from regkit.synthesis.structures import GROUPS, STRUCTURES, TRUNK
from regkit.synthesis.tissues import TISSUES, intensities

_NUMBER = {name: number for number, name in TRUNK.items()}
_COARSE = 5.0  # mm: an eighth of the time


@cache
def _trunk(seed: int) -> Anatomy:
    return draw_trunk(Rng.of(seed), _COARSE)


@pytest.fixture
def trunks() -> list[Anatomy]:
    """Some that lack nothing."""
    return [_trunk(seed) for seed in range(4)]


def _structures(trunk: Anatomy) -> torch.Tensor:
    assert trunk.structures is not None
    return torch.from_numpy(trunk.structures[trunk.labels.numpy()])


def _middle(trunk: Anatomy, name: str) -> torch.Tensor:
    """(z, y, x), mm."""
    assert trunk.spacing is not None
    return trunk.spacing * (_structures(trunk) == _NUMBER[name]).nonzero().double().mean(0)


def test_every_structure_is_there_and_nothing_else(trunks: list[Anatomy]) -> None:
    for trunk in trunks:
        assert set(_structures(trunk).unique().tolist()) == {0, *TRUNK}


def test_structures_are_numbered_without_gaps_and_those_of_the_trunk_first() -> None:
    assert list(STRUCTURES) == list(range(1, STRUCTURE_CHANNELS))
    assert list(STRUCTURES)[: len(TRUNK)] == list(TRUNK)
    assert len(set(STRUCTURES.values())) == len(STRUCTURES)


def test_some_lack_an_organ() -> None:
    for seed, lacking in ((7, {"left kidney"}), (11, {"gallbladder"})):
        there = set(_structures(_trunk(seed)).unique().tolist())
        assert {name for number, name in TRUNK.items() if number not in there} == lacking


def test_structures_that_share_a_channel_lie_apart() -> None:
    """A registration, which looks 32 mm far, cannot take one for the other.

    On the mean of many: now and then a liver reaches to the spleen, or a colon to the spine.
    """
    assert sorted(number for group in GROUPS for number in group) == list(range(STRUCTURE_CHANNELS))
    groups = [[number for number in group if number in TRUNK] for group in GROUPS]
    pairs = [pair for group in groups for pair in permutations(group, 2)]
    near = []
    for trunk in map(_trunk, range(12)):
        assert trunk.spacing is not None
        structures = _structures(trunk).numpy()
        there = set(np.unique(structures))
        distance = {
            one: distance_transform_edt(structures != one, sampling=trunk.spacing)
            for one in there & {one for one, _ in pairs}
        }
        near.append(
            [
                (distance[one][structures == other] < 32).mean() if {one, other} <= there else np.nan
                for one, other in pairs
            ]
        )
    assert np.nanmean(near, axis=0).max() < 0.06


def test_axes_are_the_patients(trunks: list[Anatomy]) -> None:
    """Towards the head, the back and the left."""
    for trunk in trunks:
        assert _middle(trunk, "heart")[0] > _middle(trunk, "liver")[0] > _middle(trunk, "pelvis")[0]
        assert _middle(trunk, "spinal cord")[1] > _middle(trunk, "aorta")[1] > _middle(trunk, "stomach")[1]
        assert _middle(trunk, "spleen")[2] > _middle(trunk, "vertebrae")[2] > _middle(trunk, "liver")[2]
        for pair in ("kidney", "psoas", "lung", "back muscles"):
            assert _middle(trunk, f"left {pair}")[2] > _middle(trunk, f"right {pair}")[2]


def test_no_two_are_of_one_build(trunks: list[Anatomy]) -> None:
    """Places and sizes of organs differ beyond what moves the whole trunk: between two kidneys."""
    gaps = [float((_middle(t, "left kidney") - _middle(t, "right kidney"))[0]) for t in trunks]
    assert np.std(gaps) > 2.5
    fat = [float((_structures(t) == _NUMBER["fat of the wall"]).double().mean()) for t in trunks]
    assert max(fat) > 1.3 * min(fat)


def test_play_slack_and_fatness_do_what_they_say() -> None:
    """Without them the trunk is the usual one; fat of the wall moves nothing; organs make room for fat."""
    axes = [np.arange(n, dtype=np.float32) * 6 - 3 * n for n in (50, 40, 60)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])

    def drawn(**build: float) -> np.ndarray:
        return draw_tissues(points, 6.0, np.random.default_rng(3), **build)[1]

    usual, fat, moved, small = drawn(), drawn(fatness=1.8), drawn(play=6.0), drawn(slack=0.2)
    wall = [_NUMBER["fat of the wall"], 0]
    inside = ~np.isin(usual, wall)
    assert np.array_equal(usual[inside], fat[inside])
    assert (fat > 0).sum() > 1.05 * (usual > 0).sum()
    liver = usual == _NUMBER["liver"], moved == _NUMBER["liver"]
    assert 0.5 < 2 * (liver[0] & liver[1]).sum() / (liver[0].sum() + liver[1].sum()) < 0.97
    for organ in ("left kidney", "right kidney"):  # nothing cuts them
        share = (small == _NUMBER[organ]).sum() / (usual == _NUMBER[organ]).sum()
        assert share == pytest.approx(np.exp(-0.6), abs=0.08)  # of the volume
    assert (small == _NUMBER["inner fat"]).sum() > 1.2 * (usual == _NUMBER["inner fat"]).sum()


def test_contrasts_differ_in_order() -> None:
    """So that none can be had from another by a change of the grey scale."""
    names = ("fat", "liver", "csf", "muscle", "spleen")
    orders = {kind: sorted(names, key=intensities(kind).__getitem__) for kind in ("ct", "t2", "t1")}
    assert orders["t1"] == ["csf", "spleen", "muscle", "liver", "fat"]
    assert orders["t2"] == ["muscle", "liver", "spleen", "fat", "csf"]
    assert orders["ct"] == ["fat", "csf", "muscle", "liver", "spleen"]


def test_the_demo_draws_the_same_organs() -> None:
    assert {number: TRUNK[number] for number in NAMES} == NAMES
    assert max(NAMES) == len(NAMES) == 14


def test_a_fine_trunk_is_a_box_out_of_it() -> None:
    """As many voxels at most; in it the parts are as large as they are in the whole."""
    box = draw_trunk(Rng.of(3), 1.5)
    assert tuple(box.labels.shape) == (MAX_SIDE,) * 3
    assert box.spacing == 1.5
    sizes = {name: 1.5**3 * (_structures(box) == _NUMBER[name]).sum() / 1000 for name in TRUNK.values()}
    assert sum(size > 0 for size in sizes.values()) > 10  # ml
    assert 4 < sizes["aorta"] < 120


def test_palettes_give_one_tissue_one_look(trunks: list[Anatomy]) -> None:
    """Labels of one tissue differ by little, those of two by much; a CT and an MR are met now and then."""
    trunk = trunks[0]
    count = int(trunk.labels.max()) + 1
    spread, between, windows = [], [], []
    for seed in range(40):
        means, deviations, window = trunk.palette(Rng.of(seed))
        assert means.shape == deviations.shape == (256,)
        assert (deviations >= 0).all()
        windows.append(window)
        if window:  # as of a CT: air and compact bone lie beyond it
            assert means[int(trunk.labels[0, 0, 0])] < -0.3
            assert means[:count].max() > 1.1
        else:
            assert -0.1 < means[:count].min() <= means[:count].max() < 1.1
        lungs = [
            int(trunk.labels[_structures(trunk) == _NUMBER[f"{side} lung"]].mode().values)
            for side in ("left", "right")
        ]
        spread.append(abs(float(means[lungs[0]] - means[lungs[1]])))
        between.append(float(np.std(means[:count])))
    assert max(spread) < 0.05
    assert 5 < sum(windows) < 25
    assert min(between) > 0.05


def test_pairs_of_trunks_name_what_they_show() -> None:
    """Strays have no name: what they hide keeps its own."""
    how = Pairs(
        size=32,
        reuse=2,
        offset=8,
        strays=10,
        trunks=1.0,
        spacing=(4.4, 7.2),
        ensembles=Ensembles(size=48),
        shapes=((16, 48, 48),),
    )
    synthesiser = Synthesiser(how, [(Procedural(), 1.0)], 0, torch.device("cpu"))
    pair, again = synthesiser.draw([1], (16, 48, 48)), synthesiser.draw([1], (16, 48, 48))
    assert torch.equal(pair.structures, again.structures)
    assert torch.equal(pair.images, again.images)
    assert pair.structures.shape == (2, 16, 48, 48)
    assert len(pair.structures.unique()) > 10
    stray = pair.labels > 200
    assert stray.any()
    assert pair.structures[stray].any()


def test_trunks_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name
        for name in sys.modules
        if name
        in ("regkit.synthesis.trunk", "regkit.synthesis.procedural_trunk", "regkit.synthesis.painting")
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RegkitError, match=r"drawing trunks needs scipy.*pairs.trunks: 0"):
        draw_trunk(Rng.of(0))


def test_tissues_have_a_number_each() -> None:
    assert len(set(TISSUES)) == len(TISSUES) < 256
