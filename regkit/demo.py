"""The demo: phantom images with a known warp, written as files, registered, and measured."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regkit.core.choices import PresetName
from regkit.core.jsontext import to_json
from regkit.evaluate import LandmarkErrors
from regkit.io.atomic import atomic_path
from regkit.io.outputs import save_image
from regkit.registration import register
from regkit.registration_result import Registration
from regkit.result_files import write_results
from regkit.synthesis.phantom import Phantom, torso

FILES = {
    "fixed": "fixed.nii.gz",
    "moving": "moving.nii.gz",
    "fixed_labels": "fixed_labels.nii.gz",
    "moving_labels": "moving_labels.nii.gz",
    "label_names": "label_names.json",
    "landmarks": "landmarks.csv",
    "warp": "warp.nii.gz",
    "moved": "moved.nii.gz",
    "moved_labels": "moved_labels.nii.gz",
    "figure": "demo.png",
    "metrics": "metrics.json",
}
"""What a demo writes, all in one folder."""
_RESULTS = ("warp", "moved", "moved_labels", "figure")


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo found.

    Args:
        registration: of the phantom's files.
        landmarks: errors of the phantom's landmarks.
        command: the command line that repeats the registration.
    """

    registration: Registration
    landmarks: LandmarkErrors
    command: str

    def to_dict(self) -> dict[str, Any]:
        """As of the registration, with the landmarks and the command."""
        return {**self.registration.to_dict(), "landmarks": self.landmarks.to_dict(), "command": self.command}


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    preset: PresetName = "default",
    progress: Callable[[str, float], None] | None = None,
) -> Demo:
    """Write the phantom and its registration to an existing folder, as :data:`FILES` names them.

    Args:
        seed: of the phantom and the registration.
        progress: as of :func:`regkit.register`.

    Raises:
        RegkitError: if the folder cannot be written to.
    """
    files = {name: folder / file for name, file in FILES.items()}
    report = progress or (lambda stage, done: None)
    report("phantom", 0.0)
    phantom = torso(seed)
    write_phantom(phantom, files)

    result = register(
        files["fixed"],
        files["moving"],
        fixed_labels=files["fixed_labels"],
        moving_labels=files["moving_labels"],
        label_names=phantom.names,
        preset=preset,
        seed=seed,
        progress=report,
    )
    write_results(
        result,
        {name: files[name] for name in _RESULTS},
        files["fixed"],
        files["fixed_labels"],
        files["moving_labels"],
    )
    errors = LandmarkErrors.of(phantom.landmarks_fixed, phantom.landmarks_moving, result.warp)
    demo = Demo(result, errors, _command(files, preset, seed))
    with atomic_path(files["metrics"]) as temporary:
        temporary.write_text(to_json(demo.to_dict()) + "\n", encoding="utf-8")
    return demo


def write_phantom(phantom: Phantom, files: dict[str, Path]) -> None:
    """Write a phantom's images, label maps, names of labels and landmarks.

    Args:
        files: where to, by the keys of :data:`FILES`.

    Raises:
        RegkitError: if one cannot be written.
    """
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        save_image(getattr(phantom, name).to_sitk(), files[name])
    with atomic_path(files["label_names"]) as temporary:
        temporary.write_text(to_json(phantom.names) + "\n", encoding="utf-8")
    pairs = zip(phantom.landmark_names, phantom.landmarks_fixed, phantom.landmarks_moving, strict=True)
    with (
        atomic_path(files["landmarks"]) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(["name", "fx", "fy", "fz", "mx", "my", "mz"])
        table.writerows([name, *(f"{x:.4f}" for x in (*here, *there))] for name, here, there in pairs)


def _command(files: dict[str, Path], preset: str, seed: int) -> str:
    words = ["regkit", "register", str(files["fixed"]), str(files["moving"]), "-o", str(files["warp"])]
    for name in ("moved", "moved_labels", "fixed_labels", "moving_labels", "label_names", "figure"):
        words += [f"--{name.replace('_', '-')}", str(files[name])]
    if preset != "default":
        words += ["--preset", preset]
    return shlex.join([*words, "--seed", str(seed), "--overwrite"])
