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
    name = role[1]
    public = name.removeprefix("regkit.").split(".")[0] in regkit.__all__
    return f"[`{name}`][{name if name.startswith('regkit.') else f'regkit.{name}'}]" if public else f"`{name}`"
