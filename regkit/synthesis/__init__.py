"""Synthetic volumes: label ensembles of random shapes, and pairs of images of random appearance from them.

Data flows shapes -> ensemble -> appearance -> pairs. Drawing needs torch and numpy alone, and runs where its
tensors are; only the contact sheet, folders of label maps and painted trunks need more. Scalars are drawn by
a numpy generator and voxels by a torch generator, both seeded by (seed, index): sample ``index`` is the same
whatever was drawn before it.
"""
