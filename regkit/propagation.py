"""Segmentation by atlases: images with label maps are registered to a target and vote on its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from regkit.core.choices import DEFAULT_FEATURES, FeatureSet, PresetName
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, slab_index, slabs, transform_points
from regkit.core.intensity import normalise
from regkit.core.settings import named_settings
from regkit.features.featuremap import FeatureMap
from regkit.features.maps import INTENSITY, feature_maps, feature_parts, parts_for
from regkit.io.images import ImageLike, Volume, load_image, load_labelled
from regkit.ops.filters import smooth
from regkit.ops.resample import Source, resample
from regkit.ops.sampling import sample
from regkit.registration import register
from regkit.registration_result import Registration
from regkit.runtime.device import reproducible, torch_device
from regkit.runtime.memory import check_fits_memory
from regkit.solver.deformable import STRIDE, plan
from regkit.stages import Progress
from regkit.start import Init
from regkit.warp import Warp, contains

Float32 = npt.NDArray[np.float32]
FUSIONS = ("similarity", "majority")
_FUSION_SHARE = 0.1  # of the whole run, for the progress bar
# Per voxel of the target: an atlas' warp and weights, and what the fusion holds beside them: a transform in
# float64, the votes of one atlas, of one label and of the best one.
_BYTES_PER_ATLAS, _BYTES_OF_FUSION = 16, 64


@dataclass(frozen=True, eq=False)
class Propagation:
    """The result of :func:`propagate`.

    Args:
        labels: the label map on the grid of the target, in the first of uint8, int16, int32, uint32 and int64
            that holds the labels of all atlases. 0 where no atlas covers the target.
        confidence: share of the votes for the label of each voxel, 0 to 1, float32. 0 where nobody voted.
        atlases: for each atlas its names (``image`` and ``labels``), its share of all ``votes``, and
            :meth:`regkit.Registration.to_dict` of its registration.
    """

    labels: Volume
    confidence: Volume
    atlases: tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class RegisteredAtlas:
    """An atlas that was registered: its labels, the grid of its image, the warp from the target to it."""

    labels: Volume
    grid: Grid
    warp: Warp

    def votes(self, label: int) -> npt.NDArray[np.float64]:
        """The indicator of a label on the target's grid, linearly interpolated, 0 to 1.

        What lies beyond the label map is background, so that the votes for all labels add up to 1.
        """
        indicator = self.labels.grid.to_sitk((self.labels.array == label).astype(np.uint8))
        # As ITK's interpolator of labels does, in float64: one atlas must give its result to the bit.
        return self._resampled(indicator, sitk.sitkLinear, float(label == 0), sitk.sitkFloat64)

    def covers(self) -> npt.NDArray[np.bool_]:
        """Which voxels of the target the warp takes into the field of view of the atlas' image."""
        inside = self.grid.blank(sitk.sitkUInt8) + 1
        return self._resampled(inside, sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8).astype(bool)

    def _resampled(self, image: sitk.Image, interpolator: int, default: float, pixel: int) -> Any:
        reference = self.warp.grid.blank(sitk.sitkUInt8)
        moved = sitk.Resample(image, reference, self.warp.to_sitk(), interpolator, default, pixel)
        return sitk.GetArrayFromImage(moved)


def propagate(
    target: ImageLike,
    atlases: Sequence[tuple[ImageLike, ImageLike]],
    *,
    fusion: str = "similarity",
    init: Init = "auto",
    features: FeatureSet = DEFAULT_FEATURES,
    weights: str | PathLike[str] | None = None,
    preset: PresetName = "default",
    ct_window: tuple[float, float] | None = None,
    device: str | torch.device = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Propagation:
    """Segment an image: register atlases to it and fuse their labels.

    At a voxel x of the target, an atlas with the warp T votes for each label by the label's indicator,
    linearly interpolated at T(x), unless T(x) lies outside the image of the atlas. The label with the most
    votes wins, and among equals the smallest. With one atlas this is ``Warp.apply(interpolation="label")``
    inside its image.

    Args:
        target: the image to segment; anything that :func:`regkit.register` takes.
        atlases: pairs of an image and a label map. The label map may lie on any grid in the world of its
            image. Its labels are 0, background, or more.
        fusion: ``majority``: all atlases count the same. ``similarity``: an atlas counts by how well it fits
            the target there, by ``exp(1 - d / d_min)`` with d the local mean squared feature difference
            (:func:`local_difference`) and d_min the smallest d of the atlases that vote. This is the locally
            weighted voting of Artaechevarria et al. (IEEE TMI 2009), with the exponential of Sabuncu et al.
            (IEEE TMI 2010) and, as in Coupe et al. (NeuroImage 2011), scaled by the best match.
        init, features, weights, preset, ct_window, device, threads, seed: of every registration, as for
            :func:`regkit.register`.
        progress: called with the stage and the share of the run that is done, 0 to 1.

    Raises:
        RegkitError: if an input cannot be used, or an atlas cannot be registered; the message names it. All
            inputs are read before the first registration.
    """
    if fusion not in FUSIONS:
        raise RegkitError(f"no fusion named {fusion!r}; available: {', '.join(FUSIONS)}")
    if not atlases:
        raise RegkitError("there is no atlas: give at least one image with its label map")
    count = len(atlases)
    report = progress or (lambda stage, done: None)
    report("reading", 0.0)
    image = load_image(target, "target image")
    # All at once: a mistake in the last one is to cost no registration.
    loaded = [_load(k, atlas) for k, atlas in enumerate(atlases, 1)]
    per_voxel = _BYTES_PER_ATLAS * count + _BYTES_OF_FUSION
    check_fits_memory(image.array.size, f"the fusion of {count} atlases", per_voxel)

    with reproducible(threads, seed):
        compare = None
        if fusion == "similarity" and count > 1:
            compare = _Comparison(image, features, weights, preset, torch_device(device))
        registered: list[RegisteredAtlas] = []
        differences: list[torch.Tensor] = []
        measures: list[dict[str, Any]] = []
        for k, (moving, labels) in enumerate(loaded, 1):
            try:
                result = register(
                    image, moving, init=init, features=features, weights=weights, preset=preset,
                    ct_window=ct_window, device=device, threads=threads, seed=seed,
                    progress=partial(_report_atlas, report, k, count),
                )  # fmt: skip
            except RegkitError as error:
                raise type(error)(f"atlas {k} of {count}, '{moving.name}': {error}") from error
            registered.append(RegisteredAtlas(labels, moving.grid, result.warp))
            if compare:
                differences.append(compare(result))
            measures.append({"image": moving.name, "labels": labels.name, **result.to_dict()})

        shares = np.stack([atlas.covers() for atlas in registered]).astype(np.float32)
        if compare:
            weigh_votes(shares, torch.cat(differences), compare.cells, image.grid)
        if not shares.any():
            raise RegkitError("no atlas covers any part of the target after registration")
        step = partial(_report_fusion, report)
        labels_of_target, confidence = fuse_votes(registered, shares, step)
    total = float(shares.sum(dtype=np.float64))
    for row, share in zip(measures, shares):
        row["votes"] = float(share.sum(dtype=np.float64)) / total
    return Propagation(
        Volume(labels_of_target, image.grid, "labels"),
        Volume(confidence, image.grid, "confidence"),
        tuple(measures),
    )


class _Comparison:
    """How well atlases fit the target around each cell of one grid, so that they can be told apart by it.

    The grid is the working grid of the target with itself: those of the registrations depend on the atlas,
    and differences of features at different spacings do not compare.
    """

    def __init__(
        self,
        target: Volume,
        features: FeatureSet,
        weights: str | PathLike[str] | None,
        preset: PresetName,
        device: torch.device,
    ) -> None:
        self.target = target
        self.grid = plan(target.grid, target.grid, named_settings(preset)).grid
        self.cells = self.grid.pooled(STRIDE)
        parts = parts_for(self.grid.spacing[0], feature_parts(features, weights)[1])
        # Atlases of any modality vote: what only one modality bears out is not asked.
        self.parts = [part for part in parts if part is not INTENSITY]
        self.device = device
        # A target that is CT has one window beside atlases that are CT, and another beside others.
        self._of_target = cache(self._features_of_target)

    def __call__(self, result: Registration) -> torch.Tensor:
        """:func:`local_difference` of the target and an atlas seen through its warp, (1, Z, Y, X)."""
        windows = result.settings["intensity_windows"]
        fixed, moving = ((windows[side]["low"], windows[side]["high"]) for side in ("fixed", "moving"))
        source = self._source(result.moving, moving)
        transform = result.warp.to_sitk()
        image, reference = source.grid.to_sitk(source.image.cpu().numpy()), self.grid.blank()
        pixel, at_border = sitk.sitkFloat32, True  # continued by its border values, as in the registration
        maps = (
            sitk.Resample(image, reference, transform, sitk.sitkLinear, 0.0, pixel, at_border),
            sitk.Resample(source.grid.blank() + 1, reference, transform, sitk.sitkNearestNeighbor),
        )
        moved, weight = (torch.from_numpy(sitk.GetArrayFromImage(i)).to(self.device) for i in maps)
        return local_difference(self._of_target(fixed), self._cells(moved, weight)).cpu()

    def _features_of_target(self, window: tuple[float, float]) -> FeatureMap:
        return self._cells(*resample(self._source(self.target, window), np.eye(4), self.grid))

    def _source(self, volume: Volume, window: tuple[float, float]) -> Source:
        image = torch.from_numpy(normalise(volume.array, window)).to(self.device)
        return Source(image, None, volume.grid).smoothed_for(self.grid.spacing[0])

    def _cells(self, image: torch.Tensor, weight: torch.Tensor) -> FeatureMap:
        return feature_maps(image, weight[None], self.grid.spacing[0], self.parts, (STRIDE,))[0][STRIDE]


def local_difference(fixed: FeatureMap, moved: FeatureMap) -> torch.Tensor:
    """Mean squared feature difference over the 3^3 cells around each, (1, Z, Y, X).

    That is six voxels of the working grid a side: as wide as what MIND sees, and narrower than most organs.
    Cells count by their weights; where none has data, the mean over all cells stands in.
    """
    weight = fixed.weight * moved.weight
    squares = (fixed.values - moved.values).square_().mean(0, keepdim=True).mul_(weight)
    mean = squares.sum() / weight.sum().clamp_min(1e-6)
    return (smooth(squares) + 1e-3 * mean) / (smooth(weight) + 1e-3)


def weigh_votes(shares: Float32, differences: torch.Tensor, cells: Grid, grid: Grid) -> None:
    """Turn coverage, 0 or 1, into the weights of the votes, 0 to 1, the best atlas' being 1.

    Args:
        shares: (n, z, y, x) on ``grid``; changed in place.
        differences: (n, Z, Y, X) on ``cells``.
    """
    to_cells = cells.world_to_index @ grid.index_to_world
    for first, last in slabs(grid):
        index = transform_points(to_cells, slab_index(grid, first, last)).astype(np.float32)
        sampled = sample(differences, torch.from_numpy(index).movedim(-1, 0)).numpy()
        part = shares[:, first:last]
        best = np.where(part > 0, sampled, np.inf).min(axis=0)
        part *= np.exp(np.minimum(best - sampled, 0) / np.maximum(best, 1e-6))


def fuse_votes(
    atlases: Sequence[RegisteredAtlas], shares: Float32, on_step: Callable[[float], None]
) -> tuple[npt.NDArray[Any], Float32]:
    """The label of the most votes at each voxel, and its share of them; label by label, atlas by atlas.

    Args:
        shares: (n, z, y, x), what the votes of each atlas count.
        on_step: called with the share of the work that is done.
    """
    held = [np.unique(atlas.labels.array) for atlas in atlases]
    labels = np.unique(np.concatenate([[0], *held]))  # ascending: of equal votes, the smallest label's win
    fused = np.zeros(shares.shape[1:], np.result_type(*[atlas.labels.array for atlas in atlases]))
    highest = np.zeros(fused.shape)
    for k, label in enumerate(labels, 1):
        votes = np.zeros(fused.shape)
        for atlas, share, own in zip(atlases, shares, held):
            if label == 0 or label in own:
                votes += share * atlas.votes(int(label))
        better = votes > highest
        fused[better] = label
        highest[better] = votes[better]
        on_step(k / len(labels))
    return fused, (highest / np.maximum(shares.sum(axis=0, dtype=np.float64), 1e-30)).astype(np.float32)


def _load(number: int, atlas: object) -> tuple[Volume, Volume]:
    """The image and the label map of an atlas, of which some label lies in the image's field of view."""
    roles = f"atlas {number}", f"image of atlas {number}", f"labels of atlas {number}"
    volume, label_map = load_labelled(atlas, *roles, one_grid=False)
    grid = label_map.grid
    for first, last in slabs(grid):
        index = slab_index(grid, first, last)[label_map.array[first:last] != 0]
        if contains(volume.grid, transform_points(grid.index_to_world, index)).any():
            return volume, label_map
    raise RegkitError(
        f"labels of atlas {number}, '{label_map.name}': none lies inside the atlas' image '{volume.name}'; "
        "give the label map of that image"
    )


def _report_atlas(report: Progress, number: int, count: int, stage: str, done: float) -> None:
    share = (number - 1 + done) / count
    report(f"atlas {number} of {count}: {stage}", (1 - _FUSION_SHARE) * share)


def _report_fusion(report: Progress, done: float) -> None:
    report("fusion", 1 - _FUSION_SHARE * (1 - done))
