"""Heads as an MR scanner might show them, rendered from label maps of FreeSurfer's numbering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from regkit.core.errors import RegkitError
from regkit.io.images import Volume, load_labels
from regkit.io.outputs import save_image
from regkit.segmentation.files import Labelled
from regkit.synthesis.appearance import Palette, render
from regkit.synthesis.noise import Rng

# What is scored, by the names of the layout, and the numbers that are part of it.
_PARTS = {
    "white matter": (2, 41),
    "cortex": (3, 42),
    "ventricles": (4, 5, 14, 15, 43, 44),
    "cerebellum": (7, 8, 46, 47),
    "deep grey matter": (10, 11, 12, 13, 26, 28, 49, 50, 51, 52, 58, 60),
    "hippocampus and amygdala": (17, 18, 53, 54),
    "brainstem": (16,),
    "cerebrospinal fluid": (24,),
}
# Mean intensities of a T1-weighted image; other tissues have random ones, the same in all heads.
_T1 = {
    0.0: (0,), 0.12: (24,), 0.15: (4, 5, 14, 15, 43, 44), 0.45: (3, 42), 0.48: (8, 47), 0.5: (17, 18, 53, 54),
    0.52: (11, 50, 26, 58), 0.55: (12, 51), 0.62: (10, 49, 28, 60), 0.66: (13, 52), 0.68: (16,),
    0.72: (7, 46), 0.75: (2, 41),
}  # fmt: skip
_STRAY = 0.03  # deviation of a mean from head to head
_MARGIN = 4  # voxels around a head
_SEED = 0
_IDS = 1024  # numbers of FreeSurfer's kind that a map may have


def render_heads(maps: Sequence[Path], names: dict[int, str], folder: Path) -> list[Labelled]:
    """Images of heads in one contrast, each with its own noise, bias field and blur, and what is scored.

    Files that are there are kept: the same maps give the same ones.

    Raises:
        RegkitError: if a map cannot be read, or a name is none that is known.
    """
    unknown = [name for name in names.values() if name not in _PARTS]
    if unknown:
        raise RegkitError(f"heads have no part '{unknown[0]}'; available: {', '.join(_PARTS)}")
    heads = []
    for number, path in enumerate(maps):
        name = path.name.split(".")[0]
        case = Labelled(name, folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz")
        if not (case.image.is_file() and case.labels.is_file()):
            labels = _cropped(load_labels(path, "label map of a head"))
            scored = np.zeros(labels.array.shape, np.uint8)
            for label, part in names.items():
                scored[np.isin(labels.array, _PARTS[part])] = label
            save_image(Volume(_image(labels.array, number), labels.grid).to_sitk(), case.image)
            save_image(Volume(scored, labels.grid).to_sitk(), case.labels)
        heads.append(case)
    return heads


def _cropped(labels: Volume) -> Volume:
    """The head and a little air."""
    inside = np.nonzero(labels.array)
    first = [max(0, int(axis.min()) - _MARGIN) for axis in inside]
    last = [min(n, int(axis.max()) + 1 + _MARGIN) for axis, n in zip(inside, labels.array.shape)]
    part = tuple(slice(a, b) for a, b in zip(first, last))
    size = tuple(b - a for a, b in zip(first, last))
    return Volume(labels.array[part], labels.grid.window(tuple(first[::-1]), size[::-1]), labels.name)


def _image(labels: npt.NDArray[np.integer], number: int) -> npt.NDArray[np.float32]:
    ids, numbered = np.unique(labels, return_inverse=True)
    if len(ids) > 256 or ids[0] < 0 or ids[-1] >= _IDS:
        raise RegkitError(f"the label map of a head may have 256 numbers from 0 to {_IDS - 1}")
    contrast = np.random.default_rng(_SEED).uniform(0.05, 0.95, _IDS)  # by the id: the same in all heads
    for mean, parts in _T1.items():
        contrast[list(parts)] = mean
    rng = Rng.of(_SEED, 1, number)
    means = np.zeros(256)
    means[: len(ids)] = contrast[ids] + _STRAY * rng.scalars.standard_normal(len(ids)) * (ids > 0)
    palette = Palette(means, np.full(256, 0.02))
    volume = torch.from_numpy(numbered.reshape(labels.shape).astype(np.uint8))
    image: npt.NDArray[np.float32] = render(volume[None], [rng], [palette], partial=0.0).images[0].numpy()
    return image
