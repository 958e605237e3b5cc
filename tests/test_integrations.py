"""The transforms for MONAI and TorchIO: the same result as register() has, on the fixed voxels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from warp_cases import FIXED, affine_map, texture

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.registration import register
from regkit.tensors import volume_of

OPTIONS = {"init": affine_map(4, (2, -1, 1)), "preset": "linear"}
OTHER = Grid((30, 26, 22), (1.6, 1.7, 2.1), FIXED.origin, FIXED.direction)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 1, 0)[None]


def _labels() -> np.ndarray:
    return (texture(OTHER, 4) > 100).astype(np.int16) * 300


def _right() -> tuple[np.ndarray, np.ndarray]:
    """What register() and SimpleITK make of the same images."""
    images = (volume_of(_tensor(texture(grid)), grid.ras_affine) for grid in (FIXED, OTHER))
    result = register(*images, **OPTIONS)  # type: ignore[arg-type]
    labels = volume_of(_tensor(_labels()), OTHER.ras_affine)
    return result.moved.array, result.warp.apply(labels, interpolation="nearest").array


def _check(moved: torch.Tensor, labels: torch.Tensor) -> None:
    right, right_labels = _right()
    off = np.abs(moved[0].permute(2, 1, 0).numpy() - right)
    assert np.mean(off > 0.5) < 0.002
    assert np.mean(labels[0].permute(2, 1, 0).numpy() != right_labels) < 0.002
    assert set(np.unique(labels)) == {0, 300}


def test_a_dictionary_of_monai() -> None:
    monai = pytest.importorskip("monai", reason="the transform is MONAI's")
    from regkit.integrations.monai import RegisterD

    def tensor(array: np.ndarray, grid: Grid) -> torch.Tensor:
        return monai.data.MetaTensor(_tensor(array), affine=torch.from_numpy(grid.ras_affine))

    case = {"mr": tensor(texture(FIXED), FIXED), "ct": tensor(texture(OTHER), OTHER), "name": "case 1"}
    case["labels"] = tensor(_labels(), OTHER)
    step = RegisterD("mr", "ct", also={"labels": "nearest"}, displacement="ddf", verdict="told", **OPTIONS)
    found = monai.transforms.Compose([step])(case)
    _check(found["ct"].as_tensor(), found["labels"].as_tensor())
    for key in ("ct", "labels", "ddf"):
        np.testing.assert_allclose(found[key].affine.numpy(), FIXED.ras_affine, atol=1e-9)
        assert found[key].shape[1:] == FIXED.size
    # The displacement leads where the matrix does.
    ras = FIXED.ras_affine @ [3, 4, 5, 1]
    there = transform_points(OPTIONS["init"], ras[:3] * [-1, -1, 1]) * [-1, -1, 1]
    np.testing.assert_allclose(ras[:3] + found["ddf"][:, 3, 4, 5].numpy(), there, atol=1e-3)
    assert found["told"] in ("PASS", "WARN", "FAIL")
    assert case["ct"].shape[1:] == OTHER.size
    pickle.dumps(step)  # for the workers of a DataLoader
    with pytest.raises(RegkitError, match="'ct' must be a MetaTensor"):
        step({"mr": case["mr"]})
    with pytest.raises(RegkitError, match="got Tensor"):
        step({"mr": case["mr"], "ct": _tensor(texture(OTHER))})


def test_a_subject_of_torchio() -> None:
    torchio = pytest.importorskip("torchio", reason="the transform is TorchIO's")
    from regkit.integrations.torchio import Register

    subject = torchio.Subject(
        mr=torchio.ScalarImage(tensor=_tensor(texture(FIXED)), affine=FIXED.ras_affine),
        ct=torchio.ScalarImage(tensor=_tensor(texture(OTHER)), affine=OTHER.ras_affine),
        labels=torchio.LabelMap(tensor=_tensor(_labels()), affine=OTHER.ras_affine),
    )
    found = torchio.Compose([Register("mr", "ct", also=["labels"], options=OPTIONS)])(subject)
    _check(found.ct.data, found.labels.data)
    for name in ("ct", "labels"):
        np.testing.assert_allclose(found[name].affine, FIXED.ras_affine, atol=1e-9)
    found.check_consistent_space()
    assert subject.ct.spatial_shape == OTHER.size
    with pytest.raises(RegkitError, match="no image 'pet'; it has mr, ct, labels"):
        Register("mr", "pet")(subject)
