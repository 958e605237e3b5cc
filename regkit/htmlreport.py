"""One HTML file that shows a registration to somebody who did not run it: verdict, slices, tables.

It holds all that it shows: nothing is loaded from a network or from another file.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from regkit.atomic import atomic_path
from regkit.colours import DIM, INK, PALE
from regkit.errors import RegkitError
from regkit.figure import diverging
from regkit.htmlslices import render
from regkit.images import ImageLike, load_image
from regkit.jsontext import without_nan
from regkit.outputs import check_output

if TYPE_CHECKING:
    from regkit.registration import Registration

_SUFFIX = ".html"
_TEMPLATE = "report.html.j2"
_PROGRAMS = ("regkit", "torch", "simpleitk", "python")
_NAMES = ("fixed", "moving")  # of the settings; the inputs say more


def write_report(
    result: Registration,
    path: str | os.PathLike[str],
    fixed: ImageLike,
    inputs: Mapping[str, str | os.PathLike[str]] | None = None,
    command: str = "",
) -> None:
    """Write what a registration found as one HTML file of less than 3 MB.

    Args:
        path: must end in .html.
        fixed: the fixed image, as it was registered; the result holds the rest.
        inputs: what was read, by its role, such as ``{"fixed image": "mr.nii.gz"}``: shown by name and
            SHA-256. By itself ``fixed`` alone, if it is a file.
        command: that made the result; left out where there was none.

    Raises:
        RegkitError: if the file cannot be written, or an input cannot be read.
    """
    target = check_output(path, (_SUFFIX,))
    if inputs is None:
        inputs = {"fixed image": fixed} if isinstance(fixed, str | os.PathLike) else {}
    rows = [_input(role, Path(file)) for role, file in inputs.items()]
    planes, scales = render(result, load_image(fixed, "fixed image"))
    found = result.to_dict()
    settings = found["settings"]
    page = _template().render(
        colours={"ink": INK, "pale": PALE, "dim": DIM, "scale": _scale()},
        command=command,
        fixed=settings["fixed"],
        inputs=rows,
        metrics=found["metrics"],
        moving=settings["moving"],
        memory=found["memory_mb"],
        planes=planes,
        scales=scales,
        seconds=found["seconds"],
        settings=list(_flat({k: v for k, v in settings.items() if k not in (*_PROGRAMS, *_NAMES)})),
        slices=without_nan({p.plane.name: p.pictures for p in planes}),
        verdict=found["verdict"],
        versions={name: settings[name] for name in _PROGRAMS},
    )
    # A file name may hold bytes that are no text.
    with atomic_path(target) as temporary:
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def _scale() -> list[str]:
    """The colours of the low end, the middle and the high end."""
    levels = np.rint(255 * diverging(np.array([-1.0, 0.0, 1.0], np.float32))).astype(np.uint8)
    return [f"#{bytes(level).hex()}" for level in levels]


def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    return environment.from_string(files("regkit").joinpath(_TEMPLATE).read_text(encoding="utf-8"))


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _input(role: str, path: Path) -> dict[str, str]:
    """The row of one input; of a folder the hash is over the names and hashes of its files, sorted."""
    try:
        if not path.is_dir():
            return {"role": role, "path": str(path), "sha256": _sha256(path), "note": ""}
        whole = hashlib.sha256()
        paths = sorted(p for p in path.iterdir() if p.is_file())
        for file in paths:
            whole.update(os.fsencode(file.name) + b"\0" + _sha256(file).encode("ascii") + b"\n")
        note = f"folder of {len(paths)} files: of their names and hashes"
        return {"role": role, "path": str(path), "sha256": whole.hexdigest(), "note": note}
    except OSError as error:
        raise RegkitError(f"{role} '{path}' cannot be read: {error.strerror or error}") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as rows: name with dots, and value."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, float) and math.isnan(value)):
            yield f"{prefix}{name}", "-"
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.6g}"
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(str(item) for item in value) or "-"
        else:
            yield f"{prefix}{name}", str(value)
