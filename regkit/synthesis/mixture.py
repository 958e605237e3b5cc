"""The shapes and label maps that a configuration and lists of paths stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from regkit.core.errors import RegkitError
from regkit.synthesis.label_maps import LabelMaps, load_label_maps
from regkit.synthesis.shape_sources import Procedural, ShapeSource, Templates, load_archive, load_folder


def mixture(procedural: float, templates: float, paths: Sequence[Path]) -> list[tuple[ShapeSource, float]]:
    """Sources of shapes and their weights; a weight of 0 leaves a kind out.

    Args:
        procedural: weight of the built-in shapes.
        templates: weight of the templates, shared evenly among ``paths``.
        paths: packed archives (.npz) and folders of label maps.

    Raises:
        RegkitError: if templates have a weight and no path, or a path and no weight, or one cannot be read.
    """
    if templates and not paths:
        raise RegkitError(
            f"the configuration draws templates (weight {templates:g}), but there are none: give them with "
            "--templates PATH, an .npz archive or a folder of label maps, or set 'templates: 0' in it"
        )
    if paths and not templates:
        raise RegkitError(
            "the configuration draws no templates: leave --templates out, or set 'templates: 1' in it"
        )
    sources: list[tuple[ShapeSource, float]] = [(Procedural(), procedural)] if procedural else []
    sources += [(load_templates(path), templates / len(paths)) for path in paths]
    return sources


def anatomies(share: float, folders: Sequence[Path]) -> list[LabelMaps]:
    """The label maps of folders, which are drawn evenly.

    Args:
        share: of the anatomies that are label maps.

    Raises:
        RegkitError: if they have a share and no folder, or a folder and no share, or one cannot be used.
    """
    if share and not folders:
        raise RegkitError(
            f"the configuration draws whole label maps (pairs.anatomies {share:g}), but there are none: give "
            "them with --anatomies FOLDER, or set 'pairs.anatomies: 0' in it"
        )
    if folders and not share:
        raise RegkitError(
            "the configuration draws no whole label maps: leave --anatomies out, or give them a share in it, "
            "such as 'pairs.anatomies: 0.4'"
        )
    maps = []
    for folder in folders:
        with readers_needed(folder):
            maps.append(load_label_maps(folder))
    return maps


def load_templates(path: Path) -> Templates:
    """Templates from a packed archive, or from a folder of label maps.

    Raises:
        RegkitError: if there are none, or they cannot be read.
    """
    if not path.is_dir():
        return load_archive(path)
    with readers_needed(path, ", or give an .npz archive, which needs nothing"):
        return load_folder(path)


@contextmanager
def readers_needed(path: Path, instead: str = "") -> Iterator[None]:
    """A block that reads label maps, which a bare training machine cannot do.

    Args:
        instead: what else there is to do.

    Raises:
        RegkitError: if the libraries that read them are missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise RegkitError(
            f"reading the label maps in '{path}' needs {error.name}, which is not installed; install "
            f"SimpleITK, nibabel and scipy{instead}"
        ) from error
