"""The segmenter: its voxels against a loop, what it keeps of a network, its file, and what it is given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segmentation_cases import GRID, labelled, random_segmenter, task, thresholder, tiny_network, tiny_weights

import regkit
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.core.intensity import window_of
from regkit.features.equalise import equalised
from regkit.features.unet import UNet, in_bfloat16, shuffled, unshuffled
from regkit.features.weights import load_network, save_weights
from regkit.io.images import Volume
from regkit.segmentation.model import FILE, Segmenter, new_network

pytestmark = pytest.mark.usefixtures("seeded", "one_thread")


def test_shuffled_is_a_loop_over_voxels() -> None:
    stride, channels = 2, 3
    cells = torch.rand(2, stride**3 * channels, 2, 3, 4)
    found = shuffled(cells, stride)
    assert found.shape == (2, channels, 4, 6, 8)
    for n, c, z, y, x in np.ndindex(found.shape):
        voxel = ((z % stride) * stride + y % stride) * stride + x % stride
        assert found[n, c, z, y, x] == cells[n, voxel * channels + c, z // stride, y // stride, x // stride]


@pytest.mark.parametrize("stride", [1, 2])
def test_shuffled_undoes_what_the_network_does_to_its_input(stride: int) -> None:
    image = torch.rand(2, 1, 4, 6, 8)
    assert torch.equal(shuffled(unshuffled(image, stride), stride), image)
    several = torch.rand(2, 3 * stride**3, 2, 3, 4)
    assert shuffled(several, stride).shape == (2, 3, 2 * stride, 3 * stride, 4 * stride)
    assert torch.equal(shuffled(several, 1), several)


@pytest.mark.parametrize("fast", [True, False])
def test_a_processor_computes_in_bfloat16_where_that_is_fast(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regkit.ops.native.fast_bfloat16", lambda: fast)
    image, network = torch.rand(1, 1, 16, 16, 16), tiny_network()
    with in_bfloat16(torch.device("cpu")):
        assert network(image).dtype == (torch.bfloat16 if fast else torch.float32)
    assert network(image).dtype == torch.float32


@pytest.mark.parametrize("stride", [1, 2])
def test_each_score_is_that_of_its_own_voxel(stride: int) -> None:
    """Through the whole network: of one that sees single voxels, whatever the shape."""
    image = torch.rand(1, 1, 8, 12, 16)
    segmenter = Segmenter(thresholder((0.3, 0.6), stride), task(), {})
    with torch.no_grad():
        scores = segmenter(image)
    assert scores.shape == (1, 3, 8, 12, 16)
    expected = torch.bucketize(image[:, 0], torch.tensor([0.3, 0.6]))
    assert torch.equal(scores.argmax(1), expected)


def _below(network: UNet, image: torch.Tensor) -> np.ndarray:
    """What the finest level on the way up is given by those below."""
    with torch.no_grad():
        return network.eval().deepen(network.enter(image))[-1].numpy()


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_new_network_keeps_all_but_the_last_level(norm: str, stride: int) -> None:
    """Up to a scale of the weights, which the norms undo: it sees what the other one saw."""
    start = tiny_network(5, norm=norm, stride=stride)
    for name, tensor in start.state_dict().items():  # what a norm has learnt, too
        if tensor.dim() == 1:
            tensor.copy_(torch.rand_like(tensor) + (0.5 if "bias" not in name else -0.2))
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    image = torch.rand(1, 1, 16, 16, 24)
    found = {keep: new_network(start, 4, keep) for keep in (True, False)}
    for keep, network in found.items():
        last = network.get_parameter(f"model.{len(network.model) - 1}.weight")
        assert last.shape == (4 * stride**3, 4, 3, 3, 3)
        alike = np.corrcoef(*(_below(one, image).ravel() for one in (start, network)))[0, 1]
        assert (alike > 0.999) == keep
    for name, tensor in start.state_dict().items():
        assert torch.equal(tensor, before[name])
    last_level = max(k for k, module in enumerate(start.model) if isinstance(module, torch.nn.Upsample))
    random = found[False].state_dict()
    for name, parameter in found[True].named_parameters():
        if parameter.dim() == 1:
            expected = before if int(name.split(".")[1]) < last_level else random
            assert torch.equal(parameter, expected[name])


@pytest.mark.parametrize("keep", [True, False])
def test_a_new_network_shows_no_pattern_of_cells(keep: bool) -> None:
    """All voxels of a cell have the scores of the first, and the classes others each."""
    network = new_network(tiny_network(), 3, keep)
    assert network.architecture == replace(tiny_network().architecture, out_channels=24)
    with torch.no_grad():
        scores = Segmenter(network, task(), {})(torch.rand(1, 1, 16, 8, 8))
    first = scores[:, :, ::2, ::2, ::2]
    assert torch.equal(scores, first.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4))
    assert scores[0, 0].std() > 0
    assert not torch.allclose(scores[:, 0], scores[:, 1])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    segmenter = random_segmenter((-3, 2, 700), patch=(16, 8, 24), input="equalised", ct_window=(-1.5, 20.0))
    segmenter.provenance["step"] = "17"
    segmenter.save(tmp_path / FILE)
    image = torch.rand(1, 1, 8, 16, 24)
    with torch.no_grad():
        expected = segmenter(image)
        for place in (tmp_path, tmp_path / FILE, str(tmp_path)):
            found = Segmenter.load(place)
            assert found.task == segmenter.task
            assert found.provenance["step"] == "17"
            assert not found.network.training
            assert torch.equal(found(image), expected)
    found.save(tmp_path / "again.safetensors")  # what was loaded can be written again
    again = Segmenter.load(tmp_path / "again.safetensors")
    assert (again.task, again.provenance) == (found.task, found.provenance)


def _damaged(path: Path, entry: str, **changes: Any) -> Path:
    """A segmenter's file with another entry of what it is."""
    save_weights(path, tiny_network(24, **changes), {"segmentation": entry})
    return path


GOOD = {
    "labels": [2, 7], "names": ["a", "b"], "spacing": 2.0, "patch": [8, 8, 8], "ct_window": [0, 1],
    "input": "window",
}  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "cannot read the model '{path}'"),
        ("[1, 2]", "cannot read the model '{path}'"),
        ("7", "cannot read the model '{path}'"),
        (json.dumps({**GOOD, "patches": 1}), "cannot read the model '{path}'.*patches"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "spacing"}), "cannot read the model.*spacing"),
        (json.dumps({**GOOD, "labels": 5}), "cannot read the model"),
        (json.dumps({**GOOD, "labels": [2]}), "its labels do not fit its network"),
        (json.dumps({**GOOD, "labels": [2, 7, 9]}), "its labels do not fit its network"),
        (json.dumps({**GOOD, "names": ["a"]}), "its labels do not fit its network"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    path = _damaged(tmp_path / FILE, json.dumps(GOOD))
    assert Segmenter.load(path).task.names == ("a", "b")
    _damaged(path, entry)
    with pytest.raises(RegkitError, match=message.format(path=path)):
        Segmenter.load(path)


def test_what_is_no_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match=f"no model in '{tmp_path}': expected model.safetensors"):
        Segmenter.load(tmp_path)
    for missing in ("folder", "model.safetensors"):
        with pytest.raises(RegkitError, match=f"the model '{tmp_path / missing}' does not exist"):
            Segmenter.load(tmp_path / missing)
    path = tiny_weights(tmp_path / "features.safetensors")
    with pytest.raises(RegkitError, match=f"'{path}' holds a network that does not segment; regkit finetune"):
        Segmenter.load(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RegkitError, match=f"cannot read weights '{path}': truncated or damaged"):
        Segmenter.load(path)
    random_segmenter().save(tmp_path / FILE)
    network, provenance = load_network(tmp_path / FILE)
    save_weights(tmp_path / FILE, tiny_network(24, stride=1), provenance)
    with pytest.raises(RegkitError, match="its labels do not fit its network"):
        Segmenter.load(tmp_path)
    assert network.architecture.stride == 2


def test_a_segmenter_gives_no_features(tmp_path: Path) -> None:
    """What it says of organs lies in another form than a registration would read it."""
    random_segmenter().save(tmp_path / FILE)
    image, _ = labelled(0)
    for features in ("network", "network+mind"):
        with pytest.raises(RegkitError, match=f"'{tmp_path / FILE}'.*segment"):
            regkit.register(image, image, features=features, weights=tmp_path / FILE, init="none")


def test_a_segmenter_can_be_begun_with(tmp_path: Path) -> None:
    random_segmenter().save(tmp_path / FILE)
    start, _ = load_network(tmp_path / FILE)
    image = torch.rand(1, 1, 16, 16, 16)
    seen = (_below(network, image).ravel() for network in (start, new_network(start, 2, True)))
    assert np.corrcoef(*seen)[0, 1] > 0.999


# Values of a CT: air, soft tissue and bone at every second voxel.
_HU = np.resize(np.array([-1000, 40, -300, 700, 90, -1000, 20], np.float32), GRID.shape)


def test_an_image_is_seen_in_the_range_of_its_kind(rng: np.random.Generator) -> None:
    given = task(ct_window=(-500.0, 500.0))
    found, grid = given.network_input(Volume(_HU, GRID))
    assert grid.same_as(GRID)  # isotropic, of the task's spacing, and upright
    np.testing.assert_allclose(found.numpy(), np.clip((_HU + 500) / 1000, 0, 1), atol=1e-6)

    mr = rng.gamma(2.0, 100.0, GRID.shape).astype(np.float32)
    found, _ = given.network_input(Volume(mr, GRID))
    low, high = window_of(mr, None)
    assert low == mr.min()  # an image without negative values keeps its zero
    np.testing.assert_allclose(found.numpy(), np.clip((mr - low) / (high - low), 0, 1), atol=1e-5)
    assert found.dtype == torch.float32

    ranks, _ = replace(given, input="equalised").network_input(Volume(mr, GRID))
    assert torch.equal(ranks, equalised(found))
    assert not torch.allclose(ranks, found, atol=0.05)


def test_an_image_is_seen_upright_and_isotropic(oblique_grid: Grid) -> None:
    """Its intensity is a linear function of the place in the world, which resampling keeps."""
    slope = np.array([1.0, -2.0, 0.5])
    volume = Volume((oblique_grid.world_points() @ slope).astype(np.float32), oblique_grid)
    found, grid = task(spacing=1.5).network_input(volume)
    assert grid.same_as(oblique_grid.working(1.5))
    assert found.shape == grid.shape
    inside = np.s_[2:-2, 2:-2, 2:-2]  # borders are repeated
    place = (grid.world_points() @ slope)[inside].ravel()
    seen = found.numpy()[inside].ravel()
    middle = (seen > 0.05) & (seen < 0.95)  # beyond, intensities are clipped
    assert middle.sum() > 50
    assert np.corrcoef(place[middle], seen[middle])[0, 1] > 0.999
