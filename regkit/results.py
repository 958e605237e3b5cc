"""The files of a registration: all computed first, then all written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from regkit.atomic import together
from regkit.formats import write_linear, write_warp
from regkit.images import load_image, load_labels
from regkit.outputs import save_image

if TYPE_CHECKING:
    from regkit.images import ImageLike, Volume
    from regkit.registration import Registration


def write_results(
    result: Registration,
    files: Mapping[str, Path],
    fixed: ImageLike,
    fixed_labels: ImageLike | None = None,
    moving_labels: ImageLike | None = None,
    inputs: Mapping[str, Path] | None = None,
    command: str = "",
) -> None:
    """Write what ``files`` asks for: all of it, or nothing.

    Args:
        files: where to write any of "warp", "inverse", "linear", "moved", "moved_labels",
            "uncertainty", "figure" and "report".
        fixed, fixed_labels, moving_labels: as they were registered; read again for the figure and the report.
        inputs, command: for the report, see :func:`regkit.htmlreport.write_report`.

    Raises:
        RegkitError: if a file cannot be written.
    """
    inverse = result.warp.inverse() if "inverse" in files else None
    volumes: dict[str, Volume] = {}
    if "moved" in files:
        volumes["moved"] = result.moved
    if "moved_labels" in files and result.moved_labels is not None:
        volumes["moved_labels"] = result.moved_labels
    if "uncertainty" in files and result.uncertainty is not None:
        volumes["uncertainty"] = result.uncertainty

    seen = load_image(fixed, "fixed image") if {"figure", "report"} & set(files) else None
    with together():
        if "warp" in files:
            write_warp(result.warp, files["warp"])
        if inverse is not None:
            write_warp(inverse, files["inverse"])
        if "linear" in files:
            write_linear(result.linear, files["linear"])
        for name, volume in volumes.items():
            save_image(volume.to_sitk(), files[name])
        if "figure" in files and seen is not None:
            from regkit.figure import registration_figure

            registration_figure(
                seen,
                result.moving,
                result.moved,
                files["figure"],
                None if fixed_labels is None else load_labels(fixed_labels, "fixed labels"),
                None if moving_labels is None else load_labels(moving_labels, "moving labels"),
                result.moved_labels,
                result.warp.jacobian(),
            )
        if "report" in files and seen is not None:
            from regkit.htmlreport import write_report

            write_report(result, files["report"], seen, inputs, command)
