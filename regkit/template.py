"""A group template: the mean image of a group, of the average shape, with a warp to each of its images.

Each round registers every image to the template of the round before, and makes the next one of all. What the
maps have in common is a bias towards where the rounds began, and is taken out (Guimond et al., CVIU 2000;
Joshi et al., NeuroImage 2004): of the affine maps the mean stretch, by the logarithms of their polar parts,
so that the template keeps its pose; of the warps the mean displacement.

What has been done lies in the folder, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy.linalg import expm, logm, polar

from regkit.core.choices import DEFAULT_FEATURES, FeatureSet, PresetName
from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, affine_transform
from regkit.core.intensity import default_ct_window, is_ct, window_of
from regkit.core.jsontext import to_json
from regkit.io.atomic import atomic_path, make_folder, together
from regkit.io.formats import write_linear, write_warp
from regkit.io.images import Volume, load_grid, load_image
from regkit.io.outputs import save_image
from regkit.io.provenance import sha256, version
from regkit.registration import register
from regkit.runtime.device import torch_device
from regkit.stages import Progress
from regkit.verdict import FAIL
from regkit.warp import Warp

TEMPLATE, AFFINE_MEAN, ROUNDS = "template.nii.gz", "affine_mean.nii.gz", "rounds.json"
AFFINE, WARPS = "affine", "warps"
_SETTINGS = "settings.json"
_SHOWN = 0.1  # of the range of intensities: what is there is tissue


@dataclass(frozen=True, eq=False)
class Template:
    """The result of :func:`build_template`.

    Args:
        image: the template, float32, in the mean intensity range of the images.
        affine_mean: the mean of the images after the affine rounds.
        transforms: the files of the maps from template points to points of each image, LPS mm, in the order
            of the images: warps, or affine maps if there were no deformable rounds.
        affine: the files of the affine maps, from the affine mean.
        rounds: for each round its ``stage``, ``sharpness`` (:func:`sharpness` of its mean), the mean
            ``displacement_mm`` of the bias that was removed, and ``failed``, the images with FAIL.
        settings: everything that the result depends on.
    """

    image: Volume
    affine_mean: Volume
    transforms: tuple[Path, ...]
    affine: tuple[Path, ...]
    rounds: tuple[dict[str, Any], ...]
    settings: dict[str, Any]


def build_template(
    images: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    affine_rounds: int = 2,
    rounds: int = 3,
    features: FeatureSet = DEFAULT_FEATURES,
    weights: str | os.PathLike[str] | None = None,
    preset: PresetName = "default",
    device: str | torch.device = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Template:
    """Build the unbiased template of a group of images of one modality.

    Args:
        images: at least two files that :func:`regkit.register` reads.
        folder: for the template and its warps. New, empty, or that of a run of the same images and settings,
            which then resumes.
        reference: an image whose voxels and pose the template gets; by default the first.
        affine_rounds, rounds: of the affine and of the deformable registration.
        features, weights, preset, device, threads, seed: as for :func:`regkit.register`.
        progress: called with the stage and the share of the run that is done, 0 to 1.

    Raises:
        RegkitError: if an image or option cannot be used, or the folder holds something else.
    """
    if len(images) < 2:
        raise RegkitError(f"a template needs two images or more, got {len(images)}")
    if affine_rounds < 1 or rounds < 0:
        raise RegkitError(
            f"a template needs one affine round or more, and no fewer than 0 others; got {affine_rounds} and "
            f"{rounds}"
        )
    torch_device(device)
    options: dict[str, Any] = {
        "features": features, "weights": weights, "preset": preset, "device": device, "threads": threads,
        "seed": seed,
    }  # fmt: skip
    return _Builder(
        [Path(image) for image in images],
        Path(folder),
        None if reference is None else Path(reference),
        ["affine"] * affine_rounds + ["deformable"] * rounds,
        options,
        progress or (lambda stage, done: None),
    ).run()


class _Builder:
    """The rounds; each image of a round is a step that is done once.

    Args:
        stages: of each round "affine" or "deformable".
        options: of every registration.
    """

    def __init__(
        self,
        images: list[Path],
        folder: Path,
        reference: Path | None,
        stages: list[str],
        options: dict[str, Any],
        report: Progress,
    ) -> None:
        self.images, self.folder, self.stages = images, folder, stages
        self.options, self.report = options, report
        self.start = reference or images[0]
        self.grid = load_grid(self.start, "reference")
        weights = options["weights"]
        self.settings = {
            "images": [{"file": image.name, "sha256": sha256(image)} for image in images],
            "reference": sha256(self.start),
            "stages": stages,
            **{name: options[name] for name in ("features", "preset", "seed")},
            "weights": None if weights is None else sha256(weights),
            "regkit": version(),
        }
        self._open()
        volumes = (load_image(image, f"image {n}") for n, image in enumerate(images, start=1))
        self.windows = [_window(volume) for volume in volumes]
        self.window = tuple(np.mean(self.windows, axis=0))

    def run(self) -> Template:
        """All that is not done yet."""
        if not (self.folder / TEMPLATE).exists():
            self._rounds()
        rounds = _read(self.folder / ROUNDS)
        return Template(
            load_image(self.folder / TEMPLATE, "template"),
            load_image(self.folder / AFFINE_MEAN, "mean of the affine rounds"),
            tuple(self._files(self.folder, self.stages[-1])),
            tuple(self._files(self.folder, "affine")),
            tuple(rounds),
            self.settings,
        )

    def _open(self) -> None:
        """Make the folder, or see that it is of this very run."""
        place, settings = self.folder / _SETTINGS, json.loads(to_json(self.settings))
        if os.path.isdir(self.folder) and os.listdir(self.folder):
            try:
                before = _read(place)
                other = [key for key in settings if before.get(key) != settings[key]]
            except (OSError, ValueError, AttributeError) as error:
                raise RegkitError(
                    f"'{self.folder}' is not empty and holds no template that was begun; give another folder"
                ) from error
            if other:
                raise RegkitError(
                    f"'{self.folder}' holds a template with other {', '.join(other)}; give another folder"
                )
            return
        make_folder(self.folder)
        _write(place, settings)

    def _files(self, place: Path, stage: str) -> list[Path]:
        """Of the maps to the images, in the folder of all or of a round."""
        folder, ending = (AFFINE, ".tfm") if stage == "affine" else (WARPS, ".nii.gz")
        names = [image.name.split(".")[0] for image in self.images]
        return [place / folder / f"{n:03d}_{name}{ending}" for n, name in enumerate(names, start=1)]

    def _rounds(self) -> None:
        template = load_image(self.start, "reference")
        template = replace(template, array=_brought(template.array, _window(template), self.window))
        rounds: list[dict[str, Any]] = []
        matrices: list[Float64] = []
        for k, stage in enumerate(self.stages):
            place = self.folder / f"round-{k + 1}"
            if (place / ROUNDS).exists():
                known = _read(place / ROUNDS)
                rounds, matrices = known["rounds"], [np.array(matrix) for matrix in known["matrices"]]
            else:
                for folder in (AFFINE, WARPS, "found"):
                    make_folder(place / folder)
                rounds, matrices = self._round(k, place, template, matrices, rounds)
            template = load_image(place / TEMPLATE, f"template of round {k + 1}")
            if stage == "affine":
                affine_mean = template
            if k:  # what the next one needs is here
                shutil.rmtree(self.folder / f"round-{k}", ignore_errors=True)
        self._finish(place, template, affine_mean, rounds)

    def _round(
        self, k: int, place: Path, template: Volume, matrices: list[Float64], rounds: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[Float64]]:
        """Register all images to the template, take the bias out, and make the next template."""
        stage, count = self.stages[k], len(self.images)
        options = self.options | ({"preset": "linear"} if stage == "affine" else {})
        failed, mapped = [], []
        for n in range(count):
            done = place / "found" / f"{n}.json"
            if not done.exists():
                start = "affine" if stage == "affine" else matrices[n]
                result = register(template, self._image(n), init=start, **options)
                with together():
                    if stage == "deformable":
                        write_warp(result.warp, done.with_suffix(".nii.gz"))
                    _write(done, {"linear": result.linear.tolist(), "level": result.verdict.level})
            known = _read(done)
            # The warp starts from the affine map, but the pose may have been improved on the way.
            mapped.append(np.array(known["linear"]) if stage == "affine" else matrices[n])
            if known["level"] == FAIL:
                failed.append(self.images[n].name)
            share = (k + (n + 1) / count) / len(self.stages)
            self.report(f"round {k + 1} of {len(self.stages)}, image {n + 1} of {count}", share)
        if stage == "affine":
            mapped, bias = without_mean_stretch(mapped, self.grid)
            mean = self._mean(affine_transform(matrix) for matrix in mapped)
        else:
            bias = self._take_out(place, mapped)
            mean = self._mean(Warp.load(file).to_sitk() for file in self._files(place, stage))
        rounds = [
            *rounds,
            {"stage": stage, "sharpness": sharpness(mean), "displacement_mm": bias, "failed": failed},
        ]
        with together():
            for file, matrix in zip(self._files(place, "affine"), mapped):
                write_linear(matrix, file)
            save_image(mean.to_sitk(), place / TEMPLATE)
            if stage == "affine":
                save_image(mean.to_sitk(), self.folder / AFFINE_MEAN)
            _write(place / ROUNDS, {"rounds": rounds, "matrices": [matrix.tolist() for matrix in mapped]})
        return rounds, mapped

    def _take_out(self, place: Path, matrices: list[Float64]) -> float:
        """Write the warps of a round without their mean displacement; its mean length, mm."""
        paths = [place / "found" / f"{n}.nii.gz" for n in range(len(matrices))]
        total = np.zeros((*self.grid.shape, 3))
        for file, matrix in zip(paths, matrices):
            total += Warp.load(file, self.grid).compose(np.linalg.inv(matrix)).field
        shape = Warp((total / len(paths)).astype(np.float32), self.grid)
        back = shape.inverse(self.grid)
        for file, own in zip(paths, self._files(place, "deformable")):
            write_warp(back.compose(Warp.load(file, self.grid)), own)
        return float(np.linalg.norm(shape.field, axis=-1).mean())

    def _image(self, n: int) -> Volume:
        """An image in the range of intensities that all have."""
        volume = load_image(self.images[n], f"image {n + 1}")
        return replace(volume, array=_brought(volume.array, self.windows[n], self.window))

    def _mean(self, transforms: Iterator[sitk.Transform]) -> Volume:
        """Of all images through their maps, at each voxel of those that have data there."""
        total, count = np.zeros(self.grid.shape), np.zeros(self.grid.shape)
        onto = self.grid.blank(sitk.sitkUInt8)
        for n, transform in enumerate(transforms):
            image = self._image(n)
            inside = image.grid.blank(sitk.sitkUInt8) + 1
            covered = sitk.Resample(inside, onto, transform, sitk.sitkNearestNeighbor, 0.0)
            here = sitk.GetArrayFromImage(covered) > 0
            moved = sitk.Resample(image.to_sitk(), onto, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
            total[here] += sitk.GetArrayViewFromImage(moved)[here]
            count += here
        low = float(total[count > 0].min()) if count.any() else 0.0
        mean = np.where(count > 0, total / np.maximum(count, 1), min(low, self.window[0]))
        return Volume(mean.astype(np.float32), self.grid, "template")

    def _finish(
        self, place: Path, template: Volume, affine_mean: Volume, rounds: list[dict[str, Any]]
    ) -> None:
        """Put the results where they stay; the template comes last, and with it the run is done."""
        for folder in [AFFINE] + [WARPS] * (self.stages[-1] == "deformable"):
            if not os.path.isdir(self.folder / folder):
                os.replace(place / folder, self.folder / folder)
        with together():
            save_image(affine_mean.to_sitk(), self.folder / AFFINE_MEAN)
            save_image(template.to_sitk(), self.folder / TEMPLATE)
            _write(self.folder / ROUNDS, rounds)
        shutil.rmtree(place, ignore_errors=True)


def without_mean_stretch(matrices: Sequence[Float64], grid: Grid) -> tuple[list[Float64], float]:
    """Affine maps, template point -> image point, of a template whose size and shears are average.

    Of A = R S (polar parts, S symmetric and acting first) the mean of log S over the maps becomes 0; what is
    in the middle of the grid stays there.

    Returns:
        The maps, and how far the corners of the grid were moved on average, mm.
    """
    stretches = [polar(matrix[:3, :3], side="right")[1] for matrix in matrices]
    mean = np.eye(4)
    mean[:3, :3] = expm(np.mean([logm(stretch).real for stretch in stretches], axis=0))
    mean[:3, 3] = grid.centre - mean[:3, :3] @ grid.centre
    corners = grid.corners() @ grid.index_to_world[:3, :3].T + grid.index_to_world[:3, 3]
    moved = np.linalg.norm(corners @ mean[:3, :3].T + mean[:3, 3] - corners, axis=1).mean()
    return [matrix @ np.linalg.inv(mean) for matrix in matrices], float(moved)


def sharpness(volume: Volume) -> float:
    """Mean gradient magnitude over the tissue, per mm, as a share of the range of intensities.

    Of means of the same images it tells how well they lie on each other: what does not is blurred.
    """
    low, high = window_of(volume.array, None)
    spacing = volume.grid.spacing[::-1]
    slopes = np.gradient(volume.array.astype(np.float64), *spacing)
    length = np.sqrt(sum(slope**2 for slope in slopes))
    shown = volume.array > low + _SHOWN * (high - low)
    return float(length[shown].mean() / (high - low)) if shown.any() and high > low else math.nan


def _write(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(content) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _window(volume: Volume) -> tuple[float, float]:
    return window_of(volume.array, default_ct_window([True]) if is_ct(volume.array) else None)


def _brought(
    array: np.ndarray, window: tuple[float, ...], onto: tuple[float, ...]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Intensities by the linear map that takes one range to another."""
    scale = (onto[1] - onto[0]) / (window[1] - window[0])
    return ((array - window[0]) * scale + onto[0]).astype(np.float32)
