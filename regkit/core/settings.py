"""The solver's settings and the presets that name sets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt

from regkit.core.choices import LinearModel, PresetName
from regkit.core.configuration import build, unknown_name

# mm. Up to here a much finer working grid was worth its time: on cords, lungs and brains. Abdomens and heads
# at 3 mm gain from one that is a little finer, and lose from another.
FINE_MM = 2.0


@dataclass(frozen=True)
class Settings:
    """What the solver does.

    The last text of a field's annotation says what it is for, here and in ``regkit presets show``.
    """

    max_voxels: Annotated[
        int, Ge(10_000), "the working grid is made coarser until it has no more voxels than this"
    ] = 6_000_000
    spacing_share: Annotated[
        tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]],
        "shares of the coarser image's spacing that the working grid gets: up to 2 mm, and beyond",
    ] = (1.0, 1.0)
    search_range: Annotated[
        float, Gt(0), "mm each way that the coarse stage looks for a match in, within half the field of view"
    ] = 32.0
    iterations: Annotated[
        tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]],
        "of the fine stage on its coarse and its fine level; a coarse one costs a quarter of a fine one",
    ] = (24, 40)
    regularisation: Annotated[
        float, Ge(0), "weight of smoothness in the fine stage, where the strain is typical"
    ] = 1.0
    deformable: Annotated[bool, "false stops after the linear start"] = True
    landmark_weight: Annotated[
        float, Ge(0), "how firmly landmarks hold; with 1, one that is a cell off costs as 8 cells of mismatch"
    ] = 1.0
    guide_weight: Annotated[
        float, Ge(0), "of a cell whose guide labels differ, where a cell of unlike features costs up to 1"
    ] = 1.0
    linear_model: Annotated[LinearModel, "the most that the linear start may fit"] = "affine"


PRESETS: dict[PresetName, Settings] = {
    "default": Settings(),
    "fast": Settings(max_voxels=1_000_000, iterations=(24, 24)),
    "accurate": Settings(
        max_voxels=16_000_000, spacing_share=(0.7, 0.9), iterations=(48, 80), regularisation=1.5
    ),
    "linear": Settings(deformable=False),
    "rigid": Settings(deformable=False, linear_model="rigid"),
}
SUMMARIES: dict[PresetName, str] = {
    "default": "the best trade of accuracy against time",
    "fast": "coarser grid, fewer iterations",
    "accurate": "finer grid, twice the iterations",
    "linear": "stop after the rigid and affine stages",
    "rigid": "stop after the rigid stage",
}


def preset_name(name: str) -> PresetName:
    """The name, if it is that of a preset; RegkitError lists the names if not."""
    if name not in PRESETS:
        raise unknown_name(name, list(PRESETS), "preset named")
    return name


def named_settings(name: str) -> Settings:
    """The preset of that name; RegkitError lists the names if there is none."""
    return PRESETS[preset_name(name)]


def changed_settings(preset: str, changes: Mapping[str, Any] | None) -> Settings:
    """A preset with some of its values replaced.

    Args:
        changes: by the names of :class:`Settings`, as from a configuration file.

    Raises:
        RegkitError: if there is no such preset or setting, or a value is not allowed; it says what is.
    """
    settings = named_settings(preset)
    if not changes:
        return settings
    checked = asdict(build(Settings, changes))
    return replace(settings, **{name: checked[name] for name in changes})
