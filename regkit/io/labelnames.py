"""Names of labels from a JSON file."""

from __future__ import annotations

from pathlib import Path

from regkit.core.errors import RegkitError
from regkit.core.jsontext import read_json


def read_label_names(path: Path | None) -> dict[int, str] | None:
    """Names of labels from a JSON object such as {"1": "liver"}; 0, background, is left out.

    The ``dataset.json`` of the Medical Segmentation Decathlon and of nnU-Net have such an object, or one of
    numbers by names, as their "labels".

    Raises:
        RegkitError: if the file is missing or holds something else, or a name is empty.
    """
    if path is None:
        return None
    content = read_json(path, "the file of label names")
    of_data_set = isinstance(content, dict) and isinstance(content.get("labels"), dict)
    if of_data_set:
        content = content["labels"]
    names: dict[int, str] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        by_name = of_data_set and type(value) is int and value >= 0
        label, name = (value, key) if by_name else (key, value)
        if not str(label).strip().isdecimal() or not isinstance(name, str):
            names.clear()
            break
        if int(label) and not name.strip():
            raise RegkitError(f"label names '{path}': the name of label {int(label)} is empty; give it one")
        names[int(label)] = name
    names.pop(0, None)
    if not names:
        raise RegkitError(
            f'label names \'{path}\' must be a JSON object such as {{"1": "liver", "2": "spleen"}}'
        )
    return names
