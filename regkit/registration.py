"""The whole way from two images to a warp: images -> features -> solver -> warp -> measures."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from regkit.core.choices import DEFAULT_FEATURES, STARTS, FeatureSet, LinearModel, PresetName, Stage
from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, affine_transform, slab_index, slabs, transform_points
from regkit.core.intensity import default_ct_window, is_ct, normalise, window_of
from regkit.core.settings import changed_settings
from regkit.core.version import __version__
from regkit.evaluate import LabelScores
from regkit.features.maps import Part, feature_parts, further_parts, mind_ssc, parts_for
from regkit.hints import PointsLike, distance, guides, images_of, landmark_pairs, pairs_of
from regkit.io.images import ImageLike, Volume, load_image, load_labels, load_mask, names_of, warn_other_names
from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.folding import unfold
from regkit.ops.jacobian import Smoothness, jacobian_determinant, unfolded_warp
from regkit.ops.resample import Source
from regkit.ops.sampling import sample
from regkit.registration_result import Evidence, Registration
from regkit.runtime.device import current, reproducible, torch_device
from regkit.runtime.memory import GB, capped, fitting, resident_memory
from regkit.solver.deformable import (
    STRIDE,
    Pyramid,
    believed_field,
    displacement_doubt,
    feature_difference,
    fine_field,
    fixed_view,
    moving_view,
    plan,
)
from regkit.solver.evidence import taken_back
from regkit.solver.landmarks import Landmarks
from regkit.solver.linear import STEPS, LinearStart, align, align_landmarks, improved
from regkit.stages import Progress, StageRecorder, Timings
from regkit.start import Init, described, given_start, seen_through
from regkit.verdict import measured, verdict_of
from regkit.warp import Warp, resample_labels

_LOG = logging.getLogger(__name__)
# Shares of the whole run, for the progress bar.
_SHARES = {
    "load": 0.02, "linear": 0.28, "features": 0.05, "coarse": 0.2, "fine": 0.38, "warp": 0.03, "verdict": 0.04
}  # fmt: skip
_DEFORMABLE = ("features", "coarse", "fine")
_FITS: dict[str, tuple[str, ...]] = {
    "rigid": ("rigid",), "similarity": ("rigid", "similarity"), "affine": ("rigid", "affine")
}  # fmt: skip


def register(
    fixed: ImageLike | Sequence[ImageLike],
    moving: ImageLike | Sequence[ImageLike],
    *,
    fixed_landmarks: PointsLike | None = None,
    moving_landmarks: PointsLike | None = None,
    guide_labels: tuple[ImageLike, ImageLike] | None = None,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    fixed_labels: ImageLike | None = None,
    moving_labels: ImageLike | None = None,
    label_names: dict[int, str] | None = None,
    init: Init = "auto",
    features: FeatureSet = DEFAULT_FEATURES,
    weights: str | os.PathLike[str] | None = None,
    preset: PresetName = "default",
    settings: Mapping[str, Any] | None = None,
    ct_window: tuple[float, float] | None = None,
    device: str | torch.device = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    memory: float | None = None,
    outputs: Collection[str] = (),
) -> Registration:
    """Find the warp that lays the moving image onto the fixed one.

    Args:
        fixed, moving: 3-D images on any grids: files, the folder of a DICOM series, SimpleITK or
            nibabel images, or :class:`regkit.Volume` for an array or tensor with its grid. A list holds
            several images of one side that share a world, the first of which is searched with and has the
            grid; the others are compared in the deformable stages, each with its counterpart. A side with
            one image has it compared with all of the other.
        fixed_landmarks, moving_landmarks: points that belong together, (n, 3) LPS mm, or files of points:
            soft constraints of the weight ``landmark_weight`` in ``settings``. The linear start begins there.
        guide_labels: label maps of the fixed and of the moving image, each on any grid of its world, to be
            brought onto each other as well, with the weight ``guide_weight`` in ``settings``. A label
            that only one of them has does not count.
        fixed_mask, moving_mask: voxels that count; all by default.
        fixed_labels, moving_labels: label maps, used for the measures alone.
        label_names: label -> name; also chooses the labels to measure. By default the names in the file of
            ``fixed_labels``, if it has some (``.seg.nrrd``, DICOM).
        init: ``auto`` (headers, centres or a search over all overlaps, then rigid and affine, each kept
            where the features agree better), ``rigid`` (the same without affine), ``affine`` (another
            name for ``auto``), ``none`` (the headers as they are), ``centre`` (image centres, no more), the
            file of a linear transform or warp, a 4x4 matrix (fixed to moving LPS mm), a transform of
            SimpleITK, or a :class:`regkit.Warp`, from which the registration goes on. Deformable presets
            first turn and move a given linear transform to where the features near it agree best; linear
            ones take it as it is.
        features: what the deformable stages compare, of :data:`regkit.core.choices.FEATURE_SETS`: ``mind``,
            ``network`` or ``network+mind``. In the last the network is left out on a working grid that is
            much finer than what it learnt from. The linear start always compares MIND.
        weights: the file of the network's weights; by default those that come with regkit.
        preset: the name of settings in :data:`regkit.core.settings.PRESETS`.
        settings: values that replace those of the preset, by the names of
            :class:`regkit.core.settings.Settings`.
        ct_window: (low, high) HU for images taken as CT; by default (-450, 450), and (-950, 450) if
            both are CT.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, or a ``torch.device``.
        threads: CPU threads; by default as many as torch uses.
        seed: of torch's generators, for extractors that draw random numbers.
        progress: called with the stage and the share of the whole run that is done, 0 to 1.
        memory: GB (10^9 bytes) that the process may take in all; the working grid is made coarser where that
            keeps within them, with a warning.
        outputs: what will be made of the result, of "moved", "inverse" and "h5", to count its memory as well.

    Raises:
        RegkitError: if an input cannot be used or memory is too small; the message says which and why.
    """
    chosen = changed_settings(preset, settings)
    if isinstance(init, str) and init == "affine" and chosen.linear_model != "affine":
        raise RegkitError(f"init 'affine' contradicts linear_model {chosen.linear_model!r}; leave one out")
    pairs = pairs_of(images_of(fixed), images_of(moving))
    if not chosen.deformable and (len(pairs) > 1 or guide_labels is not None):
        raise RegkitError("further images and labels that guide count in a preset that deforms alone")
    compute_device = torch_device(device)
    _, parts, record = feature_parts(features, weights)
    shares = {s: share for s, share in _SHARES.items() if chosen.deformable or s not in _DEFORMABLE}
    stages = StageRecorder(progress, compute_device, shares)
    before, cap = resident_memory(), None if memory is None else memory * GB
    with reproducible(threads, seed), current(compute_device):
        with stages("load"), capped(cap):
            with ThreadPoolExecutor(1) as other:
                reading = other.submit(copy_context().run, load_image, pairs[0][1], "moving image")
                fixed_image, moving_image = load_image(pairs[0][0], "fixed image"), reading.result()
            fixed_map, moving_map = _labels(fixed_labels, moving_labels, fixed_image, moving_image)
            sources, windows = _sources(
                fixed_image, moving_image, fixed_mask, moving_mask, ct_window, compute_device
            )
            marks = landmark_pairs(fixed_landmarks, moving_landmarks, fixed_image.grid)
            guide, guided = guides(guide_labels, (fixed_image, moving_image), compute_device)
            more = []
            for k, (ours, theirs) in enumerate(pairs[1:], 2):
                first = fixed_image if ours is pairs[0][0] else load_image(ours, f"fixed image {k}")
                second = moving_image if theirs is pairs[0][1] else load_image(theirs, f"moving image {k}")
                more.append(_sources(first, second, None, None, ct_window, compute_device)[0])
            more += guide
            work = plan(fixed_image.grid, moving_image.grid, chosen)
            chosen, foretold = fitting(
                chosen,
                fixed_image.array.size,
                moving_image.array.size,
                int(np.prod(work.grid.size)) if chosen.deformable and compute_device.type == "cpu" else 0,
                before,
                cap,
                labels=moving_map is not None,
                outputs=outputs,
                further=sum(one.image.numel() for pair in more for one in pair),
                channels=12 * (len(pairs) - 1) + len(guided),
            )
            work = plan(fixed_image.grid, moving_image.grid, chosen)
            _LOG.info("needs about %.2g GB of memory", foretold / GB)
            _LOG.debug("working grid: %s voxels of %.3g mm", work.grid.size, work.grid.spacing[0])
            parts = parts_for(work.grid.spacing[0], parts)
            parts += further_parts(len(pairs) - 1, len(guided), chosen.guide_weight)

        with stages("linear"):
            step = stages.stepper(STEPS)
            given_init = given_start(init, STARTS, fixed_image.grid, moving_image.grid)
            origin = "file" if isinstance(init, str | os.PathLike) else "given"
            moving_source, matrix = sources[1], np.eye(4)
            if given_init is None:
                start = _linear_start(
                    str(init), *sources, work.grid.spacing[0], chosen.linear_model, step, marks
                )
                matrix = start.matrix
            elif isinstance(given_init, Warp):
                if more or marks is not None:
                    raise RegkitError("landmarks, labels that guide and further images need a linear start")
                start = LinearStart(given_init.affine_part(), np.nan, origin, "warp")
                moving_source = seen_through(given_init, moving_source, work.grid, work.reach)
            else:
                start = LinearStart(given_init, np.nan, origin, "given")
                if chosen.deformable:  # the pose is the solver's to improve as well
                    start = improved(*sources, given_init, work.grid.spacing[0], mind_ssc)
                    start = replace(start, origin=origin)
                matrix = start.matrix
        _LOG.debug("linear start: %s, %s, similarity %.3f", start.origin, start.model, start.similarity)

        landmarks = None
        if marks is not None and chosen.landmark_weight:
            landmarks = Landmarks.on(work.grid, matrix, *marks, chosen.landmark_weight, compute_device)
        cells = work.grid.pooled(STRIDE)
        displacement = torch.zeros((3, *cells.shape), device=compute_device)
        difference: dict[Stage, float] = {}
        evidence: dict[str, Evidence] = {}
        uncertain: Source | None = None
        if chosen.deformable:
            with stages("features"):
                further = [[pair[side] for pair in more] for side in (0, 1)]
                views = (
                    fixed_view(sources[0], work, further[0]),
                    moving_view(moving_source, matrix, work, further[1]),
                )
                del further

            def features_of(some: Sequence[Part]) -> tuple[Pyramid, Pyramid]:
                with stages.counted("features"):
                    one, other = (view.features(work, some) for view in views)
                    return one, other

            with stages("coarse"):
                step = stages.stepper(2 * len(work.levels))
                believed = believed_field(features_of, parts, work, step, landmarks)
                fixed_pyramid, moving_pyramid = believed.fixed, believed.moving
                difference["linear"] = feature_difference(fixed_pyramid, moving_pyramid, displacement)
                displacement = believed.field
            with stages("fine"):
                step = stages.stepper(sum(chosen.iterations))
                displacement = fine_field(
                    fixed_pyramid, moving_pyramid, displacement, chosen, step, landmarks
                )
                in_cells = displacement_doubt(fixed_pyramid, moving_pyramid, displacement)
                believed_displacement = taken_back(displacement, in_cells)
                if landmarks is not None:
                    believed_displacement = landmarks.pooled(STRIDE).kept(displacement, believed_displacement)
                displacement = unfold(believed_displacement)
                difference["after"] = feature_difference(fixed_pyramid, moving_pyramid, displacement)
                uncertain = _doubt(in_cells, cells)
            evidence = {
                name: Evidence(share, believed.blurs[name]) for name, share in believed.shares.items()
            }
            _LOG.debug("evidence: %s", {name: round(one.share, 2) for name, one in evidence.items()})
            del believed, fixed_pyramid, moving_pyramid, views

        with stages("warp"):
            warp, determinant = _warp(displacement, cells, matrix, fixed_image.grid, moving_image.grid)
            if isinstance(given_init, Warp):
                warp = replace(warp.compose(given_init), moving_grid=moving_image.grid)
                determinant = jacobian_determinant(warp.field, warp.grid)
            smoothness = Smoothness.of(determinant)
            landmarks_mm: dict[Stage, float] | None = None
            if marks is not None:
                mapped: dict[Stage, Float64] = {
                    "before": marks[0],
                    "linear": transform_points(start.matrix, marks[0]),
                    "after": warp.transform_points(marks[0]),
                }
                landmarks_mm = {stage: distance(at, marks[1]) for stage, at in mapped.items()}
            moved_labels, scores = None, None
            if moving_map is not None:
                moved_labels = resample_labels(moving_map, warp.grid, warp.to_sitk())
                if fixed_map is not None:
                    known = label_names or names_of(fixed_map)
                    scores = _label_scores(fixed_map, moving_map, moved_labels, start.matrix, known)

        with stages("verdict"):
            gates = measured(*sources, start.matrix, warp.transform_points)
            gates["folding"] = smoothness.folding_percent
            if scores is not None:
                gates["labels"] = scores.mean_dice["after"] - scores.mean_dice["before"]

        return Registration(
            warp=warp,
            start=start,
            smoothness=smoothness,
            feature_difference=difference,
            evidence=evidence,
            label_scores=scores,
            landmarks_mm=landmarks_mm,
            verdict=verdict_of(gates),
            timings=Timings(stages.seconds),
            memory=stages.memory | {"foretold": foretold / 2**20, "peak": max(stages.memory.values())},
            settings={
                "regkit": __version__,
                "torch": torch.__version__,
                "simpleitk": sitk.Version.VersionString(),
                "python": platform.python_version(),
                "fixed": fixed_image.name,
                "moving": moving_image.name,
                "features": features,
                "known": [part.name for part in parts],
                "asked": list(evidence),
                "compared": [name for name, one in evidence.items() if one.share > 0],
                "weights": record,
                "images": len(pairs),
                "landmarks": 0 if marks is None else len(marks[0]),
                "guide_labels": guided,
                "preset": preset,
                "solver": asdict(chosen),
                "init": described(init),
                "start": start.to_dict(),
                "intensity_windows": windows,
                "device": str(compute_device),
                "threads": torch.get_num_threads(),
                "seed": seed,
                "working_spacing_mm": work.grid.spacing[0],
                "working_size": list(work.grid.size),
                "levels": [list(level) for level in work.levels] if chosen.deformable else [],
                "iterations": list(chosen.iterations) if chosen.deformable else [],
            },
            moving=moving_image,
            moved_labels=moved_labels,
            doubt=uncertain,
        )


def _labels(
    fixed: ImageLike | None, moving: ImageLike | None, fixed_image: Volume, moving_image: Volume
) -> tuple[Volume | None, Volume | None]:
    """Both label maps; each on any grid that its own image shares the world with."""
    fixed_map = None if fixed is None else load_labels(fixed, "fixed labels", fixed_image.grid)
    moving_map = None if moving is None else load_labels(moving, "moving labels", image=moving_image.grid)
    if fixed_map is not None and moving_map is not None:
        warn_other_names(fixed_map, moving_map)
    return fixed_map, moving_map


def _sources(
    fixed: Volume,
    moving: Volume,
    fixed_mask: ImageLike | None,
    moving_mask: ImageLike | None,
    ct_window: tuple[float, float] | None,
    device: torch.device,
) -> tuple[tuple[Source, Source], dict[str, Any]]:
    """Both images normalised, and what was clipped to: {"fixed": {"ct": bool, "low": …, "high": …}, …}."""
    if ct_window is not None and not ct_window[0] < ct_window[1]:
        raise RegkitError(f"the CT window must go from a lower to a higher value, got {ct_window}")
    volumes = {"fixed": fixed, "moving": moving}
    ct = {side: is_ct(volume.array) for side, volume in volumes.items()}
    window = ct_window or default_ct_window(ct.values())
    sources, windows = [], {}
    for (side, volume), mask in zip(volumes.items(), (fixed_mask, moving_mask)):
        counted, inside = volume.array, None
        if mask is not None:
            array = load_mask(mask, f"{side} mask", volume.grid).array
            inside = torch.from_numpy(array.astype(np.float32)).to(device)
            counted = counted[array]
            if counted.min() == counted.max():
                raise RegkitError(
                    f"the {side} image is constant inside its mask: every voxel there is {counted[0]:g}; "
                    "give another mask"
                )
        low, high = window_of(counted, window if ct[side] else None)
        image = torch.from_numpy(normalise(volume.array, (low, high))).to(device)
        sources.append(Source(image, inside, volume.grid).without_filling(volume.array))
        windows[side] = {"ct": ct[side], "low": low, "high": high}
    return (sources[0], sources[1]), windows


def _doubt(in_cells: torch.Tensor, cells: Grid) -> Source:
    """The doubt of every second cell in mm, where it lies."""
    spacing = tuple(2 * s for s in cells.spacing)
    grid = Grid(in_cells.shape[::-1], spacing, cells.origin, cells.direction)  # type: ignore[arg-type]
    return Source(in_cells.cpu() * cells.spacing[0], None, grid)


def _linear_start(
    init: str,
    fixed: Source,
    moving: Source,
    spacing: float,
    model: LinearModel,
    step: Callable[[], None],
    landmarks: tuple[Float64, Float64] | None,
) -> LinearStart:
    if init == "none":
        return LinearStart(np.eye(4), np.nan, "header", "identity")
    if init == "centre":
        matrix = np.eye(4)
        matrix[:3, 3] = moving.grid.centre - fixed.grid.centre
        return LinearStart(matrix, np.nan, "centre", "translation")
    models = _FITS["rigid" if init == "rigid" else model]
    if landmarks is not None:
        return align_landmarks(fixed, moving, *landmarks, spacing, mind_ssc, models, step)
    return align(fixed, moving, spacing, mind_ssc, models, on_step=step)


def _warp(
    displacement: torch.Tensor, cells: Grid, matrix: Float64, grid: Grid, moving: Grid
) -> tuple[Warp, npt.NDArray[np.float32]]:
    """The displacement of the deformable stage and the linear start as one field on the fixed grid.

    T(p) = A(p + d(p)). Sampled on another lattice it may fold where the cells did not, which is mended.

    Args:
        displacement: (3, Z, Y, X) in cells.

    Returns:
        The warp and its Jacobian determinant.
    """
    field = _dense_field(displacement.cpu(), cells, matrix, grid)
    field, determinant = unfolded_warp(field, grid, matrix)
    return Warp(field, grid, moving), determinant


@operation
def _dense_field(
    displacement: torch.Tensor, cells: Grid, matrix: Float64, grid: Grid
) -> npt.NDArray[np.float32]:
    """A(p + d(p)) - p at the voxels of a grid, (z, y, x, 3) LPS mm, for a displacement in cells."""
    field = np.empty((*grid.shape, 3), dtype=np.float32)
    to_cells = cells.world_to_index @ grid.index_to_world
    for first, last in slabs(grid):
        index = slab_index(grid, first, last)
        cell_index = transform_points(to_cells, index)
        sampled = sample(displacement, torch.from_numpy(cell_index.astype(np.float32)).movedim(-1, 0))
        local = sampled.movedim(0, -1).numpy() @ cells.index_to_world[:3, :3].T
        points = transform_points(grid.index_to_world, index)
        field[first:last] = transform_points(matrix, points + local) - points
    return field


@_dense_field.kernel("c", lambda displacement, cells, matrix, grid: native.serves(displacement))
def _dense_field_by_c(
    displacement: torch.Tensor, cells: Grid, matrix: Float64, grid: Grid
) -> npt.NDArray[np.float32]:
    field = np.empty((*grid.shape, 3), dtype=np.float32)
    native.run(
        "displacement_field", displacement=displacement.contiguous(),
        cells=(cells.world_to_index @ grid.index_to_world)[:3],
        part=matrix[:3, :3] @ cells.index_to_world[:3, :3],
        whole=(matrix @ grid.index_to_world - grid.index_to_world)[:3], field=field,
    )  # fmt: skip
    return field


def _label_scores(
    fixed: Volume, moving: Volume, moved: Volume, matrix: Float64, names: Mapping[int, str] | None
) -> LabelScores:
    starts: dict[Stage, sitk.Transform] = {
        "before": sitk.Transform(3, sitk.sitkIdentity), "linear": affine_transform(matrix)
    }  # fmt: skip
    stages = {stage: resample_labels(moving, fixed.grid, start) for stage, start in starts.items()}
    return LabelScores.of(fixed, {**stages, "after": moved}, names, moving)
