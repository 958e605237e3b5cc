"""Configurations: the same values in a file as in code and in YAML; every error says where it is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from regkit.core.errors import RegkitError
from regkit.pretrain.config import Config, Loss, load_config
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.pairs import Pairs

FILE = """\
# a run
width: 8
levels: 2          # fewer than usual
padding: "reflect"

learning_rate: 1   # a whole number for a float
clip: 0.5
ema: 9.9e-1
loss.offsets: [2, 4]
loss.label: 0.0
pairs.size: 32
pairs.offset: 4
pairs.ensembles.size: 40
pairs.ensembles.radius: [3, 9.5]
pairs.ensembles.count:   [5, 7]
  # the end
"""

EXPECTED = Config(
    width=8,
    levels=2,
    padding="reflect",
    learning_rate=1.0,
    clip=0.5,
    ema=0.99,
    loss=replace(Loss(), offsets=(2, 4), label=0.0),
    pairs=replace(
        Pairs(), size=32, offset=4, ensembles=replace(Ensembles(), size=40, radius=(3.0, 9.5), count=(5, 7))
    ),
)


def _written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_the_values_in_it_and_defaults_else(tmp_path: Path) -> None:
    found = load_config(_written(tmp_path, FILE))
    assert found == EXPECTED
    assert type(found.learning_rate) is float
    assert [type(v) for v in found.pairs.ensembles.radius] == [float, float]
    assert load_config(_written(tmp_path, "\n# nothing\n")) == Config()


def test_keys_may_be_nested_and_text_bare(tmp_path: Path) -> None:
    nested = """\
    width: 8
    levels: 2
    padding: reflect
    learning_rate: 1
    clip: 5e-1
    ema: 0.99
    loss: {offsets: [2, 4], label: 0.0}
    pairs:
      size: 32
      offset: 4
      ensembles: {size: 40, radius: [3, 9.5], count: [5, 7]}
    """
    assert load_config(_written(tmp_path, nested)) == EXPECTED


def test_a_configuration_survives_json() -> None:
    found = json.loads(json.dumps(EXPECTED.to_dict()))
    assert found["loss"]["offsets"] == [2, 4]
    assert found["pairs"]["ensembles"]["count"] == [5, 7]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("width 8", "line 3: could not find expected ':'"),
        ("  width: 8", "line 2: mapping values are not allowed here"),
        ("width:", "width must be a whole number, got null"),
        ("width: eight", 'width must be a whole number, got "eight"'),
        ("loss.offsets: [2, 4", "line 3: expected ',' or ']'"),
        ("width: 8 9", 'width must be a whole number, got "8 9"'),
        ("clip: .nan", "clip must be finite"),
        ("seed: 3", "line 2: seed is given twice"),
        ("a: !!python/object:os.system {}", "line 2: could not determine a constructor for the tag"),
        ("- 1", "line 2: expected <block end>"),
        ("widht: 8", "no setting widht; did you mean width? available: width, levels"),
        ("loss.afinity: 8", "no setting loss.afinity; did you mean affinity? available: affinity"),
        ("pairs.ensembles.sise: 8", "no setting pairs.ensembles.sise; did you mean size? available: size"),
        ("pairs: {ensembles: {sise: 8}}", "no setting pairs.ensembles.sise; did you mean size?"),
        ("architecture: 8", "no setting architecture"),
        ("steps.first: 8", "steps has no parts"),
        ("loss.offsets.first: 8", "loss.offsets has no parts"),
        ("loss: 8", "loss has parts; give each of them as loss.PART"),
        ("width: 8.0", "width must be a whole number, got 8.0"),
        ("width: true", "width must be a whole number, got true"),
        ("clip: true", "clip must be a number, got true"),
        ('clip: "1"', 'clip must be a number, got "1"'),
        ("padding: 1", "padding must be text, got 1"),
        ("pairs.size: null", "pairs.size must be a whole number, got null"),
        ("loss.offsets: 3", "loss.offsets must be a list of whole numbers, got 3"),
        ("loss.offsets: [3, 4.5]", "loss.offsets must be a list of whole numbers, got [3, 4.5]"),
        ("pairs.ensembles.count: [3]", "pairs.ensembles.count must be a list of 2 whole numbers, got [3]"),
        ('pairs.ensembles.radius: [3, "x"]', "pairs.ensembles.radius must be a list of 2 numbers, got [3"),
        ("pairs.size: 80", "pairs of 80"),
        ("pairs.size: 60", "pairs.size must be a multiple of 16 and at least 16 for this network, got 60"),
        ('padding: "circular"', "padding of a network must be reflect or replicate or zeros"),
        ("stride: 3", "stride of a network must be 1 or 2"),
        ("width: 0", "width of a network must be a whole number from 1"),
        ("pairs.ensembles.count: [300, 301]", "count and details of ensembles"),
    ],
)
def test_an_error_names_the_file_and_the_line_or_the_key(tmp_path: Path, line: str, message: str) -> None:
    path = _written(tmp_path, f"seed: 5\n{line}\nwarmup: 3\n")
    with pytest.raises(RegkitError, match=rf"^'{re.escape(str(path))}'.*{re.escape(message)}"):
        load_config(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match=r"cannot read the configuration '.*nowhere\.yaml'"):
        load_config(tmp_path / "nowhere.yaml")
    path = tmp_path / "run.yaml"
    path.write_bytes(b"width: \xff")
    with pytest.raises(RegkitError, match=r"cannot read the configuration '.*run\.yaml'"):
        load_config(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"clip": float("nan")}, "clip must be positive, got nan"),
        ({"weight_decay": float("inf")}, "weight_decay must be at least 0, got inf"),
        ({"ema": 1.0}, "ema must be less than 1"),
        ({"procedural": 0.0}, "procedural and templates must not both be 0"),
        ({"loss": replace(Loss(), affinity=0.0, distance=0.0, local=0.0, label=0.0)}, "must have a weight"),
        ({"padding": "reflect", "pairs": replace(Pairs(), size=16, offset=4)}, "at least 32"),
    ],
)
def test_values_that_make_no_run(change: dict[str, object], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        Config(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -0.1}, "loss.label must be at least 0"),
        ({"offsets": (3, 0)}, r"loss.offsets must be positive, got \[3, 0\]"),
        ({"offsets": ()}, "loss.offsets must not be empty"),
        ({"anchors": 1}, "loss.anchors must be at least 2"),
        ({"embedding": 0}, "loss.embedding must be at least 1"),
        ({"local_temperature": 0.0}, "loss.local_temperature must be positive"),
    ],
)
def test_numbers_that_make_no_loss(change: dict[str, object], message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        Loss(**change)  # type: ignore[arg-type]
