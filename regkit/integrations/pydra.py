"""A task of pydra, made of the typed signature of :func:`regkit.integrations.files.register_files`.

>>> from regkit.integrations.pydra import register
>>> task = register(fixed="t1.nii.gz", moving="ct.nii.gz", preset="fast")  # doctest: +SKIP
>>> task().output.warp  # doctest: +SKIP

Paths become files of ``fileformats``, which pydra knows by their content. Results lie in the folder of the
task.
"""

from __future__ import annotations

import inspect
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


def _task() -> Callable[..., Any]:
    """The task, whose inputs and outputs are those of :func:`register_files`."""
    hints, signature = typing.get_type_hints(register_files), inspect.signature(register_files)
    inputs = [
        parameter.replace(annotation=_as_files(hints[name]))
        for name, parameter in signature.parameters.items()
        if name != _FOLDER
    ]

    def register(**given: Any) -> Files:
        plain: dict[str, Any] = {
            name: Path(str(v)) if isinstance(v, File) else v for name, v in given.items()
        }
        return register_files(**plain)

    outputs = {name: _as_files(hint) for name, hint in typing.get_type_hints(Files).items()}
    register.__doc__ = register_files.__doc__
    register.__annotations__ = {parameter.name: parameter.annotation for parameter in inputs}
    register.__signature__ = signature.replace(parameters=inputs)  # type: ignore[attr-defined]
    return pydra.mark.task(pydra.mark.annotate({"return": outputs})(register))


register = _task()
