"""Few-shot segmentation: the network of a registration, fine-tuned on a few labelled volumes.

Data flow one way: files -> cases (the working grid) -> training -> a model's folder -> segment.
"""
