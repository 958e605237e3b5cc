"""What every training run needs: checkpoints, a log, a picture of it, progress, and an end that waits for it.

It needs torch, numpy, safetensors and rich alone, as :mod:`regkit.pretrain` does.
"""
