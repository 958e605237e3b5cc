"""Painted necks: structures where they belong, of any build, the cord in its canal."""

from __future__ import annotations

import sys
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt

from regkit.core.errors import RegkitError
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.neck import draw_tissues
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs, Synthesiser, draw_neck
from regkit.synthesis.shape_sources import Procedural
from regkit.synthesis.structures import GROUPS, NECK, STRUCTURES

_NUMBER = {name: number for number, name in STRUCTURES.items()}
_COARSE = 2.4  # mm: a whole neck
_OF_ALL = {
    "vertebrae", "discs", "spinal canal", "spinal cord", "airway", "larynx and trachea", "oesophagus",
    "thyroid gland", "salivary glands", "muscles of the neck", "other vessels", "inner fat",
    "fat of the wall", "right back muscles", "left back muscles", "ribs", "bones of the head",
}  # fmt: skip


@cache
def _neck(seed: int) -> Anatomy:
    return draw_neck(Rng.of(seed), _COARSE)


def _structures(neck: Anatomy) -> np.ndarray:
    return neck.structures[neck.labels.numpy()]


def _middle(neck: Anatomy, name: str) -> np.ndarray:
    """(z, y, x), mm."""
    assert neck.spacing is not None
    return neck.spacing * np.argwhere(_structures(neck) == _NUMBER[name]).mean(0)


@cache
def _usual(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tissues and structures of a neck that is neither turned nor bent, about C5, on voxels of 0.8 mm."""
    axes = [np.arange(n, dtype=np.float32) * 0.8 - 0.4 * n for n in (50, 70, 60)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])
    return draw_tissues(points, 0.8, np.random.default_rng(seed))


def test_every_neck_has_all_parts() -> None:
    for seed in range(4):
        there = {STRUCTURES[int(number)] for number in np.unique(_structures(_neck(seed))) if number}
        assert there >= _OF_ALL


def test_axes_are_the_patients() -> None:
    """Towards the head, the back and the left."""
    for seed in range(4):
        neck = _neck(seed)
        assert _middle(neck, "spinal cord")[1] > _middle(neck, "vertebrae")[1] - 12
        assert _middle(neck, "vertebrae")[1] > _middle(neck, "oesophagus")[1]
        assert _middle(neck, "oesophagus")[1] > _middle(neck, "larynx and trachea")[1] - 6
        assert _middle(neck, "salivary glands")[0] > _middle(neck, "thyroid gland")[0]
        assert _middle(neck, "thyroid gland")[0] > _middle(neck, "ribs")[0]
        assert _middle(neck, "left back muscles")[2] > _middle(neck, "right back muscles")[2]


@pytest.mark.parametrize("seed", range(4))
def test_the_cord_lies_in_its_canal(seed: int) -> None:
    _, structures = _usual(seed)
    cord, canal = (structures == _NUMBER[name] for name in ("spinal cord", "spinal canal"))
    around = binary_dilation(cord, np.ones((1, 3, 3), bool)) & ~cord
    assert (canal | (structures == _NUMBER["inner fat"]))[around].mean() > 0.98
    for z in range(len(cord)):
        # Textbook means at C5: 80 mm^2, 13 mm wide, 7 to 8 deep.
        assert 35 < 0.64 * cord[z].sum() < 130
        wide, deep = (0.8 * np.ptp(np.flatnonzero(cord[z].any(axis))) + 0.8 for axis in (0, 1))
        assert wide > deep
        assert 0.64 * canal[z].sum() > 60


def test_bodies_and_discs_take_turns() -> None:
    """Along the spine every 12 to 22 mm."""
    for seed in range(4):
        _, structures = _usual(seed)
        disc = (structures == _NUMBER["discs"]).any((1, 2))
        begins = np.flatnonzero(np.diff(disc.astype(int)) > 0)
        assert 2 <= len(begins) <= 4
        assert all(12 < 0.8 * gap < 22 for gap in np.diff(begins))


def test_no_two_are_of_one_build() -> None:
    areas = [(_usual(seed)[1] == _NUMBER["spinal cord"]).sum() for seed in range(4)]
    assert max(areas) > 1.1 * min(areas)
    fat = [float((_structures(_neck(seed)) == _NUMBER["fat of the wall"]).mean()) for seed in range(4)]
    assert max(fat) > 1.2 * min(fat)


def test_seeds_repeat() -> None:
    again = draw_neck(Rng.of(2), _COARSE)
    assert torch.equal(again.labels, _neck(2).labels)
    assert not torch.equal(_neck(1).labels, _neck(2).labels)


def test_structures_that_share_a_channel_lie_apart() -> None:
    """As those of a trunk: of few lies more than a little within 32 mm of another of its channel."""
    pairs = [pair for group in GROUPS for pair in permutations(group, 2) if set(pair) & set(NECK)]
    near = []
    for seed in range(6):
        structures = _structures(_neck(seed))
        there = set(np.unique(structures))
        for one, other in pairs:
            if {one, other} <= there:
                distance = distance_transform_edt(structures != one, sampling=_COARSE)
                near.append((distance[structures == other] < 32).mean())
    assert np.mean(near) < 0.1


def test_pairs_of_necks_name_what_they_show() -> None:
    how = Pairs(size=32, offset=8, strays=0, necks=1.0, spacing=(2.0, 3.0), shapes=((32, 48, 48),), reuse=2)
    views = Synthesiser(how, [(Procedural(), 1.0)], 5, torch.device("cpu")).draw([0], (32, 48, 48))
    assert set(views.structures.unique().tolist()) & set(NECK)
    assert views.images.isfinite().all()


def test_necks_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("regkit.synthesis.neck", "regkit.synthesis.painting")
    for name in [name for name in sys.modules if name in ours]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RegkitError, match=r"drawing necks needs scipy.*pairs.necks: 0"):
        draw_neck(Rng.of(0))
