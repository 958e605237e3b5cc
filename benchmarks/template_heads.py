"""A template of heads that are rendered from label maps: is it sharper than the affine mean, and by how much?

    python benchmarks/template_heads.py ../shared/data/anatomies/heads -o heads/ [--images 8]
    python benchmarks/template_heads.py trunks -o trunks/ --spacing 8   # the MR of made-up trunks instead

All heads get one T1-like contrast, each with a texture, bias field, noise and pose of its own. The
template sees the images alone. Then the label maps are taken through the maps, after the affine rounds and in
the end, and compared with each other: Dice of each with what most of the others say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import regkit
from regkit.core.geometry import Grid, affine_transform, linear_about, transform_points
from regkit.io.formats import read_linear
from regkit.io.frames import Frames
from regkit.synthesis.phantom import torso
from regkit.template import build_template, sharpness
from regkit.warp import Warp

EXTENT = np.array([180.0, 220.0, 200.0])  # mm
# FreeSurfer's numbers, left and right as one: what shows, and how bright it is in a T1.
TISSUES = {
    "white matter": ((2, 41), 0.95),
    "cortex": ((3, 42), 0.62),
    "ventricles": ((4, 43, 14, 15), 0.18),
    "cerebellum, white": ((7, 46), 0.9),
    "cerebellum, cortex": ((8, 47), 0.6),
    "thalamus": ((10, 49), 0.75),
    "caudate": ((11, 50), 0.66),
    "putamen": ((12, 51), 0.7),
    "pallidum": ((13, 52), 0.82),
    "brain stem": ((16,), 0.85),
    "hippocampus": ((17, 53), 0.62),
}
OUTSIDE = {24: 0.15, 506: 0.3, 507: 0.5, 511: 0.8, 515: 0.1}  # of the rest, CSF to skull; others 0.4


def render(file: Path, seed: int, spacing: float) -> tuple[sitk.Image, sitk.Image]:
    """The image of a head and its label map, numbered as TISSUES, in a pose of their own."""
    random = np.random.default_rng(seed)
    source = sitk.ReadImage(str(file))
    step = int(spacing // 2) or 1  # finer detail does not show
    source = source[::step, ::step, ::step]
    ids = sitk.GetArrayFromImage(source).astype(int)
    grid = Grid.from_sitk(source)
    table, names = np.full(ids.max() + 1, 0.4, np.float32), np.zeros(ids.max() + 1, np.uint8)
    table[0] = 0
    for one, value in OUTSIDE.items():
        table[one] = value
    for k, (numbers, value) in enumerate(TISSUES.values(), start=1):
        table[list(numbers)], names[list(numbers)] = value, k
    texture = gaussian_filter(random.normal(size=ids.shape).astype(np.float32), 2 / step)
    image = gaussian_filter(table[ids] * (1 + 0.05 * texture / texture.std()), 0.42 * spacing / step)
    brain = np.argwhere(names[ids] > 0)[::499, ::-1]
    centre = transform_points(grid.index_to_world, brain.mean(0))
    size = np.rint(EXTENT / spacing).astype(int)
    own = Grid(tuple(size), (spacing,) * 3, tuple(-spacing * (size - 1) / 2))
    turn = Rotation.from_euler("xyz", random.uniform(-8, 8, 3), degrees=True)
    # The head's axes, whatever they are in the file, are those of the grid: all files are alike.
    pose = linear_about(np.zeros(3), turn.as_matrix(), centre + random.uniform(-5, 5, 3))
    paths = []
    for volume, kind in ((image, sitk.sitkLinear), (names[ids], sitk.sitkNearestNeighbor)):
        paths.append(sitk.Resample(grid.to_sitk(volume), own.blank(), affine_transform(pose), kind, 0.0))
    noisy = sitk.GetArrayFromImage(paths[0])
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in noisy.shape), indexing="ij")
    slope = random.uniform(-0.15, 0.15, 3)
    noisy = noisy * np.exp(slope[0] * x + slope[1] * y + slope[2] * z) + 0.02 * random.normal(
        size=noisy.shape
    )
    scanned = own.to_sitk((random.uniform(500, 1500) * noisy).astype(np.float32))
    return scanned, sitk.Cast(paths[1], sitk.sitkUInt8)


def trunk(seed: int, spacing: float) -> tuple[sitk.Image, sitk.Image, dict[int, str]]:
    """The MR of a phantom, its label map and what its labels are."""
    phantom = torso(seed, spacing)
    return phantom.fixed.to_sitk(), phantom.fixed_labels.to_sitk(), phantom.names


def agreement(
    labels: list[sitk.Image], transforms: list[sitk.Transform], grid: Grid, tissues: int
) -> np.ndarray:
    """(images, tissues): Dice of each label map with the majority of the others, all through their maps."""
    moved = np.stack(
        [
            sitk.GetArrayFromImage(sitk.Resample(one, grid.blank(), transform, sitk.sitkNearestNeighbor))
            for one, transform in zip(labels, transforms, strict=True)
        ]
    )
    count = tissues + 1
    votes = np.stack([(moved == k).sum(0) for k in range(count)]).astype(np.int16)
    rows = []
    for one in moved:
        majority = (votes - np.stack([one == k for k in range(count)])).argmax(0)
        dice = [
            2 * ((one == k) & (majority == k)).sum() / max((one == k).sum() + (majority == k).sum(), 1)
            for k in range(1, count)
        ]
        rows.append(dice)
    return np.array(rows)


def picture(volumes: dict[str, regkit.Volume], path: Path) -> None:
    """Middle slices side by side."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(volumes), figsize=(3.2 * len(volumes), 6.6), layout="constrained")
    for column, (name, volume) in zip(axes.T, volumes.items()):
        middle = np.array(volume.array.shape) // 2
        top = float(np.percentile(volume.array, 99.5))
        for axis, slice_ in zip(column, (volume.array[middle[0]][::-1], volume.array[:, middle[1]][::-1])):
            axis.imshow(slice_, cmap="gray", vmin=0, vmax=top)
            axis.set_axis_off()
        column[0].set_title(name, fontsize=11)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("heads", type=Path, help="folder of label maps, or 'trunks'")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--spacing", type=float, default=2.5, help="mm")
    parser.add_argument("--affine-rounds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(exist_ok=True, parents=True)
    files, labels, tissues = [], [], list(TISSUES)
    trunks = str(options.heads) == "trunks"
    for n in range(options.first, options.first + options.images):
        if trunks:
            image, label_map, names = trunk(n, options.spacing)
            tissues = list(names.values())
        else:
            image, label_map = render(options.heads / f"training_seg_{n:02d}.nii.gz", n, options.spacing)
        files.append(options.output / f"{'trunk' if trunks else 'head'}{n:02d}.nii.gz")
        sitk.WriteImage(image, str(files[-1]))
        labels.append(label_map)

    def report(stage: str, done: float) -> None:
        print(f"{100 * done:3.0f} % {stage}", flush=True)

    made = build_template(
        files,
        options.output / "template",
        affine_rounds=options.affine_rounds,
        rounds=options.rounds,
        progress=report,
    )
    grid = made.image.grid
    affine = [affine_transform(read_linear(file)) for file in made.affine]
    final = [Warp.load(file).to_sitk() for file in made.transforms]
    header = [sitk.Transform(3, sitk.sitkIdentity)] * len(files)
    dice = {name: agreement(labels, maps, grid, len(tissues)) for name, maps in
            (("headers", header), ("affine mean", affine), ("template", final))}  # fmt: skip
    print(
        "| structure | "
        + " | ".join(f"Dice, {name}" for name in dice)
        + " |\n|---"
        + "|---" * len(dice)
        + "|"
    )
    for k, tissue in enumerate(tissues):
        print(f"| {tissue} | " + " | ".join(f"{d[:, k].mean():.3f}" for d in dice.values()) + " |")
    print("| mean | " + " | ".join(f"{d.mean():.3f}" for d in dice.values()) + " |")
    one = regkit.load_image(files[0], "image")
    print(f"\nsharpness of one image {sharpness(one):.4f}")
    for row in made.rounds:
        bias, failed = row["displacement_mm"], row["failed"]
        print(f"{row['stage']}: sharpness {row['sharpness']:.4f}, bias {bias:.2f} mm, failed {failed}")
    plain = Frames(
        np.stack(
            [sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage(str(f)), grid.blank())) for f in files]
        ),
        grid,
    ).array.mean(0)
    volumes = {
        "one image": one,
        "mean by the headers": regkit.Volume(plain, grid),
        "affine mean": made.affine_mean,
        "template": made.image,
    }
    picture(volumes, options.output / "template.png")


if __name__ == "__main__":
    main()
