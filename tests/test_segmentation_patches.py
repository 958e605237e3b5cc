"""Patches: drawn by number, of all classes, and with labels where their image went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAffined, RandGridDistortiond

from regkit.segmentation import patches
from regkit.segmentation.patches import Patches, PreparedVolume, recoloured

pytestmark = pytest.mark.usefixtures("one_thread")
PATCH = (16, 12, 20)
# Far apart, so that interpolated labels would be others.
CLASSES = (0, 3, 90, 255)


def _volume(seed: int, shape: tuple[int, int, int] = (30, 28, 32)) -> PreparedVolume:
    """Balls of all classes in noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label in CLASSES[1:]:
        middle = [rng.uniform(0.3, 0.7) * n for n in shape]
        apart = sum((i - m) ** 2 for i, m in zip(np.indices(shape), middle))
        labels[apart < 36] = label
    image = torch.from_numpy(rng.random(shape, np.float32))
    return PreparedVolume(image, torch.from_numpy(labels))


class _Unchanged:
    """In place of the augmentation."""

    def set_random_state(self, seed: int) -> None:
        pass

    def __call__(self, cut: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return cut


def _cuts(
    volumes: Sequence[PreparedVolume], patch: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> Patches:
    """Patches before anything is changed: what is cut."""
    monkeypatch.setitem(patches._RECOLOURED, "same", 0.0)
    found = Patches(volumes, patch, "same", 0)
    found.change = _Unchanged()
    return found


def test_a_number_is_a_patch_whatever_was_drawn_before() -> None:
    volumes = [_volume(0), _volume(1)]
    one, other = Patches(volumes, PATCH, "same", 5), Patches(volumes, PATCH, "same", 5)
    numbers = list(range(24))
    first = {number: one.draw(number) for number in numbers}
    second = {number: other.draw(number) for number in reversed(numbers)}
    for number in numbers:
        assert torch.equal(first[number].image, second[number].image)
        assert torch.equal(first[number].labels, second[number].labels)
        assert torch.equal(first[number].image, one.draw(number).image)
    images = [patch.image.numpy().tobytes() for patch in first.values()]
    assert len(set(images)) == len(numbers)
    assert not torch.equal(Patches(volumes, PATCH, "same", 6).draw(0).image, first[0].image)


def test_a_draw_leaves_the_global_generators_alone() -> None:
    drawer = Patches([_volume(0)], PATCH, "same", 0)
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1]
    for number in range(4):
        drawer.draw(number)
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


def test_what_a_patch_is() -> None:
    drawer = Patches([_volume(0)], PATCH, "same", 0)
    seen: set[int] = set()
    for number in range(30):
        patch = drawer.draw(number)
        assert patch.image.shape == patch.labels.shape == PATCH
        assert patch.image.dtype == torch.float32
        assert patch.labels.dtype == torch.uint8
        assert 0 <= patch.image.min() < patch.image.max() <= 1
        seen |= set(patch.labels.unique().tolist())
    assert seen == set(CLASSES)


def test_volumes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [
        PreparedVolume(torch.full((20, 20, 20), k / 10), torch.zeros(20, 20, 20).byte()) for k in range(3)
    ]
    drawer = _cuts(volumes, (8, 8, 8), monkeypatch)
    for number in range(9):
        assert (drawer.draw(number).image == number % 3 / 10).all()


def test_each_class_is_drawn_as_often_and_lies_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few voxels it has; near a border, as near to the middle as it can be."""
    labels = torch.zeros(40, 40, 40).byte()
    labels[20, 18, 23] = 1
    labels[39, 0, 20] = 2
    where = torch.arange(labels.numel()).reshape(labels.shape) / labels.numel()
    drawer = _cuts([PreparedVolume(where, labels)], (8, 8, 8), monkeypatch)
    half = drawer.cut[0] // 2
    counts = np.zeros(3, int)
    for number in range(150):
        patch = drawer.draw(number)
        assert patch.labels.shape == drawer.cut == (10, 10, 10)
        if patch.labels[half, half, half] == 1:
            counts[1] += 1
        elif patch.labels[-1, 0, half] == 2:
            counts[2] += 1
        else:
            counts[0] += 1
        # The image, whose intensities are places, was cut where the labels were.
        first = np.unravel_index(round(float(patch.image[0, 0, 0]) * labels.numel()), labels.shape)
        part = labels[tuple(slice(int(f), int(f) + 10) for f in first)]
        assert torch.equal(patch.labels, part)
    assert counts.min() > 35


@pytest.mark.parametrize("shape", [(5, 30, 4), (16, 12, 20), (1, 1, 1)])
def test_small_volumes_go_on_beyond_their_borders(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    image, labels = rng.random(shape, np.float32), rng.integers(0, 3, shape, np.uint8)
    volume = PreparedVolume(torch.from_numpy(image), torch.from_numpy(labels))
    drawer = _cuts([volume], PATCH, monkeypatch)
    missing = [max(0, cut - n) for cut, n in zip(drawer.cut, shape)]
    pads = [(m // 2, m - m // 2) for m in missing]
    whole, classes = (np.pad(array, pads, mode="edge") for array in (image, labels))
    for number in range(5):
        found = drawer.draw(number)
        assert found.image.shape == drawer.cut
        views = np.lib.stride_tricks.sliding_window_view(whole, drawer.cut)
        at = np.argwhere((views == found.image.numpy()).all(axis=(3, 4, 5)))[0]
        part = tuple(slice(a, a + c) for a, c in zip(at, drawer.cut))
        np.testing.assert_array_equal(found.labels, classes[part])
    changed = Patches([volume], PATCH, "same", 0).draw(0)
    assert changed.labels.shape == PATCH
    assert set(changed.labels.unique().tolist()) <= set(labels.ravel().tolist())


def test_labels_go_where_their_image_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is 1 in a ball and 0 outside is still its labels, but for where it is interpolated."""
    shape = (36, 34, 38)
    apart = sum((i - n / 2) ** 2 for i, n in zip(np.indices(shape), shape))
    ball = torch.from_numpy(apart < 81)
    volume = PreparedVolume(ball.float(), ball.byte())
    monkeypatch.setitem(patches._RECOLOURED, "same", 0.0)
    drawer = Patches([volume], (24, 20, 22), "same", 0)
    kept = [t for t in drawer.change.transforms if isinstance(t, RandAffined | RandGridDistortiond)]
    assert len(kept) == 2
    drawer.change = Compose(kept)
    agree, moved = [], 0
    unmoved = _cuts([volume], (24, 20, 22), monkeypatch)
    for number in range(40):
        patch = drawer.draw(number)
        inside, labels = patch.image > 0.5, patch.labels == 1
        agree.append(float((inside == labels).float().mean()))
        middle = tuple((c - p) // 2 for c, p in zip(unmoved.cut, patch.labels.shape))
        part = tuple(slice(m, m + p) for m, p in zip(middle, patch.labels.shape))
        before = unmoved.draw(number).labels[part] == 1
        moved += float((before == labels).float().mean()) < 0.97
    assert min(agree) > 0.97
    assert moved > 10  # or there was nothing to agree on


def test_recoloured_is_a_line_through_knots(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.random((9, 8, 7), np.float32))
    image[0, 0, :2] = torch.tensor([0.0, 1.0])
    lines = []
    for seed in range(20):
        found = recoloured(image, np.random.default_rng(seed))
        assert 0 <= found.min() < found.max() <= 1
        order = image.flatten().argsort()
        lines.append(np.diff(found.flatten()[order].numpy()))
        values = np.random.default_rng(seed).random(7)
        np.testing.assert_allclose(found, np.interp(image, np.linspace(0, 1, 7), values), atol=1e-5)
    assert all((line > 0).any() and (line < 0).any() for line in lines)  # the order changes
