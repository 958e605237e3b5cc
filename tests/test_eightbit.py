"""The network in 8 bits: its kernels against loops and torch, and the whole against float32."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regkit.features import eightbit
from regkit.features.eightbit import (
    EightBit,
    _below,
    _Cells,
    _convolved,
    _Layer,
    _packed,
    _pooled,
    _through,
    _whole,
    serves,
)
from regkit.features.equalise import equalised
from regkit.features.network import NetworkFeatures
from regkit.features.unet import Architecture, UNet
from regkit.features.weights import bundled_weights, load_network
from regkit.ops import native
from regkit.ops.filters import smooth

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.skipif(not native.fast_eightbit(), reason="this machine has no instructions for 8 bits"),
]
OURS = Architecture(7, 16, 2, 2, "replicate", "instance")


def _cells(whole: torch.Tensor, scale: float) -> _Cells:
    """Of whole numbers (C, Z, Y, X)."""
    rows = F.pad(whole[None].float(), (1, 1), mode="constant")[0]
    rows[..., 0], rows[..., -1] = rows[..., 1], rows[..., -2]
    return _Cells(rows.to(torch.uint8).permute(1, 2, 3, 0).contiguous(), scale)


def _drawn(channels: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, (channels, *shape))


def _known(weights: np.ndarray) -> torch.Tensor:
    """Weights as they are once they are whole numbers."""
    whole, scale = _whole(weights)
    return torch.from_numpy(whole * scale.reshape(-1, *[1] * (weights.ndim - 1)))[: len(weights)].double()


def _convolution(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    padded = F.pad(values[None].double(), (1,) * 6, mode="replicate")
    return F.conv3d(padded, weights)[0].movedim(0, -1)


def _run(layer: _Layer, near: _Cells, below: _Cells | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    count = near.values.numel() * layer.outputs
    return _convolved(layer, native.empty(count), near, below)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (3, 4, 12), (4, 2, 43)])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 16), (16, 32), (32, 48), (4, 64), (16, 5)])
def test_a_convolution_is_that_of_torch(shape: tuple[int, ...], inputs: int, outputs: int) -> None:
    values, weights = _drawn(inputs, shape), torch.randn(outputs, inputs, 3, 3, 3).numpy()
    layer = _Layer(_packed(weights), None, -(-outputs // 16) * 16, None)
    found, statistics = _run(layer, _cells(values, 0.01))
    expected = _convolution(values * 0.01, _known(weights))
    assert found.shape == (*shape, layer.outputs)
    torch.testing.assert_close(found[..., :outputs].double(), expected, rtol=1e-5, atol=1e-5)
    assert not found[..., outputs:].any()
    rows = found.double().flatten(0, 1)
    for one, other in zip(
        statistics.double().unbind(1), (rows.sum(1), rows.square().sum(1), rows.amax(1), rows.amin(1))
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 6, 10), (2, 4, 26)])
@pytest.mark.parametrize("outputs", [16, 32])
def test_cells_of_below_are_seen_as_if_upsampled(shape: tuple[int, ...], outputs: int) -> None:
    """Each product is that of a loop over cells; and all together that of the upsampled ones."""
    near, below = _drawn(outputs, shape), _drawn(8, tuple(n // 2 for n in shape))
    weights = torch.randn(outputs, outputs + 8, 3, 3, 3)
    own, others = weights[:, :outputs].numpy(), weights[:, outputs:].numpy()
    layer = _Layer(_packed(own), _below(others), outputs, None)
    found, _ = _run(layer, _cells(near, 0.01), _cells(below, 0.03))

    upsampled = F.interpolate(below[None].float(), scale_factor=2, mode="nearest")[0]
    both = torch.cat([near * 0.01, upsampled * 0.03])
    exact = _convolution(both, weights.double())
    assert float((found - exact).norm() / exact.norm()) < 0.02

    summed = np.zeros((outputs, 8, 2, 2, 2, 2, 2, 2), np.float32)
    for parity in product(range(2), repeat=3):
        for tap in product(range(3), repeat=3):
            at = tuple((p + t - 1) // 2 - (p - 1) // 2 if p else (t + 1) // 2 for p, t in zip(parity, tap))
            (pz, py, px), (tz, ty, tx) = parity, at
            summed[:, :, pz, py, tz, ty, px, tx] += others[:, :, tap[0], tap[1], tap[2]]
    known = _known(summed)
    expected = _convolution(near * 0.01, _known(own))
    for cell in np.ndindex(shape):
        for at in product(range(2), repeat=3):
            there = [
                min(max(c // 2 + t - 1 + c % 2, 0), n // 2 - 1)
                for c, t, n in zip(cell, at, shape, strict=True)
            ]
            (pz, py, px), (tz, ty, tx) = (c % 2 for c in cell), at
            expected[cell] += (
                known[:, :, pz, py, tz, ty, px, tx] @ (below[(slice(None), *there)] * 0.03).double()
            )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_leaves_255_for_the_largest() -> None:
    """And what is below 0, or of an output that never differs, is 0 or a constant."""
    network = UNet(OURS)
    norm = network.model[1]
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-0.3, 0.3)
    weights = torch.randn(16, 8, 3, 3, 3).numpy()
    weights[3] = 0
    layer = _Layer(_packed(weights), None, 16, norm)
    cells = _cells(_drawn(8, (4, 5, 7)), 1 / 255)
    convolved, _ = _run(layer, cells)
    found = _through(layer, native.empty(10_000), cells)
    with torch.no_grad():
        expected = norm(convolved.movedim(-1, 0)[None])[0].relu().movedim(0, -1)
    assert found.values.shape == (4, 5, 9, 16)
    assert found.values.max() == 255
    inner = found.values[:, :, 1:-1].float() * found.scale
    assert float((inner - expected).abs().max()) < 0.51 * found.scale
    assert torch.equal(found.values[:, :, 0], found.values[:, :, 1])
    assert torch.equal(found.values[:, :, -1], found.values[:, :, -2])
    assert inner[..., 3].std() == 0


def test_pooling_is_that_of_torch() -> None:
    whole = _drawn(16, (4, 6, 10))
    found = _pooled(_cells(whole, 0.5))
    expected = F.max_pool3d(whole.float(), 2)
    assert torch.equal(found.values, _cells(expected, 0.5).values)
    assert found.scale == 0.5


@pytest.mark.parametrize(("outputs", "width", "levels"), [(7, 16, 2), (31, 16, 3), (40, 32, 1)])
def test_the_whole_is_nearly_that_in_float32(outputs: int, width: int, levels: int) -> None:
    """Of random weights, which are much more sensitive to roundings than learnt ones, as bfloat16 shows."""
    network = UNet(Architecture(outputs, width, levels, 2, "replicate", "instance")).eval()
    image = equalised(smooth(torch.rand(1, 32, 48, 64), 2)[0])[None, None]
    found = EightBit(network)(image)
    with torch.no_grad():
        expected = network(image)
    assert found.shape == expected.shape
    assert found.dtype == torch.bfloat16
    assert found.stride(1) == 1
    with torch.no_grad():
        half = network.to(torch.bfloat16)(image.to(torch.bfloat16))
    error, of_half = (float((one.float() - expected).norm() / expected.norm()) for one in (found, half))
    assert error < min(0.3, 3 * of_half)


def test_the_bundled_network_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor does not multiply in bfloat16."""
    monkeypatch.setattr(native, "fast_bfloat16", lambda: False)
    image = smooth(torch.rand(1, 48, 64, 56), 6)[0]
    image = (image - image.min()) / (image.max() - image.min())
    extract = NetworkFeatures(bundled_weights())
    assert extract.eightbit is not None
    found = extract(image)
    monkeypatch.setattr(native, "fast_eightbit", lambda: False)
    plain = NetworkFeatures(bundled_weights())
    assert plain.eightbit is None
    expected = plain(image)
    assert not torch.equal(found, expected)
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_threads_change_nothing() -> None:
    extract = EightBit(load_network(bundled_weights())[0])
    image = torch.rand(1, 1, 32, 48, 64)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(extract(image))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_an_empty_image_is_no_reason_to_fail() -> None:
    found = EightBit(UNet(OURS))(torch.zeros(1, 1, 16, 16, 16))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "change",
    [{"norm": "batch"}, {"padding": "reflect"}, {"stride": 1}, {"width": 8}],
)
def test_other_networks_are_left_to_torch(change: dict[str, object]) -> None:
    assert serves(UNet(OURS))
    assert not serves(UNet(Architecture(**{**OURS.to_dict(), **change})))


def test_without_the_instructions_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eightbit.native, "fast_eightbit", lambda: False)
    assert not serves(UNet(OURS))
