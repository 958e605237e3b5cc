"""Images and label maps found by name, as the usual data sets name them, and how they are split."""

from __future__ import annotations

from pathlib import Path

import pytest

from regkit.core.errors import RegkitError
from regkit.segmentation.files import Labelled, labelled_files, split


def _touch(folder: Path, *names: str) -> Path:
    """Files of these names; the voxels do not matter here."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("image", "labels", "name"),
    [
        ("liver_1.nii.gz", "liver_1.nii.gz", "liver_1"),  # Medical Segmentation Decathlon
        ("BRATS_001_0000.nii.gz", "BRATS_001.nii.gz", "BRATS_001"),  # nnU-Net
        ("amos_0000.nii.gz", "amos_0000.nii.gz", "amos_0000"),  # a number, not a channel
        ("sub-01_T2w.nii.gz", "sub-01_dseg.nii.gz", "sub-01"),  # BIDS
        ("sub-01_ses-2_FLAIR.nii", "sub-01_ses-2_dseg.nii.gz", "sub-01_ses-2"),
        ("Case03.mhd", "Case03_segmentation.mhd", "Case03"),  # PROMISE12
        ("a.b_image.nrrd", "a.b_label.mha", "a.b"),
        ("x-ct.NII.GZ", "x-labels.nii", "x"),
        ("p_ct.nii.gz", "p_ct_seg.nii.gz", "p_ct"),
        ("p_mask.nii.gz", "p_mask.nii.gz", "p_mask"),
    ],
)
def test_names_that_match(tmp_path: Path, image: str, labels: str, name: str) -> None:
    images, maps = _touch(tmp_path / "images", image), _touch(tmp_path / "labels", labels)
    assert labelled_files(images, maps) == [Labelled(name, images / image, maps / labels)]


def test_images_and_label_maps_may_share_a_folder(tmp_path: Path) -> None:
    """As PROMISE12 has them, with the raw voxels of the .mhd beside; and nothing is its own label map."""
    names = [f"Case{k:02d}{part}.{kind}" for k in (2, 0, 1) for part in ("", "_segmentation")
             for kind in ("mhd", "raw")]  # fmt: skip
    folder = _touch(tmp_path, *names)
    found = labelled_files(folder, tmp_path / "." / "")
    assert found == [
        Labelled(f"Case{k:02d}", folder / f"Case{k:02d}.mhd", folder / f"Case{k:02d}_segmentation.mhd")
        for k in range(3)
    ]


def test_each_image_has_its_own_map_whatever_else_lies_there(tmp_path: Path) -> None:
    images = _touch(
        tmp_path / "images",
        "b_0000.nii.gz",
        "a_0000.nii.gz",
        "._a_0000.nii.gz",
        ".hidden.nii",
        "dataset.json",
    )
    (images / "folder.nii.gz").mkdir()
    maps = _touch(tmp_path / "labels", "a.nii.gz", "b.nii.gz", "._a.nii.gz", "c_seg.nii.gz", "README.md")
    assert labelled_files(images, maps) == [
        Labelled(name, images / f"{name}_0000.nii.gz", maps / f"{name}.nii.gz") for name in "ab"
    ]


def test_an_image_without_labels_is_named(tmp_path: Path) -> None:
    images = _touch(tmp_path / "images", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    maps = _touch(tmp_path / "labels", "a.nii.gz", "bb.nii.gz", "cc_seg.nii.gz")
    with pytest.raises(RegkitError, match=r"^2 of 3 images have no label map.*b\.nii\.gz.*b_seg\.nii\.gz"):
        labelled_files(images, maps)


def test_names_that_leave_it_open_are_refused(tmp_path: Path) -> None:
    images = _touch(tmp_path / "images", "a_0000.nii.gz")
    maps = _touch(tmp_path / "labels", "a.nii.gz", "a_seg.nii.gz")
    with pytest.raises(RegkitError, match=r"two label maps fit the image.*a_0000.*'a\.nii\.gz'.*'a_seg"):
        labelled_files(images, maps)
    (maps / "a_seg.nii.gz").unlink()
    _touch(images, "a_ct.nii.gz")
    with pytest.raises(RegkitError, match=r"two images .*named 'a', and one label map fits both"):
        labelled_files(images, maps)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    images, maps, empty = (tmp_path / name for name in ("images", "labels", "empty"))
    _touch(images, "a.nii.gz")
    _touch(maps, "a.nii.gz")
    _touch(empty, "notes.txt", ".a.nii.gz")
    for given, message in (
        ((tmp_path / "no", maps), f"the folder of images '{tmp_path / 'no'}' does not exist"),
        ((images, tmp_path / "no"), f"the folder of label maps '{tmp_path / 'no'}' does not exist"),
        ((images / "a.nii.gz", maps), "the folder of images '.*' does not exist"),
        ((empty, maps), f"no images in '{empty}': expected files that end in .nii.gz"),
        ((images, empty), f"no label maps in '{empty}'"),
        ((images, images), f"no label map in '{images}': where images lie beside them, name them NAME_seg"),
    ):
        with pytest.raises(RegkitError, match=message):
            labelled_files(*given)
    only = _touch(tmp_path / "only", "a_seg.nii.gz")
    with pytest.raises(RegkitError, match=f"no image in '{only}'"):
        labelled_files(only, only)


CASES = [Labelled(f"case{k:02d}", Path(f"i{k}"), Path(f"l{k}")) for k in range(20)]


@pytest.mark.parametrize(
    ("count", "shots", "validation", "expected"),
    [
        (20, 3, None, (3, 4)),  # a fifth, at most four
        (10, None, None, (8, 2)),
        (20, None, None, (16, 4)),
        (20, 18, None, (18, 2)),  # no more than there are
        (5, 5, None, (5, 0)),
        (4, None, None, (3, 1)),
        (2, None, None, (1, 1)),
        (1, None, None, (1, 0)),
        (6, 2, 4, (2, 4)),
        (6, None, 2, (4, 2)),
        (6, 2, 0, (2, 0)),
    ],
)
def test_how_many_are_trained_on_and_held_out(
    count: int, shots: int | None, validation: int | None, expected: tuple[int, int]
) -> None:
    chosen, held = split(CASES[:count], shots, validation, 0)
    assert (len(chosen), len(held)) == expected
    both = [*chosen, *held]
    assert len(set(both)) == len(both)
    assert set(both) <= set(CASES[:count])
    assert chosen == sorted(chosen, key=lambda case: case.name)
    assert held == sorted(held, key=lambda case: case.name)


def test_the_seed_draws() -> None:
    """The same for the same seed; with more shots, those that were drawn before stay."""
    draws = [split(CASES, 3, 2, seed) for seed in range(100)]
    assert draws == [split(CASES, 3, 2, seed) for seed in range(100)]
    assert len({tuple(case.name for case in chosen) for chosen, _ in draws}) > 80
    for role in (0, 1):
        assert {case.name for draw in draws for case in draw[role]} == {case.name for case in CASES}
    for (three, _), seed in zip(draws, range(100)):
        assert set(three) < set(split(CASES, 5, 2, seed)[0])
        assert split(CASES, 3, 2, seed)[1] == split(CASES, 5, 2, seed)[1]


@pytest.mark.parametrize(
    ("count", "shots", "validation", "message"),
    [
        (4, 5, None, "there are 4 labelled volumes, too few for 5 to train on and 0 to validate on"),
        (4, 3, 2, "too few for 3 to train on and 2 to validate on"),
        (4, None, -1, "volumes to validate on must be at least 0, got -1"),
        (4, None, 4, "at least one volume must be trained on, but 4 of 4 are held out"),
        (4, None, 9, "at least one volume must be trained on"),
        (4, 0, None, "at least one volume must be trained on"),
    ],
)
def test_splits_that_there_are_not(
    count: int, shots: int | None, validation: int | None, message: str
) -> None:
    with pytest.raises(RegkitError, match=message):
        split(CASES[:count], shots, validation, 0)
