"""What may import what: the contracts of pyproject.toml, held by import-linter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _broken(folder: Path) -> str | None:
    """What import-linter finds wrong in a checkout; None where all contracts are kept."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    return None if run.returncode == 0 else run.stdout + run.stderr


def test_each_room_imports_only_what_stands_below_it() -> None:
    pytest.importorskip("importlinter", reason="needs import-linter, of the extra dev")
    assert _broken(ROOT) is None


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/errors.py", "from regkit.io import atomic", "core is not allowed to import regkit.io"),
        ("io/formats.py", "from regkit.warp import Warp", "io is not allowed to import regkit.warp"),
        ("io/atomic.py", "from regkit.io import formats", "No cycles are allowed in regkit.io"),
        ("cli/info.py", "from regkit import Warp", "cli.info is not allowed to import regkit:"),
    ],
)
def test_what_would_break_it_is_found(tmp_path: Path, module: str, line: str, contract: str) -> None:
    pytest.importorskip("importlinter", reason="needs import-linter, of the extra dev")
    for path in (ROOT / "regkit").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with open(tmp_path / "regkit" / module, "a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    assert contract in (_broken(tmp_path) or "")
