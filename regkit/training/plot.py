"""The losses of a run, and its scores where it was validated, as a picture."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regkit.io.atomic import atomic_path
from regkit.viz.colours import DIM, INK, PALE

_COLOURS = ("#ffb454", "#7ad7f0", "#ff6f91", "#9be564", "#c792ea")
_NOT_LOSSES = ("step", "gradient", "learning_rate", "seconds_per_step")
_POINTS = 200  # of the smoothed line, at most


def plot_losses(log: Path, picture: Path, chosen: Sequence[str] | None = None) -> bool:
    """Draw ``log.csv`` of a run, a panel for each loss, and ``validation.csv`` beside it, if there is one.

    Args:
        chosen: columns of ``validation.csv``; by default all.

    Returns:
        False where matplotlib or a line to draw is missing.

    Raises:
        RegkitError: if the picture cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    columns = _columns(log)
    if len(columns.get("step", ())) < 2:
        return False
    scores = _columns(log.with_name("validation.csv"))
    shown = [name for name in scores if (name != "step" if chosen is None else name in chosen)]

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in columns if name not in _NOT_LOSSES]
    panels = [*names, *shown]
    figure = Figure((3.4 * len(panels), 2.8), dpi=120, facecolor=INK, layout="constrained")
    FigureCanvasAgg(figure)
    window = max(1, len(columns["step"]) // _POINTS)
    for k, name in enumerate(panels):
        ax = figure.add_subplot(1, len(panels), k + 1, facecolor=INK)
        colour = _COLOURS[k % len(_COLOURS)]
        if name in scores:
            ax.plot(scores["step"], scores[name], color=colour, linewidth=1.4, marker=".")
        else:
            ax.plot(columns["step"], columns[name], color=colour, alpha=0.25, linewidth=0.6)
            smooth = (_means(columns[column], window) for column in ("step", name))
            ax.plot(*smooth, color=colour, linewidth=1.4)
        ax.set_title(name, color=PALE, size=10)
        ax.set_xlabel("step", color=DIM, size=8)
        ax.tick_params(colors=DIM, labelsize=7)
        ax.spines[:].set_visible(False)
        ax.grid(color=DIM, alpha=0.2, linewidth=0.5)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, facecolor=INK)
    return True


def _columns(table: Path) -> dict[str, np.ndarray]:
    """The columns of a table of numbers by name; none where there is no table."""
    if not table.exists():
        return {}
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    return {name: np.asarray(values, dtype=np.float64) for name, *values in zip(*rows)}


def _means(values: np.ndarray, window: int) -> np.ndarray:
    """Means of consecutive windows; what is left over counts to none."""
    return values[: len(values) // window * window].reshape(-1, window).mean(1)
