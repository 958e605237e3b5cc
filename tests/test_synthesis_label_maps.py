"""Whole label maps: what lies where in them, whatever their headers say of axes, and what cannot be used."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.synthesis import label_maps as drawing
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.contrasts import anatomy_of
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.label_maps import LEGEND, LabelMaps, load_label_maps, load_legend
from regkit.synthesis.mixture import anatomies
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs, Synthesiser, draw_anatomy
from regkit.synthesis.shape_sources import Procedural
from regkit.synthesis.structures import STRUCTURES
from regkit.synthesis.tissues import TISSUES

_NUMBER = {name: number for number, name in STRUCTURES.items()}
_LEFT, _BONE, _EYES = 2, 515, 506  # ids of the phantom
LEGENDS = Path(__file__).resolve().parents[1] / "docs" / "anatomies"
CONTENT: dict[str, Any] = {
    "source": "a phantom, Apache-2.0",
    "labels": {
        "2": {"structure": "left cerebral white matter", "tissue": "white matter"},
        "506": {"structure": "eyes", "tissue": "vitreous body"},
        "507": {"tissue": ["muscle", "fat"]},
        "515": {"structure": "bones of the head", "tissue": "compact bone"},
    },
    "alone": ["left cerebral white matter"],
}


def _phantom() -> np.ndarray:
    """(Z, Y, X) towards head, back and left, 2 mm: bone on top, eyes in front, something on the left."""
    labels = np.zeros((40, 48, 44), np.int16)
    labels[4:36, 6:42, 6:38] = 507
    labels[28:36, 6:42, 6:38] = _BONE
    labels[10:16, 6:12, 10:34] = _EYES
    labels[14:24, 20:30, 26:36] = _LEFT
    return labels


def _write(folder: Path, array: np.ndarray, grid: Grid | None = None, content: Any = CONTENT) -> Path:
    folder.mkdir(exist_ok=True)
    grid = grid or Grid(array.shape[::-1], (2.0, 2.0, 2.0))
    sitk.WriteImage(grid.to_sitk(array), str(folder / "one.nii.gz"))
    (folder / LEGEND).write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path / "maps", _phantom())


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing turned, bent, displaced, missing or alone."""

    def upright(rng: Rng, shape: tuple[int, ...], spacing: float, middle: np.ndarray, turn: float) -> Any:
        axes = [spacing * (np.arange(n, dtype=np.float32) - (n - 1) / 2) for n in shape]
        points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])
        return points + np.asarray(middle, np.float32).reshape(3, 1, 1, 1)

    monkeypatch.setattr(drawing, "posed", upright)
    monkeypatch.setattr(drawing, "displace_structures", lambda *_: None)
    monkeypatch.setattr(Rng, "chance", lambda self, probability: False)


def _structures(anatomy: Anatomy) -> np.ndarray:
    return anatomy.structures[anatomy.labels.numpy()]


def _as_drawn(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What the phantom's structures are on voxels of 2 mm, about the middle of what is not 0."""
    occupied = labels[3:37, 5:43, 5:39]  # with one voxel around
    numbers = {_LEFT: "left cerebral white matter", _BONE: "bones of the head", _EYES: "eyes"}
    found = sum(np.where(occupied == label, _NUMBER[name], 0) for label, name in numbers.items())
    before = [(n - m) // 2 for n, m in zip(shape, occupied.shape)]
    assert all((n - m) % 2 == 0 for n, m in zip(shape, occupied.shape))
    return np.pad(found, [(b, n - m - b) for b, n, m in zip(before, shape, occupied.shape)], mode="edge")


def test_a_map_comes_out_as_it_went_in(folder: Path, still: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_MARGIN", 1.0)
    anatomy = load_label_maps(folder).draw(Rng.of(0), 2.0)
    assert anatomy.labels.dtype == torch.uint8
    assert anatomy.spacing == 2.0
    assert np.array_equal(_structures(anatomy), _as_drawn(_phantom(), tuple(anatomy.labels.shape)))


@pytest.mark.parametrize(
    ("axes", "flipped"), [((0, 1, 2), (0, 1)), ((2, 0, 1), ()), ((1, 0, 2), (2,)), ((2, 1, 0), (0, 2))]
)
def test_axes_are_the_patients_whatever_those_of_the_file(
    tmp_path: Path,
    still: None,
    monkeypatch: pytest.MonkeyPatch,
    axes: tuple[int, ...],
    flipped: tuple[int, ...],
) -> None:
    """The same map stored in other orders and directions of its axes, its header saying so."""
    monkeypatch.setattr(drawing, "_MARGIN", 1.0)
    image = Grid((44, 48, 40), (2.0, 2.0, 2.0)).to_sitk(_phantom())
    image = sitk.PermuteAxes(image, axes)
    image = sitk.Flip(image, [axis in flipped for axis in range(3)], False)
    folder = _write(tmp_path / "maps", sitk.GetArrayFromImage(image), Grid.from_sitk(image))
    anatomy = load_label_maps(folder).draw(Rng.of(0), 2.0)
    assert np.array_equal(_structures(anatomy), _as_drawn(_phantom(), tuple(anatomy.labels.shape)))


def test_an_oblique_map_of_long_voxels_lies_as_its_header_says(tmp_path: Path, still: None) -> None:
    """Middles of structures, mm from the middle of the map's box, through the header and as drawn."""
    angle = np.radians(20)
    direction = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    grid = Grid((44, 48, 20), (2.0, 2.0, 4.0), (5.0, -30.0, 70.0), tuple(direction.ravel()))
    folder = _write(tmp_path / "maps", _phantom()[::2], grid)
    maps = load_label_maps(folder)
    anatomy = maps.draw(Rng.of(0), 2.0)
    middle = (np.array(anatomy.labels.shape) - 1) / 2
    labels = _phantom()[::2]
    occupied = np.argwhere(labels)[:, ::-1]
    centre = (occupied.min(0) + occupied.max(0)) / 2
    for label, name in ((_LEFT, "left cerebral white matter"), (_EYES, "eyes")):
        index = np.argwhere(labels == label)[:, ::-1].mean(0) - centre
        expected = direction @ (index * grid.spacing)
        found = 2.0 * (np.argwhere(_structures(anatomy) == _NUMBER[name]).mean(0) - middle)[::-1]
        np.testing.assert_allclose(found, expected, atol=0.5)


def test_float_maps_of_whole_numbers_are_taken_and_others_refused(folder: Path) -> None:
    whole = load_label_maps(folder)
    _write(folder, _phantom().astype(np.float32))
    again = load_label_maps(folder)
    assert again.maps[0].labels == whole.maps[0].labels
    _write(folder, _phantom() + np.float32(0.5))
    with pytest.raises(RegkitError, match=r"not a label map: .* voxels are not whole numbers"):
        load_label_maps(folder)


def test_seeds_repeat_and_differ_whatever_was_drawn_before(folder: Path) -> None:
    maps = load_label_maps(folder)
    first = [maps.draw(Rng.of(seed), 2.5) for seed in range(4)]
    again = [maps.draw(Rng.of(seed), 2.5) for seed in reversed(range(4))][::-1]
    for one, other in zip(first, again):
        assert torch.equal(one.labels, other.labels)
        assert np.array_equal(one.structures, other.structures)
        assert np.array_equal(one.palette(Rng.of(9)).means, other.palette(Rng.of(9)).means)
    assert not torch.equal(first[0].labels, first[1].labels)


def test_bodies_are_scaled_turned_and_bent_but_left_stays_left(folder: Path) -> None:
    maps = load_label_maps(folder)
    volumes, places = [], []
    for seed in range(30):
        anatomy = maps.draw(Rng.of(seed), 2.0)
        structures = _structures(anatomy)
        left, bone, eyes = (structures == _NUMBER[name] for name in (
            "left cerebral white matter", "bones of the head", "eyes",
        ))  # fmt: skip
        if not (left.any() and bone.any() and eyes.any()):
            continue
        volumes.append(bone.sum())
        at = [np.argwhere(mask).mean(0) for mask in (left, bone, eyes)]
        places.append([at[1][0] - at[0][0], at[0][1] - at[2][1], at[0][2] - at[2][2]])
    assert len(places) > 15
    assert (np.array(places) > 0).all()  # bone above, eyes in front, left on the left
    assert max(volumes) > 1.3 * min(volumes)


def test_parts_are_displaced_missing_or_alone(folder: Path) -> None:
    maps = load_label_maps(folder)
    kinds: dict[str, int] = {"eyes missing": 0, "alone": 0, "whole": 0}
    sizes = []
    for seed in range(80):
        there = set(np.unique(_structures(maps.draw(Rng.of(seed), 3.0))).tolist()) - {0}
        names = {STRUCTURES[number] for number in there}
        if names == {"left cerebral white matter"}:
            kinds["alone"] += 1
        elif "bones of the head" in names and "eyes" not in names:
            kinds["eyes missing"] += 1
        elif names == {"left cerebral white matter", "bones of the head", "eyes"}:
            kinds["whole"] += 1
            structures = _structures(maps.draw(Rng.of(seed), 3.0))
            sizes.append((structures == _NUMBER["eyes"]).sum() / (structures > 0).sum())
    assert 8 <= kinds["alone"] <= 30
    assert kinds["whole"] > 30
    assert max(sizes) > 1.2 * min(sizes)


def test_what_is_missing_is_filled_by_what_lies_around_it() -> None:
    structures = np.full((20, 20, 20), 4, np.uint8)
    structures[:, :, 10:] = 7
    structures[8:10, 8:10, 4:6] = 9
    labels = structures + 1
    found, without = drawing.remove_structure(labels, structures, Rng.of(0))
    assert np.array_equal(found, without + 1)
    assert (without[8:10, 8:10, 4:6] == 4).all()
    untouched = structures != 9
    assert np.array_equal(without[untouched], structures[untouched])


def test_no_place_folds_where_parts_are_displaced(folder: Path) -> None:
    """Neighbours stay neighbours: each step of the coordinates goes forward."""
    maps = load_label_maps(folder)
    chosen, legend = maps.maps[0], maps.legend
    axes = [2.0 * (np.arange(n, dtype=np.float32) - (n - 1) / 2) for n in (50, 60, 54)]
    moved = 0.0
    for seed in range(20):
        points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])
        before = points.copy()
        drawing.displace_structures(points, chosen.array(), chosen, legend.structures, Rng.of(seed))
        moved = max(moved, float(np.abs(points - before).max()))
        jacobian = np.stack([np.stack(np.gradient(c, 2.0)[::-1], -1) for c in points], -2)
        assert np.linalg.det(jacobian).min() > 0.1
    assert moved > 2


def test_fine_voxels_show_a_box_around_a_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regkit.synthesis.pose.MAX_SIDE", 40)
    maps = load_label_maps(folder)
    shown = [_structures(maps.draw(Rng.of(seed), 0.8)) for seed in range(12)]
    assert all(max(box.shape) == 40 for box in shown)
    met = set(np.concatenate([np.unique(box) for box in shown]).tolist())
    assert met >= {_NUMBER["left cerebral white matter"], _NUMBER["bones of the head"], _NUMBER["eyes"]}


def test_a_label_of_two_tissues_shows_both(folder: Path) -> None:
    maps = load_label_maps(folder)
    muscle, fat = (TISSUES.index(name) for name in ("muscle", "fat"))
    table = [kinds for label, kinds in zip(maps.legend.ids, maps.legend.tissues) if label == 507]
    assert table == [(muscle, fat)]
    labels = np.full((40, 40, 40), int(np.searchsorted(maps.legend.ids, 507)), np.uint8)
    shares = []
    for seed in range(20):
        mixed = drawing.mix_tissues(labels, maps.legend.tissues, 2.0, Rng.of(seed))
        assert set(np.unique(mixed).tolist()) <= {muscle, fat}
        shares.append((mixed == fat).mean())
    assert min(shares) < 0.4 < 0.6 < max(shares)


def test_one_tissue_has_one_look_in_all_structures() -> None:
    fat, bone = TISSUES.index("fat"), TISSUES.index("compact bone")
    tissues = np.array([fat, fat, bone], np.uint8).reshape(1, 1, 3)
    anatomy = anatomy_of(tissues, np.array([0, 45, 44], np.uint8).reshape(1, 1, 3), 1.0)
    first, second, other = anatomy.labels.ravel().tolist()
    assert [int(anatomy.structures[label]) for label in (first, second, other)] == [0, 45, 44]
    means = np.array([anatomy.palette(Rng.of(seed)).means for seed in range(30)])
    assert np.abs(means[:, first] - means[:, second]).max() < 0.05
    assert np.abs(means[:, first] - means[:, other]).mean() > 0.2


def test_maps_take_a_fraction_of_their_memory(folder: Path) -> None:
    (chosen,) = load_label_maps(folder).maps
    assert chosen.array().dtype == np.uint8
    assert chosen.shape == (34, 38, 34)  # cropped
    assert len(chosen.labels) < 0.1 * np.prod(chosen.shape)


def test_drawing_processes_get_the_same_maps(folder: Path) -> None:
    maps = load_label_maps(folder)
    sent = pickle.dumps(maps)
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent).draw(Rng.of(4), 2.5).labels, maps.draw(Rng.of(4), 2.5).labels)


def test_pairs_of_maps_name_what_they_show_and_repeat(folder: Path) -> None:
    how = Pairs(
        size=32, offset=8, strays=4, anatomies=0.5, trunks=0.0, spacing=(2.0, 4.0), thick=0.5,
        ensembles=Ensembles(size=48, count=(3, 6), details=4), shapes=((16, 48, 48), (8, 48, 48)),
    )  # fmt: skip
    maps, sources = [load_label_maps(folder)], [(Procedural(), 1.0)]
    drawn = [draw_anatomy(how, sources, 0, number, maps) for number in range(24)]
    bodies = [anatomy for anatomy in drawn if anatomy.spacing]
    assert 5 < len(bodies) < 19
    for body in bodies:
        assert body.spacing is not None and body.views is not None
        assert 2.0 <= body.views[0] < body.views[1] <= 4.0
        assert 0.8 * body.spacing < body.views[0] and body.views[1] < 1.6 * body.spacing
    how = Pairs(
        size=32, offset=8, strays=4, reuse=2, anatomies=1.0, spacing=(1.5, 4.0),
        ensembles=Ensembles(size=48, count=(3, 6), details=4), shapes=((16, 48, 48),),
    )  # fmt: skip
    synthesiser = Synthesiser(how, sources, 0, torch.device("cpu"), maps=maps)
    pair, again = synthesiser.draw([1], (16, 48, 48)), synthesiser.draw([1], (16, 48, 48))
    assert torch.equal(pair.images, again.images) and torch.equal(pair.structures, again.structures)
    assert len(pair.structures.unique()) > 1


@pytest.mark.parametrize("path", sorted(LEGENDS.glob("*.json")), ids=lambda path: path.name)
def test_the_legends_that_are_shipped_are_legends(path: Path) -> None:
    legend = load_legend(path)
    assert legend.ids[0] == 0
    assert legend.alone.any()
    assert "Apache-2.0" in legend.source


def test_the_heads_have_names(shared_dir: Path, tmp_path: Path) -> None:
    """One real map with the legend that is shipped: its brain lies in its skull, and left is left."""
    source = shared_dir / "data" / "anatomies" / "heads" / "training_seg_01.nii.gz"
    if not source.is_file():
        pytest.skip(f"no label map of a head at {source}")
    (tmp_path / source.name).symlink_to(source)
    (tmp_path / LEGEND).write_bytes((LEGENDS / "heads.json").read_bytes())
    structures = _structures(load_label_maps(tmp_path).draw(Rng.of(2), 4.0))
    at = {
        name: np.argwhere(structures == _NUMBER[name]).mean(0)
        for name in ("left cerebral cortex", "right cerebral cortex", "eyes", "brain stem", "thalamus")
    }
    assert at["left cerebral cortex"][2] > at["thalamus"][2] > at["right cerebral cortex"][2]
    assert at["eyes"][1] < at["thalamus"][1]
    assert at["brain stem"][0] < at["thalamus"][0]


def _changed(change: Callable[[dict[str, Any]], Any]) -> str:
    content = json.loads(json.dumps(CONTENT))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", 'expected an object with "source" and "labels"'),
        (_changed(lambda c: c.pop("labels")), 'expected an object with "source" and "labels"'),
        (_changed(lambda c: c.pop("source")), '"source" must say who made the maps'),
        (_changed(lambda c: c.update(licence="MIT")), 'no entry "licence"; available: source, labels, alone'),
        (_changed(lambda c: c["labels"].update(brain={})), 'label "brain" must be a whole number'),
        (_changed(lambda c: c["labels"].update({"2": "brain"})), 'label 2 must have a "tissue"'),
        (_changed(lambda c: c["labels"]["2"].update(colour="red")), 'label 2 must have a "tissue"'),
        (_changed(lambda c: c["labels"]["2"].update(tissue="white mater")), 'perhaps "white matter"'),
        (_changed(lambda c: c["labels"]["2"].update(tissue=[])), "label 2 must be of a tissue"),
        (
            _changed(lambda c: c["labels"]["506"].update(structure="eye")),
            'label 506: .*"eye", perhaps "eyes"',
        ),
        (_changed(lambda c: c["labels"]["2"].update(structure=["x"])), "label 2: no structure named"),
        (_changed(lambda c: c.update(alone=["liver"])), '"alone" names "liver", which no label is part of'),
        (_changed(lambda c: c.update(alone="eyes")), '"alone" must be a list'),
        (
            _changed(lambda c: c.update(labels={str(k): {"tissue": "fat"} for k in range(300)})),
            "there are 300 labels, and may be 255",
        ),
    ],
)
def test_legends_that_are_none(folder: Path, text: str, message: str) -> None:
    (folder / LEGEND).write_text(text)
    with pytest.raises(RegkitError, match=message) as caught:
        load_label_maps(folder)
    assert str(folder / LEGEND) in str(caught.value)


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match="no folder of label maps at"):
        load_label_maps(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RegkitError, match=r"no label map in .*NAME\.nii\.gz files beside anatomies\.json"):
        load_label_maps(empty)
    array = _phantom()
    array[5, 7, 7], array[6, 7, 7] = 99, 31
    _write(folder, array)
    with pytest.raises(RegkitError, match=r"one\.nii\.gz.*anatomies\.json does not name: 31, 99; add them"):
        load_label_maps(folder)
    _write(folder, np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(RegkitError, match="holds no label"):
        load_label_maps(folder)
    _write(folder, _phantom())
    (folder / LEGEND).unlink()
    with pytest.raises(RegkitError, match=r"no anatomies\.json in"):
        load_label_maps(folder)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_an_archive_that_is_cut_short(folder: Path, kept: float) -> None:
    path = folder / "one.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(RegkitError, match=r"one\.nii\.gz"):
        load_label_maps(folder)


def test_a_share_needs_maps_and_maps_a_share(folder: Path) -> None:
    with pytest.raises(RegkitError, match=r"--anatomies FOLDER, or set 'pairs.anatomies: 0'"):
        anatomies(0.4, [])
    with pytest.raises(RegkitError, match="leave --anatomies out, or give them a share"):
        anatomies(0.0, [folder])
    assert anatomies(0.0, []) == []
    (found,) = anatomies(0.5, [folder])
    assert isinstance(found, LabelMaps)
