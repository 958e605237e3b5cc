"""The report of a benchmark, on rows made up so that every number is known."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

from regkit.bench import statistics
from regkit.bench.published import PUBLISHED, published
from regkit.bench.report import compact, draw, report
from regkit.bench.result_rows import ROWS, RUN, append_row, read_rows, write_run
from regkit.core.errors import RegkitError

VERSIONS = {"regkit": "0.1.0", "commit": "abc1234", "python": "3.11.9"}
RUN_JSON: dict[str, Any] = {
    "dataset": "l2r-abdomen",
    "commands": ["regkit bench run l2r-abdomen -m regkit"],
    "versions": VERSIONS,
    "machine": {"cpus": 2, "platform": "Linux", "device": "cpu"},
    "options": {"start": "own", "threads": 1, "device": "cpu", "seed": 0, "jobs": 1},
    "skipped": {"unigradicon": "pip install unigradicon"},
    "notes": {"regkit": "as it comes", "mind": "clipped | to <450> HU"},
}
A = (0.91, 0.80, 0.85, 0.15, 0.88, 0.70, 0.95, 0.60)
B = (0.81, 0.78, 0.86, 0.12, 0.80, 0.55, 0.91, 0.55)


def _row(case: int, method: str, dice: float | None, direction: str = "mr2ct", **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": "l2r-abdomen",
        "case": f"{case:04}",
        "direction": direction,
        "method": method,
        "versions": {**VERSIONS, "method": f"{method} 1.0"},
    }
    if dice is None:
        return row | {"status": "failed", "error": "\nran out | of memory\nsecond line"} | more
    labels = [("liver", dice + 0.05, 2.0), ("spleen", dice - 0.05, 4.0)]
    return (
        row
        | {
            "status": "ok",
            "mean_dice": {"before": 0.1 + case / 100, "after": dice},
            "mean_hd95_mm": {"before": 30.0, "after": 10 * (1 - dice)},
            "labels": [
                {
                    "label": k,
                    "name": n,
                    "dice_before": 0.2,
                    "dice": d,
                    "hd95_before_mm": 30.0,
                    "hd95_mm": h,
                }
                for k, (n, d, h) in enumerate(labels, start=1)
            ],
            "folding_percent": case / 10,
            "sd_log_jacobian": 0.2,
            "learn2reg": {"dice": dice, "hd95_voxels": 10 - 5 * dice, "sdlogj": case / 100},
            "seconds": {"network": 1.0 * case, "fine": 2.0, "total": case + 2.0},
            "peak_mb": 1000.0 + case,
        }
        | more
    )


def _rows(**methods: tuple[float | None, ...]) -> list[dict[str, Any]]:
    found = []
    for case in range(max(map(len, methods.values()))):
        found += [_row(case + 1, name, dice[case]) for name, dice in methods.items() if case < len(dice)]
    return found


def _folder(tmp_path: Path, rows: list[dict[str, Any]], **run: Any) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    write_run(folder, RUN_JSON | run)
    for row in rows:
        append_row(folder, row)
    return folder


def _tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table: its lines of cells, the line of dashes left out."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            cells = line.replace("\\|", "\0")[2:-2].split(" | ")
            tables[-1].append([cell.replace("\0", "|") for cell in cells])
        elif tables[-1]:
            tables.append([])
    return [[line for line in table if set(line) != {"---"}] for table in tables if table]


# ---- statistics


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 0.7, 1.0])
def test_quantiles_are_those_of_numpy(share: float, rng: np.random.Generator) -> None:
    for count in (1, 2, 5, 8):
        values = rng.uniform(size=count).tolist()
        assert statistics.quantile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-12)


def test_quantiles_of_infinite_values() -> None:
    assert statistics.quantile([1, math.inf, 2], 0.5) == 2
    assert statistics.quantile([1, math.inf], 0.5) == math.inf
    assert statistics.quantile([math.inf, math.inf, 3], 0.75) == math.inf


def test_a_summary_of_known_numbers() -> None:
    mind, regkit = statistics.summary(_rows(mind=B, regkit=A), "mind")
    assert (mind.method, regkit.method, regkit.ok, regkit.failed) == ("mind", "regkit", 8, 0)
    dice = regkit.dice
    assert dice is not None and dice.count == 8
    assert dice.median == pytest.approx(0.825)  # between 0.80 and 0.85
    assert (dice.lower, dice.upper) == pytest.approx((0.675, 0.8875))  # .60 + 3/4 .10; .88 + 1/4 .03
    assert (dice.mean, dice.std) == pytest.approx((np.mean(A), np.std(A)))
    assert dice.thirty == pytest.approx(0.71)  # .70 + 1/10 of the way to .80
    assert regkit.hd95 is not None and regkit.hd95.median == pytest.approx(1.75)
    assert regkit.before == pytest.approx(0.145)
    assert (regkit.folding, regkit.folding_worst) == pytest.approx((0.45, 0.8))
    assert regkit.sdlogj == pytest.approx(0.2)
    assert regkit.learn2reg["hd95_voxels"].thirty == pytest.approx(np.quantile(10 - 5 * np.array(A), 0.3))
    assert regkit.learn2reg["sdlogj"].thirty == pytest.approx(0.059)  # the 0.7-quantile
    assert (regkit.seconds, regkit.peak_mb, regkit.tre) == (6.5, 1008, None)


def test_a_comparison_counts_and_tests_the_differences() -> None:
    mind, regkit = statistics.summary(_rows(mind=B, regkit=A), "mind")
    assert mind.against is None
    found = regkit.against
    assert found is not None
    assert (found.pairs, found.wins, found.losses, found.ties) == (8, 7, 1, 0)
    # Differences .10 .02 -.01 .03 .08 .15 .04 .05.
    assert found.difference == pytest.approx(0.045)
    # The one negative has rank 1: 2 of 2^8 sums are at most 1, and as many on the other side.
    assert found.p == pytest.approx(4 / 256)
    assert found.p == pytest.approx(wilcoxon(np.subtract(A, B)).pvalue)
    assert found.corrected == found.p


def test_ties_count_for_neither_and_too_few_differences_are_not_tested() -> None:
    other = (*B[:3], *A[3:])
    _, regkit = statistics.summary(_rows(mind=other, regkit=A), "mind")
    assert regkit.against is not None
    assert (regkit.against.wins, regkit.against.losses, regkit.against.ties) == (2, 1, 5)
    assert regkit.against.p is None
    for count, p in ((5, None), (6, 2 / 64)):
        more = {str(k): 0.5 + k / 100 for k in range(1, count + 1)}
        found = statistics.compare({**more, "equal": 0.5}, dict.fromkeys([*more, "equal"], 0.5))
        assert found is not None and (found.wins, found.ties, found.p) == (count, 1, p)


def test_the_rounding_of_a_mean_is_a_tie() -> None:
    one = {str(k): 0.1 + 0.2 for k in range(8)}
    assert one["0"] != 0.3
    found = statistics.compare(one, dict.fromkeys(one, 0.3))
    assert found is not None
    assert (found.ties, found.wins, found.p) == (8, 0, None)


def test_differences_of_one_size_are_tested_without_a_warning() -> None:
    cases = [str(k) for k in range(8)]
    found = statistics.compare(dict.fromkeys(cases, 0.75), dict.fromkeys(cases, 0.5))
    assert found is not None and found.p == pytest.approx(2 / 256)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 -> 4, 3, 2 and 1 times that, never falling.
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_p_is_corrected_over_the_methods_of_a_direction_alone() -> None:
    rows = _rows(mind=B, regkit=A, linear=tuple(b - 0.01 * k for k, b in enumerate(B, start=1)))
    rows += [row | {"direction": "ct2mr"} for row in _rows(mind=B, regkit=A)]
    found = {(s.direction, s.method): s.against for s in statistics.summary(rows, "mind")}
    assert list(found)[3:] == [("ct2mr", "mind"), ("ct2mr", "regkit")]
    two, one, alone = found["mr2ct", "regkit"], found["mr2ct", "linear"], found["ct2mr", "regkit"]
    assert two and one and alone and two.p and one.p
    assert one.corrected == pytest.approx(2 * one.p)  # 2/256, the smaller
    assert two.corrected == pytest.approx(max(two.p, 2 * one.p))
    assert alone.corrected == alone.p == two.p


def test_failures_are_counted_and_comparisons_are_of_what_both_finished() -> None:
    rows = _rows(mind=(0.5, None, 0.6, 0.7), regkit=(0.6, 0.1, None, 0.8))
    mind, regkit = statistics.summary(rows, "mind")
    assert (mind.ok, mind.failed, regkit.ok, regkit.failed) == (3, 1, 3, 1)
    assert regkit.dice is not None and regkit.dice.median == 0.6
    assert regkit.against is not None and regkit.against.pairs == 2
    assert regkit.against.difference == pytest.approx(0.1)
    assert regkit.with_failures == pytest.approx((0.6 + 0.1 + 0.8 + 0.13) / 4)  # pair 3 by the headers: 0.13
    (whole,) = statistics.summary(_rows(mind=(0.5, 0.6)), "mind")
    assert whole.with_failures is None
    (lost,) = statistics.summary(_rows(mind=(None, None)), "mind")
    assert (lost.ok, lost.failed, lost.dice, lost.seconds, lost.against) == (0, 2, None, None, None)


def test_a_lost_label_is_infinitely_far_and_not_left_out() -> None:
    """JSON has null for infinity: leaving it out would reward a method for losing a label."""
    lost = _row(1, "mind", 0.4, mean_hd95_mm={"before": 30.0, "after": None})
    lost["learn2reg"]["hd95_voxels"] = None
    (found,) = statistics.summary([lost, _row(2, "mind", 0.8)], "mind")
    assert found.hd95 is not None and (found.hd95.count, found.hd95.upper) == (2, math.inf)
    assert found.learn2reg["hd95_voxels"].mean == math.inf
    del lost["learn2reg"]["hd95_voxels"]  # without the package it is absent
    (found,) = statistics.summary([lost, _row(2, "mind", 0.8)], "mind")
    assert found.learn2reg["hd95_voxels"].count == 1
    unscored = lost | {"mean_dice": {"before": None, "after": None}}
    (found,) = statistics.summary([unscored], "mind")
    assert found.dice is None and found.hd95 is None


def test_labels_are_named_and_told_apart() -> None:
    labels = [
        {"label": k, "name": n, "dice": d} for k, n, d in ((1, "rib", 0.5), (2, "rib", None), (3, "a", 1))
    ]
    assert statistics.label_dice({"labels": labels}) == {"rib (1)": 0.5, "rib (2)": None, "a": 1.0}
    assert statistics.label_dice({"labels": None}) == statistics.label_dice({}) == {}


def test_the_headers_alone_are_taken_once_per_pair() -> None:
    found = statistics.unregistered(_rows(mind=(None, 0.5, 0.6), regkit=(0.5, 0.6, 0.7)), "mr2ct")
    assert found.ok == 3 and found.dice is not None and found.dice.median == pytest.approx(0.12)
    assert found.hd95 is not None and found.hd95.median == 30


def test_the_baseline_is_mind_or_the_first_or_what_is_asked_for() -> None:
    rows = _rows(regkit=A, linear=B)
    assert statistics.chosen_baseline(rows, None) == "regkit"
    assert statistics.chosen_baseline(rows, "linear") == "linear"
    assert statistics.chosen_baseline(_rows(regkit=A, mind=B), None) == "mind"
    with pytest.raises(RegkitError, match=r"'mnd'.*available: regkit, linear"):
        statistics.chosen_baseline(rows, "mnd")


# ---- published


def test_the_published_numbers_say_what_they_are() -> None:
    vit = [p for p in published("l2r-abdomen", "mr2ct") if "vit" in p.name]
    assert {(p.statistic, p.value, p.pairs, p.folding_percent) for p in vit} == {
        ("mean", 0.879, 8, 0.0),
        ("median", 0.892, 8, 0.0),
    }
    assert published("l2r-abdomen", "ct2mr") == published("phantom", "mr2ct") == ()
    for numbers in PUBLISHED.values():
        for number in numbers:
            assert 0 < number.value < 1
            assert ("Figure 5" in number.source) == ("read by eye from the plot" in number.source)


# ---- the files


def test_the_report_has_every_table(tmp_path: Path) -> None:
    rows = _rows(regkit=(*A[:7], None), mind=B) + [_row(1, "mind", 0.5, "ct2mr")]
    path = report(_folder(tmp_path, rows))
    assert path == tmp_path / "results" / "report.md"
    text = path.read_text(encoding="utf-8")
    assert "    regkit bench run l2r-abdomen -m regkit\n" in text
    assert "- versions: regkit 0.1.0; commit abc1234; python 3.11.9" in text
    assert "- machine: cpus 2; platform Linux; device cpu" in text
    assert "measured by others, with their code on other hardware" in text and "](dice.png)" in text
    by_method, known, by_pair, by_label, *reverse, failures, skipped, methods = _tables(text)
    unregistered, regkit, mind = (dict(zip(by_method[0], line)) for line in by_method[1:])
    assert unregistered["Dice, median"].startswith("0.145 [")
    assert (unregistered["failed"], regkit["pairs"], regkit["failed"]) == ("-", "7", "1")
    assert regkit["Dice, median"] == "0.850 [0.750, 0.895]"
    assert regkit["mean"] == f"{np.mean(A[:7]):.3f} \u00b1 {np.std(A[:7]):.3f}"
    assert regkit["folding %, mean / worst"] == "0.4 / 0.7"
    assert (regkit["vs mind"], regkit["better / worse / equal"]) == ("+0.040", "6 / 1 / 0")
    assert (regkit["p"], mind["p"], mind["vs mind"]) == ("0.031", "-", "-")
    assert (mind["peak MB"], mind["s"], mind["SDlogJ (30)"]) == ("1008", "6.5", "0.045 (0.059)")
    assert "TRE mm" not in by_method[0]
    assert len(known) == 1 + len(PUBLISHED["l2r-abdomen"])
    assert by_pair[0] == ["pair", "regkit", "mind"] and by_pair[-1] == ["0008", "failed", "0.550"]
    assert by_label[1:] == [
        ["liver", f"{np.mean(A[:7]) + 0.05:.3f}", f"{np.mean(B) + 0.05:.3f}"],
        ["spleen", f"{np.mean(A[:7]) - 0.05:.3f}", f"{np.mean(B) - 0.05:.3f}"],
    ]
    assert len(reverse) == 3 and reverse[1] == [["pair", "mind"], ["0001", "0.500"]]  # nothing published
    assert failures[1:] == [["regkit", "mr2ct", "0008", "ran out | of memory"]]
    assert skipped[1:] == [["unigradicon", "pip install unigradicon"]]
    assert ["mind", "mind 1.0", "clipped | to &lt;450> HU"] in methods


def test_the_table_of_values_reads_back(tmp_path: Path) -> None:
    lost = _row(2, "mind", 0.5, mean_hd95_mm={"before": 30.0, "after": None})
    folder = _folder(tmp_path, [_row(1, "mind", 0.7), lost, _row(3, "mind", None)])
    report(folder, tmp_path / "made" / "here")
    with (tmp_path / "made" / "here" / "results.csv").open(encoding="utf-8", newline="") as stream:
        first, second, failed = csv.DictReader(stream)
    assert (first["dataset"], first["case"], first["method"]) == ("l2r-abdomen", "0001", "mind")
    assert (float(first["dice"]), float(first["dice_before"])) == (0.7, 0.11)
    assert (float(first["dice liver"]), float(first["learn2reg_sdlogj"])) == (0.75, 0.01)
    assert [float(first[f"seconds{name}"]) for name in (" network", " fine", "_total")] == [1, 2, 3]
    assert (first["version regkit"], first["version method"]) == ("0.1.0", "mind 1.0")
    assert (second["hd95_mm"], first["tre_mm"], first["error"]) == ("inf", "", "")
    assert (failed["status"], failed["dice"], failed["dice spleen"]) == ("failed", "", "")
    assert failed["error"] == "\nran out | of memory\nsecond line"
    assert sorted(path.name for path in folder.iterdir()) == [ROWS, RUN]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    name = "50 $ of \\frac{" + 40 * "x"  # not to be read as a formula
    report(_folder(tmp_path, [*_rows(mind=(*B, None)), _row(1, name, 0.5), _row(1, "mind", 0.5, "ct2mr")]))
    picture = imread(tmp_path / "results" / "dice.png")
    assert picture.shape[1] > 1000 and len(np.unique(picture[..., 0])) > 50


def test_a_report_is_made_again_alike_and_leaves_the_results_alone(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _rows(mind=B[:3], regkit=A[:3]))
    kept = {name: (folder / name).read_bytes() for name in (RUN, ROWS)}
    report(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {RUN, ROWS, "report.md", "results.csv", "dice.png"} and first.items() >= kept.items()
    report(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_landmarks_alone_make_a_report(tmp_path: Path) -> None:
    rows = []
    for case, tre in ((9, 3.0), (10, 5.0)):
        row = _row(case, "mind", 0.5, tre_mm={"before": 20.0, "after": tre})
        rows.append({k: v for k, v in row.items() if k[:4] not in ("mean", "labe", "lear")})
    path = report(_folder(tmp_path, rows))
    table, *others = _tables(path.read_text(encoding="utf-8"))
    unregistered, mind = (dict(zip(table[0], line)) for line in table[1:])
    assert (unregistered["TRE mm"], mind["TRE mm"]) == ("20.00", "4.00")
    assert "Dice, median" not in table[0] and not any(other[0][0] == "pair" for other in others)
    assert not (path.parent / "dice.png").exists() and "dice.png" not in path.read_text(encoding="utf-8")
    assert not draw(rows, "l2r-abdomen", tmp_path / "none.png")


def test_failures_alone_make_a_report(tmp_path: Path) -> None:
    text = report(_folder(tmp_path, _rows(mind=(None, None)), skipped={})).read_text(encoding="utf-8")
    assert "unregistered" not in text.split("###")[0] and "## Left out" not in text
    assert "| mind | mr2ct | 0001 | ran out \\| of memory |" in text


def test_pairs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rows = [_row(1, "mind", 0.5) | {"case": case} for case in ("pair10", "pair9", "b\u00b2", "7")]
    tables = _tables(report(_folder(tmp_path, rows)).read_text(encoding="utf-8"))
    (by_pair,) = (table for table in tables if table[0][0] == "pair")
    assert [line[0] for line in by_pair[1:]] == ["7", "b\u00b2", "pair9", "pair10"]


def test_a_linear_start_and_a_small_p_are_told(tmp_path: Path) -> None:
    count = 14
    high = tuple(0.8 + k / 1000 for k in range(count))
    rows = _rows(**{"a|b": (0.5,) * count, "regkit": high})
    text = report(_folder(tmp_path, rows, options={"start": "linear"}), baseline="a|b").read_text("utf-8")
    assert "one linear start; its time is not counted" in text
    assert "vs a\\|b" in text and "<0.001".replace("<", "&lt;") in text


def test_made_up_volumes_say_so_and_stand_beside_nothing_published(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _rows(mind=A), made_up=True)
    text = report(folder).read_text()
    assert "made up" in text
    assert "Published" not in text
    write_run(folder, RUN_JSON)
    assert "Published" in report(folder).read_text()


def test_the_compact_table() -> None:
    headings, table = compact(_rows(mind=B[:2], regkit=(A[0], None)))
    assert headings[:5] == ["method", "direction", "pairs", "Dice", "HD95 mm"] and "vs mind" in headings
    assert [line[0] for line in table] == ["unregistered", "mind", "regkit"]
    assert table[2][2:4] == ["1/2", "0.910"] and table[2][headings.index("vs mind")] == "+0.100"
    assert "p" not in headings and all(len(line) == len(headings) for line in table)


# ---- what cannot be reported


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "mmwhs"}, "is of l2r-abdomen, but has rows of mmwhs"),
        ({"versions": VERSIONS | {"regkit": "0.2.0"}}, "0.1.0 abc1234, 0.2.0 abc1234"),
        ({"versions": VERSIONS | {"commit": None}}, "different versions of regkit"),
        ({"case": "0001"}, "2 rows of 0001 mr2ct mind"),
    ],
)
def test_rows_that_do_not_belong_together(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = _folder(tmp_path, [_row(1, "mind", 0.5), _row(2, "mind", 0.6) | change])
    with pytest.raises(RegkitError, match=message):
        report(folder, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists() and len(read_rows(folder)) == 2


def test_rows_of_other_code_than_the_run(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _rows(mind=B), versions=VERSIONS | {"commit": "fff0000"})
    with pytest.raises(RegkitError, match="fff0000"):
        report(folder)


def test_no_rows_no_run_another_format_and_no_such_baseline(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match="holds no results"):
        report(tmp_path)
    folder = _folder(tmp_path, [])
    with pytest.raises(RegkitError, match="has no finished pairs yet"):
        report(folder)
    append_row(folder, _row(1, "mind", 0.5))
    with pytest.raises(RegkitError, match="'demons' to compare with; available: mind"):
        report(folder, baseline="demons")
    (tmp_path / "file").write_text("")
    with pytest.raises(RegkitError, match="cannot make the folder"):
        report(folder, tmp_path / "file")
    (folder / RUN).write_text(json.dumps(RUN_JSON | {"schema": 99}))
    with pytest.raises(RegkitError, match="format 99"):
        report(folder)
    assert sorted(path.name for path in folder.iterdir()) == [ROWS, RUN]
