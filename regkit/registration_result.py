"""The result of a registration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from regkit.core.choices import Stage
from regkit.core.geometry import Float64
from regkit.evaluate import LabelScores
from regkit.io.images import Volume
from regkit.io.provenance import record_of
from regkit.ops.jacobian import Smoothness
from regkit.ops.resample import Source, resample
from regkit.runtime.memory import peak_mb
from regkit.solver.linear import LinearStart
from regkit.stages import Timings
from regkit.verdict import Verdict
from regkit.warp import Warp


@dataclass(frozen=True)
class Evidence:
    """What one kind of features was worth on the pair (:mod:`regkit.solver.evidence`).

    Args:
        share: of its usual weight that it kept; with 0 it was left out.
        blur_of_match: how far its matches blur into their neighbours, 0 to 1.
    """

    share: float
    blur_of_match: float

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False, repr=False)
class Registration:
    """The result of :func:`register`.

    Args:
        warp: displacement field on the fixed grid, LPS mm.
        start: the linear start that the warp includes.
        smoothness: of the warp.
        feature_difference: mean squared difference of the features over the overlap, after the linear start
            ("linear") and at the end ("after"); empty for a linear result.
        evidence: what each kind of features was worth, by name; empty for a linear result.
        timings: seconds by stage, ``total`` last.
        memory: peak MB of the process up to the end of each stage, then what was ``foretold``, then the
            ``peak``.
        settings: everything that the run depends on.
        verdict: whether the result can be trusted (:mod:`regkit.verdict`).
        moving: the moving image, as loaded.
        label_scores: Dice and HD95 before, after the linear start and at the end, if labels were given.
        landmarks_mm: mean distance of the landmarks that were given, mm, at the same stages.
        moved_labels: the moving labels on the fixed grid, by nearest neighbour, if they were given.
        doubt: ``uncertainty`` on the cells of the solver, mm.
    """

    warp: Warp
    start: LinearStart
    smoothness: Smoothness
    feature_difference: Mapping[Stage, float]
    evidence: Mapping[str, Evidence]
    timings: Timings
    memory: Mapping[str, float]
    settings: dict[str, Any]
    verdict: Verdict
    moving: Volume
    label_scores: LabelScores | None = None
    landmarks_mm: Mapping[Stage, float] | None = None
    moved_labels: Volume | None = None
    doubt: Source | None = None

    @property
    def linear(self) -> Float64:
        """The linear start, 4x4, fixed LPS mm -> moving LPS mm."""
        return self.start.matrix

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All measures as they stand in JSON.

        ``folding_percent``, ``sd_log_jacobian``, ``feature_difference``, ``evidence`` and, if landmarks or
        labels were given, ``landmarks_mm``, and ``mean_dice``, ``mean_hd95_mm`` and ``labels``
        (:meth:`regkit.evaluate.LabelScores.to_dict`).
        """
        return {
            **self.smoothness.to_dict(),
            "feature_difference": dict(self.feature_difference),
            "evidence": {name: evidence.to_dict() for name, evidence in self.evidence.items()},
            **({} if self.landmarks_mm is None else {"landmarks_mm": dict(self.landmarks_mm)}),
            **({} if self.label_scores is None else self.label_scores.to_dict()),
        }

    @cached_property
    def moved(self) -> Volume:
        """The moving image on the fixed grid, linearly interpolated, float32."""
        return self.warp.apply(self.moving)

    @cached_property
    def uncertainty(self) -> Volume | None:
        """The possible error of the warp at each voxel of the fixed grid, mm, float32; None if linear.

        It comes from how well the features tell the match from its neighbours
        (:func:`regkit.solver.evidence.doubt`). Where the moving image has no data, or the features tell
        nothing, it is the largest value there is.
        """
        if self.doubt is None:
            return None
        values, _ = resample(self.doubt, np.eye(4), self.warp.grid)
        return Volume(values.cpu().numpy(), self.warp.grid)

    def provenance(self, **inputs: object) -> dict[str, Any]:
        """Where the result comes from, for :func:`regkit.io.provenance.write_record`.

        Args:
            inputs: the files that were registered, by their roles, such as ``fixed="fixed.nii.gz"``.

        Returns:
            Version, settings and the hashes of the inputs.
        """
        return record_of(inputs, self.settings)

    def with_writing(self, seconds: float) -> Registration:
        """The same with the time and the memory that its files took, as the stage "write".

        Args:
            seconds: of writing, which count in the total as the peak counts in ``peak``.
        """
        stages, peak = {**self.timings.stages, "write": seconds}, peak_mb()
        memory = {stage: mb for stage, mb in self.memory.items() if stage != "peak"}
        memory |= {"write": peak, "peak": max(peak, self.memory["peak"])}
        return replace(self, timings=Timings(stages), memory=memory)

    def to_dict(self) -> dict[str, Any]:
        """Measures, verdict, times and settings, ready for JSON but for NaN."""
        return {
            "metrics": self.metrics,
            "verdict": self.verdict.to_dict(),
            "seconds": self.timings.to_dict(),
            "memory_mb": dict(self.memory),
            "settings": self.settings,
            "linear": self.linear.tolist(),
        }

    def __repr__(self) -> str:
        grid, settings, smooth = self.warp.grid, self.settings, self.smoothness
        size, spacing = " x ".join(map(str, grid.size)), " x ".join(f"{s:.3g}" for s in grid.spacing)
        facts = {
            "verdict": self.verdict.level,
            "warp": f"{size} voxels of {spacing} mm",
            "start": f"{self.start.origin}, {self.start.model}, similarity {self.start.similarity:.2f}",
            "compared": ", ".join(f"{name} {one.share:.2f}" for name, one in self.evidence.items()),
            "folding": f"{smooth.folding_percent:.2f} %, SD of log J {smooth.sd_log_jacobian:.3f}",
            "Dice": _by_stage(None if self.label_scores is None else self.label_scores.mean_dice, 3),
            "landmarks": _by_stage(self.landmarks_mm, 2, " mm"),
            "time": f"{self.timings.total:.1f} s",
            "memory": f"{self.memory['peak']:.0f} MB",
        }
        head = f"Registration of {settings.get('moving')!r} onto {settings.get('fixed')!r}"
        return "\n".join([head, *(f"  {name:<10}{text}" for name, text in facts.items() if text)])


def _by_stage(values: Mapping[Stage, float] | None, digits: int, unit: str = "") -> str:
    return ", ".join(f"{stage} {value:.{digits}f}{unit}" for stage, value in (values or {}).items())
