"""``regkit info``: what a file holds and how regkit takes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regkit.cli.console import print_facts, print_json, print_table
from regkit.cli.files import in_series, load_warp, optional_grid
from regkit.cli.options import AsJson, FixedGrid, MovingGrid
from regkit.core.errors import RegkitError

if TYPE_CHECKING:
    import numpy as np

    from regkit.core.geometry import Float64, Grid
    from regkit.io.dicom import DicomSeries
    from regkit.io.images import Volume
    from regkit.warp import Warp

_POINTS = (".csv", ".fcsv", ".mrk.json")
_WEIGHTS = (".safetensors", ".pth", ".pt")


def command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="An image, a DICOM folder, a label map, a warp, a transform, points, a mesh, streamlines, "
            "weights, names of labels, or the record beside a result (.json).",
        ),
    ],
    fixed: FixedGrid = None,
    moving: MovingGrid = None,
    series: Annotated[
        str | None,
        typer.Option(metavar="NUMBER|UID", help="A DICOM series of the folder. Default: list them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a file holds (grid, orientation, values, labels, displacements, matrix) and what made it."""
    facts = _describe(
        in_series(file, series),
        file,
        optional_grid(fixed, "fixed image"),
        optional_grid(moving, "moving image"),
    )
    facts |= _made(file)
    if as_json:
        print_json({"file": str(file), **facts})
        return
    if record := facts.pop("record", None):
        facts |= _shown(record)
    labels, listed = facts.pop("labels", None), facts.pop("series", None)
    print_facts([(name.replace("_", " "), _text(value)) for name, value in facts.items()])
    if listed is not None:
        typer.echo()
        rows = [[_title(one), one["modality"], str(one["slices"]), one["read_as"]] for one in listed]
        print_table(["series", "modality", "slices", "read as"], rows)
    if labels is not None:
        typer.echo()
        has_names = any("name" in row for row in labels)
        print_table(
            ["label", *(["name"] if has_names else []), "ml", "voxels"],
            [
                [
                    str(row["label"]),
                    *([row.get("name", "")] if has_names else []),
                    f"{row['ml']:.2f}",
                    f"{row['voxels']:,}",
                ]
                for row in labels
            ],
        )


def _made(file: Path) -> dict[str, Any]:
    """What made a file, as far as it or a record tells."""
    from regkit.io import nifti, provenance
    from regkit.io.headers import nrrd_fields

    made: dict[str, Any] = {}
    name = file.name.lower()
    if name.endswith(nifti.SUFFIXES):
        with nifti.open_nifti(file) as header:
            if header.description.startswith("regkit "):
                made["made_by"] = header.description
    elif name.endswith(".nrrd") and (recorded := nrrd_fields(file).get(provenance.KEY)):
        made["made_by"] = recorded
    found_record = provenance.read_record(file)
    if found_record:
        record, same = found_record
        made |= {"made_by": record["made_by"], "record": record}
        if not same:
            made["changed"] = "yes: its content is not the one that its record tells of"
    return made


def _shown(record: dict[str, Any]) -> dict[str, str]:
    """A record in lines."""
    inputs = record.get("inputs")
    lines: dict[str, str] = {key: str(record[key]) for key in ("date", "command") if key in record}
    for role, entry in inputs.items() if isinstance(inputs, dict) else ():
        if isinstance(entry, dict) and "file" in entry:
            lines[f"made of {role}"] = f"{entry['file']}  sha256 {str(entry.get('sha256'))[:16]}"
    return lines


def _title(series: dict[str, Any]) -> str:
    return " ".join(part for part in (series["number"] or series["uid"], series["description"]) if part)


def _describe(
    source: Path | DicomSeries, file: Path, fixed: Grid | None, moving: Grid | None
) -> dict[str, Any]:
    """What there is to say of a file.

    Args:
        source: the file, or a series of it if it is a folder.
    """
    from regkit.io import dicom
    from regkit.io.formats import OTHERS, is_transform
    from regkit.io.images import LabelledVolume, load_labels, load_volume, looks_like_labels
    from regkit.io.meshes import is_mesh

    if os.path.isdir(file) or dicom.is_dicom(file):
        if source is file and (several := _several(file)):
            return several
        try:
            volume = load_volume(source, "file")
        except RegkitError as error:
            described = _unreadable(source, file, str(error))
            if described is None:
                raise
            return described
        if isinstance(volume, LabelledVolume):
            return _label_map(load_labels(volume, f"labels '{file}'"))
        return _image(volume)
    if is_transform(file):
        return _transform(file, fixed, moving)
    if file.name.lower().endswith(_POINTS):
        return _points(file)
    if file.suffix.lower() == ".json":
        return _json(file)
    if file.suffix.lower() in _WEIGHTS:
        return _weights(file)
    header = _Header.of(file)
    if header is None and is_mesh(file):
        return _mesh(file)
    if file.suffix.lower() in (".npz", *OTHERS) or (
        header and header.holds_vectors(fixed is not None and moving is not None)
    ):
        return _warp(load_warp(file, fixed, moving))
    try:
        volume = load_volume(file, "file")
    except RegkitError as error:
        if header is None or not header.is_unusual():
            raise
        return header.facts(str(error))
    varies = isinstance(volume, LabelledVolume) or volume.array.min() < volume.array.max()
    if varies and looks_like_labels(volume.array):
        return _label_map(load_labels(volume, f"labels '{file}'"))
    return _image(volume)


def _several(folder: Path) -> dict[str, Any] | None:
    """The DICOM series of a folder, if there is more than one to read."""
    from regkit.io import dicom

    try:
        series = dicom.find_series(folder)
    except RegkitError:
        return None  # which reading it will raise again, with the name
    if sum(one.is_volume or one.is_labels for one in series) < 2:
        return None
    listed = [
        {
            "number": one.number,
            "uid": one.uid,
            "description": one.description,
            "modality": one.modality,
            "slices": one.count,
            "files": len(one.slices),
            "read_as": "labels" if one.is_labels else "image" if one.is_volume else "-",
        }
        for one in series
    ]
    return {"kind": f"folder of {len(series)} DICOM series", "series": listed}


def _unreadable(source: Path | DicomSeries, file: Path, problem: str) -> dict[str, Any] | None:
    """What DICOM that makes no volume says of itself; None if it cannot be read, or there are several."""
    from regkit.io import dicom

    try:
        series = dicom.find_series(file)
    except RegkitError:
        return None
    requested = source.series if isinstance(source, dicom.DicomSeries) else None
    series = [one for one in series if requested in (None, one.number, one.uid)]
    if len(series) != 1 or series[0].is_volume or series[0].is_labels:  # those that fail are refused
        return None
    (one,) = series
    facts: dict[str, Any] = {"kind": f"DICOM, {dicom.storage_name(one)}"}
    facts |= {"modality": one.modality, "number": one.number}
    facts |= {"description": one.description, "slices": one.count, "not_to_register": problem}
    return {name: value for name, value in facts.items() if value != ""}


@dataclass(frozen=True)
class _Header:
    """What the header of an image says, whatever there is to do with it.

    Args:
        size: along every axis, x first.
        spacing: mm, along the first three; None where the header is to blame.
        components: numbers per voxel.
        intent: NIfTI's intent code.
    """

    format: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    voxels: str
    components: int = 1
    intent: int = 0

    @classmethod
    def of(cls, file: Path) -> _Header | None:
        """That of a file, or None if it has none that can be read."""
        import numpy as np

        from regkit.io import guard, nifti

        if not os.path.isfile(file):
            return None
        try:
            if file.name.lower().endswith(nifti.SUFFIXES):
                with nifti.open_nifti(file) as content:
                    spacing = tuple(map(float, np.linalg.norm(content.affine[:3, :3], axis=0)))
                    dtype = content.voxels.dtype
                    components = len(dtype.names or "x")
                    return cls(
                        content.kind, content.shape, spacing, str(dtype), components, content.intent[0]
                    )
            with guard.open_image([file]) as image:
                header = image.header
                name = header.format.removesuffix("ImageIO")
                return cls(name, header.size, header.spacing[:3], header.pixel, header.components)
        except RegkitError:
            return None

    def holds_vectors(self, learn2reg: bool) -> bool:
        """Whether each voxel holds a displacement.

        Args:
            learn2reg: whether a 4-D image of three volumes counts as a field in voxels.
        """
        if len(self.size) == 3:  # three whole numbers are colours
            return self.components == 3 and "float" in self.voxels
        if self.size[3:] == (1, 3):
            return self.voxels != "uint8"  # of which colours are
        return self.size[3:] == (3,) and (learn2reg or 2006 <= self.intent <= 2018)

    def is_unusual(self) -> bool:
        """Whether the image is none that regkit registers, though nothing need be wrong with it."""
        from regkit.io.images import MIN_VOXELS

        shape = self.size[:3]
        extra = any(n != 1 for n in self.size[3:])
        return (
            extra
            or len(shape) < 3
            or min(shape) < MIN_VOXELS
            or self.components > 1
            or "complex" in self.voxels
        )

    def facts(self, problem: str) -> dict[str, Any]:
        """For people and for JSON."""
        return {
            "kind": f"image of {len(self.size)} axes",
            "format": self.format,
            "size": list(self.size),
            "spacing_mm": [round(s, 6) for s in self.spacing],
            "voxel_type": self.voxels,
            "components": self.components,
            "not_to_register": problem,
        }


def _points(file: Path) -> dict[str, Any]:
    from regkit.io.points import open_points

    file_points = open_points(file)
    points = file_points.points
    return {
        "kind": "points, LPS mm",
        "count": len(points),
        **({"names": list(file_points.labels)} if any(file_points.labels) else {}),
        **_box(points, "lps_mm"),
    }


def _json(file: Path) -> dict[str, Any]:
    """A record or the names of labels."""
    from regkit.core.errors import FormatError, InputError
    from regkit.io.labelnames import read_label_names
    from regkit.io.provenance import record_at, same_outputs

    if record := record_at(file):
        facts: dict[str, Any] = {"kind": "record of a run of regkit", "made_by": record["made_by"]}
        for role, (name, state) in same_outputs(file, record).items():
            facts[f"wrote {role}"] = f"{name}  {state}"
        return facts | {"record": record}
    if not os.path.isfile(file):
        raise InputError(f"'{file}' does not exist")
    try:
        names = read_label_names(file)
    except RegkitError as error:
        raise FormatError(
            f"'{file}' is not a record of regkit, names of labels, or points of 3D Slicer (.mrk.json)"
        ) from error
    return {"kind": "names of labels", "names": [f"{label} {name}" for label, name in (names or {}).items()]}


def _weights(file: Path) -> dict[str, Any]:
    from regkit.features.weights import load_network

    network, provenance = load_network(file)
    count = sum(tensor.numel() for tensor in network.parameters())
    return {"kind": "weights of a network", "parameters": count, **provenance}


def _mesh(file: Path) -> dict[str, Any]:
    from regkit.io.meshes import SpaceError, open_mesh

    kind = "points of a mesh or of streamlines, LPS mm"
    try:
        points = open_mesh(file).points
    except SpaceError:
        kind = "points of a mesh, mm; the file does not say whether LPS or RAS"
        points = open_mesh(file, "lps").points
    return {"kind": kind, "count": len(points), **_box(points, "lps_mm" if "LPS mm" in kind else "mm")}


def _box(points: Float64, unit: str) -> dict[str, Any]:
    lowest, highest = points.min(axis=0), points.max(axis=0)
    return {
        f"lowest_{unit}": [round(float(v), 3) for v in lowest],
        f"highest_{unit}": [round(float(v), 3) for v in highest],
    }


def _transform(file: Path, fixed: Grid | None, moving: Grid | None) -> dict[str, Any]:
    from regkit.io.formats import NotLinearError, read_linear

    try:
        matrix = read_linear(file, fixed, moving)
    except NotLinearError:
        return _warp(load_warp(file, fixed, moving))
    return {"kind": "linear transform, fixed point -> moving point, LPS mm", "matrix": matrix.tolist()}


def _range(values: np.ndarray) -> dict[str, float]:
    import numpy as np

    return {
        "minimum": float(values.min()),
        "median": float(np.median(values)),
        "maximum": float(values.max()),
    }


def _image(volume: Volume) -> dict[str, Any]:
    import numpy as np

    from regkit.core.intensity import CT_WINDOW, is_ct, window_of

    finite = np.isfinite(volume.array)
    facts = {"kind": "image", **_grid(volume.grid), "voxel_type": str(volume.array.dtype)}
    if not finite.all():
        facts["not_finite_voxels"] = int((~finite).sum())
        facts |= {"values": _range(volume.array[finite])} if finite.any() else {}
        return facts | {"not_to_register": "voxels are infinite or not a number"}
    values = volume.array.astype(np.float32)
    facts["values"] = _range(volume.array)
    if values.min() == values.max():
        return facts | {"not_to_register": "every voxel has the same value"}
    ct = is_ct(values)
    low, high = window_of(values, CT_WINDOW if ct else None)
    return facts | {
        "taken_as": "CT" if ct else "no CT: values are scaled by percentiles",
        "window": {"low": low, "high": high},
    }


def _label_map(volume: Volume) -> dict[str, Any]:
    import numpy as np

    from regkit.io.images import LabelledVolume

    labels, counts = np.unique(volume.array, return_counts=True)
    ml = float(np.prod(volume.grid.spacing)) / 1000
    segments = volume.segments if isinstance(volume, LabelledVolume) else ()
    names = {one.label: {"name": one.name} for one in segments}
    rows = [
        {"label": int(label), **names.get(int(label), {}), "ml": int(count) * ml, "voxels": int(count)}
        for label, count in zip(labels, counts, strict=True)
        if label
    ]
    return {"kind": "label map", **_grid(volume.grid), "labels": rows}


def _warp(warp: Warp) -> dict[str, Any]:
    import numpy as np

    from regkit.ops.jacobian import Smoothness

    length = np.linalg.norm(warp.field, axis=-1)
    return {
        "kind": "warp, fixed point -> moving point, LPS mm",
        **_grid(warp.grid),
        "displacement_mm": _range(length),
        **Smoothness.of(warp.jacobian().array).to_dict(),
    }


def _grid(grid: Grid) -> dict[str, Any]:
    import numpy as np

    from regkit.io.images import axis_codes

    largest = np.abs(np.reshape(grid.direction, (3, 3))).max(axis=0)
    return {
        "size": list(grid.size),
        "spacing_mm": [round(s, 6) for s in grid.spacing],
        "orientation": axis_codes(grid),
        "oblique_degrees": round(float(np.degrees(np.arccos(np.clip(largest, 0, 1))).max()), 2),
        "extent_mm": [round(float(e), 3) for e in grid.extent],
        "origin_lps_mm": [round(o, 3) for o in grid.origin],
        "centre_lps_mm": [round(float(c), 3) for c in grid.centre],
    }


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "\n" + "\n".join("  " + " ".join(f"{number:12.6f}" for number in row) for row in value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return ", ".join(value[:20]) + (f" and {len(value) - 20} more" if len(value) > 20 else "")
    if isinstance(value, list):
        return "  ".join(f"{number:.6g}" for number in value)
    if isinstance(value, dict):
        return "  ".join(f"{name} {number:.6g}" for name, number in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
