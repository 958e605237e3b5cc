"""The solver's settings and the presets that name sets of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regkit.core.errors import RegkitError

# mm. Up to here a finer working grid was worth its time: on cords, lungs and brains, not on abdomens at 3 mm.
FINE_MM = 2.0


@dataclass(frozen=True)
class Settings:
    """What the solver does.

    Args:
        summary: one line for ``--help`` and the docs.
        max_voxels: the working grid is made coarser until it has no more voxels than this.
        spacing_share: of the coarser image's spacing, to which the working grid goes where that spacing is
            at most :data:`FINE_MM`.
        search_range: mm, each way along each axis, that the coarse stage looks for a match in; never
            more than half the shortest side of the field of view.
        iterations: Adam steps of the fine stage on its two levels, coarse and fine; a coarse step costs about
            a quarter of a fine one.
        regularisation: weight of the diffusion term of the fine stage, where the coarse one found as much
            strain as is typical.
        deformable: False stops after the linear start.
    """

    summary: str
    max_voxels: int = 6_000_000
    spacing_share: float = 1.0
    search_range: float = 32.0
    iterations: tuple[int, int] = (24, 40)
    regularisation: float = 1.0
    deformable: bool = True


_DEFAULT = Settings("the best trade of accuracy against time")
PRESETS: dict[str, Settings] = {
    "default": _DEFAULT,
    "fast": replace(
        _DEFAULT, summary="coarser grid, fewer iterations", max_voxels=1_000_000, iterations=(24, 24)
    ),
    "accurate": replace(
        _DEFAULT, summary="finer grid for images of 2 mm or less", max_voxels=16_000_000, spacing_share=0.7
    ),
    "linear": replace(_DEFAULT, summary="stop after the rigid and affine stages", deformable=False),
}


def named_settings(name: str) -> Settings:
    """The preset of that name; RegkitError lists the names if there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise RegkitError(f"no preset named {name!r}; there is: {', '.join(PRESETS)}") from None
