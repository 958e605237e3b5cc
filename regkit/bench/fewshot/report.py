"""The tables of a few-shot benchmark, from its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regkit.bench.fewshot.layout import Layout
from regkit.bench.fewshot.run import ARMS
from regkit.bench.report import table
from regkit.bench.result_rows import Row, read_rows, read_run
from regkit.core.errors import RegkitError
from regkit.io.atomic import atomic_path

REPORT = "report.md"
_DRAWS = 2000
_SUBJECT = tuple[int, str]  # the seed, and the test volume


def write_few_shot_report(folder: Path, layout: Layout) -> Path:
    """Write ``report.md`` of a results folder over the one that is there.

    Raises:
        RegkitError: if there are no rows.
    """
    run, rows = read_run(folder), read_rows(folder)
    if not rows:
        raise RegkitError(f"'{folder}' has no results yet")
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(markdown(rows, run, layout), encoding="utf-8")
    return folder / REPORT


def summary(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: arms by numbers of volumes, mean Dice with its bootstrapped deviation.

    Below them, the pretrained network against each other arm on the same draws and test volumes.
    """
    rows = [row for row in rows if row["status"] == "ok"]
    shots = sorted({row["shots"] for row in rows})
    arms = [arm for arm in ARMS if any(row["method"] == arm for row in rows)]
    lines = []
    for arm in arms:
        cells = [_of(rows, arm, count) for count in shots]
        lines.append([arm, *(_cell(values, lambda v, d: f"{v:.3f} ({d:.3f})") for values in cells)])
    for other in arms[1:] if arms and arms[0] == ARMS[0] else ():
        pairs = [_difference(_of(rows, ARMS[0], count), _of(rows, other, count)) for count in shots]
        lines.append(
            [f"{ARMS[0]} - {other}", *(_cell(values, lambda v, d: f"{v:+.3f} ({d:.3f})") for values in pairs)]
        )
    return ["mean Dice", *(f"{n} volume{'s' if n > 1 else ''}" for n in shots)], lines


def markdown(rows: Sequence[Row], run: Mapping[str, Any], layout: Layout) -> str:
    """The whole of ``report.md``."""
    fine = [row for row in rows if row["status"] == "ok"]
    parts = [f"# Few-shot segmentation: {layout.title}"]
    parts.append("\n".join(f"    {command}" for command in run["commands"]))
    facts = [f"- data: {layout.source}"]
    for part in ("versions", "machine", "options"):
        facts.append(f"- {part}: " + "; ".join(f"{k} {v}" for k, v in run[part].items() if v is not None))
    parts.append("\n".join(facts))
    parts.append(
        "Means over the labels, the test volumes and the draws; in brackets the standard deviation of that "
        "mean by bootstrap, over draws and the test volumes of each. Test volumes are all that were not "
        "learnt from (or those held out for good, where there are many); none of them chose the weights: "
        "the last ones count. Both networks have the same architecture, steps, rate and augmentation."
    )
    parts.append(table(*summary(rows)))
    parts.append("## Time, seconds\n\n" + table(*_times(fine)))
    parts.append("## Dice of each label\n\n" + table(*_labels(fine)))
    parts.append("## Every draw\n\n" + table(*_every(fine)))
    failed = [[r["method"], r["direction"], r["error"]] for r in rows if r["status"] != "ok"]
    if failed:
        parts.append("## Failures\n\n" + table(["arm", "draw", "error"], failed))
    return "\n\n".join(parts) + "\n"


def bootstrapped(values: Mapping[_SUBJECT, float]) -> float:
    """The standard deviation of a mean over draws, and over test volumes in each."""
    random = np.random.default_rng(0)
    seeds = sorted({seed for seed, _ in values})
    groups = [np.array([v for (s, _), v in values.items() if s == seed]) for seed in seeds]
    means = np.empty(_DRAWS)
    for k in range(_DRAWS):
        chosen = [groups[g] for g in random.integers(len(groups), size=len(groups))]
        means[k] = np.concatenate(
            [group[random.integers(len(group), size=len(group))] for group in chosen]
        ).mean()
    return float(means.std())


def _of(rows: Sequence[Row], arm: str, shots: int) -> dict[_SUBJECT, float]:
    return {
        (row["seed"], test["subject"]): test["dice"]
        for row in rows
        if row["method"] == arm and row["shots"] == shots
        for test in row["tests"]
    }


def _difference(one: Mapping[_SUBJECT, float], other: Mapping[_SUBJECT, float]) -> dict[_SUBJECT, float]:
    return {subject: one[subject] - other[subject] for subject in one if subject in other}


def _cell(values: Mapping[_SUBJECT, float], text: Callable[[float, float], str]) -> str:
    if not values:
        return "-"
    cell = text(float(np.mean(list(values.values()))), bootstrapped(values))
    return cell if len(set(values.values())) > 1 else cell.split()[0]  # of one value, no deviation


def _times(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for arm in ARMS:
        mine = [row for row in rows if row["method"] == arm]
        if mine:
            training = np.mean([row["seconds"]["training"] for row in mine])
            each = sum(row["seconds"]["segmenting"] for row in mine) / sum(len(row["tests"]) for row in mine)
            lines.append([arm, f"{training:.0f}", f"{each:.1f}"])
    return ["arm", "training", "segmenting a volume"], lines


def _labels(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    columns = sorted({(row["shots"], ARMS.index(row["method"])) for row in rows})
    names = list(dict.fromkeys(name for row in rows for test in row["tests"] for name in test["labels"]))
    lines = []
    for name in names:
        cells = []
        for shots, arm in columns:
            means = [
                test["labels"][name]
                for row in rows
                if (row["shots"], row["method"]) == (shots, ARMS[arm])
                for test in row["tests"]
                if test["labels"].get(name) is not None
            ]
            cells.append(f"{np.mean(means):.3f}" if means else "-")
        lines.append([name, *cells])
    return ["label", *(f"{ARMS[arm]}, {shots}" for shots, arm in columns)], lines


def _every(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    lines = [
        [row["direction"], ", ".join(row["training"]), row["method"], test["subject"], f"{test['dice']:.3f}"]
        for row in sorted(rows, key=lambda row: (row["shots"], row["seed"], ARMS.index(row["method"])))
        for test in row["tests"]
    ]
    return ["draw", "learnt from", "arm", "test volume", "Dice"], lines
