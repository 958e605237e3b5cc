"""Where shapes come from: procedures, a packed archive of templates, or a folder of label maps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from regkit.core.errors import RegkitError, reason
from regkit.synthesis.shapes import Shape, draw_procedural

if TYPE_CHECKING:
    from regkit.core.geometry import Grid

_SIDE = 48  # voxels along the longest side of a template in memory
_ARRAYS = ("bits", "offsets", "shapes", "names", "sources")


class ShapeSource(Protocol):
    """Gives shapes."""

    def draw(self, random: np.random.Generator, device: torch.device) -> Shape: ...


class Procedural:
    """Shapes that are drawn by formulas: no data needed."""

    def draw(self, random: np.random.Generator, device: torch.device) -> Shape:
        return draw_procedural(random)


class Templates:
    """Binary shapes cut from label maps, by group; a group is drawn first, then a shape of it.

    Args:
        groups: name of the origin (a data set, a subject) -> its masks, each unpacked when it is first drawn.
    """

    def __init__(self, groups: dict[str, list[PackedMask]]) -> None:
        self.groups = list(groups.values())
        self._ready: dict[tuple[int, int], torch.Tensor] = {}

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def draw(self, random: np.random.Generator, device: torch.device) -> Shape:
        group = int(random.integers(len(self.groups)))
        key = group, int(random.integers(len(self.groups[group])))
        if key not in self._ready:
            self._ready[key] = _reduced(self.groups[group][key[1]].mask()).to(device)
        return _Template(self._ready[key], self.groups[group][key[1]].shape)


class PackedMask:
    """A binary mask (Z, Y, X), a bit a voxel."""

    def __init__(self, bits: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        self.bits, self.shape = bits, shape

    def mask(self) -> npt.NDArray[np.bool_]:
        count = int(np.prod(self.shape))
        return np.unpackbits(self.bits, count=count).reshape(self.shape).astype(bool)


class _Template:
    """The level of a template: its occupancy, interpolated, above a half."""

    def __init__(self, occupancy: torch.Tensor, shape: tuple[int, ...]) -> None:
        self.occupancy = occupancy
        # The cube [-1, 1]^3 holds the longest side; the others keep the proportion they have in the mask
        # (Z, Y, X), which the occupancy has lost to rounding.
        self.stretch = [max(shape) / n for n in reversed(shape)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        coordinates = torch.stack([c * s for c, s in zip(x, self.stretch)], dim=-1)
        volume = self.occupancy.to(x.dtype)[None, None]
        return F.grid_sample(volume, coordinates[None], align_corners=False)[0, 0] - 0.5


def _reduced(mask: npt.NDArray[np.bool_]) -> torch.Tensor:
    """Occupancy (Z, Y, X) float16 of a mask, its longest side at most ``_SIDE`` voxels."""
    volume = torch.from_numpy(mask.astype(np.float32))[None, None]
    ratio = max(1.0, max(mask.shape) / _SIDE)
    z, y, x = (max(4, round(n / ratio)) for n in mask.shape)
    return F.adaptive_avg_pool3d(volume, (z, y, x))[0, 0].half()


def load_archive(path: Path) -> Templates:
    """Templates from a packed archive (.npz): arrays bits, offsets, shapes, names, sources.

    Mask i is ``np.unpackbits(bits[offsets[i]:offsets[i + 1]])`` in C order with shape ``shapes[i]``; the part
    of ``sources[i]`` before an "@" groups the masks.

    Raises:
        RegkitError: if the file is missing, damaged, or not such an archive.
    """
    try:
        with open(path, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise RegkitError(f"'{path}' is not an archive of templates: it is no .npz")
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise RegkitError(f"'{path}' is not an archive of templates: it lacks {', '.join(missing)}")
            bits, offsets, shapes, _, sources = (archive[name] for name in _ARRAYS)
    except FileNotFoundError as error:
        raise RegkitError(f"no archive of templates at '{path}'") from error
    except RegkitError:
        raise
    except Exception as error:  # of zipfile, zlib or numpy's reader, as the damage will have it
        raise RegkitError(f"cannot read the templates in '{path}': {reason(error)}") from error
    kinds = [
        array.dtype.kind in allowed for array, allowed in ((offsets, "iu"), (shapes, "iu"), (sources, "U"))
    ]
    count = len(shapes) if shapes.ndim == 2 and shapes.shape[1] == 3 else 0
    fits = offsets.shape == (count + 1,) and sources.shape == (count,) and bits.ndim == 1 and count
    if not fits or bits.dtype != np.uint8 or not all(kinds):
        raise RegkitError(f"the templates in '{path}' are damaged: their arrays do not fit together")
    offsets, shapes = offsets.astype(np.int64), shapes.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(bits) or shapes.min() < 1:
        raise RegkitError(f"the templates in '{path}' are damaged: their arrays do not fit together")
    if (np.diff(offsets) * 8 < shapes.prod(1)).any():
        raise RegkitError(f"the templates in '{path}' are damaged: a mask has fewer bits than voxels")
    groups: dict[str, list[PackedMask]] = {}
    for i, (shape, origin) in enumerate(zip(shapes.tolist(), sources.tolist())):
        mask = PackedMask(bits[offsets[i] : offsets[i + 1]], tuple(shape))
        groups.setdefault(origin.split("@")[0], []).append(mask)
    return Templates(groups)


def load_folder(path: Path) -> Templates:
    """Templates from label maps: ``path/subject/structure.nii.gz`` (as TotalSegmentator's), or
    ``path/subject.nii.gz``.

    A file of one value besides 0 is a mask; of several, a label map whose labels are masks each. Files named
    ``rib_…`` and ``vertebrae_…`` of one subject are merged into one mask each. Empty ones are skipped.

    Raises:
        RegkitError: if there is no folder, no file, or nothing but empty ones, or one cannot be read.
    """
    if not path.is_dir():
        raise RegkitError(f"no folder of templates at '{path}'")
    groups: dict[str, list[PackedMask]] = {}
    for subject in sorted(path.iterdir()):
        files = sorted(subject.glob("*.nii*")) if subject.is_dir() else [subject]
        masks = list(_masks_of([file for file in files if ".nii" in file.name]))
        if masks:
            groups[subject.name] = masks
    if not groups:
        raise RegkitError(
            f"no template in '{path}': expected SUBJECT/STRUCTURE.nii.gz or SUBJECT.nii.gz, not all 0"
        )
    return Templates(groups)


def _masks_of(files: list[Path]) -> Iterator[PackedMask]:
    """The masks of one subject."""
    from regkit.io.images import load_labels  # needs SimpleITK, which a bare training machine has not

    merged: dict[str, tuple[npt.NDArray[np.bool_], Grid]] = {}
    for file in files:
        kind = next((k for k in ("rib_", "vertebrae_") if file.name.startswith(k)), None)
        grid = merged[kind][1] if kind in merged else None
        volume = load_labels(file, "templates", grid, empty=True)
        array = np.asarray(volume.array)
        for label in np.unique(array[array > 0]):
            mask = array == label
            if kind is None:
                yield _packed(mask, volume.grid.spacing)
            elif kind in merged:
                np.logical_or(merged[kind][0], mask, out=merged[kind][0])
            else:
                merged[kind] = mask, volume.grid
    for mask, grid in merged.values():
        yield _packed(mask, grid.spacing)


def _packed(mask: npt.NDArray[np.bool_], spacing: tuple[float, ...]) -> PackedMask:
    """A mask cropped to its content with a margin, on isotropic voxels, no longer than twice ``_SIDE``."""
    bounds = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    cropped = mask[tuple(slice(int(b[0]), int(b[-1]) + 1) for b in bounds)]
    extent = np.asarray(cropped.shape) * np.asarray(spacing[::-1])
    voxel = max(float(extent.max()) / (2 * _SIDE), float(min(spacing)))
    size = np.maximum(np.round(extent / voxel), 2).astype(int).tolist()
    volume = torch.from_numpy(np.ascontiguousarray(cropped, dtype=np.float32))[None, None]
    resampled = F.interpolate(volume, size=size, mode="trilinear", align_corners=False)[0, 0].numpy() > 0.5
    margin = np.pad(resampled, 2)
    return PackedMask(np.packbits(margin), margin.shape)
