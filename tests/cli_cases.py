"""Running the command line in tests, and the small phantom that it is run on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner, Result

from regkit.cli import app
from regkit.io.outputs import save_image
from regkit.synthesis.phantom import torso


def run(*words: object, code: int = 0) -> Result:
    """Run ``regkit`` and check its exit code."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output}\n{result.exception!r}"
    return result


def run_program(*words: object) -> None:
    """Run ``regkit`` in a process of its own, in which nothing is imported yet."""
    done = subprocess.run([sys.executable, "-m", "regkit", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def error_of(*words: object) -> str:
    """The message of a run that must fail as a user's mistake does: exit 1 and one line, on stderr."""
    result = run(*words, code=1)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def usage_error_of(*words: object) -> str:
    """The text of a run that must fail as a wrong command line does, its frame and line breaks taken out."""
    result = run(*words, code=2)
    assert result.stdout == ""
    return " ".join(result.stderr.replace("│", " ").split())


@dataclass(frozen=True)
class Files:
    """The phantom's files, in a folder of their own."""

    fixed: Path
    moving: Path
    fixed_labels: Path
    moving_labels: Path
    names: Path
    landmarks: Path


def write_phantom(folder: Path, spacing: float = 8.0) -> Files:
    """A phantom of coarse voxels as files."""
    phantom = torso(0, spacing)
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        save_image(getattr(phantom, name).to_sitk(), folder / f"{name}.nii.gz")
    (folder / "names.json").write_text(json.dumps(phantom.names))
    rows = [",".join(map(str, (*f, *m))) for f, m in zip(phantom.landmarks_fixed, phantom.landmarks_moving)]
    (folder / "landmarks.csv").write_text("\n".join(["fx,fy,fz,mx,my,mz", *rows]))
    paths = [folder / f"{name}.nii.gz" for name in ("fixed", "moving", "fixed_labels", "moving_labels")]
    return Files(*paths, folder / "names.json", folder / "landmarks.csv")
