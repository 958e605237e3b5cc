"""The losses of a run as a picture."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np

from regkit.atomic import atomic_path
from regkit.colours import DIM, INK, PALE

_COLOURS = ("#ffb454", "#7ad7f0", "#ff6f91", "#9be564", "#c792ea")
_NOT_LOSSES = ("step", "gradient", "learning_rate", "seconds_per_step")
_POINTS = 200  # of the smoothed line, at most


def plot_losses(log: Path, picture: Path) -> bool:
    """Draw ``log.csv`` of a run, a panel for each loss; False where matplotlib or a line to draw is missing.

    Raises:
        RegkitError: if the picture cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    with log.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    if len(rows) < 3:
        return False

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = np.asarray(rows[1:], dtype=np.float64)
    columns = {name: values[:, k] for k, name in enumerate(rows[0])}
    names = [name for name in columns if name not in _NOT_LOSSES]
    figure = Figure((3.4 * len(names), 2.8), dpi=120, facecolor=INK, layout="constrained")
    FigureCanvasAgg(figure)
    window = max(1, len(values) // _POINTS)
    for k, name in enumerate(names):
        ax = figure.add_subplot(1, len(names), k + 1, facecolor=INK)
        colour = _COLOURS[k % len(_COLOURS)]
        ax.plot(columns["step"], columns[name], color=colour, alpha=0.25, linewidth=0.6)
        ax.plot(_means(columns["step"], window), _means(columns[name], window), color=colour, linewidth=1.4)
        ax.set_title(name, color=PALE, size=10)
        ax.set_xlabel("step", color=DIM, size=8)
        ax.tick_params(colors=DIM, labelsize=7)
        ax.spines[:].set_visible(False)
        ax.grid(color=DIM, alpha=0.2, linewidth=0.5)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, facecolor=INK)
    return True


def _means(values: np.ndarray, window: int) -> np.ndarray:
    """Means of consecutive windows; what is left over counts to none."""
    return values[: len(values) // window * window].reshape(-1, window).mean(1)
