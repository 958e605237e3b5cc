"""Templates from archives and folders: what goes in comes out, and what cannot be used is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regkit.core.errors import RegkitError
from regkit.synthesis.ensemble import Ensembles, draw_labels
from regkit.synthesis.noise import Rng
from regkit.synthesis.shape_sources import Procedural, Templates, load_archive, load_folder
from regkit.synthesis.shapes import Shape

CPU = torch.device("cpu")


def _ball(shape: tuple[int, ...], share: float = 0.8) -> np.ndarray:
    """An ellipsoid of that share of a box."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(a**2 for a in axes) <= share**2


def _arrays(masks: list[np.ndarray], sources: list[str]) -> dict[str, np.ndarray]:
    bits = [np.packbits(mask) for mask in masks]
    return {
        "bits": np.concatenate(bits),
        "offsets": np.cumsum([0, *map(len, bits)]).astype(np.int64),
        "shapes": np.array([mask.shape for mask in masks], np.int16),
        "names": np.array([f"structure {k}" for k in range(len(masks))]),
        "sources": np.array(sources),
        "extent_mm": np.ones((len(masks), 3), np.float32),
    }


@pytest.fixture
def masks(rng: np.random.Generator) -> list[np.ndarray]:
    """Three of sizes that are no multiples of 8 bits; two of one source."""
    return [_ball((9, 12, 20)), rng.random((5, 7, 11)) < 0.5, _ball((60, 5, 7))]


@pytest.fixture
def archive(tmp_path: Path, masks: list[np.ndarray]) -> Path:
    path = tmp_path / "templates.npz"
    sources = ["group/one@12ab: a.nii", "group/one@12ab: b.nii", "group/two@77: c.nii"]
    np.savez_compressed(path, **_arrays(masks, sources))
    return path


def _points(side: int = 41) -> torch.Tensor:
    axis = torch.linspace(-1, 1, side)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z])


def _extents(shape: Shape) -> list[float]:
    """Sides of a shape's bounding box along z, y, x, the longest possible 2."""
    inside = (shape(_points(81)) > 0).nonzero()
    return ((inside.amax(0) - inside.amin(0) + 1) * 2 / 81).tolist()


def test_masks_come_out_of_an_archive_as_they_went_in(archive: Path, masks: list[np.ndarray]) -> None:
    found = load_archive(archive)
    assert len(found) == 3
    assert [[len(group)] for group in found.groups] == [[2], [1]]
    packed = [mask for group in found.groups for mask in group]
    for mask, expected in zip(packed, masks, strict=True):
        assert np.array_equal(mask.mask(), expected)


def test_a_template_is_its_mask_in_the_cube() -> None:
    """Positive inside and negative outside, the longest side from -1 to 1, axes z, y, x of the array."""
    mask = np.zeros((20, 30, 40), bool)
    mask[4:17, 5:26, 8:36] = True
    level = Templates({"a": [_packed(mask)]}).draw(np.random.default_rng(0), CPU)
    z, y, x = (np.arange(n) for n in mask.shape)
    # Centres of voxels: index i of n lies at (2 i + 1 - n) / 40.
    grid = np.meshgrid(*((2 * a + 1 - len(a)) / 40 for a in (z, y, x)), indexing="ij")
    points = torch.from_numpy(np.stack(grid[::-1]).astype(np.float32))
    assert np.array_equal((level(points) > 0).numpy(), mask)
    assert float(level(torch.full((3, 1, 1, 1), 3.0))) < 0


def _packed(mask: np.ndarray) -> Any:
    from regkit.synthesis.shape_sources import PackedMask

    return PackedMask(np.packbits(mask), mask.shape)


@pytest.mark.parametrize("shape", [(5, 5, 96), (96, 7, 33), (13, 96, 5), (40, 31, 17), (9, 9, 9)])
def test_a_template_keeps_its_proportions(shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(1, n - 1) for n in shape)] = True
    level = Templates({"a": [_packed(mask)]}).draw(np.random.default_rng(0), CPU)
    expected = [2 * (n - 2) / max(shape) for n in shape]
    np.testing.assert_allclose(_extents(level), expected, atol=0.09)


def test_groups_are_drawn_alike_whatever_their_size() -> None:
    """One shape of a small group comes as often as all of a large one."""
    thin, thick = np.zeros((8, 8, 8), bool), np.ones((8, 8, 8), bool)
    thin[4, 4, 4] = True
    templates = Templates({"large": [_packed(thin)] * 9, "small": [_packed(thick)]})
    random = np.random.default_rng(1)
    middle = torch.full((3, 1, 1, 1), 0.4)
    drawn = [float(templates.draw(random, CPU)(middle)) > 0 for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.1)


def test_the_same_generator_draws_the_same_shapes_whatever_was_drawn_before(archive: Path) -> None:
    one, other = load_archive(archive), load_archive(archive)
    for seed in range(10):
        other.draw(np.random.default_rng(seed + 100), CPU)
    for source in (one, other):
        levels = [source.draw(np.random.default_rng(seed), CPU)(_points(9)) for seed in range(5)]
        again = [source.draw(np.random.default_rng(seed), CPU)(_points(9)) for seed in range(5)]
        assert all(map(torch.equal, levels, again))
    assert torch.equal(*(s.draw(np.random.default_rng(3), CPU)(_points(9)) for s in (one, other)))


def _without(name: str) -> Any:
    return lambda arrays: arrays.pop(name)


def _with(name: str, change: Any) -> Any:
    return lambda arrays: arrays.update({name: change(arrays[name])})


_NOTHING = {"shapes": np.zeros((0, 3), int), "offsets": np.zeros(1, int), "sources": np.zeros(0, "U3")}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("offsets"), "^'.*' is not an archive of templates: it lacks offsets$"),
        (_with("bits", lambda a: a[:-3]), "do not fit together"),
        (_with("bits", lambda a: a.astype(np.int32)), "do not fit together"),
        (_with("offsets", lambda a: a[:-1]), "do not fit together"),
        (_with("offsets", lambda a: a.astype(float)), "do not fit together"),
        (_with("offsets", lambda a: a - 1), "do not fit together"),
        (_with("shapes", lambda a: a[:, :2]), "do not fit together"),
        (_with("shapes", lambda a: a[0]), "do not fit together"),
        (_with("shapes", lambda a: a * [[0], [1], [1]]), "do not fit together"),
        (_with("shapes", lambda a: a * [[-1, -1, 1], [1, 1, 1], [1, 1, 1]]), "do not fit together"),
        (_with("shapes", lambda a: a * 2), "fewer bits than voxels"),
        (_with("sources", lambda a: np.arange(3)), "do not fit together"),
        (_with("sources", lambda a: a[:2]), "do not fit together"),
        (_with("sources", lambda a: a.astype(object)), "cannot read the templates.*allow_pickle"),
        (lambda arrays: arrays.update(_NOTHING), "do not fit together"),
    ],
)
def test_a_damaged_archive_is_refused(
    tmp_path: Path, masks: list[np.ndarray], damage: Any, message: str
) -> None:
    arrays = _arrays(masks, ["a@1", "a@1", "b@2"])
    damage(arrays)
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(RegkitError, match=message):
        load_archive(tmp_path / "t.npz")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    path = tmp_path / "t.npz"
    with pytest.raises(RegkitError, match="no archive of templates at"):
        load_archive(path)
    for content in (b"", b"shapes", archive.read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(RegkitError, match="cannot read the templates"):
            load_archive(path)
    # The way of compression, in each entry of the directory, is one that nobody knows.
    content = archive.read_bytes()
    entries = [found.start() + 10 for found in re.finditer(b"PK\x01\x02", content)]
    assert entries
    for place in entries:
        content = content[:place] + b"\x63\x00" + content[place + 2 :]
    path.write_bytes(content)
    with pytest.raises(RegkitError, match="cannot read the templates"):
        load_archive(path)
    with path.open("wb") as stream:
        np.save(stream, np.arange(5))
    with pytest.raises(RegkitError, match=r"it is no \.npz"):
        load_archive(path)
    with pytest.raises(RegkitError, match="cannot read the templates"):
        load_archive(tmp_path)


def test_an_archive_with_a_flipped_byte_is_refused(tmp_path: Path, masks: list[np.ndarray]) -> None:
    """Wherever it is: zip files carry check sums, so nothing comes out wrong."""
    path = tmp_path / "t.npz"
    np.savez_compressed(path, **_arrays(masks, ["a@1", "a@1", "b@2"]))
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 29):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = load_archive(path)
        except RegkitError:
            refused += 1
            continue
        packed = [mask for group in found.groups for mask in group]
        assert all(np.array_equal(m.mask(), e) for m, e in zip(packed, masks, strict=True))
    assert refused > 10


def _write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def _block(*box: tuple[int, int], value: int = 1) -> np.ndarray:
    volume = np.zeros((20, 24, 28), np.uint8)
    volume[tuple(slice(*b) for b in box)] = value
    return volume


def test_a_folder_in_the_layout_of_totalsegmentator(tmp_path: Path) -> None:
    """Ribs are one mask and vertebrae one; what is empty is left out; subjects are groups."""
    one = tmp_path / "s0001" / "spleen.nii.gz"
    _write(one, _block((2, 12), (4, 9), (10, 14)))
    for k, name in enumerate(["rib_left_1", "rib_right_1", "rib_left_2"]):
        _write(one.with_name(f"{name}.nii.gz"), _block((2 + 6 * k, 4 + 6 * k), (3, 15), (4, 8)))
    for k, name in enumerate(["vertebrae_L1", "vertebrae_L2"]):
        _write(one.with_name(f"{name}.nii.gz"), _block((4 + 7 * k, 9 + 7 * k), (3, 9), (4, 8)))
    _write(one.with_name("liver.nii.gz"), np.zeros((20, 24, 28)))
    _write(one.with_name("rib_left_3.nii.gz"), np.zeros((20, 24, 28)))
    _write(tmp_path / "s0002" / "heart.nii.gz", np.zeros((20, 24, 28)))
    _write(tmp_path / "s0003" / "heart.nii.gz", _block((3, 9), (3, 9), (3, 9), value=7))
    (tmp_path / "meta.csv").write_text("subject")
    found = load_folder(tmp_path)
    assert [len(group) for group in found.groups] == [3, 1]
    spleen, ribs, vertebrae = (mask.mask() for mask in found.groups[0])
    assert spleen.shape == (14, 9, 8)  # cropped, with a margin of 2
    assert spleen.sum() == 10 * 5 * 4
    assert ribs.shape == (18, 16, 8)
    assert ribs.sum() == 3 * 2 * 12 * 4
    assert vertebrae.shape == (16, 10, 8)
    assert vertebrae.sum() == 2 * 5 * 6 * 4
    assert found.groups[1][0].mask().sum() == 6**3


def test_a_label_map_is_a_mask_for_each_of_its_labels(tmp_path: Path) -> None:
    labels = _block((2, 5), (2, 6), (2, 7), value=3) + _block((10, 18), (4, 8), (9, 12), value=40)
    _write(tmp_path / "subject.nii.gz", labels)
    _write(tmp_path / "other.nii", _block((1, 5), (1, 5), (1, 5)))
    found = load_folder(tmp_path)
    assert [[int(m.mask().sum()) for m in group] for group in found.groups] == [
        [4**3],
        [3 * 4 * 5, 8 * 4 * 3],
    ]


def test_voxels_become_isotropic(tmp_path: Path) -> None:
    """A block of 8 x 10 x 12 voxels of 3 x 1 x 0.5 mm is 24 x 10 x 6 mm large in the shape as well."""
    _write(tmp_path / "s" / "block.nii.gz", _block((5, 13), (5, 15), (5, 17)), spacing=(0.5, 1.0, 3.0))
    found = load_folder(tmp_path)
    level = found.draw(np.random.default_rng(0), CPU)
    extents = np.array(_extents(level))
    np.testing.assert_allclose(extents / extents.max(), [1, 10 / 24, 6 / 24], atol=0.06)
    assert max(found.groups[0][0].shape) <= 100


def test_a_folder_without_templates(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match="no folder of templates at"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(RegkitError, match="no template in"):
        load_folder(tmp_path)
    _write(tmp_path / "s0002" / "heart.nii.gz", np.zeros((20, 24, 28)))
    with pytest.raises(RegkitError, match=r"no template in.*not all 0"):
        load_folder(tmp_path)
    (tmp_path / "s0002" / "liver.nii.gz").write_bytes(b"no image")
    with pytest.raises(RegkitError, match=r"liver\.nii\.gz' is not an image"):
        load_folder(tmp_path)


def test_merged_parts_of_different_grids_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "s" / "rib_left_1.nii.gz", _block((2, 5), (2, 5), (2, 5)))
    _write(tmp_path / "s" / "rib_left_2.nii.gz", _block((2, 5), (2, 5), (2, 5))[:, :20])
    with pytest.raises(RegkitError, match=r"rib_left_2\.nii\.gz' does not lie on"):
        load_folder(tmp_path)


def test_templates_and_procedures_mix(archive: Path) -> None:
    how = Ensembles(size=16, count=(4, 6), radius=(3.0, 6.0), details=2)
    sources = [(Procedural(), 1.0), (load_archive(archive), 2.0)]
    drawn = [draw_labels(how, sources, Rng.of(0, k)) for k in range(4)]
    assert all(torch.equal(d, draw_labels(how, sources, Rng.of(0, k))) for k, d in enumerate(drawn))
    assert max(len(d.unique()) for d in drawn) > 2


def test_the_real_archive_loads_and_draws(shared_dir: Path) -> None:
    path = shared_dir / "data" / "templates" / "templates.npz"
    if not path.is_file():
        pytest.skip(f"no templates at {path}")
    found = load_archive(path)
    assert len(found) == 1810
    random = np.random.default_rng(0)
    for _ in range(25):
        level = found.draw(random, CPU)(_points(49))
        assert 1e-4 < float((level > 0).float().mean()) < 0.9
        assert (level[::48, ::48, ::48] < 0).all()
