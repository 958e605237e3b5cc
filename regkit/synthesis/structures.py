"""The structures of the body that a network can learn to name, by number; 0 is everything else.

New ones are added at the end: weights remember by name what they know (``regkit pretrain --start``).
"""

from __future__ import annotations

TRUNK = {
    1: "liver", 2: "spleen", 3: "right kidney", 4: "left kidney", 5: "gallbladder", 6: "stomach",
    7: "pancreas", 8: "aorta", 9: "vena cava", 10: "vertebrae", 11: "right psoas", 12: "left psoas",
    13: "right lung", 14: "left lung", 15: "fat of the wall", 16: "muscles of the wall", 17: "inner fat",
    18: "right back muscles", 19: "left back muscles", 20: "small bowel", 21: "colon", 22: "duodenum",
    23: "heart", 24: "ribs", 25: "discs", 26: "spinal canal", 27: "spinal cord", 28: "portal vein",
    29: "other vessels", 30: "pelvis",
}  # fmt: skip
"""What the painted trunk (:mod:`regkit.synthesis.procedural_trunk`) is divided into."""

HEAD = {
    31: "left cerebral white matter", 32: "right cerebral white matter", 33: "left cerebral cortex",
    34: "right cerebral cortex", 35: "ventricles", 36: "cerebellar cortex", 37: "cerebellar white matter",
    38: "thalamus", 39: "caudate nucleus", 40: "lentiform nucleus", 41: "hippocampus and amygdala",
    42: "brain stem", 43: "fluid around the brain", 44: "bones of the head", 45: "eyes",
    46: "soft tissue of the head",
}  # fmt: skip
"""What a head has besides "spinal cord" and "other vessels"."""

NECK = {
    47: "airway", 48: "larynx and trachea", 49: "oesophagus", 50: "thyroid gland", 51: "salivary glands",
    52: "muscles of the neck",
}  # fmt: skip
"""What a painted neck (:mod:`regkit.synthesis.neck`) has besides those of trunk and head."""

STRUCTURES = TRUNK | HEAD | NECK
"""All of them."""

GROUPS = (
    (0, 25, 38), (1, 2, 12, 31, 47), (3, 4, 23, 32, 48), (5, 8, 24, 30, 44), (6, 11, 33, 49), (7, 18, 34),
    (9, 15, 46), (10, 21, 35), (13, 19, 22, 36, 45), (14, 29, 37, 39), (16, 42, 50, 51), (17, 41),
    (20, 26, 43), (27, 28, 40), (52,),
)  # fmt: skip
"""Structures that lie apart: of none do more than a few per cent lie within 32 mm, which is as far as a
registration looks, of another of its group. So it cannot take one for the other, and a channel for each group
tells it as much as one for each structure. Regions share the groups: a head has no liver."""
