"""What a few-shot benchmark is run on: a JSON file that says where volumes lie, and how they are learnt.

One that regkit comes with is named by its name, one's own by its path::

    {
      "title": "what it is",
      "source": "where to get it",
      "images": "imagesTr/*.nii.gz",
      "labels": "labelsTr/*.nii.gz",
      "names": {"1": "left atrium"},
      "shots": [1, 2, 3],
      "held_out": 8,
      "spacing": 1.5,
      "patch": 96,
      "steps": 1000
    }

Files are matched by name as ``regkit finetune`` does; or ``subjects`` lists them: {"NAME": [image, labels]}.
``names`` may be a file of the data; ``contrast`` and ``batch`` are those of :class:`regkit.Finetuning`.
``held_out`` subjects are tested and never trained on; without it, all that were not trained on are tested.
``trained`` and ``tested`` name the subjects to draw either from. With ``rendered``, there are label maps of
heads alone, and images are made of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any, Literal

import numpy as np

from regkit.bench.dataset_files import read_object
from regkit.bench.fewshot.heads import render_heads
from regkit.core.errors import RegkitError
from regkit.io.labelnames import read_label_names
from regkit.segmentation.files import Labelled, match_files

_FOLDER = Path(__file__).with_name("layouts")
_MAX_LISTED = 1000  # ways to draw a training set, that are taken in turn; of more, one is drawn


@dataclass(frozen=True)
class Layout:
    """The content of a layout's file, as the top of the module has it."""

    name: str
    title: str
    source: str
    names: dict[str, str] | str
    shots: tuple[int, ...]
    spacing: float
    patch: int
    steps: int
    batch: int = 2
    contrast: Literal["same", "any"] = "same"
    images: str = ""
    labels: str = ""
    subjects: dict[str, list[str]] | None = None
    rendered: bool = False
    held_out: int | None = None
    trained: tuple[str, ...] = ()
    tested: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draw:
    """What one segmenter is learnt from, and what it is tested on."""

    training: tuple[Labelled, ...]
    test: tuple[Labelled, ...]


def known() -> list[str]:
    """The names of the layouts that regkit comes with."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_layout(name: str) -> Layout:
    """A layout by its name or path.

    Raises:
        RegkitError: if there is none, or a key is missing, unknown or of a wrong kind.
    """
    path = Path(name) if name.endswith(".json") else _FOLDER / f"{name}.json"
    if not path.is_file():
        raise RegkitError(f"no layout '{name}'; available: {', '.join(known())}, or a path of a .json file")
    values: dict[str, Any] = {"name": path.stem, **read_object(path, "layout")}
    keys = [field.name for field in fields(Layout)]
    unknown = sorted(set(values) - set(keys))
    if unknown:
        raise RegkitError(f"layout '{path}' has an unknown key '{unknown[0]}'; available: {', '.join(keys)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        layout = Layout(**values)
    except TypeError as error:
        raise RegkitError(f"layout '{path}' is not complete: {error}") from error
    if not (layout.subjects or (layout.labels and (layout.images or layout.rendered))):
        raise RegkitError(f"layout '{path}' must have 'images' and 'labels', or 'subjects'")
    names = layout.names if isinstance(layout.names, dict) else {}
    if not (names or isinstance(layout.names, str)) or not all(n.isdecimal() and int(n) for n in names):
        raise RegkitError(f'layout \'{path}\': names must be {{"1": "NAME"}} or the name of such a file')
    if layout.subjects and not all(len(files) == 2 for files in layout.subjects.values()):
        raise RegkitError(f"layout '{path}': each of the subjects must have an image and a label map")
    sound = all(type(n) is int and n > 0 for n in (*layout.shots, layout.patch, layout.steps, layout.batch))
    if not (sound and layout.shots and type(layout.spacing) in (int, float) and layout.spacing > 0):
        raise RegkitError(f"layout '{path}': shots, patch, steps, batch and spacing must be numbers above 0")
    return layout


def label_names(layout: Layout, data: Path) -> dict[int, str]:
    """The labels that are learnt and tested."""
    if isinstance(layout.names, str):
        return read_label_names(data / layout.names) or {}
    return {int(label): name for label, name in layout.names.items()}


def find_subjects(layout: Layout, data: Path, scratch: Path) -> list[Labelled]:
    """All subjects of a layout.

    Args:
        scratch: an existing folder, for images that are rendered.

    Raises:
        RegkitError: if there is none, or a file is missing.
    """
    if not data.is_dir():
        raise RegkitError(f"the data of {layout.name}: '{data}' is not a folder; get it from {layout.source}")
    if layout.subjects:
        subjects = [Labelled(n, *(data / file for file in files)) for n, files in layout.subjects.items()]
        missing = [path for case in subjects for path in (case.image, case.labels) if not path.is_file()]
        if missing:
            raise RegkitError(
                f"'{missing[0]}' does not exist; {layout.name} is available from {layout.source}"
            )
        return subjects
    labels = _files(data, layout.labels, layout)
    if layout.rendered:
        return render_heads(labels, label_names(layout, data), scratch)
    return match_files(_files(data, layout.images, layout), labels)


def draw(layout: Layout, subjects: list[Labelled], shots: int, seed: int) -> Draw:
    """What to train on and to test on, by the seed.

    Of few subjects, seeds take turns at all the ways to draw them, so that none comes twice before all came.

    Raises:
        RegkitError: if there are too few subjects.
    """
    pool = [case for case in subjects if not layout.trained or case.name in layout.trained]
    tested = [case for case in subjects if not layout.tested or case.name in layout.tested]
    if layout.held_out is not None:
        order = np.random.default_rng(0).permutation(len(tested))
        tested = [tested[k] for k in sorted(order[: layout.held_out])]
        pool = [case for case in pool if case not in tested]
    held = 0 if layout.held_out is None else len(tested)
    there = f"{layout.name}: {len(subjects)} volumes found, {held} held out for testing"
    remedy = "give more volumes, or fewer --shots"
    if shots > len(pool):
        raise RegkitError(f"{there}, {len(pool)} left to train on, but {shots} needed; {remedy}")
    if comb(len(pool), shots) <= _MAX_LISTED:
        ways = list(combinations(pool, shots))
        training = ways[np.random.default_rng([0, shots]).permutation(len(ways))[seed % len(ways)]]
    else:
        chosen = np.random.default_rng([seed, shots]).permutation(len(pool))[:shots]
        training = tuple(pool[k] for k in sorted(chosen))
    test = tuple(case for case in tested if case not in training)
    if not test:
        raise RegkitError(f"{there}, {shots} to train on and none left to test on, but 1 needed; {remedy}")
    return Draw(training, test)


def draws(
    layout: Layout, subjects: list[Labelled], counts: Iterable[int], seeds: int
) -> dict[tuple[int, int], Draw]:
    """By number of volumes and seed, what :func:`draw` finds for each, so that none fails halfway.

    Args:
        counts: numbers of volumes to train on.
        seeds: how many draws of each.
    """
    requested = [(shots, seed) for shots in dict.fromkeys(counts) for seed in range(seeds)]
    return {(shots, seed): draw(layout, subjects, shots, seed) for shots, seed in requested}


def _files(data: Path, pattern: str, layout: Layout) -> list[Path]:
    files = sorted(path for path in data.glob(pattern) if not path.name.startswith("."))
    if not files:
        raise RegkitError(f"no '{pattern}' in '{data}'; {layout.name} is available from {layout.source}")
    return files
