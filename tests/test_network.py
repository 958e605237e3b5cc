"""Features of the network for volumes of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regkit.core.errors import RegkitError
from regkit.features import network as module
from regkit.features.equalise import equalised
from regkit.features.network import NetworkFeatures
from regkit.features.unet import Architecture, UNet
from regkit.features.weights import Channels, Reading, bundled_weights, save_weights
from regkit.io.provenance import sha256
from regkit.ops import native
from regkit.ops.filters import smooth
from regkit.ops.sampling import index_grid

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine."""
    monkeypatch.setattr(native, "fast_bfloat16", lambda: False)
    monkeypatch.setattr(native, "fast_eightbit", lambda: False)


def test_half_precision_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, as the bundled network runs where the processor multiplies in it."""
    image = smooth(torch.rand(1, 48, 64, 56), 6)[0]
    image = (image - image.min()) / (image.max() - image.min())
    expected = NetworkFeatures(bundled_weights())(image)
    monkeypatch.setattr(native, "fast_bfloat16", lambda: True)
    found = NetworkFeatures(bundled_weights())(image)
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.02 * expected.norm()


def _file(folder: Path, architecture: Architecture, **provenance: str) -> Path:
    torch.manual_seed(5)
    path = folder / "random.safetensors"
    save_weights(path, UNet(architecture), provenance)
    return path


@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_that_the_network_takes_are_passed_as_they_are(tmp_path: Path, stride: int) -> None:
    network = UNet(Architecture(5, 4, 2, stride)).eval()
    path = tmp_path / "net.safetensors"
    save_weights(path, network, {})
    image = torch.rand(16, 24, 32)
    found = NetworkFeatures(path)(image)
    assert found.shape == (5, 16 // stride, 24 // stride, 32 // stride)
    with torch.no_grad():
        torch.testing.assert_close(found, network(image[None, None])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 6, 2), (17, 20, 33)])
def test_other_sizes_go_on_with_their_border_values(
    tmp_path: Path, stride: int, size: tuple[int, int, int]
) -> None:
    extract = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2, stride)))
    image = torch.rand(size)
    found = extract(image)
    shape = tuple(-(-n // stride) for n in size)
    assert found.shape == (5, *shape)
    assert found.is_contiguous()
    assert torch.isfinite(found).all()
    assert not found.requires_grad
    whole = [max(2, -(-n // (4 * stride))) * 4 * stride for n in size]
    z, y, x = (torch.arange(n).clamp_max(m - 1) for n, m in zip(whole, size, strict=True))
    padded = extract(image[z][:, y][:, :, x])
    assert torch.equal(found, padded[:, : shape[0], : shape[1], : shape[2]])


@pytest.mark.parametrize(("levels", "stride"), [(1, 1), (4, 1), (3, 2)])
@pytest.mark.parametrize("cells", [1, 12_000])
def test_slabs_give_what_one_pass_gives(tmp_path: Path, levels: int, stride: int, cells: int) -> None:
    path = _file(tmp_path, Architecture(5, 4, levels, stride))
    image = torch.rand(62 * stride, 21 * stride, 30 * stride)
    whole = NetworkFeatures(path)(image)
    by_slabs = NetworkFeatures(path, max_cells=cells)(image)
    torch.testing.assert_close(by_slabs, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_slabs_are_no_larger_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2)), max_cells=10_000)
    seen: list[int] = []
    enter = UNet.enter
    monkeypatch.setattr(
        UNet, "enter", lambda self, image: (seen.append(image.numel()), enter(self, image))[1]
    )
    extract(torch.rand(64, 20, 24))
    assert len(seen) > 3
    assert max(seen) <= 10_000


def test_features_of_unit_length(tmp_path: Path) -> None:
    image = torch.rand(16, 16, 16)
    raw = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2)))(image)
    unit = NetworkFeatures(
        _file(tmp_path, Architecture(5, 4, 2), channels=json.dumps([["features", 5, "unit", 1.0]]))
    )(image)
    torch.testing.assert_close(unit.norm(dim=0), torch.ones(16, 16, 16))
    torch.testing.assert_close(unit, raw / raw.norm(dim=0))


def test_what_is_recorded(tmp_path: Path) -> None:
    path = _file(tmp_path, Architecture(5, 4, 2), data="phantoms")
    assert NetworkFeatures(path).record == {
        "file": "random.safetensors",
        "sha256": sha256(path),
        "provenance": {"data": "phantoms"},
    }


def test_too_large_a_volume_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2)))
    monkeypatch.setattr(module, "_BYTES_WHOLE", 2**50)
    with pytest.raises(RegkitError, match=r"the network needs .* GiB"):
        extract(torch.rand(16, 16, 16))


def test_groups_of_channels_are_read_each_in_its_way(tmp_path: Path) -> None:
    image = torch.rand(16, 16, 16)
    raw = NetworkFeatures(_file(tmp_path, Architecture(6, 4, 2)))(equalised(image))
    groups = (Channels("a", 3, "sigmoid", 0.5), Channels("b", 1, weight=0), Channels("c", 2, "unit", 2.0))
    path = _file(tmp_path, Architecture(6, 4, 2), **Reading("equalised", groups).to_metadata())
    found = NetworkFeatures(path)(image)
    one, other = raw[:3].sigmoid(), raw[4:] / raw[4:].norm(dim=0)
    torch.testing.assert_close(found, torch.cat([one * (0.5 * 5 / 3) ** 0.5, other * (2.0 * 5 / 2) ** 0.5]))
    # As the docstring says: the mean over all channels is the weighted sum of the means over the groups.
    torch.testing.assert_close(
        found.square().mean(0), 0.5 * one.square().mean(0) + 2.0 * other.square().mean(0)
    )


def test_merged_channels_are_read_as_their_sum_and_apart_each_for_itself(tmp_path: Path) -> None:
    image = torch.rand(16, 16, 16)
    groups = (Channels("a", 4, "softmax", 1.5, ((3, 0), (2,), (1,))), Channels("b", 2))
    raw = NetworkFeatures(_file(tmp_path, Architecture(6, 4, 2)))(image)
    path = _file(tmp_path, Architecture(6, 4, 2), **Reading("window", groups).to_metadata())
    share = raw[:4].softmax(0)
    summed = torch.stack([share[3] + share[0], share[2], share[1]])
    expected = torch.cat([summed * (1.5 * 5 / 4) ** 0.5, raw[4:] * (5 / 2) ** 0.5])
    torch.testing.assert_close(NetworkFeatures(path)(image), expected)
    apart = NetworkFeatures(path, apart=True)(image)
    torch.testing.assert_close(apart, torch.cat([share * (1.5 * 6 / 4) ** 0.5, raw[4:] * (6 / 2) ** 0.5]))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("spacing", "seen"), [(6.0, (48, 72, 84)), (5.0, (40, 60, 70)), (1000.0, (96, 144, 168))]
)
def test_the_network_sees_a_spacing_that_it_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int, spacing: float, seen: tuple[int, int, int]
) -> None:
    """And what it finds is brought back to where it was found."""
    metadata = Reading("window", (Channels("features", 5),), (2.0, 4.0)).to_metadata()
    extract = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2, stride), **metadata))
    shapes = []

    def means(image: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(image.shape))
        return torch.nn.functional.avg_pool3d(image[None], stride)

    monkeypatch.setattr(extract, "_of_its_spacing", means)
    image = torch.einsum("c,czyx->zyx", torch.tensor([0.1, 0.2, 0.3]), index_grid((32, 48, 56)))
    found = extract(image, spacing)
    assert shapes == [seen]
    inner = (slice(4, -4),) * 3  # away from the border, whose values go on
    torch.testing.assert_close(found[0][inner], means(image)[0][inner], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", [None, 0.5, 2.0, 4.0])
def test_images_of_a_spacing_that_it_learnt_from_or_finer_are_seen_as_they_are(
    tmp_path: Path, spacing: float | None
) -> None:
    groups = (Channels("features", 5),)
    path = _file(tmp_path, Architecture(5, 4, 2), **Reading("window", groups, (2.0, 4.0)).to_metadata())
    image = torch.rand(16, 16, 16)
    expected = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2)))(image)
    assert torch.equal(NetworkFeatures(path)(image, spacing), expected)


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 8, 3)])
@pytest.mark.parametrize("spacing", [0.5, 9.0])
def test_small_images_of_other_spacings(tmp_path: Path, size: tuple[int, int, int], spacing: float) -> None:
    metadata = Reading("window", (Channels("features", 5),), (2.0, 4.0)).to_metadata()
    found = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2, 2), **metadata))(torch.rand(size), spacing)
    assert found.shape == (5, *(-(-n // 2) for n in size))
    assert torch.isfinite(found).all()


def test_weights_that_tell_no_spacing_see_every_image_as_it_is(tmp_path: Path) -> None:
    extract = NetworkFeatures(_file(tmp_path, Architecture(5, 4, 2)))
    image = torch.rand(16, 16, 16)
    assert torch.equal(extract(image, 9.0), extract(image))


@pytest.mark.parametrize("spacing", ["[4, 2]", "[0, 2]", "[1]", "2", "[1, 1e999]", '["a", 2]', "{"])
def test_spacings_that_make_no_sense(tmp_path: Path, spacing: str) -> None:
    with pytest.raises(RegkitError, match="spacing must be two numbers"):
        _file(tmp_path, Architecture(5, 4, 2), spacing=spacing)
