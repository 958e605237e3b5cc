"""Learn2Reg's own measures, on cases small enough to be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from regkit.bench.learn2reg_metrics import learn2reg_measures
from regkit.core.errors import RegkitError
from regkit.ops.jacobian import learn2reg_sdlogj

SHAPE = (14, 12, 10)


def _boxes(*boxes: tuple[int, tuple[slice, ...]]) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for label, box in boxes:
        labels[box] = label
    return labels


def _shift(*voxels: float) -> np.ndarray:
    return np.broadcast_to(np.float32(voxels), (*SHAPE, 3)).copy()


CUBE = np.s_[4:8, 4:8, 3:7]


def test_a_field_pulls_along_the_axes_of_the_array() -> None:
    moving = _boxes((1, np.s_[6:10, 3:7, 4:8]))
    found = learn2reg_measures(_boxes((1, CUBE)), moving, _shift(2, -1, 1), [1])
    assert found == {"dice": 1.0, "hd95_voxels": 0.0, "sdlogj": pytest.approx(0, abs=1e-6)}


def test_dice_and_distance_of_a_cube_one_voxel_off() -> None:
    """12 of 16 columns overlap: Dice 0.75; all faces but those along the shift lie on each other."""
    found = learn2reg_measures(_boxes((1, CUBE)), _boxes((1, np.s_[5:9, 4:8, 3:7])), _shift(0, 0, 0), [1])
    assert found["dice"] == pytest.approx(0.75)
    # A tenth or more of each surface, one of six faces, is a voxel away.
    assert found["hd95_voxels"] == 1.0


def test_the_surface_is_weighted_by_its_area() -> None:
    """A plate with one voxel on it: of its surface, counted by area, less than a twentieth lies off."""
    plate = np.s_[2:12, 2:10, 3:6]
    fixed, moved = _boxes((1, plate)), _boxes((1, plate), (1, np.s_[6:7, 6:7, 6:7]))
    found = learn2reg_measures(fixed, moved, _shift(0, 0, 0), [1])
    assert found["hd95_voxels"] == 0.0
    tower = _boxes((1, plate), (1, np.s_[6:9, 6:9, 6:9]))
    assert learn2reg_measures(fixed, tower, _shift(0, 0, 0), [1])["hd95_voxels"] > 1


def test_labels_that_one_map_lacks_are_not_scored_and_those_that_are_lost_score_0() -> None:
    fixed = _boxes((1, CUBE), (2, np.s_[0:2, 0:2, 0:2]), (3, np.s_[10:13, 8:11, 6:9]))
    moving = _boxes((1, CUBE), (3, np.s_[10:13, 8:11, 6:9]), (4, np.s_[0:2, 8:10, 0:2]))
    found = learn2reg_measures(fixed, moving, _shift(0, 0, 0), [1, 2, 3, 4])
    assert found["dice"] == 1.0
    lost = learn2reg_measures(fixed, moving, _shift(-8, -6, -5), [1, 3])  # 3 is pulled from where 0 is
    assert lost["dice"] < 0.5
    assert lost["hd95_voxels"] == np.inf


def test_smoothness_is_taken_inside_the_mask(rng: np.random.Generator) -> None:
    field = rng.normal(0, 0.2, (*SHAPE, 3)).astype(np.float32)
    mask = np.zeros(SHAPE, bool)
    mask[:7] = True
    labels = _boxes((1, CUBE))
    found = learn2reg_measures(labels, labels, field, [1], mask)
    assert found["sdlogj"] == learn2reg_sdlogj(field, mask)
    assert found["sdlogj"] != learn2reg_measures(labels, labels, field, [1])["sdlogj"]


def test_all_has_to_be_on_one_grid() -> None:
    labels = _boxes((1, CUBE))
    for moving, field in ((labels[1:], _shift(0, 0, 0)), (labels, _shift(0, 0, 0)[..., :2])):
        with pytest.raises(RegkitError, match="one grid"):
            learn2reg_measures(labels, moving, field, [1])


def test_without_the_package_there_is_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    labels = _boxes((1, CUBE))
    assert set(learn2reg_measures(labels, labels, _shift(0, 0, 0), [1])) == {"dice", "sdlogj"}
