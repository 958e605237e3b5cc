"""A registration from files to files, with one typed signature from which other interfaces are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, cast

from regkit.core.choices import FeatureSet


class Files(NamedTuple):
    """What :func:`register_files` wrote.

    Args:
        warp: displacement field on the fixed voxels; of a linear preset as well.
        moved: the moving image on the fixed voxels.
        moved_labels: the moving labels on the fixed voxels; None where none were given.
        verdict: "PASS", "WARN" or "FAIL".
    """

    warp: Path
    moved: Path
    moved_labels: Path | None
    verdict: str


def register_files(
    fixed: Path,
    moving: Path,
    fixed_mask: Path | None = None,
    moving_mask: Path | None = None,
    moving_labels: Path | None = None,
    init: str = "auto",
    preset: str = "default",
    features: str = "network+mind",
    threads: int | None = None,
    seed: int = 0,
    folder: str = ".",
) -> Files:
    """Register two images and write the warp, the moved image and the moved labels into a folder.

    Args:
        fixed, moving, fixed_mask, moving_mask, init, preset, features, threads, seed: as of
            :func:`regkit.register`.
        moving_labels: to be moved.
        folder: for ``warp.nii.gz``, ``moved.nii.gz`` and ``moved_labels.nii.gz``; they appear together.

    Raises:
        RegkitError: if an image cannot be used, or a file cannot be written.
    """
    from regkit.core.settings import preset_name
    from regkit.io.provenance import record_of
    from regkit.registration import register
    from regkit.result_files import write_results

    result = register(
        fixed,
        moving,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        moving_labels=moving_labels,
        init=init,
        preset=preset_name(preset),
        features=cast(FeatureSet, features),  # register() refuses any other
        threads=threads,
        seed=seed,
        outputs=("moved",),
    )
    place = Path(os.path.abspath(folder))
    names = ("warp", "moved", *(("moved_labels",) if moving_labels is not None else ()))
    files = {name: place / f"{name}.nii.gz" for name in names}
    inputs = {"fixed": fixed, "moving": moving, "fixed_mask": fixed_mask, "moving_mask": moving_mask}
    record = record_of(inputs | {"moving_labels": moving_labels}, result.settings)
    write_results(result, files, fixed, None, moving_labels, moving=moving, record=record)
    return Files(files["warp"], files["moved"], files.get("moved_labels"), result.verdict.level)
