"""The pairs of a BIDS data set, and where BIDS puts what is derived from them: https://bids.neuroimaging.io"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from regkit.cohort.pairs import Pair, checked
from regkit.core.errors import RegkitError, install, reason
from regkit.core.jsontext import to_json
from regkit.io.atomic import atomic_path

_VERSION = "1.9.0"  # of BIDS, whose names are used
_IGNORE = ".bidsignore"
_DESCRIPTION = "dataset_description.json"


def bids_pairs(root: Path, fixed: str, moving: str) -> list[Pair]:
    """Pairs the images of each subject: every moving one with the fixed one of its session.

    Where the session has no fixed image, and the subject has one in all, it is that.

    Args:
        root: of the data set, with its ``dataset_description.json``.
        fixed, moving: which images, by entities of their names: ``suffix=T1w,session=1``.

    Raises:
        RegkitError: if pybids is missing, this is no BIDS data set, there are no such images, or an image has
            several fixed ones.
    """
    try:
        from bids import BIDSLayout
    except ImportError as error:
        raise RegkitError(f"BIDS data sets need pybids: {install('bids')}") from error
    if not root.is_dir():
        raise RegkitError(f"'{root}' is not a folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layout = BIDSLayout(root)
            sides = [
                layout.get(extension=[".nii", ".nii.gz"], **_entities(query, layout))
                for query in (fixed, moving)
            ]
    except RegkitError:
        raise
    except Exception as error:  # of whichever kind pybids has for what it does not like
        raise RegkitError(f"'{root}' cannot be read as a BIDS data set: {reason(error)}") from error
    for files, query in zip(sides, (fixed, moving)):
        if not files:
            raise RegkitError(f"'{root}' has no image with {query}")
    by_subject: dict[str, list[Any]] = defaultdict(list)
    for file in sides[0]:
        by_subject[file.entities.get("subject", "")].append(file)
    taken = {file.path for file in sides[0]}
    pairs = []
    for file in sides[1]:
        if file.path in taken:
            continue
        candidates = by_subject[file.entities.get("subject", "")]
        session = file.entities.get("session")
        near = [one for one in candidates if one.entities.get("session") == session] or candidates
        if not near:
            raise RegkitError(f"'{file.relpath}' has no fixed image ({fixed}) of its subject")
        if len(near) > 1:
            raise RegkitError(
                f"'{file.relpath}' has several fixed images: {', '.join(one.relpath for one in near)}; name "
                "more entities, such as run=1"
            )
        pairs.append(_pair(near[0], file))
    if not pairs:
        raise RegkitError("all the moving images are fixed ones as well; name other entities")
    return checked(pairs)


def describe_derivatives(folder: Path, made_by: str) -> None:
    """Say in the folder of results that it is a BIDS derivative, unless that is said there.

    Args:
        made_by: regkit's version.

    Raises:
        RegkitError: if it cannot be written.
    """
    description = {
        "Name": "Registrations by regkit",
        "BIDSVersion": _VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "regkit", "Version": made_by}],
    }
    # The records beside the results, and what tells of the whole cohort, are none of BIDS.
    ignored = "*.nii.gz.json\nsummary.csv\nreport.html\n"
    for name, text in ((_DESCRIPTION, to_json(description) + "\n"), (_IGNORE, ignored)):
        if not (folder / name).exists():
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _entities(query: str, layout: Any) -> dict[str, Any]:
    """The entities of a query, such as suffix=T1w,session=1."""
    known = set(layout.get_entities())
    entities: dict[str, Any] = {}
    for part in query.split(","):
        name, sign, value = (word.strip() for word in part.partition("="))
        if not sign or not value:
            raise RegkitError(f"'{part}' names no entity; write it as suffix=T1w,session=1")
        if name not in known:
            raise RegkitError(f"no entity '{name}' in this data set; available: {', '.join(sorted(known))}")
        entities[name] = int(value) if name in ("run", "echo", "inv") and value.isdecimal() else value
    return entities


def _pair(fixed: Any, moving: Any) -> Pair:
    """The pair of two files, its results named after the moving one as BIDS names derivatives."""
    here, there = fixed.entities["suffix"], moving.entities["suffix"]
    stem = Path(moving.path).name.split(".")[0]
    start = stem.removesuffix(f"_{there}")
    if here == there:  # of one kind: their sessions or runs tell them apart
        here, there = _label(fixed), _label(moving)
    folder = Path(moving.relpath).parent.as_posix()
    base = f"{folder}/{start}"
    of_moving = f"{base}_space-{here}_{moving.entities['suffix']}"
    places = {
        "warp": f"{base}_from-{there}_to-{here}_mode-image_xfm.nii.gz",
        "inverse": f"{base}_from-{here}_to-{there}_mode-image_xfm.nii.gz",
        "linear": f"{base}_from-{there}_to-{here}_mode-image_desc-linear_xfm.tfm",
        "moved": f"{of_moving}.nii.gz",
        "uncertainty": f"{base}_space-{here}_desc-uncertainty_{moving.entities['suffix']}.nii.gz",
        "figure": f"{base}_space-{here}_desc-registration_{moving.entities['suffix']}.png",
        "report": f"{base}_space-{here}_desc-registration_{moving.entities['suffix']}.html",
    }
    return Pair(f"{start}_from-{there}_to-{here}", Path(fixed.path), Path(moving.path), places=places)


def _label(file: Any) -> str:
    """What tells a file from others of its subject, as the letters and digits that BIDS allows."""
    stem = Path(file.path).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9]", "", "".join(stem.split("_")[1:]))
