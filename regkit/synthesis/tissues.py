"""What bodies are made of, and how scanners show it."""

from __future__ import annotations

# tissue: (CT, T2, T1). CT in Hounsfield units in the portal venous phase. MR in arbitrary units: a T2 turbo
# spin echo, in which fat and fluid are bright, and a T1 gradient echo, in which fluid is dark and organs are
# much alike. Flowing blood and compact bone give little signal in either. No two orders of brightness agree.
_TISSUES = {
    "air": (-1000, 0, 0), "lung": (-835, 30, 25), "skin": (30, 260, 380), "fat": (-104, 640, 800),
    "muscle": (58, 150, 290), "diaphragm": (60, 140, 280), "compact bone": (640, 22, 25),
    "marrow": (185, 300, 500), "rib": (430, 60, 150), "cartilage": (115, 215, 220), "disc": (88, 150, 260),
    "nucleus": (78, 420, 230), "csf": (14, 900, 110), "cord": (42, 400, 300), "liver": (112, 245, 410),
    "spleen": (124, 400, 280), "renal cortex": (188, 430, 350), "renal medulla": (150, 540, 270),
    "urine": (14, 880, 120), "bile": (8, 900, 180), "pancreas": (94, 340, 430), "gut wall": (84, 260, 300),
    "fluid": (16, 800, 130), "gas": (-960, 4, 3), "chyme": (30, 520, 230), "stool": (15, 330, 330),
    "artery": (182, 30, 110), "vein": (160, 55, 130), "portal vein": (172, 80, 140),
    "heart": (118, 190, 280), "chamber": (168, 40, 120), "grey matter": (39, 400, 330),
    "deep grey matter": (37, 330, 400), "white matter": (30, 290, 480), "mucosa": (45, 560, 260),
    "vitreous body": (10, 880, 90),
}  # fmt: skip
_MODALITIES = ("ct", "t2", "t1")

TISSUES = tuple(_TISSUES)
"""The tissues by number: their intensities are those of :func:`intensities`."""


def intensities(modality: str) -> dict[str, float]:
    """Mean intensity of each tissue, by name: "ct" in HU, or "t2" or "t1" in arbitrary units, 0 to 900."""
    column = _MODALITIES.index(modality)
    return {name: float(values[column]) for name, values in _TISSUES.items()}
