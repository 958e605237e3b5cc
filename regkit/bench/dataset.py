"""Data sets of the benchmark and their cases: which files to register, and what to measure on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Side:
    """The files of one image.

    Args:
        image: the image.
        labels: its label map, on its grid; used for measuring alone.
        mask: where it counts, for the methods that can use it; the official smoothness of Learn2Reg is
            measured inside the fixed one.
    """

    image: Path
    labels: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Case:
    """One registration of a data set.

    Args:
        name: of the pair, such as "0001"; with the direction it is unique within its data set.
        direction: which side is fixed, such as "mr2ct" (the MR moves onto the CT).
        fixed, moving: the files.
        labels: label -> name, those that are scored; empty if there are none.
        landmarks: CSV with columns fx,fy,fz,mx,my,mz, LPS mm, or None.
        exchanged: whether the columns m of the landmarks are those of the fixed image.
    """

    name: str
    direction: str
    fixed: Side
    moving: Side
    labels: dict[int, str]
    landmarks: Path | None = None
    exchanged: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As :meth:`from_dict` takes it, ready for JSON; paths are absolute."""
        values = asdict(self)
        for side in ("fixed", "moving"):
            values[side] = {what: _text(path) for what, path in values[side].items()}
        values["labels"] = {str(label): name for label, name in self.labels.items()}
        values["landmarks"] = _text(self.landmarks)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        fixed, moving = (
            Side(Path(side["image"]), _path(side["labels"]), _path(side["mask"]))
            for side in (values["fixed"], values["moving"])
        )
        return cls(
            values["name"],
            values["direction"],
            fixed,
            moving,
            {int(k): v for k, v in values["labels"].items()},
            _path(values["landmarks"]),
            values["exchanged"],
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


@dataclass(frozen=True)
class Request:
    """Which cases of a data set are wanted.

    Args:
        data: the folder of the data set as it was downloaded; None if the data set makes its own.
        pairs: names of pairs, or of groups of them that the data set knows; empty for its default.
        directions: of those the data set has; empty for its default.
        scratch: an existing folder for what has to be made first, such as volumes on coarser voxels; it is
            kept for the next run with the same results folder.
        pairing: a file that says which subjects are paired, where the data set leaves that open.
    """

    data: Path | None
    pairs: Sequence[str]
    directions: Sequence[str]
    scratch: Path
    pairing: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set that can be benchmarked.

    Args:
        name: as on the command line.
        title: one line.
        source: where the data are to be had, for messages.
        directions: all there are, the default ones first.
        default_directions: how many of them are done if none is asked for.
        cases: all that were asked for, after a check of every file.
        note: what a reader of its tables has to know, Markdown.
    """

    name: str
    title: str
    source: str
    directions: tuple[str, ...]
    default_directions: int
    cases: Callable[[Request], list[Case]]
    note: str = ""
