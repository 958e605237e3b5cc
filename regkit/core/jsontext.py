"""Measures as JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from regkit.core.errors import RegkitError


def to_json(value: Any) -> str:
    """The value as indented JSON, with null for NaN and the infinities, which JSON does not have."""
    return json.dumps(without_nan(value), indent=2, allow_nan=False)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Args:
        what: what it is, for messages, such as "manifest".

    Raises:
        RegkitError: if it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RegkitError(f"{what} '{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also what is no UTF-8, and brackets in brackets
        raise RegkitError(f"{what} '{path}' is not valid JSON: {error}") from error


def without_nan(value: Any) -> Any:
    """The value with null in the place of NaN and the infinities."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
