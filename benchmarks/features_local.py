"""Train a small local descriptor beside MIND, and measure what it adds on the open pairs.

    python benchmarks/features_local.py train FILE.safetensors --anatomies FOLDER --minutes 20 [--start FILE]
    python benchmarks/features_local.py measure FILE.safetensors [--pairs choosing] [--starts 3] [-o FILE]

An experiment, which is not part of the features: what came of it is in docs/pretraining.md. The network sees
some 14 voxels and knows no anatomy. It learns what the solver asks of features: among the 7^3 cells around a
place of one image, which is its partner in another image of the same anatomy, or of another person's, in any
contrast. MIND is compared beside it while it learns, so that it need not learn what MIND tells.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from features import HEAD, chosen, gain, kept_starts, line, summary
from open_pairs import DIRECTIONS, ROOT, run, setting, write_rows
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from regkit.features.maps import Part, feature_parts, mind_ssc
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.appearance import bias, blurred
from regkit.synthesis.mixture import anatomies, mixture
from regkit.synthesis.noise import Rng, random_turn, smooth_noise
from regkit.synthesis.pairs import Pairs, draw_anatomy

SIDE = 40  # voxels of an image
_FINE = 2 * SIDE  # anatomies are drawn on voxels of half the size: partial volume
_MARGIN = 24  # of the drawn block, fine voxels: the second view is turned and shifted
_RADIUS = 3  # cells around the partner that a place is looked for in
_TARGET = 0.45  # cells, standard deviation of where the partner is said to be
_MIND_CHANNELS = 12


class Local(nn.Module):
    """From images (N, 1, Z, Y, X), sides even, to descriptors (N, out, Z / 2, Y / 2, X / 2), shorter than 1.

    The voxels of a cell are channels, each less the mean around the cell, over the deviation there.
    """

    def __init__(self, width: int = 24, out: int = 16, radii: Sequence[int] = (1, 3)) -> None:
        super().__init__()
        self.radii = tuple(radii)
        widths = [8 * len(self.radii), width, width, out]
        self.layers = nn.ModuleList(
            nn.Conv3d(a, b, 3, padding=1, padding_mode="replicate") for a, b in pairwise(widths)
        )
        for layer, scale in zip(self.layers, (1, 0.5, 0.15)):
            assert isinstance(layer, nn.Conv3d) and layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layer.weight.data.mul_(scale)

    def seen(self, images: torch.Tensor) -> torch.Tensor:
        count, _, *shape = images.shape
        z, y, x = (n // 2 for n in shape)
        cells = images.view(count, z, 2, y, 2, x, 2).permute(0, 2, 4, 6, 1, 3, 5).reshape(count, 8, z, y, x)
        first, second = cells.mean(1, keepdim=True), cells.square().mean(1, keepdim=True)
        tensors = []
        for radius in self.radii:
            mean, square = (
                F.avg_pool3d(F.pad(moment, (radius,) * 6, mode="replicate"), 2 * radius + 1, 1)
                for moment in (first, second)
            )
            deviation = (square - mean * mean).clamp_min(1e-8).sqrt()
            floor = 0.15 * deviation.mean((2, 3, 4), keepdim=True) + 1e-4
            tensors.append((cells - mean) / (deviation + floor))
        return torch.cat(tensors, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second, last = self.layers
        x = F.relu(first(self.seen(images)))
        x = x + F.relu(second(x))
        x = last(x)
        return x * torch.rsqrt(1 + x.square().sum(1, keepdim=True))


@dataclass(frozen=True)
class Pair:
    """Two images of an anatomy, and where the cells of the first lie in the second.

    Args:
        images: (2, Z, Y, X) in [0, 1].
        partner: (3, Z / 2, Y / 2, X / 2), components (z, y, x), voxels.
        mind: (2, 12, Z / 2, Y / 2, X / 2) of the images.
    """

    images: torch.Tensor
    partner: torch.Tensor
    mind: torch.Tensor


def textures(rng: Rng, shape: tuple[int, ...]) -> torch.Tensor:
    """Grain, sheets and tubes, as septa and vessels are, (3, Z, Y, X)."""
    share, grain, total = rng.uniform(0, 1), torch.zeros(shape), 0.0
    for scale in (2, 4, 8, 16):
        weight = (scale / 4) ** share * rng.uniform(0.3, 1)
        grain += weight * smooth_noise(rng, 1, shape, scale)[0]
        total += weight**2

    def lines(fields: int, low: float, high: float, thinnest: float, thickest: float) -> torch.Tensor:
        """Bright where as many smooth fields are 0: sheets of one, tubes of two."""
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        width = 0.8 * rng.uniform(thinnest, thickest) / scale
        return (smooth_noise(rng, fields, shape, scale) / width).square_().sum(0).neg_().exp_()

    return torch.stack([grain / math.sqrt(total), lines(1, 5, 20, 2, 5), lines(2, 6, 20, 2.5, 7)])


def rendered(
    labels: torch.Tensor, shared: torch.Tensor | None, strengths: Sequence[float], own: Sequence[float],
    anatomy: Anatomy, rng: Rng,
) -> torch.Tensor:  # fmt: skip
    """An image (Z / 2, Y / 2, X / 2) of labels (Z, Y, X): contrast, textures, partial volume, and a scanner.

    Args:
        shared: textures that both images show, each in its own contrast.
        strengths, own: of these, and of textures that this image shows alone, of the deviation of the image.
    """
    palette, random = anatomy.palette(rng), rng.scalars

    def of_labels(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32))[labels.int()]

    image = of_labels(palette.means)
    unit = max(float(image.std()), 0.02)
    alone = textures(rng, labels.shape) if any(own) else None
    for fields, amounts in ((shared, strengths), (alone, own)):
        for field, amount in zip(() if fields is None else fields, amounts):
            if amount:
                sizes = random.normal(0, 1, 256) * (random.random(256) < 0.8) * amount * unit
                waved = fields is shared and rng.chance(0.2)
                shown = torch.sin(field * rng.uniform(1, 2.5) + rng.uniform(0, 6.28)) if waved else field
                image = image + of_labels(sizes) * shown
    if rng.chance(0.3):
        image = through_random_layers(image, rng)
    image = F.avg_pool3d(image[None], 2)[0]
    shape = tuple(image.shape)
    for scale in (2, 4, 8):
        if rng.chance(0.3):
            image = image + smooth_noise(rng, 1, shape, scale)[0] * (unit * rng.uniform(0, 0.12))
    if rng.chance(0.7):  # what one of them lacks
        gone = smooth_noise(rng, 1, shape, rng.uniform(4, 14))[0] - rng.uniform(1.2, 2.2)
        other = rng.uniform(float(image.min()), float(image.max())) + 0.1 * unit * rng.normal(*shape)
        image = image.lerp(other, torch.sigmoid(8 * gone))
    if rng.chance(0.85):
        image = blurred(image[None], [random.uniform(0.1, 0.9, 3)])[0]
    if rng.chance(0.5):
        image = image * bias(shape, rng.uniform(0, 0.3), rng)
    if rng.chance(0.25):
        thick = [n if rng.chance(0.6) else round(n / rng.uniform(1.5, 6)) for n in shape]
        few = F.adaptive_avg_pool3d(image[None, None], thick)  # type: ignore[arg-type]
        image = F.interpolate(few, shape, mode="trilinear", align_corners=False)[0, 0]
    image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-4)
    if rng.chance(0.4) and not palette.window:
        image = image.pow(math.exp(rng.uniform(-0.5, 0.5)))
    if rng.chance(0.8):
        level = math.exp(rng.uniform(math.log(0.004), math.log(0.08))) * max(3 * float(image.std()), 0.1)
        image = (image + level * rng.normal(*shape)).abs()
    if rng.chance(0.5):
        low, high = np.quantile(image.flatten()[::7], [rng.uniform(0, 0.05), rng.uniform(0.95, 1)])
        image = (image - low) / max(high - low, 1e-3)
    return image.clamp(0, 1)


def through_random_layers(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Mixed with what random convolutions make of it (Ouyang et al., IEEE TMI 2023)."""
    side = int(rng.scalars.choice([1, 3]))
    padded = F.pad(image[None, None], (side // 2,) * 6, mode="replicate")
    values = F.conv3d(padded, rng.normal(4, 1, side, side, side))
    shift = 0.3 * rng.normal(4).view(4, 1, 1, 1)
    values = F.leaky_relu((values - values.mean()) / (values.std() + 1e-4) + shift, 0.1)
    values = (values[0] * rng.normal(4, 1, 1, 1)).sum(0)
    values = (values - values.mean()) / (values.std() + 1e-4) * image.std() + image.mean()
    return image.lerp(values, rng.uniform(0, 1))


def at(volume: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Channels (C, Z, Y, X) at (z, y, x) coordinates (3, ...), beyond the border as there."""
    last = torch.tensor(volume.shape[1:]).view(3, 1, 1, 1) - 1
    ratios = (coordinates / last * 2 - 1).flip(0).movedim(0, -1)
    return F.grid_sample(volume[None], ratios[None], padding_mode="border", align_corners=True)[0]


def nearest(labels: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    z, y, x = (axis.round().clamp(0, n - 1).long() for axis, n in zip(coordinates, labels.shape))
    return labels[z, y, x]


def about_the_middle(n: int) -> torch.Tensor:
    along = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
    return torch.stack(torch.meshgrid(along, along, along, indexing="ij"))


def draw_pair(anatomy: Anatomy, rng: Rng) -> Pair:
    """Two images of a part of an anatomy; in six of ten the second is bent as another person's would be, and
    then mostly without a texture in common.
    """
    random, labels = rng.scalars, anatomy.labels
    if not anatomy.spacing:
        labels = labels.permute(*random.permutation(3).tolist())
    zoom = math.exp(rng.uniform(math.log(0.55), math.log(1.5)))
    block, half = _FINE + _MARGIN, 0.3 * _FINE * zoom
    last = np.array(labels.shape) - 1.0
    for _ in range(6):  # not in the air, if it can be helped
        middle = random.uniform(np.minimum(half, last / 2), np.maximum(last - half, last / 2))
        box = [slice(int(max(0, m - half)), int(m + half) + 1, 3) for m in middle]
        if len(labels[tuple(box)].unique()) > 2:
            break
    turn = torch.from_numpy(random_turn(rng, 25) * zoom).float()
    coordinates = torch.einsum("ij,jzyx->izyx", turn, about_the_middle(block))
    labels = nearest(labels, coordinates + torch.from_numpy(middle).float().view(3, 1, 1, 1))
    chances, limits = (0.7, 0.4, 0.4), (0.28, 0.8, 1.2)
    shared = [rng.uniform(0, m) if rng.chance(c) else 0.0 for c, m in zip(chances, limits)]
    own = [rng.uniform(0.2, 0.8) * s for s in shared] if rng.chance(0.35) else [0.0] * 3

    matrix = random_turn(rng, 12) * np.exp(random.uniform(-0.12, 0.12, 3))
    shift = torch.from_numpy(random.uniform(-6, 6, 3)).float().view(3, 1, 1, 1)
    forth = torch.from_numpy(matrix).float()
    bend = torch.zeros(3, _FINE, _FINE, _FINE)
    if rng.chance(0.6):
        scale = math.exp(rng.uniform(math.log(10), math.log(40)))
        bend = smooth_noise(rng, 3, bend.shape[1:], scale) * rng.uniform(0.05, 0.22) * min(scale, 20)
        if rng.chance(0.5):
            scale = rng.uniform(7, 14)
            bend = bend + smooth_noise(rng, 3, bend.shape[1:], scale) * scale * rng.uniform(0.03, 0.12)
        if rng.chance(0.8):
            shared, own = [0.0] * 3, [1.4 * s for s in shared]
    there = torch.einsum("ij,jzyx->izyx", forth, about_the_middle(_FINE)) + shift + bend + (block - 1) / 2
    fields = textures(rng, labels.shape) if any(shared) else None
    first = (slice(_MARGIN // 2, _MARGIN // 2 + _FINE),) * 3
    views = [(labels[first], None if fields is None else fields[:, *first])]
    views.append((nearest(labels, there), None if fields is None else at(fields, there)))
    images = torch.stack([rendered(*view, shared, own, anatomy, rng) for view in views])

    # Where the cells of the first lie in the second, by iteration: y = T^-1 (x - shift - bend(y)).
    back = torch.from_numpy(np.linalg.inv(matrix)).float()
    cells = 4 * about_the_middle(SIDE // 2) - shift
    mapped = torch.einsum("ij,jzyx->izyx", back, cells)
    for _ in range(8):
        mapped = torch.einsum("ij,jzyx->izyx", back, cells - at(bend, mapped + (_FINE - 1) / 2))
    mind = torch.stack([mind_ssc(image, stride=2) for image in images])
    return Pair(images.half(), mapped / 2 + (SIDE - 1) / 2, mind.half())


_STEPS = torch.stack(
    torch.meshgrid(*[torch.arange(-_RADIUS, _RADIUS + 1)] * 3, indexing="ij")
).view(3, -1)  # fmt: skip


def matching_loss(
    first: torch.Tensor, second: torch.Tensor, partner: torch.Tensor, sharpness: torch.Tensor, rng: Rng,
    anchors: int = 256,
) -> torch.Tensor | None:  # fmt: skip
    """Cross entropy of where the solver's costs look for partners, or None where too few are inside.

    ``softmax(-sharpness |f(x) - g(y)|^2)`` over the cells y of a cube of (2 _RADIUS + 1)^3 about a cell next
    to the partner of x, against a Gaussian about the partner itself.

    Args:
        first, second: (C, Z, Y, X).
        partner: (3, Z, Y, X), components (z, y, x), cells.
    """
    shape = first.shape[1:]
    coordinates = partner.reshape(3, -1)
    near = coordinates.round().long() + torch.from_numpy(rng.scalars.integers(-1, 2, coordinates.shape))
    sides = torch.tensor(shape).view(3, 1)
    inside = ((near >= _RADIUS) & (near < sides - _RADIUS)).all(0).nonzero()[:, 0]
    if len(inside) < 16:
        return None
    inside = inside[torch.from_numpy(rng.scalars.integers(len(inside), size=anchors))]
    cells = near[:, inside, None] + _STEPS[:, None]
    flat = (cells[0] * shape[1] + cells[1]) * shape[2] + cells[2]
    others = second.flatten(1).index_select(1, flat.flatten()).view(len(second), *flat.shape)
    costs = (first.flatten(1)[:, inside, None] - others).square().sum(0)
    away = (cells - coordinates[:, inside, None]).square().sum(0)
    target = torch.softmax(away / (-2 * _TARGET**2), 1)
    return -(target * torch.log_softmax(-sharpness * costs, 1)).sum(1).mean()


def train(arguments: argparse.Namespace) -> None:
    """Train until the minutes are over; the file is written every 500 steps."""
    torch.manual_seed(arguments.seed)
    network = load(arguments.start) if arguments.start else Local()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average, sharpness = copy.deepcopy(network), nn.Parameter(torch.full((2,), math.log(12)))
    groups: list[dict[str, Any]] = [
        {"params": network.parameters()},
        {"params": [sharpness], "weight_decay": 0},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    settings = Pairs(trunks=0.25, anatomies=0.5, spacing=(0.6, 3.8), strays=0)
    draw = partial(
        draw_anatomy, settings, mixture(1, 0, []), arguments.seed, maps=anatomies(0.5, arguments.anatomies)
    )
    bank: list[Anatomy] = []
    pairs: list[Pair] = []
    began, step = time.monotonic(), 0
    losses: list[list[float]] = []
    while (done := (time.monotonic() - began) / (60 * arguments.minutes)) < 1:
        rng = Rng.of(arguments.seed, 11, step)
        if len(bank) < arguments.bank and step % 5 == 0:
            bank.append(draw(len(bank)))
        new = draw_pair(bank[rng.one_of(len(bank))], rng)
        pairs = [*pairs[-399:], new]
        batch = [new, *(pairs[rng.one_of(len(pairs))] for _ in range(3))]
        images = torch.cat([pair.images for pair in batch])[:, None].float()
        with torch.autocast("cpu", torch.bfloat16):
            output = network(images).float()
        # As the solver adds them up: means over the channels of each part, the network's four times.
        output = output * math.sqrt(4 / output.shape[1])
        mind = torch.cat([pair.mind for pair in batch]).float() / math.sqrt(_MIND_CHANNELS)
        features = torch.cat([output, mind], 1)
        total, every = torch.zeros(()), []
        for level, weight in enumerate((1.0, 0.5)):
            far = 2**level
            maps = F.avg_pool3d(features, far)
            for k, pair in enumerate(batch):
                partner = F.avg_pool3d(((pair.partner + 0.5) / (2 * far) - 0.5)[None], far)[0]
                loss = matching_loss(maps[2 * k], maps[2 * k + 1], partner, sharpness[level].exp(), rng)
                if loss is not None:
                    total = total + weight / len(batch) * loss
                    every.append(float(loss.detach()))
        optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        rate = 2e-3 * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-5
        for group, times in zip(optimiser.param_groups, (1, 10)):
            group["lr"] = rate * times
        optimiser.step()
        step += 1
        keep = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)
        losses.append([float(np.mean(every))])
        if step % 50 == 0:
            print(f"{step} steps, {100 * done:.0f} %, loss {np.mean(losses[-50:]):.4f}", flush=True)
        if step % 500 == 0:
            save(average, arguments.file, step)
    save(average, arguments.file, step)


def save(network: Local, path: Path, step: int) -> None:
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, {"step": str(step), "radii": json.dumps(network.radii)})


def load(path: Path) -> Local:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        radii = json.loads(file.metadata()["radii"])
    network = Local(len(tensors["layers.0.bias"]), len(tensors["layers.2.bias"]), radii)
    network.load_state_dict(tensors)
    return network.eval()


def part(path: Path, weight: float) -> Part:
    """The descriptor as a part of the features."""
    network = load(path).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @torch.no_grad()
    def extract(image: torch.Tensor, spacing: float) -> torch.Tensor:
        z, y, x = (n % 2 for n in image.shape)
        padded = F.pad(image[None, None], (0, x, 0, y, 0, z), mode="replicate")
        with torch.autocast("cpu", torch.bfloat16):
            output: torch.Tensor = network(padded)[0].float().contiguous()
        return output

    return Part(extract, 2, weight, "local")


def measure(arguments: argparse.Namespace) -> None:
    """MIND, the default features, and these with the descriptor, as features.py compares them."""
    added = part(arguments.file, arguments.weight)
    parts_of = {name: feature_parts(name)[1] for name in ("mind", "network+mind")}
    parts_of["local+network+mind"] = (added, *parts_of["network+mind"])
    lines, gains, every = [HEAD], [], []
    for name in chosen(arguments.pairs):
        for direction in DIRECTIONS:
            starts = kept_starts(arguments.known, name, direction, arguments.starts)
            reference: list[dict[str, Any]] = []
            for features, parts in parts_of.items():
                with patch("regkit.registration.feature_parts", lambda *_, f=features, p=parts: (f, p, None)):
                    rows = [run(name, direction, {"init": start, "threads": 1}) for start in starts]
                reference = reference or rows
                result = gain(rows, reference)
                gains += [result] if rows is not reference else []
                lines.append(line(result))
                every += rows
                print(lines[-1], flush=True)
    print(summary(gains))
    command = (
        f"python benchmarks/features_local.py measure {arguments.file.name} --weight {arguments.weight:g}"
    )
    command += f" --pairs {' '.join(arguments.pairs)} --starts {arguments.starts}"
    text = "\n".join(lines)
    write_rows(every, arguments.output, f"`{command}`, {setting()}\n\n{summary(gains)}\n\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.set_defaults(work=train)
    training.add_argument("file", type=Path)
    training.add_argument("--anatomies", type=Path, nargs="+", required=True, help="folders of label maps")
    training.add_argument("--minutes", type=float, default=20)
    training.add_argument("--bank", type=int, default=100, help="anatomies that are drawn in all")
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--start", type=Path, help="weights to begin with")
    measuring = commands.add_parser("measure")
    measuring.set_defaults(work=measure)
    measuring.add_argument("file", type=Path)
    measuring.add_argument("--weight", type=float, default=1.0)
    measuring.add_argument("--pairs", nargs="+", default=["choosing"])
    measuring.add_argument("--starts", type=int, default=3)
    measuring.add_argument("--known", type=Path, help="JSON file that linear starts are kept in")
    measuring.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "features_local"
    )
    arguments = parser.parse_args()
    arguments.work(arguments)


if __name__ == "__main__":
    main()
