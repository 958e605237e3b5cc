"""The words that arguments and options choose among, as types and, by ``get_args``, as tuples."""

from __future__ import annotations

from typing import Literal, get_args

PresetName = Literal["default", "fast", "accurate", "linear", "rigid"]
FeatureSet = Literal["mind", "network", "network+mind"]
"""What images are compared on after the linear start."""
FEATURE_SETS: tuple[FeatureSet, ...] = get_args(FeatureSet)
DEFAULT_FEATURES: FeatureSet = "network+mind"
StartName = Literal["auto", "none", "centre", "rigid", "affine"]
"""Ways to begin; see ``init`` of :func:`regkit.register`."""
STARTS: tuple[StartName, ...] = get_args(StartName)
LinearModel = Literal["rigid", "similarity", "affine"]
DeviceName = Literal["auto", "cpu", "cuda"]
Interpolation = Literal["linear", "bspline", "nearest", "label"]
Level = Literal["PASS", "WARN", "FAIL"]
"""Of a verdict and its gates."""
Stage = Literal["before", "linear", "after"]
"""Of a registration, at which it is measured: by the headers alone, after the linear start, at the end."""
