"""``regkit synthesize``: files, labels and sheet that fit one another, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from cli_cases import error_of, run, usage_error_of

from regkit.core.geometry import Grid
from regkit.io.images import load_image, load_labels
from regkit.io.outputs import save_image
from regkit.synthesis.contact_sheet import contact_sheet, middle_slices
from regkit.synthesis.pairs import Views

NAMES = [f"pair_{k:03d}_{view}{kind}.nii.gz" for k in range(2) for view in "ab" for kind in ("", "_labels")]
SMALL = """\
pairs.size: 24
pairs.shapes: [[8, 32, 32], [16, 24, 24]]
pairs.offset: 8
pairs.ensembles.size: 40
pairs.ensembles.details: 4
levels: 1
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def drawn(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "new" / "pairs"
    result = run("synthesize", "-n", 2, "-o", folder, "--config", config)
    assert result.stderr == ""
    for name in ("pair_000_a.nii.gz", "pair_001_b_labels.nii.gz", "contact-sheet.png"):
        assert name in result.stdout
    return folder


def test_the_files(drawn: Path) -> None:
    assert sorted(path.name for path in drawn.iterdir()) == sorted([*NAMES, "contact-sheet.png"])
    for k in range(2):
        for view in "ab":
            image = load_image(drawn / f"pair_{k:03d}_{view}.nii.gz", "image")
            labels = load_labels(drawn / f"pair_{k:03d}_{view}_labels.nii.gz", "labels", image.grid)
            assert image.grid.size == labels.grid.size == (24, 24, 24)
            assert image.grid.spacing == (1.0, 1.0, 1.0)
            assert image.array.dtype == np.float32
            assert labels.array.dtype == np.uint8
            assert image.array.min() >= 0 and image.array.max() <= 1
            assert len(np.unique(labels.array)) > 2
    first, second = (load_labels(drawn / f"pair_00{k}_a_labels.nii.gz", "labels").array for k in range(2))
    assert (first != second).mean() > 0.2  # of anatomies of their own
    assert matplotlib.image.imread(drawn / "contact-sheet.png")[..., :3].std() > 0.1


def test_the_seed_decides(drawn: Path, config: Path, tmp_path: Path) -> None:
    run("synthesize", "-n", 1, "-o", tmp_path / "same", "--config", config, "-q")
    run("synthesize", "-n", 1, "-o", tmp_path / "other", "--config", config, "-q", "--seed", 1)
    before, same, other = (
        load_image(folder / NAMES[0], "image").array
        for folder in (drawn, tmp_path / "same", tmp_path / "other")
    )
    assert np.array_equal(before, same)
    assert not np.array_equal(before, other)


def test_another_size_and_templates_without_a_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[4:16, 6:14, 2:18] = 1
    save_image(Grid((20, 20, 20)).to_sitk(mask), folder / "subject.nii.gz")
    out = tmp_path / "out"
    result = run("synthesize", "-n", 1, "-o", out, "--size", 32, "--templates", folder, "--quiet")
    assert result.output == ""
    assert load_image(out / NAMES[0], "image").grid.size == (32, 32, 32)


def test_whole_label_maps(tmp_path: Path) -> None:
    """Without a configuration, of them alone."""
    folder = tmp_path / "maps"
    folder.mkdir()
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[4:20, 4:20, 4:20] = 1
    save_image(Grid((24, 24, 24), (5.0, 5.0, 5.0)).to_sitk(labels), folder / "one.nii.gz")
    words = ("synthesize", "-n", 2, "-o", tmp_path / "out", "--size", 32, "-q", "--anatomies", folder)
    assert "no anatomies.json in" in error_of(*words)
    (folder / "anatomies.json").write_text('{"source": "nobody", "labels": {"1": {"tissue": "fat"}}}')
    assert run(*words).output == ""
    first, second = (load_labels(tmp_path / "out" / NAMES[k], "labels").array for k in (1, 5))
    assert first.any() and second.any()
    assert not np.array_equal(first, second)


def test_nothing_is_overwritten_unasked(drawn: Path, config: Path) -> None:
    before = {path.name: path.read_bytes() for path in drawn.iterdir()}
    words = ("synthesize", "-n", 1, "-o", drawn, "--config", config, "-q")
    assert f"'{drawn / NAMES[0]}' exists already; add --overwrite" in error_of(*words)
    assert {path.name: path.read_bytes() for path in drawn.iterdir()} == before
    run(*words, "--overwrite")
    assert load_image(drawn / NAMES[0], "image").grid.size == (24, 24, 24)


def test_bad_input(config: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("hello")
    assert f"cannot make the folder '{taken}'" in error_of("synthesize", "-o", taken)
    words = ("synthesize", "-n", 1, "-o", tmp_path / "out")
    assert "draws no templates" in error_of(*words, "--config", config, "--templates", taken)
    assert str(taken) in error_of(*words, "--templates", taken)
    assert "cannot read the configuration" in error_of(*words, "--config", tmp_path / "no.yaml")
    assert "--size" in usage_error_of(*words, "--size", 4)
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_leaves_no_half_file(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    out = tmp_path / "out"
    assert "No space left" in error_of("synthesize", "-n", 1, "-o", out, "--config", config)
    assert not list(out.iterdir())


@pytest.mark.parametrize("count", [1, 5, 30])
def test_the_sheet_shows_all_pairs(tmp_path: Path, count: int) -> None:
    """Each tile in its place, and what lies beyond the field of view dark."""
    labels = torch.ones((2, 8, 8, 8), dtype=torch.uint8)
    seen = torch.ones((2, 8, 8, 8), dtype=torch.bool)
    seen[1] = False
    slices = middle_slices(
        Views(torch.ones((2, 8, 8, 8)), labels, seen, torch.zeros((1, 3, 8, 8, 8)), labels)
    )
    assert [tile.shape for tile in slices] == [(8, 8)] * 4
    contact_sheet([slices] * count, tmp_path / "sheet.png")
    picture = matplotlib.image.imread(tmp_path / "sheet.png")[..., :3]
    white = (picture > 0.99).all(-1)
    tile = 1.15 * 130
    assert white.sum() == pytest.approx(count * tile**2, rel=0.03)
    dark = (np.abs(picture - 0.2) < 0.01).all(-1)
    assert dark.sum() == pytest.approx(count * tile**2, rel=0.03)
