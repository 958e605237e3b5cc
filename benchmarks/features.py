"""Compare features in the same solver, from the same linear starts, on all open pairs that can be measured.

    python benchmarks/features.py [--pairs choosing] [--weights FILE] [--starts 5] [-o FILE]
    python benchmarks/features.py --pairs confirming      # once for each candidate that is about to be kept

The linear start of each pair and direction is found once, with MIND, and given to all, so that what differs
is the deformable stages alone. What a registration reaches hangs on its start by as much as features differ,
so each is repeated from some that are a little off, the same for all features. The first features named are
what the others are compared with. The number that leads is the mean over the pairs, both ways, of what the
features gain in Dice; beside it stand what they change in TRE, the worst pair and the worst structure. Labels
and landmarks are for measuring alone. Data as for open_pairs.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from open_pairs import DIRECTIONS, ROOT, SHARED, pair_names, run, setting, write_rows

CHOOSING = (
    "abdomen-mr-ct",
    "brain-ct-t1",
    "brain-t1-flair",
    "cord-t1-t2",
    "cord-t2-t2s",
    "headneck-ct-ct",
    "lung-ct-ct",
    "mouseskull-ct-ct",
)
"""The pairs that settings, features and weights are chosen on; all others confirm."""

MEASURES = ("dice", "tre_mm")
NAMES = ("mind", "network", "network+mind")
# How far the other starts are off: standard deviations of a shift, in a field of view of 100 mm or more,
# and of a turn about each axis.
_SHIFT_MM, _TURN_DEGREES, _FIELD_MM = 2.0, 1.0, 100.0


def linear_starts(name: str, direction: str, count: int) -> list[np.ndarray]:
    """The matrix that the search with MIND finds, and ``count`` - 1 that are off."""
    from scipy.spatial.transform import Rotation

    from regkit.io.images import load_image

    row = run(name, direction, {"preset": "linear"})
    matrix = np.array(row["linear"])
    grid = load_image(SHARED / "data" / "pairs" / name / row["settings"]["fixed"], "fixed").grid
    middle, random = grid.centre, np.random.default_rng(0)
    off_by = _SHIFT_MM * min(1.0, float(grid.extent.min()) / _FIELD_MM)
    starts = [matrix]
    for _ in range(count - 1):
        off = np.eye(4)
        off[:3, :3] = Rotation.from_rotvec(random.normal(0, np.radians(_TURN_DEGREES), 3)).as_matrix()
        off[:3, 3] = middle - off[:3, :3] @ middle + random.normal(0, off_by, 3)
        starts.append(matrix @ off)
    return starts


def kept_starts(path: Path | None, name: str, direction: str, count: int) -> list[np.ndarray]:
    """:func:`linear_starts`, from a JSON file where it has them; what it lacks is added to it."""
    known = json.loads(path.read_text()) if path and path.exists() else {}
    key = f"{name}, {direction}"
    if len(known.get(key, ())) < count:
        known[key] = [start.tolist() for start in linear_starts(name, direction, count)]
        if path:
            path.write_text(json.dumps(known))
    return [np.array(start) for start in known[key][:count]]


def chosen(names: Sequence[str]) -> list[str]:
    """Names of pairs, ``choosing`` and ``confirming`` written out."""
    groups = {"choosing": CHOOSING, "confirming": [name for name in pair_names() if name not in CHOOSING]}
    return [pair for name in names for pair in groups.get(name, [name])]


@dataclass(frozen=True)
class Gain:
    """What features reach on a pair, one way, and what they gain over the reference.

    Args:
        title: the pair and direction.
        features: their name.
        linear, reached, gained, spread: by measure, ``dice`` and ``tre_mm``, as far as there are any: means
            over the starts before and after, of what is gained, and the standard deviation of that.
        worst: what the structure that gains least gains in Dice, and its name.
        row: of the first start.
    """

    title: str
    features: str
    linear: dict[str, float]
    reached: dict[str, float]
    gained: dict[str, float]
    spread: dict[str, float]
    worst: tuple[float, str]
    row: dict[str, Any]


def gain(rows: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> Gain:
    """Compare the rows of some starts with those of the reference from the same starts."""
    result = Gain(
        f"{rows[0]['pair']}, {rows[0]['direction']}", rows[0]["settings"]["features"], {}, {}, {}, {},
        worst_structure(rows, reference), rows[0],
    )  # fmt: skip
    for measure in MEASURES:
        ours, theirs = measured(rows, measure), measured(reference, measure)
        if ours and theirs:
            gained = ours["after"] - theirs["after"]
            result.linear[measure], result.reached[measure] = ours["linear"].mean(), ours["after"].mean()
            result.gained[measure], result.spread[measure] = gained.mean(), gained.std()
    return result


def measured(rows: Sequence[dict[str, Any]], measure: str) -> dict[str, np.ndarray]:
    """Mean Dice or TRE of each row by stage; empty if the pair has none."""
    scores = [row["metrics"].get("mean_dice") if measure == "dice" else row.get("tre_mm") for row in rows]
    return {stage: np.array([of[stage] for of in scores if of]) for stage in ("linear", "after") if scores[0]}


def worst_structure(rows: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """What the structure that gains least gains in Dice, and its name; 0 and none without labels."""
    by_name = [
        {label["name"]: label["dice"] for label in row["metrics"].get("labels", ())}
        for row in (*rows, *reference)
    ]
    changes = {}
    for name in by_name[0]:
        values = np.array([scores[name] for scores in by_name]).reshape(2, -1)
        if not np.isnan(values).any():
            changes[name] = float((values[0] - values[1]).mean())
    return min(((change, name) for name, change in changes.items()), default=(0.0, ""))


def line(one: Gain) -> str:
    cells = [one.title, one.features]
    for measure in MEASURES:
        if measure in one.reached:
            cells += [f"{one.linear[measure]:.3f}", f"{one.reached[measure]:.3f}"]
            cells.append(f"{one.gained[measure]:+.3f} ± {one.spread[measure]:.3f}")
        else:
            cells += [""] * 3
        if measure == "dice":
            cells.append(f"{one.worst[0]:+.3f} {one.worst[1]}" if one.worst[1] else "")
    evidence = one.row["metrics"]["evidence"]
    several = len(evidence) > 1
    cells.append(
        ", ".join(f"{k} {v['blur_of_match']:.2f}: {v['share']:.2f}" for k, v in evidence.items() if several)
    )
    seconds = [f"{one.row['seconds'][stage]:.1f}" for stage in ("features", "coarse", "fine")]
    cells += [f"{one.row['metrics']['folding_percent']:.4f}", *seconds]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| fixed <- moving | features | Dice linear | after | gain | worst structure | TRE mm linear | after "
    "| change | blur of match: share | folding % | s features | coarse | fine |\n"
    "|---|---|--:|--:|--:|---|--:|--:|--:|---|--:|--:|--:|--:|"
)


def summary(gains: Sequence[Gain]) -> str:
    """The number that leads, for all features but the reference."""
    lines = []
    for features in dict.fromkeys(one.features for one in gains):
        some = [one for one in gains if one.features == features]
        dice = [one for one in some if "dice" in one.gained]
        marks = [one for one in some if "tre_mm" in one.gained]
        text = f"* **{features}**:"
        if dice:
            worst = min(dice, key=lambda one: one.gained["dice"])
            structure = min(dice, key=lambda one: one.worst[0])
            mean = np.mean([one.gained["dice"] for one in dice])
            text += f" Dice {mean:+.4f} on average of {len(dice)}, worst {worst.gained['dice']:+.3f} "
            text += f"({worst.title}), worst structure {structure.worst[0]:+.3f} "
            text += f"({structure.worst[1]}, {structure.title})"
        if marks:
            ratios = [one.reached["tre_mm"] / (one.reached["tre_mm"] - one.gained["tre_mm"]) for one in marks]
            k = int(np.argmax(ratios))
            text += f"; TRE times {np.exp(np.mean(np.log(ratios))):.3f} on average of {len(marks)}, "
            text += f"at worst {ratios[k]:.3f} ({marks[k].title})"
        lines.append(text)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="of the network; by default those that come with regkit")
    parser.add_argument("--features", nargs="+", default=["mind", "network+mind"], choices=NAMES)
    parser.add_argument(
        "--pairs", nargs="+", default=["choosing"], help="names of pairs, choosing or confirming"
    )
    parser.add_argument("--preset", default="default")
    parser.add_argument("--starts", type=int, default=5, help="linear starts for each, the first as found")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--known", type=Path, help="JSON file that linear starts are kept in, and taken from")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "features")
    arguments = parser.parse_args()
    options = {"preset": arguments.preset, "threads": arguments.threads}
    lines, gains, every = [HEAD], [], []
    for name in chosen(arguments.pairs):
        for direction in DIRECTIONS:
            starts = kept_starts(arguments.known, name, direction, arguments.starts)
            reference: list[dict[str, Any]] = []
            for features in arguments.features:
                own = {**options, "features": features}
                own["weights"] = None if features == "mind" else arguments.weights
                rows = [run(name, direction, {**own, "init": start}) for start in starts]
                reference = reference or rows
                result = gain(rows, reference)
                gains += [result] if rows is not reference else []
                lines.append(line(result))
                every += rows
                print(lines[-1], flush=True)
    print(summary(gains))
    command = f"python benchmarks/features.py --pairs {' '.join(arguments.pairs)} --starts {arguments.starts}"
    command += f" --preset {arguments.preset}" if arguments.preset != "default" else ""
    if arguments.weights:
        command += f" --weights {arguments.weights.name}"
    if arguments.threads:
        command += f" --threads {arguments.threads}"
    text = "\n".join(lines)
    write_rows(every, arguments.output, f"`{command}`, {setting()}\n\n{summary(gains)}\n\n{text}")


if __name__ == "__main__":
    main()
