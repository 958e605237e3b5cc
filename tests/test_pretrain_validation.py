"""Retrieval of structures: what scores all of it, and what scores little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from regkit.core.errors import RegkitError
from regkit.pretrain import validation
from regkit.pretrain.validation import Validation, load_validation_maps


@pytest.fixture(scope="module")
def small() -> Validation:
    """Views of two maps of some forty balls, each another structure."""
    maps = []
    for seed in range(2):
        random = np.random.default_rng(seed)
        at = np.stack(np.meshgrid(*3 * [np.arange(128)], indexing="ij"))
        labels = np.zeros((128, 128, 128), np.uint8)
        for number in range(1, 41):
            centre = random.uniform(10, 118, (3, 1, 1, 1))
            labels[((at - centre) ** 2).sum(0) < random.uniform(6, 16) ** 2] = number
        maps.append(torch.from_numpy(labels))
    return Validation(maps, stride=2)


def _in_turn(
    small: Validation, of: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Features that come from the labels of the cells: those of each batch when its images are asked for."""
    waiting = iter(small.batches)
    return lambda images: of(next(waiting).labels[:, 1::2, 1::2, 1::2])


def _one_hot(labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels.long(), 41).movedim(-1, 1).float()


def _place(labels: torch.Tensor) -> torch.Tensor:
    axes = [torch.arange(n, dtype=torch.float32) for n in labels.shape[1:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(2, -1, -1, -1, -1)


def test_features_that_name_the_structure_find_it(small: Validation) -> None:
    assert small.score(_in_turn(small, _one_hot)) == 1.0


def test_the_same_views_and_places_each_time(small: Validation) -> None:
    scores = [small.score(lambda images: F.avg_pool3d(images, 2)) for _ in range(2)]
    assert scores[0] == scores[1]
    assert 0 < scores[0] < 0.4


def test_the_place_in_the_volume_is_of_little_use(small: Validation) -> None:
    assert small.score(_in_turn(small, _place)) < 0.3


def _write(path: Path, labels: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path))


def test_maps_are_scaled_as_a_whole_and_numbered_anew(tmp_path: Path) -> None:
    labels = np.zeros((32, 64, 48), np.int32)
    labels[8:16, 32:48, 12:24] = 2035
    labels[20:24, 0:8, 40:48] = 17
    _write(tmp_path / "one.nii.gz", labels)
    (found,) = load_validation_maps(tmp_path)
    assert found.shape == (128, 128, 128)
    assert found.dtype == torch.uint8
    # Twice as large, in the middle of the cube.
    expected = np.zeros((64, 128, 96), np.uint8)
    expected[16:32, 64:96, 24:48] = 2
    expected[40:48, 0:16, 80:96] = 1
    assert np.array_equal(found[32:96, :, 16:112].numpy(), expected)
    assert not found[:32].any()


def test_what_cannot_be_validated_on(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match="no label map to validate on"):
        load_validation_maps(tmp_path / "missing")
    _write(tmp_path / "many.nii.gz", np.arange(8**3, dtype=np.int32).reshape(8, 8, 8))
    with pytest.raises(RegkitError, match="512 labels"):
        load_validation_maps(tmp_path)


def test_views_are_of_the_size_of_the_maps() -> None:
    assert validation._PAIRS.ensembles.size == validation._SIDE
