"""Numbers over the rows of a benchmark. Pure functions: rows in, numbers out.

A failed run has no measures, and it is the hard cases that fail. So every summary counts the failures, and
methods are compared over the pairs that both have finished. JSON has no infinity: a row whose labels were
scored but whose HD95 is null lost a label, and counts as infinitely far here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from regkit.bench.result_rows import Row
from regkit.core.errors import RegkitError

UNREGISTERED = "unregistered"
_MIN_DIFFERENCES = 6  # of n differences the least two-sided p is 2 / 2^n: 0.0625 for five
_THIRTY = {"dice": 0.3, "hd95_voxels": 0.3, "sdlogj": 0.7}


@dataclass(frozen=True)
class Spread:
    """Values over the pairs: quantiles interpolate linearly, ``std`` divides by n, as numpy does.

    ``thirty`` is what Learn2Reg calls so: the 0.3-quantile, of its SDlogJ the 0.7-quantile.
    """

    count: int
    median: float
    lower: float
    upper: float
    mean: float
    std: float
    thirty: float


@dataclass(frozen=True)
class Comparison:
    """Of a method's mean Dice with the baseline's, over the ``pairs`` that both finished.

    ``difference`` is the median of method minus baseline. ``p`` is of Wilcoxon's signed-rank test,
    two-sided, None if fewer than six pairs differ: below six it cannot reach 0.05. ``corrected`` is ``p``
    after Holm, over all methods of the direction that have one.
    """

    pairs: int
    difference: float
    wins: int
    losses: int
    ties: int
    p: float | None
    corrected: float | None = None


@dataclass(frozen=True)
class Summary:
    """A method in a direction; None is what no pair has.

    Args:
        ok, failed: pairs.
        dice, hd95: of the means over the labels; HD95 in mm.
        with_failures: mean Dice in which a pair that failed has what the headers alone give; None if none
            failed.
        before: the same Dice by the headers alone.
        learn2reg: the challenge's own measures, by their names in the rows.
        folding: per cent of voxels; ``folding_worst`` of the worst pair.
        sdlogj, tre, agreement, seconds: medians, ``tre`` in mm; ``agreement`` is that of the images.
        peak_mb: of the pair that took most.
        against: the baseline; None for itself, or if they share no pair with labels.
    """

    direction: str
    method: str
    ok: int
    failed: int = 0
    dice: Spread | None = None
    hd95: Spread | None = None
    with_failures: float | None = None
    before: float | None = None
    folding: float | None = None
    folding_worst: float | None = None
    sdlogj: float | None = None
    learn2reg: Mapping[str, Spread] = field(default_factory=dict)
    tre: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    against: Comparison | None = None


def summary(rows: Sequence[Row], baseline: str) -> list[Summary]:
    """Each direction and method, in the order of first appearance, directions together."""
    summaries = []
    for direction in distinct(row["direction"] for row in rows):
        here = [row for row in rows if row["direction"] == direction]
        summaries += corrected(
            [_summary(here, method, baseline) for method in distinct(r["method"] for r in here)]
        )
    return summaries


def unregistered(rows: Sequence[Row], direction: str) -> Summary:
    """What the headers alone give, of the pairs for which any method has measured it."""
    cases: dict[str, Row] = {}
    for row in rows:
        if row["direction"] == direction and {"mean_dice", "tre_mm", "agreement"} & set(row):
            cases.setdefault(row["case"], row)
    each = list(cases.values())
    dice = _known(each, lambda row: mean_dice(row, "before"))
    return Summary(
        direction,
        UNREGISTERED,
        len(each),
        dice=spread(dice),
        hd95=spread(_known(each, lambda row: mean_hd95(row, "before"))),
        before=_median(dice),
        tre=_median(_known(each, lambda row: measured_value(row, "tre_mm", "before"))),
        agreement=_median(_known(each, lambda row: measured_value(row, "agreement", "before"))),
    )


def chosen_baseline(rows: Sequence[Row], name: str | None) -> str:
    """The method to compare with: the one that is named, else "mind", else the first.

    Raises:
        RegkitError: if no row is of the named one.
    """
    methods = distinct(row["method"] for row in rows)
    if name is not None and name not in methods:
        raise RegkitError(
            f"no results of the method '{name}' to compare with; available: {', '.join(methods)}"
        )
    return name or ("mind" if "mind" in methods else methods[0])


def mean_dice(row: Row, state: str = "after") -> float | None:
    return measured_value(row, "mean_dice", state)


def mean_hd95(row: Row, state: str = "after") -> float | None:
    """In mm; infinite where a label was lost."""
    return _distance(row, "mean_hd95_mm", state, mean_dice(row, state))


def learn2reg(row: Row, name: str) -> float | None:
    if name == "hd95_voxels":
        return _distance(row, "learn2reg", name, measured_value(row, "learn2reg", "dice"))
    return measured_value(row, "learn2reg", name)


def measured_value(row: Row, *path: str) -> float | None:
    """A number of a row; None if it is absent, null or not a number."""
    value: object = row
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if not isinstance(value, int | float) or math.isnan(value) else float(value)


def label_dice(row: Row) -> dict[str, float | None]:
    """Dice by name; labels of one name in one row are told apart by their numbers."""
    labels = row.get("labels") or []
    names = Counter(label["name"] for label in labels)
    return {
        label["name"] if names[label["name"]] == 1 else f"{label['name']} ({label['label']})": measured_value(
            label, "dice"
        )
        for label in labels
    }


def finished(row: Row) -> bool:
    return row.get("status") == "ok"


def distinct(values: Iterable[str]) -> list[str]:
    """In the order of first appearance."""
    return list(dict.fromkeys(values))


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which "pair 10" comes after "pair 9"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def quantile(values: Iterable[float], share: float) -> float:
    """As ``numpy.quantile``, but right for infinite values too."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return low if low == high else low + (at - math.floor(at)) * (high - low)


def spread(values: Sequence[float], thirty: float = 0.3) -> Spread | None:
    """None of no values; ``std`` is NaN if one is infinite."""
    if not values:
        return None
    median, lower, upper = (quantile(values, share) for share in (0.5, 0.25, 0.75))
    std = float(np.std(values)) if np.isfinite(values).all() else math.nan
    mean = float(np.mean(values))
    return Spread(len(values), median, lower, upper, mean, std, quantile(values, thirty))


def compare(one: Mapping[str, float], other: Mapping[str, float]) -> Comparison | None:
    """Two methods by their Dice of each case; None if they share none."""
    # Rounded: what differs by the rounding of a mean is a tie.
    differences = [round(value - other[case], 9) for case, value in one.items() if case in other]
    if not differences:
        return None
    signs = Counter(np.sign(differences).tolist())
    p = None
    if signs[1] + signs[-1] >= _MIN_DIFFERENCES:
        from scipy.stats import wilcoxon

        p = float(wilcoxon([difference for difference in differences if difference]).pvalue)
    return Comparison(len(differences), quantile(differences, 0.5), signs[1], signs[-1], signs[0], p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of several p values, in their order."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        largest = max(largest, (len(p) - rank) * p[at])
        adjusted[at] = min(1.0, largest)
    return adjusted


def corrected(summaries: Sequence[Summary]) -> list[Summary]:
    """The summaries of one direction with their p values corrected for one another."""
    tested = [s.method for s in summaries if s.against and s.against.p is not None]
    raw = [s.against.p for s in summaries if s.against and s.against.p is not None]
    by_method = dict(zip(tested, holm(raw)))
    return [
        replace(s, against=replace(s.against, corrected=by_method[s.method]))
        if s.against and s.method in by_method
        else s
        for s in summaries
    ]


def _summary(rows: Sequence[Row], method: str, baseline: str) -> Summary:
    """Rows: all of one direction."""
    mine = [row for row in rows if row["method"] == method]
    ok = [row for row in mine if finished(row)]
    folding = _known(ok, lambda row: measured_value(row, "folding_percent"))
    official = {
        name: spread(_known(ok, lambda row, name=name: learn2reg(row, name)), share)  # type: ignore[misc]
        for name, share in _THIRTY.items()
    }
    return Summary(
        rows[0]["direction"],
        method,
        len(ok),
        len(mine) - len(ok),
        spread(_known(ok, mean_dice)),
        spread(_known(ok, mean_hd95)),
        _with_failures(rows, mine),
        _median(_known(ok, lambda row: mean_dice(row, "before"))),
        float(np.mean(folding)) if folding else None,
        max(folding, default=None),
        _median(_known(ok, lambda row: measured_value(row, "sd_log_jacobian"))),
        {name: summarised for name, summarised in official.items() if summarised},
        _median(_known(ok, lambda row: measured_value(row, "tre_mm", "after"))),
        _median(_known(ok, lambda row: measured_value(row, "agreement", "after"))),
        _median(_known(ok, lambda row: measured_value(row, "seconds", "total"))),
        max(_known(ok, lambda row: measured_value(row, "peak_mb")), default=None),
        None if method == baseline else compare(_by_case(rows, method), _by_case(rows, baseline)),
    )


def _with_failures(rows: Sequence[Row], mine: Sequence[Row]) -> float | None:
    """Rows: all of one direction, since only what has finished has measured the headers alone."""
    before = {row["case"]: dice for row in rows if (dice := mean_dice(row, "before")) is not None}
    failed = [row["case"] for row in mine if not finished(row)]
    values = _known([row for row in mine if finished(row)], mean_dice)
    if not failed or not (values or before):
        return None
    return float(np.mean([*values, *(before.get(case, 0.0) for case in failed)]))


def _by_case(rows: Iterable[Row], method: str) -> dict[str, float]:
    return {
        row["case"]: dice
        for row in rows
        if row["method"] == method and finished(row) and (dice := mean_dice(row)) is not None
    }


def _known(rows: Iterable[Row], read: Callable[[Row], float | None]) -> list[float]:
    return [value for row in rows if (value := read(row)) is not None]


def _median(values: Sequence[float]) -> float | None:
    return quantile(values, 0.5) if values else None


def _distance(row: Row, part: str, name: str, dice: float | None) -> float | None:
    distance = measured_value(row, part, name)
    lost = distance is None and dice is not None and name in (row.get(part) or {})
    return math.inf if lost else distance
