"""Tensors with affines in, displacements as tensors out: the order of axes, RAS, batches, what is refused."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from warp_cases import FIXED, MOVING, affine_map, smooth_warp, texture

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.tensors import TensorRegistration, displacement_of, register_tensors, volume_of, warp_of


def _tensor(array: np.ndarray) -> torch.Tensor:
    """(z, y, x) as (1, i, j, k)."""
    return torch.from_numpy(array).permute(2, 1, 0)[None]


def _known(warps: list, moving: Grid) -> TensorRegistration:
    """As if these warps had been found."""
    return TensorRegistration(
        torch.stack([displacement_of(warp) for warp in warps]),
        torch.stack([torch.from_numpy(warp.grid.ras_affine) for warp in warps]),
        torch.from_numpy(moving.ras_affine).expand(len(warps), 4, 4),
        (),
    )


def test_tensors_lie_where_nibabel_has_them(oblique_grid: Grid) -> None:
    array = texture(oblique_grid)
    volume = volume_of(_tensor(array), oblique_grid.ras_affine)
    assert volume.grid.same_as(oblique_grid, 1e-6)
    np.testing.assert_array_equal(volume.array, array)


def test_a_displacement_is_the_warp_in_ras(rng: np.random.Generator) -> None:
    warp = smooth_warp()
    displacement = displacement_of(warp)
    back = warp_of(displacement, FIXED.ras_affine, MOVING)
    np.testing.assert_allclose(back.field, warp.field, atol=1e-6)
    assert back.grid.same_as(FIXED, 1e-6)
    i, j, k = 5, 7, 3
    ras = FIXED.ras_affine @ [i, j, k, 1]
    lps = warp.transform_points(ras[:3] * [-1, -1, 1])
    np.testing.assert_allclose(ras[:3] + displacement[:, i, j, k].numpy(), lps * [-1, -1, 1], atol=1e-4)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_a_batch_moves_as_simpleitk_moves_each(mode: str) -> None:
    warps = [smooth_warp(1), smooth_warp(2)]
    arrays = [texture(MOVING, seed) for seed in (3, 4)]
    if mode == "nearest":
        arrays = [np.rint(array / 200).astype(np.int16) for array in arrays]
    moved = _known(warps, MOVING).apply(torch.stack([_tensor(array) for array in arrays]), mode=mode)
    kind = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}[mode]
    for warp, array, found in zip(warps, arrays, moved):
        default = float(array.min()) if mode == "linear" else 0.0
        right = sitk.Resample(MOVING.to_sitk(array), FIXED.blank(), warp.to_sitk(), kind, default)
        right = sitk.GetArrayFromImage(right)
        off = np.abs(found[0].permute(2, 1, 0).numpy() - right)
        # At the border of the image ITK and float32 disagree now and then which side a voxel is on.
        assert np.mean(off > (0.5 if mode == "linear" else 0)) < 0.002
    assert moved.dtype == (torch.float32 if mode == "linear" else torch.int16)


def test_values_carry_gradients() -> None:
    images = _tensor(texture(MOVING))[None].requires_grad_()
    _known([smooth_warp()], MOVING).apply(images, default=0.0).sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0


def test_a_batch_is_registered_pair_by_pair(caplog: pytest.LogCaptureFixture) -> None:
    fixed = torch.stack([_tensor(texture(FIXED, seed)) for seed in (1, 2)])
    matrices = [affine_map(4, (2, -1, 1)), np.eye(4)]
    calls: list[tuple[str, float]] = []
    with caplog.at_level(logging.INFO, logger="regkit"):
        found = register_tensors(
            fixed,
            fixed,
            torch.from_numpy(FIXED.ras_affine),
            FIXED.ras_affine,
            init=matrices,
            preset="linear",
            device=torch.device("cpu"),
            progress=lambda stage, done: calls.append((stage, done)),
        )
    assert found.displacement.shape == (2, 3, *FIXED.size)
    assert found.displacement.dtype == torch.float32
    points = FIXED.world_points()[::5, ::5, ::5].reshape(-1, 3)
    ras = torch.from_numpy(points * [-1, -1, 1])
    moved = found.transform_points(ras, item=0).numpy() * [-1, -1, 1]
    np.testing.assert_allclose(moved, transform_points(matrices[0], points), atol=1e-3)
    torch.testing.assert_close(found.apply(fixed)[1], fixed[1], atol=0.2, rtol=0)
    assert [done for _, done in calls] == sorted(done for _, done in calls) and calls[-1][1] == 1.0
    assert any("pair 2 of 2" in stage for stage, _ in calls)
    assert any("GB of memory" in record.message for record in caplog.records)
    again = pickle.loads(pickle.dumps(found))
    torch.testing.assert_close(again.displacement, found.displacement)
    assert again.results[0].verdict.level == found.results[0].verdict.level


def test_what_cannot_be_used_is_refused() -> None:
    good, affine = _tensor(texture(FIXED))[None], FIXED.ras_affine
    sheared = affine.copy()
    sheared[0, 1] += 1
    for words, message in (
        ((good[0], good, affine, affine), "axes \\(batch, channel"),
        ((good.numpy(), good, affine, affine), "must be a tensor"),
        ((torch.cat([good, good], dim=1), good, affine, affine), "2 channels"),
        ((torch.cat([good, good]), good, affine, affine), "2 fixed and 1 moving"),
        ((good, good, affine[:3], affine), "fixed affine must be finite, of shape"),
        ((good, good, sheared, affine), "sheared"),
    ):
        with pytest.raises(RegkitError, match=message):
            register_tensors(*words)
    with pytest.raises(RegkitError, match="does not fit its image"):
        register_tensors(good, good, affine, affine, fixed_mask=good[..., :4])
    with pytest.raises(RegkitError, match="list of 3 for 1"):
        register_tensors(good, good, affine, affine, init=["none"] * 3)
    with pytest.raises(RegkitError, match=r"CUDA|no device"):
        register_tensors(good, good, affine, affine, device="cuda:99")
    known = _known([smooth_warp()], MOVING)
    with pytest.raises(RegkitError, match="linear or nearest"):
        known.apply(good, mode="cubic")
    with pytest.raises(RegkitError, match="1 warps and 2 images"):
        known.apply(torch.cat([good, good]))
