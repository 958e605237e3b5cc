"""The whole way on real pairs, from the native files and without labels, masks or hints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import regkit


def _register(pair: Path, exchanged: bool = False) -> regkit.Registration:
    manifest = json.loads((pair / "manifest.json").read_text())
    fixed, moving = ("moving", "fixed") if exchanged else ("fixed", "moving")
    return regkit.register(
        pair / manifest[fixed],
        pair / manifest[moving],
        fixed_labels=pair / manifest[f"{fixed}_labels"],
        moving_labels=pair / manifest[f"{moving}_labels"],
    )


def test_an_mr_slab_finds_its_place_in_a_ct_of_another_patient(shared_dir: Path) -> None:
    result = _register(shared_dir / "data" / "pairs" / "abdomen-mr-ct")
    dice = result.metrics["mean_dice"]
    assert dice["before"] == 0  # the frames do not even overlap
    assert dice["linear"] > 0.3
    assert dice["after"] >= 0.55
    assert result.metrics["folding_percent"] == 0


def test_lung_vessels_meet_within_a_slice(shared_dir: Path) -> None:
    pair = shared_dir / "data" / "pairs" / "lung-ct-ct"
    fixed, moving = regkit.read_pairs(pair / "landmarks.csv")
    result = _register(pair)
    error = regkit.target_registration_error(result.warp.transform_points(fixed), moving)
    assert np.mean(error) <= 2.5  # mm; 34.9 before, and the best affine map of the landmarks leaves 2.9
    assert result.metrics["folding_percent"] == 0


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("name", ["cord-t1-t2", "cord-t2-t2s"])
def test_a_cord_that_is_nearly_aligned_gets_no_worse(shared_dir: Path, name: str, exchanged: bool) -> None:
    result = _register(shared_dir / "data" / "pairs" / name, exchanged)
    dice = result.metrics["mean_dice"]
    assert dice["after"] >= dice["before"]
    assert result.metrics["folding_percent"] == 0
