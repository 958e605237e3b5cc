"""Segmentations that know their segments: names, colours, and layers where segments overlap.

Files of 3D Slicer (``.seg.nrrd``), DICOM segmentations and structure sets come in as these, and files of the
first two kinds are written of them.

Slicer's format: https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import FormatError
from regkit.core.geometry import Grid

SLICER = (".seg.nrrd", ".seg.nhdr")
"""Endings of 3D Slicer's segmentations."""

Code = tuple[str, str, str]
"""A concept: its value, the scheme that it belongs to, and what it means."""

_TISSUE: Code = ("85756007", "SCT", "Tissue")
_ENTRY = re.compile(r"Segment(\d+)_(\w+)")
# What is known by other means than as a property to keep.
_OWN = ("id", "name", "color", "labelvalue", "layer", "extent")
_TERMINOLOGY = re.compile(r"TerminologyEntry:[^~|]*~([^~|]*)~([^~|]*)")


@dataclass(frozen=True)
class Segment:
    """One segment.

    Args:
        label: its number in the voxels.
        name: for people.
        colour: sRGB, 0 to 1, or None where none is known.
        codes: its category and its type, or None where they are not known.
        properties: further entries of 3D Slicer's, kept as they are.
    """

    label: int
    name: str
    colour: tuple[float, float, float] | None = None
    codes: tuple[Code, Code] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LayeredSegmentation:
    """Segments on a grid.

    Args:
        layers: label maps (z, y, x), at least one; a voxel has a label in several where segments overlap.
            A label is in one layer alone.
        grid: where they lie.
        segments: what the labels mean; those that nobody named are missing.
    """

    layers: Sequence[npt.NDArray[Any]]
    grid: Grid
    segments: tuple[Segment, ...]

    def merged(self) -> tuple[npt.NDArray[Any], int]:
        """One label map, and in how many voxels segments overlap: there the smallest of them is kept."""
        if len(self.layers) == 1:
            return self.layers[0], 0
        parts = [
            (int(count), int(label), layer)
            for layer in self.layers
            for label, count in zip(*np.unique(layer, return_counts=True))
            if label
        ]
        merged = np.zeros(self.grid.shape, np.result_type(*self.layers))
        for _, label, layer in sorted(parts, key=lambda part: -part[0]):
            merged[layer == label] = label
        twice = np.zeros(self.grid.shape, np.uint8)
        for layer in self.layers:
            twice += layer != 0
        return merged, int((twice > 1).sum())


class Packing:
    """Layers that segments are put into, each into the first where it has the place to itself."""

    def __init__(self, shape: tuple[int, int, int], largest: int) -> None:
        self._shape = shape
        self._type = np.uint8 if largest < 256 else np.uint16 if largest < 1 << 16 else np.uint32
        self.layers: list[npt.NDArray[Any]] = []

    def put(self, label: int, parts: Iterable[tuple[int, npt.NDArray[np.bool_]]]) -> None:
        """Add a segment.

        Args:
            parts: slices and the segment's mask (y, x) in each.
        """
        parts = [(k, mask) for k, mask in parts if mask.any()]
        if not parts:
            return
        for layer in self.layers:
            if not any((layer[k][mask] != 0).any() for k, mask in parts):
                break
        else:
            layer = np.zeros(self._shape, self._type)
            self.layers.append(layer)
        for k, mask in parts:
            layer[k][mask] = label


def slicer_segments(fields: Mapping[str, str]) -> list[tuple[int, Segment]]:
    """The layer of each segment of a ``.seg.nrrd``, and the segment.

    Args:
        fields: of its header; capitals in names do not count.

    Raises:
        RegkitError: if a number is none; without the file's name.
    """
    raw_fields: dict[int, dict[str, str]] = {}
    for name, value in fields.items():
        entry = _ENTRY.fullmatch(name) or re.fullmatch(_ENTRY.pattern, name, re.IGNORECASE)
        if entry:
            raw_fields.setdefault(int(entry[1][:9]), {})[entry[2]] = value
    segments = []
    for number, entries in sorted(raw_fields.items()):
        own = {name.lower(): value for name, value in entries.items()}
        try:
            label, layer = int(own.get("labelvalue", number + 1)), int(own.get("layer", 0))
            colour = tuple(float(v) for v in own.get("color", "").split())
        except ValueError as error:
            raise FormatError(f"is damaged: segment {number} has a value that is not a number") from error
        others = {name: value for name, value in entries.items() if name.lower() not in _OWN}
        name = own.get("name") or own.get("id") or f"Segment_{number + 1}"
        triple = (colour[0], colour[1], colour[2]) if len(colour) == 3 else None
        segments.append((layer, Segment(label, name, triple, _codes(own.get("tags", "")), others)))
    return segments


def slicer_fields(segmentation: LayeredSegmentation) -> dict[str, str]:
    """The entries of a NRRD header that tell 3D Slicer of its segments."""
    layer_of = {int(v): k for k, layer in enumerate(segmentation.layers) for v in np.unique(layer) if v}
    known = {segment.label for segment in segmentation.segments}
    more = [Segment(label, f"label {label}") for label in sorted(layer_of) if label not in known]
    x, y, z = (n - 1 for n in segmentation.grid.size)
    fields = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    fields["Segmentation_ContainedRepresentationNames"] = "Binary labelmap|"
    for k, segment in enumerate([*segmentation.segments, *more]):
        entries = {
            "ID": f"Segment_{k + 1}",
            "Name": segment.name,
            "LabelValue": str(segment.label),
            "Layer": str(layer_of.get(segment.label, 0)),
            "Extent": f"0 {x} 0 {y} 0 {z}",
            "Color": " ".join(f"{v:.6g}" for v in segment.colour or colour_of(segment.label)),
            **segment.properties,
        }
        if "Tags" not in entries and segment.codes:
            category, kind = ("^".join(code) for code in _by_scheme(segment.codes))
            entries["Tags"] = f"TerminologyEntry:Segmentation category and type~{category}~{kind}~^^~^^|"
        fields |= {f"Segment{k}_{name}": value.replace("\n", " ") for name, value in entries.items()}
    return fields


def colour_of(label: int) -> tuple[float, float, float]:
    """A colour for a segment that has none: hues a golden angle apart."""
    import colorsys

    return colorsys.hsv_to_rgb(label * 0.618033988749895 % 1, 0.6, 0.9)


def named_segments(
    labels: Iterable[int], names: Mapping[int, str], known: Iterable[Segment] = ()
) -> tuple[Segment, ...]:
    """Segments of labels: those that are known, under names of one's own where they are given."""
    of = {segment.label: segment for segment in known}
    segments = [of.get(label, Segment(label, f"label {label}")) for label in labels]
    return tuple(replace(one, name=names.get(one.label, one.name)) for one in segments)


def codes_of(segment: Segment) -> tuple[Code, Code]:
    """The category and type of a segment; tissue where they are not known."""
    return segment.codes or (_TISSUE, _TISSUE)


def _codes(tags: str) -> tuple[Code, Code] | None:
    """Category and type in 3D Slicer's tags of a segment, ``scheme^value^meaning`` each."""
    entry = _TERMINOLOGY.search(tags)
    parts = [text.split("^") for text in entry.groups()] if entry else []
    if len(parts) != 2 or any(len(part) < 3 or not all(part[:3]) for part in parts):
        return None
    (category, kind) = ((part[1], part[0], part[2]) for part in parts)
    return category, kind


def _by_scheme(codes: tuple[Code, Code]) -> list[tuple[str, str, str]]:
    return [(scheme, value, meaning) for value, scheme, meaning in codes]
