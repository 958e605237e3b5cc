"""Settings from YAML and from key=value: what is allowed passes, all else is named in one line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from regkit.core.configuration import read_assignments, read_yaml
from regkit.core.errors import RegkitError
from regkit.core.settings import PRESETS, SUMMARIES, Settings, changed_settings


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_yaml_and_every_one_differs(name: str) -> None:
    values = asdict(PRESETS[name])
    assert changed_settings("default", values) == PRESETS[name]
    assert [other for other in PRESETS if PRESETS[other] == PRESETS[name]] == [name]
    assert SUMMARIES.keys() == PRESETS.keys()


def test_only_what_is_named_changes() -> None:
    found = changed_settings("fast", {"iterations": [3, 4], "search_range": 16})
    assert found == Settings(max_voxels=1_000_000, iterations=(3, 4), search_range=16.0)
    assert type(found.search_range) is float
    assert changed_settings("fast", {}) is changed_settings("fast", None) is PRESETS["fast"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serch_range": 1}, "no setting serch_range; did you mean search_range? available: max_voxels, "),
        ({"colour": 1}, "no setting colour; available: max_voxels, "),
        ({"search_range": -1}, "search_range must be a number above 0, got -1"),
        ({"search_range": None}, "search_range must be a number above 0, got null"),
        ({"search_range": "wide"}, 'search_range must be a number above 0, got "wide"'),
        ({"search_range": float("inf")}, "search_range must be finite"),
        ({"iterations": [1]}, "iterations must be a list of 2 whole numbers of at least 0, got [1]"),
        ({"iterations": [1, 2.5]}, "iterations must be a list of 2 whole numbers"),
        ({"iterations": {"coarse": 3}}, "iterations has no parts"),
        ({"deformable": 1}, "deformable must be true or false, got 1"),
        ({"max_voxels": True}, "max_voxels must be a whole number of at least 10000, got true"),
        ({"max_voxels": 10}, "max_voxels must be a whole number of at least 10000, got 10"),
        ({"linear_model": "rigit"}, 'linear_model must be one of rigid, similarity, affine, got "rigit"'),
    ],
)
def test_what_is_not_allowed_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RegkitError) as error:
        changed_settings("default", changes)
    assert str(error.value).startswith(message)


def test_an_unknown_preset() -> None:
    with pytest.raises(RegkitError, match="no preset named acurate; did you mean accurate"):
        changed_settings("acurate", None)


def test_assignments_are_read_as_yaml() -> None:
    texts = ["a=1", "b=1e-3", "c=[1, 2]", "d = affine", "e=", "f=x=y", "loss.g=true"]
    expected = {"a": 1, "b": 1e-3, "c": [1, 2], "d": "affine", "e": None, "f": "x=y", "loss.g": True}
    assert read_assignments(texts) == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "'a' must have the form key=value"),
        (["=1"], "'=1' must have the form key=value"),
        (["a=1", "a=2"], "a is set twice"),
        (["a=[1"], r"'a=\[1': expected ',' or '\]'"),
    ],
)
def test_assignments_that_are_none(texts: list[str], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        read_assignments(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a is given twice"),
        ("a: {b: 1, b: 2}\n", "b is given twice"),
        ("- a\n", "must hold lines of the form 'key: value'"),
        ("1: a\n", "must hold lines of the form 'key: value'"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(RegkitError, match=message):
        changed_settings("default", read_yaml(path))
