"""How exactly ``regkit series`` finds rigid motion: heads of known motion, rendered from label maps.

    python benchmarks/series_motion.py ../shared/data/anatomies/heads/training_seg_03.nii.gz --seed 9

The head gets random contrasts and a texture, seen in frames of 3x3x3.5 mm, each moved, with Rician noise.
The error is how far brain tissue is off relative to the first frame, mean and largest over the others, mm.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import regkit
from regkit.core.geometry import Float64, Grid, affine_transform, linear_about, transform_points
from regkit.io.frames import Frames

SIZE, SPACING = (72, 84, 44), (3.0, 3.0, 3.5)
BRAIN_BELOW = 100  # FreeSurfer's numbers
CASES = {
    "fMRI: 1.5 mm, 1.5 degrees": {},
    "three times the noise": {"noise": 0.06},
    "contrast changes by structure (DCE)": {"gain": 1.5},
    "large: 8 mm, 8 degrees": {"mm": 8.0, "degrees": 8.0},
}


def moving_head(
    file: Path,
    seed: int,
    frames: int,
    noise: float = 0.02,
    gain: float = 0.0,
    mm: float = 1.5,
    degrees: float = 1.5,
) -> tuple[Frames, list[Float64], Float64]:
    """A series, the true motion of its frames (first frame to each), and points of the brain.

    Args:
        noise: of the brightest tissue.
        gain: up to which share of itself the signal of a structure grows to the end.
        mm, degrees: typical size of shifts and turns.
    """
    image = sitk.ReadImage(str(file))
    labels = sitk.GetArrayFromImage(image).astype(int)
    grid = Grid.from_sitk(image)
    random = np.random.default_rng(seed)
    present = np.unique(labels)
    signal = dict(zip(present.tolist(), random.uniform(0.2, 1, len(present)).tolist())) | {0: 0.0, 515: 0.08}
    growth = dict(zip(present.tolist(), (gain * random.uniform(0, 1, len(present))).tolist()))
    texture = gaussian_filter(random.normal(size=labels.shape), 2)
    texture = 1 + 0.05 * texture / texture.std()
    brain = transform_points(
        grid.index_to_world, np.argwhere((labels > 0) & (labels < BRAIN_BELOW))[::997, ::-1]
    )
    centre = brain.mean(0)
    direction = Rotation.from_euler("xyz", (8, -4, 3), degrees=True).as_matrix()
    origin = centre - direction * SPACING @ ((np.array(SIZE) - 1) / 2)
    own = Grid(SIZE, SPACING, tuple(origin), tuple(direction.ravel()))
    blur = [0.42 * s / h for s, h in zip(SPACING[::-1], grid.spacing[::-1])]
    table = np.zeros(labels.max() + 1)
    arrays, truth = [], []
    for k in range(frames):
        for label in present:
            table[label] = signal[int(label)] * (1 + growth[int(label)] * k / frames)
        shown = gaussian_filter((table[labels] * texture).astype(np.float32), blur)
        turn = Rotation.from_rotvec(random.normal(size=3) * degrees / 2 * (k > 0), degrees=True)
        matrix = linear_about(centre, turn.as_matrix(), random.normal(size=3) * mm / 2 * (k > 0))
        resampled = sitk.Resample(
            grid.to_sitk(shown), own.blank(), affine_transform(np.linalg.inv(matrix)), sitk.sitkLinear
        )
        array = sitk.GetArrayFromImage(resampled)
        array = np.hypot(
            array + noise * random.normal(size=array.shape), noise * random.normal(size=array.shape)
        )
        arrays.append(1000 * array.astype(np.float32))
        truth.append(matrix)
    return Frames(np.array(arrays), own, 2.0), truth, brain


def errors(estimated: list[Float64], truth: list[Float64], points: Float64) -> Float64:
    """mm, of the frames but the first, to which both are taken."""
    back = np.linalg.inv(estimated[0])
    off = [
        np.linalg.norm(transform_points(one @ back, points) - transform_points(true, points), axis=1).mean()
        for one, true in zip(estimated, truth)
    ]
    return np.array(off[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | motion | after `regkit series` | s a frame |\n|---|---|---|---|", flush=True)
    for name, case in CASES.items():
        series, truth, points = moving_head(options.head, options.seed, options.frames, **case)
        start = time.perf_counter()
        result = regkit.align_series(series)
        seconds = (time.perf_counter() - start) / len(series)
        before = errors([np.eye(4)] * len(series), truth, points)
        after = errors(list(result.matrices), truth, points)
        cells = [f"{e.mean():.2f} / {e.max():.2f}" for e in (before, after)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
