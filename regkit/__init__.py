"""Registration of 3-D medical images of any two modalities: two images in, one warp out, exact in ITK.

>>> import regkit
>>> result = regkit.register("fixed.nii.gz", "moving.nii.gz")  # doctest: +SKIP
>>> result.warp.save("warp.nii.gz")  # doctest: +SKIP

The names below are the public interface. They are imported when first used, so that ``import regkit``
and ``regkit --help`` load neither torch nor SimpleITK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regkit.core.version import __version__

if TYPE_CHECKING:
    from regkit.check import Check, check_warp
    from regkit.cohort.run import Cohort, batch
    from regkit.core.errors import FormatError, InputError, MemoryLimitError, RegkitError, UsageError
    from regkit.core.geometry import Grid
    from regkit.evaluate import LabelScore, compare_labels, target_registration_error
    from regkit.io.dicom import DicomSeries
    from regkit.io.frames import Frames, load_frames
    from regkit.io.images import ImageLike, Volume, load_image, load_labels, load_mask
    from regkit.io.outputs import save_image
    from regkit.io.points import read_pairs, read_points, write_points
    from regkit.propagation import Propagation, propagate
    from regkit.registration import register
    from regkit.registration_result import Registration
    from regkit.result_files import save_volume
    from regkit.segmentation.inference import Segmentation, segment
    from regkit.segmentation.training import Finetuned, Finetuning, finetune
    from regkit.series import AlignedSeries, align_series
    from regkit.template import Template, build_template
    from regkit.tensors import TensorRegistration, register_tensors
    from regkit.transforms import average, chain
    from regkit.verdict import Gate, Verdict
    from regkit.viz.htmlreport import write_report
    from regkit.viz.htmlvolumes import write_report_3d
    from regkit.warp import Warp

__all__ = [
    "AlignedSeries",
    "Check",
    "Cohort",
    "DicomSeries",
    "Finetuned",
    "Finetuning",
    "FormatError",
    "Frames",
    "Gate",
    "Grid",
    "ImageLike",
    "InputError",
    "LabelScore",
    "MemoryLimitError",
    "Propagation",
    "Registration",
    "RegkitError",
    "Segmentation",
    "Template",
    "TensorRegistration",
    "UsageError",
    "Verdict",
    "Volume",
    "Warp",
    "__version__",
    "align_series",
    "average",
    "batch",
    "build_template",
    "chain",
    "check_warp",
    "compare_labels",
    "finetune",
    "load_frames",
    "load_image",
    "load_labels",
    "load_mask",
    "propagate",
    "read_pairs",
    "read_points",
    "register",
    "register_tensors",
    "save_image",
    "save_volume",
    "segment",
    "target_registration_error",
    "write_points",
    "write_report",
    "write_report_3d",
]

_MODULES = {
    "check": ("Check", "check_warp"),
    "cohort.run": ("Cohort", "batch"),
    "io.dicom": ("DicomSeries",),
    "core.errors": ("FormatError", "InputError", "MemoryLimitError", "RegkitError", "UsageError"),
    "core.geometry": ("Grid",),
    "viz.htmlreport": ("write_report",),
    "viz.htmlvolumes": ("write_report_3d",),
    "io.frames": ("Frames", "load_frames"),
    "io.images": ("ImageLike", "Volume", "load_image", "load_labels", "load_mask"),
    "evaluate": ("LabelScore", "compare_labels", "target_registration_error"),
    "io.outputs": ("save_image",),
    "io.points": ("read_pairs", "read_points", "write_points"),
    "propagation": ("Propagation", "propagate"),
    "registration": ("register",),
    "registration_result": ("Registration",),
    "result_files": ("save_volume",),
    "segmentation.inference": ("Segmentation", "segment"),
    "segmentation.training": ("Finetuned", "Finetuning", "finetune"),
    "series": ("AlignedSeries", "align_series"),
    "template": ("Template", "build_template"),
    "tensors": ("TensorRegistration", "register_tensors"),
    "transforms": ("average", "chain"),
    "verdict": ("Gate", "Verdict"),
    "warp": ("Warp",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regkit' has no attribute '{name}'")
    value = getattr(import_module(f"regkit.{_HOME[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
