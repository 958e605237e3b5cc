"""Which code made an artefact; with nothing that a bare training machine has not."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Where this regkit is imported from: a checkout, or the packages of an environment."""


def commit(*paths: str) -> str | None:
    """The commit of the checkout that this is, with "-dirty" if its files differ; None if it is installed.

    Args:
        paths: which of the files that git tracks count, as git takes them; by default all.
    """
    if not (ROOT / ".git").exists():
        return None
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *paths])
    except OSError:  # without git
        return None
    return None if name.returncode else name.stdout.strip() + ("-dirty" if changed.returncode else "")


@cache
def version() -> str:
    """Name, version and commit: "regkit 0.1.0, commit abc1234"."""
    from regkit import __version__

    name = commit("regkit", "models")
    return f"regkit {__version__}" + (f", commit {name}" if name else "")
