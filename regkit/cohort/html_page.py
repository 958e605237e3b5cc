"""The page of a cohort, one HTML file: how every measure is distributed, and all pairs, outliers first."""

from __future__ import annotations

import base64
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regkit.cohort.result_rows import FAILED, OK, Row, thumbnail_path
from regkit.viz.colours import DIM, INK, PALE
from regkit.viz.htmlreport import template

_MAX_PICTURES = 200  # some 6 KB each
_MIN_PAIRS = 8  # pairs of which it can be said that one stands out
_STANDS_OUT = 3.5  # robust deviations (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)
_ORDER = (FAILED, "FAIL", "WARN", "PASS")
# Of a strip, pixels: its width, its dots, the most of them above each other.
_WIDTH, _DOT, _MAX_DOTS = 560, 5, 24
# Of measures that are no gates: what they are called, and whether large values are bad.
_MEASURES = {
    "mean_dice": ("mean Dice", False),
    "mean_hd95_mm": ("mean HD95, mm", True),
    "tre_mm": ("mean TRE, mm", True),
    "sd_log_jacobian": ("SD of log J", True),
}


@dataclass(frozen=True)
class Strip:
    """How one measure is distributed over the cohort, as dots above an axis.

    Args:
        title: the measure and its unit.
        dots: x, y, pixels; level of the pair; its name and value, for whoever points at it.
        lines: x of thresholds, and "WARN" or "FAIL".
        ends: the values at both ends of the axis, as text.
        height: pixels.
    """

    title: str
    dots: list[tuple[float, float, str, str]]
    lines: list[tuple[float, str]]
    ends: tuple[str, str]
    height: int


def page_of(folder: Path, rows: Sequence[Row], values: Sequence[Mapping[str, float]]) -> str:
    """The page.

    Args:
        folder: of the cohort, with its thumbnails.
        values: what was measured of each pair, as :func:`regkit.cohort.summary.measures` tells it.
    """
    gates = {f"gate_{gate['name']}": gate for row in rows for gate in row.get("verdict", {}).get("gates", ())}
    levels = [level_of(row) for row in rows]
    directions = {name: gate["above"] for name, gate in gates.items()}
    directions |= {name: bad for name, (_, bad) in _MEASURES.items()}
    scores = _scores(values, directions)
    order = sorted(
        range(len(rows)),
        key=lambda k: (_ORDER.index(levels[k]) if levels[k] in _ORDER else len(_ORDER), -scores[k][0]),
    )
    listed = []
    for place, k in enumerate(order):
        row = rows[k]
        picture = _picture(folder, row) if place < _MAX_PICTURES and row["status"] == OK else None
        links = {kind: quote(name) for kind, name in row.get("outputs", {}).items()}
        listed.append(
            {
                "row": row,
                "level": levels[k],
                "picture": picture,
                "links": links,
                "says": [gate for gate in row.get("verdict", {}).get("gates", ()) if gate["level"] != "PASS"],
                "odd": _odd(scores[k], values[k], gates),
                "values": values[k],
            }
        )
    strips = [
        _strip(gates[name]["name"], gates[name]["unit"], name, rows, values, levels, gates[name])
        for name in gates
    ]
    strips += [
        _strip(title, "", name, rows, values, levels)
        for name, (title, _) in _MEASURES.items()
        if any(name in one for one in values)
    ]
    return str(
        template("regkit.cohort", "cohort.html.j2").render(
            colours={"ink": INK, "pale": PALE, "dim": DIM},
            counts=Counter(levels),
            levels=(*_ORDER, "pending"),
            listed=listed,
            measures=[name for name in _MEASURES if any(name in one for one in values)],
            pictures=_MAX_PICTURES,
            strips=strips,
            titles={name: title for name, (title, _) in _MEASURES.items()},
            width=_WIDTH,
        )
    )


def level_of(row: Row) -> str:
    """The verdict of a pair, "failed", or "pending"."""
    if row["status"] == OK:
        return str(row["verdict"]["level"])
    return FAILED if row["status"] == FAILED else "pending"


def _scores(values: Sequence[Mapping[str, float]], bad_above: Mapping[str, bool]) -> list[tuple[float, str]]:
    """By how many robust standard deviations the oddest measure of each pair is worse than the cohort's
    median, and which measure it is.
    """
    scores: list[tuple[float, str]] = [(0.0, "")] * len(values)
    for name, above in bad_above.items():
        known = [one[name] for one in values if name in one]
        if len(known) < _MIN_PAIRS:
            continue
        median = statistics.median(known)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in known)
        if deviation <= 1e-9 * abs(median):
            continue
        for k, one in enumerate(values):
            if name in one:
                worse = (one[name] - median) / deviation * (1 if above else -1)
                scores[k] = max(scores[k], (worse, name))
    return scores


def _odd(score: tuple[float, str], values: Mapping[str, float], gates: Mapping[str, Any]) -> str:
    """In words why a pair stands out of its cohort; empty if it does not."""
    deviations, name = score
    if deviations < _STANDS_OUT:
        return ""
    title = f"{gates[name]['name']} {gates[name]['unit']}".strip() if name in gates else _MEASURES[name][0]
    return f"{title} {values[name]:.3g}: {deviations:.1f} deviations worse than the cohort's median"


def _strip(
    title: str,
    unit: str,
    name: str,
    rows: Sequence[Row],
    values: Sequence[Mapping[str, float]],
    levels: Sequence[str],
    gate: Mapping[str, Any] | None = None,
) -> Strip:
    """The strip of one measure."""
    thresholds = [
        (float(gate[which]), which.upper()) for which in ("warn", "fail") if gate and gate[which] is not None
    ]
    known = [one[name] for one in values if name in one]
    # WARN is always seen, and FAIL where anything comes near it.
    shown = known + [value for value, which in thresholds[:1] if math.isfinite(value)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 0.0)
    span = (high - low) or max(abs(high), 1.0)
    low, high = low - 0.03 * span, high + 0.03 * span

    def x(value: float) -> float:
        return round((value - low) / (high - low) * _WIDTH, 1)

    stacks: Counter[int] = Counter()
    dots = []
    for row, one, level in zip(rows, values, levels):
        if name not in one:
            continue
        column = int(x(one[name]) // _DOT)
        stacks[column] += 1
        dots.append((x(one[name]), stacks[column], level, f"{row['pair']}: {one[name]:.4g}"))
    step = _DOT * min(1.0, _MAX_DOTS / max([*stacks.values(), 1]))
    height = int(step * max([*stacks.values(), 1])) + _DOT
    return Strip(
        f"{title}, {unit}" if unit else title,
        [(left, round(height - step * level_, 1), level, text) for left, level_, level, text in dots],
        [(x(value), which) for value, which in thresholds if low <= value <= high],
        (f"{low:.3g}", f"{high:.3g}"),
        height,
    )


def _picture(folder: Path, row: Row) -> str | None:
    with suppress(OSError):
        content = thumbnail_path(folder, row["pair"]).read_bytes()
        return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
    return None
