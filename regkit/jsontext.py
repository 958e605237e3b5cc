"""Measures as JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """The value as indented JSON, with null for NaN and the infinities, which JSON does not have."""
    return json.dumps(without_nan(value), indent=2, allow_nan=False)


def without_nan(value: Any) -> Any:
    """The value with null in the place of NaN and the infinities."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
