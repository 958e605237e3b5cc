"""The benchmark's data sets, on small imitations: what they give, and what they refuse before any run."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from regkit.bench import learn2reg, learn2reg_ct, mmwhs
from regkit.bench.dataset import Case, Request, Side
from regkit.bench.dataset_files import is_made_up, labelled
from regkit.bench.datasets import DATASETS, dataset
from regkit.bench.imitation import imitate
from regkit.bench.learn2reg import submission_cases
from regkit.bench.measure import measure
from regkit.bench.mmwhs import LABELS, SUBJECTS, Pairing, cubic
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.evaluate import dice
from regkit.io.images import load_grid, load_image, load_labels
from regkit.io.outputs import save_image
from regkit.io.points import read_pairs
from regkit.synthesis.phantom import torso
from regkit.warp import Warp

_SHAPE = (48, 40, 48)
_TRUNK_SHAPE = (48, 40, 64)
_HEART_SHAPE = (32, 32, 16)


def cases(
    name: str,
    data: Path | None,
    scratch: Path,
    pairs: Sequence[str] = (),
    directions: Sequence[str] = (),
    pairing: Path | None = None,
) -> list[Case]:
    return dataset(name).cases(Request(data, pairs, directions, scratch, pairing))


def error_of(action: Callable[..., object], *words: Any, **named: Any) -> str:
    with pytest.raises(RegkitError) as error:
        action(*words, **named)
    return str(error.value)


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture(autouse=True)
def small_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn2reg, "SHAPE", _SHAPE)
    monkeypatch.setattr(learn2reg_ct, "SHAPE", _TRUNK_SHAPE)


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of three people of the test."""
    folder = tmp_path_factory.mktemp("l2r-ct") / "AbdomenCTCT"
    imitate("l2r-abdomen-ct", folder, 3, shape=_TRUNK_SHAPE)
    return folder


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of two pairs with labels, and two without."""
    folder = tmp_path_factory.mktemp("l2r") / "AbdomenMRCT"
    imitate("l2r-abdomen", folder, 2, shape=_SHAPE)
    return folder


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmwhs")
    imitate("mmwhs", folder, 2, shape=_HEART_SHAPE)
    return folder


@pytest.fixture
def all_pairs(tmp_path: Path) -> Path:
    """A pairing of every MR with every CT."""
    return write_json(tmp_path / "pairing.json", {"seed": 0, "held_out": 0, "pairs": None, "spacing_mm": 8.0})


@pytest.fixture
def own_pairs(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of one pair with labels, landmarks and a mask."""
    folder = tmp_path / "own" / "one"
    folder.mkdir(parents=True)
    for side, size in (("fixed", (8, 9, 10)), ("moving", (7, 8, 9))):
        grid = Grid(size, (2.0, 2.0, 3.0))
        save_image(grid.to_sitk(rng.random(grid.shape, dtype=np.float32)), folder / f"{side}.nii.gz")
        labels = np.zeros(grid.shape, np.uint8)
        labels[2:5, 2:5, 2:5] = 3
        save_image(grid.to_sitk(labels), folder / f"{side}_labels.nii.gz")
    (folder / "points.csv").write_text("fx,fy,fz,mx,my,mz\n1,2,3,4,5,6\n")
    manifest = {
        "fixed": "fixed.nii.gz",
        "moving": "moving.nii.gz",
        "fixed_labels": "fixed_labels.nii.gz",
        "moving_labels": "moving_labels.nii.gz",
        "labels": {"3": "cube"},
        "landmarks": "points.csv",
        "moving_mask": "moving_labels.nii.gz",
    }
    write_json(folder / "manifest.json", manifest)
    return folder.parent


def test_names() -> None:
    assert list(DATASETS) == ["l2r-abdomen", "l2r-abdomen-ct", "mmwhs", "open-pairs", "phantom"]
    assert all(dataset(name).name == name and dataset(name).note for name in DATASETS)
    assert "no data set named 'x'; available: l2r-abdomen" in error_of(dataset, "x")


def test_what_was_asked_for_must_exist(abdomen: Path, tmp_path: Path) -> None:
    assert "available: mr2ct, ct2mr" in error_of(cases, "l2r-abdomen", abdomen, tmp_path, ["1"], ["up"])
    for pair in ("9", "0", "test", "²"):
        message = error_of(cases, "l2r-abdomen", abdomen, tmp_path, [pair])
        assert f"no pair '{pair}'" in message and "0001, 0002" in message
    for name in ("l2r-abdomen", "l2r-abdomen-ct", "mmwhs", "open-pairs"):
        assert "needs the folder" in error_of(cases, name, None, tmp_path)
        assert "is not a folder" in error_of(cases, name, tmp_path / "absent", tmp_path)


def test_abdomen(abdomen: Path, tmp_path: Path) -> None:
    file = str(abdomen / "imagesTr" / "AbdomenMRCT_0001_0001.nii.gz")
    (one,) = cases("l2r-abdomen", abdomen, tmp_path, ["1", "0001", file, "AbdomenMRCT_0001_0000"])
    assert (one.name, one.direction, one.exchanged, one.landmarks) == ("0001", "mr2ct", False, None)
    assert one.fixed.image == abdomen / "imagesTr/AbdomenMRCT_0001_0001.nii.gz"
    assert one.moving.mask == abdomen / "masksTr/AbdomenMRCT_0001_0000.nii.gz"
    assert one.labels == {n: f"label {n}" for n in range(1, 5)}
    both = cases("l2r-abdomen", abdomen.parent, tmp_path, ["2", "1"], ["ct2mr", "mr2ct"])
    assert [(c.name, c.direction) for c in both] == [
        (n, d) for n in ("0002", "0001") for d in ("ct2mr", "mr2ct")
    ]
    assert (both[2].fixed, both[2].moving) == (one.moving, one.fixed)
    assert [c.name for c in cases("l2r-abdomen", abdomen, tmp_path, ["val"])] == ["0002"]
    assert list(tmp_path.iterdir()) == []
    for case in both:
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_people(trunks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the test onto each other, fixed first; by the numbers, the files' names, or groups."""
    assert len(learn2reg_ct._TESTED) == 42
    names = ["0024-0025", "0024-0026", "0025-0024", "0026-0024"]
    for asked in ("24", "0024", str(trunks / "imagesTr/AbdomenCTCT_0024_0000.nii.gz")):
        with pytest.raises(RegkitError, match=r"lacks 8 of 14 files .*AbdomenCTCT_0027_0000"):
            cases("l2r-abdomen-ct", trunks, tmp_path, [asked])
    file = "AbdomenCTCT_{}_0000.nii.gz"
    asked = ["24-25", "0024-0025", f"{file.format('0024')}-{file.format('0026')}", "25-24", "26-24"]
    found = cases("l2r-abdomen-ct", trunks.parent, tmp_path, asked)
    assert [case.name for case in found] == names
    one = found[0]
    assert one.fixed.image == trunks / "imagesTr/AbdomenCTCT_0024_0000.nii.gz" and one.direction == "ct2ct"
    assert one.moving.labels == trunks / "labelsTr/AbdomenCTCT_0025_0000.nii.gz" and one.moving.mask is None
    assert one.labels == {n: f"label {n}" for n in range(1, 14)}
    assert (found[2].fixed, found[2].moving) == (one.moving, one.fixed)
    listed = [case.name for case in cases("l2r-abdomen-ct", trunks, tmp_path, ["val"])]
    assert listed == ["0024-0025", "0024-0026", "0025-0026"]
    for wrong in ("24-24", "31", "23", "0", "25-", "x", "24-31"):
        assert f"no pair '{wrong}'" in error_of(cases, "l2r-abdomen-ct", trunks, tmp_path, [wrong])
    assert "available: ct2ct" in error_of(cases, "l2r-abdomen-ct", trunks, tmp_path, ["24-25"], ["mr2ct"])
    assert "lacks 8 of 14 files" in error_of(cases, "l2r-abdomen-ct", trunks, tmp_path)
    monkeypatch.setattr(learn2reg_ct, "SHAPE", (192, 160, 256))
    message = error_of(cases, "l2r-abdomen-ct", trunks, tmp_path, ["24-25"])
    assert "48 x 40 x 64 voxels, but those of Learn2Reg AbdomenCTCT have 192 x 160 x 256" in message


def test_an_archive_of_people_that_is_damaged(trunks: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trunks, tmp_path / "copy")
    path = folder / "AbdomenCTCT_dataset.json"
    for pairs in (None, "all", [{"fixed": file} for file in ("x", "AbdomenCTCT_0024_0000.nii.gz")]):
        write_json(path, {"registration_val": pairs})
        message = error_of(cases, "l2r-abdomen-ct", folder, tmp_path, ["val"])
        assert "damaged" in message and "registration_val" in message
    write_json(path, {"labels": {"1": "spleen", "13": "adrenal"}})
    (case,) = cases("l2r-abdomen-ct", folder, tmp_path, ["24-26"])
    assert (case.labels[1], case.labels[2], case.labels[13]) == ("spleen", "label 2", "adrenal")
    path.unlink()
    assert "has no AbdomenCTCT_dataset.json" in error_of(cases, "l2r-abdomen-ct", folder, tmp_path)


def test_the_measures_of_people_are_those_of_the_challenge(trunks: Path, tmp_path: Path) -> None:
    """Different bodies on one grid: Dice, HD95 and SDlogJ of a field of zeros."""
    (case,) = cases("l2r-abdomen-ct", trunks, tmp_path, ["24-25"])
    grid = load_grid(case.fixed.image, "image")
    found = measure(case, Warp(np.zeros((*grid.shape, 3), np.float32), grid))
    fixed, moving = (load_labels(side.labels or "", "labels").array for side in (case.fixed, case.moving))
    expected = [value for value in dice(fixed, moving, range(1, 14)).values() if not np.isnan(value)]
    assert len(expected) >= 10 and 0.05 < np.mean(expected) < 0.95
    assert found["learn2reg"]["dice"] == pytest.approx(np.mean(expected))
    assert found["learn2reg"]["sdlogj"] == pytest.approx(0, abs=1e-5)
    assert found["mean_dice"]["before"] == found["mean_dice"]["after"] == pytest.approx(np.mean(expected))
    assert "agreement" not in found


def test_labels_are_named_and_chosen(trunks: Path, tmp_path: Path) -> None:
    found = cases("l2r-abdomen-ct", trunks, tmp_path, ["24-25"])
    assert labelled(found, None) == found
    (case,) = labelled(found, {1: "liver", 3: "kidney"})
    assert case.labels == {1: "liver", 3: "kidney"} and case.fixed == found[0].fixed
    assert "none of the labels 77" in error_of(labelled, found, {77: "x"})


def test_the_imitation_of_the_abdomen(abdomen: Path, tmp_path: Path) -> None:
    """Two images of one patient, who is bent a little, in each pair; another patient in the other."""
    one, other = cases("l2r-abdomen", abdomen, tmp_path, ["1", "2"])
    ct, mr, mask = (load_image(path, "image") for path in (one.fixed.image, one.moving.image, one.fixed.mask))
    assert ct.grid.same_as(mr.grid) and ct.grid.spacing == pytest.approx((8.0, 8.0, 8.0))
    assert ct.array.min() < -900 and mr.array.min() >= 0
    assert np.median(ct.array[mask.array == 0]) < -900 and np.median(ct.array[mask.array > 0]) > -200
    fixed, moving, stranger = (
        load_labels(side.labels, "labels").array for side in (one.fixed, one.moving, other.moving)
    )
    assert set(np.unique(fixed)) == {0, 1, 2, 3, 4}
    assert 0.6 < dice(fixed, moving, [1])[1] < 1
    assert (moving != stranger).any()
    liver, spleen = (np.argwhere(fixed == label).mean(0)[2] for label in (1, 2))
    assert liver < spleen  # x is to the patient's left


def test_names_of_labels_come_from_the_json(abdomen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(abdomen, tmp_path / "copy")
    path = folder / "AbdomenMRCT_dataset.json"
    content = json.loads(path.read_text())
    for stated, expected in (
        ({"0": "background", "1": "liver", "2": "spleen"}, "liver"),
        ({"0": {"1": "liver"}, "1": {"1": "hepar"}}, "liver"),
        (["liver"], "label 1"),
    ):
        write_json(path, content | {"labels": stated})
        (case,) = cases("l2r-abdomen", folder, tmp_path, ["1"])
        assert case.labels[1] == expected and case.labels[4] == "label 4"


def test_submission(abdomen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(abdomen, tmp_path / "copy")
    test = submission_cases(folder, "test")
    assert [(c.name, c.direction, c.labels) for c in test] == [("0009", "ct2mr", {}), ("0010", "ct2mr", {})]
    assert test[0].fixed.image == folder / "imagesTs/AbdomenMRCT_0009_0000.nii.gz"
    assert test[0].fixed.mask and test[0].fixed.labels is None
    shutil.rmtree(folder / "masksTs")
    assert submission_cases(folder, "test")[0].fixed.mask is None
    (val,) = submission_cases(folder, "val")
    assert (val.name, list(val.labels)) == ("0002", [1, 2, 3, 4])
    assert "lacks 36 of 48 files" in error_of(submission_cases, folder, "train")
    (folder / "imagesTs/AbdomenMRCT_0010_0001.nii.gz").unlink()
    assert "imagesTs/AbdomenMRCT_0010_0001.nii.gz" in error_of(submission_cases, folder, "test")
    assert "available: train, val, test" in error_of(submission_cases, folder, "dev")


def test_an_archive_that_is_half_there(abdomen: Path, tmp_path: Path) -> None:
    message = error_of(cases, "l2r-abdomen", abdomen, tmp_path)  # of the eight it has two
    assert "lacks 36 of 48 files" in message and "half downloaded" in message
    assert message.count(".nii.gz") == 3 and "https://cloud.imi.uni-luebeck.de" in message
    folder = shutil.copytree(abdomen, tmp_path / "copy")
    image = folder / "imagesTr/AbdomenMRCT_0001_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    assert f"'{image}' cannot be read: it is truncated" in error_of(
        cases, "l2r-abdomen", folder, tmp_path, ["1"]
    )
    assert cases("l2r-abdomen", folder, tmp_path, ["2"])


def test_the_description_of_the_archive(abdomen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(abdomen, tmp_path / "copy")
    path = folder / "AbdomenMRCT_dataset.json"
    for pairs in ("all", [{"fixed": "AbdomenMRCT_0001_0000.nii.gz"}, 3], [{"fixed": "x", "moving": "y"}]):
        write_json(path, {"registration_val": pairs})
        message = error_of(cases, "l2r-abdomen", folder, tmp_path, ["val"])
        assert "damaged" in message and "registration_val" in message
    write_json(path, {})
    message = error_of(cases, "l2r-abdomen", folder, tmp_path, ["val"])  # the official ones, 6 to 8
    assert "lacks 18 of 18 files" in message and "imagesTr/AbdomenMRCT_0006_0000.nii.gz" in message
    for text, expected in (("{", "not valid JSON"), ("[]", "must be a JSON object")):
        path.write_text(text)
        assert expected in error_of(cases, "l2r-abdomen", folder, tmp_path, ["1"])
    path.unlink()
    assert "has no AbdomenMRCT_dataset.json" in error_of(cases, "l2r-abdomen", folder, tmp_path)


def test_volumes_that_are_not_those_of_the_archive(
    abdomen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(abdomen, tmp_path / "copy")
    for kind, side in (("labels", "0000"), ("masks", "0001")):
        path = folder / f"{kind}Tr/AbdomenMRCT_0001_{side}.nii.gz"
        whole = sitk.ReadImage(str(path))
        sitk.WriteImage(whole[:, :, 1:], str(path))
        if kind == "labels":
            message = error_of(cases, "l2r-abdomen", folder, tmp_path, ["1"])
            assert str(path) in message and "does not lie on the voxels of its image" in message
        else:
            with pytest.warns(UserWarning, match=f"{path.name}.* covers only a part"):
                cases("l2r-abdomen", folder, tmp_path, ["1"])
        sitk.WriteImage(whole, str(path))
    path = folder / "labelsTr/AbdomenMRCT_0001_0000.nii.gz"
    labels = sitk.ReadImage(str(path))
    sitk.WriteImage((labels > 0) * 7, str(path))
    message = error_of(cases, "l2r-abdomen", folder, tmp_path, ["1"])
    assert str(path) in message and "none of the labels 1, 2, 3, 4 but 0, 7" in message
    sitk.WriteImage(labels * 0, str(path))
    assert "holds no label" in error_of(cases, "l2r-abdomen", folder, tmp_path, ["1"])
    monkeypatch.setattr(learn2reg, "SHAPE", (192, 160, 192))
    message = error_of(cases, "l2r-abdomen", abdomen, tmp_path, ["1"])
    assert "48 x 40 x 48 voxels, but those of Learn2Reg AbdomenMRCT have 192 x 160 x 192" in message


def test_what_may_be_meant_is_warned_of(abdomen: Path, tmp_path: Path) -> None:
    """Labels that one map lacks, and headers that place MR and CT differently."""
    copy = tmp_path / "copy"
    shutil.copytree(abdomen, copy)
    path = copy / "labelsTr" / "AbdomenMRCT_0001_0001.nii.gz"
    volume = load_labels(path, "labels")
    save_image(volume.grid.to_sitk(np.where(volume.array == 2, 0, volume.array)), path)
    with pytest.warns(UserWarning, match=r"0001_0001.*lack 2, which cannot be scored"):
        cases("l2r-abdomen", copy, tmp_path, ["1"])
    for what in ("images", "labels", "masks"):
        path = copy / f"{what}Tr" / "AbdomenMRCT_0002_0001.nii.gz"
        image = sitk.ReadImage(str(path))
        image.SetOrigin((5.0, 0.0, 0.0))
        save_image(image, path)
    with pytest.warns(UserWarning, match="different grids"):
        (case,) = cases("l2r-abdomen", copy, tmp_path, ["2"])
    grid = load_grid(case.fixed.image, "image")
    field = np.zeros((*grid.shape, 3), np.float32)
    field[..., 0] = sitk.ReadImage(str(case.moving.image)).GetOrigin()[0] - grid.origin[0]
    official = measure(case, Warp(field, grid))["learn2reg"]  # in voxels, the field is 0
    fixed, moving = (load_labels(side.labels or "", "labels").array for side in (case.fixed, case.moving))
    expected = np.mean(list(dice(fixed, moving, range(1, 5)).values()))
    assert official["dice"] == pytest.approx(expected)
    assert official["sdlogj"] == pytest.approx(0, abs=1e-5)


def test_an_imitation_is_known_for_one(abdomen: Path, hearts: Path, own_pairs: Path) -> None:
    assert is_made_up(abdomen) and is_made_up(abdomen.parent) and is_made_up(hearts)
    assert not is_made_up(own_pairs) and not is_made_up(None)


def test_pairing_by_a_seed() -> None:
    for seed in range(3):
        pairing = Pairing(seed, 5, 15, 2.0)
        pairs = pairing.draw()
        assert pairs == pairing.draw() != Pairing(seed + 1, 5, 15, 2.0).draw()
        for side in zip(*pairs):
            assert len(set(side)) == 15  # each once
        every = Pairing(seed, 5, None, 2.0).draw()
        assert len(set(every)) == 225
        assert set(pairs) < set(every)  # the held-out ones are the same, and never used
        assert all(len(set(side)) == 15 and set(side) < set(SUBJECTS) for side in zip(*every))
        some = Pairing(seed, 8, 30, 2.0).draw()
        assert len(set(some)) == 30
        assert all(set(Counter(side).values()) == {2, 3} for side in zip(*some))


def test_the_pairing_that_is_shipped() -> None:
    """It must not change with a version of numpy: numbers would no longer compare."""
    shipped = Pairing.read(Path(mmwhs.__file__).with_name("mmwhs_pairing.json"))
    assert shipped == Pairing(0, 5, 15, 2.0)
    assert shipped.draw() == [
        (1001, 1011),
        (1003, 1008),
        (1004, 1004),
        (1005, 1012),
        (1006, 1020),
        (1007, 1005),
        (1008, 1015),
        (1009, 1002),
        (1011, 1019),
        (1012, 1006),
        (1013, 1010),
        (1014, 1007),
        (1017, 1003),
        (1019, 1009),
        (1020, 1017),
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seeds": 1}, "has the unknown key 'seeds'"),
        ({"seed": None}, "seed must be a whole number of 0 or more, not None"),
        ({"seed": -1}, "seed must be"),
        ({"held_out": 20}, "held_out must be a whole number from 0 to 19, not 20"),
        ({"held_out": True}, "held_out must be"),
        ({"pairs": 226}, "pairs must be a whole number from 1 to 225, or null for all, not 226"),
        ({"pairs": 15.0}, "pairs must be"),
        ({"spacing_mm": "2"}, "spacing_mm must be a number from 0.5 to 10, not '2'"),
        ({"spacing_mm": 0}, "spacing_mm must be"),
    ],
)
def test_a_pairing_that_is_wrong(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    right = {"seed": 0, "held_out": 5, "pairs": 15, "spacing_mm": 2}
    assert Pairing.read(write_json(tmp_path / "p.json", right)) == Pairing(0, 5, 15, 2.0)
    message = error_of(Pairing.read, write_json(tmp_path / "p.json", right | change))
    assert expected in message and "p.json" in message


def test_a_pairing_that_lacks_keys(tmp_path: Path) -> None:
    assert "lacks 'held_out' and lacks 'pairs'" in error_of(
        Pairing.read, write_json(tmp_path / "p.json", {"seed": 0, "spacing_mm": 2})
    )
    assert "cannot be read: No such file" in error_of(Pairing.read, tmp_path / "absent.json")


def test_hearts(hearts: Path, all_pairs: Path, tmp_path: Path) -> None:
    names = ["mr1001-ct1002", "mr1002-ct1002"]
    files = ["mr_train/mr_train_1001_image.nii.gz-ct_train_1002_image.nii.gz", names[1]]
    found = cases("mmwhs", hearts, tmp_path, files, pairing=all_pairs)
    assert [(c.name, c.direction) for c in found] == [(name, "mr2ct") for name in names]
    one, two = found
    assert one.labels == LABELS and one.fixed == two.fixed and one.moving != two.moving
    assert re.fullmatch(r"ct_1002_\w{8}_image.nii.gz", one.fixed.image.name) and one.fixed.mask is None
    assert Case.from_dict(one.to_dict()) == one
    made = sorted(tmp_path.rglob("*.nii.gz"))
    assert len(made) == 6
    before = [path.stat().st_mtime_ns for path in made]
    both = cases("mmwhs", hearts, tmp_path, names[:1], ["mr2ct", "ct2mr"], all_pairs)
    assert both[0] == one and (both[1].fixed, both[1].moving) == (one.moving, one.fixed)
    assert [path.stat().st_mtime_ns for path in made] == before  # made once


def test_hearts_on_cubic_voxels(hearts: Path, all_pairs: Path, tmp_path: Path) -> None:
    (case,) = cases("mmwhs", hearts, tmp_path, ["mr1001-ct1001"], pairing=all_pairs)
    for side, modality in ((case.fixed, "ct"), (case.moving, "mr")):
        stem = hearts / f"{modality}_train" / f"{modality}_train_1001"
        grid = load_grid(Path(f"{stem}_image.nii.gz"), "image")
        image, labels = load_image(side.image, "image"), load_labels(side.labels, "labels")
        assert image.grid.same_as(labels.grid) and image.grid.spacing == pytest.approx((8.0, 8.0, 8.0))
        assert grid.direction == pytest.approx(image.grid.direction, abs=1e-5)
        np.testing.assert_allclose(image.grid.centre, grid.centre, atol=1e-3)
        np.testing.assert_allclose(image.grid.extent, grid.extent, atol=4)
        assert sitk.ReadImage(str(side.labels)).GetPixelID() == sitk.sitkUInt16
        old = load_labels(Path(f"{stem}_label.nii.gz"), "labels")
        assert (421 in old.array) == (modality == "mr")
        assert set(np.unique(labels.array)) == {0, *LABELS}
        # As much of the left heart, in mm^3, as before: 421 as 420.
        was = np.isin(old.array, (420, 421, 500, 205)).sum() * np.prod(grid.spacing)
        assert np.isin(labels.array, (420, 500, 205)).sum() * 8**3 == pytest.approx(was, rel=0.15)
        was = load_image(Path(f"{stem}_image.nii.gz"), "image").array
        assert image.array.mean() == pytest.approx(was.mean(), rel=0.05, abs=10)
        assert image.array.std() < was.std()  # smoothed


def test_cubic(oblique_grid: Grid) -> None:
    for spacing in (0.8, 2.0, 2.7):
        found = cubic(oblique_grid, spacing)
        assert found.spacing == (spacing,) * 3 and found.direction == oblique_grid.direction
        np.testing.assert_allclose(found.centre, oblique_grid.centre, atol=1e-9)
        assert (np.abs(found.extent - oblique_grid.extent) < spacing / 2 + 1e-6).all()


def test_hearts_that_are_not_there(hearts: Path, all_pairs: Path, tmp_path: Path) -> None:
    message = error_of(
        cases, "mmwhs", hearts, tmp_path, ["mr1001-ct1003", "mr1002-ct1002"], pairing=all_pairs
    )
    assert "lacks 2 of 8 files" in message and "zmic.org.cn" in message
    assert "ct_train/ct_train_1003_image.nii.gz, ct_train/ct_train_1003_label.nii.gz" in message
    held_out = f"mr{set(SUBJECTS).difference(mr for mr, _ in Pairing(0, 5, 15, 2.0).draw()).pop()}-ct1001"
    assert f"named '{held_out}'" in error_of(cases, "mmwhs", hearts, tmp_path, [held_out])
    folder = shutil.copytree(hearts, tmp_path / "copy")
    path = folder / "mr_train/mr_train_1001_label.nii.gz"
    labels = sitk.ReadImage(str(path))
    for wrong, expected in (
        ((labels > 0) * 9, "none of the labels 500,"),
        (labels[1:], "does not lie on the voxels"),
    ):
        sitk.WriteImage(wrong, str(path))
        message = error_of(cases, "mmwhs", folder, tmp_path, ["mr1001-ct1001"], pairing=all_pairs)
        assert str(path) in message and expected in message
    assert not list(tmp_path.glob("mmwhs-8mm/mr_1001*"))


def test_own_pairs(own_pairs: Path, tmp_path: Path) -> None:
    given, exchanged = cases("open-pairs", own_pairs, tmp_path)
    folder = own_pairs / "one"
    assert (given.name, given.direction, given.exchanged) == ("one", "given", False)
    assert (exchanged.name, exchanged.direction, exchanged.exchanged) == ("one", "exchanged", True)
    assert given.fixed.mask is None and given.moving.mask == folder / "moving_labels.nii.gz"
    assert (exchanged.fixed, exchanged.moving) == (given.moving, given.fixed)
    assert given.landmarks == exchanged.landmarks == folder / "points.csv"
    assert given.labels == exchanged.labels == {3: "cube"}
    for name in ("one", str(folder), "own/one/manifest.json", str(folder / "fixed.nii.gz")):
        assert cases("open-pairs", own_pairs, tmp_path, [name], ["exchanged"]) == [exchanged]
    for case in (given, exchanged):
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_own_pairs_without_labels(own_pairs: Path, tmp_path: Path) -> None:
    path = own_pairs / "one/manifest.json"
    bare = json.loads(path.read_text()) | {"fixed_labels": None, "moving_labels": None, "labels": {}}
    write_json(path, bare)
    case, _ = cases("open-pairs", own_pairs, tmp_path)
    assert case.labels == {} and case.fixed.labels is None and case.landmarks
    write_json(path, {"fixed": "fixed.nii.gz", "moving": "moving.nii.gz"})
    case, _ = cases("open-pairs", own_pairs, tmp_path)
    assert case.labels == {} and case.landmarks is None and case.fixed.labels is None


def test_what_is_measured_without_labels(tmp_path: Path) -> None:
    """Folding and smoothness of the warp, and how well the images agree: better through the true warp."""
    (phantom,) = cases("phantom", None, tmp_path, ["0@6"])
    bare = replace(
        phantom, labels={}, landmarks=None, fixed=Side(phantom.fixed.image), moving=Side(phantom.moving.image)
    )
    true, grid = torso(0, 6.0).truth, load_grid(bare.fixed.image, "image")
    points = grid.world_points()
    found = measure(bare, Warp((true(points) - points).astype(np.float32), grid))
    assert set(found) == {"folding_percent", "sd_log_jacobian", "agreement"}
    assert found["folding_percent"] == 0 and 0 < found["sd_log_jacobian"] < 1
    assert found["agreement"]["before"] < 0.2 < 0.3 < found["agreement"]["after"] <= 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fixed": None}, "'fixed' must be the name of a file, not None"),
        ({"landmarks": 3}, "'landmarks' must be the name of a file, not 3"),
        ({"moving": "ct.nii.gz"}, "ct.nii.gz', does not exist"),
        ({"fixed_labels": None}, "a label map of one side"),
        ({"fixed_labels": None, "moving_labels": None}, "names labels but no label maps"),
        ({"labels": {}}, "label maps but no labels"),
        ({"labels": {"0": "air"}}, "'labels' must be an object"),
        ({"labels": ["cube"]}, "'labels' must be an object"),
        ({"labels": {"4": "ball"}}, "none of the labels 4 but 0, 3"),
        ({"fixed_labels": "moving_labels.nii.gz"}, "does not lie on the voxels"),
        ({"moving": "manifest.json"}, "is not an image"),
        ({"landmarks": "fixed.nii.gz"}, "fixed.nii.gz'"),
    ],
)
def test_a_manifest_that_is_wrong(
    own_pairs: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    path = own_pairs / "one/manifest.json"
    write_json(path, json.loads(path.read_text()) | change)
    message = error_of(cases, "open-pairs", own_pairs, tmp_path)
    assert expected in message and str(own_pairs / "one") in message


def test_manifests_that_are_no_manifests(own_pairs: Path, tmp_path: Path) -> None:
    assert "available: one" in error_of(cases, "open-pairs", own_pairs, tmp_path, ["two"])
    message = error_of(cases, "open-pairs", own_pairs / "one", tmp_path)
    assert "has a manifest.json; give the folder above it" in message
    (tmp_path / "empty").mkdir()
    assert "no folder in" in error_of(cases, "open-pairs", tmp_path / "empty", tmp_path)
    path = own_pairs / "one/manifest.json"
    write_json(path, {"moving": "moving.nii.gz"})
    message = error_of(cases, "open-pairs", own_pairs, tmp_path)
    assert "'fixed' must be the name of a file, not None" in message
    path.write_text("{'")
    assert "not valid JSON" in error_of(cases, "open-pairs", own_pairs, tmp_path)


def test_the_real_pairs(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "data" / "pairs"
    names = ["abdomen-mr-ct", "cord-t2-t2s", "lung-ct-ct"]
    found = cases("open-pairs", folder, tmp_path, names)
    assert [(c.name, c.direction) for c in found] == [(n, d) for n in names for d in ("given", "exchanged")]
    assert len(found[0].labels) == 17 and found[0].labels[5] == "liver"
    assert found[4].landmarks == folder / "lung-ct-ct/landmarks.csv"
    assert [path.name for path in tmp_path.iterdir()] == []


def test_phantoms(tmp_path: Path) -> None:
    one, other = cases("phantom", None, tmp_path, ["1@12", "0@12.0"])
    assert [(c.name, c.direction) for c in (one, other)] == [("1@12", "given"), ("0@12", "given")]
    assert one.labels[1] == "liver" and len(one.labels) == 14 and one.landmarks
    assert len(read_pairs(one.landmarks)[0]) > 20
    folder = tmp_path / "phantoms"
    assert sorted(path.name for path in folder.iterdir()) == ["0@12", "1@12"]  # nothing half made
    before = one.fixed.image.stat().st_mtime_ns
    again = cases("phantom", None, tmp_path, ["1@12"], ["exchanged", "given"])
    assert again[1] == one and again[0].exchanged and again[0].fixed == one.moving
    assert one.fixed.image.stat().st_mtime_ns == before
    (folder / "1@12/manifest.json").unlink()
    assert "could not write" in error_of(cases, "phantom", None, tmp_path, ["1@12"])
    assert sorted(path.name for path in folder.iterdir()) == ["0@12", "1@12"]
    for name in ("x", "-1", "1@", "1@a"):
        assert f"no phantom '{name}'" in error_of(cases, "phantom", None, tmp_path, [name])
    assert "from 1 to 12 mm" in error_of(cases, "phantom", None, tmp_path, ["1@50"])
    assert "available: given, exchanged" in error_of(cases, "phantom", None, tmp_path, ["0@12"], ["x"])


def test_the_default_phantoms_have_3_mm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regkit.bench import phantoms

    asked = []
    torso = phantoms.torso

    def coarse(seed: int, spacing: float) -> object:
        asked.append((seed, spacing))
        return torso(seed, 12.0)

    monkeypatch.setattr(phantoms, "torso", coarse)
    assert [c.name for c in cases("phantom", None, tmp_path)] == ["0", "1", "2"]
    assert [c.name for c in cases("phantom", None, tmp_path, ["0@3", "0"])] == ["0"]
    assert asked == [(0, 3.0), (1, 3.0), (2, 3.0)]


def test_what_the_imitation_refuses(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    assert "is not empty" in error_of(imitate, "mmwhs", tmp_path)
    assert "available: l2r-abdomen, l2r-abdomen-ct, mmwhs" in error_of(imitate, "phantom", tmp_path / "new")
    assert "from 1 to 8, not 9" in error_of(imitate, "l2r-abdomen", tmp_path / "new", 9)
    assert "from 1 to 20, not 0" in error_of(imitate, "mmwhs", tmp_path / "new", 0)
    assert "could not write to" in error_of(imitate, "mmwhs", tmp_path / "mine" / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_the_same_imitation_again(hearts: Path, tmp_path: Path) -> None:
    imitate("mmwhs", tmp_path / "again", 1, shape=_HEART_SHAPE)
    imitate("mmwhs", tmp_path / "other", 1, seed=1, shape=_HEART_SHAPE)
    for name in ("ct_train/ct_train_1001_image.nii.gz", "mr_train/mr_train_1001_label.nii.gz"):
        one, again, other = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(f / name)))
            for f in (hearts, tmp_path / "again", tmp_path / "other")
        )
        assert (one == again).all() and (one != other).any()
