"""The tables and the picture of ``benchmarks/truth.py``, from its rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Row = dict[str, Any]

BINS = 10  # of stated doubt, with equally many places in each
NOTES = {
    "identity": "The copy lies where the image lies: all displacement is error. Deformable stages alone.",
    "known": "What was bent, moved, turned or scaled is to be found from the images, by linear stages too. A "
    "case counts as found where the mean error is under 1 voxel.",
    "nothing": "How far the warp moves when a change that should not matter is made; linear by linear stage.",
}


def report(rows: list[Row]) -> str:
    """All tables, errors in voxels of the fixed image."""
    parts = []
    for group, own in grouped(rows, "group").items():
        parts += [f"## {group}", NOTES[group], "Means over the cases of each method:", overview(own)]
        shared = common(own)
        if 0 < len(shared) < len(own):
            parts += ["Over the cases that all of them have:", overview(shared)]
        parts += ["Mean (95 %) by kind, of methods that have all its cases:", by_kind(own)]
        parts += ["Each case in the body, mean / 95 % / largest:", by_case(own, "body")]
        parts += ["Each case near the border, the same:", by_case(own, "border")]
    cropped = [row for row in done(rows) if row["kind"] == "cropped"]
    if cropped:
        parts += ["## Cropped: % of the fixed voxels that land in the moving field of view", imaged(cropped)]
    with_doubt = [row for row in done(rows) if row["doubt"] is not None]
    if with_doubt:
        parts += [
            "## Stated doubt",
            doubt_overview(with_doubt),
            "In bins of equally many places:",
            doubt_bins(with_doubt),
        ]
    return "\n\n".join(parts)


def grouped(rows: Iterable[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def common(rows: list[Row]) -> list[Row]:
    """The rows of those cases that every method has finished."""
    methods, finished = grouped(rows, "method"), grouped(done(rows), "case")
    return [row for row in rows if len(finished.get(row["case"], [])) == len(methods)]


def whole(rows: list[Row], kind: str, method: str) -> list[Row]:
    """A method's rows of a kind, or none where it lacks a case that another method has."""
    cases = grouped(rows, "kind")[kind]
    own = [row for row in done(cases) if row["method"] == method]
    return own if len(own) == len(grouped(cases, "case")) else []


def done(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["error"] is None]


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def values(rows: list[Row], region: str, stage: str, what: str) -> list[float]:
    """What the cases have of a measure; fewer than there are rows where some have none."""
    numbers = (row[region].get(stage) for row in done(rows))
    return [summary[what] for summary in numbers if summary is not None]


def average(numbers: list[float]) -> str:
    return f"{np.mean(numbers):.2f}" if numbers else ""


def overview(rows: list[Row]) -> str:
    """A line for each method: means over its cases."""
    lines = []
    for method, own in grouped(rows, "method").items():
        measured = [row for row in done(own) if row["body"]["after"] is not None]
        worst = max(measured, key=lambda row: row["body"]["after"]["mean"], default=None)
        below = sum(row["body"]["after"]["mean"] < 1 for row in measured)
        lines.append(
            [
                f"{method} ({', '.join(grouped(own, 'version'))})",
                str(len(own)), str(len(own) - len(done(own))), str(below),
                average(values(own, "body", "linear", "mean")),
                *(average(values(own, "body", "after", what)) for what in ("mean", "p95", "max")),
                "" if worst is None else f"{worst['body']['after']['mean']:.2f}, {worst['case']}",
                average(values(own, "border", "linear", "mean")),
                average(values(own, "border", "after", "mean")),
                f"{np.mean([row['seconds'] for row in own]):.1f}",
            ]
        )  # fmt: skip
    head = ["method", "cases", "failed", "mean under 1", "linear mean", "mean", "95 %", "largest"]
    return markdown([*head, "worst mean", "border: linear mean", "mean", "s"], lines)


def by_kind(rows: list[Row]) -> str:
    methods = grouped(rows, "method")
    lines = []
    for kind in grouped(rows, "kind"):
        line = [kind]
        for method in methods:
            mine = whole(rows, kind, method)
            mean, p95 = (average(values(mine, "body", "after", what)) for what in ("mean", "p95"))
            line.append(f"{mean} ({p95})" if mean else "")
        lines.append(line)
    return markdown(["kind", *methods], lines)


def by_case(rows: list[Row], region: str) -> str:
    methods = grouped(rows, "method")
    lines = []
    for name, own in grouped(rows, "case").items():
        by = {row["method"]: row for row in own}
        lines.append([name, *(cell(by.get(method), region) for method in methods)])
    return markdown(["case", *methods], lines)


def cell(row: Row | None, region: str = "body") -> str:
    """The error of one run: mean / p95 / max."""
    if row is None:
        return ""
    if row["error"] is not None:
        return "failed"
    after = row[region]["after"]
    return "no voxel" if after is None else " / ".join(f"{after[k]:.2f}" for k in ("mean", "p95", "max"))


def imaged(rows: list[Row]) -> str:
    stages = ("truth", "linear", "after")
    lines = (
        [row["case"], row["method"], *(f"{100 * row['imaged'][stage]:.1f}" for stage in stages)]
        for row in rows
    )
    return markdown(["case", "method", "true", "linear", "after"], lines)


def doubt_overview(rows: list[Row]) -> str:
    """Of the places that say under 1 voxel, how many are; means over cases, and the worst case."""
    lines = []
    for group, own in grouped(rows, "group").items():
        for method, mine in grouped(own, "method").items():
            right = [row["doubt"]["right_where_sure"] for row in mine]
            known = [share for share in right if share is not None]
            cells = [f"{100 * np.mean([row['doubt']['sure'] for row in mine]):.1f}"]
            cells += [f"{100 * f:.1f}" for f in (np.mean(known), min(known))] if known else ["", ""]
            lines.append([f"{group}, {method}", str(len(mine)), *cells])
    return markdown(["", "cases", "% that say under 1", "% of those that are", "in the worst case"], lines)


def binned(rows: list[Row]) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Stated doubt and error of all sampled places in bins of rising doubt."""
    sample = np.concatenate([row["doubt"]["sample"] for row in rows])
    sample = sample[np.argsort(sample[:, 0], kind="stable")]
    return [(part[:, 0], part[:, 1]) for part in np.array_split(sample, BINS)]


def doubt_bins(rows: list[Row]) -> str:
    lines = []
    for method, own in grouped(rows, "method").items():
        for doubt, error in binned(own):
            numbers = (doubt.min(), doubt.max(), doubt.mean(), error.mean(), np.percentile(error, 95))
            lines.append([method, *(f"{n:.2f}" for n in numbers), f"{100 * (error < 1).mean():.0f}"])
    return markdown(["method", "says from", "to", "mean", "error: mean", "95 %", "% under 1"], lines)


def draw(rows: list[Row], picture: Path) -> None:
    """Mean errors by kind, a dot for each method, and stated doubt against error where any is stated."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    from regkit.io.atomic import atomic_path
    from regkit.viz.colours import DIM, INK, PALE

    with_doubt = [row for row in done(rows) if row["doubt"] is not None]
    groups = grouped(rows, "group")
    panels = len(groups) + bool(with_doubt)
    tallest = max(len(grouped(own, "kind")) for own in groups.values())
    figure = Figure((5 * panels, 1.5 + 0.22 * tallest), dpi=120, facecolor=INK, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    colours = {method: f"C{k}" for k, method in enumerate(grouped(rows, "method"))}
    for ax, (group, own) in zip(axes, groups.items()):
        kinds = list(grouped(own, "kind"))
        for method in grouped(own, "method"):
            means = [values(whole(own, kind, method), "body", "after", "mean") for kind in kinds]
            # No error at all, as of a warp that a change does not move, has no place on a logarithmic axis.
            points = [(max(np.mean(m), 1e-3), k) for k, m in enumerate(means) if m]
            if points:
                ax.scatter(*zip(*points), s=22, color=colours[method], label=method, alpha=0.85)
        ax.set(xscale="log", ylim=(len(kinds) - 0.5, -0.5), title=group)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_yticks(range(len(kinds)), kinds)
        ax.set_xlabel("mean error in the body, voxels")
    if with_doubt:
        ax = axes[-1]
        for method, own in grouped(with_doubt, "method").items():
            parts = binned(own)
            doubt = [part.mean() for part, _ in parts]
            for what, style in ((np.mean, "-"), (lambda e: np.percentile(e, 95), ":")):
                line = [max(what(error), 1e-3) for _, error in parts]
                ax.plot(doubt, line, style, marker=".", color=colours[method])
        ends = [1e-2, 30]
        ax.plot(ends, ends, color=DIM, linewidth=0.8)
        ax.set(xscale="log", yscale="log", title="error against stated doubt")
        ax.set(xlabel="stated, voxels", ylabel="error, voxels: mean, dotted 95 %")
    for ax in axes:
        ax.set_facecolor(INK)
        ax.title.set(color=PALE, size=10)
        ax.xaxis.label.set(color=DIM, size=8)
        ax.yaxis.label.set(color=DIM, size=8)
        ax.tick_params(colors=DIM, labelsize=7, which="both")
        ax.spines[:].set_visible(False)
        ax.grid(color=DIM, alpha=0.2, linewidth=0.5)
    handles = {h: name for ax in axes for h, name in zip(*ax.get_legend_handles_labels())}
    unique = {name: h for h, name in handles.items()}
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=7, fontsize=8, labelcolor=PALE,
        facecolor=INK, edgecolor=INK,
    )  # fmt: skip
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, facecolor=INK)
