"""Interfaces of nipype to ``regkit register`` and ``regkit apply``.

>>> from regkit.integrations.nipype import Register
>>> node = Register(fixed="t1.nii.gz", moving="ct.nii.gz", preset="fast")  # doctest: +SKIP
>>> node.run().outputs.warp  # doctest: +SKIP

They run the command line of the Python that runs nipype, so that they work with every plugin of it. Files are
written where nipype runs the node, unless their names say otherwise.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any

from nipype.interfaces.base import (
    CommandLine,
    CommandLineInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)

_PROGRAM = f"{shlex.quote(sys.executable)} -m regkit"


class _Command(CommandLine):  # type: ignore[misc]
    """A command of regkit; where it fails, its one line is the error, and not a file that is not there."""

    def aggregate_outputs(self, runtime: Any = None, needed_outputs: Any = None) -> Any:
        """The files that were written."""
        if runtime is not None and runtime.returncode:
            self.raise_exception(runtime)
        return super().aggregate_outputs(runtime, needed_outputs)


class RegisterInputSpec(CommandLineInputSpec):  # type: ignore[misc]
    """As of ``regkit register``; ``args`` takes what is not named here."""

    fixed = File(exists=True, mandatory=True, position=0, argstr="%s", desc="the image that stays")
    moving = File(exists=True, mandatory=True, position=1, argstr="%s", desc="the image to bring onto it")
    warp = File("warp.nii.gz", usedefault=True, argstr="--output %s", desc="name of the warp")
    moved = File("moved.nii.gz", usedefault=True, argstr="--moved %s", desc="name of the moved image")
    moved_labels = File(
        argstr="--moved-labels %s", requires=["moving_labels"], desc="name of the moved labels"
    )
    inverse = File(argstr="--inverse %s", desc="name of the warp the other way")
    linear = File(argstr="--linear %s", desc="name of the linear start, an ITK transform")
    uncertainty = File(argstr="--uncertainty %s", desc="name of the image of doubt, mm")
    report = File(argstr="--report %s", desc="name of the page for a browser")
    fixed_mask = File(exists=True, argstr="--fixed-mask %s", desc="where the fixed image counts")
    moving_mask = File(exists=True, argstr="--moving-mask %s", desc="where the moving image counts")
    fixed_labels = File(
        exists=True, argstr="--fixed-labels %s", requires=["moving_labels"], desc="labels, to measure with"
    )
    moving_labels = File(exists=True, argstr="--moving-labels %s", desc="labels, to measure with and to move")
    fixed_landmarks = File(
        exists=True, argstr="--fixed-landmarks %s", requires=["moving_landmarks"], desc="points that pull"
    )
    moving_landmarks = File(
        exists=True, argstr="--moving-landmarks %s", requires=["fixed_landmarks"], desc="their partners"
    )
    init = traits.Str(argstr="--init %s", desc="where to start: a word or the file of a transform")
    preset = traits.Enum(
        "default", "fast", "accurate", "linear", "rigid", argstr="--preset %s", desc="settings"
    )
    features = traits.Enum("network+mind", "mind", "network", argstr="--features %s", desc="what is compared")
    settings = traits.List(traits.Str, argstr="--set %s...", desc="settings as key=value")
    seed = traits.Int(argstr="--seed %d", desc="of what is drawn at random")
    num_threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d", desc="CPU threads")
    memory = traits.Float(argstr="--memory %f", desc="GB to stay below")


class RegisterOutputSpec(TraitedSpec):  # type: ignore[misc]
    """The files that were asked for, and whether the result can be believed."""

    warp = File(exists=True, desc="displacement field on the fixed voxels, or a linear transform")
    moved = File(exists=True, desc="the moving image on the fixed voxels")
    moved_labels = File(exists=True, desc="the moving labels on the fixed voxels")
    inverse = File(exists=True, desc="the warp the other way")
    linear = File(exists=True, desc="the linear start")
    uncertainty = File(exists=True, desc="how far off the warp may be, mm")
    report = File(exists=True, desc="the page for a browser")
    verdict = traits.Enum("PASS", "WARN", "FAIL", desc="of the registration")
    mean_dice = traits.Float(desc="after, where labels of both images were given")


class Register(_Command):
    """Register two images: ``regkit register``."""

    _cmd = f"{_PROGRAM} register --json --overwrite"
    input_spec = RegisterInputSpec
    output_spec = RegisterOutputSpec
    _files = ("warp", "moved", "moved_labels", "inverse", "linear", "uncertainty", "report")

    def aggregate_outputs(self, runtime: Any = None, needed_outputs: Any = None) -> Any:
        """The files, with what the program said of them."""
        outputs = super().aggregate_outputs(runtime, needed_outputs)
        if runtime is None:  # of a node that ran before
            return outputs
        report = json.loads(runtime.stdout)
        outputs.verdict = report["verdict"]["level"]
        if dice := report["metrics"].get("mean_dice"):
            outputs.mean_dice = dice["after"]
        return outputs

    def _list_outputs(self) -> dict[str, str]:
        names = {name: getattr(self.inputs, name) for name in self._files}
        return {name: os.path.abspath(file) for name, file in names.items() if isdefined(file)}


class ApplyInputSpec(CommandLineInputSpec):  # type: ignore[misc]
    """As of ``regkit apply``."""

    warp = File(exists=True, mandatory=True, position=0, argstr="%s", desc="a warp or linear transform")
    image = File(exists=True, mandatory=True, position=1, argstr="%s", desc="what to move")
    moved = File("applied.nii.gz", usedefault=True, argstr="--output %s", desc="name of the result")
    reference = File(exists=True, argstr="--reference %s", desc="an image with the voxels to write")
    interpolation = traits.Enum(
        "auto", "linear", "bspline", "nearest", "label", argstr="--interpolation %s", desc="between voxels"
    )


class ApplyOutputSpec(TraitedSpec):  # type: ignore[misc]
    """What was moved."""

    moved = File(exists=True, desc="the image on the fixed voxels")


class Apply(_Command):
    """Bring an image or a label map onto the fixed image by a warp: ``regkit apply``."""

    _cmd = f"{_PROGRAM} apply --overwrite"
    input_spec = ApplyInputSpec
    output_spec = ApplyOutputSpec

    def _list_outputs(self) -> dict[str, str]:
        return {"moved": os.path.abspath(self.inputs.moved)}
