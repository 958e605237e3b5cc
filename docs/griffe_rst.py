"""Docstrings are reStructuredText, as Sphinx and editors read it; the site is Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

import regkit


class FromRst(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Roles become links where the site has their target, else code; double backticks become single ones."""
    return re.sub(r":\w+:`~?([\w.]+)`", _reference, text).replace("``", "`")


def _reference(role: re.Match[str]) -> str:
    name = "regkit." + role[1].removeprefix("regkit.")
    public = name.split(".")[1] in regkit.__all__
    return f"[`{role[1]}`][{name}]" if public else f"`{role[1]}`"
