"""Numbers that others have published for the data sets benchmarked here, to stand beside ours.

None was measured by regkit's code; what the authors did not print, but drew, was read by eye from their
plot, and its source says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DIRECTIONS = {"l2r-abdomen": "mr2ct", "l2r-abdomen-ct": "ct2ct", "mmwhs": "mr2ct"}
"""The one direction of each data set that the published numbers are of."""

_PLOT = "anatomix paper (ICLR 2025, arXiv 2411.02372), Figure 5; read by eye from the plot"
_POINTS = f"{_PLOT}: mean of the subjects' values (each to about 0.01)"
_README = "anatomix repository, README of its registration, September 2026"
_TUNED = f"{_README}; its windows were tuned on these same 8 pairs"
_VOXELOPT = (
    "VoxelOpt repository, README, of its paper (MICCAI 2025), Table 1; volumes preprocessed by its authors"
)
_PRISM = "AAPM 2026, paper 2755; pairs called MR-CT, direction and folding not known to us"


@dataclass(frozen=True)
class Published:
    """A Dice that others have published.

    Args:
        name: of the method, as the source calls it.
        statistic: what ``value`` is over the pairs.
        value: mean Dice over the labels, 0 to 1.
        pairs: how many.
        folding_percent: voxels whose Jacobian determinant is 0 or less; None if it is not given.
        source: where it stands, and how it was read.
    """

    name: str
    statistic: Literal["median", "mean"]
    value: float
    pairs: int
    folding_percent: float | None
    source: str


_VIT = "anatomix-dev-vit + MIND-SSC + FireANTs"
_RERUN = "anatomix + MIND-SSC + ConvexAdam, re-run"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "l2r-abdomen-ct": (
        Published("RDP, semi-supervised", "mean", 0.5877, 42, None, _VOXELOPT),
        Published("VoxelOpt", "mean", 0.5851, 42, None, _VOXELOPT),
        Published("Deeds", "mean", 0.5357, 42, None, _VOXELOPT),
        Published("unregistered", "mean", 0.3086, 42, None, _VOXELOPT),
    ),
    "l2r-abdomen": (
        Published(_VIT, "mean", 0.879, 8, 0.0, _TUNED),
        Published(_VIT, "median", 0.892, 8, 0.0, _TUNED),
        Published(_RERUN, "mean", 0.756, 8, None, _README),
        Published(_RERUN, "median", 0.854, 8, None, _README),
        Published("PRISM-Reg", "mean", 0.768, 8, None, _PRISM),
        Published("ConvexAdam-Ours (anatomix)", "median", 0.84, 7, 0.2, _PLOT),
        Published("ANTs-Ours (anatomix)", "median", 0.78, 7, 0.3, _PLOT),
        Published("ConvexAdam (MIND)", "median", 0.73, 7, 0.2, _PLOT),
        Published("uniGradICON + IO", "median", 0.60, 7, 0.0, _PLOT),
        Published("ANTs-MI", "median", 0.51, 7, 0.1, _PLOT),
        Published("uniGradICON", "median", 0.43, 7, 0.0, _PLOT),
        Published("unregistered", "median", 0.38, 7, None, _PLOT),
        Published("SynthMorph-shapes", "median", 0.12, 7, 0.0, _PLOT),
    ),
    "mmwhs": (
        Published("ConvexAdam-Ours (anatomix)", "median", 0.73, 15, 0.3, _PLOT),
        Published("ConvexAdam-Ours (anatomix)", "mean", 0.70, 15, 0.3, _POINTS),
        Published("ConvexAdam (MIND)", "median", 0.66, 15, 0.4, _PLOT),
        Published("ConvexAdam (MIND)", "mean", 0.67, 15, 0.4, _POINTS),
        Published("ANTs-Ours (anatomix)", "median", 0.64, 15, 0.2, _PLOT),
        Published("uniGradICON + IO", "median", 0.64, 15, 0.0, _PLOT),
        Published("SynthMorph-shapes", "median", 0.62, 15, 0.0, _PLOT),
        Published("uniGradICON", "median", 0.59, 15, 0.0, _PLOT),
        Published("ANTs-MI", "median", 0.59, 15, 0.1, _PLOT),
        Published("unregistered", "median", 0.51, 15, None, _PLOT),
    ),
}


def published(dataset: str, direction: str) -> tuple[Published, ...]:
    """What is known of a data set in a direction; empty for all others."""
    return PUBLISHED.get(dataset, ()) if direction == DIRECTIONS.get(dataset) else ()
