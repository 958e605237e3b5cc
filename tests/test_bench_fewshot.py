"""``regkit bench few-shot``: layouts, draws, rendered heads, and a benchmark from end to end."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import error_of, run, usage_error_of
from segmentation_cases import GRID, tiny_weights, write_labelled

from regkit.bench.fewshot import report
from regkit.bench.fewshot.heads import render_heads
from regkit.bench.fewshot.layout import draw, find_subjects, known, label_names, load_layout
from regkit.bench.result_rows import read_rows
from regkit.core.errors import RegkitError
from regkit.io.images import Volume, load_image, load_labels
from regkit.io.outputs import save_image
from regkit.segmentation.files import Labelled

LAYOUT: dict[str, Any] = {
    "title": "balls", "source": "a test", "images": "images/*.nii.gz", "labels": "labels/*.nii.gz",
    "names": {"2": "shell", "7": "core"}, "shots": [1, 2], "spacing": 2.0, "patch": 16, "steps": 2,
}  # fmt: skip


def _layout(folder: Path, **changes: Any) -> Path:
    """A layout's file; a change to None leaves a key out."""
    values = {key: value for key, value in {**LAYOUT, **changes}.items() if value is not None}
    path = folder / "balls.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled volumes."""
    folder = tmp_path_factory.mktemp("balls")
    write_labelled(folder / "images", folder / "labels", 3)
    return folder


def _subjects(count: int) -> list[Labelled]:
    return [Labelled(f"s{k}", Path(f"{k}.nii"), Path(f"{k}_seg.nii")) for k in range(count)]


@pytest.mark.parametrize("name", ["msd-heart", "promise12", "amos-ct", "feta", "heads", "cord", "abdomen"])
def test_the_layouts_that_come_with_regkit_are_sound(name: str) -> None:
    assert name in known()
    layout = load_layout(name)
    assert layout.name == name
    if isinstance(layout.names, dict):
        numbers = list(label_names(layout, Path()))
        assert all(a < b for a, b in pairwise(numbers)) and numbers[0] > 0
    assert layout.title.startswith(("RENDERED", "REAL")) or layout.held_out  # which numbers are whose


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("msd-heart", ("imagesTr/la_003.nii.gz", "labelsTr/la_003.nii.gz")),
        ("promise12", ("Case07.mhd", "Case07_segmentation.mhd")),
        ("amos-ct", ("imagesTr/amos_0004.nii.gz", "labelsTr/amos_0004.nii.gz")),
        ("amos-ct", ("imagesVa/amos_0008.nii.gz", "labelsVa/amos_0008.nii.gz")),
        (
            "feta",
            ("sub-001/anat/sub-001_rec-mial_T2w.nii.gz", "sub-001/anat/sub-001_rec-mial_dseg.nii.gz"),
        ),
    ],
)
def test_the_archives_are_found_as_they_unpack(name: str, files: tuple[str, str], tmp_path: Path) -> None:
    others = ("imagesTr/amos_0507.nii.gz", "labelsTr/amos_0507.nii.gz", "imagesTr/._la_003.nii.gz")
    for file in (*files, *(file for file in others if name in ("amos-ct", "msd-heart"))):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    if name == "msd-heart":
        (tmp_path / others[0]).unlink()
    (found,) = find_subjects(load_layout(name), tmp_path, tmp_path)
    assert (found.image, found.labels) == tuple(tmp_path / file for file in files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": None}, "not complete"),
        ({"images": None}, "must have 'images' and 'labels'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"shots": [0]}, "above 0"),
        ({"shots": []}, "above 0"),
        ({"spacing": -1}, "above 0"),
        ({"steps": 1.5}, "above 0"),
        ({"names": {"zero": "shell"}}, "names must be"),
        ({"names": {}}, "names must be"),
        ({"images": None, "labels": None, "subjects": {"a": ["a.nii.gz"]}}, "an image and a label map"),
    ],
)
def test_bad_layouts(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match=message):
        load_layout(str(_layout(tmp_path, **changes)))


def test_the_list_has_the_layouts() -> None:
    lines = run("bench", "list").stdout.splitlines()
    assert any(line.split()[:1] == ["msd-heart"] and "medicaldecathlon.com" in line for line in lines)


def test_no_layout_of_that_name() -> None:
    with pytest.raises(RegkitError, match=r"no layout 'hearts'; available: abdomen, .*msd-heart"):
        load_layout("hearts")


def test_draws_of_few_subjects_take_turns(tmp_path: Path) -> None:
    layout, subjects = load_layout(str(_layout(tmp_path))), _subjects(4)
    drawn = [draw(layout, subjects, 2, seed) for seed in range(7)]
    assert len({found.training for found in drawn[:6]}) == 6  # all ways to draw two of four
    assert drawn[6] == drawn[0]
    for found in drawn:
        assert not set(found.training) & set(found.test)
        assert len(found.test) == 2


def test_those_held_out_are_the_same_in_all_draws(tmp_path: Path) -> None:
    layout, subjects = load_layout(str(_layout(tmp_path, held_out=5))), _subjects(60)
    drawn = [draw(layout, subjects, 3, seed) for seed in range(5)]
    assert len({found.test for found in drawn}) == 1 and len(drawn[0].test) == 5
    assert len({found.training for found in drawn}) == 5
    assert not any(set(found.training) & set(found.test) for found in drawn)
    assert drawn[3] == draw(layout, subjects, 3, 3)


def test_one_way(tmp_path: Path) -> None:
    layout = load_layout(str(_layout(tmp_path, trained=["s0"], tested=["s1"])))
    for seed in range(2):
        found = draw(layout, _subjects(3), 1, seed)
        assert ([c.name for c in found.training], [c.name for c in found.test]) == (["s0"], ["s1"])


@pytest.mark.parametrize(
    ("changes", "count", "shots", "message"),
    [
        (
            {"trained": ["s0"], "tested": ["s1"]},
            3,
            2,
            "3 .*, 0 held out .*, 1 left to train on, but 2 needed",
        ),
        ({"held_out": 4}, 6, 3, "6 volumes found, 4 held out for testing, 2 left to train on, but 3 needed"),
        ({}, 2, 2, "2 volumes found, 0 held out .*, 2 to train on and none left to test on, but 1 needed"),
    ],
)
def test_too_few_volumes(
    changes: dict[str, Any], count: int, shots: int, message: str, tmp_path: Path
) -> None:
    layout = load_layout(str(_layout(tmp_path, **changes)))
    with pytest.raises(RegkitError, match=f"^balls: {message}; give more volumes, or fewer --shots$"):
        draw(layout, _subjects(count), shots, 0)


def test_heads_are_rendered_once_and_alike(tmp_path: Path) -> None:
    """What is scored is where the numbers of FreeSurfer say; structures keep their order of intensities."""
    array = np.zeros(GRID.shape, np.int16)
    array[3:13, 3:14, 3:15] = 507  # outside the brain
    array[5:11, 5:12, 5:13] = 2  # white matter, left
    array[7:9, 5:12, 5:13] = 42  # cortex, right
    path = tmp_path / "training_seg_1.nii.gz"
    save_image(Volume(array, GRID).to_sitk(), path)
    names = {3: "white matter", 5: "cortex"}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (head,), (again,) = (render_heads([path], names, tmp_path / folder) for folder in ("a", "b"))
    image, labels = load_image(head.image, "head"), load_labels(head.labels, "labels")
    assert labels.grid.same_as(image.grid)
    assert np.unique(labels.array).tolist() == [0, 3, 5]
    assert (labels.array == 5).sum() == (array == 42).sum()
    middle = labels.grid.world_to_index @ GRID.index_to_world @ [8, 8, 7, 1]
    assert labels.array[tuple(np.rint(middle[2::-1]).astype(int))] == 5
    white, grey = (np.median(image.array[labels.array == label]) for label in (3, 5))
    assert white > grey
    np.testing.assert_array_equal(image.array, load_image(again.image, "head").array)
    before = head.image.stat().st_mtime_ns
    render_heads([path], names, tmp_path / "a")
    assert head.image.stat().st_mtime_ns == before
    with pytest.raises(RegkitError, match="heads have no part 'nose'"):
        render_heads([path], {1: "nose"}, tmp_path)


def test_from_end_to_end(data: Path, tmp_path: Path) -> None:
    weights, folder = tiny_weights(tmp_path / "weights.safetensors", seed=5), tmp_path / "results"
    words = ["bench", "few-shot", _layout(tmp_path), "--data", data, "-o", folder, "--weights", weights]
    words += ["--threads", 1, "--seeds", 2, "--arm", "pretrained", "--arm", "random"]
    result = run(*words, "--shots", 2)
    assert "pretrained - random" in result.stdout
    assert f"wrote {folder / 'report.md'}" in result.stdout
    rows = read_rows(folder)
    assert [(row["method"], row["seed"], row["status"]) for row in rows] == [
        (arm, seed, "ok") for seed in (0, 1) for arm in ("pretrained", "random")
    ]
    for row in rows:
        assert len(row["training"]) == 2 and len(row["tests"]) == 1
        assert row["tests"][0]["subject"] not in row["training"]
        assert set(row["tests"][0]["labels"]) == {"shell", "core"}
        assert row["steps"] == 2
    assert rows[0]["tests"] != rows[1]["tests"]  # the same draw, other weights at first
    assert not (folder / "model").exists()

    assert "holds results already; add --resume" in error_of(*words)
    finished = (folder / "results.jsonl").read_text()
    run(*words, "--shots", 2, "--resume", "--quiet")
    assert (folder / "results.jsonl").read_text() == finished
    assert "steps 2 instead of 3" in error_of(*words, "--resume", "--steps", 3)
    _layout(tmp_path, spacing=2.5)
    assert "layout " in error_of(*words, "--resume")
    text = (folder / "report.md").read_text()
    for part in ("# Few-shot segmentation: balls", "commit", "threads 1", "## Every draw", "| shell |"):
        assert part in text


def test_atlases_and_a_failure_are_rows(data: Path, tmp_path: Path) -> None:
    """What fails is said, and run again when the results are gone on with."""
    folder, layout = tmp_path / "results", _layout(tmp_path, shots=[1])
    words = ("bench", "few-shot", layout, "--data", data, "-o", folder, "--threads", 1, "--seeds", 1)
    # The bundled network takes no patches of 16 voxels.
    result = run(*words, "--arm", "propagate", "--arm", "random", "--arm", "random")
    assert f"warning: 1 of 2 runs failed; '{folder / 'report.md'}' says why" in result.stderr
    atlas, failed = read_rows(folder)
    assert (atlas["method"], atlas["status"], len(atlas["tests"])) == ("propagate", "ok", 2)
    assert atlas["tests"][0]["labels"]["shell"] > 0.3
    assert failed["status"] == "failed" and "patch must be at least 32" in failed["error"]
    assert "## Failures" in (folder / "report.md").read_text()
    again = run(*words, "--arm", "random", "--resume", "-q", code=1)
    assert "error: no run succeeded" in again.stderr
    assert [row["method"] for row in read_rows(folder)] == ["propagate", "random"]


def test_a_label_that_a_draw_lacks_is_not_learnt_and_scores_0(data: Path, tmp_path: Path) -> None:
    """As with atlases: the draw counts for both."""
    folder, extra = tmp_path / "results", tmp_path / "data"
    shutil.copytree(data, extra)
    path = extra / "labels" / "case1.nii.gz"
    labels = load_labels(path, "labels")
    changed = labels.array.copy()
    changed[:2, :2, :2] = 9
    save_image(Volume(changed, labels.grid).to_sitk(), path)
    names = {"2": "shell", "9": "corner"}
    layout = _layout(tmp_path, names=names, shots=[1], trained=["case0"], tested=["case1", "case2"])
    weights = tiny_weights(tmp_path / "weights.safetensors")
    words = ("--data", extra, "-o", folder, "--threads", 1, "--seeds", 1, "--weights", weights, "--quiet")
    run("bench", "few-shot", layout, *words, "--arm", "random", "--arm", "propagate")
    for row in read_rows(folder):
        assert row["status"] == "ok"
        with_corner, without = (test["labels"] for test in row["tests"])
        assert with_corner["corner"] == 0
        assert without["corner"] is None


def test_wrong_words(data: Path, tmp_path: Path) -> None:
    words = ("bench", "few-shot", "cord", "-o", tmp_path / "results")
    assert "'best' is none of pretrained, random, propagate" in usage_error_of(
        *words, "--data", data, "--arm", "best"
    )
    assert "is not a folder; get it from the real pairs" in error_of(*words, "--data", tmp_path / "no")
    assert "t1.nii.gz' does not exist" in error_of(*words, "--data", data)
    assert not (tmp_path / "results").exists()
    # The last of the draws is what cannot be had, or the names are.
    words = ("bench", "few-shot", _layout(tmp_path, shots=[1, 9]), "-o", tmp_path / "results")
    assert "3 left to train on, but 9 needed" in error_of(*words, "--data", data)
    _layout(tmp_path, names="no.json")
    assert "no.json" in error_of(*words, "--data", data)
    assert not (tmp_path / "results").exists()


def _row(arm: str, seed: int, **dice: float) -> dict[str, Any]:
    tests = [{"subject": name, "dice": value, "labels": {"x": value}} for name, value in dice.items()]
    return {
        "method": arm, "seed": seed, "shots": 1, "status": "ok", "direction": f"1 volume, draw {seed}",
        "tests": tests, "training": ["t"], "seconds": {"training": 1.0, "segmenting": 1.0},
    }  # fmt: skip


def test_the_table_is_of_means_and_of_differences_on_the_same_volumes() -> None:
    rows = [
        _row("pretrained", 0, a=0.5, b=0.7),
        _row("random", 0, a=0.4, b=0.6),
        _row("pretrained", 1, c=0.9),
    ]
    headings, lines = report.summary(rows)
    assert headings == ["mean Dice", "1 volume"]
    cells = {line[0]: line[1].split()[0] for line in lines}
    assert cells == {"pretrained": "0.700", "random": "0.500", "pretrained - random": "+0.100"}


def test_the_bootstrap_of_one_draw_is_that_of_a_mean(rng: np.random.Generator) -> None:
    values = {(0, f"s{k}"): float(value) for k, value in enumerate(rng.normal(size=200))}
    expected = np.std(list(values.values())) / np.sqrt(200)
    assert report.bootstrapped(values) == pytest.approx(expected, rel=0.1)
    apart = {
        (seed, f"s{k}"): float(seed) for seed in range(2) for k in range(50)
    }  # draws differ, volumes do not
    assert report.bootstrapped(apart) == pytest.approx(np.sqrt(1 / 8), rel=0.1)
