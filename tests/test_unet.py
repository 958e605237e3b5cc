"""The network against the published one, and its parts against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regkit.core.errors import RegkitError
from regkit.features.unet import Architecture, UNet, fused

pytestmark = pytest.mark.usefixtures("seeded")
SMALL = Architecture(out_channels=5, width=4, levels=2)


def _randomise(network: UNet) -> UNet:
    """Batch norms as after a training: other means, variances, scales and shifts than at the start."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for values in (module.weight, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                assert values is not None
                nn.init.normal_(values, std=0.3)
    return network


def _published(facts: Path) -> list[tuple[str, list[int], str]]:
    entries = json.loads((facts / "published_unet_state_dict.json").read_text())["state_dict"]
    return [(name, shape, dtype) for name, shape, dtype in entries]


def _test_weights(network: UNet) -> None:
    """The weights of the test vector: a hash of the position of each number in the state dict."""
    low = np.uint64(0xFFFFFFFF)
    for j, (name, entry) in enumerate(network.state_dict().items()):
        if not entry.is_floating_point():
            continue
        h = (np.arange(entry.numel(), dtype=np.uint64) + np.uint64(1000003 * (j + 1))) * np.uint64(2654435761)
        h &= low
        h = (h ^ (h >> np.uint64(15))) * np.uint64(2246822519) & low
        h ^= h >> np.uint64(13)
        s = torch.from_numpy(h / 2**31 - 1).reshape(entry.shape)
        if name.endswith("running_var"):
            entry.copy_(1 + 0.5 * s)
        elif entry.ndim == 5:
            entry.copy_(s * (2 / (27 * entry.shape[1])) ** 0.5)
        else:
            entry.copy_(1 + 0.1 * s if name.endswith("weight") else 0.1 * s)


@pytest.fixture
def facts(shared_dir: Path) -> Path:
    folder = shared_dir / "facts"
    if not (folder / "published_unet_vector.npz").is_file():
        pytest.skip(f"the published network is not described in {folder}")
    return folder


def test_the_published_network_has_these_entries(facts: Path) -> None:
    found = [
        (name, list(entry.shape), str(entry.dtype).removeprefix("torch."))
        for name, entry in UNet().state_dict().items()
    ]
    assert found == _published(facts)


def test_the_published_network_gives_these_numbers(facts: Path) -> None:
    network = UNet().eval()
    _test_weights(network)
    i = np.arange(32**3)
    image = torch.from_numpy((0.5 + 0.5 * np.sin(0.013 * i) * np.cos(0.11 * i)).astype(np.float32))
    expected = np.load(facts / "published_unet_vector.npz")["output"]
    for tried in (network, fused(network)):
        with torch.no_grad():
            found = tried(image.view(1, 1, 32, 32, 32))[:, :, ::2, ::2, ::2].numpy()
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_default_is_the_network_of_5_9_million() -> None:
    network = UNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_899_344
    assert network.multiple == 16
    names = list(network.state_dict())
    assert names[0] == "model.0.weight"
    assert names[-1] == "model.65.weight"


@pytest.mark.parametrize(
    ("stride", "padding"), [(1, "reflect"), (2, "reflect"), (2, "replicate"), (2, "zeros")]
)
def test_shapes_at_every_level(stride: int, padding: Any) -> None:
    network = UNet(Architecture(5, 4, 2, stride, padding)).eval()
    sides = [2 * network.multiple, 3 * network.multiple, 4 * network.multiple]
    image = torch.rand(2, 1, *sides)
    output, levels = network.forward_levels(image)
    assert output.shape == (2, 5, *(n // stride for n in sides))
    assert torch.equal(output, network(image))
    for k, level in zip((2, 1, 0), levels, strict=True):
        assert level.shape == (2, 4 * 2**k, *(n // (stride * 2**k) for n in sides))
        assert level.min() >= 0  # after the ReLU
    last = network.model[-1]
    assert torch.equal(output, last(levels[-1]))


def test_stride_2_sees_each_voxel_in_a_channel_of_its_own() -> None:
    network = UNet(Architecture(width=4, levels=1, stride=2))
    seen: list[torch.Tensor] = []
    network.model[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = torch.rand(1, 1, 8, 12, 16)
    network(image)
    offsets = [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    expected = torch.stack([image[0, 0, z::2, y::2, x::2] for z, y, x in offsets])
    assert torch.equal(seen[0][0], expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_batch_norms_fold_into_the_convolutions(stride: int) -> None:
    network = _randomise(UNet(Architecture(5, 4, 2, stride)))
    before = {name: entry.clone() for name, entry in network.state_dict().items()}
    copied = fused(network)
    image = torch.rand(1, 1, 16, 16, 24)
    with torch.no_grad():
        expected = network.eval()(image)
        assert (copied(image) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm3d) for module in copied.modules())
    assert all(torch.equal(entry, before[name]) for name, entry in network.state_dict().items())


def test_an_instance_norm_knows_nothing_of_other_volumes_nor_of_training() -> None:
    """Each volume of a batch by itself, in train mode as in eval mode and fused; scale and shift of a norm's
    input do not count but for epsilon."""
    network = UNet(Architecture(5, 4, 2, 2, "replicate", "instance"))
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    images = torch.rand(3, 1, 16, 16, 24)
    with torch.no_grad():
        together = network.train()(images)
        for tried in (network.eval(), fused(network)):
            alone = torch.cat([tried(image[None]) for image in images])
            torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    norm = next(module for module in network.modules() if isinstance(module, nn.GroupNorm))
    x = torch.randn(2, norm.num_channels, 6, 5, 4)
    expected = (x - x.mean((2, 3, 4), keepdim=True)) / (
        x.var((2, 3, 4), keepdim=True, correction=0) + 1e-2
    ).sqrt()
    scale, shift = (values.view(-1, 1, 1, 1) for values in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(x), expected * scale + shift)


def test_channels_last_gives_the_same() -> None:
    network = _randomise(UNet(SMALL)).eval()
    image = torch.rand(1, 1, 16, 8, 12)
    with torch.no_grad():
        expected = network(image)
        last = network.to(memory_format=torch.channels_last_3d)(
            image.contiguous(memory_format=torch.channels_last_3d)
        )
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_weight() -> None:
    network = UNet(SMALL)
    output, levels = network.forward_levels(torch.rand(2, 1, 16, 16, 16))
    (output.square().mean() + sum(level.square().mean() for level in levels)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_start_keeps_the_size_of_activations() -> None:
    torch.manual_seed(0)
    for module in UNet(Architecture(width=16, levels=2)).modules():
        if isinstance(module, nn.Conv3d):
            inputs = 27 * module.in_channels
            assert float(module.weight.detach().std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.2)
            assert module.bias is None


def test_an_architecture_goes_through_json() -> None:
    for architecture in (Architecture(), Architecture(32, 24, 5, 2, "replicate")):
        again = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))
        assert again == architecture
    assert Architecture.from_dict({"stride": 2}) == Architecture(stride=2)
    assert Architecture(levels=3, stride=2).multiple == 16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 4}, "no 'depth'; it has: out_channels, width, levels, stride, padding"),
        ({"width": 0}, "width .* from 1, got 0"),
        ({"width": 16.0}, "width .* whole number"),
        ({"levels": True}, "levels .* whole number"),
        ({"levels": 9}, "at most 8"),
        ({"out_channels": "16"}, "out_channels"),
        ({"stride": 4}, "1 or 2, got 4"),
        ({"padding": "circular"}, "reflect or replicate or zeros, got 'circular'"),
    ],
)
def test_values_that_make_no_network(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        Architecture.from_dict(values)
