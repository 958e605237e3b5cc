"""The experiment with a local descriptor: pairs fit together, the loss finds partners, a file is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from features_local import Local, at, draw_pair, load, matching_loss, save

from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.mixture import mixture
from regkit.synthesis.noise import Rng, smooth_noise
from regkit.synthesis.pairs import Pairs, draw_anatomy

HOW = Pairs(strays=0, ensembles=Ensembles(size=96))


def test_cells_lie_where_their_partners_are() -> None:
    """By MIND, whose costs are lower there than two cells away."""
    anatomy = draw_anatomy(HOW, mixture(1, 0, []), 3, 0)
    costs = dict.fromkeys((-2.0, 0.0, 2.0), 0.0)
    for number in range(8):
        pair = draw_pair(anatomy, Rng.of(4, number))
        cells = (pair.partner + 0.5) / 2 - 0.5
        inside = ((cells > 2) & (cells < 17)).all(0)
        for shift in costs:
            apart = at(pair.mind[1].float(), cells + shift) - pair.mind[0].float()
            costs[shift] += float(apart.square().mean(0)[inside].mean())
    assert costs[0] < 0.95 * min(costs[-2], costs[2])


def test_the_loss_is_least_where_partners_are_told() -> None:
    rng = Rng.of(0)
    one = smooth_noise(rng, 8, (16, 16, 16), 2.0)
    where = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    sharp = torch.tensor(1.0)

    def loss(second: torch.Tensor) -> float:
        found = matching_loss(one, second, where, sharp, Rng.of(1))
        assert found is not None
        return float(found)

    nothing = float(np.log(7**3))
    assert loss(one) < nothing - 1 < nothing < loss(one.roll(2, 1))
    assert loss(torch.zeros_like(one)) == pytest.approx(nothing, abs=1e-3)
    assert matching_loss(one, one, where + 14, sharp, rng) is None


def test_a_file_gives_the_same_descriptors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, image = Local(width=8, out=4), torch.rand(1, 1, 12, 16, 20)
    save(network, tmp_path / "a.safetensors", 7)
    with torch.no_grad():
        found, again = network(image), load(tmp_path / "a.safetensors")(image)
        brighter = network(0.5 * image + 0.2)
    assert found.shape == (1, 4, 6, 8, 10) and torch.equal(found, again)
    assert float(found.square().sum(1).max()) < 1
    torch.testing.assert_close(brighter, found, atol=5e-3, rtol=0)
