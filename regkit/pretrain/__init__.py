"""Pretraining of the network on synthetic pairs.

Runs on torch, numpy, safetensors and rich alone, on Python 3.10 and torch 2.6 or newer: a checkout is all
that a bare GPU machine needs for ``python -m regkit.pretrain --config models/NAME.yaml -o RUN``.
"""
