"""segment(): on any grid the labels of the same places, and of a network whose answer is known, those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from segmentation_cases import GRID, labelled, random_segmenter, task, thresholder
from warp_cases import FIXED, blob, centre_of_mass, texture

import regkit
from regkit.core.geometry import Grid
from regkit.io.images import Volume
from regkit.segmentation import inference
from regkit.segmentation.inference import onto_grid, segment
from regkit.segmentation.model import FILE, Segmenter
from regkit.segmentation.monai_parts import sliding_windows

CPU: dict[str, Any] = {"device": "cpu", "threads": 1}


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that is slow in bfloat16, for what must be exact."""
    monkeypatch.setattr("regkit.ops.native.fast_bfloat16", lambda: False)


def _smooth(grid: Grid, seed: int = 0) -> Volume:
    """An image without detail that resampling would lose."""
    noise = np.random.default_rng(seed).normal(size=grid.shape)
    return Volume(
        gaussian_filter(noise, 5 / np.array(grid.spacing[::-1]), mode="nearest").astype(np.float32), grid
    )


def _by_levels(levels: Sequence[float], labels: Sequence[int], **changes: Any) -> Segmenter:
    return Segmenter(thresholder(levels), task(labels, **changes), {})


@pytest.mark.usefixtures("in_float32")
def test_on_the_grid_of_the_network_nothing_is_lost() -> None:
    """Classes by intensity, in windows that overlap: the labels are those intensities, voxel by voxel."""
    volume = Volume(texture(GRID), GRID)
    segmenter = _by_levels((0.4, 0.6), (9, 4))
    seen, grid = segmenter.task.network_input(volume)
    assert grid.same_as(GRID)
    result = segment(segmenter, volume, **CPU)
    clear = (abs(seen - 0.4) > 0.01) & (abs(seen - 0.6) > 0.01)
    expected = np.array([0, 9, 4])[np.digitize(seen, (0.4, 0.6))]
    np.testing.assert_array_equal(result.labels.array[clear], expected[clear])
    assert set(np.unique(result.labels.array)) == {0, 4, 9}
    assert result.confidence.array[clear].min() > 0.8


def test_labels_lie_where_the_intensities_do(oblique_grid: Grid) -> None:
    """On grids that are turned, flipped and anisotropic, of a network that sees other voxels."""
    volume = _smooth(oblique_grid)
    low, high = (float(np.quantile(volume.array, q)) for q in (0.45, 0.7))
    bottom, top = (
        float(np.percentile(volume.array[volume.array > volume.array.min()], q)) for q in (0.5, 99.5)
    )
    levels = [(level - bottom) / (top - bottom) for level in (low, high)]
    result = segment(_by_levels(levels, (1, 2), spacing=1.2), volume, **CPU)
    assert result.labels.grid is volume.grid or result.labels.grid.same_as(oblique_grid)
    expected = np.digitize(volume.array, (low, high))
    assert (result.labels.array == expected).mean() > 0.95
    assert result.labels.array.shape == result.confidence.array.shape == oblique_grid.shape


def test_a_blob_is_found_in_its_place(oblique_grid: Grid) -> None:
    """By its centre in mm, which knows no grids."""
    centre = oblique_grid.centre + np.array([0.4, -0.3, 0.8])
    image = Volume(blob(oblique_grid, centre, 2.5), oblique_grid)
    found = segment(_by_levels((0.4,), (5,), spacing=0.8), image, **CPU).labels
    assert set(np.unique(found.array)) == {0, 5}
    truth = centre_of_mass(image.array > 0.4, oblique_grid)
    assert np.linalg.norm(centre_of_mass(found.array == 5, oblique_grid) - truth) < 0.4


@pytest.mark.usefixtures("in_float32")
def test_reorienting_the_image_reorients_the_labels(oblique_grid: Grid) -> None:
    """Axes in another order and direction cover the same world; of a network that sees neighbours too."""
    segmenter = random_segmenter(spacing=1.0)
    image = Volume(texture(oblique_grid) + 2000, oblique_grid).to_sitk()  # no CT, whatever is looked at
    straight = segment(segmenter, image, **CPU)
    assert len(np.unique(straight.labels.array)) == 3
    for axes in ("ASR", "LPI", "RIP", "SLA"):
        turned = sitk.DICOMOrient(image, axes)
        found = segment(segmenter, turned, **CPU)
        assert found.labels.grid.same_as(Grid.from_sitk(turned))
        for name in ("labels", "confidence"):
            back = sitk.Resample(
                getattr(found, name).to_sitk(), image, sitk.Transform(3, sitk.sitkIdentity),
                sitk.sitkNearestNeighbor,
            )  # fmt: skip
            apart = sitk.GetArrayFromImage(back).astype(float) - getattr(straight, name).array
            assert (abs(apart) > 1e-3).mean() < 2e-3


@pytest.mark.parametrize("points", [1, 3 * 500, 1 << 23])
def test_labels_are_the_largest_of_the_interpolated_probabilities(
    oblique_grid: Grid, points: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_POINTS", points)
    seen = oblique_grid.working(1.7)
    scores = torch.from_numpy(rng.normal(size=(3, *seen.shape)).astype(np.float32))
    probabilities = (3 * scores).softmax(0)
    found, confidence = onto_grid(probabilities, seen, oblique_grid, (300, 4))
    interpolated = np.stack([
        sitk.GetArrayFromImage(sitk.Resample(
            sitk.Cast(seen.to_sitk(share.numpy()), sitk.sitkFloat64), oblique_grid.blank(),
            sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, 0.0, sitk.sitkFloat64, True,
        ))
        for share in probabilities
    ])  # fmt: skip
    np.testing.assert_allclose(confidence, interpolated.max(0), atol=2e-5)
    assert confidence.dtype == np.float32
    assert found.dtype == np.int16
    ranked = np.sort(interpolated, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], np.array([0, 300, 4])[interpolated.argmax(0)][clear])


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ((1, 255), np.uint8),
        ((1, 256), np.int16),
        ((-1, 5), np.int16),
        ((1, 32768), np.int32),
        ((-70000, 1), np.int32),
    ],
)
def test_the_type_holds_all_labels(labels: tuple[int, int], dtype: type) -> None:
    image, _ = labelled(0)
    found = segment(_by_levels((0.3, 0.7), labels), image, **CPU)
    assert found.labels.array.dtype == dtype
    assert set(np.unique(found.labels.array)) == {0, *labels}
    assert found.confidence.array.dtype == np.float32


def test_confidence_is_a_probability(oblique_grid: Grid) -> None:
    """Also where the network is certain, and rounding could go beyond 1."""
    for segmenter in (random_segmenter(spacing=1.0), _by_levels((0.4, 0.6), (1, 2), spacing=1.0)):
        confidence = segment(segmenter, _smooth(oblique_grid), **CPU).confidence.array
        assert confidence.min() >= 0.3  # the largest of three
        assert confidence.max() <= 1
    assert confidence.max() > 0.99


def test_a_window_that_is_the_image_is_the_network(rng: np.random.Generator) -> None:
    segmenter = random_segmenter()
    image = torch.from_numpy(rng.random((16, 8, 24), np.float32))
    with torch.no_grad():
        expected = segmenter(image[None, None])[0]
        found = sliding_windows(image, (16, 8, 24), segmenter, torch.device("cpu"), lambda done: None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 30, 24), (5, 40, 16), (3, 4, 5)])
def test_windows_cover_an_image_of_any_size(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Each is a patch, and what they say of a voxel is put at that voxel."""
    image = torch.from_numpy(rng.random(shape, np.float32))
    told: list[float] = []
    seen: list[tuple[int, ...]] = []

    def scores(window: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(window.shape))
        return torch.cat([window, 1 - window], dim=1)

    found = sliding_windows(image, (16, 8, 12), scores, torch.device("cpu"), told.append)
    assert {window[1:] for window in seen} == {(1, 16, 8, 12)}
    assert found.shape == (2, *shape)
    torch.testing.assert_close(found[0], image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], 1 - image, rtol=0, atol=1e-5)
    assert told == sorted(told)
    assert len(told) == len(seen)
    assert told[-1] == 1
    assert told[0] == pytest.approx(seen[0][0] / sum(window[0] for window in seen))


def test_how_images_and_models_are_stored_changes_nothing(tmp_path: Path) -> None:
    segmenter = random_segmenter(spacing=2.5)
    segmenter.save(tmp_path / FILE)
    volume = Volume(texture(FIXED), FIXED, "image")
    expected = segment(segmenter, volume, **CPU)
    image, compressed = tmp_path / "image.nrrd", tmp_path / "image.nii.gz"
    for path in (image, compressed):
        regkit.save_image(volume.to_sitk(), path)
    nifti = nibabel.Nifti1Image(volume.array.T, FIXED.ras_affine)
    for source in (volume.to_sitk(), nifti, image, str(compressed)):
        for model in (tmp_path, tmp_path / FILE):
            found = segment(model, source, **CPU)
            assert found.labels.grid.same_as(FIXED)
            assert (found.labels.array != expected.labels.array).mean() < 2e-3
    assert expected.names == {2: "label 2", 7: "label 7"}


def test_two_runs_are_alike_and_leave_no_trace(tmp_path: Path) -> None:
    segmenter = random_segmenter()
    segmenter.network.train()
    before = {name: tensor.clone() for name, tensor in segmenter.network.state_dict().items()}
    state = torch.get_num_threads(), torch.random.get_rng_state()
    image, _ = labelled(1)
    first, second = (segment(segmenter, image, **CPU) for _ in range(2))
    np.testing.assert_array_equal(first.labels.array, second.labels.array)
    np.testing.assert_array_equal(first.confidence.array, second.confidence.array)
    assert torch.get_num_threads() == state[0]
    assert torch.equal(torch.random.get_rng_state(), state[1])
    assert segmenter.network.training
    for name, tensor in segmenter.network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_volumes_are_counted(oblique_grid: Grid) -> None:
    result = segment(_by_levels((0.4, 2.0), (1, 2), spacing=1.0), _smooth(oblique_grid), **CPU)
    rows = result.volumes()
    assert [(row["label"], row["name"]) for row in rows] == [(1, "label 1"), (2, "label 2")]
    count = int((result.labels.array == 1).sum())
    assert rows[0]["voxels"] == count > 0
    assert rows[0]["ml"] == pytest.approx(count * math.prod(oblique_grid.spacing) / 1000)
    assert (rows[1]["voxels"], rows[1]["ml"]) == (0, 0)


def test_progress_goes_to_the_end() -> None:
    told: list[tuple[str, float]] = []
    segment(random_segmenter(patch=(8, 8, 16)), labelled(0)[0], progress=lambda *now: told.append(now), **CPU)
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["reading", "segmentation"]
    shares = [done for _, done in told]
    assert shares == sorted(shares)
    assert len(shares) > 8
    assert (shares[0], shares[-1]) == (0, 1)


def test_inputs_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, (image, _) = random_segmenter(), labelled(0)
    for model, source, given, message in (
        (segmenter, replace(image, array=image.array * 0), {}, "image is constant"),
        (segmenter, tmp_path / "no.nii", {}, f"image '{tmp_path / 'no.nii'}' does not exist"),
        (segmenter, image, {"device": "tpu"}, "no device named 'tpu'"),
        (tmp_path / "no", image, {}, f"the model '{tmp_path / 'no'}' does not exist"),
        (tmp_path, image, {}, f"no model in '{tmp_path}'"),
    ):
        with pytest.raises(regkit.RegkitError, match=message):
            segment(model, source, **given)
    monkeypatch.setattr("regkit.runtime.memory.available_memory", lambda: 1e6)
    with pytest.raises(regkit.RegkitError, match="the segmentation into 3 classes needs"):
        segment(random_segmenter(spacing=0.5), image, **CPU)
    monkeypatch.setattr("regkit.segmentation.monai_parts.find_spec", lambda name: None)
    with pytest.raises(regkit.RegkitError, match=r"needs MONAI.*pip install"):
        segment(segmenter, image)
