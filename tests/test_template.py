"""A group template: of average shape and size, sharper than the mean; a run that goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import error_of, run
from scipy.ndimage import gaussian_filter, map_coordinates

import regkit.template
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, affine_transform, transform_points
from regkit.io.formats import read_linear
from regkit.io.images import Volume, load_image
from regkit.template import build_template, sharpness, without_mean_stretch
from regkit.warp import Warp

GRID = Grid((30, 32, 28), (2.5, 2.5, 2.5), (-36.0, 15.0, 70.0))
_CENTRE = GRID.centre


def _image(scale: float, bend: float, gain: float = 1.0) -> sitk.Image:
    """A textured ball of another size, bent by another length, of another range of intensities."""
    points = GRID.world_points()
    near = np.exp(-((np.linalg.norm(points - _CENTRE, axis=-1) / 22) ** 2))
    inner = (points - _CENTRE) / scale - near[..., None] * [0, bend, 0]
    texture = gaussian_filter(np.random.default_rng(3).normal(size=(48, 48, 48)), 3.2)
    index = np.moveaxis(inner[..., ::-1] / 2.0 + 23.5, -1, 0)
    shown = map_coordinates(texture / texture.std(), index, order=1, mode="nearest")
    radius = np.linalg.norm(inner, axis=-1)
    return GRID.to_sitk((gain * (1 + 0.4 * shown) / (1 + np.exp((radius - 26) / 1.5))).astype(np.float32))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("group")
    files = []
    for name, scale, bend, gain in (("a", 0.93, 5.0, 100), ("b", 1.0, 0.0, 300), ("c", 1.075, -5.0, 200)):
        files.append(folder / f"{name}.nii.gz")
        sitk.WriteImage(_image(scale, bend, gain), str(files[-1]))
    return files


@pytest.fixture(scope="module")
def built(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command line, from the smallest and most bent image on."""
    folder = tmp_path_factory.mktemp("template") / "group"
    words = ["--affine-rounds", 1, "--rounds", 1, "--features", "mind", "--json"]
    told = json.loads(run("template", *images, "-o", folder, *words).stdout)
    assert [row["stage"] for row in told["rounds"]] == ["affine", "deformable"]
    return folder


def test_the_images_lie_better_on_the_template_than_on_the_affine_mean(
    built: Path, images: list[Path]
) -> None:
    template, mean = (load_image(built / name, "image") for name in ("template.nii.gz", "affine_mean.nii.gz"))
    assert template.grid.same_as(GRID)
    inside = np.linalg.norm(GRID.world_points() - _CENTRE, axis=-1) < 18
    likeness = []
    for folder, whole in (("affine", mean), ("warps", template)):
        maps = [
            affine_transform(read_linear(file)) if folder == "affine" else Warp.load(file).to_sitk()
            for file in sorted((built / folder).iterdir())
        ]
        seen = [sitk.Resample(sitk.ReadImage(str(f)), GRID.blank(), m) for f, m in zip(images, maps)]
        arrays = [sitk.GetArrayFromImage(one)[inside] for one in seen]
        likeness.append(np.mean([np.corrcoef(one, whole.array[inside])[0, 1] for one in arrays]))
    assert 1 - likeness[1] < 0.75 * (1 - likeness[0]), likeness
    assert sorted(path.name for path in built.iterdir()) == [
        "affine", "affine_mean.nii.gz", "rounds.json", "settings.json", "template.nii.gz", "warps",
    ]  # fmt: skip
    top = np.percentile(template.array, 99.5)
    assert 200 < top < 500  # of images whose brightest are some 180, 540 and 360


def test_the_template_has_the_average_size_and_shape(built: Path, images: list[Path]) -> None:
    matrices = [read_linear(file) for file in sorted((built / "affine").iterdir())]
    sizes = [np.linalg.det(matrix[:3, :3]) ** (1 / 3) for matrix in matrices]
    assert np.prod(sizes) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(sizes, [0.93, 1.0, 1.075], atol=0.04)
    # What the warps have in common beside the affine maps is little of what each of them does.
    inner = GRID.world_points()[6:-6, 6:-6, 6:-6].reshape(-1, 3)
    moved = [
        transform_points(np.linalg.inv(matrix), Warp.load(file).transform_points(inner)) - inner
        for matrix, file in zip(matrices, sorted((built / "warps").iterdir()), strict=True)
    ]
    each = np.mean([np.linalg.norm(one, axis=1).mean() for one in moved])
    assert np.linalg.norm(np.mean(moved, axis=0), axis=1).mean() < 0.1 * each
    # The template is the mean of the images through the warps, as ITK resamples them.
    file = sorted((built / "warps").iterdir())[1]
    seen = sitk.Resample(sitk.ReadImage(str(images[1])), GRID.blank(), Warp.load(file).to_sitk())
    template = load_image(built / "template.nii.gz", "template").array
    assert np.corrcoef(sitk.GetArrayFromImage(seen).ravel(), template.ravel())[0, 1] > 0.97


def test_a_stopped_run_goes_on(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = regkit.template.register, []

    def stopping(*words: Any, **options: Any) -> Any:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(options["init"])
        return real(*words, **options)

    options: dict[str, Any] = {"affine_rounds": 2, "rounds": 0, "features": "mind"}
    monkeypatch.setattr(regkit.template, "register", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_template(images, tmp_path / "stopped", **options)
    assert not (tmp_path / "stopped" / "template.nii.gz").exists()
    calls[:] = []
    monkeypatch.setattr(
        regkit.template, "register", lambda *w, **o: (calls.append(o["init"]), real(*w, **o))[1]
    )
    went_on = build_template(images, tmp_path / "stopped", **options)
    assert len(calls) == 2
    calls[:] = []
    at_once = build_template(images, tmp_path / "at-once", **options)
    assert len(calls) == 6
    np.testing.assert_array_equal(went_on.image.array, at_once.image.array)
    calls[:] = []
    again = build_template(images, tmp_path / "stopped", **options)
    assert calls == [] and again.rounds == went_on.rounds
    assert [file.name for file in again.transforms] == ["001_a.tfm", "002_b.tfm", "003_c.tfm"]
    with pytest.raises(RegkitError, match="holds a template with other images"):
        build_template(images[:2], tmp_path / "stopped", **options)
    with pytest.raises(RegkitError, match="holds a template with other stages"):
        build_template(images, tmp_path / "stopped", affine_rounds=1, rounds=0, features="mind")


def test_the_mean_stretch_is_taken_out_and_the_pose_is_kept(rng: np.random.Generator) -> None:
    matrices = []
    for _ in range(5):
        matrix = np.eye(4)
        matrix[:3] = np.eye(4)[:3] + 0.15 * rng.normal(size=(3, 4))
        matrix[:3, 3] *= 100
        matrices.append(matrix)
    found, _ = without_mean_stretch(matrices, GRID)
    again, moved = without_mean_stretch(found, GRID)
    assert moved < 1.0  # of a grid of 80 mm, whose corners the first pass moves by more
    assert without_mean_stretch(matrices, GRID)[1] > 2 * moved
    for before, after in zip(matrices, found):
        np.testing.assert_allclose(
            transform_points(before, GRID.centre), transform_points(after, GRID.centre), atol=1e-9
        )
    same, moved = without_mean_stretch([np.eye(4)] * 3, GRID)
    assert moved < 1e-9 and np.allclose(same, np.eye(4))
    assert again is not found


def test_a_sharp_image_is_sharper_than_its_blur() -> None:
    image = sitk.GetArrayFromImage(_image(1.0, 0.0))
    blurred = gaussian_filter(image, 1.5)
    assert sharpness(Volume(image, GRID)) > 1.2 * sharpness(Volume(blurred, GRID))
    bright = Volume(1000 * image + 7, GRID)
    assert sharpness(bright) == pytest.approx(sharpness(Volume(image, GRID)), rel=0.02)


def test_what_cannot_be_used_is_refused(images: list[Path], tmp_path: Path) -> None:
    assert "two images or more, got 1" in error_of("template", images[0], "-o", tmp_path / "t")
    assert "No such file" in error_of("template", images[0], tmp_path / "none.nii.gz", "-o", tmp_path / "t")
    (tmp_path / "full").mkdir()
    shutil.copy(images[0], tmp_path / "full")
    assert "is not empty" in error_of("template", *images, "-o", tmp_path / "full")
    with pytest.raises(RegkitError, match="one affine round or more"):
        build_template(images, tmp_path / "t", affine_rounds=0)
    assert not (tmp_path / "t").exists()
