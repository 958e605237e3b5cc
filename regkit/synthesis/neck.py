"""Painted necks: the cervical spine with its cord, and what lies around it, from the skull base to T3.

As the trunk of :mod:`regkit.synthesis.procedural_trunk`: implicit functions (negative inside, roughly mm) of
anatomical coordinates, mm, x to the patient's left, y to the back, z to the head; the origin is the middle of
the fifth cervical vertebra. Sizes are textbook means of adults, with the spread between people. Drawing needs
scipy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.contrasts import anatomy_of
from regkit.synthesis.noise import Rng
from regkit.synthesis.painting import Canvas, Float, Solid, Texture, curve, cut, ellipsoid, join, mirrored
from regkit.synthesis.pose import posed, sides
from regkit.synthesis.structures import STRUCTURES
from regkit.synthesis.tissues import TISSUES

_EXTENT = np.array([190.0, 190.0, 190.0])  # mm, along x, y and z
_MIDDLE = np.array([0.0, 6.0, 0.0])  # anatomical mm
_MOST_SIDE = 120  # voxels; smaller boxes are painted faster, and hold the views
_ABOUT_THE_SPINE = np.array([12.0, 20.0, 60.0])  # mm, by which most boxes lie off the middle at most
_NUMBERS = {name: number for number, name in STRUCTURES.items()}
_BY_NAME = {name: float(number) for number, name in enumerate(TISSUES)}
# z of the middles of C2 to T4; C1 is a ring around the dens of C2.
_VERTEBRAE = (51.0, 34.0, 17.0, 0.0, -17.0, -34.5, -53.0, -73.0, -94.0, -116.0)
_ATLAS = 69.0


@dataclass(frozen=True)
class _Build:
    """What differs between people.

    Args:
        slope, curvature: of the line of the vertebral bodies, y = slope z + curvature z^2.
        scale: of vertebrae and canal.
        canal, cord: (x, y) radii at C5, mm.
        ride: mm, by which the cord lies behind the middle of the canal.
        disc: mm, height of the discs.
        fat: mm, thickness of the fat under the skin.
        half: (x, y) from the middle of the neck to the skin, mm.
    """

    slope: float
    curvature: float
    scale: float
    canal: tuple[float, float]
    cord: tuple[float, float]
    ride: float
    disc: float
    fat: float
    half: tuple[float, float]

    @classmethod
    def of(cls, random: np.random.Generator) -> _Build:
        def near(mean: float, spread: float) -> float:
            return float(mean * np.exp(random.normal(0, spread)))

        width = near(11.5, 0.09)
        tall = near(7.6, 0.1)
        return cls(
            float(random.normal(0, 0.08)),
            float(random.normal(0.0022, 0.0018)),
            near(1.0, 0.07),
            (width, tall),
            (min(near(6.4, 0.08), 0.8 * width), min(near(3.9, 0.09), 0.78 * tall)),
            float(random.uniform(-1.2, 1.2)),
            near(5.2, 0.2),
            near(6.0, 0.6),
            (near(60, 0.1), near(62, 0.1)),
        )

    def front(self, z: Float | float) -> Float | float:
        """y of the axis of the vertebral bodies."""
        return self.slope * z + self.curvature * z * z

    def middle(self, z: Float | float) -> Float | float:
        """y of the middle of the canal."""
        return self.front(z) + 8.6 * self.scale + self.canal[1] + 0.6


def draw_neck(rng: Rng, spacing: float = 1.0) -> Anatomy:
    """A neck, axes towards the patient's head, back and left (Z, Y, X), or a box out of it.

    Args:
        rng: on the CPU.
        spacing: of the voxels, mm; where they are too small to hold the whole neck, a box is drawn, which the
            spine runs through as a rule.
    """
    random = rng.scalars
    z, y, x = (min(_MOST_SIDE, n) for n in sides(_EXTENT.tolist(), spacing))
    room = np.maximum(_EXTENT - spacing * np.array((x, y, z)), 0) / 2
    if rng.chance(0.75):
        room = np.minimum(room, _ABOUT_THE_SPINE)
    middle = _MIDDLE + random.uniform(-1, 1, 3) * room
    tissues, structures = draw_tissues(posed(rng, (z, y, x), spacing, middle, 12), spacing, random)
    return anatomy_of(tissues, structures, spacing)


def draw_tissues(
    coordinates: npt.NDArray[np.float32], edge: float, random: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """What a neck of random build is made of.

    Args:
        coordinates: (3, Z, Y, X), anatomical x, y, z of each voxel, mm.
        edge: the longest side of a voxel, mm.

    Returns:
        numbers in :data:`regkit.synthesis.tissues.TISSUES` and of
        :data:`regkit.synthesis.structures.STRUCTURES`, both (Z, Y, X).
    """
    x, y, z = coordinates
    numbers, labels = np.full(x.shape, _BY_NAME["air"], np.float32), np.zeros(x.shape, np.uint8)
    canvas = Solid(x, y, z, numbers, labels, _BY_NAME, _NUMBERS, edge, play=2, random=random)
    _paint(canvas, random)
    return numbers.astype(np.uint8), labels


def _paint(canvas: Canvas, random: np.random.Generator) -> None:
    build, texture = _Build.of(random), Texture(random)
    inner = _walls(canvas, build)
    _muscles_behind(canvas, build, inner, texture, random)
    _throat(canvas, build, inner, texture, random)
    _chest(canvas, build, inner)
    _head(canvas, build, texture)
    for k, height in enumerate(_VERTEBRAE):
        above = _VERTEBRAE[k - 1] if k else 68.0
        below = _VERTEBRAE[k + 1] if k + 1 < len(_VERTEBRAE) else height - 22
        _vertebra(canvas, build, k, height, (above + height) / 2, (height + below) / 2, texture, random)
    _atlas(canvas, build)
    _canal(canvas, build, texture, random)


def _walls(canvas: Canvas, build: _Build) -> Float:
    """Skin and fat; returns the distance to what is within them, negative inside."""
    x, y, z = canvas.x, canvas.y, canvas.z
    shoulders = 1 / (1 + np.exp((z + 62) / 9))
    head = 1 / (1 + np.exp(-(z - 52) / 8))
    half_x = build.half[0] + 100 * shoulders + 12 * head
    half_y = build.half[1] + 22 * shoulders + 30 * head
    middle = 8 + 4 * shoulders - 12 * head
    u, v = x / half_x, (y - middle) / half_y
    level = np.hypot(u, v) + 1e-4
    slope = np.hypot(u / half_x, v / half_y) / level + 1e-4
    skin = (level - 1) / slope
    canvas.paint(skin, "skin", "fat of the wall")
    canvas.paint(skin + 2, "fat", "fat of the wall")
    inner = skin + 2 + build.fat
    canvas.paint(inner, "muscle", "muscles of the neck")
    return inner


def _muscles_behind(
    canvas: Canvas, build: _Build, inner: Float, texture: Texture, random: np.random.Generator
) -> None:
    """Layers on each side behind the spine, parted by fat, and the ligament between them."""
    box = canvas.within((-60, -5, -130), (60, 110, 110))
    depth = inner[box.box]
    y = box.y - build.middle(box.z)
    behind = np.maximum(np.maximum(depth + 3, -(y + 0.35 * np.abs(box.x) - 8)), np.abs(box.x) - 46)
    for side, name in ((-1, "right back muscles"), (1, "left back muscles")):
        box.paint(np.maximum(behind, -side * box.x), "muscle", name)
    # Sheets of fat around the spinous processes, and along the skin.
    radius = np.hypot(box.x, 0.75 * (y - 6))
    share = random.uniform(0.2, 1.0)
    for at in (15, 24, 33, 41):
        wave = at + 2.5 * texture(box, 30, at, behind)
        holes = np.clip(texture(box, 12, at + 3, behind) + 1.6 * share, 0, 1)
        box.paint(np.maximum(np.abs(radius - wave) - random.uniform(0.3, 1.0), behind), "fat", None, holes)
    streaks = np.clip(texture(box, 7, 9, behind) - random.uniform(0.5, 1.6), 0, 1)
    box.paint(np.maximum(behind, 8 - y), "fat", None, 1.2 * streaks)
    septum = np.maximum(np.maximum(np.abs(box.x) - 0.8, -(y - 6)), depth + 2)
    box.paint(septum, "gut wall" if random.random() < 0.5 else "fat", "inner fat")


def _throat(
    canvas: Canvas, build: _Build, inner: Float, texture: Texture, random: np.random.Generator
) -> None:
    """What lies before the spine: muscles, vessels, airway, gullet, thyroid and salivary glands."""

    def before(z: float, gap: float) -> float:
        return float(build.front(z)) - 8.6 * build.scale - gap

    room = canvas.within((-62, -95, -130), (62, 40, 110))
    depth = inner[room.box]
    space = np.maximum(np.maximum(depth + 3, room.y - build.front(room.z) + 4), np.abs(room.x) - 36)
    room.paint(space, "fat", "inner fat", 1.0)
    strap = room.tube(mirrored([
        (9, before(24, 34), 24, 5), (10, before(-10, 36), -10, 6), (8, before(-60, 34), -60, 6),
    ]), flatten=0.7)  # fmt: skip
    room.paint(strap, "muscle", "muscles of the neck")
    longus = mirrored([(5, before(66, 1), 66, 3), (7, before(20, 3), 20, 4.5), (9, before(-60, 2), -60, 4)])
    room.paint(room.tube(longus), "muscle", "muscles of the neck")
    scalenes = mirrored([(22, before(24, -6), 24, 5), (30, before(-15, -4), -15, 8), (44, 0, -75, 8)])
    room.paint(room.tube(scalenes), "muscle", "muscles of the neck")
    front = 10 - build.half[1]
    mastoid: list[tuple[float, float, float, float]] = [
        (50, 12, 78, 9),
        (46, -2, 40, 11),
        (36, 0.55 * front, 0, 12),
        (16, front + 12, -62, 8),
    ]
    mastoid = [(x * build.half[0] / 60, y, z, r) for x, y, z, r in mastoid]
    room.paint(room.tube(mirrored(mastoid)) + 0.4, "muscle", "muscles of the neck")

    throat = canvas.organ((-45, -95, -130), (45, 20, 110))
    # The cartilages move as one when people swallow.
    lift = random.normal(0, 7)
    airway = throat.tube([curve([
        (0, before(80, 7), 80, 8), (0, before(45, 8), 45, 9), (0, before(28, 13), 28 + lift, 8),
        (0, before(6, 18), 6 + lift, 4.5), (0, before(-14, 18), -14 + lift, 8.5),
        (1, before(-60, 16), -60, 9), (2, before(-125, 10), -125, 9),
    ])])  # fmt: skip
    high = throat.z - lift
    throat.paint(np.maximum(airway - 3, 22 - high), "muscle", "muscles of the neck")
    below = np.maximum(airway - 2.2, high + 12)
    rings = np.cos(2 * np.pi * throat.z / 6.5) > -0.2
    throat.paint(below, "gut wall", "larynx and trachea")
    throat.paint(below, "cartilage", None, 1.0 * rings)
    box = throat.tube([curve([(0, before(6, 17), 22 + lift, 14), (0, before(-14, 17), -18 + lift, 13)])])
    voice = np.maximum(box, np.abs(high - 2) - 17)
    throat.paint(voice, "mucosa" if random.random() < 0.5 else "muscle", "larynx and trachea")
    shield = np.maximum(np.abs(box + 1.6) - 1.3, np.abs(high - 2) - 15)
    shield = np.maximum(shield, throat.y - build.front(throat.z) + 20)
    throat.paint(shield, "cartilage", "larynx and trachea")
    hyoid = throat.tube(mirrored([
        (0, before(24, 36), 24 + lift, 3), (12, before(25, 30), 25 + lift, 2.6),
        (21, before(28, 14), 28 + lift, 2),
    ]))  # fmt: skip
    throat.paint(hyoid, "compact bone", "bones of the head")
    throat.paint(hyoid + 1.4, "marrow", "bones of the head")
    throat.paint(airway, "gas", "airway")
    gullet = throat.tube([curve([
        (0, before(-4, 5), -4 + lift, 4), (3, before(-25, 5), -25, 6), (6, before(-60, 5), -60, 6.5),
        (4, before(-125, 4), -125, 7),
    ])], flatten=1.0)  # fmt: skip
    throat.paint(gullet, "gut wall", "oesophagus")
    if random.random() < 0.4:
        throat.paint(gullet + random.uniform(2.5, 4.5), "gas" if random.random() < 0.6 else "fluid", None)
    lobe = canvas.size(0.2)
    thyroid = throat.tube(mirrored([
        (18, before(-4, 14), -2 + lift, 3 * lobe), (17, before(-22, 13), -22 + lift, 8.5 * lobe),
        (14, before(-40, 14), -40 + lift, 5 * lobe),
    ]) + [curve([(-14, before(-32, 26), -32 + lift, 3), (14, before(-32, 26), -32 + lift, 3)])])  # fmt: skip
    throat.paint(np.maximum(thyroid, 1.5 - airway), "spleen", "thyroid gland")

    vessels = canvas.organ((-60, -60, -130), (60, 30, 110))
    wide = canvas.size(0.15)
    arteries = mirrored([
        (10, before(-120, 10), -120, 4.2), (19, before(-50, 10), -50, 3.6 * wide),
        (25, before(10, 8), 10, 3.6 * wide), (27, before(22, 7), 22, 4.4), (27, before(75, 2), 75, 2.6),
    ])  # fmt: skip
    veins = []
    for side in (-1, 1):
        thick = canvas.size(0.3)
        veins.append(curve([
            (side * 18, before(-100, 12), -100, 6), (side * 27, before(-50, 10), -50, 6.5 * thick),
            (side * 33, before(10, 4), 10, 5.5 * thick), (side * 31, before(80, -6), 80, 4.5 * thick),
        ]))  # fmt: skip
    around = vessels.tube([*arteries, *veins])
    vessels.paint(around - 1.5, "fat", "inner fat")
    vessels.paint(vessels.tube(veins), "vein", "other vessels")
    vessels.paint(vessels.tube(arteries), "artery", "other vessels")

    for side in (-1, 1):
        cheek = canvas.organ((side * 50 - 30, -50, 15), (side * 50 + 30, 30, 95))
        size = canvas.size(0.15)
        gland = ellipsoid(cheek.x - side * 46, cheek.y + 4, cheek.z - 62, (11 * size, 17 * size, 24 * size))
        gland = np.maximum(gland + 1.2 * texture(cheek, 6, 3 + side, gland), inner[cheek.box] + 1)
        cheek.paint(gland, "pancreas", "salivary glands")
        gland = ellipsoid(cheek.x - side * 28, cheek.y + 32, cheek.z - 36, (8 * size, 14 * size, 11 * size))
        cheek.paint(gland, "pancreas", "salivary glands")
    nodes = random.integers(0, 12)
    for _ in range(nodes):
        side = random.choice((-1, 1))
        x, y, z = side * random.uniform(24, 44), random.uniform(-25, 18), random.uniform(-50, 60)
        spot = canvas.within((x - 10, y - 10, z - 10), (x + 10, y + 10, z + 10))
        radii = random.uniform(1.5, 4.5, 3).tolist()
        node = ellipsoid(spot.x - x, spot.y - y, spot.z - z, radii)
        spot.paint(np.maximum(node, inner[spot.box] + 2), "spleen", "inner fat")


def _chest(canvas: Canvas, build: _Build, inner: Float) -> None:
    """The tops of the lungs, the first ribs and the collar bones."""
    box = canvas.within((-130, -90, -160), (130, 90, -40))
    for side, name in ((-1, "right lung"), (1, "left lung")):
        lung = ellipsoid(box.x - side * 48, box.y - 8, box.z + 138, (36, 50, 62))
        box.paint(np.maximum(lung, inner[box.box] + 12), "lung", name)
    first, second = (float(build.middle(z)) - 4 for z in (-56, -76))
    ribs = mirrored([(12, first, -56, 4), (40, 26, -62, 4.5), (52, -10, -80, 5), (24, -42, -98, 5)])
    ribs += mirrored([(12, second, -76, 4), (52, 34, -84, 4.5), (70, -8, -108, 5)])
    bones = box.tube(ribs, flatten=0.7)
    box.paint(bones, "rib", "ribs")
    box.paint(bones + 2, "marrow", "ribs")
    collar = box.tube(mirrored([(14, -48, -84, 7), (60, -46, -72, 5.5), (120, -6, -66, 6)]))
    box.paint(collar, "compact bone", "ribs")
    box.paint(collar + 2.2, "marrow", "ribs")


def _head(canvas: Canvas, build: _Build, texture: Texture) -> None:
    """The jaw with the tongue, and the hind brain in the back of the skull."""
    box = canvas.within((-75, -110, 14), (75, 20, 140))
    tongue = ellipsoid(box.x, box.y + 58, box.z - 58, (26, 34, 24))
    box.paint(tongue, "muscle", "muscles of the neck")
    box.paint(tongue + 1, "fat", None, 0.8 * np.clip(texture(box, 8, 5, tongue) - 0.7, 0, 1))
    jaw = [(0, -88, 36, 6.5), (26, -66, 38, 6.5), (42, -34, 44, 6.5), (46, -20, 66, 6), (48, -16, 92, 5)]
    bone = box.tube(mirrored(jaw), flatten=0.8)
    box.paint(bone, "compact bone", "bones of the head")
    box.paint(bone + 2.2, "marrow", "bones of the head")
    back = canvas.within((-80, -30, 70), (80, 110, 150))
    y = back.y - float(build.middle(86))
    skull = join(
        ellipsoid(back.x, y - 28, back.z - 122, (58, 52, 40)),
        ellipsoid(back.x, y + 26, back.z - 118, (30, 40, 28)),
        14,
    )
    back.paint(skull, "compact bone", "bones of the head")
    back.paint(skull + 1.8, "marrow", "bones of the head")
    back.paint(skull + 4, "compact bone", "bones of the head")
    back.paint(skull + 6, "csf", "fluid around the brain")
    folds = 1.6 * np.cos(1.1 * back.z + 0.3 * y)
    cerebellum = ellipsoid(back.x, y - 26, back.z - 122, (48, 34, 28))
    back.paint(cerebellum, "grey matter", "cerebellar cortex")
    back.paint(cerebellum + 5 + folds, "white matter", "cerebellar white matter")
    stem = ellipsoid(back.x, y + 2, back.z - 122, (15, 13, 42))
    back.paint(np.maximum(stem, skull + 6), "white matter", "brain stem")


def _vertebra(
    canvas: Canvas,
    build: _Build,
    k: int,
    height: float,
    top: float,
    bottom: float,
    texture: Texture,
    random: np.random.Generator,
) -> None:
    """A vertebra with the disc below it; the first is C2.

    Args:
        k: its number from C2.
        top, bottom: z of the middles of the discs above and below, mm.
    """
    size = build.scale * float(np.interp(height, [-116, 0, 51], [1.28, 1.0, 0.95]))
    y0 = float(build.front(height))
    slope = build.slope + 2 * build.curvature * height
    box = canvas.within((-48, y0 - 22, bottom - 24), (48, y0 + 70, top + 24))
    up = box.z - height + slope * (box.y - y0)  # the column is bent: each tilts with its slope
    x, y = box.x, box.y - y0 - slope * (box.z - height)
    rx, ry = 9.6 * size, 8.4 * size
    radius = np.hypot(x / rx, y / ry)
    low = bottom - height
    # Discs are narrower in front where the neck is bent forward, and some are worn.
    thick = build.disc * float(np.exp(random.normal(0, 0.15)))
    wedge = 0.05 * y
    between = np.abs(up - low - wedge) - thick / 2
    worn = random.random() < 0.2
    # The processes beside each body lean over the disc below.
    cup = 0.9 * np.maximum(radius - 0.6, 0) * rx * 0.35
    disc = cut((radius - 1.02) * ry, between + cup * 0.3, 1.5)
    box.paint(disc, "disc", "discs")
    if not worn:
        box.paint(cut((radius - 0.62) * ry, between + 1.2, 1.5), "nucleus", "discs")
    high = top - height - build.disc / 2 if k else 12.0
    waist = 1 - 0.09 * np.maximum(1 - (2 * up / (top - bottom)) ** 2, 0)
    body = cut(cut((radius - waist) * ry, up - high, 1.2), low + thick / 2 + wedge - up, 1.2)
    if k == 0:
        dens = ellipsoid(x, y + 1, up - 20, (5.0 * size, 5.2 * size, 18))
        body = join(body, dens, 3)
    thoracic = height < -45
    canal_x = build.canal[0] * (0.86 if thoracic else 1.0)
    spine = {0: 24, 1: 17, 2: 17, 3: 19, 4: 25, 5: 34}.get(k, 36) * float(np.exp(random.normal(0, 0.12)))
    fall = 18 if thoracic else 6
    rear = 2 * build.canal[1]
    lateral = canal_x + 6.5
    processes: list[list[tuple[float, float, float, float]]] = [
        [(0.75 * rx, 6, 1, 3.4), (lateral - 1, 9, 2, 4)],  # pedicle
        [(lateral, 11, 4, 4.6), (0.62 * canal_x, rear - 1, 0, 2.6), (0, rear + 5, -2, 2.8)],  # lamina
        [(lateral, 8, 7.5, 5.2), (lateral, 11, 0, 5.6), (lateral, 14, -7, 5.2)],  # articular
        [  # spinous
            (0, rear + 4, -2, 3.4),
            (0.6, rear + 0.5 * spine, -0.6 * fall, 3.6),
            (2, rear + spine, -fall, 4.2),
        ],
    ]
    if thoracic:
        processes.append([(lateral, 11, 4, 5), (lateral + 15, 20, 8, 4.5)])
    else:  # around the foramen of the vertebral artery
        processes.append([(rx, -2, -1, 2.2), (rx + 8.5, 0, -2, 2.4), (lateral + 4, 6, 0, 2.4)])
    knots = [[(px, y0 + py + slope * pz, height + pz, r) for px, py, pz, r in way] for way in processes]
    arch = box.tube([side for way in knots for side in mirrored(way)], flatten=0.9)
    bone = join(body, arch, 1.5)
    shell = 1.0 + 0.4 * float(random.random())
    box.paint(bone, "compact bone", "vertebrae")
    box.paint(bone + shell, "marrow", "vertebrae")
    box.paint(bone + shell, "rib", None, 0.3 * np.clip(texture(box, 5, 61 + k, bone), 0, 2))
    if not thoracic:
        hole = [(rx + 4.2, y0 + 2 + slope * dz, height + dz, 2.0) for dz in (low, 0.0, top - height)]
        artery = box.tube(mirrored(hole))
        box.paint(artery - 0.8, "vein", "other vessels")
        box.paint(artery, "artery", "other vessels")


def _atlas(canvas: Canvas, build: _Build) -> None:
    y0 = float(build.front(_ATLAS))
    box = canvas.within((-48, y0 - 22, _ATLAS - 18), (48, y0 + 50, _ATLAS + 18))
    rear = float(build.middle(_ATLAS)) + build.canal[1] + 4
    ring = box.tube(mirrored([
        (0, y0 - 9, _ATLAS, 3.5), (10, y0 - 6, _ATLAS, 4), (18, y0 + 3, _ATLAS, 8), (26, y0 + 6, _ATLAS, 5),
        (18, rear - 7, _ATLAS, 3.5), (8, rear, _ATLAS, 3.2), (0, rear + 2, _ATLAS, 3.5),
    ]), flatten=0.8)  # fmt: skip
    box.paint(ring, "compact bone", "vertebrae")
    box.paint(ring + 1.4, "marrow", "vertebrae")


def _canal(canvas: Canvas, build: _Build, texture: Texture, random: np.random.Generator) -> None:
    """The canal: ligaments and fat, the sac of fluid, the cord with its grey matter, and the nerve roots."""
    box = canvas.within((-30, -30, -130), (30, 70, 92))
    wider = np.interp(box.z, [-116, -45, -20, 55, 85], [0.84, 0.86, 1.0, 1.04, 1.35])
    middle = build.middle(box.z)
    y = box.y - middle
    rx, ry = build.canal[0] * wider, build.canal[1] * wider
    # Wider in front, as a rounded triangle.
    narrow = 1 - 0.16 * np.clip(y / ry, -1, 1)
    canal = (np.hypot(box.x / (rx * narrow), y / ry) - 1) * ry
    roots = []
    for k, height in enumerate(_VERTEBRAE):
        below = _VERTEBRAE[k + 1] if k + 1 < len(_VERTEBRAE) else height - 22
        z = 0.55 * height + 0.45 * below
        y0 = float(build.middle(z))
        roots += mirrored([
            (3, y0 - 2, z + 5, 1), (9, y0 - 3, z + 1, 2), (17, y0 - 6, z - 2, 2.6), (27, y0 - 9, z - 8, 2.2),
        ])  # fmt: skip
    nerves = canvas.within((-34, -40, -130), (34, 60, 92))
    roots_at = nerves.tube(roots)
    nerves.paint(roots_at - 1.4, "fat", "inner fat")
    nerves.paint(roots_at, "cord", "inner fat")
    box.paint(canal - 0.9, "diaphragm", "spinal canal")  # ligaments: dark in all MR, as muscle or darker
    box.paint(canal, "fat", "spinal canal")
    veins = np.clip(texture(box, 8, 71, canal) - 0.4, 0, 1)
    box.paint(np.maximum(canal, y + 0.55 * ry), "vein", "spinal canal", 1.4 * veins)
    full = random.uniform(0.84, 0.97)
    sac = (np.hypot(box.x / (rx * narrow * full), (y + 0.3) / (ry * full)) - 1) * ry * full
    box.paint(sac, "diaphragm", "spinal canal")
    box.paint(sac + 0.5, "csf", "spinal canal")
    swell = np.interp(box.z, [-116, -60, -38, -5, 30, 60, 85], [0.8, 0.8, 0.95, 1.0, 0.95, 0.92, 1.05])
    cx, cy = build.cord[0] * swell, build.cord[1] * np.interp(box.z, [-80, 0, 85], [0.92, 1.0, 1.12])
    wander = np.clip(build.ride + 1.2 * np.sin(box.z / 33 + random.uniform(0, 6)), -1, 1)
    cord_y = y - wander * np.maximum(ry * full - cy - 0.8, 0)
    cord = (np.hypot(box.x / cx, cord_y / cy) - 1) * cy
    strings = box.tube([way[way[:, 0] * np.sign(way[-1, 0]) < 10] for way in roots])
    box.paint(np.maximum(strings + 0.8, sac + 0.5), "cord", "spinal canal", 1.0)
    box.paint(cord, "cord", "spinal cord")
    horns = np.hypot((np.abs(box.x) - 0.36 * cx) / (0.15 * cx), (cord_y + 0.05 * cy) / (0.62 * cy)) - 1
    bar = np.maximum(np.abs(box.x) - 0.4 * cx, np.abs(cord_y) - 0.14 * cy)
    grey = np.minimum(horns * 0.15 * cx, bar)
    box.paint(grey, "grey matter", "spinal cord")
