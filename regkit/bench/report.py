"""The report of a benchmark: ``report.md``, ``results.csv`` and ``dice.png``, made of the rows alone."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regkit.bench.boxplot import draw
from regkit.bench.published import published
from regkit.bench.result_rows import Row, key, read_rows, read_run
from regkit.bench.statistics import (
    UNREGISTERED,
    Spread,
    Summary,
    chosen_baseline,
    distinct,
    finished,
    label_dice,
    learn2reg,
    mean_dice,
    mean_hd95,
    measured_value,
    natural,
    summary,
    unregistered,
)
from regkit.core.errors import RegkitError
from regkit.io.atomic import atomic_path, make_folder

REPORT, TABLE, PICTURE = "report.md", "results.csv", "dice.png"
_NONE = "-"
_NAMES = ("dataset", "case", "direction", "method", "status", "error")

_AGREEMENT = {"agreement": "after", "agreement_before": "before"}

Column = tuple[str, Callable[[Summary], str]]


def report(folder: Path, output: Path | None = None, baseline: str | None = None) -> Path:
    """Write the tables and the box plot of a results folder over those that are there.

    Args:
        folder: with ``run.json`` and ``results.jsonl``, which are only read.
        output: where to write; the same folder by default.
        baseline: the method to compare with; "mind" by default, or the first if there is none.

    Returns:
        The path of ``report.md``.

    Raises:
        RegkitError: if there are no rows, they do not belong together, or no row is of the baseline; nothing
            is written then.
    """
    run, rows = read_run(folder), read_rows(folder)
    if not rows:
        raise RegkitError(f"the run in '{folder}' has no finished pairs yet")
    _check(folder, run, rows)
    baseline = chosen_baseline(rows, baseline)
    place = output or folder
    make_folder(place)
    table = results_csv(rows)
    drawn = draw(rows, published_for(run), place / PICTURE)
    text = markdown(rows, run, baseline, PICTURE if drawn else None)
    for name, content in ((TABLE, table), (REPORT, text)):
        with atomic_path(place / name) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="")
    return place / REPORT


def compact(rows: Sequence[Row], baseline: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table for a terminal, a line for each method and direction."""
    baseline = chosen_baseline(rows, baseline)
    lines = _with_unregistered(rows, baseline)
    columns: list[Column] = [
        ("method", lambda s: s.method),
        ("direction", lambda s: s.direction),
        ("pairs", lambda s: f"{s.ok}/{s.ok + s.failed}" if s.failed else str(s.ok)),
        ("Dice", lambda s: _number(s.dice.median if s.dice else None, 3)),
        ("HD95 mm", lambda s: _number(s.hd95.median if s.hd95 else None, 1)),
        ("TRE mm", lambda s: _number(s.tre, 2)),
        ("agreement", lambda s: _number(s.agreement, 3)),
        ("folding %", lambda s: _percent(s.folding)),
        ("s", lambda s: _number(s.seconds, 1)),
        ("MB", lambda s: _number(s.peak_mb, 0)),
        (f"vs {baseline}", lambda s: _number(s.against.difference if s.against else None, 3, "+")),
        ("p", lambda s: _p(s.against.corrected if s.against else None)),
    ]
    return _cells(columns, lines)


def markdown(rows: Sequence[Row], run: Mapping[str, Any], baseline: str, picture: str | None = None) -> str:
    """The whole of ``report.md``.

    Args:
        picture: the name of the box plot, if there is one.
    """
    from regkit.bench.datasets import DATASETS

    known = DATASETS.get(run["dataset"])
    parts = [f"# Benchmark: {_plain(known.title if known else run['dataset'])}"]
    parts += [known.note] if known and known.note else []
    if run.get("made_up"):
        parts.append(
            "**The volumes are made up, to rehearse the benchmark. Nothing here is about patients.**"
        )
    parts.append("\n".join(f"    {command}" for text in run["commands"] for command in text.splitlines()))
    facts = [f"- data set: {run['dataset']}"]
    for part in ("versions", "machine", "options"):
        facts.append(
            f"- {part}: "
            + "; ".join(f"{k} {_NONE if v is None else v}" for k, v in (run.get(part) or {}).items())
        )
    parts.append("\n".join(map(_plain, facts)))
    parts.append(
        "Dice and HD95 are of a pair's means over its labels. Medians stand with [quartiles], means with "
        "standard deviations; folding is the mean and the worst pair. A failed run has no measures, so a "
        "method's numbers are of the pairs that it finished, but for the mean in which a failure leaves the "
        "images as they were."
    )
    if (run.get("options") or {}).get("start") == "linear":
        parts.append("All methods began from one linear start; its time is not counted.")
    for direction in distinct(row["direction"] for row in rows):
        parts += _direction(rows, published_for(run), direction, baseline)
    if picture:
        parts += ["## Dice of every pair", f"![Box plot of Dice]({picture})"]
    failed = [row for row in rows if not finished(row)]
    lines = [[r["method"], r["direction"], r["case"], _first_line(r.get("error"))] for r in failed]
    if failed:
        parts += ["## Failures", table(["method", "direction", "pair", "error"], lines)]
    if skipped := run.get("skipped"):
        parts += ["## Left out", table(["method", "reason"], [[*item] for item in skipped.items()])]
    parts += ["## Methods", table(["method", "version", "what it was given"], _about(rows, run))]
    return "\n\n".join(parts) + "\n"


def results_csv(rows: Sequence[Row]) -> str:
    """A line for each row; columns that no row has are left out, but for those that name it."""
    flat = []
    for row in rows:
        line: dict[str, Any] = {name: row.get(name) for name in _NAMES}
        line |= {"dice": mean_dice(row), "dice_before": mean_dice(row, "before")}
        line |= {"hd95_mm": mean_hd95(row), "hd95_before_mm": mean_hd95(row, "before")}
        line |= {name: measured_value(row, name) for name in ("folding_percent", "sd_log_jacobian")}
        line |= {f"learn2reg_{name}": learn2reg(row, name) for name in ("dice", "hd95_voxels", "sdlogj")}
        line |= {
            "tre_mm": measured_value(row, "tre_mm", "after"),
            "tre_before_mm": measured_value(row, "tre_mm", "before"),
        }
        line |= {name: measured_value(row, "agreement", state) for name, state in _AGREEMENT.items()}
        line["seconds_total"] = measured_value(row, "seconds", "total")
        line["peak_mb"] = measured_value(row, "peak_mb")
        line |= {f"seconds {name}": value for name, value in (row.get("seconds") or {}).items()}
        line |= {f"version {name}": value for name, value in (row.get("versions") or {}).items()}
        line |= {f"dice {name}": value for name, value in label_dice(row).items()}
        line.pop("seconds total", None)
        flat.append(line)
    names = distinct(name for line in flat for name in line)
    # Stages, versions and labels come up row by row; the sort is stable and keeps each kind together.
    kinds = ("seconds ", "version ", "dice ")
    names.sort(key=lambda name: next((k for k, kind in enumerate(kinds) if name.startswith(kind)), -1))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def published_for(run: Mapping[str, Any]) -> str:
    """The data set whose published numbers may stand beside a run; none of made-up volumes."""
    return "" if run.get("made_up") else run["dataset"]


def _direction(rows: Sequence[Row], dataset: str, direction: str, baseline: str) -> list[str]:
    """The tables of one direction."""
    here = [row for row in rows if row["direction"] == direction]
    lines = _with_unregistered(here, baseline)
    parts = [f"## {_plain(direction)}", table(*_cells(_columns(baseline), lines))]
    if any(line.against for line in lines):
        parts.append(
            f"Against {_plain(baseline)}: the median of the differences of Dice over the pairs that both "
            "finished, how many are better, worse and equal, and p of Wilcoxon's signed-rank test, "
            "two-sided, Holm-corrected over the methods of this table; a dash where fewer than six pairs "
            "differ, which cannot reach 0.05."
        )
    if others := published(dataset, direction):
        cells = [
            [o.name, o.statistic, _number(o.value, 3), str(o.pairs), _percent(o.folding_percent), o.source]
            for o in others
        ]
        parts += [
            "### Published",
            table(["method", "of Dice", "Dice", "pairs", "folding %", "source"], cells),
        ]
        parts.append("These were measured by others, with their code on other hardware, not by this run.")
    methods = distinct(row["method"] for row in here)
    by_key = {(row["case"], row["method"]): row for row in here}
    cases = sorted({row["case"] for row in here}, key=natural)
    if any(mean_dice(row) is not None for row in here):
        cells = [[case, *(_dice_cell(by_key.get((case, method))) for method in methods)] for case in cases]
        parts += ["### Dice of each pair", table(["pair", *methods], cells)]
    values: dict[tuple[str, str], list[float]] = {}
    for row in filter(finished, here):
        for name, value in label_dice(row).items():
            values.setdefault((name, row["method"]), []).extend([] if value is None else [value])
    if names := distinct(name for name, _ in values):
        cells = [[name, *(_mean(values.get((name, m), ())) for m in methods)] for name in names]
        parts += ["### Mean Dice of each label, over the pairs that a method finished"]
        parts += [table(["label", *methods], cells)]
    return parts


def _columns(baseline: str) -> list[Column]:
    return [
        ("method", lambda s: s.method),
        ("pairs", lambda s: str(s.ok)),
        ("failed", lambda s: str(s.failed) if s.method != UNREGISTERED else _NONE),
        ("Dice, median", lambda s: _quartiles(s.dice, 3)),
        ("mean", lambda s: _deviation(s.dice, 3)),
        ("mean, failures as unregistered", lambda s: _number(s.with_failures, 3)),
        ("Dice30", lambda s: _number(s.dice.thirty if s.dice else None, 3)),
        ("HD95 mm, median", lambda s: _quartiles(s.hd95, 1)),
        ("folding %, mean / worst", lambda s: _joined(_percent(s.folding), _percent(s.folding_worst))),
        ("SDlogJ", lambda s: _number(s.sdlogj, 3)),
        ("Learn2Reg Dice (30)", lambda s: _thirty(s.learn2reg.get("dice"), 3)),
        ("HD95 voxels (30)", lambda s: _thirty(s.learn2reg.get("hd95_voxels"), 2)),
        ("SDlogJ (30)", lambda s: _thirty(s.learn2reg.get("sdlogj"), 3)),
        ("TRE mm", lambda s: _number(s.tre, 2)),
        ("agreement", lambda s: _number(s.agreement, 3)),
        ("s", lambda s: _number(s.seconds, 1)),
        ("peak MB", lambda s: _number(s.peak_mb, 0)),
        (f"vs {baseline}", lambda s: _number(s.against.difference if s.against else None, 3, "+")),
        (
            "better / worse / equal",
            lambda s: f"{s.against.wins} / {s.against.losses} / {s.against.ties}" if s.against else _NONE,
        ),
        ("p", lambda s: _p(s.against.corrected if s.against else None)),
    ]


def _with_unregistered(rows: Sequence[Row], baseline: str) -> list[Summary]:
    """The summaries, each direction after what its headers alone give."""
    lines: list[Summary] = []
    summaries = summary(rows, baseline)
    for direction in distinct(line.direction for line in summaries):
        before = unregistered(rows, direction)
        lines += [before] if before.ok else []
        lines += [line for line in summaries if line.direction == direction]
    return lines


def _cells(columns: Sequence[Column], lines: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, without the columns that nobody has."""
    table = [(heading, [cell(line) for line in lines]) for heading, cell in columns]
    table = [(heading, cells) for heading, cells in table if set(cells) != {_NONE}]
    return [heading for heading, _ in table], [list(row) for row in zip(*(cells for _, cells in table))]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: object) -> str:
    """As it is, also in a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _about(rows: Sequence[Row], run: Mapping[str, Any]) -> list[list[str]]:
    """Every method that was run or left out: its name, its version, and what it was given to be fair."""
    notes = run.get("notes") or {}
    made_by: dict[str, list[str]] = {}
    for row in rows:
        made_by.setdefault(row["method"], []).append((row.get("versions") or {}).get("method") or _NONE)
    return [
        [method, ", ".join(distinct(made_by.get(method, [_NONE]))), notes.get(method, _NONE)]
        for method in distinct([*made_by, *notes])
    ]


def _check(folder: Path, run: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Numbers can be compared if one regkit made them all, of one data set, each once."""
    others = {str(row.get("dataset")) for row in rows} - {run["dataset"]}
    if others:
        raise RegkitError(f"'{folder}' is of {run['dataset']}, but has rows of {', '.join(sorted(others))}")
    made_by = {
        " ".join(str(part.get(name)) for name in ("regkit", "commit") if part.get(name))
        for part in (run.get("versions") or {}, *(row.get("versions") or {} for row in rows))
    }
    if len(made_by) > 1:
        raise RegkitError(
            f"the rows in '{folder}' are of different versions of regkit and cannot be compared: "
            f"{', '.join(sorted(name or 'unknown' for name in made_by))}"
        )
    counts = Counter(key(row) for row in rows)
    (twice, count) = counts.most_common(1)[0]
    if count > 1:
        raise RegkitError(f"'{folder}' has {count} rows of {' '.join(twice)}; delete all but one")


def _first_line(text: object) -> str:
    return next((line for line in str(text or "").splitlines() if line.strip()), "unknown")


def _dice_cell(row: Row | None) -> str:
    if row is None:
        return _NONE
    return _number(mean_dice(row), 3) if finished(row) else "failed"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return _NONE if value is None or math.isnan(value) else f"{value:{sign}.{digits}f}"


def _percent(value: float | None) -> str:
    """To be seen: whether nothing folds at all."""
    if value is None or value >= 10:
        return _number(value, 0)
    return "<0.001" if 0 < value < 0.001 else f"{value:.2g}"


def _p(value: float | None) -> str:
    return "<0.001" if value is not None and value < 0.001 else _number(value, 3)


def _mean(values: Sequence[float]) -> str:
    return _number(float(np.mean(values)), 3) if values else _NONE


def _joined(one: str, other: str) -> str:
    return _NONE if one == other == _NONE else f"{one} / {other}"


def _quartiles(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return _NONE
    return f"{spread.median:.{digits}f} [{spread.lower:.{digits}f}, {spread.upper:.{digits}f}]"


def _deviation(spread: Spread | None, digits: int) -> str:
    return _NONE if spread is None else f"{spread.mean:.{digits}f} \u00b1 {spread.std:.{digits}f}"


def _thirty(spread: Spread | None, digits: int) -> str:
    return _NONE if spread is None else f"{spread.mean:.{digits}f} ({spread.thirty:.{digits}f})"
