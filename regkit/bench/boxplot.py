"""The box plot of a benchmark, in the manner of Figure 5 of the paper of anatomix."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regkit.bench.published import Published, published
from regkit.bench.result_rows import Row
from regkit.bench.statistics import UNREGISTERED, distinct, finished, mean_dice, natural, quantile
from regkit.io.atomic import atomic_path
from regkit.viz.colours import DIM, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BOX, _PUBLISHED = "#7ad7f0", "#ffb454"
_LEGEND = "Dice: each pair (dot), median and quartiles (box), published medians (diamond)"
_LONGEST = 40  # letters of a name in the picture

Box = tuple[str, dict[str, float]]


def draw(rows: Sequence[Row], dataset: str, path: Path) -> bool:
    """Draw Dice as boxes with a dot for each pair, a panel for each direction, with published medians.

    Returns:
        False where matplotlib or any Dice is missing.

    Raises:
        RegkitError: if the picture cannot be written.
    """
    panels: dict[str, tuple[list[Box], list[Published]]] = {}
    for direction in distinct(row["direction"] for row in rows):
        boxes = _boxes([row for row in rows if row["direction"] == direction])
        others = [other for other in published(dataset, direction) if other.statistic == "median"]
        if any(values for _, values in boxes):
            panels[direction] = boxes, sorted(others, key=lambda other: -other.value)
    if not panels or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [len(boxes) + len(others) + 2.5 for boxes, others in panels.values()]
    figure = Figure((8.5, 0.25 * sum(heights) + 0.4), dpi=130, facecolor=INK, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (direction, (boxes, others)) in zip(axes, panels.items()):
        _panel(ax, boxes, others)
        pairs = len({row["case"] for row in rows if row["direction"] == direction})
        ax.set_title(f"{direction}, {pairs} pairs", color=PALE, size=10, loc="left", parse_math=False)
    axes[-1].set_xlabel(_LEGEND, color=DIM, size=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, facecolor=INK)
    return True


def _boxes(rows: Sequence[Row]) -> list[Box]:
    """What is written beside each box, and Dice by pair, the headers' first; rows of one direction."""
    before = {row["case"]: mean_dice(row, "before") for row in rows if "mean_dice" in row}
    boxes = [(UNREGISTERED, before)]
    for method in distinct(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        failed = sum(not finished(row) for row in mine)
        short = method if len(method) <= _LONGEST else method[: _LONGEST - 3] + "..."
        by_case = {row["case"]: mean_dice(row) for row in mine if finished(row)}
        boxes.append((f"{short} ({failed} failed)" if failed else short, by_case))
    return [(name, {k: v for k, v in values.items() if v is not None}) for name, values in boxes]


def _panel(ax: Axes, boxes: Sequence[Box], others: Sequence[Published]) -> None:
    names = [name for name, _ in boxes]
    names += [f"{other.name} (published, {other.pairs} pairs)" for other in others]
    cases = sorted({case for _, values in boxes for case in values}, key=natural)
    heights = dict(zip(cases, np.linspace(-0.2, 0.2, len(cases))))  # a pair's dots are at one height
    for at, (_, by_case) in enumerate(boxes):
        values = list(by_case.values())
        if not values:
            continue
        colour = _BOX if at else DIM
        low, middle, high = (quantile(values, share) for share in (0.25, 0.5, 0.75))
        reach = 1.5 * (high - low)
        ends = [value for value in values if low - reach <= value <= high + reach]
        ax.plot([min(ends), max(ends)], [at, at], color=colour, linewidth=0.8, zorder=2)
        ax.barh(at, high - low, 0.6, low, facecolor=INK, edgecolor=colour, linewidth=0.9, zorder=3)
        ax.plot([middle, middle], [at - 0.3, at + 0.3], color=colour, linewidth=2, zorder=4)
        places = [at + heights[case] for case in by_case]
        ax.scatter(values, places, s=7, color=PALE, alpha=0.75, linewidth=0, zorder=5)
    for at, other in enumerate(others, start=len(boxes)):
        line = [other.value, other.value], [-0.7, at]
        ax.plot(*line, color=_PUBLISHED, linewidth=0.6, linestyle=(0, (4, 4)), alpha=0.45, zorder=1)
        ax.scatter([other.value], [at], s=26, marker="D", color=_PUBLISHED, linewidth=0, zorder=4)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(len(names) - 0.3, -0.7)
    ax.set_xlim(0, 1)
    ax.set_xticks(np.arange(0, 1.01, 0.1))
    ax.set_facecolor(INK)
    ax.tick_params(colors=DIM, labelsize=8, length=0)
    for text in ax.get_yticklabels()[: len(boxes)]:
        text.set_color(PALE)
    ax.spines[:].set_visible(False)
    ax.grid(axis="x", color=DIM, alpha=0.2, linewidth=0.5)
