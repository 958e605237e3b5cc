"""Settings from files and the command line: YAML into dataclasses, each value checked against its type.

YAML is read by PyYAML, values are checked by pydantic, which is imported only where there are some.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from regkit.core.errors import RegkitError

Kind = TypeVar("Kind")
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_BOUNDS = {"ge": "of at least {:g}", "gt": "above {:g}", "le": "of at most {:g}", "lt": "below {:g}"}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one.

    Raises:
        RegkitError: naming the file and the line, if it cannot be read, is no YAML, gives a key twice, or
            holds something else than a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RegkitError(f"cannot read the configuration '{path}': {error}") from error
    values = {} if (content := _parsed(text, f"'{path}'")) is None else content
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RegkitError(f"'{path}' must hold lines of the form 'key: value'")
    return values


def read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Values by keys from texts of the form key=value, each value as YAML would read it.

    Raises:
        RegkitError: if one has another form, or a key is given twice.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RegkitError(f"'{text}' must have the form key=value, such as search_range=16")
        if key.strip() in values:
            raise RegkitError(f"{key.strip()} is set twice")
        values[key.strip()] = _parsed(value, f"'{text}'")
    return values


def build(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """A dataclass with these values, and its defaults for the others.

    Args:
        values: by the names of the fields. Those of a field that is a dataclass itself are a mapping, or have
            dots in their keys: ``loss.label``.

    Raises:
        RegkitError: naming the key and what is allowed, and of an unknown key the nearest that there is.
    """
    from pydantic import TypeAdapter, ValidationError

    nested = _nested(values)
    _refuse_unknown(kind, nested)
    try:
        # As JSON, of which a list may stand for a tuple and a whole number for a float, and nothing else.
        return TypeAdapter(kind).validate_json(_json(nested), strict=True)
    except ValidationError as errors:
        error = errors.errors()[0]
        if isinstance(cause := error.get("ctx", {}).get("error"), RegkitError):
            raise cause from None  # it is what was raised; pydantic only carried it
        path = [name for name in error["loc"] if isinstance(name, str)]
        hint, value = _at(kind, nested, path)
        raise RegkitError(f"{'.'.join(path)} must be {allowed_values(hint)}, got {_shown(value)}") from errors


def allowed_values(hint: Any) -> str:
    """What a type takes, in words: "a whole number of at least 1"."""
    return f"a {text}" if not (text := _described(hint)).startswith(("one of", "true", "text")) else text


def unknown_name(name: str, there: Sequence[str], what: str) -> RegkitError:
    """The error for a name that is none of those there are."""
    near = difflib.get_close_matches(name.rpartition(".")[2], there, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return RegkitError(f"no {what} {name}; {meant}available: {', '.join(there)}")


def _parsed(text: str, location: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is no YAML"
        raise RegkitError(f"{location}{line}: {problem}") from error


def _loader() -> Any:
    """PyYAML's safe loader, with numbers such as 1e-3, which YAML 1.2 has, and no key twice."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml carries no types
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = set()
            for key, _ in node.value:
                if str(key.value) in names:
                    problem = f"{key.value} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                names.add(str(key.value))
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots taken apart: {"loss.label": 1} is {"loss": {"label": 1}}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        here = out
        for depth, name in enumerate(groups, 1):
            here = here.setdefault(name, {})
            if not isinstance(here, dict):
                raise RegkitError(f"{'.'.join(groups[:depth])} is given twice, as a value and in parts")
        if last in here:
            raise RegkitError(f"{key} is given twice")
        here[last] = _nested(value) if isinstance(value, Mapping) else value
    return out


def _refuse_unknown(kind: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    hints = get_type_hints(kind)
    there = [field.name for field in fields(kind) if field.init]
    for name, value in values.items():
        if name not in there:
            raise unknown_name(f"{prefix}{name}", there, "setting")
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise RegkitError(f"{prefix}{name} has parts; give each of them as {prefix}{name}.PART")
            _refuse_unknown(hints[name], value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            raise RegkitError(f"{prefix}{name} has no parts")


def _json(values: Mapping[str, Any]) -> str:
    for name, value in values.items():
        try:
            json.dumps(value, default=str, allow_nan=False)
        except ValueError as error:
            raise RegkitError(f"{name} must be finite") from error
    return json.dumps(values, default=str)


def _at(kind: Any, values: Any, path: Sequence[str]) -> tuple[Any, Any]:
    """The type and the value of a field, by the names that lead to it."""
    for name in path:
        kind, values = get_type_hints(kind, include_extras=True)[name], values[name]
    return kind, values


def _described(hint: Any, many: bool = False) -> str:
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        bounds = [words.format(getattr(one, name)) for one in limits for name, words in _BOUNDS.items()
                  if getattr(one, name, None) is not None]  # fmt: skip
        return " ".join([_described(base, many), " and ".join(bounds)]).strip()
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            return f"list of {_described(kinds[0], True)}"
        return f"list of {len(kinds)} {_described(kinds[0], True)}"
    word = _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
    return f"{word}s" if many and word.endswith("number") else word


def _shown(value: Any) -> str:
    """A value as YAML writes it."""
    return json.dumps(value, default=str)
