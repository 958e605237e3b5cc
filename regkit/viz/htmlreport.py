"""One HTML file that shows a registration to somebody who did not run it: verdict, slices, tables.

It holds all that it shows: nothing is loaded from a network or from another file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from regkit.core.jsontext import without_nan
from regkit.io.atomic import atomic_path
from regkit.io.images import ImageLike, load_image
from regkit.io.outputs import check_output
from regkit.viz.colours import DIM, INK, PALE
from regkit.viz.figure import diverging
from regkit.viz.htmlslices import render

if TYPE_CHECKING:
    from regkit.registration_result import Registration

_SUFFIX = ".html"
_TEMPLATE = "report.html.j2"
_PROGRAMS = ("regkit", "torch", "simpleitk", "python")
_NAMES = ("fixed", "moving")  # of the settings; the inputs say more


def write_report(
    result: Registration,
    path: str | os.PathLike[str],
    fixed: ImageLike,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a registration as one HTML file of less than 3 MB.

    Args:
        path: must end in .html.
        fixed: the fixed image, as it was registered. The result holds everything else.
        record: where the result comes from (:meth:`regkit.Registration.provenance`). The page shows its
            inputs and its command. By default the page shows the fixed image alone.

    Raises:
        RegkitError: if the file cannot be written, or an image cannot be read.
    """
    target = check_output(path, (_SUFFIX,))
    if record is None:
        record = result.provenance(fixed=fixed)
    planes, scales = render(result, load_image(fixed, "fixed image"))
    measures = result.to_dict()
    settings = measures["settings"]
    page = template("regkit.viz", _TEMPLATE).render(
        colours={"ink": INK, "pale": PALE, "dim": DIM, "scale": _scale()},
        command=record.get("command", ""),
        fixed=settings["fixed"],
        inputs=record["inputs"],
        metrics=measures["metrics"],
        moving=settings["moving"],
        memory=measures["memory_mb"],
        planes=planes,
        scales=scales,
        seconds=measures["seconds"],
        settings=list(_flat({k: v for k, v in settings.items() if k not in (*_PROGRAMS, *_NAMES)})),
        slices=without_nan({p.plane.name: p.pictures for p in planes}),
        verdict=measures["verdict"],
        versions={name: settings[name] for name in _PROGRAMS},
    )
    # A file name may hold bytes that are no text.
    with atomic_path(target) as temporary:
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def _scale() -> list[str]:
    """The colours of the low end, the middle and the high end."""
    levels = np.rint(255 * diverging(np.array([-1.0, 0.0, 1.0], np.float32))).astype(np.uint8)
    return [f"#{bytes(level).hex()}" for level in levels]


def template(package: str, name: str) -> Any:
    """A page of a package, in which every name is escaped and numbers that were not measured are dashes."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


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
