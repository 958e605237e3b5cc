"""A task of pydra, made of the typed signature of :func:`regkit.integrations.files.register_files`.

>>> from regkit.integrations.pydra import register
>>> task = register(fixed="t1.nii.gz", moving="ct.nii.gz", preset="fast")  # doctest: +SKIP
>>> task().output.warp  # doctest: +SKIP

Paths become files of ``fileformats``, which pydra knows by their content. Results lie in the folder of the
task.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydra
from fileformats.generic import File

from regkit.integrations.files import Files, register_files

_FOLDER = "folder"  # is the task's own


def _as_files(hint: Any) -> Any:
    """A type with files in place of paths."""
    if hint is Path:
        return File
    parts = typing.get_args(hint)
    return typing.Union[tuple(_as_files(part) for part in parts)] if Path in parts else hint  # noqa: UP007


def _register(**inputs: Any) -> Files:
    given = {name: Path(str(value)) if isinstance(value, File) else value for name, value in inputs.items()}
    return register_files(**given)


def _task() -> Callable[..., Any]:
    import inspect

    hints = typing.get_type_hints(register_files)
    signature = inspect.signature(register_files)
    kept = [p for name, p in signature.parameters.items() if name != _FOLDER]

    def register(**inputs: Any) -> Files:
        return _register(**inputs)

    register.__doc__ = register_files.__doc__
    register.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    register.__annotations__ = {p.name: _as_files(hints[p.name]) for p in kept}
    returned = {name: _as_files(hint) for name, hint in typing.get_type_hints(Files).items()}
    return pydra.mark.task(pydra.mark.annotate({"return": returned})(register))


register = _task()
