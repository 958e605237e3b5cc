"""Register pairs that can be right and pairs that cannot, and count what the verdict says of them.

    python benchmarks/verdict.py [--cache FILE] [--kinds mirrored noise] [--most 24] [--report]
        [-o benchmarks/results/verdict]

The pairs are those of ``benchmarks/verdict_cases.py``. What each run measured is kept in ``--cache``, outside
the repository, so that thresholds (``regkit.verdict.RULES``) can be chosen again without another run;
``--report`` only writes the table and the plot from it. Thresholds are chosen by the half "chosen" alone;
the other half, of other images, confirms.

A pair that can be right and whose result is not, by its labels, landmarks or the known map, counts neither
as right nor as wrong by its making: it is told apart, as "went wrong by itself". Likewise a pair whose given
start is off and whose result is right all the same.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_pairs import ROOT, setting, write_rows
from verdict_cases import HALVES, Pair, off, right_makers, wrong_makers

import regkit
from regkit.core.jsontext import to_json
from regkit.io.atomic import atomic_path
from regkit.verdict import LEVELS, RULES, verdict_of

CACHE = Path.home() / ".cache" / "regkit" / "verdict.json"
RIGHT_ERROR = 0.05  # of the size of the body: a result further off than this is not right
RECOVERED = 0.03  # a start that was off and ends nearer than this to the right result is none that went wrong
WORSE_DICE = 0.75  # of the best over the starts of a real pair


def run(pair: Pair) -> tuple[dict[str, Any], regkit.Registration]:
    """The row of a pair."""
    result = regkit.register(pair.fixed, pair.moving, init=pair.init, threads=1)
    row = {
        "name": pair.name, "half": pair.half, "kind": pair.kind, "right": pair.right,
        "truth": pair.truth(result) if pair.truth else {},
        "seconds": dict(result.timings),
        "voxels": int(pair.fixed.array.size),
        "values": {gate.name: gate.value for gate in result.verdict.gates},
        # What the run knows besides, for gates that might be.
        "more": {
            "linear": result.linear.tolist(),
            "start": result.settings["start"],
            "evidence": result.metrics["evidence"],
            "sd_log_jacobian": result.metrics["sd_log_jacobian"],
            "feature_difference": result.metrics["feature_difference"],
        },
    }  # fmt: skip
    return row, result


def failed(pair_name: str, half: str, kind: str, right: bool, error: Exception) -> dict[str, Any]:
    """The row of a pair that register refuses: that is an answer, too."""
    return {"name": pair_name, "half": half, "kind": kind, "right": right, "error": str(error), "values": {}}


def run_all(cache: Path, kinds: list[str] | None, limit: int) -> None:
    """Register what the cache has not, a few of every kind after the other."""
    rows = read(cache)
    by_kind: dict[str, list[tuple[str, Callable[[], Pair]]]] = {}
    for name, kind, make in (*right_makers(), *wrong_makers()):
        by_kind.setdefault(kind, []).append((name, make))
    jobs = []
    for kind, makers in by_kind.items():
        keep = len(makers) if kind.startswith(("real", "painted", "bent")) else limit
        chosen = [makers[int(k)] for k in np.unique(np.linspace(0, len(makers) - 1, keep).round())]
        jobs += [(k % 8, kind, name, make) for k, (name, make) in enumerate(chosen)]
    for _, kind, name, make in sorted(jobs, key=lambda job: job[:3]):
        if name in rows or (kinds and kind not in kinds):
            continue
        pair = make()
        try:
            rows[name], result = run(pair)
        except regkit.RegkitError as error:
            rows[name] = failed(name, pair.half, kind, pair.right, error)
        else:
            if (kind == "real" and name.endswith("start 0")) or kind == "painted trunks":
                other = off(f"{name}, start off", pair, result.linear, result.warp.transform_points)
                rows[other.name] = run(other)[0]
        level = rows[name].get("error") or verdict_of(rows[name]["values"]).level
        print(f"{kind}: {name}: {level}", flush=True)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cache) as temporary:
            temporary.write_text(to_json(rows))


def read(cache: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads(cache.read_text()) if cache.exists() else {}
    for row in rows.values():  # JSON has null for what is not a number
        row["values"] = {k: math.nan if v is None else v for k, v in row["values"].items()}
    return rows


def outcome(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of each pair "right", "wrong", "went wrong by itself" or "recovered"."""
    best: dict[str, float] = {}
    for row in rows.values():
        pair = row["name"].partition(", start")[0]
        if row["kind"] == "real" and "dice" in row["truth"]:
            best[pair] = max(best.get(pair, 0.0), row["truth"]["dice"])
    counts = {}
    for name, row in rows.items():
        truth = row.get("truth") or {}
        lost = truth.get("error", 0.0) > RIGHT_ERROR
        if row["kind"] == "real" and "dice" in truth:
            lost |= truth["dice"] < WORSE_DICE * best[name.partition(", start")[0]]
        if row["kind"] == "painted heads":
            lost |= truth["dice"] < 0.2
        if row["right"]:
            counts[name] = "went wrong by itself" if lost or "error" in row else "right"
        else:
            near = row["kind"] == "start 60 mm off" and truth.get("error", 1.0) < RECOVERED
            counts[name] = "recovered" if near else "wrong"
    return counts


def level_of(row: dict[str, Any]) -> str:
    return "FAIL" if "error" in row else verdict_of(row["values"]).level


def counted(rows: list[dict[str, Any]]) -> list[str]:
    """Pairs, and how many of them PASS, WARN and FAIL, %."""
    levels = [level_of(row) for row in rows]
    return [
        str(len(rows)), *(f"{100 * levels.count(level) / max(len(rows), 1):.0f}" for level in LEVELS)
    ]  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Error rates by outcome and half, by kind, and what each gate catches."""
    of = outcome(rows)
    text = ["| outcome | half | pairs | PASS, % | WARN, % | FAIL, % |", "|---|---|--:|--:|--:|--:|"]
    for what in ("right", "wrong", "went wrong by itself", "recovered"):
        for half in HALVES:
            some = [row for name, row in rows.items() if of[name] == what and row["half"] == half]
            text.append(f"| {what} | {half} | " + " | ".join(counted(some)) + " |")
    for what in ("wrong", "right"):
        text += ["", f"### By kind: {what}", "", "| kind | " + " | ".join(
            f"{half}: pairs | PASS, % | WARN, % | FAIL, %" for half in HALVES) + " |",
            "|---|" + "--:|" * 8]  # fmt: skip
        for kind in dict.fromkeys(row["kind"] for name, row in rows.items() if of[name] == what):
            cells = []
            for half in HALVES:
                cells += counted([
                    row for name, row in rows.items()
                    if of[name] == what and row["kind"] == kind and row["half"] == half
                ])  # fmt: skip
            text.append(f"| {kind} | " + " | ".join(cells) + " |")
    text += ["", "### By gate, on the half \"confirmed\"", "",
             "ROC: area under the curve of the gate by itself, on the half \"chosen\" and on \"confirmed\"; "
             "0.5 is nothing.", "",
             "| gate | WARN | FAIL | right: WARN, % | FAIL, % | wrong: WARN, % | FAIL, % | wrong that no "
             "other gate tells, % | ROC, chosen | ROC, confirmed |", "|---|" + "--:|" * 9]  # fmt: skip
    for name, rule in RULES.items():
        cells = []
        for what in ("right", "wrong"):
            some = [
                row
                for key, row in rows.items()
                if of[key] == what and row["half"] == HALVES[1] and row["values"]
            ]
            levels = [verdict_of({name: row["values"].get(name, math.nan)}).level for row in some]
            cells += [f"{100 * levels.count(level) / max(len(some), 1):.0f}" for level in ("WARN", "FAIL")]
        alone = sum(
            level_of(row) != "PASS"
            and verdict_of({k: v for k, v in row["values"].items() if k != name}).level == "PASS"
            for row in some
        )
        sign = "" if rule.above else "below "
        text.append(
            f"| {name} | {sign}{rule.warn:g} | {sign}{rule.fail:g} | " + " | ".join(cells)
            + f" | {100 * alone / max(len(some), 1):.0f} | "
            + " | ".join(f"{roc(rows, of, name, half):.2f}" for half in HALVES) + " |"
        )  # fmt: skip
    seconds = [row["seconds"] for row in rows.values() if row.get("seconds") and "verdict" in row["seconds"]]
    if seconds:
        share = np.array([s["verdict"] / s["total"] for s in seconds])
        text += ["", f"The verdict took {100 * np.median(share):.0f} % of a run of these small pairs "
                 f"(median), {np.median([s['verdict'] for s in seconds]):.2f} s."]  # fmt: skip
    return "\n".join(text).replace("nan", "-")


def roc(rows: dict[str, dict[str, Any]], of: dict[str, str], gate: str, half: str) -> float:
    """Area under the ROC curve of a gate between right and wrong pairs of a half, where it was measured."""
    right, wrong = (
        np.array([
            row["values"][gate] for name, row in rows.items()
            if of[name] == what and row["half"] == half and not math.isnan(row["values"].get(gate, math.nan))
        ])
        for what in ("right", "wrong")
    )  # fmt: skip
    if not (len(right) and len(wrong)):
        return math.nan
    over = wrong[:, None] - right[None]
    area = float(((over > 0) + 0.5 * (over == 0)).mean())
    return area if RULES[gate].above else 1 - area


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """The values of each gate, right pairs beside wrong ones, with its thresholds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    of, random = outcome(rows), np.random.default_rng(0)
    names = [name for name in RULES if name not in ("labels", "folding")]
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names), 4.2), constrained_layout=True)
    groups = [(what, half) for what in ("right", "wrong") for half in HALVES]
    colours = {"right": "tab:blue", "wrong": "tab:red"}
    for axis, name in zip(axes, names):
        for k, (what, half) in enumerate(groups):
            values = np.array([
                row["values"].get(name, math.nan) for key, row in rows.items()
                if of[key] == what and row["half"] == half
            ])  # fmt: skip
            values = values[np.isfinite(values)]
            across = k + random.uniform(-0.3, 0.3, len(values))
            axis.plot(across, values, ".", ms=3, color=colours[what], alpha=0.6)
        for value, style in ((RULES[name].warn, "--"), (RULES[name].fail, "-")):
            if not math.isnan(value):
                axis.axhline(value, ls=style, lw=0.8, color="black")
        if name == "size":
            axis.set_yscale("log")
        axis.set_title(f"{name}, {RULES[name].unit}".rstrip(", "), fontsize=9)
        axis.set_xticks(range(4), [f"{what}\n{half}" for what, half in groups], fontsize=6, rotation=60)
        axis.tick_params(axis="y", labelsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--kinds", nargs="+")
    parser.add_argument("--most", type=int, default=24, help="pairs of each wrong kind")
    parser.add_argument("--report", action="store_true", help="register nothing")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "verdict")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    if not arguments.report:
        run_all(arguments.cache, arguments.kinds, arguments.most)
    rows = read(arguments.cache)
    of = outcome(rows)
    short = [
        {"name": n, "half": r["half"], "kind": r["kind"], "outcome": of[n], "level": level_of(r),
         "values": {k: round(v, 3) for k, v in r["values"].items()}}
        for n, r in rows.items()
    ]  # fmt: skip
    head = f"`python benchmarks/verdict.py --most {arguments.most}`, {setting()}, 1 thread."
    write_rows(short, arguments.output, f"{head}\n\n{table(rows)}")
    draw(rows, arguments.output.with_suffix(".png"))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
