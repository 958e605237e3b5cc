"""A 4-D image without the motion between its frames: each is aligned to their mean, which is refined."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from regkit.core.choices import DEFAULT_FEATURES, FeatureSet, PresetName
from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, affine_transform, transform_points
from regkit.core.intensity import default_ct_window, is_ct, normalise, window_of
from regkit.features.maps import mind_ssc
from regkit.io.frames import Frames, FramesLike, load_frames
from regkit.io.images import ImageLike, Volume, load_mask
from regkit.ops.resample import Source
from regkit.registration import register
from regkit.runtime.device import reproducible, torch_device
from regkit.runtime.memory import check_fits_memory
from regkit.solver.linear import align
from regkit.solver.motion import Fit, Reference, parameters
from regkit.stages import Progress
from regkit.transforms import average
from regkit.warp import INTERPOLATORS, Warp

MODELS = ("rigid", "deformable")
_ODD = 5.0  # deviations from the median (by the MAD) at which a frame's agreement is odd
_SHOWN = 0.1  # of the range of intensities: what is there is tissue
_POINTS = 4000  # at which motion is measured
_RIGID_SHARE = 0.3  # of a deformable run, for the progress bar
_POWER_MM = 50.0  # radius of the sphere on which a turn counts, of Power et al.
COLUMNS = (
    "frame",
    "time_s",
    "trans_x_mm",
    "trans_y_mm",
    "trans_z_mm",
    "rot_x_deg",
    "rot_y_deg",
    "rot_z_deg",
    "displacement_mm",
    "framewise_displacement_mm",
    "fd_power_mm",
    "difference",
    "searched",
)
"""Of the table of an aligned series (docs/series.md)."""


@dataclass(frozen=True, eq=False)
class AlignedSeries:
    """The result of :func:`align_series`.

    Args:
        frames: every frame on the voxels of the series, without motion; float32.
        mean: of these frames.
        matrices: (t, 4, 4), rigid, from points of the mean to points of each frame, LPS mm.
        warps: of each frame, rigid part included; empty for a rigid alignment.
        points: (n, 3) LPS mm, spread over the tissue of the mean. Motion is measured there.
        differences: (t,), mean squared difference of local contrast between frame and mean, after alignment.
        searched: frames that fitted far worse than the others, for which a new start was searched.
        settings: everything that the result depends on.
    """

    frames: Frames
    mean: Volume
    matrices: Float64
    warps: tuple[Warp, ...]
    points: Float64
    differences: Float64
    searched: tuple[int, ...]
    settings: dict[str, Any]

    @cached_property
    def parameters(self) -> Float64:
        """(t, 6): translations along x, y, z (LPS mm) and rotations about them (degrees) through the centre
        of
        the grid (:func:`regkit.solver.motion.parameters`).
        """
        return np.stack([parameters(matrix, self.mean.grid.centre) for matrix in self.matrices])

    @cached_property
    def displacement(self) -> Float64:
        """(t,), mm: mean distance of the tissue in each frame from its place in the mean."""
        return np.linalg.norm(self._moved - self.points, axis=2).mean(axis=1)

    @cached_property
    def framewise_displacement(self) -> Float64:
        """(t,), mm: mean distance that the tissue moved since the previous frame; 0 for the first."""
        steps = np.linalg.norm(np.diff(self._moved, axis=0), axis=2).mean(axis=1)
        return np.concatenate([[0.0], steps])

    @cached_property
    def fd_power(self) -> Float64:
        """(t,), mm: framewise displacement of Power et al. (NeuroImage 2012), the sum of the absolute changes
        of
        the six parameters with rotations on a sphere of 50 mm; 0 for the first frame. Of the rigid part
        alone.
        """
        changes = np.abs(np.diff(self.parameters, axis=0))
        changes[:, 3:] = np.radians(changes[:, 3:]) * _POWER_MM
        return np.concatenate([[0.0], changes.sum(axis=1)])

    @cached_property
    def _moved(self) -> Float64:
        """The points in every frame, (t, n, 3)."""
        if self.warps:
            return np.stack([warp.transform_points(self.points) for warp in self.warps])
        return np.stack([transform_points(matrix, self.points) for matrix in self.matrices])

    def rows(self) -> list[dict[str, Any]]:
        """One row a frame, by :data:`COLUMNS`."""
        step = self.frames.step
        columns = (
            range(len(self.frames)),
            (k * step if step else "" for k in range(len(self.frames))),
            *self.parameters.T.tolist(),
            self.displacement.tolist(),
            self.framewise_displacement.tolist(),
            self.fd_power.tolist(),
            self.differences.tolist(),
            (int(k in self.searched) for k in range(len(self.frames))),
        )
        return [dict(zip(COLUMNS, row)) for row in zip(*columns, strict=True)]

    def table(self, delimiter: str = ",") -> str:
        """The rows as text, with a line of headings."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        for row in self.rows():
            writer.writerow({key: f"{v:.5f}" if isinstance(v, float) else v for key, v in row.items()})
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Summary, rows and settings, ready for JSON."""
        return {
            "frames": len(self.frames),
            "mean_displacement_mm": float(self.displacement.mean()),
            "max_displacement_mm": float(self.displacement.max()),
            "mean_framewise_displacement_mm": float(self.framewise_displacement[1:].mean()),
            "max_framewise_displacement_mm": float(self.framewise_displacement[1:].max()),
            "searched": list(self.searched),
            "rows": self.rows(),
            "settings": self.settings,
        }


def align_series(
    series: FramesLike,
    *,
    model: str = "rigid",
    rounds: int = 2,
    interpolation: str = "linear",
    mask: ImageLike | None = None,
    features: FeatureSet = DEFAULT_FEATURES,
    weights: str | os.PathLike[str] | None = None,
    preset: PresetName = "default",
    device: str | torch.device = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> AlignedSeries:
    """Align every frame of a 4-D image to the mean of all frames, rigidly or by one warp per frame.

    The first round aligns all frames to the middle one, each starting from the result of its neighbour. Later
    rounds align them to the mean of the aligned frames. For a frame that agrees far less than the others, a
    new start is searched over all overlaps. If ``deformable``, :func:`regkit.register` then registers the
    frames to the mean, and after each round the mean deformation is removed, so that the mean has the average
    shape.

    Args:
        series: a 4-D file (NIfTI, MGH, MetaImage, NRRD), or an object of SimpleITK, nibabel or regkit.
        model: "rigid" or "deformable".
        rounds: of the rigid and of the deformable alignment.
        interpolation: of the frames that are returned: linear, bspline (cubic, sharper) or nearest.
        mask: on the grid of the series; only voxels inside it count.
        features, weights, preset: of the deformable registration, as for :func:`regkit.register`.
        device, threads, seed: as for :func:`regkit.register`.
        progress: called with the stage and the share of the run that is done, 0 to 1.

    Raises:
        RegkitError: if the series or an option cannot be used.
    """
    if model not in MODELS:
        raise RegkitError(f"no model named {model!r}; available: {', '.join(MODELS)}")
    if interpolation not in INTERPOLATORS or interpolation == "label":
        raise RegkitError(f"interpolation '{interpolation}' is unknown: use linear, bspline or nearest")
    if rounds < 1:
        raise RegkitError(f"rounds must be at least 1, got {rounds}")
    compute_device = torch_device(device)
    report = progress or (lambda stage, done: None)
    frames = load_frames(series, "series")
    size = frames.array.size
    # The moved frames beside those that were read; of a warp the field, and of one at a time the transform.
    check_fits_memory(size, "the aligned series", 4 + (24 if model == "deformable" else 0))
    inside = None if mask is None else load_mask(mask, "mask", frames.grid).array
    with reproducible(threads, seed):
        share = 1.0 if model == "rigid" else _RIGID_SHARE
        aligner = _Aligner(frames, inside, compute_device)
        fits, searched = aligner.rigid(rounds, lambda stage, done: report(stage, share * done))
        matrices, warps = [fit.matrix for fit in fits], []
        if model == "deformable":
            options: dict[str, Any] = {
                "features": features, "weights": weights, "preset": preset, "device": device, "seed": seed
            }  # fmt: skip
            mean = aligner.mean(matrices)
            for k in range(rounds):
                warps = _warps(frames, mean, matrices, options, partial(_report_round, report, k, rounds))
                mean = aligner.mean(warps)
        moved = aligner.moved(warps or matrices, INTERPOLATORS[interpolation])
        mean = Volume(moved.mean(axis=0), frames.grid, f"mean of {frames.name}")
        differences = [fit.difference for fit in fits]
    return AlignedSeries(
        replace(frames, array=moved),
        mean,
        np.stack(matrices),
        tuple(warps),
        aligner.points(mean),
        np.array(differences),
        tuple(searched),
        {
            "model": model,
            "rounds": rounds,
            "interpolation": interpolation,
            "device": str(compute_device),
            "threads": torch.get_num_threads(),
            "seed": seed,
            **({"features": features, "preset": preset} if model == "deformable" else {}),
        },
    )


class _Aligner:
    """The frames as they are compared, and what they are once they are moved."""

    def __init__(self, frames: Frames, inside: npt.NDArray[np.bool_] | None, device: torch.device) -> None:
        self.frames, self.inside, self.device = frames, inside, device
        middle = np.asarray(frames.array[len(frames) // 2], dtype=np.float32)
        if middle.min() == middle.max():
            raise RegkitError(
                f"{frames.name}: its middle frame is constant: every voxel is {middle.flat[0]:g}"
            )
        known = middle if inside is None else middle[inside]
        self.window = window_of(known, default_ct_window([True]) if is_ct(middle) else None)
        self.default = float(frames.array.min())

    def rigid(self, rounds: int, report: Progress) -> tuple[list[Fit], list[int]]:
        """Of each frame where it lies, and which were looked for anew."""
        count = len(self.frames)
        middle = count // 2
        fits = [Fit(np.eye(4), 0.0)] * count
        searched: set[int] = set()
        done = 0
        for k in range(rounds):
            image = self.frames.array[middle] if k == 0 else self.mean([fit.matrix for fit in fits]).array
            reference = Reference(self._source(image, self.inside))
            order = [*range(middle, count), *range(middle - 1, -1, -1)]
            for j in order:
                frame = self._source(self.frames.array[j])
                if k == 0:
                    beside = j - 1 if j > middle else min(j + 1, middle)
                    tried = [reference.fit(frame, start) for start in _unlike(fits[beside].matrix)]
                    fits[j] = min(tried, key=lambda fit: fit.difference)
                else:
                    fits[j] = reference.fit(frame, fits[j].matrix, near=True)
                done += 1
                report("rigid", done / (rounds * count))
            for j in _odd(np.array([fit.difference for fit in fits])):
                searched.add(j)
                fits[j] = self._searched(reference, image, j, fits[j])
        return fits, sorted(searched)

    def _searched(self, reference: Reference, image: npt.NDArray[Any], j: int, before: Fit) -> Fit:
        """Where a frame lies by a search over all overlaps, if it fits better there."""
        frame = self._source(self.frames.array[j])
        spacing = float(np.cbrt(np.prod(self.frames.grid.spacing)))
        try:
            start = align(self._source(image, self.inside), frame, spacing, mind_ssc, ("rigid",))
        except RegkitError:  # that hardly anything overlaps: an empty frame
            return before
        return min(before, reference.fit(frame, start.matrix), key=lambda fit: fit.difference)

    def _source(self, array: npt.NDArray[Any], inside: npt.NDArray[np.bool_] | None = None) -> Source:
        image = torch.from_numpy(normalise(np.ascontiguousarray(array), self.window)).to(self.device)
        mask = None if inside is None else torch.from_numpy(inside.astype(np.float32)).to(self.device)
        return Source(image, mask, self.frames.grid)

    def moved(self, maps: Sequence[Float64 | Warp], interpolator: int) -> npt.NDArray[np.float32]:
        """(t, z, y, x), every frame as if nothing had moved."""
        grid, moved = self.frames.grid, np.empty(self.frames.array.shape, np.float32)
        onto = grid.blank(sitk.sitkUInt8)
        for k, one in enumerate(maps):
            image = grid.to_sitk(np.ascontiguousarray(self.frames.array[k], dtype=np.float32))
            transform = one.to_sitk() if isinstance(one, Warp) else affine_transform(one)
            resampled = sitk.Resample(image, onto, transform, interpolator, self.default, sitk.sitkFloat32)
            moved[k] = sitk.GetArrayViewFromImage(resampled)
        return moved

    def mean(self, maps: Sequence[Float64 | Warp]) -> Volume:
        """The mean of the moved frames."""
        return Volume(
            self.moved(maps, sitk.sitkLinear).mean(axis=0), self.frames.grid, f"mean of {self.frames.name}"
        )

    def points(self, mean: Volume) -> Float64:
        """Some voxels of tissue, LPS mm (n, 3)."""
        shown = normalise(mean.array, self.window) > _SHOWN
        if self.inside is not None:
            shown &= self.inside
        index = np.argwhere(shown if shown.any() else np.ones_like(shown))
        some = index[:: max(1, len(index) // _POINTS), ::-1]
        return transform_points(mean.grid.index_to_world, some)


def _warps(
    frames: Frames, mean: Volume, matrices: list[Float64], options: dict[str, Any], report: Progress
) -> list[Warp]:
    """Of each frame the warp from the mean of average shape to it."""
    warps = []
    for k, matrix in enumerate(matrices):
        done = register(mean, frames.volume(k), init=matrix, **options)
        warps.append(Warp(done.warp.field, frames.grid, frames.grid))
        report(f"deformable, frame {k + 1} of {len(frames)}", (k + 1) / len(frames))
    # Where a point of the mean lies on average, but for the rigid motion.
    shape = average([warp.compose(np.linalg.inv(matrix)) for warp, matrix in zip(warps, matrices)])
    back = shape.inverse(frames.grid)
    return [replace(back.compose(warp), moving_grid=frames.grid) for warp in warps]


def _report_round(report: Progress, number: int, rounds: int, stage: str, done: float) -> None:
    report(stage, _RIGID_SHARE + (1 - _RIGID_SHARE) * (number + done) / rounds)


def _unlike(matrix: Float64) -> list[Float64]:
    """A start, and none, unless they are the same."""
    return [matrix] if np.allclose(matrix, np.eye(4)) else [matrix, np.eye(4)]


def _odd(differences: Float64) -> list[int]:
    """The frames whose difference lies far above those of the others."""
    median = (
        float(np.median(differences[np.isfinite(differences)])) if np.isfinite(differences).any() else 0.0
    )
    spread = 1.4826 * float(np.median(np.abs(differences - median))) if np.isfinite(median) else 0.0
    return [int(k) for k in np.flatnonzero(~(differences <= median + _ODD * spread + 0.1 * median))]
