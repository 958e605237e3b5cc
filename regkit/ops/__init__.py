"""Operations on volumes: each in torch, the slow ones also as kernels in C and in Triton."""
