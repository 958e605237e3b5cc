"""A small cohort for tests."""

from __future__ import annotations

from pathlib import Path

from cli_cases import write_phantom

LINEAR = ("--preset", "linear", "--features", "mind")  # seconds a pair
NAMES = ("mr", "ct", "back")


def write_table(folder: Path) -> Path:
    """A table of three pairs of one phantom of coarse voxels: with all there can be, each image alone."""
    write_phantom(folder, 12.0)
    table = folder / "pairs.csv"
    table.write_text(
        "name,fixed,moving,fixed_labels,moving_labels,landmarks,start\n"
        "mr,fixed.nii.gz,moving.nii.gz,fixed_labels.nii.gz,moving_labels.nii.gz,landmarks.csv,\n"
        "ct,moving.nii.gz,moving.nii.gz,,,,none\n"
        "back,moving.nii.gz,fixed.nii.gz,,,,\n"
    )
    return table


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that a run left, which it must not."""
    return sorted(folder.rglob(".regkit-*"))
