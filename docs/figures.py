"""The pictures of the docs that are of the demo's phantom: ``python docs/figures.py``.

``stages.png``: what the stages of a registration add. ``warp.png``: the displacement field, its determinant
and its doubt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import regkit
from regkit.io.atomic import atomic_path
from regkit.synthesis.phantom import torso
from regkit.viz.colours import DIM, INK, PALE
from regkit.viz.figure import blended, diverging
from regkit.viz.planes import PLANES, cut, grey, tone, view, window

FOLDER = Path(__file__).with_name("figures")
AXIAL = PLANES[0]


def figure(titles: list[str]) -> tuple[Figure, list[Any]]:
    picture = Figure((3.1 * len(titles), 2.9), dpi=110, facecolor=INK, layout="constrained")
    FigureCanvasAgg(picture)
    axes = list(picture.subplots(1, len(titles)))
    for ax, title in zip(axes, titles):
        ax.set_title(title, color=PALE, size=9)
        ax.axis("off")
    return picture, axes


def save(picture: Figure, name: str) -> None:
    with atomic_path(FOLDER / name) as temporary:
        picture.savefig(temporary, facecolor=INK, format="png")


def outlines(ax: Any, labels: np.ndarray) -> None:
    for label in np.unique(labels[labels > 0]):
        ax.contour(labels == label, levels=[0.5], colors=["#7ad7f0"], linewidths=0.8)


def main() -> None:
    phantom = torso(0)
    fixed, moving = phantom.fixed, phantom.moving
    linear = regkit.register(fixed, moving, preset="linear")
    whole = regkit.register(fixed, moving)
    box, middle = view(fixed, phantom.fixed_labels)
    plane = AXIAL.grid(box, middle, float(max(box[1] - box[0])) / 300)
    organs = cut(phantom.fixed_labels, plane, labels=True)

    titles = ["fixed (MR)", "moving (CT), by its header", "after the linear start", "after all stages"]
    picture, axes = figure(titles)
    seen = [fixed, moving, linear.warp.apply(moving), whole.warp.apply(moving)]
    for ax, volume in zip(axes, seen):
        levels = window(fixed.array) if volume is fixed else (-140.0, 220.0)  # HU
        ax.imshow(grey(tone(cut(volume, plane), levels)))
        outlines(ax, organs)
    save(picture, "stages.png")

    # The deformation alone: what the linear start does would hide it.
    field = whole.warp
    points = fixed.grid.world_points()
    target = regkit.chain([field, np.linalg.inv(whole.linear)]).field + points
    shown = tone(cut(fixed, plane), window(fixed.array))
    titles = ["the warp without its linear part", "change of volume", "doubt, mm"]
    picture, axes = figure(titles)
    axes[0].imshow(grey(shown))
    right, down = AXIAL.right, AXIAL.down
    places = [cut(regkit.Volume(target[..., axis], fixed.grid), plane) for axis in (right, down)]
    for place in places:
        levels = np.arange(-400, 400, 15)
        axes[0].contour(place, levels=levels, colors=["#ffb454"], linewidths=0.7, linestyles="solid")
    octaves = np.log2(np.maximum(cut(field.jacobian(), plane), 1e-3))
    axes[1].imshow(blended(diverging(octaves), shown, octaves))
    doubt = axes[2].imshow(cut(whole.uncertainty, plane), cmap="magma", vmin=0, vmax=10)
    bar = picture.colorbar(doubt, ax=axes[2], shrink=0.8)
    bar.ax.tick_params(colors=DIM, labelsize=7)
    save(picture, "warp.png")


if __name__ == "__main__":
    main()
