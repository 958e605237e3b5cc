"""What the phantom benchmark once reached it must reach again: no change may make regkit worse."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from cli_cases import run

from regkit.bench.result_rows import key, read_rows, read_run

RECORDED = Path(__file__).parents[1] / "benchmarks" / "results" / "phantom"
LESS = 0.005  # Dice; rounding on another machine takes the search another way


def test_phantoms_are_registered_as_well_as_they_were(tmp_path: Path) -> None:
    """By each method, in the mean; a better one is recorded anew by the command in its run.json."""
    recorded = {key(row): row for row in read_rows(RECORDED)}
    (command,) = read_run(RECORDED)["commands"]
    words = shlex.split(command)[1:]
    words[words.index("-o") + 1] = str(tmp_path / "results")
    run(*words, "-q")
    found = {key(row): row for row in read_rows(tmp_path / "results")}
    assert found.keys() == recorded.keys()
    assert len(found) >= 4
    for of, row in found.items():
        assert row["status"] == "ok", row
        assert row["folding_percent"] == 0, of
    for method in {row["method"] for row in recorded.values()}:
        before, after = (
            np.mean([row["mean_dice"]["after"] for row in rows.values() if row["method"] == method])
            for rows in (recorded, found)
        )
        assert after >= before - LESS, f"{method}: mean Dice {after:.4f}, was {before:.4f}"
