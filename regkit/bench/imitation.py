"""Made-up volumes laid out as the archives of Learn2Reg AbdomenMRCT and AbdomenCTCT and of MM-WHS are.

They are for rehearsing a benchmark before the real archives are at hand, and for the tests. What is
measured on them says nothing about patients.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_fill_holes
from scipy.spatial.transform import Rotation

from regkit.bench import learn2reg, learn2reg_ct, mmwhs
from regkit.bench.dataset_files import MADE_UP
from regkit.bench.mmwhs import LABELS, MEANT, STRAY
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.core.jsontext import to_json
from regkit.io.outputs import save_image
from regkit.synthesis.noise import Rng, smooth_noise
from regkit.synthesis.phantom import scanned_ct, scanned_mr
from regkit.synthesis.procedural_trunk import draw

Float32 = npt.NDArray[np.float32]
Size = tuple[int, int, int]

_ABDOMEN = (384.0, 320.0, 384.0)  # mm, field of view
_TRUNK = (384.0, 320.0, 512.0)
_APART = 20.0  # mm, the most that the MR of a patient is bent against the CT
_CHEST = (192.0, 192.0, 144.0)
_HEART = (20.0, -32.0, 120.0)  # anatomical mm
_SKIN = {"ct": -435.0, "t2": 130.0}  # half-way from the air to it
# In the order of painting: label, centre from the middle of the heart, radii (mm), CT (HU), MR.
_CHAMBERS = (
    (600, (-8, -22, -4), (24, 16, 28), 210, 520),
    (550, (-30, 4, 6), (16, 18, 22), 190, 560),
    (420, (4, 24, 20), (24, 14, 18), 330, 600),
    (205, (26, -4, -6), (31, 27, 36), 120, 240),
    (500, (26, -4, -6), (21, 17, 27), 350, 640),
    (820, (-2, 0, 38), (11, 11, 26), 360, 680),
    (850, (14, -13, 40), (11, 11, 22), 260, 460),
)


def imitate(
    name: str, folder: Path, count: int | None = None, seed: int = 0, shape: Size | None = None
) -> None:
    """Write an imitation of an archive.

    Args:
        name: "l2r-abdomen", "l2r-abdomen-ct" or "mmwhs".
        folder: where to; made if it is absent.
        count: pairs with labels (l2r-abdomen, at most 8), people of the test (l2r-abdomen-ct, at most 7), or
            subjects of each modality (mmwhs, at most 20); all by default.
        seed: of everything.
        shape: voxels along x, y, z; fewer ones are larger. By default 192 x 160 x 192 of 2 mm
            (l2r-abdomen), 192 x 160 x 256 of 2 mm (l2r-abdomen-ct), or 128 x 128 x 64 of 1.5 x 1.5 x 2.25 mm
            (mmwhs).

    Raises:
        RegkitError: if the name or count is impossible, the folder is not empty, or a file cannot be written.
    """
    makers = {
        "l2r-abdomen": (_abdomen, 8),
        "l2r-abdomen-ct": (_people, len(learn2reg_ct.TEST)),
        "mmwhs": (_hearts, len(mmwhs.SUBJECTS)),
    }
    if name not in makers:
        raise RegkitError(f"no imitation of '{name}'; available: {', '.join(makers)}")
    make, max_count = makers[name]
    count = max_count if count is None else count
    if not 1 <= count <= max_count:
        raise RegkitError(f"the imitation of {name} can have from 1 to {max_count}, not {count}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RegkitError(f"the folder '{folder}' is not empty; give a new one")
        (folder / MADE_UP).write_text("Made up by regkit bench imitate; no patients.\n", encoding="utf-8")
        make(folder, count, seed, shape)
    except OSError as error:
        raise RegkitError(f"could not write to '{folder}': {error.strerror or error}") from error


def _abdomen(folder: Path, count: int, seed: int, shape: Size | None) -> None:
    size = shape or learn2reg.SHAPE
    grid = Grid(size, tuple(mm / n for mm, n in zip(_ABDOMEN, size)))  # type: ignore[arg-type]
    for kind in ("imagesTr", "labelsTr", "masksTr", "imagesTs", "masksTs"):
        (folder / kind).mkdir()
    pairs: dict[str, list[dict[str, str]]] = {"Tr": [], "Ts": []}
    for number in (*range(1, count + 1), 9, 10):
        split = "Tr" if number < 9 else "Ts"
        rng = Rng.of(seed, number, 1)
        texture = int(rng.scalars.integers(2**31))
        person = _person(grid, np.eye(3), (0, 0, 12), rng)
        bend = smooth_noise(rng, 3, grid.shape, 90 / grid.spacing[0]).numpy()
        bend *= _APART / np.linalg.norm(bend, axis=0).max()
        for kind, coordinates, modality in (("0000", person, "t2"), ("0001", person + bend, "ct")):
            image, labels = draw(coordinates, modality, max(grid.spacing), texture)
            body = np.stack([binary_fill_holes(part > _SKIN[modality]) for part in image])
            scan = scanned_ct if modality == "ct" else scanned_mr
            arrays: dict[str, npt.NDArray[Any]] = {
                "images": scan(image, rng),
                "masks": body.astype(np.uint8),
            }
            if split == "Tr":
                arrays["labels"] = np.where(labels <= 4, labels, 0).astype(np.uint8)
            for what, array in arrays.items():
                save_image(grid.to_sitk(array), folder / f"{what}{split}" / _name(number, kind))
        ends = (f"./images{split}/{_name(number, kind)}" for kind in ("0000", "0001"))
        pairs[split].append(dict(zip(("fixed", "moving"), ends)))
    described = {
        "name": "AbdomenMRCT",
        "release": "1.0",
        "description": "An imitation made by regkit; no patients.",
        "licence": "",
        "reference": "",
        "pairings": "hybrid",
        "provided_data": {kind: ["image", "label", "mask"] for kind in "01"},
        "registration_direction": {"fixed": 0, "moving": 1},
        "modality": {"0": "MR", "1": "CT"},
        "tensorImageShape": {kind: list(size) for kind in "01"},
        "registration_val": pairs["Tr"][5:] or pairs["Tr"][-1:],
        "registration_test": pairs["Ts"],
    }
    (folder / "AbdomenMRCT_dataset.json").write_text(to_json(described) + "\n", encoding="utf-8")


def _name(number: int, kind: str) -> str:
    return f"AbdomenMRCT_{number:04d}_{kind}.nii.gz"


def _people(folder: Path, count: int, seed: int, shape: Size | None) -> None:
    size = shape or learn2reg_ct.SHAPE
    grid = Grid(size, tuple(mm / n for mm, n in zip(_TRUNK, size)))  # type: ignore[arg-type]
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir()
    numbers = learn2reg_ct.TEST[:count]
    for number in numbers:
        rng = Rng.of(seed, int(number), 3)
        texture = int(rng.scalars.integers(2**31))
        person = _person(grid, np.eye(3), np.add((0, 0, 12), rng.scalars.normal(0, 8, 3)), rng)
        image, labels = draw(person, "ct", max(grid.spacing), texture)
        kept = np.where(labels <= max(learn2reg_ct.LABELS), labels, 0).astype(np.uint8)
        for what, array in (("images", scanned_ct(image, rng)), ("labels", kept)):
            save_image(grid.to_sitk(array), folder / f"{what}Tr/AbdomenCTCT_{number}_0000.nii.gz")
    ends = [f"./imagesTr/AbdomenCTCT_{number}_0000.nii.gz" for number in numbers]
    described = {
        "name": "AbdomenCTCT",
        "release": "1.1",
        "description": "An imitation made by regkit; no patients.",
        "modality": {"0": "CT"},
        "tensorImageShape": {"0": list(size)},
        "registration_val": [{"fixed": one, "moving": other} for one, other in combinations(ends, 2)],
    }
    (folder / "AbdomenCTCT_dataset.json").write_text(to_json(described) + "\n", encoding="utf-8")


def _hearts(folder: Path, count: int, seed: int, shape: Size | None) -> None:
    size = shape or (128, 128, 64)
    for place, modality in enumerate(("ct", "mr"), start=1):
        (folder / f"{modality}_train").mkdir()
        for subject in mmwhs.SUBJECTS[:count]:
            rng = Rng.of(seed, subject, place)
            random = rng.scalars
            turn = Rotation.from_euler("xyz", (12, -8, 15) if modality == "mr" else (0, 0, 0), degrees=True)
            direction = turn.as_matrix()
            spacing = np.divide(_CHEST, size)
            origin = random.uniform(-150, 150, 3)
            grid = Grid(size, tuple(spacing), tuple(origin), tuple(direction.ravel()))
            coordinates = _person(grid, direction, np.add(_HEART, random.normal(0, 6, 3)), rng)
            image, _ = draw(
                coordinates,
                "ct" if modality == "ct" else "t1",
                max(grid.spacing),
                int(random.integers(2**31)),
            )
            labels = _paint_chambers(image, coordinates, modality, random)
            if modality == "mr" and subject == mmwhs.SUBJECTS[0]:
                labels.flat[np.flatnonzero(labels == MEANT)[:5]] = STRAY
            scanned = (scanned_ct if modality == "ct" else scanned_mr)(image, rng)
            stem = folder / f"{modality}_train" / f"{modality}_train_{subject}"
            save_image(grid.to_sitk(scanned), f"{stem}_image.nii.gz")
            save_image(grid.to_sitk(labels), f"{stem}_label.nii.gz")


def _paint_chambers(
    image: Float32, coordinates: Float32, modality: str, random: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """Paint a heart over what lies there, and return its labels."""
    labels = np.zeros(image.shape, np.uint16)
    wall = 1.0
    for label, centre, radii, *brightness in _CHAMBERS:
        # The left ventricle keeps to the middle of its wall.
        wall = float(random.uniform(0.9, 1.12)) if label != 500 else wall
        place = np.add(_HEART, centre).reshape(3, 1, 1, 1)
        inside = (((coordinates - place) / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(0) < wall**2
        labels[inside] = label
        image[inside] = brightness[("ct", "mr").index(modality)]
    assert set(np.unique(labels)) <= {0, *LABELS}
    return labels


def _person(grid: Grid, direction: npt.ArrayLike, middle: npt.ArrayLike, rng: Rng) -> Float32:
    """Anatomical coordinates (3, Z, Y, X), mm, of the voxels: those of another person each time.

    Args:
        direction: 3x3, of the grid's axes in the patient.
        middle: anatomical mm of the middle of the field of view.
    """
    steps = np.asarray(direction) * grid.spacing
    index = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in grid.shape), indexing="ij")[::-1])
    points = np.einsum("ij,jzyx->izyx", steps * rng.scalars.uniform(0.94, 1.06, (3, 1)), index)
    bend = 5 * smooth_noise(rng, 3, grid.shape, 150 / min(grid.spacing)).numpy()
    return (points + bend + np.reshape(middle, (3, 1, 1, 1))).astype(np.float32)
