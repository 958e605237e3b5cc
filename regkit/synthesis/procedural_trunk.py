"""A procedural human trunk, from the domes of the diaphragm to the iliac crests.

Every organ is an implicit function (negative inside, roughly mm) of *anatomical coordinates*: mm, x to the
patient's left, y to the back, z to the head, the origin in the middle of the trunk at the second lumbar
vertebra. :func:`draw` evaluates the organs in order, each painted over what lies there, at whatever
coordinates it is given. So one anatomy seen through two maps yields two images whose correspondence is
known everywhere, and neither is a resampled copy of the other. :func:`draw_tissues` gives what the trunk is
made of instead of how a scanner shows it, of a patient of another build each time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from regkit.synthesis.painting import (
    Canvas,
    Float,
    Solid,
    Texture,
    branches,
    coils,
    curve,
    cut,
    ellipsoid,
    join,
    mirrored,
)
from regkit.synthesis.structures import TRUNK
from regkit.synthesis.tissues import TISSUES, intensities

NAMES = {number: name for number, name in TRUNK.items() if number <= 14}
"""What the demo measures."""
_NUMBERS = {name: number for number, name in TRUNK.items()}

# z of the vertebral centres, L5 (first) to T8, and of the heads of the ribs.
_VERTEBRAE = (-118.0, -83.0, -48.5, -15.0, 17.0, 47.5, 76.0, 103.0, 129.0, 154.0)
_RIB_HEADS = {12: 54.0, 11: 82.0, 10: 109.0, 9: 135.0, 8: 160.0, 7: 185.0}


def draw(coordinates: Float, modality: str, edge: float, seed: int) -> tuple[Float, npt.NDArray[np.uint8]]:
    """Paint the trunk.

    Args:
        coordinates: (3, Z, Y, X) float32, anatomical x, y, z of each voxel, mm.
        modality: "ct" (HU), "t2" or "t1" (arbitrary units, 0 to 900).
        edge: mm over which each surface is smeared (partial volume): the longest side of a voxel.
        seed: of textures, bowel loops and vessels.

    Returns:
        image and labels (:data:`NAMES`), both (Z, Y, X), without noise.
    """
    tissues = intensities(modality)
    image = np.full(coordinates.shape[1:], tissues["air"], np.float32)
    x, y, z = coordinates
    canvas = Canvas(x, y, z, image, np.zeros(image.shape, np.uint8), tissues, _NUMBERS, edge)
    _paint(canvas, np.random.default_rng(seed))
    canvas.labels[canvas.labels > max(NAMES)] = 0
    return image, canvas.labels


def draw_tissues(
    coordinates: Float,
    edge: float,
    random: np.random.Generator,
    play: float = 0.0,
    slack: float = 0.0,
    fatness: float = 1.0,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """What a trunk of random build is made of.

    Args:
        coordinates: (3, Z, Y, X) float32, anatomical x, y, z of each voxel, mm.
        edge: the longest side of a voxel, mm.
        play: mm, standard deviation of the places of organs
            (:meth:`regkit.synthesis.painting.Canvas.organ`).
        slack: by how much organs are smaller, as a logarithm; what they leave is fat.
        fatness: thickness of the fat under the skin, as a share of the usual one.

    Returns:
        numbers in :data:`regkit.synthesis.tissues.TISSUES`, and :data:`regkit.synthesis.structures.TRUNK`,
        both (Z, Y, X).
    """
    x, y, z = coordinates
    numbers = {name: float(number) for number, name in enumerate(TISSUES)}
    tissues = np.zeros(x.shape, np.float32)
    canvas = Solid(x, y, z, tissues, np.zeros(x.shape, np.uint8), numbers, _NUMBERS, edge)
    _paint(replace(canvas, random=random, play=play, slack=slack), random, fatness)
    return tissues.astype(np.uint8), canvas.labels


def _paint(canvas: Canvas, random: np.random.Generator, fatness: float = 1.0) -> None:
    texture = Texture(random)
    cavity = _walls(canvas, texture, fatness)
    dome = _diaphragm(canvas.x, canvas.y, -cavity)
    _muscles(canvas, cavity, texture)
    middle = canvas.organ((-80, -70, -85), (120, 65, 65))  # of duodenum and pancreas, which hang together
    _bowel(canvas, middle, texture, random)
    _chest(canvas, cavity, dome, random)
    _liver(canvas, cavity, dome, texture, random)
    _upper_abdomen(canvas, middle, cavity, dome, texture)
    for side, height in ((-1, -26.0), (1, -10.0)):
        if not canvas.lacks(0.05):
            _kidney(canvas, side, height, cavity, dome, texture)
    _stomach(canvas, cavity, dome, texture)
    _vessels(canvas, random)
    _ribs(canvas, cavity)
    column = canvas.within((-55, 5, -165), (55, 100, 200))
    for k, height in enumerate(_VERTEBRAE):
        pitch = (_VERTEBRAE[k + 1] - _VERTEBRAE[max(k - 1, 0)]) / min(k + 1, 2) if height < 154 else 25.0
        _vertebra(column, height, pitch, texture)
    _pelvis(canvas)


def _outline(x: Float, y: Float, z: Float) -> tuple[Float, Float, Float]:
    """Distance to the skin (negative inside), thickness of the fat under it and of the muscle under that."""
    half_x = 148 - 5 * np.exp(-(((z + 30) / 45) ** 2))
    half_y = 97 + 3 * np.tanh(z / 60)
    u, v = np.abs(x / half_x) + 1e-4, np.abs(y / half_y) + 1e-4
    # A superellipse of exponent 2.5, |u|^2.5 + |v|^2.5 = 1, and its first-order distance.
    ur, vr = u * np.sqrt(u), v * np.sqrt(v)
    level = (ur * u + vr * v) ** 0.4
    slope = np.sqrt((ur / half_x) ** 2 + (vr / half_y) ** 2) / (level * np.sqrt(level))
    furrow = 5 * np.exp(-((x / 15) ** 2)) * (y > 0) * np.minimum(v, 1) ** 4
    navel = 9 * np.exp(-((x / 7) ** 2) - ((z + 75) / 7) ** 2) * (y < 0)
    skin = (level - 1) / slope + furrow + navel
    behind = 1 / (1 + np.exp(-y / 12))
    fat = 12 + 5 * np.minimum(u, 1) ** 3 + (2 + 3 * behind) * np.tanh(-z / 60)
    front = 16 - 6 * np.exp(-(np.abs(x / 62) ** 6)) - 6 * np.exp(-((x / 6) ** 2))
    back = 14 + (22 - 12 * np.tanh((z - 45) / 40)) * np.exp(-(np.abs(x / 46) ** 4))
    return skin, fat, front + behind * (back - front)


def _walls(canvas: Canvas, texture: Texture, fatness: float) -> Float:
    """Skin, fat and muscle of the trunk; returns the distance to their inner face, negative inside."""
    skin, fat, muscle = _outline(canvas.x, canvas.y, canvas.z)
    cavity = skin + fat + muscle
    skin, fat = skin - (fatness - 1) * fat, fatness * fat
    canvas.paint(skin, "skin", "fat of the wall")
    canvas.paint(skin + 2, "fat", "fat of the wall")
    canvas.paint(skin + fat, "muscle", "muscles of the wall")
    back = canvas.within((-160, 20, -200), (160, 120, 200))
    layer = np.maximum(skin + fat + 1, -cavity)[back.box]
    streaks = np.clip(texture(back, 9, near=layer) - 0.9, 0, 1)
    back.paint(layer, "fat", None, 0.6 * streaks)
    # Three flat muscles lie on each other in the flank, parted by fat.
    flank = (np.abs(canvas.x) > 66) & (canvas.z < 40) & (cavity > 0)
    for share in (1 / 3, 2 / 3):
        canvas.paint(np.abs(skin + fat + share * muscle) - 0.5, "fat", None, 0.6 * flank)
    canvas.paint(cavity, "fat", "inner fat")
    return cavity


def _muscles(canvas: Canvas, cavity: Float, texture: Texture) -> None:
    for side in (-1, 1):
        back = canvas.within((side * 34 - 32, 40, -150), (side * 34 + 32, 95, 200))
        erector = back.ellipsoid((side * 33, 69, -40), (25, 16, 400))
        name = "left back muscles" if side > 0 else "right back muscles"
        behind = np.maximum(erector, -cavity[back.box])
        free = back.labels == back.numbers["muscles of the wall"]
        back.paint(np.where(free, behind, 9.0), "muscle", name, 0)  # its place alone: the wall is muscle
        back.paint(np.abs(erector) - 0.7, "fat", None, 0.75)
        septum = np.abs(back.x - side * 20) - 0.5
        back.paint(np.maximum(septum, erector), "fat", None, 0.5)
        box = canvas.organ((side * 48 - 34, -5, -150), (side * 48 + 34, 65, 40))
        knots = [(24, 36, 30, 5), (31, 34, -5, 12), (42, 32, -60, 19), (55, 22, -150, 23)]
        psoas = box.tube([curve([(side * x, *rest) for x, *rest in knots])])
        box.paint(psoas, "muscle", "left psoas" if side > 0 else "right psoas")
        box.paint(psoas + 2, "fat", None, 0.5 * np.clip(texture(box, 7, 5, psoas) - 1.1, 0, 1))
        box = canvas.within((side * 66 - 26, 40, -115), (side * 66 + 26, 70, 20))
        quadratus = box.ellipsoid((side * 66, 53, -50), (20, 8, 60), turn=-20 * side)
        box.paint(quadratus, "muscle", "muscles of the wall")


def _bowel(canvas: Canvas, middle: Canvas, texture: Texture, random: np.random.Generator) -> None:
    axes = np.arange(-72.0, 76, 23), np.array([-57.0, -34, -11]), np.arange(-52.0, -150, -23)
    nodes = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)
    nodes = nodes[np.hypot(nodes[:, 0] / 84, (nodes[:, 1] + 20) / 52) < 1]
    nodes += random.normal(0, 3.2, nodes.shape)
    if canvas.play:  # there is more fat in some, and less bowel, and it lies anywhere
        nodes = nodes[random.random(len(nodes)) < random.uniform(0.3, 1.1)]
        nodes = (nodes + random.normal(0, 4, nodes.shape)) * (
            random.uniform(0.8, 1.2),
            1,
            random.uniform(0.7, 1.1),
        )
    small = canvas.organ((-95, -85, -170), (95, 15, -25))
    wide = canvas.size(0.12)
    loops = small.tube(coils(nodes, (10 * wide, 12.5 * wide), 38, random))
    small.paint(loops, "gut wall", "small bowel")
    small.paint(loops + 2.6 + 0.8 * texture(small, 5, 11, loops), "chyme", "small bowel")
    small.paint(np.maximum(loops + 3.5, 0.8 - texture(small, 22, 3, loops)), "fluid", "small bowel", 0.8)

    sag = float(canvas.random.uniform(-15, 75)) if canvas.play else 0.0  # of its middle, which hangs free
    colon = canvas.bent([
        (-80, 2, -150, 21), (-94, 12, -105, 22), (-95, 20, -70, 20), (-84, 4, -46, 18),
        (-52, -50, -50 - 0.6 * sag, 17), (-5, -66, -62 - sag, 17), (45, -60, -44 - 0.7 * sag, 16),
        (84, -20, -4, 15), (98, 18, 6, 14), (102, 30, -35, 13), (99, 27, -85, 13), (78, 12, -150, 14),
    ], 7)  # fmt: skip
    colon[:, 3] *= canvas.size(0.35)
    colon[:, 3] *= 1 + 0.14 * np.cos(np.arange(len(colon)) * (2 * np.pi / 27))  # haustra
    large = canvas.organ((-140, -105, -190), (140, 70, 50))
    tube = large.tube([colon]) + large.filled()
    large.paint(tube, "gut wall", "colon")
    large.paint(tube + 2.4, "stool", "colon")
    gassy = 0.9 - abs(canvas.stray(0.7))
    large.paint(np.maximum(tube + 4, 5 * (gassy - texture(large, 6, 17, tube))), "gas", "colon", 0.75)
    front = 62 - abs(canvas.stray(25))
    large.paint(np.maximum(tube + 3, large.y + front), "gas", "colon")  # it collects in front

    duodenum = middle.tube([canvas.bent([
        (-24, -40, 0, 10), (-42, -20, 0, 12), (-47, 0, -20, 12), (-36, 4, -44, 11), (0, 0, -50, 10),
        (30, -8, -34, 11), (40, -22, -42, 11),
    ], 5)]) + 0.5 * canvas.filled()  # fmt: skip
    middle.paint(duodenum, "gut wall", "duodenum")
    middle.paint(duodenum + 2.6 + 0.6 * texture(middle, 5, 4, duodenum), "chyme", "duodenum")


def _diaphragm(x: Float, y: Float, depth: Float) -> tuple[Float, Float]:
    """Height of the diaphragm over (x, y), and the factor from height above it to distance from it.

    Two domes that fall steeply to the wall; ``depth`` is the distance from the wall, mm, positive inside.
    """
    right = 87 - 23 * (((x + 64) / 58) ** 2 + ((y + 2) / 80) ** 2)
    left = 75 - 23 * (((x - 64) / 56) ** 2 + ((y - 4) / 78) ** 2)
    top = -join(-np.maximum(right, 20), -np.maximum(left, 20), 14)
    drop = 48 + 22 / (1 + np.exp(-y / 14)) - 26 / (1 + np.exp((y + 40) / 12))
    fall = drop * np.exp(-np.maximum(depth, 0) / 10)
    return top - fall, 1 / np.sqrt(1 + (fall / 10) ** 2)


def _below(canvas: Canvas, box: Canvas, cavity: Float, dome: tuple[Float, Float]) -> Float:
    """Distance to the roof and walls of the belly, two mm of play left to an organ."""
    height, factor = dome[0][box.box], dome[1][box.box]
    return cut(cavity[box.box] + 2, (canvas.z[box.box] - height) * factor + 5, 5)


def _chest(canvas: Canvas, cavity: Float, dome: tuple[Float, Float], random: np.random.Generator) -> None:
    chest = canvas.within((-150, -110, -30), (150, 110, 200))
    wall = cavity[chest.box]
    above = (dome[0][chest.box] - chest.z) * dome[1][chest.box]  # negative above the diaphragm
    chest.paint(cut(wall, above - 3), "diaphragm", "muscles of the wall")
    heart = chest.ellipsoid((20, -32, 120), (60, 46, 48), turn=25)
    spine = np.hypot(chest.x - 2, 0.9 * (chest.y - 34)) - 30
    middle = join(join(heart - 5, spine, 20), chest.ellipsoid((0, -45, 130), (26, 60, 60)), 15)
    room = cut(wall + 2, above, 4)
    lungs = cut(room, -middle, 6)
    chest.paint(cut(room, middle), "fat", "inner fat")
    chest.paint(cut(heart, above, 2), "heart", "heart")
    chest.paint(cut(chest.ellipsoid((46, -34, 124), (26, 24, 36), turn=25), above + 6, 2), "chamber", "heart")
    chest.paint(cut(chest.ellipsoid((2, -48, 120), (34, 19, 34), turn=25), above + 4, 2), "chamber", "heart")
    chest.paint(np.maximum(lungs, chest.x - 1), "lung", "right lung")
    chest.paint(np.maximum(lungs, 1 - chest.x), "lung", "left lung")
    hila = branches(random, (-38, 0, 130), (-70, 5, 66), 26, 2.2) + branches(
        random, (50, 0, 130), (72, 5, 60), 26, 2.2
    )
    chest.paint(np.maximum(chest.tube(hila), lungs + 1), "vein", None)


def _liver(
    canvas: Canvas, cavity: Float, dome: tuple[Float, Float], texture: Texture, random: np.random.Generator
) -> None:
    box = canvas.organ((-145, -95, -95), (80, 95, 95))
    underside = 0.62 * (box.x + 40) + 0.30 * box.y - 0.72 * (box.z + 20)
    tall, wide = canvas.size(0.12), canvas.size(0.2)
    right = cut(box.ellipsoid((-72, -2, 10), (68, 86, 88 * tall)), underside, 12)
    left = box.ellipsoid((2, -38, 46), (72 * wide, 40, 29 * canvas.size(0.2)), turn=-8 + canvas.stray(8))
    caudate = box.ellipsoid((-16, -2, 38), (15, 18, 22))
    liver = cut(join(join(right, left, 16), caudate, 8), _below(canvas, box, cavity, dome), 6)
    fissure = np.hypot(box.x + 14 + 0.1 * box.y, 0.25 * (box.z - 18)) - 3
    hilum = np.hypot(box.x + 30, box.z - 12) - 6
    liver = cut(liver, -cut(join(fissure, hilum, 6), box.y + 14), 4)
    box.paint(liver - 1.5, "fat", "inner fat")
    box.paint(liver, "liver", "liver")
    box.paint(liver + 1, "spleen", None, 0.08 * np.clip(texture(box, 12, 21, liver) + 1, 0, 2))
    portal = branches(random, (-30, -6, 20), (8, -42, 40), 9, 3.6) + branches(
        random, (-42, -4, 24), (-96, 2, 22), 9, 3.6
    )
    box.paint(np.maximum(box.tube(portal), liver + 2), "portal vein", None)
    hepatic = [
        twig
        for end in ((-100, 15, 40), (-62, -48, 42), (6, -44, 46))
        for twig in branches(random, (-22, 14, 60), end, 8, 3.2)
    ]
    box.paint(np.maximum(box.tube(hepatic), liver + 2), "vein", None)


def _upper_abdomen(
    canvas: Canvas, middle: Canvas, cavity: Float, dome: tuple[Float, Float], texture: Texture
) -> None:
    """Spleen, gallbladder and pancreas."""
    box = canvas.organ((35, -45, -85), (155, 105, 135))
    turn, size, height = 20 + canvas.stray(14), canvas.size(0.2), 26 + canvas.stray(12)
    spleen = cut(
        box.ellipsoid((88, 36, height), (34 * size, 46 * size, 54 * size), lean=-0.12, turn=turn),
        _below(canvas, box, cavity, dome),
        4,
    )
    spleen = cut(
        spleen, -box.ellipsoid((52, 8, height), (31 * canvas.size(0.15), 46, 72), lean=-0.12, turn=turn), 5
    )
    if not canvas.lacks(0.06):
        box.paint(spleen, "spleen", "spleen")

    box = canvas.organ((-90, -95, -60), (-10, 5, 35))
    knots = [
        (-36, -16, 8, 3),
        (-42, -26, -2, 8),
        (-48, -38, -14, 14),
        (-51, -47, -23, 14.5),
        (-53, -53, -29, 11),
    ]
    gallbladder = box.tube([canvas.bent(knots, 5)]) + box.filled()
    if not canvas.lacks(0.15):
        box.paint(gallbladder - 1.2, "gut wall", "gallbladder")
        box.paint(gallbladder, "bile", "gallbladder")

    knots = [
        (-28, -6, -36, 11),
        (-30, -12, -16, 16),
        (-12, -26, -2, 11),
        (14, -24, 6, 12),
        (46, -6, 14, 12),
        (78, 18, 24, 10),
    ]
    way = canvas.bent(knots, 6)
    way[:, 3] *= canvas.size(0.25)
    pancreas = middle.tube([way])
    if canvas.play:  # its head lies in the loop of the duodenum, and nowhere over it
        pancreas = np.where(middle.labels == middle.numbers["duodenum"], np.float32(9), pancreas)
    lobules = texture(middle, 7, 31, pancreas)
    middle.paint(pancreas + 1.2 * lobules, "pancreas", "pancreas")
    middle.paint(pancreas + 1, "fat", None, 0.4 * np.clip(lobules - 0.7, 0, 1))


def _kidney(
    canvas: Canvas, side: int, height: float, cavity: Float, dome: tuple[Float, Float], texture: Texture
) -> None:
    """One kidney, ``side`` +1 for the left, and the fat around it, of which its sinus is a part."""
    height += canvas.stray(18)
    centre_x, centre_y = 64.0 * side, 29.0
    box = canvas.organ((centre_x - 60, -30, height - 85), (centre_x + 60, 85, height + 100))
    up = box.z - height
    x, y = box.x - centre_x + 0.24 * side * up, box.y - centre_y  # the upper pole leans to the spine
    turn = np.radians(32 + canvas.stray(14))
    c, s = float(np.cos(turn)), float(np.sin(turn))
    inward, across = -side * c * x - s * y, -side * s * x + c * y
    thin, flat, tall = 28 * canvas.size(0.08), 23 * canvas.size(0.1), 54 * canvas.size(0.1)
    kidney = cut(
        ellipsoid(inward, across, up, (thin, flat, tall)),
        -ellipsoid(inward - 34, across, up, (15, 14, 20)),
        8,
    )
    kidney = cut(kidney, _below(canvas, box, cavity, dome), 4)
    name = "left kidney" if side > 0 else "right kidney"
    # Of the fat around it the gland above is a part. Liver and spleen make room for it.
    thick = float(canvas.random.uniform(2, 18)) if canvas.play else 4.0
    above = ellipsoid(inward - 8, across + 4, up - tall, (18, 16, 26))
    fat = join(kidney - thick, above + 14 - thick, 10)
    yields = [box.numbers[label] for label in ("liver", "spleen", "small bowel", "inner fat")]
    fat = np.where(np.isin(box.labels, yields), np.maximum(fat, cavity[box.box] + 1), kidney - 1)
    box.paint(np.minimum(fat, kidney - 1), "fat", "inner fat")
    gland = np.maximum(np.abs(across - 0.5 * np.abs(inward - 6)) - 1.6, above + 16 - 0.6 * thick)
    box.paint(np.maximum(gland, fat + 1), "gut wall", None)
    box.paint(kidney, "renal cortex", name)
    lobes = np.cos(12 * np.arctan2(up, inward + 40)) * np.cos(across / 9)
    pyramids = np.maximum(np.maximum(kidney + 6.5, 7 * (0.05 - lobes)), -kidney - 19)
    box.paint(pyramids, "renal medulla", name)
    wide = canvas.size(0.2)
    sinus = ellipsoid(inward - 13, across, up, (20 * wide, 9 * wide, 31 * wide))
    sinus += 1.5 * texture(box, 12, 51, kidney)
    box.paint(np.maximum(sinus, kidney), "fat", "inner fat")
    box.paint(ellipsoid(inward - 17, across, up, (16, 5 * wide, 9)), "urine", None)


def _stomach(canvas: Canvas, cavity: Float, dome: tuple[Float, Float], texture: Texture) -> None:
    box = canvas.organ((-60, -105, -75), (120, 70, 105))
    stomach = box.tube([canvas.bent([
        (54, 6, 48, 26), (58, -12, 34, 28), (58, -34, 8, 25), (46, -48, -18, 21), (20, -52, -22, 17),
        (-4, -47, -12, 12), (-22, -40, -2, 7),
    ], 9)]) + 1.5 * box.filled()  # fmt: skip
    stomach = cut(stomach, _below(canvas, box, cavity, dome), 4)
    rugae = 1.2 * texture(box, 6, 41, stomach)
    box.paint(stomach, "gut wall", "stomach")
    box.paint(stomach + 4.5 + rugae, "fluid", "stomach")
    box.paint(np.maximum(stomach + 4.5, box.y + 50), "gas", "stomach")
    box = canvas.within((-10, -20, 40), (60, 45, 200))
    gullet = box.tube([curve([(4, 14, 200, 8), (8, 8, 90, 8), (24, 4, 66, 7), (50, 10, 56, 8)])])
    box.paint(gullet, "gut wall", None)


def _vessels(canvas: Canvas, random: np.random.Generator) -> None:
    box = canvas.within((-70, -70, -170), (95, 60, 200))

    def front(z: float, gap: float) -> float:
        """y of a point ``gap`` mm before the vertebral bodies."""
        return float(_spine_y(z)) - 16 - gap

    hollow = [box.numbers[name] for name in ("stomach", "spleen", "left kidney", "right kidney")]
    blocked = 9.0 * np.isin(box.labels, hollow)
    mesentery = branches(random, (4, -18, -36), (-30, -40, -110), 22, 1.7)
    mesentery += branches(random, (4, -18, -36), (48, -36, -100), 22, 1.7)
    organ = (box.labels > 0) & (box.labels <= max(NAMES))
    free = np.where(organ, np.float32(9), np.float32(-9))
    box.paint(np.maximum(box.tube(mesentery), free), "portal vein", None)
    portal = box.tube([
        curve([(-4, -36, -90, 4), (-4, -18, -32, 5), (-8, -16, -4, 6), (-22, -12, 12, 7), (-36, -6, 22, 6)]),
        curve([(-8, -16, -2, 5), (16, -14, 8, 4.5), (46, 4, 16, 4.2), (80, 24, 28, 3.5)]),
    ])  # fmt: skip
    box.paint(portal + blocked, "portal vein", "portal vein")
    arteries = box.tube([
        curve([(9, 4, 12, 4), (7, -8, 10, 4), (-10, -16, 14, 3), (-30, -10, 16, 2.5)]),  # coeliac, hepatic
        curve([(7, -8, 10, 3), (24, -12, 16, 2.8), (50, 2, 22, 2.6), (78, 24, 30, 2.4)]),  # splenic
        curve([(9, 2, 0, 4), (8, -8, -6, 4), (5, -16, -30, 3.8), (0, -34, -90, 3)]),  # superior mesenteric
        curve([(6, 8, -14, 3.2), (-20, 26, -18, 3), (-50, 22, -28, 2.5)]),  # renal
        curve([(12, 8, -12, 3.2), (34, 16, -13, 3), (50, 22, -13, 2.5)]),
    ])  # fmt: skip
    box.paint(arteries + blocked, "artery", "other vessels")
    veins = box.tube([
        curve([(-22, 12, -22, 5), (-36, 14, -24, 4.5), (-50, 20, -26, 4)]),  # renal
        curve([(-12, -1, -8, 5), (12, -3, -8, 4.5), (34, 10, -9, 4.5), (50, 20, -10, 4)]),
        curve([(-14, front(-94, 7), -94, 8), (-34, 22, -125, 8), (-50, 20, -150, 8)]),  # iliac
        curve([(-12, front(-96, 5), -96, 8), (22, 24, -120, 7.5), (46, 22, -150, 7.5)]),
    ])  # fmt: skip
    box.paint(veins, "vein", "other vessels")
    iliac = [(3, front(-86, 9), -86, 7), (22, front(-110, 8), -112, 6.5), (46, 12, -150, 6)]
    box.paint(box.tube(mirrored(iliac)), "artery", "other vessels")
    cava = box.tube([curve([
        (-24, 0, 130, 13), (-23, 6, 96, 12), (-22, 12, 66, 12), (-20, front(20, 10), 20, 11.5),
        (-18, front(-50, 9), -50, 11), (-15, front(-94, 8), -94, 10.5),
    ])])  # fmt: skip
    box.paint(cava, "vein", "vena cava")
    radii = {160: 12.0, 100: 11.5, 50: 11.0, 0: 10.0, -50: 9.5, -86: 9.0}
    aorta = box.tube([curve([(9, front(z, 11) + 6 * (z > 90), z, radius) for z, radius in radii.items()])])
    box.paint(aorta - 0.8, "gut wall", None)
    box.paint(aorta, "artery", "aorta")
    crura = box.tube(mirrored([(15, 20, 40, 5), (15, 17, 10, 5), (14, 18, -30, 3)]))
    box.paint(np.maximum(crura, -aorta - 0.5), "diaphragm", None)


def _ribs(canvas: Canvas, cavity: Float) -> None:
    bones, gristle = [], []
    for number, head in _RIB_HEADS.items():
        # The share of the way from the spine to the breastbone that is bone; 11 and 12 end free.
        bony = {12: 0.30, 11: 0.48}.get(number, 0.72)
        t = np.linspace(0, bony if number > 10 else 1, 160)
        angle = np.radians(16 + 150 * t)
        z = head - 68 * np.sin(np.minimum(t / 0.74, 1) * np.pi / 2)
        z += np.maximum(t - 0.76, 0) * (130 + 14 * (10 - number))
        for side in (-1, 1):
            # Each rib lies 5 mm outside the cavity: find how far from the axis, by bisection.
            low, high = np.full(t.shape, 8.0), np.full(t.shape, 170.0)
            for _ in range(16):
                middle = (low + high) / 2
                x, y = side * middle * np.sin(angle), middle * np.cos(angle)
                outside = np.sum(_outline(x, y, z), axis=0) > 5
                low, high = np.where(outside, low, middle), np.where(outside, middle, high)
            way = np.stack([x, y, z, np.full(t.shape, 3.6)], axis=1)
            bones.append(curve(way[t <= bony]))
            if number <= 10:
                gristle.append(curve(way[t > bony]))
    box = canvas.within((-150, -110, -20), (150, 110, 200))
    off = 99.0 * (np.abs(cavity[box.box] - 5) > 12)
    box.paint(box.tube(gristle, flatten=0.6) + off, "cartilage", "ribs")
    ribs = box.tube(bones, flatten=0.55) + off
    box.paint(ribs, "rib", "ribs")
    box.paint(ribs + 2.2, "marrow", "ribs")


def _spine_y(z: Float | float) -> Float | float:
    """y of the axis of the vertebral bodies."""
    return 34 + 0.05 * z + 0.0004 * z * z


def _vertebra(column: Canvas, height: float, pitch: float, texture: Texture) -> None:
    """A vertebra, the disc below it and the canal behind it; ``pitch`` is the height of both, mm."""
    y0 = float(_spine_y(height))
    size = float(np.interp(height, [-118, 154], [1, 0.72]))
    rx, ry, half, back = 24 * size, 17 * size, 0.5 * pitch - 4 * size, y0 + 17 * size
    box = column.within((-50, y0 - 24, height - 40), (50, y0 + 70, height + 32))
    # The column is curved: each vertebra tilts with its slope.
    up = box.z - height + (0.05 + 0.0008 * height) * (box.y - y0)
    x, y = box.x - 2 * np.sin(box.z / 70), box.y - y0
    radius = np.hypot(x / rx, y / ry)
    below = np.abs(up + half + 4 * size)
    box.paint(cut((radius - 1) * ry + 0.5, below - 4.6 * size), "disc", "discs")
    box.paint(cut((radius - 0.6) * ry, below - 3.4 * size, 2), "nucleus", "discs")

    waist = 1 - 0.10 * np.maximum(1 - (up / half) ** 2, 0)
    body = cut((radius - waist) * ry, np.abs(up) - half)
    knots = np.array([
        [(13, -4, 5, 5), (15, 8, 5, 5), (16, 16, 3, 5)],  # pedicle
        [(16, 15, 5, 4.5), (8, 21, -1, 4), (0, 24, -4, 4)],  # lamina
        [(16, 14, 5, 4), (26, 15, 6, 3.5), (40, 19, 7, 3)],  # transverse process
        [(16, 15, 8, 5), (16, 15.5, -4, 5), (16, 16, -16, 5.5)],  # articular processes
        [(0, 24, -4, 4), (0, 27, -8, 4), (0, 30, -12, 4.5)],  # spinous process
    ]) * (size, size, 1, size) + (0, back, height, 0)  # fmt: skip
    arch = [side for process in knots for side in mirrored([tuple(knot) for knot in process])]
    middle = _spine_y(box.z) + 17 * size + 7.5
    canal = np.hypot(x / (11.5 * size), (box.y - middle) / 8) * 8 - 8
    bone = cut(join(body, box.tube(arch, flatten=0.8), 2), -canal, 1.5)
    box.paint(bone, "compact bone", "vertebrae")
    box.paint(bone + 2.4, "marrow", "vertebrae")
    box.paint(bone + 2.4, "rib", None, 0.11 * np.clip(1 + texture(box, 6, 61, bone), 0, 2))  # trabeculae

    level = np.abs(up + 4) - pitch / 2 - 3
    thecal = np.hypot(x, box.y - middle)
    box.paint(np.maximum(canal, level), "fat", "spinal canal")
    box.paint(np.maximum(thecal - 7, level), "csf", "spinal canal")
    if height > -10:
        box.paint(np.maximum(thecal - 4.2, level), "cord", "spinal cord")
    else:
        roots = np.cos(1.9 * x) * np.cos(1.9 * (box.y - middle)) > 0
        dependent = np.maximum(np.maximum(thecal - 5.5, middle - box.y), level)
        box.paint(dependent, "cord", None, 0.6 * roots)


def _pelvis(canvas: Canvas) -> None:
    """The iliac wings, with the muscles on both faces, as sheets of points that tubes thicken."""
    t, fall = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 75, 40))
    z = -84 - 136 * (t - 0.45) ** 2 - fall
    x = 44 + 66 * np.sin(t * np.pi / 2) - 0.22 * fall
    y = 66 - 74 * t**1.4 - 0.05 * fall
    for side in (-1, 1):
        box = canvas.within((side * 75 - 60, -40, -180), (side * 75 + 60, 95, -65))
        wing = box.tube([np.stack([side * x, y, z, np.full(t.shape, 10.0)], axis=-1).reshape(-1, 4)])
        box.paint(wing, "muscle", "muscles of the wall")
        box.paint(wing + 5.8, "compact bone", "pelvis")
        box.paint(wing + 7.8, "marrow", "pelvis")
