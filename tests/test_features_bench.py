"""The comparison of features: what counts as a gain, and what a profile says of a part that tells nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from features import CHOOSING, Gain, chosen, gain, line, summary
from features_profile import profile

from regkit.features.featuremap import FeatureMap
from regkit.ops.filters import smooth
from regkit.solver.deformable import STRIDE, Pyramid


def _row(
    features: str, organs: tuple[float, ...] = (), tre: float | None = None, pair: str = "a"
) -> dict[str, Any]:
    """What open_pairs.run gives, as far as it is looked at."""
    metrics: dict[str, Any] = {
        "evidence": {features: {"blur_of_match": 0.5, "share": 1.0}},
        "folding_percent": 0.0,
    }
    if organs:
        metrics["mean_dice"] = {"linear": 0.3, "after": float(np.nanmean(organs))}
        names = ("liver", "spleen", "kidney")
        metrics["labels"] = [{"name": name, "dice": dice} for name, dice in zip(names, organs)]
    seconds = dict.fromkeys(("features", "coarse", "fine"), 1.0)
    row = {
        "pair": pair,
        "direction": "as given",
        "settings": {"features": features},
        "metrics": metrics,
        "seconds": seconds,
    }
    return row | ({"tre_mm": {"linear": 4.0, "after": tre}} if tre is not None else {})


@pytest.fixture
def abdomen() -> Gain:
    mind = [_row("mind", (0.8, 0.5, float("nan"))), _row("mind", (0.6, 0.7, 0.4))]
    both = [_row("both", (0.9, 0.5, float("nan"))), _row("both", (0.9, 0.4, 0.4))]
    return gain(both, mind)


def test_a_gain_is_the_mean_over_starts_and_names_the_worst_structure(abdomen: Gain) -> None:
    first, second = 0.7 - 0.65, 1.7 / 3 - 1.7 / 3
    assert abdomen.gained == {"dice": pytest.approx((first + second) / 2)}
    assert abdomen.spread["dice"] == pytest.approx((first - second) / 2)
    assert abdomen.worst == (pytest.approx(-0.15), "spleen")  # the kidney was not scored from every start
    assert "-0.150 spleen" in line(abdomen)


def test_a_pair_of_landmarks_alone_counts_by_its_ratio(abdomen: Gain) -> None:
    skull = gain([_row("both", tre=1.0, pair="b")], [_row("mind", tre=2.0, pair="b")])
    assert "dice" not in skull.gained and skull.gained["tre_mm"] == -1.0 and skull.worst == (0.0, "")
    text = summary([abdomen, skull])
    assert "Dice +0.0250 on average of 1" in text and "TRE times 0.500 on average of 1" in text
    assert len(line(skull).split("|")) == len(line(abdomen).split("|"))


def test_choosing_and_confirming_pairs_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.pair_names", lambda: [*CHOOSING, "new"])
    assert chosen(["choosing"]) == list(CHOOSING) and chosen(["confirming", "x"]) == ["new", "x"]


def test_a_profile_falls_where_a_match_is_told_and_is_one_where_nothing_is(rng: np.random.Generator) -> None:
    def texture() -> torch.Tensor:
        return smooth(torch.from_numpy(rng.random((4, 20, 20, 20))).float(), 2)

    def pyramid(values: torch.Tensor) -> Pyramid:
        return Pyramid({STRIDE: FeatureMap(values, torch.ones_like(values[:1]))}, (0, 0, 0))

    field, one = torch.zeros(3, 20, 20, 20), texture()
    noisy = one + 0.3 * one.std() * torch.from_numpy(rng.normal(size=one.shape)).float()
    near, far = profile(pyramid(one), pyramid(noisy), field, (1, 4))
    assert far < near < 0.5
    assert profile(pyramid(one), pyramid(texture()), field, (1, 4)) == pytest.approx([1, 1], abs=0.15)
