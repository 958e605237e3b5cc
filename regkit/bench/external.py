"""Any command as a method of the benchmark: a template that is given files and leaves a warp."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regkit.bench.method import Inputs, MethodResult
from regkit.core.errors import RegkitError, last_lines
from regkit.io.formats import write_linear
from regkit.io.images import load_grid
from regkit.warp import Warp

REQUIRED = ("fixed", "moving", "warp")
PLACEHOLDERS = (*REQUIRED, "fixed_mask", "moving_mask", "start", "folder", "threads", "seed", "device")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_ERROR_LINES = 5


@dataclass(frozen=True)
class External:
    """A command of another program.

    It runs without a shell in a folder of its own. ``{warp}`` is where it has to leave its warp, fixed ->
    moving, of any format that :func:`regkit.io.formats.read_warp` knows: warp.nii.gz, or with the ending that
    follows, as in ``{warp}.npz``. Files named relative to where the benchmark was started are found.

    Args:
        name: of the method.
        words: the program and what it is given, with placeholders.
    """

    name: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> External:
        """Of ``NAME=COMMAND``.

        Raises:
            RegkitError: if the name or the command is missing or malformed, or a placeholder is unknown or
                lacks.
        """
        name, _, command = text.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
            raise RegkitError(
                f"'{name}' cannot be the name of a method: begin with a letter or digit, go on with "
                "letters, digits, '.', '_' and '-'"
            )
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise RegkitError(f"the command of '{name}' cannot be read: {error}") from error
        if not words:
            raise RegkitError(f"the command of '{name}' is empty: give {name}='PROGRAM {{fixed}} ...'")
        used = {key for word in words for key in _PLACEHOLDER.findall(word)}
        if unknown := sorted(used - set(PLACEHOLDERS)):
            raise RegkitError(
                f"the command of '{name}' has the unknown placeholder {{{unknown[0]}}}; available: "
                f"{', '.join(f'{{{key}}}' for key in PLACEHOLDERS)}"
            )
        if lacking := [key for key in REQUIRED if key not in used]:
            raise RegkitError(f"the command of '{name}' lacks {', '.join(f'{{{key}}}' for key in lacking)}")
        return cls(name, words)

    @property
    def note(self) -> str:
        return f"`{shlex.join(self.words)}`; its seconds include the start of the program"

    def missing(self) -> str | None:
        if shutil.which(self.words[0]):
            return None
        return f"the program '{self.words[0]}' is not on the PATH; install it, or give its whole path"

    def version(self) -> str:
        return shlex.join(self.words)

    def register(self, inputs: Inputs) -> MethodResult:
        begin = time.perf_counter()
        case, folder = inputs.case, inputs.folder.resolve()
        grids = load_grid(case.fixed.image, "fixed image"), load_grid(case.moving.image, "moving image")
        words = self._filled(inputs, folder)
        loaded = time.perf_counter()
        _run(self.name, words, folder)
        ran = time.perf_counter()
        warp = Warp.load(_result(self.name, folder), *grids)
        seconds = {"load": loaded - begin, "register": ran - loaded, "warp": time.perf_counter() - ran}
        return MethodResult(warp, seconds, {"command": shlex.join(self.words)})

    def _filled(self, inputs: Inputs, folder: Path) -> list[str]:
        """The words with everything in its place, and the start and other files made."""
        case = inputs.case
        values = {
            "fixed": os.path.abspath(case.fixed.image),
            "moving": os.path.abspath(case.moving.image),
            "start": str(folder / "start.tfm"),
            "folder": str(folder),
            "threads": str(inputs.threads),
            "seed": str(inputs.seed),
            "device": inputs.device,
        }
        for key, mask in (("fixed_mask", case.fixed.mask), ("moving_mask", case.moving.mask)):
            if mask is not None:
                values[key] = os.path.abspath(mask)
            elif any(f"{{{key}}}" in word for word in self.words):
                raise RegkitError(f"the command of '{self.name}' wants {{{key}}}, but the case has none")
        write_linear(np.eye(4) if inputs.start is None else inputs.start, folder / "start.tfm")

        def value(match: re.Match[str]) -> str:
            if match[1] != "warp":
                return values[match[1]]
            ends = match.end() == len(match.string)
            return str(folder / ("warp.nii.gz" if ends else "warp"))

        program, *rest = self.words
        # In a folder of its own the command would not find what lies where the benchmark was started.
        rest = [os.path.abspath(word) if Path(word).is_file() else word for word in rest]
        return [os.path.abspath(shutil.which(program) or program)] + [
            _PLACEHOLDER.sub(value, word) for word in rest
        ]


def _run(name: str, words: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
    except (OSError, ValueError) as error:
        raise RegkitError(f"'{name}' cannot be run: {error}") from error
    if done.returncode:
        output = last_lines((done.stderr.strip() or done.stdout).decode("utf-8", "replace"), _ERROR_LINES)
        raise RegkitError(f"'{name}' ended with code {done.returncode}: {output or 'it said nothing'}")


def _result(name: str, folder: Path) -> Path:
    """The file that the command left as its warp, whatever ending it gave it."""
    there = sorted(path for path in folder.iterdir() if path.name.startswith("warp") and path.is_file())
    if not there:
        raise RegkitError(f"'{name}' ended without an error, but wrote no file to {{warp}}")
    if len(there) > 1:
        exact = folder / "warp.nii.gz"
        if exact in there:
            return exact
        names = ", ".join(path.name for path in there)
        raise RegkitError(
            f"'{name}' wrote several files to {{warp}}, and which is the warp is not clear: {names}"
        )
    return there[0]
