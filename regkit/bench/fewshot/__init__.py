"""``regkit bench few-shot``: segmentation learnt from one to three volumes, as in Dey et al. (ICLR 2025).

A layout says which volumes there are; for each number of volumes and seed, some are trained on and others
segmented, by each arm: the pretrained network, the same without what it learnt, and atlases.
"""
