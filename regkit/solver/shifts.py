"""How two feature maps differ under every shift of whole cells, by correlations in the Fourier domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regkit.features.featuremap import FeatureMap


class Shifts:
    """Differences under all shifts of one fixed map, whose spectra are kept, and moving ones of one size.

    ``sum w_F w_M |F - M|^2 = corr(w_F F^2, w_M) + corr(w_F, w_M M^2) - 2 corr(w_F F, w_M M)``.

    Args:
        fixed: the map that shifts count from.
        size: (Z, Y, X) of the moving maps.
    """

    def __init__(self, fixed: FeatureMap, size: Sequence[int]) -> None:
        self.size = tuple(size)
        self.shape = [fast_length(a + b - 1) for a, b in zip(fixed.weight.shape[1:], self.size, strict=True)]
        values, weight = fixed.values, fixed.weight[0]
        self._weight = self._spectrum(weight).conj()
        self._squares = self._spectrum((weight * values.square()).sum(0)).conj()
        self._values = [self._spectrum(weight * value).conj() for value in values]

    def __call__(self, moving: FeatureMap) -> tuple[torch.Tensor, torch.Tensor]:
        """By shift: the weighted sum of squared differences, a mean over channels, and that of weights."""
        values, weight = moving.values, moving.weight[0]
        shown = self._spectrum(weight)
        total = self._squares * shown + self._weight * self._spectrum((weight * values.square()).sum(0))
        for one, other in zip(self._values, values, strict=True):
            total -= 2 * one * self._spectrum(weight * other)
        difference = torch.fft.irfftn(total, s=self.shape) / len(values)
        return difference, torch.fft.irfftn(self._weight * shown, s=self.shape)

    def cell(self, peak: Sequence[int]) -> list[int]:
        """(x, y, z): the cell of the moving map that lies on the first fixed one at an index of the results.

        Shifts beyond the moving map's end are the negative ones, wrapped around.
        """
        places = zip(peak, self.size, self.shape, strict=True)
        return [int(k) if k < n else int(k) - around for k, n, around in places][::-1]

    def _spectrum(self, volume: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfftn(volume, s=self.shape)


def fast_length(length: int) -> int:
    """The next length without prime factors above 5, whose Fourier transforms are several times as fast."""
    # scipy has such a function, which takes 0.08 s to import.
    while True:
        left = length
        for factor in (2, 3, 5):
            while left % factor == 0:
                left //= factor
        if left == 1:
            return length
        length += 1
