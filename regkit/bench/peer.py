"""What all peers share: loading a pair, timing the stages, and finding the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from dataclasses import dataclass, field, replace

from regkit.bench.dataset import Case
from regkit.core.errors import install
from regkit.core.intensity import default_ct_window, is_ct
from regkit.io.images import Volume, load_image, load_mask


@dataclass(frozen=True, eq=False)
class PeerImages:
    """The images and masks of a case, as every peer is given them.

    Args:
        window: HU, of those that are CT.
    """

    fixed: Volume
    moving: Volume
    fixed_mask: Volume | None
    moving_mask: Volume | None
    window: tuple[float, float] | None

    @classmethod
    def load(cls, case: Case) -> PeerImages:
        fixed = load_image(case.fixed.image, "fixed image")
        moving = load_image(case.moving.image, "moving image")
        ct = [is_ct(image.array) for image in (fixed, moving)]
        window = default_ct_window(ct) if any(ct) else None
        if window is not None:
            fixed, moving = (
                replace(image, array=image.array.clip(*window)) if clip else image
                for image, clip in zip((fixed, moving), ct)
            )
        fixed_mask, moving_mask = (
            None if side.mask is None else load_mask(side.mask, f"{role} mask", image.grid)
            for role, side, image in (("fixed", case.fixed, fixed), ("moving", case.moving, moving))
        )
        return cls(fixed, moving, fixed_mask, moving_mask, window)


@dataclass
class StageTimer:
    """Seconds by stage: each ends where the next begins."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


class Peer:
    """What the peers share: a module to import, of a distribution that pip installs."""

    name: str
    note: str
    module: str
    distribution: str

    def missing(self) -> str | None:
        if importlib.util.find_spec(self.module) is not None:
            try:
                self.version()
                return None
            except importlib.metadata.PackageNotFoundError:  # itk, without elastix
                pass
        return f"{self.distribution} is not installed: {install('bench')}"

    def version(self) -> str:
        return f"{self.distribution} {importlib.metadata.version(self.distribution)}"
